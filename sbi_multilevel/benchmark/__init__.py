"""Benchmark tasks, methods and metrics; run `python -m sbi_multilevel.benchmark`."""
