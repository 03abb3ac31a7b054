"""Networks that nobody here wrote: what of them runs fused, how right, how fast, in how much memory."""
