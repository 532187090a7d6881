"""Squeeze: trades a picture's size for channels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Squeeze(nn.Module):
    """(N, C, H, W) -> (N, C * factor**2, H / factor, W / factor); its log-determinant is 0.

    Args:
        factor: at least 1; both sides of a picture must be multiples of it.

    Example:
        >>> import torch
        >>> z, _ = Squeeze(2)(torch.randn(1, 3, 8, 8))
        >>> z.shape
        torch.Size([1, 12, 4, 4])
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor

    def forward(
        self, z: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Shuffle pixels into channels, or back; the context is not used."""
        shuffle = functional.pixel_shuffle if inverse else functional.pixel_unshuffle
        return shuffle(z, self.factor), z.new_zeros(z.shape[0])

    def extra_repr(self) -> str:
        return f"factor={self.factor}"
