"""A run's settings as they are asked, and what a file of a run may say."""
