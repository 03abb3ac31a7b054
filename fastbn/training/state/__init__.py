"""The state that a step changes, each part in one vector, and what a caller brings in its place."""
