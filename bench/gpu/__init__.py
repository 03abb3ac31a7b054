"""What a visit to a GPU should find out: see __main__.py and ../gpu_check.sh."""
