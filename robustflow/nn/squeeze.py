"""Squeeze: trades a picture's size for channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow.nn._checks import check_counts
from robustflow.nn.precision import zero_logabsdet


class Squeeze(nn.Module):
    """(N, C, H, W) -> (N, C * factor**2, H / factor, W / factor); its log-determinant is 0.

    Args:
        factor: at least 1; both sides of a picture must be multiples of it.

    Raises:
        TypeError, ValueError: no whole number; in a call, sides that are no multiples of it.

    Example:
        >>> import torch
        >>> z, _ = Squeeze(2)(torch.randn(1, 3, 8, 8))
        >>> z.shape
        torch.Size([1, 12, 4, 4])
    """

    context_channels: ClassVar[int] = 0

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        check_counts(factor=factor)
        self.factor = factor

    def forward(
        self, z: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Shuffle pixels into channels, or back; the context is not used."""
        if inverse:
            size = torch.Size(side * self.factor for side in z.shape[2:])
            channels = self.input_channels(z.shape[1])
        else:
            size = self.output_size(z.shape[2:])  # checks it
            channels = self.output_channels(z.shape[1])
        if len(z) == 0:  # PyTorch would return an empty batch as it is
            return z.reshape(0, channels, *size), zero_logabsdet(z)
        shuffle = functional.pixel_shuffle if inverse else functional.pixel_unshuffle
        return shuffle(z, self.factor), zero_logabsdet(z)

    def output_size(self, size: Sequence[int]) -> torch.Size:
        """The spatial size of the result, for z of this one.

        Raises:
            ValueError: not two sides, or no multiples of the factor.
        """
        if len(size) != 2 or any(side % self.factor for side in size):
            raise ValueError(
                f"Squeeze({self.factor}) needs pictures (N, C, H, W) with H and W multiples of "
                f"{self.factor}, got a spatial size of {tuple(size)}."
            )
        return torch.Size(side // self.factor for side in size)

    @property
    def size_multiple(self) -> int:
        """The number of which the sides of a picture must be multiples."""
        return self.factor

    def output_channels(self, channels: int) -> int:
        """Channels of the result, for z of so many."""
        return channels * self.factor**2

    def input_channels(self, channels: int) -> int:
        """Channels of z, for a result of so many; the inverse of :meth:`output_channels`.

        Raises:
            ValueError: no multiple of ``factor**2``.
        """
        if channels % self.factor**2:
            raise ValueError(
                f"Squeeze({self.factor}) makes multiples of {self.factor**2} channels, and the "
                f"layers after it have {channels}."
            )
        return channels // self.factor**2

    def extra_repr(self) -> str:
        return f"factor={self.factor}"
