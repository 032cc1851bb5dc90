"""Numbers that a user gives, checked. Knows neither torch nor numpy."""

import math
import operator
from typing import Any


def integer(name: str, value: Any) -> int:
    """``value`` as an int, if it is one, of Python or NumPy; a truth value is none."""
    try:
        if is_bool(value):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None


def at_least(name: str, value: Any, least: int) -> int:
    """``value`` as an int, if it is one and not below ``least``."""
    number = integer(name, value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return number


def pair(name: str, value: Any, axes: str) -> tuple[int, int]:
    """Two ints of at least 1. ``value`` is both of them in a tuple, a list or an array, or one int for both."""
    if not isinstance(value, (tuple, list)):
        value = value.tolist() if hasattr(value, "tolist") and not is_bool(value) else value
        value = value if isinstance(value, list) else (value, value)
    if len(value) != 2:
        raise ValueError(f"{name} must be an int or {axes}, got {value!r}")
    return at_least(name, value[0], 1), at_least(name, value[1], 1)


def is_bool(value: Any) -> bool:
    """Whether a value is a truth value of Python or NumPy, which this file does not import."""
    if isinstance(value, (int, float)):
        return isinstance(value, bool)
    return (type(value).__module__, type(value).__name__.strip("_")) == ("numpy", "bool")


def not_negative(name: str, value: Any) -> float:
    """``value`` as a float, if it is a finite number and not negative."""
    try:
        if isinstance(value, str) or is_bool(value):
            raise TypeError
        number = float(value)
    except TypeError:
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")
    return number
