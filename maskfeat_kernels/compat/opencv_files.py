"""Files of ``cv2.HOGDescriptor``: YAML, XML or JSON, written and read by the FileStorage of the installed OpenCV."""

import os
import re
from typing import Any

import numpy as np

from .opencv_checks import as_integer, as_pair, error

FileName = str | bytes | os.PathLike[Any]
PAIRS = ("winSize", "blockSize", "blockStride", "cellSize")
INTEGERS, REALS = ("nbins", "derivAperture", "histogramNormType", "nlevels"), ("winSigma", "L2HysThreshold")
ORDER = (
    *PAIRS,
    *("nbins", "derivAperture", "winSigma", "histogramNormType", "L2HysThreshold", "gammaCorrection"),
    *("nlevels", "signedGradient"),
)
PARAMETERS = [name for name in ORDER if name not in ("derivAperture", "histogramNormType", "nlevels")]
"""Those that change what is computed of a window."""
TYPE_NAME = "opencv-object-detector-hog"


def read(filename: FileName, objname: str) -> dict[str, Any]:
    """The parameters and the detector in a file; :class:`error` names a file that holds none."""
    name = _name(filename)
    if not os.path.isfile(name):
        raise error(f"cannot read {name!r}: {'not a file' if os.path.exists(name) else 'there is no such file'}")
    file, own = opencv("FileStorage", "reading files")(), opencv("error", "reading files")
    try:
        if not file.open(name, 0):
            raise error(f"cannot read {name!r}")
        node = file.getNode(_name(objname)) if objname else file.getFirstTopLevelNode()
        values: dict[str, Any] = {key: _value(node.getNode(key)) for key in node.keys()} if node.isMap() else {}  # noqa: SIM118
    except own as reason:
        raise error(f"cannot read {name!r}: not a file of OpenCV ({_reason(reason)})") from None
    finally:
        file.release()
    missing = [key for key in (*PAIRS, *INTEGERS, *REALS, "gammaCorrection") if key not in values]
    if missing:
        of = f" under {objname!r}" if objname else ""
        raise error(f"{name!r} holds no HOGDescriptor{of}: it has no {', '.join(missing)}")
    for key in PAIRS:
        values[key] = as_pair(key, values[key], least=1)
    for key in INTEGERS:
        values[key] = as_integer(key, values[key])
    for key in (*REALS, "gammaCorrection", "signedGradient"):
        if not isinstance(values.setdefault(key, 0), (int, float)):
            raise error(f"{key} must be a number, got {values[key]!r} in {name!r}")
    return values


def write(filename: FileName, objname: str, values: dict[str, Any]) -> None:
    """Parameters, in OpenCV's order, and the detector, if it has weights."""
    name = _name(filename)
    folder = os.path.dirname(name) or "."
    if os.path.isdir(name) or not os.path.isdir(folder):
        raise error(f"cannot write {name!r}: {'a folder' if os.path.isdir(name) else f'there is no folder {folder!r}'}")
    file, own = opencv("FileStorage", "writing files")(), opencv("error", "writing files")
    try:
        if not file.open(name, 1):
            raise error(f"cannot write {name!r}")
        file.startWriteStruct(_name(objname) or _object_name(name), 5, TYPE_NAME)  # a map
        for key, value in values.items():
            if isinstance(value, (tuple, np.ndarray)):
                file.startWriteStruct(key, 4 | 8, "")  # a sequence in one line
                for number in value:
                    file.write("", float(number) if isinstance(value, np.ndarray) else number)
                file.endWriteStruct()
            else:
                file.write(key, value)
        file.endWriteStruct()
    except own as reason:
        raise error(f"cannot write {name!r}: {_reason(reason)}") from None
    finally:
        file.release()


def opencv(name: str, what: str) -> Any:
    """Something of the installed OpenCV, for what is its own."""
    try:
        import cv2

        return getattr(cv2, name)
    except (ImportError, AttributeError):
        raise RuntimeError(f"{what} needs an OpenCV with {name}: pip install 'opencv-python-headless<5'") from None


def _name(filename: FileName) -> str:
    try:
        return os.fsdecode(filename)
    except TypeError:
        raise error(f"a name must be a string or a path, got {filename!r}") from None


def _object_name(filename: str) -> str:
    """What OpenCV calls the object of a file: its name, without what YAML and XML do not allow in one."""
    stem = re.sub(r"\.gz$", "", os.path.basename(filename)).rpartition(".")
    name = re.sub(r"[^A-Za-z0-9_-]", "_", stem[0] or stem[2])
    return name if re.match(r"[A-Za-z_]", name) else "_" + name


def _value(node: Any) -> "list[Any] | float | None":
    """A number, a list of numbers, or None for what is none of these."""
    if node.isSeq():
        return [_value(node.at(i)) for i in range(node.size())]
    return int(node.real()) if node.isInt() else node.real() if node.isReal() else None


def _reason(problem: Exception) -> str:
    """The words of an error of OpenCV, in a line."""
    return " ".join(str(problem).split("error: ")[-1].split())
