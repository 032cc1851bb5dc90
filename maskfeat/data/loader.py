"""Batches of uint8 crops, the same for a seed and an epoch however many processes load them, from any batch on."""

import copy
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import Finetune, Pretrain, Recipe
from ..keys import Size
from ..mask import Masks, make_masks
from . import ahead, processes
from .augment import Frames, eval_crops, flip, rand_augment, random_resized_crop
from .decode import Unreadable, frame_numbers
from .shards import Shards
from .source import DecodedOnce, Files, Photographs, Source, open_source
from .synthetic import Scenes
from .videos import REWOUND

log = logging.getLogger(__name__)

TRAINING, HELD_OUT = 0, 1  # streams of random numbers

RENDERED = ("synthetic", "skimage")
"""Names of data that are no files."""

MOST_FAILURES = 100
"""After so many unreadable samples in a row, more is wrong than a few damaged files."""


def make_loader(
    recipe: Recipe,
    split: str,
    *,
    seed: int,
    epoch: int = 0,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    augment: bool = True,
) -> "Loader":
    """The batches of one epoch, from batch ``start`` on, of one of ``world`` ranks.

    split: "train" is shuffled, has random crops, and drops an incomplete last batch. "val" is in order and has one
        centre crop of one clip. "test" is in order and has the clips and crops that the recipe tests with.
    augment: False reads the training samples as those of "val", each of them once, and draws no masks.

    A batch is what the rank computes at once, ``recipe.rank_batch(world)`` samples. Batch i of all ranks together holds
    the samples of batch i of one process with ``world`` times as many, crop for crop. Folders and lists are read once.

    Raises FileNotFoundError or ValueError for data that are missing, cannot be understood or do not fill a batch.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"split must be 'train', 'val' or 'test', got {split!r}")
    return Loader(Batches(recipe, split, seed, epoch, rank, world, augment), start, workers)


class Loader:
    """Iterates over ``{"images", "labels", "indices", "masks"}``; the length is that of the whole epoch, wherever it
    starts.

    images: uint8 ``[B, C, H, W]``, or ``[B, C, T, H, W]`` of video. labels: int64 ``[B]``, -1 for a sample without one;
    absent if there are none.
    indices: int64 ``[B]``, which samples of the source they are; :meth:`names` gives their files.
    masks: :class:`~maskfeat.Masks` to pre-train with. They are drawn here, as a GPU would need some hundred launches.
    In the test split there are as many images to a label as the recipe has views, one after another.

    source: where the samples come from, and ``data`` its name in the recipe.
    ``skipped`` counts the samples that could not be read so far. In training another sample takes the place of each;
    else the batch is smaller. ``rewound`` counts the videos of each format that were decoded from their beginning.
    """

    def __init__(self, batches: "Batches", start: int, workers: int):
        self.batches, self.start, self.workers = batches, start, workers
        self.recipe, self.source, self.data = batches.recipe, batches.source, batches.data
        self.skipped = 0
        self.rewound: Counter[str] = Counter()

    def at(self, epoch: int, start: int = 0) -> "Loader":
        """The same data in another epoch, from batch ``start`` on; nothing is opened or counted again."""
        return Loader(self.batches.of_epoch(epoch), start, self.workers)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        loader = DataLoader(
            processes.Reporting(self.batches) if self.workers else self.batches,
            batch_size=None,
            sampler=range(self.start, len(self)),
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(processes.outlive_sigterm, processes.ENDS),
            timeout=processes.LOOK if self.workers else 0,
            generator=torch.Generator(),  # or it would draw from the global one, and a resumed run would differ
        )
        with closing(processes.batches_of(loader)) as batches:
            for batch in batches:
                if "error" in batch:
                    raise batch["error"] from RuntimeError(batch["traceback"])
                for failure in batch.pop("failures"):
                    self.skip(*failure)
                self.rewound.update(batch.pop("rewound"))
                if len(batch["images"]):
                    yield batch
        self.report_rewound()

    def skip(self, name: str, reason: str) -> None:
        """Count a sample that cannot be read, and say so."""
        self.skipped += 1
        log.warning("skipped %s (%s)", name, reason)

    def report_rewound(self) -> None:
        if self.rewound:
            counts = ", ".join(f"{count} of {name}" for name, count in sorted(self.rewound.items()))
            log.warning(
                "videos decoded from their beginning, in which one cannot seek exactly: %s; mp4 is faster", counts
            )

    def names(self, indices: Tensor) -> list[str]:  # [B]
        return [self.source.name(index) for index in indices.tolist()]


class Batches(Dataset[dict[str, Any]]):
    """Whole batches by number. All randomness of a sample comes from the seed, the epoch and its number."""

    def __init__(
        self,
        recipe: Recipe,
        split: str,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        augment: bool = False,
        source: Source | None = None,  # by default what the recipe says
    ):
        self.recipe, self.train = recipe, split == "train" and augment
        self.seed, self.rank, self.world = seed, rank, world
        self.masked = isinstance(recipe, Pretrain) and augment
        tuned = recipe if isinstance(recipe, Finetune) else None
        self.classes = recipe.classes if tuned else None
        self.policy = tuned.rand_augment if tuned and self.train else ""
        self.repeats = tuned.repeats if tuned and self.train else 1
        self.clips, self.crops = (tuned.test_clips, tuned.test_crops) if tuned and split == "test" else (1, 1)
        test_size = getattr(recipe, "test_size", None)
        self.resize = test_size if test_size and any(test_size) else larger_than(recipe.image_size)
        self.source = samples_of(recipe, split) if source is None else source
        if recipe.cache_mb and not (recipe.frames or recipe.workers):
            self.source = _decoded_once(self.source, recipe.cache_mb)
        self.data, _ = place_of(recipe, split)
        self.check_labels()
        self.chosen = evenly(split == "train" and recipe.samples, len(self.source))
        self.set_epoch(epoch)
        self.reads = self.samples_to_read(recipe.rank_batch(world))
        if not len(self):
            raise ValueError(
                f"{recipe.data!r} has {len(self.chosen)} samples to train on, fewer than one batch of {self.reads} on "
                f"each of {world} ranks; choose a smaller batch_size"
            )

    def of_epoch(self, epoch: int) -> "Batches":
        """The batches of another epoch, of the same samples."""
        other = copy.copy(self)
        other.set_epoch(epoch)
        return other

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self.order = epoch, self.chosen
        if self.train:
            self.order = np.random.default_rng((self.seed, epoch)).permutation(self.chosen)

    def check_labels(self) -> None:
        """ValueError if the labels of the source are not those of a classifier, as far as that is known yet."""
        needed = self.source.classes
        if self.classes is None or needed is None or 0 < needed <= self.classes:
            return
        if needed == 0:
            raise ValueError(f"a classifier needs labels, and {self.data!r} has none")
        raise ValueError(
            f"{self.data!r} has labels up to {needed - 1}, but classes={self.classes}; set classes={needed}"
        )

    def samples_to_read(self, batch: int) -> int:
        """How many samples make up ``batch`` crops."""
        if self.train and batch % self.repeats:
            raise ValueError(f"{batch} samples of a rank are no multiple of repeats={self.repeats}; change batch_size")
        return max(batch // (self.repeats * self.clips * self.crops), 1)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.order), self.reads * self.world)
        return whole if self.train or not rest else whole + 1

    def __getitem__(self, number: int) -> dict[str, Any]:
        REWOUND.clear()  # of this batch alone
        start = (number * self.world + self.rank) * self.reads
        clips, labels, indices, failures = [], [], [], []
        positions = range(start, min(start + self.reads, len(self.order)))
        if isinstance(self.source, (Files, Shards)) and self.source.in_stores:
            ahead.plan(self.source, self.order[start : positions.stop].tolist())
        for position in positions:
            for attempt, index in enumerate(self.candidates(position)):
                try:
                    views, label = self.sample(index, attempt)
                except Unreadable as failure:
                    failures.append((failure.name, failure.reason))
                    continue
                clips += views
                labels += [label] * self.repeats
                indices += [index] * self.repeats
                break
            else:
                if self.train:
                    last = "{} ({})".format(*failures[-1])
                    raise OSError(f"{MOST_FAILURES} samples in a row could not be read, the last is {last}")
        nothing = 0, self.recipe.channels, max(self.recipe.frames, 1), *self.recipe.image_size
        images = to_tensor(clips) if clips else torch.empty(nothing, dtype=torch.uint8)
        batch = {"images": images if self.recipe.frames else images.squeeze(2), "failures": failures}
        batch["rewound"] = dict(REWOUND)
        batch["indices"] = torch.tensor(indices, dtype=torch.int64)
        if any(label is not None for label in labels):
            batch["labels"] = torch.tensor([-1 if label is None else label for label in labels], dtype=torch.int64)
        if self.masked and clips:
            assert isinstance(self.recipe, Pretrain)
            batch["masks"] = part_masks(self.recipe, len(clips), *self.part(number))
        return batch

    def part(self, number: int) -> tuple[int, int, int]:
        """The stream of random numbers of a batch, its step and its part of the step."""
        if not self.train:
            return HELD_OUT, number * self.world + self.rank, 0
        step, part = divmod(number, self.recipe.accumulate)
        before = self.epoch * (len(self) // self.recipe.accumulate)
        return TRAINING, before + step, part * self.world + self.rank

    def candidates(self, position: int) -> Iterator[int]:
        """The sample at a position of the epoch, and in training those that may take its place."""
        yield int(self.order[position])
        if self.train:
            rng = np.random.default_rng((self.seed, self.epoch, position, 1))
            yield from rng.choice(self.order, MOST_FAILURES - 1).tolist()

    def sample(self, index: int, attempt: int) -> tuple[list[Frames], int | None]:
        """The crops of a sample; those that stand in for one sample differ from those it has in its own place."""
        recipe, rng = self.recipe, np.random.default_rng((self.seed, self.epoch, index, attempt))
        choose = None
        if recipe.frames:
            options: dict[str, Any] = dict(
                frames=recipe.frames, step=recipe.frame_step, sampling=recipe.sampling, clips=self.clips
            )
            choose = partial(frame_numbers, **options, rng=rng if self.train else None)
        clips, label = self.source.read(index, choose)
        if self.classes is not None and label is None:
            raise Unreadable(f"sample {index} of {self.data}", "it has no label")
        if self.classes is not None and label is not None and label >= self.classes:
            raise ValueError(f"sample {index} of {self.data!r} has the label {label}, but classes={self.classes}")
        if self.train:
            return [self.augment(clips[0], rng) for _ in range(self.repeats)], label
        views = [eval_crops(clip, recipe.image_size, self.resize, recipe.interpolation, self.crops) for clip in clips]
        return [view for clip in views for view in clip], label

    def augment(self, clip: Frames, rng: np.random.Generator) -> Frames:
        """A random crop; RandAugment comes after it on images and before it on clips, as in SlowFast."""
        recipe = self.recipe
        fill = tuple(round(255 * value) for value in recipe.mean)
        if self.policy and recipe.frames:
            clip = rand_augment(clip, self.policy, "bicubic", fill, rng)
        shape = recipe.crop_scale, recipe.crop_ratio
        clip = random_resized_crop(clip, recipe.image_size, *shape, recipe.interpolation, rng)
        clip = flip(clip, 0.5 if recipe.flip else 0.0, rng)
        if self.policy and not recipe.frames:
            clip = rand_augment(clip, self.policy, "bicubic", fill, rng)
        return clip


def derive_seeds(seed: int, stream: int, step: int, part: int) -> list[int]:
    """Two seeds, a function of the four numbers alone.

    The first is for what torch, NumPy and Python draw from, the second for the generator that we hand on.
    """
    return np.random.SeedSequence((seed, stream, step, part)).generate_state(2).tolist()


def part_masks(recipe: Pretrain, samples: int, stream: int, step: int, part: int) -> Masks:
    """The masks of a part of a batch, as the recipe says."""
    _, own = derive_seeds(recipe.seed, stream, step, part)
    generator, compat = torch.Generator().manual_seed(own), recipe.mask_compat or None
    return make_masks(recipe.mask, samples, recipe.mask_grid, recipe.mask_ratio, generator=generator, compat=compat)


def place_of(recipe: Recipe, split: str) -> tuple[str, bool]:
    """Which of its places of data a recipe names for a split, and whether it names that for held-out data alone."""
    own = bool(recipe.val_data) and split != "train"
    return (recipe.val_data if own else recipe.data), own


def samples_of(recipe: Recipe, split: str) -> Source:
    """The samples of a split that the recipe names; files and shards are all listed."""
    rendered = {*RENDERED} & {recipe.data, recipe.val_data}
    samples = recipe.samples if rendered else 0
    pixels = recipe.autorotate, recipe.channels, recipe.data_range
    size = larger_than(recipe.image_size)
    place, own = place_of(recipe, split)
    run = Path(recipe.out or f"runs/{recipe.name}")
    kept = str(run / "shards") if run.is_dir() else ""
    return _source(place, own, recipe.data, split, recipe.frames > 0, size, samples, *pixels, kept=kept)


def larger_than(crop: Size) -> Size:
    """What a sample is resized to cover before its centre is cropped, where nothing is said."""
    return Size(*(round(side * 256 / 224) for side in crop))


def evenly(wanted: int, of: int) -> np.ndarray:  # [N] int64
    """So many numbers below ``of``, evenly spaced, or all if ``wanted`` is 0."""
    number = min(wanted or of, of)
    return np.arange(number) * of // max(number, 1)


def forget_sources() -> None:
    """Look for the data anew, as a caller may have changed them since the last call."""
    _source.cache_clear()


@lru_cache(maxsize=8)  # every evaluation opens its own loaders, and listing a large folder takes a while
def _source(
    place: str,
    own: bool,
    data: str,
    split: str,
    video: bool,
    size: Size,
    samples: int,
    autorotate: bool,
    channels: int,
    data_range: tuple[float, ...],
    kept: str,
) -> Source:
    if place == "synthetic":
        return Scenes(split, size, video, samples, channels)
    if place == "skimage":
        if video:
            raise ValueError("data='skimage' has photographs, no clips; for clips there is data='synthetic'")
        return Photographs(split, samples, channels)
    pixels: dict[str, Any] = dict(autorotate=autorotate, channels=channels, data_range=data_range)
    return open_source(place, split, video, own_split=own, train_data=data if own else place, index=kept, **pixels)


@lru_cache(maxsize=4)  # of training and held-out data, for all epochs
def _decoded_once(source: Source, megabytes: int) -> DecodedOnce:
    return DecodedOnce(source, megabytes)


def to_tensor(clips: list[Frames]) -> Tensor:  # [B, C, T, H, W] uint8
    pictures = np.stack([np.stack([np.asarray(frame) for frame in clip]) for clip in clips])  # [B, T, H, W, C]
    return torch.from_numpy(pictures).permute(0, 4, 1, 2, 3).contiguous()
