"""The pictures that flows are evaluated on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from robustflow.experiments.data.builtin import Split
from robustflow.experiments.data.crops import generator_of
from robustflow.experiments.data.reading import Skipped
from robustflow.experiments.data.squares import squares_of
from robustflow.experiments.imaging.sampling_flow import SamplingFlow
from robustflow.experiments.tasks import Task
from robustflow.experiments.tasks.base import WHITE


@dataclass(frozen=True)
class Subject:
    """A picture to sample.

    Attributes:
        title: what it shows, or its file.
        group: the folder, file or built-in set that it comes from.
        observation: (1, C', H', W').
        truth: (1, C, H, W); None where it is not known.
    """

    title: str
    group: str
    observation: Tensor
    truth: Tensor | None


def subjects_of(
    sources: Sequence[Split | Path],
    task: Task,
    flows: Sequence[SamplingFlow],
    *,
    size: int,
    with_truth: bool,
    seed: int = 0,
) -> tuple[list[Subject], list[Skipped]]:
    """Squares of the pictures of each source, and the files that are left out.

    Args:
        sources: as for :func:`squares_of`, each a group.
        task: makes the observations, each with noise of its own from the seed.
        flows: sides become multiples of the sizes that all of them need.
        size: of the squares in pixels of x; 0: whole pictures.
        with_truth: False: the pictures are observations.
        seed: of the observations' noise.

    Raises:
        OSError, ValueError: as for :func:`squares_of`, or squares that are too small, or pictures
            that cannot be observations.
    """
    step = math.lcm(*(flow.size_multiple for flow in flows))
    if 0 < size < step:
        raise ValueError(f"The squares must have at least {step} pixels, got {size}.")
    scale = 1 if with_truth else task.scale
    if not with_truth and task.observation_channels != 3:
        raise ValueError(
            f"The task {task.name!r} observes {task.observation_channels} channels, which picture "
            "files have not: give the whole pictures, without --no-truth."
        )
    subjects: list[Subject] = []
    skipped: list[Skipped] = []
    for source in sources:
        pictures, broken = squares_of(source, (size - size % step) // scale)
        skipped += broken
        for title, pixels in pictures.items():
            part = max(1, step // scale)
            height, width = (side - side % part for side in pixels.shape[-2:])
            if min(height, width) == 0:
                reason = f"it is smaller than {part} x {part} pixels"
                skipped.append(Skipped(Path(title), reason))
                continue
            picture = pixels[None, :, :height, :width].float() / WHITE
            if with_truth:
                truth = task.from_rgb(picture)
                y = task.observe(truth, generator_of(seed, len(subjects)))
            else:
                truth, y = None, picture
            subjects.append(Subject(title, str(source), y, truth))
    if not subjects:
        raise ValueError(f"No picture is large enough: {'; '.join(map(str, skipped[:3]))}.")
    return subjects, skipped
