"""What a step changes, each in one vector: parameters, their gradient, the optimizer's state, statistics."""
