"""How far a sample is from its observation: A(x) - y."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from robustflow._resizing import downsample
from robustflow.diagnostics.artifacts.published_rule import HIGHEST, LOWEST

Operator = Callable[[Tensor], Tensor]
_WANTED = "a scale such as 'sr4' or 4, an object with forward(x), or a callable"


class Task(Protocol):
    """An inverse problem: what is observed of x (N, C, \\*S)."""

    def forward(self, x: Tensor) -> Tensor: ...


def operator(task: Task | Operator | str | int) -> Operator:
    """A of ``y = A(x) + noise``, from a task.

    Args:
        task: an object with ``forward(x)``, a callable, or the name or scale of bicubic
            downsampling: "sr4", "x4", "4x" or 4.

    Raises:
        ValueError: another name, or a scale below 2.
        TypeError: none of these.

    Example:
        >>> operator("sr4")(torch.rand(1, 3, 16, 24)).shape
        torch.Size([1, 3, 4, 6])
    """
    if isinstance(task, str):
        match = re.fullmatch(r"(?:sr|x)?(\d+)x?", task.strip().lower())
        if match is None:
            raise ValueError(f"task must be {_WANTED}, got {task!r}.")
        task = int(match[1])
    if isinstance(task, int):
        return _downsampling(task)
    if callable(task):
        return task
    if not callable(getattr(task, "forward", None)):
        raise TypeError(f"task must be {_WANTED}, got {type(task).__name__}.")
    return task.forward


def residual(x: Tensor, observation: Tensor, apply: Operator) -> Tensor:
    """The largest |A(x) - y| over channels, at the observation's resolution.

    x (C, \\*S) is clamped to the published rule's range first, so that a huge value counts where it
    is and not as far as the kernel of A reaches.

    Args:
        x: (C, \\*S), values in [0, 1] but for artifacts.
        observation: y, (c, \\*s).
        apply: A.

    Returns:
        (\\*s); infinite where it is not finite.

    Raises:
        ValueError: A(x) and y have different shapes.
    """
    observed = apply(x.nan_to_num(nan=LOWEST).clamp(LOWEST, HIGHEST).unsqueeze(0)).squeeze(0)
    if observed.shape != observation.shape:
        raise ValueError(
            f"The task makes {tuple(observed.shape)} of a sample of {tuple(x.shape)}, and the "
            f"observation is {tuple(observation.shape)}: give the observation of these samples, or "
            "the task that it comes from."
        )
    difference = (observed - observation).abs().amax(dim=0)
    return torch.where(torch.isfinite(difference), difference, torch.inf)


def scale_between(size: torch.Size, observed: torch.Size) -> int | None:
    """The whole number by which sizes differ, or None.

    Example:
        >>> scale_between(torch.Size([32, 48]), torch.Size([8, 12]))
        4
    """
    ratios = {side / small for side, small in zip(size, observed, strict=True) if small > 0}
    (ratio, *others) = ratios or {0.0}
    return int(ratio) if not others and ratio >= 1 and ratio == int(ratio) else None


def _downsampling(scale: int) -> Operator:
    if scale < 2:
        raise ValueError(f"The scale of a task must be at least 2, got {scale}.")

    def apply(x: Tensor) -> Tensor:
        if any(side % scale for side in x.shape[2:]):
            raise ValueError(
                f"Samples of {'x'.join(map(str, x.shape[2:]))} cannot be downsampled by {scale}: "
                "crop them to multiples of it."
            )
        return downsample(x, scale)

    return apply
