"""Samples of one picture, and what they are judged by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from robustflow.diagnostics.artifacts import Artifacts, find_artifacts
from robustflow.diagnostics.artifacts.samples import displayed
from robustflow.experiments.tasks import Task, to_8_bits

Colour = Literal["rgb", "y"]
# Red, green and blue in [0, 1] to luma of video range, as MATLAB's rgb2ycbcr: ITU-R BT.601.
_Y, _Y_OFFSET = (65.481 / 255, 128.553 / 255, 24.966 / 255), 16 / 255


@dataclass(frozen=True)
class Case:
    """Samples of one picture, and what they are judged by.

    Attributes:
        samples: (K, C, H, W), not clamped.
        observation: (1, C', H', W').
        truth: (1, C, H, W); None where it is not known.
        safe: the sample at temperature 0, (1, C, H, W).
        task: of the observation.
        colour: the colour space for comparisons with the truth, "rgb" or "y".
        border: pixels at each side that these comparisons leave out.
        seconds: of a sample.
        bytes: of memory; None where not known.
    """

    samples: Tensor
    observation: Tensor
    truth: Tensor | None
    safe: Tensor
    task: Task
    colour: Colour
    border: int
    seconds: float
    bytes: int | None

    @cached_property
    def saved(self) -> Tensor:
        """Samples as a picture file has them: clamped, in 8 bits, NaN black."""
        return to_8_bits(displayed(self.samples))

    @cached_property
    def compared(self) -> tuple[Tensor, Tensor]:
        """Saved samples and the truth of each, in the colour space, without the border."""
        assert self.truth is not None
        ours, theirs = (self._cut(each) for each in (self.saved, self.truth))
        return ours, theirs.expand_as(ours)

    @cached_property
    def mean(self) -> tuple[Tensor, Tensor]:
        """The mean of the saved samples and the truth, likewise."""
        ours, theirs = self.compared
        return ours.mean(dim=0, keepdim=True), theirs[:1]

    @cached_property
    def artifacts(self) -> Artifacts:
        """Artifacts of every kind whose inputs are available."""
        known = self.unseen is None
        return find_artifacts(
            self.samples,
            self.observation if known else None,
            self.task if known else None,
            self.safe,
            groups=[0] * len(self.samples),
        )

    @cached_property
    def observed(self) -> Tensor:
        """A(saved samples), without noise or rounding, (K, C', H', W')."""
        return self.task.forward(self.saved)

    @property
    def unseen(self) -> str | None:
        """Why samples cannot be compared with the observation; None where they can."""
        if self.task.linear:
            return None
        return f"what the task {self.task.name!r} makes of a picture is not known from it alone"

    def _cut(self, x: Tensor) -> Tensor:
        if self.colour == "y":
            x = luma(x)
        height, width = x.shape[-2:]
        cut = self.border
        return x[..., cut : height - cut, cut : width - cut]


def luma(x: Tensor) -> Tensor:
    """Y of (N, 3, H, W), as (N, 1, H, W): ITU-R BT.601, from 16/255 to 235/255; grey stays."""
    if x.shape[1] == 1:
        return x
    weights = x.new_tensor(_Y).view(1, 3, 1, 1)
    return (weights * x).sum(dim=1, keepdim=True) + _Y_OFFSET
