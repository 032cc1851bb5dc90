"""Drop-in replacements for the HOG of other libraries: ``skimage``, ``opencv`` and ``slowfast``.

Each has the names, signatures, defaults, shapes, dtypes and errors of its library and returns its numbers. The first
two take NumPy arrays, without importing torch, and torch tensors on any device, whose results are tensors there.
``fhog`` has the numbers of dlib and VLFeat under a name of its own, as neither has one in Python for them.
"""
