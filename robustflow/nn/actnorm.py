"""ActNorm: one scale and one shift per channel, set from the first batch."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn

from robustflow.nn._checks import check_shape


class ActNorm(nn.Module):
    """``z -> (z + bias) * exp(log_scale)`` per channel.

    The first forward call in training mode sets both so that each channel of that batch has
    mean 0 and standard deviation 1. Whether that has happened is part of the state_dict. Until
    it has, the layer is the identity: in evaluation mode, and in the inverse, which set nothing.

    Where ``torch.distributed`` is initialised, the first batches of all ranks count together, so
    that the ranks' copies start, and under DistributedDataParallel stay, equal: as with
    ``torch.nn.SyncBatchNorm``, every rank must make that first call.

    That call reads a flag from the device and cannot be part of a graph: under
    ``torch.compile(fullgraph=True)`` make it before compiling.

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

    context_channels: ClassVar[int] = 0

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
        check_shape("z", z, self.channels)
        if self.training and not inverse and not self._known_initialised:
            self._initialise_once(z)
        shape = (1, self.channels) + (1,) * (z.dim() - 2)
        bias, log_scale = self.bias.view(shape), self.log_scale.view(shape)
        total = self.log_scale.to(torch.promote_types(self.log_scale.dtype, torch.float32)).sum()
        logabsdet = (total * math.prod(z.shape[2:])).expand(z.shape[0])
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
        # Read here, not in the next call, which may be in a compiled graph.
        self._known_initialised = not self.initialised.is_meta and bool(self.initialised)

    def extra_repr(self) -> str:
        return f"{self.channels}"


def standardisation(z: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """bias and log_scale (C,) that give z (N, C, \\*S) mean 0 and deviation 1 in each channel.

    Over the batches of all ranks, where ``torch.distributed`` is initialised. In float32 at least:
    squares of half-precision values may be beyond their range.
    """
    values = z.transpose(0, 1).flatten(1).to(torch.promote_types(z.dtype, torch.float32))
    count = max(values.shape[1], 1)  # of a rank without data, which weighs nothing below
    mean = values.sum(dim=1) / count
    variance = (values - mean[:, None]).square().sum(dim=1) / count
    if distributed.is_available() and distributed.is_initialized():
        mean, variance = _over_ranks(values.shape[1], mean, variance)
    return -mean, -torch.log(variance.sqrt() + eps)


def _over_ranks(count: int, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of all ranks' values, from each rank's count, mean and variance.

    Every rank gathers the same numbers and computes the same bits from them. The deviation of a
    rank's mean from the mean of all is squared as it is: a difference of large squares would
    cancel.
    """
    weight = torch.full_like(mean, count)
    mine = torch.stack([weight, mean, variance]).double()
    ranks = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(ranks, mine)
    weights, means, variances = torch.stack(ranks, dim=1)
    shares = weights / weights.sum(dim=0)
    total_mean = (shares * means).sum(dim=0)
    total_variance = (shares * (variances + (means - total_mean).square())).sum(dim=0)
    return total_mean.to(mean.dtype), total_variance.to(mean.dtype)
