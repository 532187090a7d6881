"""Super-resolution: the observation is the picture, downsampled."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustflow import _resizing
from robustflow.experiments.tasks.base import Task


@dataclass(frozen=True)
class SuperResolution(Task):
    """``y`` is x after antialiased bicubic downsampling, in 8 bits.

    Args:
        scale: at least 2; 4 and 8 are the published ones.

    Example:
        >>> import torch
        >>> task = SuperResolution(4)
        >>> y = task.observe(torch.rand(1, 3, 32, 48))
        >>> y.shape, task.first_guess(y).shape
        (torch.Size([1, 3, 8, 12]), torch.Size([1, 3, 32, 48]))
    """

    name = "sr"
    linear = True

    scale: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.scale, int) or self.scale < 2:
            raise ValueError(f"scale must be a whole number of at least 2, got {self.scale!r}.")

    @property
    def size_multiple(self) -> int:  # type: ignore[override]
        return self.scale

    @property
    def margin(self) -> int:  # type: ignore[override]
        return 2 * self.scale  # half the length of the cubic kernel

    def forward(self, x: Tensor) -> Tensor:
        return _resizing.downsample(x, self.scale)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return _resizing.pseudo_inverse(y, self.scale)

    def first_guess(self, y: Tensor) -> Tensor:
        """Bicubic upsampling, as published: smoother than the pseudo-inverse."""
        return _resizing.upsample(y, self.scale)
