"""Random crops of pictures and their observations: each a pure function of (seed, step, index).

So a batch is the same for any number of loading workers and ranks, and a resumed training gets the
same crops as an uninterrupted one.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from robustflow.experiments.data.reading import UnreadablePicture, read_picture
from robustflow.experiments.tasks.base import WHITE, Task

LOGGER = logging.getLogger("robustflow.experiments.data")
ORIENTATIONS = 8  # four rotations, each also mirrored
_ATTEMPTS = 10  # attempts to find a picture that can still be read
CACHE_BYTES = 2**31  # of decoded pictures, for each loading process


@dataclass(frozen=True)
class Source:
    """A picture to crop from.

    Attributes:
        path: of the file.
        size: height and width.
        observation: the file of its observation, or None where the task makes one.
    """

    path: Path
    size: tuple[int, int]
    observation: Path | None = None


@dataclass(frozen=True)
class Crop:
    """Where a crop lies.

    Attributes:
        picture: index of the source.
        orientation: 0 to 7, of the whole picture, before it is cut.
        top, left: the first pixel in the oriented picture.
    """

    picture: int
    orientation: int
    top: int
    left: int


def generator_of(*key: int) -> torch.Generator:
    """A generator that depends on all of these whole numbers, and on nothing else."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def orient(picture: Tensor, orientation: int) -> Tensor:
    """One of the eight ways to lay a picture (..., H, W): mirrored by 4, then turned by 0 to 3."""
    if orientation >= 4:
        picture = picture.flip(-1)
    return torch.rot90(picture, orientation % 4, dims=(-2, -1))


def choose_crop(
    generator: torch.Generator,
    sizes: Sequence[tuple[int, int]],
    side: int,
    *,
    multiple: int = 1,
    augment: bool = True,
) -> Crop:
    """A uniformly chosen picture, orientation and place.

    Args:
        generator: decides.
        sizes: of the pictures; each side at least ``side``.
        side: of the crop.
        multiple: corners lie at multiples of this.
        augment: mirror and turn; False for the picture as it is.
    """

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    picture = below(len(sizes))
    orientation = below(ORIENTATIONS) if augment else 0
    height, width = sizes[picture] if orientation % 2 == 0 else sizes[picture][::-1]
    top, left = (below((length - side) // multiple + 1) * multiple for length in (height, width))
    return Crop(picture, orientation, top, left)


class CropDataset(Dataset[dict[str, Tensor]]):
    """Crops by key ``(step, index)``: item ``index`` of the global batch of a step.

    An item has x (C, H, W) and y (C', H', W') in [0, 1], both in their noise; the noise that was
    added to x, like x, or (0,) without; and the crop (4,): picture, orientation, top, left.

    Args:
        sources: the pictures.
        task: makes an observation where a source has none.
        side: of a crop of x, in pixels; a multiple of the task's.
        seed: decides, with the key, everything.
        augment: mirror and turn.
        dequantise: add uniform noise of one 8-bit step to x, so that its density bounds the
            probability of the 8-bit picture.
        noise: add Gaussian noise to x, and to y what A makes of it where A is linear; its
            deviation is drawn for each crop, uniformly up to this.

    Raises:
        ValueError: no source, or a side that does not suit the task or a picture.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        task: Task,
        side: int,
        *,
        seed: int = 0,
        augment: bool = True,
        dequantise: bool = True,
        noise: float = 0.0,
    ) -> None:
        multiple = task.size_multiple
        if side < 1 or side % multiple:
            raise ValueError(
                f"A crop for the task {task.name!r} needs sides that are multiples of {multiple}, "
                f"got {side}."
            )
        if not sources:
            raise ValueError("There is no picture to crop from.")
        for source in sources:
            if min(source.size) < side:
                raise ValueError(f"{source.path} is {source.size}, smaller than a crop of {side}.")
        self.sources = list(sources)
        self.task = task
        self.side = side
        self.seed = seed
        self.augment = augment
        self.dequantise = dequantise
        self.noise = noise
        self._decoded: OrderedDict[Path, Tensor] = OrderedDict()
        self._decoded_bytes = 0

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """One crop: x, y and its place.

        A file that was removed or damaged since the start is replaced by another one, with a
        warning.

        Raises:
            UnreadablePicture: ten files one after the other.
        """
        sizes = [source.size for source in self.sources]
        for attempt in range(_ATTEMPTS):
            generator = generator_of(self.seed, *key, attempt)
            crop = choose_crop(
                generator,
                sizes,
                self.side,
                multiple=self.task.size_multiple,
                augment=self.augment,
            )
            try:
                x, y = self._cut(crop, generator)
                break
            except UnreadablePicture as error:
                LOGGER.warning("%s: %s", self.sources[crop.picture].path, error)
        else:
            raise UnreadablePicture(f"{_ATTEMPTS} files, one after the other, cannot be read")
        if self.dequantise:
            x = x + (torch.rand(x.shape, generator=generator) - 0.5) / WHITE
        noise = x.new_zeros(0)
        if self.noise > 0:
            deviation = self.noise * torch.rand((), generator=generator)
            noise = deviation * torch.randn(x.shape, generator=generator)
            if self.task.linear:  # add A(noise); a mask in y stays as it is
                seen = self.task(noise[None])[0]
                y = torch.cat([y[: len(seen)] + seen, y[len(seen) :]])
            x = x + noise
        place = torch.tensor([crop.picture, crop.orientation, crop.top, crop.left])
        return {"x": x, "y": y, "noise": noise, "crop": place}

    def _cut(self, crop: Crop, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x and y of a crop. y is a cut of the whole picture's observation, up to rounding."""
        source = self.sources[crop.picture]
        picture = orient(self._decode(source.path), crop.orientation)
        multiple, side, margin = self.task.size_multiple, self.side, self.task.margin
        # The part of the picture that the observation of the crop depends on.
        limits = [length - length % multiple for length in picture.shape[-2:]]
        begins = [max(0, place - margin) for place in (crop.top, crop.left)]
        ends = [
            min(limit, place + side + margin)
            for place, limit in zip((crop.top, crop.left), limits, strict=True)
        ]
        window = picture[:, begins[0] : ends[0], begins[1] : ends[1]].float()[None] / WHITE
        window = self.task.from_rgb(window)
        top, left = crop.top - begins[0], crop.left - begins[1]
        x = window[0, :, top : top + side, left : left + side]
        if source.observation is not None:
            y = orient(self._decode(source.observation), crop.orientation).float()[None] / WHITE
            top, left = crop.top, crop.left
        else:
            y = self.task.observe(window, generator)
        scale = self.task.scale
        top, left, small = top // scale, left // scale, side // scale
        return x, y[0, :, top : top + small, left : left + small]

    def _decode(self, path: Path) -> Tensor:
        """A decoded picture, kept while there is room."""
        if path in self._decoded:
            self._decoded.move_to_end(path)
            return self._decoded[path]
        picture = read_picture(path)
        self._decoded[path] = picture
        self._decoded_bytes += picture.nbytes
        while self._decoded_bytes > CACHE_BYTES and len(self._decoded) > 1:
            self._decoded_bytes -= self._decoded.popitem(last=False)[1].nbytes
        return picture


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The keys of each step's share of the global batch.

    Args:
        first, last: steps, the last excluded.
        batch_size: of the global batch, a multiple of ``ranks``.
        rank, ranks: which share: items ``rank * batch_size / ranks`` and on.
    """

    def __init__(
        self, first: int, last: int, batch_size: int, *, rank: int = 0, ranks: int = 1
    ) -> None:
        if batch_size % ranks:
            raise ValueError(f"A batch of {batch_size} cannot be shared by {ranks} processes.")
        share = batch_size // ranks
        self.steps = range(first, last)
        self.indices = range(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            yield [(step, index) for index in self.indices]

    def __len__(self) -> int:
        return len(self.steps)


def find_sources(
    pictures: Sequence[Path],
    observations: dict[str, Path] | None,
    task: Task,
    smallest: int,
    report: Callable[[str], Any],
) -> list[Source]:
    """The pictures that can be read and are large enough; the others are reported.

    Every file is decoded once, so that nothing breaks in the middle of a training.

    Args:
        pictures: files.
        observations: their observations by file stem, or None where the task makes them.
        task: whose ``scale`` a pair's sizes must have.
        smallest: the least side.
        report: called with a sentence for each file that is left out.
    """
    sources = []
    for path in pictures:
        observation = None
        try:
            height, width = read_picture(path).shape[-2:]
            if min(height, width) < smallest:
                raise UnreadablePicture(f"{height} x {width} is smaller than a crop of {smallest}")
            if observations is not None:
                observation = observations.get(path.stem)
                if observation is None:
                    raise UnreadablePicture("there is no observation of this name")
                seen = tuple(side * task.scale for side in read_picture(observation).shape[-2:])
                if seen != (height, width):
                    raise UnreadablePicture(
                        f"{height} x {width} is not {task.scale} times its observation's size"
                    )
        except UnreadablePicture as error:
            report(f"{path} is left out: {error}.")
            continue
        sources.append(Source(path, (height, width), observation))
    return sources
