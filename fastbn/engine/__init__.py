"""The engine: the graph read off a model, its fused forward and backward, and the engines that run
its operations."""

from fastbn.engine.fuse import fuse, fused_forward

__all__ = ["fuse", "fused_forward"]
