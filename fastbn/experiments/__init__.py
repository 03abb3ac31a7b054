"""The papers' experiments, each a preset with its published figures beside it: python -m
fastbn.experiments list."""
