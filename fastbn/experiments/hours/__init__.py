"""The hours that the experiments take on this machine: estimated from what is on record, or measured."""
