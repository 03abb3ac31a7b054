"""The Triton engine: kernels on CUDA."""
