"""Tracing: a model's forward watched while torch.fx records it, and what a trace would change left out."""
