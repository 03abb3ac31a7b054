"""The cost of a step in memory, traffic and time, and the plan by which it runs."""
