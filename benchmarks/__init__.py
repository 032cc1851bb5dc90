"""Benchmarks: one command (__main__.py), one timer (timing.py), the rivals (rivals.py), and a file of cases an op."""
