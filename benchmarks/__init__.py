"""Benchmarks: one folder for each study. Run `python -m benchmarks.NAME --help`."""
