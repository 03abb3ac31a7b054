"""A run of the command line: its settings resolved, its folder, what it says."""
