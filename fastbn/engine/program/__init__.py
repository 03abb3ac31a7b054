"""A model's program: read off a trace, compared with the model's own forward, kept as long as it holds."""
