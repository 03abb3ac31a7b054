"""The native engine: C++ kernels on CPUs."""
