def step_bytes(n): return 4*(n+4)
