"""The oracles that the tests and the benchmarks hold the engines to."""
