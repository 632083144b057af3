"""Figures to be printed by one command each: `python -m benchmarks.NAME`."""
