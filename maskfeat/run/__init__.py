"""Runs: training, evaluation, and all that lets a run go on after it was killed."""
