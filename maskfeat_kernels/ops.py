"""Registers the ops of this package with PyTorch: a program that ``torch.export`` has saved finds them after this."""

from .hog import ops as hog
from .tokens import ops as tokens

__all__ = ["hog", "tokens"]
