"""`find_artifacts`: every kind of artifact in a model's samples, each by its own rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from robustflow._checks import check_choice, check_interval, check_tensor
from robustflow.diagnostics.artifacts.black import black
from robustflow.diagnostics.artifacts.consistency import consistency
from robustflow.diagnostics.artifacts.ensemble import LEAST_SAMPLES, ensemble, ensemble_scores
from robustflow.diagnostics.artifacts.grid import block_side, grid
from robustflow.diagnostics.artifacts.observations import Operator, Task, operator, scale_between
from robustflow.diagnostics.artifacts.out_of_range import out_of_range
from robustflow.diagnostics.artifacts.reference import reference as contrast
from robustflow.diagnostics.artifacts.samples import Detection, Sample, Thresholds
from robustflow.diagnostics.artifacts.saturated import saturated
from robustflow.diagnostics.intervals import Estimate, wilson_interval

Kind = Literal["range", "saturated", "black", "consistency", "reference", "ensemble", "grid"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_DETECTORS: dict[Kind, Callable[[Sample], Detection]] = {
    "range": out_of_range,
    "saturated": saturated,
    "black": black,
    "consistency": consistency,
    "reference": contrast,
    "ensemble": ensemble,
    "grid": grid,
}


@dataclass(frozen=True)
class Artifacts:
    """Result of :func:`find_artifacts` by kind; kinds whose inputs were not given are absent.

    Attributes:
        masks: by kind, (N, H, W) or (N, T), bool: where each sample has the artifact.
        scores: by kind, (N, H, W) or (N, T): how strongly; for judging detectors.
    """

    masks: dict[str, Tensor]
    scores: dict[str, Tensor]

    @property
    def flagged(self) -> dict[str, Tensor]:
        """By kind, (N,), bool: which samples have one anywhere."""
        return {kind: mask.flatten(1).any(dim=1) for kind, mask in self.masks.items()}

    @property
    def any(self) -> Tensor:
        """All masks in one, (N, H, W) or (N, T)."""
        return torch.stack(list(self.masks.values())).any(dim=0)

    @property
    def counts(self) -> dict[str, int]:
        """By kind, how many samples have one."""
        return {kind: int(flagged.sum()) for kind, flagged in self.flagged.items()}

    @property
    def pixels(self) -> dict[str, float]:
        """By kind, the share of all pixels."""
        return {kind: int(mask.sum()) / mask.numel() for kind, mask in self.masks.items()}

    @property
    def rates(self) -> dict[str, Estimate]:
        """By kind, the share of samples, with Wilson's 95 % interval over samples.

        The interval assumes independent samples. Samples of one observation are not, and the
        interval is then too narrow.
        """
        return {
            kind: wilson_interval(int(flagged.sum()), len(flagged))
            for kind, flagged in self.flagged.items()
        }

    @property
    def found(self) -> bool:
        """Whether any sample has any artifact."""
        return any(self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """Counts and rates, as JSON has them."""
        rates, pixels = self.rates, self.pixels
        return {
            kind: {
                "samples": len(self.masks[kind]),
                "flagged": count,
                "rate": rates[kind].as_json(),
                "pixels": pixels[kind],
            }
            for kind, count in self.counts.items()
        }

    def table(self) -> str:
        """Counts, rates with intervals and shares of pixels, as text."""
        rates, pixels = self.rates, self.pixels
        rows = [("kind", "samples", "rate [95 %]", "pixels")]
        for kind, count in self.counts.items():
            of = f"{count} of {len(self.masks[kind])}"
            rows.append((kind, of, str(rates[kind]), f"{100 * pixels[kind]:.3g} %"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def __str__(self) -> str:
        return self.table()


@torch.no_grad()
def find_artifacts(
    samples: Tensor,
    observation: Tensor | None = None,
    task: Task | Operator | str | int | None = None,
    reference: Tensor | None = None,
    *,
    groups: Tensor | Sequence[int] | None = None,
    kinds: Iterable[Kind] | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    grid_levels: int = 2,
    thresholds: Thresholds | None = None,
) -> Artifacts:
    """Find artifacts in samples of a conditional flow, or in any model's outputs, without eyes.

    ===========  ==================================================  ========================
    kind         an artifact is                                      needs
    ===========  ==================================================  ========================
    range        a value above 1.5 or below -0.5, or not finite
    saturated    a region of pure, clamped colour
    black        a region of pure black
    consistency  \\|A(x) - y\\| above 0.15, per pixel of y              observation and task
    reference    a local contrast far from the reference's           reference
    ensemble     a value far from the median of the samples          4 samples of an observation
    grid         power at the period of the squeezes
    ===========  ==================================================  ========================

    docs/artifacts.md has each kind's formula, source and limits, and what they find.

    Args:
        samples: (N, C, H, W) or (N, C, T), floating point, best *before* clamping: clamped or 8-bit
            samples cannot break the rule of `range`. Signals have no `black`.
        observation: y of every sample, (N, c, ...), or one for all, (1, c, ...) or (c, ...). A
            colour block that it has itself is no artifact.
        task: A of y = A(x): an object with ``forward(x)``, a callable, or the scale of bicubic
            downsampling ("sr4" or 4). None: from the ratio of the sizes, where the observation
            is smaller; where it is not, it is compared with the samples' colours as it is, and
            `consistency` is left out.
        reference: a safe sample, such as that at temperature 0: (N, C, ...), or one for all.
        groups: (N,) whole numbers, the same for samples of one observation. None: all samples are
            of one observation if there is one for all, and each of its own otherwise.
        kinds: those to look for. None: all for which what they need is given.
        value_range: the values of black and white (of the quietest and the loudest); ``(-1, 1)``
            for audio. Thresholds are in units of it.
        grid_levels: how often the flow squeezes by 2, so that the grid's period is 2^grid_levels.
        thresholds: other ones than the defaults.

    Returns:
        Masks, counts, rates with intervals, and a table.

    Raises:
        ValueError: shapes that do not fit, an unknown kind, or a kind without what it needs.
        TypeError: samples, observation or reference that are no floating-point tensor.

    Example:
        >>> import torch
        >>> from robustflow.diagnostics import find_artifacts
        >>> _ = torch.manual_seed(0)
        >>> samples = 0.3 + 0.4 * torch.rand(5, 3, 64, 64)
        >>> samples[2, :, 8:16, 8:16] = torch.tensor([9e4, -2e3, -7e8]).view(3, 1, 1)  # red
        >>> samples[4, :, 40:48, 40:48] = torch.inf - torch.inf  # NaN: black
        >>> found = find_artifacts(samples)
        >>> print(found.table())
        kind       samples  rate [95 %]           pixels
        range      2 of 5   0.400 [0.118, 0.769]  0.625 %
        saturated  1 of 5   0.200 [0.036, 0.624]  0.312 %
        black      1 of 5   0.200 [0.036, 0.624]  0.312 %
        grid       0 of 5   0.000 [0.000, 0.434]  0 %
        >>> found.masks["saturated"][2, 8:16, 8:16].all()
        tensor(True)
    """
    thresholds = Thresholds() if thresholds is None else thresholds
    low, high = check_interval("value_range", value_range)
    if not isinstance(grid_levels, int) or grid_levels < 1:
        raise ValueError(f"grid_levels must be a whole number of at least 1, got {grid_levels!r}.")
    _check_samples(samples)
    x = _in_units(samples, low, high)
    y, safe = (
        None if tensor is None else _in_units(_for_all(name, tensor, samples), low, high)
        for name, tensor in (("observation", observation), ("reference", reference))
    )
    if safe is not None and safe.shape != x.shape:
        raise ValueError(
            f"reference must have the shape of a sample, {tuple(x.shape[1:])}, got "
            f"{tuple(safe.shape[1:])}."
        )
    if safe is not None and not safe.isfinite().all():
        raise ValueError(
            "reference has values that are not finite: what has exploded is no safe sample. Leave "
            "it out, or take one at a lower temperature."
        )
    apply, compare = _operators(task, y, x)
    labels = _labels(groups, observation, x)
    missing = _missing(x.shape, grid_levels, apply, safe, labels)
    chosen_kinds = (
        [kind for kind in KINDS if missing[kind] is None] if kinds is None else list(kinds)
    )
    if not chosen_kinds:
        raise ValueError(f"kinds must name at least one of {', '.join(KINDS)}.")
    for kind in chosen_kinds:
        check_choice("kinds", kind, KINDS)
        if missing[kind] is not None:
            raise ValueError(f"Artifacts of the kind {kind!r} cannot be found: {missing[kind]}.")
    outliers = _outliers(x, labels) if "ensemble" in chosen_kinds else None

    detections: dict[str, list[Detection]] = {kind: [] for kind in chosen_kinds}
    for number in range(len(x)):
        own = (None if tensor is None else tensor[number] for tensor in (y, safe, outliers))
        own_y, own_safe, own_outliers = own
        sample = Sample(
            x[number], own_y, apply, compare, own_safe, own_outliers, grid_levels, thresholds
        )
        for kind in chosen_kinds:
            detections[kind].append(_DETECTORS[kind](sample))
    return Artifacts(
        {kind: torch.stack([one.mask for one in every]) for kind, every in detections.items()},
        {kind: torch.stack([one.score for one in every]) for kind, every in detections.items()},
    )


def _check_samples(samples: Tensor) -> None:
    if isinstance(samples, Tensor) and samples.dtype == torch.uint8:
        raise TypeError(
            "samples must have floating-point values in [0, 1], got torch.uint8: give "
            "samples.float() / 255."
        )
    check_tensor("samples", samples)
    if samples.dim() not in (3, 4):
        raise ValueError(
            f"samples must have shape (N, C, H, W) or (N, C, T), got {tuple(samples.shape)}: put "
            "all samples into one dimension, and say by groups= which are of one observation."
        )
    if samples.numel() == 0:
        raise ValueError(f"samples must not be empty, got shape {tuple(samples.shape)}.")


def _in_units(x: Tensor, low: float, high: float) -> Tensor:
    """Map the range of values to [0, 1]; half types become float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x if (low, high) == (0.0, 1.0) else (x - low) / (high - low)


def _for_all(name: str, tensor: Tensor, samples: Tensor) -> Tensor:
    """An argument given for every sample, or one for all, as (N, ...)."""
    check_tensor(name, tensor)
    batch = tensor if tensor.dim() == samples.dim() else tensor.unsqueeze(0)
    if batch.dim() != samples.dim() or len(batch) not in (1, len(samples)):
        raise ValueError(
            f"{name} must be given for each of the {len(samples)} samples, or once for all, got "
            f"shape {tuple(tensor.shape)} for samples of shape {tuple(samples.shape)}."
        )
    return batch.to(samples.device).expand(len(samples), *batch.shape[1:])


def _operators(
    task: Task | Operator | str | int | None, y: Tensor | None, x: Tensor
) -> tuple[Operator | None, Operator | None]:
    """A, if it is known, and the map to use in its place when colours are compared."""
    if y is None:
        if task is not None:
            raise ValueError("A task needs an observation: give observation=, or leave task= out.")
        return None, None
    if task is None:
        scale = scale_between(x.shape[2:], y.shape[2:])
        if scale is None or y.shape[1] != x.shape[1]:
            raise ValueError(
                f"An observation of {tuple(y.shape[1:])} is no whole-number reduction of samples "
                f"of {tuple(x.shape[1:])}: give the observation of these samples, or say by task= "
                "how it comes from them."
            )
        if scale == 1:
            return None, _identity
        task = scale
    apply = operator(task)
    return apply, apply


def _identity(x: Tensor) -> Tensor:
    return x


def _labels(groups: Tensor | Sequence[int] | None, observation: Tensor | None, x: Tensor) -> Tensor:
    """(N,), the same number for samples of one observation."""
    if groups is None:
        one = observation is not None and (observation.dim() < x.dim() or len(observation) == 1)
        return torch.zeros(len(x), dtype=torch.long) if one else torch.arange(len(x))
    labels = torch.as_tensor(groups).cpu()
    if labels.shape != (len(x),):
        raise ValueError(
            f"groups must have a number for each of the {len(x)} samples, got shape "
            f"{tuple(labels.shape)}."
        )
    return labels


def _missing(
    shape: torch.Size,
    grid_levels: int,
    apply: Operator | None,
    safe: Tensor | None,
    labels: Tensor,
) -> dict[Kind, str | None]:
    """By kind, the input that is missing for it, or None."""
    dims, block = len(shape) - 2, block_side(len(shape) - 2, grid_levels)
    most = int(labels.unique(return_counts=True)[1].max())
    conditions: dict[Kind, tuple[bool, str]] = {
        "black": (dims == 2, "a signal has no colour; its limits are of the kind 'saturated'"),
        "consistency": (apply is not None, "give an observation, and a task if both have one size"),
        "reference": (safe is not None, "give a reference, such as the sample at temperature 0"),
        "ensemble": (
            most >= LEAST_SAMPLES,
            f"give at least {LEAST_SAMPLES} samples of one observation, and say by groups= which "
            "they are if there are several observations",
        ),
        "grid": (min(shape[2:]) >= block, f"samples need at least {block} pixels a side"),
    }
    return {
        kind: None if kind not in conditions or conditions[kind][0] else conditions[kind][1]
        for kind in KINDS
    }


def _outliers(x: Tensor, labels: Tensor) -> Tensor:
    """(N, \\*S); zeros for samples of an observation that has too few."""
    scores = x.new_zeros((len(x), *x.shape[2:]))
    for label in labels.unique():
        members = torch.nonzero(labels == label)[:, 0].to(x.device)
        if len(members) >= LEAST_SAMPLES:
            scores[members] = ensemble_scores(x[members])
    return scores
