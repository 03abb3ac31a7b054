"""The engine: the graph read off a model, its fused forward and backward, and the engines that carry out its operations."""

from fastbn.engine.explain import Explanation, explain
from fastbn.engine.fused import fuse, fused_forward

__all__ = ["Explanation", "explain", "fuse", "fused_forward"]
