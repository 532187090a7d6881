"""Bicubic resizing as the field's scripts do it (MATLAB's ``imresize``), and its pseudo-inverse."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional


def symmetric_pad(x: Tensor, margin: int) -> Tensor:
    """x (N, C, \\*S) with its mirror image around it; the edge pixel is repeated.

    Example:
        >>> symmetric_pad(torch.arange(3.0).view(1, 1, 3), 2)[0, 0].tolist()
        [1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 1.0]
    """
    for dim in range(2, x.dim()):
        length = x.shape[dim]
        index = torch.arange(-margin, length + margin, device=x.device) % (2 * length)
        x = x.index_select(dim, torch.minimum(index, 2 * length - 1 - index))
    return x


def downsample(x: Tensor, scale: int) -> Tensor:
    """Antialiased bicubic downsampling of (N, C, H, W) or (N, C, T); the scale divides the sides.

    The kernel is Keys' with a = -1/2, stretched by the scale, and the picture is mirrored at its
    edges: the result of MATLAB's ``imresize``, with which the field's benchmarks are made.
    """
    return _resize(x, scale, 1)


def upsample(y: Tensor, scale: int) -> Tensor:
    """Bicubic upsampling of (N, C, H, W) or (N, C, T), with the same kernel and edges."""
    return _resize(y, 1, scale)


def _resize(x: Tensor, down: int, up: int) -> Tensor:
    if x.dtype.itemsize < 4:  # on CPUs PyTorch has no antialiased resizing of half types
        return _resize(x.float(), down, up).to(x.dtype)
    margin = 4  # pixels of the smaller picture; the kernel reaches 2 to each side
    cut = slice(margin * up, -margin * up)
    padded = symmetric_pad(x, margin * down)
    size = [side // down * up for side in padded.shape[2:]]
    if x.dim() == 3:  # torch knows bicubic interpolation of pictures only: a signal is a row
        row = functional.interpolate(padded[:, :, None], [1, *size], mode="bicubic", antialias=True)
        return row[:, :, 0, cut].contiguous()
    out = functional.interpolate(padded, size, mode="bicubic", antialias=True)
    return out[..., cut, cut].contiguous()


def pseudo_inverse(y: Tensor, scale: int) -> Tensor:
    """The smallest x with ``downsample(x, scale) == y``, (N, C, H*scale, W*scale).

    Downsampling works on rows and columns apart, so two small pseudo-inverse matrices do it.
    """
    dtype = torch.promote_types(y.dtype, torch.float32)
    rows, columns = (_inverse_matrix(side, scale).to(dtype).to(y.device) for side in y.shape[-2:])
    return (rows @ y.to(dtype) @ columns.mT).to(y.dtype)


@lru_cache(maxsize=16)
def _inverse_matrix(side: int, scale: int) -> Tensor:
    """(side * scale, side), in float64."""
    length = side * scale
    # Each unit vector as a picture of one column; the columns beside it are alike.
    units = torch.eye(length, dtype=torch.float64, device="cpu").view(length, 1, length, 1)
    matrix = downsample(units.expand(-1, -1, -1, scale), scale)[:, 0, :, 0].mT
    return torch.linalg.pinv(matrix)
