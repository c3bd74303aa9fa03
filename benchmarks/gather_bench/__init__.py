"""Benchmarks and the demo: not needed to use gather-core."""
