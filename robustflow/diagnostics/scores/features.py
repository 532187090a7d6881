"""Batches of features: one level or several, checked, and read in tiles of bounded size."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from robustflow._checks import check_tensor

Features = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""One batch: a tensor (N, C, \\*S) or (N, C); or several levels of it, in a tuple, list or dict."""

TILE_ELEMENTS = 2**21  # values in a tile: 16 MiB in float64, whatever the size of a batch


def as_levels(features: Features) -> dict[str, Tensor]:
    """The levels of a batch by name: keys of a mapping, otherwise "0", "1", ...

    Raises:
        TypeError: no floating-point tensor where one is wanted.
        ValueError: a tensor without a dimension of channels, no level, an empty level, or levels
            of different batch sizes.
    """
    if isinstance(features, Tensor):
        levels = {"0": features}
    elif isinstance(features, Mapping):
        levels = {str(name): level for name, level in features.items()}
    elif isinstance(features, Sequence) and not isinstance(features, str):
        levels = {str(number): level for number, level in enumerate(features)}
    else:
        raise TypeError(
            "features must be a tensor (N, C, *S) or (N, C), or several levels of them in a tuple, "
            f"list or dict, got {type(features).__name__}."
        )
    if not levels:
        raise ValueError("features holds no level: give at least one tensor (N, C, *S) or (N, C).")
    for name, level in levels.items():
        check_tensor(f"Level {name!r} of features", level)
        if level.dim() < 2:
            raise ValueError(
                f"Level {name!r} of features must have shape (N, C, *S) or (N, C), got "
                f"{tuple(level.shape)}."
            )
        if level.numel() == 0:
            raise ValueError(f"Level {name!r} of features is empty: {tuple(level.shape)}.")
    sizes = {name: level.shape[0] for name, level in levels.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"All levels of features must be of the same pictures, got batch sizes {sizes}."
        )
    return levels


def as_batches(batches: Iterable[Features] | Features) -> Iterable[Features]:
    """A single batch (a tensor, or levels in a dict) as the only one of several."""
    if isinstance(batches, Tensor | Mapping):
        return (batches,)
    if not isinstance(batches, Iterable):
        raise TypeError(
            "batches must be an iterable of features, such as a list or a generator, got "
            f"{type(batches).__name__}."
        )
    return batches


def tiles(level: Tensor, most_pictures: int | None = None) -> Iterator[tuple[slice, slice, Tensor]]:
    """A level (N, C, \\*S) piece by piece: pictures, pixels, and their features (n, p, C).

    A piece has at most ``TILE_ELEMENTS`` values (or one pixel), converted to float64 where the
    device has it and to float32 elsewhere. Pixels of several pictures are in one piece only if all
    pixels of each are, and at most ``most_pictures`` of them.
    """
    flat = level.detach().flatten(2) if level.dim() > 2 else level.detach().unsqueeze(-1)
    pictures, channels, pixels = flat.shape
    room = max(1, TILE_ELEMENTS // channels)
    together = max(1, min(room // pixels, most_pictures or pictures))
    dtype = widest_dtype(level.device)
    for first in range(0, pictures, together):
        for start in range(0, pixels, room):
            which = slice(first, min(first + together, pictures))
            where = slice(start, min(start + room, pixels))
            yield which, where, flat[which, :, where].to(dtype).transpose(1, 2)


def check_finite(features: Tensor) -> None:
    """Whether features can be fitted on."""
    if not torch.isfinite(features).all():
        raise ValueError(
            "Features to fit on must be finite, and some are NaN or infinite: leave their picture "
            "out, or mend the network that makes them."
        )


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it, float32 elsewhere (Apple's GPUs)."""
    return torch.float64 if supports_float64(device) else torch.float32


@functools.cache
def supports_float64(device: torch.device) -> bool:
    """Whether the device computes in float64; Apple's and some of Intel's GPUs do not."""
    try:
        torch.ones(1, dtype=torch.float64, device=device).add_(1)
    except (TypeError, RuntimeError):  # the exception and its message differ by device
        return False
    return True
