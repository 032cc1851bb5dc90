"""Benchmarks: one command (__main__.py), one timer (timing.py), the rivals (rivals.py), and suites (bench_*.py)."""
