"""Settings of an extraction, as they are given on the command line or in Python, and whom each of them is for."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from maskfeat_kernels import DALAL_TRIGGS, MASKFEAT, OPENCV, SKIMAGE, HogSpec

from ..keys import Size, bad_choice, check_numbers, key, literals, nearest, parse

PRESETS = {"maskfeat": MASKFEAT, "skimage": SKIMAGE, "opencv": OPENCV, "dalal_triggs": DALAL_TRIGGS}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of an extraction that are not of a recipe."""

    out: str = key("", "the folder to write into")
    split: Literal["train", "val", "test"] = key("train", "which part of the data, where they have parts")
    engine: Literal["local", "ray"] = key("local", "'local': this machine; 'ray': a cluster of Ray")
    features: Literal["pooled", "maps"] = key("pooled", "of an encoder: the mean of its outputs, or all on their grid")
    dtype: Literal["float32", "float16"] = key("float32", "of the features; Spark does not read float16")
    rows: int = key(
        0, "samples of a file; 0 for at most 128 MB, and about 64 files of 64 or more; a tar shard is one file", least=0
    )
    workers: int = key(-1, "processes; 0 for this one; -1 for one a core, or as many as share the GPUs", least=-1)
    loaders: int = key(
        -1, "processes that decode for each worker; -1 for none on CPUs; on GPUs all cores, of Ray 4", least=-1
    )
    gpus: float = key(
        -1.0, "share of a GPU of each worker, as 0.5; -1 for a whole one where there is one", least=-1, most=1
    )

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            check_numbers(item.name, getattr(self, item.name), item.metadata)
        for name, choices in literals(type(self)).items():
            if getattr(self, name) not in choices:
                raise ValueError(bad_choice(name, getattr(self, name), choices))
        if not self.out:
            raise ValueError("extract needs out=FOLDER, the folder to write into")


OWN = {item.name: item for item in dataclasses.fields(Options)}


def options_of(settings: dict[str, Any]) -> tuple[Options, dict[str, Any]]:
    """The options among the settings, and the other settings; ValueError for a value that makes no sense."""
    values = {name: _value(name, settings[name], OWN[name].type) for name in settings if name in OWN}
    return Options(**values), {name: value for name, value in settings.items() if name not in OWN}


def spec_of(settings: dict[str, Any], spec: HogSpec | None, known: Iterable[str]) -> tuple[HogSpec, dict[str, Any]]:
    """The HOG that the settings ask for, beginning with ``spec`` or their ``preset``, and the other settings.

    ``channels`` is a number of the picture, or a word of HogSpec. ``known`` are the names that others may have.

    Raises TypeError or ValueError for an unknown name and for values that make no sense.
    """
    kinds: dict[str, Any] = {item.name: type(item.default) for item in dataclasses.fields(HogSpec)}
    kinds |= dict.fromkeys(("cell", "block", "block_stride"), Size)
    words, others = {}, {}
    for name, value in settings.items():
        if name in kinds and not (name == "channels" and str(value).isdecimal()):
            words[name] = _value(name, value, kinds[name])
        elif name in known or name == "preset":
            others[name] = value
        else:
            raise ValueError(f"extract hog has no key {name!r}{nearest(name, [*kinds, *known, *OWN, 'preset'])}")
    preset = others.pop("preset", "maskfeat")
    if preset not in PRESETS:
        raise ValueError(bad_choice("preset", preset, (*PRESETS,)))
    return (spec or PRESETS[preset]).replace(**words), others


def _value(name: str, value: Any, kind: Any) -> Any:
    if isinstance(value, str):
        return parse(name, value, kind)
    if kind in (int, float) and not isinstance(value, (int, kind)):
        raise ValueError(f"{name} must be {'a whole number' if kind is int else 'a number'}, got {value!r}")
    return value


def help_text() -> str:
    """The keys that a recipe has not, one a line."""
    lines = [f"  {item.name}={item.default}" for item in OWN.values()]
    width = max(map(len, lines))
    described = [f"{line:{width}}  # {item.metadata['doc']}" for line, item in zip(lines, OWN.values(), strict=True)]
    presets = f"  preset={'|'.join(PRESETS)}, and the words of HogSpec (bins=12 cell=16x8 norm=l1), of hog"
    return "\n".join(["keys beside those of a recipe:", *described, presets])
