"""Training by several processes, one a device: who they are, what they tell each other in a step, and
statistics of all of them."""
