"""What a step changes, each in one vector, and what a caller brings in its place."""
