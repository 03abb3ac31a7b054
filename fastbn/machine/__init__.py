"""What this machine is and what it is asked: device, versions, threads, torchrun's environment, XLA."""
