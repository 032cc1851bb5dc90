"""Histograms of oriented gradients: ``api`` is the door, ``spec`` the words, ``plan`` the numbers.

``reference`` says in plain torch what is meant, ``ops`` leads to the compiled kernels, ``triton`` has its own.
"""
