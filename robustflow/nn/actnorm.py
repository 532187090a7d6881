"""ActNorm: one scale and one shift per channel, set from the first batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class ActNorm(nn.Module):
    """``z -> (z + bias) * exp(log_scale)`` per channel.

    The first forward call in training mode sets both so that each channel of that batch has
    mean 0 and standard deviation 1. Whether that has happened is part of the state_dict.

    Args:
        channels: channels of z.
        eps: added to the standard deviation, so that a constant channel stays finite.

    Source: Kingma and Dhariwal, Glow, 2018 (arXiv:1807.03039).

    Example:
        >>> norm = ActNorm(3)
        >>> z, logabsdet = norm(5 * torch.randn(16, 3, 8, 8) + 2)
        >>> bool(z.mean().abs() < 1e-5), bool(norm.initialised)
        (True, True)
    """

    initialised: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialised", torch.tensor(False))
        # Reading the buffer synchronises a GPU, so it is read once and then remembered.
        self._known_initialised = False

    def forward(
        self, z: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """z (N, channels, \\*S) -> (z, logabsdet (N,)); the context is not used."""
        if self.training and not inverse and not self._known_initialised:
            self._initialise_once(z)
        shape = (1, self.channels) + (1,) * (z.dim() - 2)
        bias, log_scale = self.bias.view(shape), self.log_scale.view(shape)
        logabsdet = (self.log_scale.sum() * math.prod(z.shape[2:])).expand(z.shape[0])
        if inverse:
            return z * torch.exp(-log_scale) - bias, -logabsdet
        return (z + bias) * torch.exp(log_scale), logabsdet

    @torch.no_grad()
    def _initialise_once(self, z: Tensor) -> None:
        if not self.initialised:
            bias, log_scale = standardisation(z, self.eps)
            self.bias.copy_(bias)
            self.log_scale.copy_(log_scale)
            self.initialised.fill_(True)
        self._known_initialised = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_initialised = False

    def extra_repr(self) -> str:
        return f"{self.channels}"


def standardisation(z: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """bias and log_scale (C,) that give z (N, C, \\*S) mean 0 and deviation 1 in each channel.

    In float32 at least: squares of half-precision values may be beyond their range.
    """
    values = z.transpose(0, 1).flatten(1).to(torch.promote_types(z.dtype, torch.float32))
    mean = values.mean(dim=1)
    deviation = (values - mean[:, None]).square().mean(dim=1).sqrt()
    return -mean, -torch.log(deviation + eps)
