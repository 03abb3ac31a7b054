"""What a step costs in memory, traffic and time, and the plan by which it runs."""
