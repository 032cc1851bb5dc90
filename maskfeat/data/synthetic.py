"""Scenes rendered on the spot: a textured shape on a textured ground, in a light that changes from scene to scene.

The label depends on form alone. Colours, contrast, exposure and the direction of the light are drawn anew for every
scene. In a clip the light also moves. So a representation that follows brightness has a harder time than one that
follows edges. Every scene is a function of its split and number, whatever the order in which they are read.
"""

import math

import numpy as np

from .augment import Frames
from .bands import Picture, of_array
from .decode import Choose

SHAPES = ("disc", "square", "triangle", "star", "cross")
TEXTURES = ("stripes", "checks")
MOTIONS = ("slide", "spin")
CLASSES = tuple(f"{shape}, {texture}" for shape in SHAPES for texture in TEXTURES)
CLIP_CLASSES = tuple(f"{shape}, {motion}" for shape in SHAPES for motion in MOTIONS)

LENGTH, RATE = 90, 30.0
"""Frames, and frames per second, of a clip."""


class Scenes:
    """``samples`` scenes, by default 2048, or a quarter of that to validate on, ten classes in equal shares.

    A still shows one of five shapes filled with stripes or checks; in a clip the label is the shape and whether it
    slides or spins. Labels survive mirroring.
    """

    classes = len(CLASSES)

    def __init__(
        self, split: str, size: tuple[int, int], moving: bool, samples: int = 0, channels: int = 3
    ):  # size: height, width
        self.split, self.moving, self.channels = split, moving, channels
        y, x = (side / min(size) for side in size)
        self.grid = np.mgrid[-y : y : size[0] * 1j, -x : x : size[1] * 1j].astype(np.float32)
        self.samples = (samples or 2048) if split == "train" else max((samples or 2048) // 4, 1)

    def __len__(self) -> int:
        return self.samples

    def read(self, index: int, choose: Choose | None) -> tuple[list[Frames], int]:
        rng = np.random.default_rng((self.split != "train", index))
        scene = Scene(index % 10, self.moving, self.grid, rng, self.channels)
        if not self.moving:
            return [[scene.frame(0.0)]], scene.label
        assert choose is not None
        return [[scene.frame(number / LENGTH) for number in clip] for clip in choose(LENGTH, RATE)], scene.label

    def name(self, index: int) -> str:
        return f"scene {index} of {self.split}"


class Scene:
    """One scene; ``frame(t)`` is its picture at the time t from 0 to 1. Places are from -1 to 1 on the shorter axis."""

    def __init__(
        self,
        label: int,
        moving: bool,
        grid: np.ndarray,  # [2, H, W]: y and x
        rng: np.random.Generator,
        channels: int = 3,
    ):
        self.label, self.shape, kind = label, SHAPES[label // 2], label % 2
        self.texture = rng.choice(TEXTURES) if moving else TEXTURES[kind]
        self.motion = MOTIONS[kind] if moving else None
        self.y, self.x = grid
        self.pixel = 2 / min(self.x.shape)
        # the shape
        self.angle, self.scale = rng.uniform(-math.pi, math.pi), rng.uniform(0.45, 0.7)
        self.centre = rng.uniform(-0.25, 0.25, 2)
        self.step = rng.choice([-1, 1]) * rng.uniform(0.6, 1.2)
        self.heading = rng.uniform(0, 2 * math.pi)
        self.grain, self.grain_angle = rng.uniform(2.5, 4.5), rng.uniform(0, math.pi)
        self.colours = rng.uniform(0.1, 1.0, (2, channels))
        # the ground: a few plane waves
        self.ground = rng.uniform(0.1, 1.0, (2, channels))
        self.waves = rng.normal(0, 2.5, (4, 2)), rng.uniform(0, 2 * math.pi, 4)
        # the light
        self.light, self.slope = rng.uniform(0, 2 * math.pi), rng.uniform(0, 1.2)
        self.turn = rng.uniform(-math.pi, math.pi) if moving else 0.0
        self.exposure, self.contrast = rng.uniform(0.5, 1.5), math.exp(rng.uniform(math.log(0.15), 0))
        self.grey = rng.uniform(0.2, 0.8)
        self.noise = int(rng.integers(2**32))

    def frame(self, t: float) -> Picture:
        angle, centre = self.angle, self.centre
        if self.motion == "spin":
            angle += 3 * self.step * t
        if self.motion == "slide":
            centre = centre + self.step * (t - 0.5) * np.array([math.cos(self.heading), math.sin(self.heading)])
        x, y = rotated(self.x - np.float32(centre[0]), self.y - np.float32(centre[1]), angle)
        x, y = x / np.float32(self.scale), y / np.float32(self.scale)
        inside = edge(distance(self.shape, x, y) * self.scale, self.pixel)[..., None]
        shape = blend(self.colours, texture(self.texture, *rotated(x, y, self.grain_angle), self.grain))
        waves, phases = self.waves
        ground = np.zeros((), np.float32)
        for (a, b), phase in zip(waves, phases, strict=True):
            ground = ground + np.sin(np.float32(a) * self.x + np.float32(b) * self.y + np.float32(phase))
        ground = blend(self.ground, 0.5 + ground / 8)
        surface = ground + inside * (shape - ground)

        across, _ = rotated(self.x, self.y, self.light + self.turn * t)
        light = self.exposure * np.exp(np.float32(self.slope) * across)
        picture = self.grey + self.contrast * (surface * light[..., None] - 0.5)
        noise = np.random.default_rng((self.noise, int(t * LENGTH))).normal(0, 0.005, picture.shape[:2])
        picture = (picture + noise[..., None].astype(np.float32)).clip(0, 1)
        return of_array((picture * 255 + 0.5).astype(np.uint8))


def rotated(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """About how far a point is outside the shape's outline, negative inside; the shape is about one unit in radius."""
    if shape == "disc":
        return np.hypot(x, y) - 0.85
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.75
    if shape == "triangle":
        return np.maximum(abs(x) * 0.866 - y * 0.5, y) - 0.5
    if shape == "star":
        fifth = 2 * math.pi / 5
        turned = np.arctan2(y, x) % fifth - fifth / 2
        return (np.hypot(x, y) - (0.4 + 0.6 * (abs(turned) / (fifth / 2)) ** 1.5)) * 0.6
    return np.minimum(np.maximum(abs(x) - 0.95, abs(y) - 0.32), np.maximum(abs(y) - 0.95, abs(x) - 0.32))


def texture(kind: str, x: np.ndarray, y: np.ndarray, grain: float) -> np.ndarray:
    """Values from 0 to 1 with ``grain`` periods to two units."""
    wave = np.sin(np.float32(grain * math.pi) * x)
    if kind == "checks":
        wave = wave * np.sin(np.float32(grain * math.pi) * y)
    return (0.5 + 4 * wave).clip(0, 1)


def edge(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Share of a pixel inside an outline at that distance."""
    return (0.5 - distance / pixel).clip(0, 1).astype(np.float32)


def blend(colours: np.ndarray, share: np.ndarray) -> np.ndarray:  # [2, C], [H, W] -> [H, W, C]
    first, second = colours.astype(np.float32)
    return first + share[..., None] * (second - first)
