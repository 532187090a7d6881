"""Pictures too large for memory, tile by tile, from one latent of the whole picture.

Every tile reads its part of the same latents, and a halo around it. A value depends on the latents
and the observation within the flow's receptive field. With a halo of that size the tiles equal the
whole picture up to rounding; with a smaller one they differ a little where tiles meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow.experiments.encoders import RRDBEncoder
from robustflow.experiments.imaging.model import ImagingFlow

DEFAULT_TILE = 512
DEFAULT_HALO = 64


@dataclass(frozen=True)
class Tile:
    """A part of a picture, and the part around it that is computed with it.

    Attributes:
        inner: top, left, bottom, right, in pixels of x.
        outer: the same with the halo, cut at the picture's edges.
    """

    inner: tuple[int, int, int, int]
    outer: tuple[int, int, int, int]


def tiles_of(size: Sequence[int], tile: int, halo: int, multiple: int) -> Iterator[Tile]:
    """Tiles that cover a picture.

    Args:
        size: height and width, multiples of ``multiple``.
        tile: side of a tile without halo, at least ``multiple``; rounded up to a multiple of it.
        halo: pixels around it; rounded up likewise.
        multiple: of the flow's levels.

    Raises:
        ValueError: a tile or halo that is too small.

    Example:
        >>> [tile.outer for tile in tiles_of((8, 8), 8, 4, 4)]
        [(0, 0, 8, 8)]
    """
    if tile < 1:
        raise ValueError(f"tile must be at least 1 pixel, got {tile}.")
    if halo < 0:
        raise ValueError(f"halo must be at least 0 pixels, got {halo}.")
    tile, halo = (-(-length // multiple) * multiple for length in (tile, halo))
    height, width = size
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            outer = (
                max(0, top - halo),
                max(0, left - halo),
                min(height, bottom + halo),
                min(width, right + halo),
            )
            yield Tile((top, left, bottom, right), outer)


@torch.no_grad()
def sample_in_tiles(
    flow: ImagingFlow,
    y: Tensor,
    *,
    tile: int = DEFAULT_TILE,
    halo: int | None = DEFAULT_HALO,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One sample (C, H, W) of an observation, not clamped: that of ``flow.sample`` for this seed.

    Memory beyond the result: its latents, as large as it, and what one tile with its halo takes.

    Args:
        flow: in evaluation mode.
        y: (1, C', H', W').
        tile: side of a tile, in pixels of x.
        halo: pixels around a tile; None: :func:`receptive_field`, for which tiles are exact.
        temperature: standard deviation of the latents.
        generator: of the latents, on the CPU.
        out: where the result goes, (C, H, W) on the CPU; a new tensor by default.

    Raises:
        ValueError: more than one observation, a size that the flow's levels do not divide, or a
            tile or halo that is too small.
    """
    if y.dim() != 4 or y.shape[0] != 1:
        raise ValueError(f"y must be one observation (1, C, H, W), got shape {tuple(y.shape)}.")
    size, scale = flow.task.picture_size(y), flow.task.scale
    if any(side % flow.size_multiple for side in size):
        raise ValueError(f"The sides of x must be multiples of {flow.size_multiple}, got {size}.")
    latents = flow.draw_latents(1, size, generator, device="cpu")
    if out is None:
        out = torch.empty(flow.task.channels, *size)
    halo = receptive_field(flow) if halo is None else halo
    device = next(flow.parameters()).device
    for each in tiles_of(size, tile, halo, flow.size_multiple):
        top, left, bottom, right = each.outer
        seen = y[..., top // scale : bottom // scale, left // scale : right // scale]
        prepared = flow.prepare(seen.to(device))
        parts = []
        for latent in latents:
            factor = size[0] // latent.shape[-2]
            rows = slice(top // factor, bottom // factor)
            columns = slice(left // factor, right // factor)
            parts.append(latent[..., rows, columns].to(device))
        picture = flow.decode(parts, prepared, temperature)[0]
        inner_top, inner_left, inner_bottom, inner_right = each.inner
        out[:, inner_top:inner_bottom, inner_left:inner_right] = picture[
            :, inner_top - top : inner_bottom - top, inner_left - left : inner_right - left
        ].cpu()
    return out


def receptive_field(flow: ImagingFlow) -> int:
    """The receptive field of a sample's value, in pixels of x: the halo for which tiles are exact.

    The sum of the radii of all convolutions between a latent and a pixel, each in pixels of its
    level, and of what the encoder and the resizing of its features see.
    """
    total = 0
    context = 0
    for number, level in enumerate(flow.flow.levels, start=1):
        assert isinstance(level, rnn.FlowLevel)
        own = 0
        for layer in level.layers:
            if isinstance(layer, rnn.Coupling):
                own += _radius(layer.conditioner)
            if isinstance(layer, rnn.Coupling | rnn.Injector):
                context = max(context, _radius(layer.conditioner) * 2**number)
        total += own * 2**number
    resizing = 2 * max(2 ** len(flow.flow.levels), flow.task.scale)
    encoder = _encoder_radius(flow.encoder) * flow.task.scale
    return total + context + resizing + encoder + flow.task.margin


def _radius(module: nn.Module) -> int:
    """The radii of a chain's convolutions, of which those that read z and the context are one."""
    radii = {
        name: layer.kernel_size[0] // 2
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d)
    }
    first = [radii.pop(name, 0) for name in ("context_layer", "z_layer")]
    return max(first) + sum(radii.values())


def _encoder_radius(encoder: nn.Module) -> int:
    """The longest chain of convolutions from a feature to the observation."""
    unused: tuple[str, ...] = ()
    if isinstance(encoder, RRDBEncoder):
        unused = ("conv_up1", "conv_up2", "conv_hr", "conv_last")
    return sum(
        layer.kernel_size[0] // 2
        for name, layer in encoder.named_modules()
        if isinstance(layer, nn.Conv2d) and name.rpartition(".")[2] not in unused
    )
