"""Measurements, side by side with stock PyTorch in one process; their records are in results/."""
