"""What is recorded for each context: samples, onsets and what they reached, and scores."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from robustflow.diagnostics.artifacts.published_rule import count_faulty
from robustflow.diagnostics.monitor import InverseMonitor
from robustflow.diagnostics.onsets import Onset

Mask = NDArray[np.bool_]


class Sampler(Protocol):
    """How a model is sampled."""

    def __call__(
        self,
        context: Tensor,
        number: int,
        temperature: float,
        generator: torch.Generator,
        /,
    ) -> Tensor:
        """``number`` samples (number, C, \\*S) of one context (1, C', \\*S')."""


@dataclass(frozen=True)
class Group:
    """Contexts of one kind.

    Attributes:
        name: "training", "held out", "out of distribution", ...
        contexts: by title, each (1, C, \\*S).
        familiar: whether the model was trained on such contexts.
    """

    name: str
    contexts: Mapping[str, Tensor]
    familiar: bool


@dataclass
class Sampled:
    """The samples of one context at one temperature.

    Attributes:
        onsets: all onsets that the monitor found.
        contaminated: where an onset reached a sample, over all channels, (n, \\*S).
        faulty: samples that break the published rule; None where they are no pictures.
        largest: largest absolute value.
        worst: the sample that holds it, (C, \\*S).
        worst_index: that sample's index.
    """

    onsets: list[Onset]
    contaminated: Mask
    faulty: int | None
    largest: float
    worst: Tensor
    worst_index: int

    @property
    def rate(self) -> float:
        """The fraction of pixels that an onset reached."""
        return float(self.contaminated.mean())


@dataclass
class Evidence:
    """All records of one context.

    Attributes:
        title: of the picture.
        group: of its group.
        familiar: whether the model was trained on such.
        context: (1, C, \\*S).
        grid: spatial size of the score maps.
        sampled: by temperature.
        maps: by score, over the grid: (\\*grid) where it depends on the context alone, or
            (n, \\*grid) where it depends on the sample too.
        scores: by score, of the whole picture.
    """

    title: str
    group: str
    familiar: bool
    context: Tensor
    grid: tuple[int, ...]
    sampled: dict[float, Sampled] = field(default_factory=dict)
    maps: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    def failed(self, temperature: float, what: str) -> Mask:
        """Whether each sample fails at each grid point, (n, \\*grid).

        Args:
            temperature: of the samples.
            what: "onsets": an onset lies there; or "contaminated": an onset can have influenced it.
        """
        sampled = self.sampled[temperature]
        number = len(sampled.contaminated)
        if what == "contaminated":
            return to_grid(sampled.contaminated, self.grid)
        onset_mask = np.zeros((number, *self.grid), dtype=bool)
        first = min((onset.sample for onset in sampled.onsets), default=0)
        first -= first % number
        for onset in sampled.onsets:
            index = (onset.sample - first, *onset_cell(onset, self.grid))
            onset_mask[index] = True
        return onset_mask


def onset_cell(onset: Onset, grid: Sequence[int]) -> tuple[int, ...]:
    """The grid point at which an onset lies; () for vectors, which have none."""
    sizes, positions = onset.shape[1:], onset.position[1:]
    if len(sizes) != len(grid):
        return tuple(0 for _ in grid)
    return tuple(
        min(cells - 1, int((position + 0.5) * cells / size))
        for position, size, cells in zip(positions, sizes, grid, strict=True)
    )


def to_grid(mask: Mask, grid: Sequence[int]) -> Mask:
    """A mask (n, \\*S) at the grid's resolution: true where any of a cell's pixels is."""
    if tuple(mask.shape[1:]) == tuple(grid):
        return mask
    if not grid:
        flat: Mask = mask.reshape(len(mask), -1)
        return np.asarray(flat.any(axis=1))
    pool: Any = {
        1: functional.adaptive_max_pool1d,
        2: functional.adaptive_max_pool2d,
        3: functional.adaptive_max_pool3d,
    }[len(grid)]
    cells = pool(torch.from_numpy(mask)[:, None].float(), tuple(grid))
    return (cells[:, 0] > 0).numpy()


def sample_and_watch(
    sampler: Sampler,
    context: Tensor,
    *,
    number: int,
    temperature: float,
    seed: int,
    monitor: InverseMonitor,
) -> tuple[Sampled, Tensor]:
    """Sample a context under a monitor.

    Args:
        sampler: draws from the model.
        context: (1, C, \\*S).
        number: of samples.
        temperature: of the latents.
        seed: of the latents; the same for every context of a size.
        monitor: of the model; it keeps running.

    Returns:
        The records, and the samples (number, C, \\*S) on the CPU.
    """
    num_onsets, num_runs = len(monitor.onsets), len(monitor.runs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), monitor:
        samples = sampler(context, number, temperature, generator).cpu()
    masks = [run.contaminated.cpu() for run in monitor.runs[num_runs:] if not run.density]
    contaminated = torch.cat(masks).any(dim=1)
    sizes = samples.abs().nan_to_num(nan=torch.inf, posinf=torch.inf).flatten(1).amax(dim=1)
    worst = int(sizes.argmax())
    return (
        Sampled(
            onsets=list(monitor.onsets[num_onsets:]),
            contaminated=contaminated.numpy(),
            faulty=count_faulty(samples),
            largest=float(sizes.max()),
            worst=samples[worst].clone(),
            worst_index=worst,
        ),
        samples,
    )


def choose_temperature(
    evidence: Sequence[Evidence], temperatures: Sequence[float], max_rate: float = 0.05
) -> float:
    """The highest temperature at which under ``max_rate`` of all pixels are contaminated.

    At a higher one nearly everything fails, so scores cannot be judged. If there is none, the
    lowest.
    """
    rates = {
        temperature: float(np.mean([each.sampled[temperature].rate for each in evidence]))
        for temperature in sorted(temperatures)
    }
    below = [temperature for temperature, rate in rates.items() if rate < max_rate]
    return max(below) if below else min(rates)


def default_sampler(model: Any) -> Sampler:
    """``model.sample`` of robustflow's flows, and of models with the same arguments.

    Raises:
        TypeError: the model has no method ``sample`` that takes a temperature and a generator.
    """
    from robustflow.nn import ConditionalFlow

    method = getattr(model, "sample", None)
    known = inspect.signature(method).parameters if callable(method) else {}
    if not {"temperature", "generator"} <= set(known):
        raise TypeError(
            f"{type(model).__name__} has no method sample(..., temperature=, generator=): say how "
            "to sample it, by sample=lambda context, number, temperature, generator: ..., which "
            "returns (number, C, *S)."
        )

    def draw(
        context: Tensor, number: int, temperature: float, generator: torch.Generator
    ) -> Tensor:
        if isinstance(model, ConditionalFlow):
            samples: Tensor = model.sample(
                number, context, temperature=temperature, generator=generator
            )
        else:
            samples = model.sample(context, number, temperature=temperature, generator=generator)
        return samples[0]

    return draw


FeatureFunction = Callable[[Tensor], Any]


def default_features(model: Any) -> FeatureFunction | None:
    """The output of a model's encoder for a context; None for a model without one."""
    for name in ("features", "encoder"):
        method = getattr(model, name, None)
        if callable(method):
            return method
    return None
