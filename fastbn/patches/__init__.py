"""Patches: what training changed of a pretrained network, as a small file of its own."""
