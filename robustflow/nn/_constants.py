"""Constants of a layer, one for each channel, as tensors."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from robustflow._call_state import is_plain_eager


def per_channel(values: Sequence[float], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers (C,) that broadcast against (N, C, \\*S), in its dtype unless one is given."""
    constant = _tensor(tuple(values), dtype or like.dtype, like.device)
    return constant.view(-1, *[1] * (like.dim() - 2))


def take_channels(z: Tensor, channels: Sequence[int]) -> Tensor:
    """Some channels of z (N, C, *), in this order; a view where they lie side by side."""
    first, last = channels[0], channels[-1]
    if list(channels) == list(range(first, last + 1)):
        return z if len(channels) == z.shape[1] else z[:, first : last + 1]
    return z.index_select(1, _tensor(tuple(channels), torch.int64, z.device))


def _tensor(
    values: tuple[float, ...] | tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Cached, because copying so few numbers to a device costs more than computing with them.

    Tensors created inside a trace or a mode are not cached: they may hold no numbers.
    """
    if is_plain_eager():
        return _remembered(values, dtype, device)
    return torch.tensor(values, dtype=dtype, device=device)


@functools.lru_cache(maxsize=256)
def _remembered(
    values: tuple[float, ...] | tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
