"""The machine that a command runs on: device, versions, threads, torchrun's environment, XLA."""
