"""How a command reads its arguments, speaks and ends."""
