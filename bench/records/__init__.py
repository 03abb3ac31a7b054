"""Records: what was measured, under which conditions, as files of bench/results/."""
