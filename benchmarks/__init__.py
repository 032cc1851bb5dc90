"""Benchmarks: one timer (timing.py), the rivals (rivals.py), and a script for each op (bench_*.py)."""
