"""Keys of a recipe: the values that each takes, how they are read from a text, and how they are printed."""

import difflib
import math
import operator
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, Literal, NamedTuple

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
BOUNDS = {
    "least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


class Size(NamedTuple):
    """Height and width in pixels. Its text is 224x112, or 224 of a square."""

    height: int
    width: int

    def __str__(self) -> str:
        return str(self.height) if self.height == self.width else f"{self.height}x{self.width}"

    @classmethod
    def of(cls, name: str, value: Any) -> "Size":
        """Of two whole numbers, or of one for both sides; TypeError for anything else."""
        try:
            return cls(*map(operator.index, value if isinstance(value, (tuple, list)) else (value, value)))
        except TypeError:
            raise TypeError(f"{name} must be a whole number or (height, width), got {value!r}") from None

    def check_multiple(self, name: str, step: int, of: str, advice: str = "") -> None:
        """ValueError with the nearest sizes unless both sides are multiples of ``step``, above 0."""
        if min(self) < step or any(side % step for side in self):
            whole = (Size(*(max(round_(side / step), 1) * step for side in self)) for round_ in (math.floor, math.ceil))
            sizes = " or ".join(dict.fromkeys(map(str, whole)))
            raise ValueError(
                f"height and width must be multiples of {of}, got {name}={self}; the nearest are {sizes}{advice}"
            )


def key(default: Any, doc: str, *, numbers: int = 0, **bounds: float) -> Any:
    """A field of a recipe.

    ``numbers`` is the length of a tuple, 0 for any. ``bounds`` are limits of each number, named as in BOUNDS.
    """
    return field(default=default, metadata={"doc": doc, "numbers": numbers, "bounds": bounds})


def parse(name: str, text: str, kind: Any) -> Any:
    """``text`` as a value of the type ``kind`` of the key ``name``; ValueError if it is none."""
    if typing.get_origin(kind) is Literal:
        if text not in typing.get_args(kind):
            raise ValueError(bad_choice(name, text, typing.get_args(kind)))
        return text
    if typing.get_origin(kind) is tuple:
        parts = text.strip("()[] ").split(",")
        return tuple(parse(name, part.strip(), typing.get_args(kind)[0]) for part in parts if part.strip())
    if kind is Size:
        if not (match := re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text)):
            sides = [str(round(float(side))) for side in re.findall(r"[0-9]{1,9}(?:\.[0-9]+)?", text)[:2]]
            example = f"{name}={'x'.join(sides) or '224x112'}"
            raise ValueError(f"{name} must be pixels, or HEIGHTxWIDTH, as {example}, got {text!r}")
        return Size(int(match[1]), int(match[2] or match[1]))
    if kind is bool:
        if text.lower() not in TRUE + FALSE:
            raise ValueError(f"{name} must be true or false, got {text!r}")
        return text.lower() in TRUE
    try:
        value = kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"{name} must be {wanted}, as {name}={_example(text, kind)}, got {text!r}") from None
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {text!r}")
    return value


def parse_policy(policy: str) -> dict[str, float]:
    """The numbers in a text such as m9-mstd0.5-inc1 of ``rand_augment``; ValueError for another."""
    options = {"m": 10.0, "n": 2.0, "mstd": 0.0, "inc": 0.0}
    for part in policy.removeprefix("rand-").split("-"):
        match = re.fullmatch(r"(m|n|mstd|inc)(\d+\.?\d*)", part)
        if not match:
            raise ValueError(f"rand_augment must look like 'm9-mstd0.5-inc1', got {policy!r}")
        options[match[1]] = float(match[2])
    if not options["inc"]:
        raise ValueError(f"rand_augment must contain inc1, changes that grow with the magnitude, got {policy!r}")
    return options


def check_numbers(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """ValueError unless there are as many numbers as the key needs, all within its bounds."""
    numbers, bounds = metadata["numbers"], metadata["bounds"]
    if numbers and len(value) != numbers:
        raise ValueError(f"{name} needs {numbers} numbers, got {text_of(value)!r}")
    for number in value if isinstance(value, tuple) else (value,):
        if not all(BOUNDS[bound][0](number, limit) for bound, limit in bounds.items()):
            wanted = " and ".join(f"{BOUNDS[bound][1]} {limit}" for bound, limit in bounds.items())
            raise ValueError(f"{name} must be {wanted}, got {text_of(value)}")


def text_of(value: Any) -> str:
    """The text from which :func:`parse` reads ``value``."""
    return ",".join(map(text_of, value)) if type(value) is tuple else str(value)


def _example(text: str, kind: type) -> str:
    try:
        return str(kind(round(float(text))))
    except (ValueError, OverflowError):
        return {int: "10", float: "0.1"}[kind]


def literals(cls: type) -> dict[str, tuple[str, ...]]:
    """The choices of each key that has some."""
    hints = typing.get_type_hints(cls).items()
    return {name: typing.get_args(kind) for name, kind in hints if typing.get_origin(kind) is Literal}


def bad_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Says that ``value`` is none of the choices, and which is nearest."""
    return f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}{nearest(str(value), choices)}"


def nearest(name: str, names: Iterable[str]) -> str:
    """A question after the name that is most like ``name``; "" if none is like it."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else ""


def is_url(text: Any) -> bool:
    """Whether data are named by a URL, as ``s3://bucket/folder``, and not by a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(text)) is not None


def shown_url(text: str) -> str:
    """A URL for messages, without what may be a secret: a user with a password, and all that comes after ``?``."""
    if not is_url(text):
        return text
    return re.sub(r"^([^/]*//)[^/]*@", r"\1", re.sub(r"\?.*=.*", "?...", text, flags=re.DOTALL))


def check_url(name: str, text: str) -> None:
    """ValueError for a URL of nothing, or one with credentials, which would be written into logs and recipes."""
    if is_url(text) and not text.partition("://")[2].strip("/"):
        raise ValueError(f"{name} must say what is read after '://', got {text!r}")
    container = re.sub(r"^(abfss?|az)://[^/@:]+@", r"\1://", text, flags=re.IGNORECASE)  # of Azure, before its account
    words = "sig|token|key|secret|credential|password|auth|policy"
    if is_url(text) and re.search(rf"://[^/]*@|[?&][^=&]*({words})[^=&]*=", container, re.IGNORECASE):
        raise ValueError(
            f"{name} must have no credentials in it, got {shown_url(text)!r}; they belong in the environment, as "
            "AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS or HF_TOKEN"
        )
