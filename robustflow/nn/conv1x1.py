"""Invertible 1x1 convolution: a learned mixing of the channels, kept in LU form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class InvertibleConv1x1(nn.Module):
    """``z -> W z`` at every position, with ``W = P L (U + diag(s))``.

    The determinant is the product of s, and the inverse two triangular solves of a C x C matrix:
    neither factorises anything nor waits for the device. W starts as a random rotation; P and the
    signs of s stay as they are then.

    Args:
        channels: channels of z.

    Source: Kingma and Dhariwal, Glow, 2018 (arXiv:1807.03039), section 3.2.

    Example:
        >>> mix = InvertibleConv1x1(12)
        >>> z = torch.randn(2, 12, 8, 8)
        >>> y, logabsdet = mix(z)
        >>> bool((mix(y, inverse=True)[0] - z).abs().max() < 1e-4)
        True
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        dtype = torch.get_default_dtype()
        self.register_buffer("permutation", permutation.to(dtype))
        self.register_buffer("sign", diagonal.sign().to(dtype))
        self.log_diagonal = nn.Parameter(diagonal.abs().log().to(dtype))
        self.lower = nn.Parameter(lower.tril(-1).to(dtype))
        self.upper = nn.Parameter(upper.triu(1).to(dtype))

    def weight(self, *, inverse: bool = False) -> Tensor:
        """W or its inverse, (channels, channels)."""
        identity = torch.eye(self.channels, dtype=self.lower.dtype, device=self.lower.device)
        lower = self.lower.tril(-1) + identity
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_diagonal.exp())
        if not inverse:
            return self.permutation @ lower @ upper
        solved = torch.linalg.solve_triangular(
            lower, self.permutation.T, upper=False, unitriangular=True
        )
        return torch.linalg.solve_triangular(upper, solved, upper=True)

    def forward(
        self, z: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """z (N, channels, \\*S) -> (z, logabsdet (N,)); the context is not used."""
        positions = math.prod(z.shape[2:])
        columns = z.reshape(z.shape[0], self.channels, positions)
        mixed = torch.matmul(self.weight(inverse=inverse), columns).reshape(z.shape)
        logabsdet = (self.log_diagonal.sum() * positions).expand(z.shape[0])
        return mixed, -logabsdet if inverse else logabsdet

    def extra_repr(self) -> str:
        return f"{self.channels}"
