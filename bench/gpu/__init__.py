"""The stages of a visit to a GPU: see __main__.py and ../gpu_check.sh."""
