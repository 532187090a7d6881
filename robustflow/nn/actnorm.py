"""ActNorm: one scale and one shift per channel, set from the first batch."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, distributed, nn

from robustflow._call_state import in_torch_func
from robustflow._checks import check_at_least_zero
from robustflow.nn._checks import check_counts, check_shape
from robustflow.nn.precision import upcast_dtype, upcast_half


class ActNorm(nn.Module):
    """``z -> (z + bias) * exp(log_scale)`` per channel.

    The first forward call in training mode sets both so that each channel of that batch has
    mean 0 and standard deviation 1. Whether that has happened is part of the state_dict. Until
    it has, the layer is the identity: in evaluation mode, and in the inverse, which set nothing.

    A channel whose standard deviation the batch cannot estimate keeps a scale of 1: one that is
    constant up to rounding, or has fewer than 4 values (the predictive distribution of the next
    value, Student's t, then has no variance). Elements that are not finite are left out. A batch
    without a finite element sets nothing and does not count as the first.

    Where ``torch.distributed`` is initialised, the first batches of all ranks count together, so
    that the ranks' copies start, and under DistributedDataParallel stay, equal: as with
    ``torch.nn.SyncBatchNorm``, every rank must make that first call.

    That call reads a flag from the device and cannot be part of a graph, or of a ``torch.func``
    transform: under ``torch.compile(fullgraph=True)`` and ``vmap`` make it before.

    Args:
        channels: channels of z.
        eps: added to the standard deviation; at least 0.

    Raises:
        TypeError, ValueError: no whole number of channels, or a negative ``eps``.

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
        check_counts(channels=channels)
        check_at_least_zero("eps", eps)
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
        total = upcast_half(self.log_scale).sum()
        logabsdet = (total * math.prod(z.shape[2:])).expand(z.shape[0])
        if inverse:
            return z * torch.exp(-log_scale) - bias, -logabsdet
        return (z + bias) * torch.exp(log_scale), logabsdet

    @torch.no_grad()
    def _initialise_once(self, z: Tensor) -> None:
        if in_torch_func():
            raise RuntimeError(
                "A new ActNorm sets itself from its first batch in training mode, which it cannot "
                "inside a torch.func transform: call the flow on a batch before, or put it in "
                "evaluation mode."
            )
        if not self.initialised:
            constants = standardisation(z, self.eps)
            if constants is None:
                return
            self.bias.copy_(constants[0])
            self.log_scale.copy_(constants[1])
            self.initialised.fill_(True)
        self._known_initialised = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        # Read here, not in the next call, which may be in a compiled graph.
        self._known_initialised = not self.initialised.is_meta and bool(self.initialised)

    def extra_repr(self) -> str:
        return f"{self.channels}"


# With fewer values the predictive distribution of the next one, Student's t with one degree of
# freedom less than there are values, has no variance.
_FEWEST_VALUES = 4
# A deviation below so many ulps of the channel's largest value is rounding error.
_ROUNDINGS = 4


class _Moments(NamedTuple):
    """Moments of the finite values of each channel, (C,): over one batch, or all ranks'."""

    number: Tensor
    mean: Tensor
    deviation: Tensor
    largest: Tensor  # absolute value


def standardisation(z: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor] | None:
    """bias and log_scale (C,) that give z (N, C, \\*S) mean 0 and deviation 1 in each channel.

    Over the batches of all ranks, where ``torch.distributed`` is initialised. Elements that are
    not finite are left out. A channel that is constant up to rounding, or has fewer than 4 values,
    is shifted but not scaled. None if no element is finite.
    """
    moments = _moments(z)
    if distributed.is_available() and distributed.is_initialized():
        moments = _over_ranks(moments)
    count, mean, deviation, largest = moments
    if not count.any():
        return None
    rounding = _ROUNDINGS * torch.finfo(z.dtype).eps * largest
    is_known = (count >= _FEWEST_VALUES) & (deviation > rounding)
    log_scale = torch.where(is_known, -torch.log(deviation + eps), 0.0)
    dtype = upcast_dtype(z.dtype)
    return -mean.to(dtype), log_scale.to(dtype)


def _moments(z: Tensor) -> _Moments:
    """In float32 at least, on values scaled to magnitude 1, so that no square overflows."""
    values = upcast_half(z.transpose(0, 1).flatten(1))
    finite = values.isfinite()
    values = torch.where(finite, values, 0.0)
    count = finite.sum(dim=1)
    largest = values.abs().amax(dim=1) if values.shape[1] else values.new_zeros(len(values))
    unit = _unit(largest)
    values = values / unit[:, None]
    divisor = count.clamp(min=1)
    mean = values.sum(dim=1) / divisor
    centred = torch.where(finite, values - mean[:, None], 0.0)
    deviation = (centred.square().sum(dim=1) / divisor).sqrt()
    return _Moments(count.to(mean.dtype), mean * unit, deviation * unit, largest)


def _over_ranks(local: _Moments) -> _Moments:
    """The moments of all ranks' values, from each rank's own, in float64.

    Every rank gathers the same numbers and computes the same bits from them. The square of (a
    rank's mean - the mean of all) is computed directly, because a difference of large squares would
    cancel.
    """
    numbers = torch.stack(local).double()
    ranks = [torch.empty_like(numbers) for _ in range(distributed.get_world_size())]
    distributed.all_gather(ranks, numbers)
    counts, means, deviations, largest = torch.stack(ranks, dim=1)
    unit = _unit(largest.amax(dim=0))
    means, deviations = means / unit, deviations / unit
    count = counts.sum(dim=0)
    shares = counts / count.clamp(min=1)
    mean = (shares * means).sum(dim=0)
    variance = (shares * (deviations.square() + (means - mean).square())).sum(dim=0)
    return _Moments(count, mean * unit, variance.sqrt() * unit, largest.amax(dim=0))


def _unit(largest: Tensor) -> Tensor:
    """What to divide a channel's values by, so that none is above 1."""
    return torch.where(largest > 0, largest, 1.0)
