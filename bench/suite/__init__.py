"""The suite that measures side by side: cases, providers, the gate before the clock, the clock, the rows."""
