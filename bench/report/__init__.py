"""The benchmarks' records as a page and as the README's table: python -m bench.report."""
