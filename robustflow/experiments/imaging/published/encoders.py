"""The encoders of the published networks, under their published names.

Both are trunks of residual dense blocks; their features are taken at several sizes, each beside
those of the tapped blocks. A leaky ReLU of the published code works in place, so a feature that
passes through one is its *output*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow.experiments.encoders.rrdb import RESIDUAL, DenseBlock
from robustflow.experiments.imaging.published.layers import NotPublished
from robustflow.experiments.tasks.base import WHITE

_SR_TAPS = {23: (1, 8, 15, 22), 8: (1, 3, 5, 7)}  # by the number of blocks: of published files
_LOW_LIGHT_TAPS = (1, 3, 5, 7)  # the first of them, as many as the flow reads
_SLOPE = 0.2
_DARK = 1e-3  # added before the logarithm
_SUM = 1e-4  # added to what is divided by


class _OldResidualBlock(nn.Module):
    """Three dense blocks under the older names."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for number in (1, 2, 3):
            self.add_module(f"RDB{number}", DenseBlock(features, growth))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for number in (1, 2, 3):
            out = self.get_submodule(f"RDB{number}")(out)
        return x + RESIDUAL * out


class _Trunk(nn.Module):
    """First convolution, residual blocks, last convolution, and others by name.

    Attributes:
        features: channels of each feature.
        taps: blocks whose outputs are features too.
        channels: of a feature with those of the taps beside it.
    """

    def __init__(
        self,
        in_channels: int,
        features: int,
        growth: int,
        blocks: int,
        taps: Sequence[int],
        others: Sequence[str],
    ) -> None:
        super().__init__()
        self.features = features
        self.taps = tuple(taps)
        self.channels = features * (len(self.taps) + 1)
        self.conv_first = _convolution(in_channels, features)
        self.RRDB_trunk = nn.Sequential(
            *(_OldResidualBlock(features, growth) for _ in range(blocks))
        )
        self.trunk_conv = _convolution(features, features)
        for name in others:
            self.add_module(name, _convolution(features, features))
        self.HRconv = _convolution(features, features)
        self.conv_last = _convolution(features, 3)

    def through_blocks(self, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The last block's output, and those of the tapped ones."""
        tapped = []
        for index, block in enumerate(self.RRDB_trunk):
            hidden = block(hidden)
            if index in self.taps:
                tapped.append(hidden)
        return hidden, tapped

    def convolve(self, name: str, x: Tensor) -> Tensor:
        out: Tensor = self.get_submodule(name)(x)
        return out


class SuperResolutionEncoder(_Trunk):
    """RRDB of SRFlow.

    Args:
        features, growth, blocks: of the trunk.
        scale: 4 or 8: how many convolutions upsample.
        tapped: whether the tapped blocks are part of the features.
    """

    def __init__(
        self, features: int, growth: int, blocks: int, scale: int, *, tapped: bool
    ) -> None:
        self.upsamplings = round(math.log2(scale))
        names = [f"upconv{number}" for number in range(1, 1 + self.upsamplings)]
        taps = _SR_TAPS.get(blocks, tuple(range(blocks))[-4:]) if tapped else ()
        super().__init__(3, features, growth, blocks, taps, names)

    def forward(self, low: Tensor, levels: int) -> list[Tensor]:
        """Low-resolution pictures (N, 3, H, W) -> the features of each level, the largest first."""
        hidden, tapped = self.through_blocks(self.conv_first(low))
        last = hidden + self.trunk_conv(hidden)  # ESRGAN adds it to the first convolution's output
        by_size = {0: last}  # by log2 of the size over H
        for number in range(1, 1 + self.upsamplings):
            larger = functional.interpolate(by_size[number - 1], scale_factor=2, mode="nearest")
            by_size[number] = _leaky(self.convolve(f"upconv{number}", larger))
        sizes = range(self.upsamplings - 1, self.upsamplings - 1 - levels, -1)
        for number in sizes:
            if number < 0:
                by_size[number] = functional.interpolate(
                    last, scale_factor=2.0**number, mode="bilinear", align_corners=False
                )
        return [_with_taps(by_size[number], tapped) for number in sizes]


class LowLightEncoder(_Trunk):
    """LLFlow's: it reads a dark picture's logarithm, colours, their gradients, perhaps equalised.

    Args:
        in_channels: 12, or 9 without the equalised picture.
        features, growth, blocks: of the trunk.
        taps: how many blocks are tapped.
    """

    def __init__(
        self, in_channels: int, features: int, growth: int, blocks: int, taps: int
    ) -> None:
        if in_channels not in (9, 12):
            raise NotPublished(
                f"LLFlow's encoder reads 12 channels, or 9 without the equalised picture, and "
                f"this one {in_channels}."
            )
        if not 0 <= taps <= len(_LOW_LIGHT_TAPS):
            raise NotPublished(
                f"LLFlow's flow reads features of up to {len(_LOW_LIGHT_TAPS)} blocks beside the "
                f"last, and this one of {taps}."
            )
        names = ["conv_second", *(f"downconv{number}" for number in (1, 2, 3))]
        super().__init__(in_channels, features, growth, blocks, _LOW_LIGHT_TAPS[:taps], names)
        self.equalised = in_channels == 12
        self.awb_para = nn.Linear(features, 3)  # of no use, as HRconv, conv_last and downconv3
        self.fine_tune_color_map = nn.Sequential(nn.Conv2d(features, 3, 1), nn.Sigmoid())

    def forward(self, dark: Tensor) -> tuple[list[Tensor], Tensor]:
        """Pictures (N, 3, H, W) in [0, 1] -> the features of three levels, and the colour map."""
        light = dark + _DARK
        colours = light / (light.sum(dim=1, keepdim=True) + _SUM)
        vertical, horizontal = (_differences(colours, axis).abs() for axis in (2, 3))
        read = [light.log(), colours, torch.maximum(vertical, horizontal)]
        if self.equalised:
            read.insert(1, equalise(dark))
        hidden = self.convolve("conv_second", _leaky(self.conv_first(torch.cat(read, dim=1))))
        first = functional.max_pool2d(hidden, 2)
        hidden, tapped = self.through_blocks(first)
        half = first + self.trunk_conv(hidden)
        quarter = _leaky(self.convolve("downconv1", _halved(half)))
        eighth = self.convolve("downconv2", _halved(quarter))
        colour_map = self.fine_tune_color_map(functional.interpolate(half, scale_factor=2))
        return [_with_taps(each, tapped) for each in (half, quarter, eighth)], colour_map


def equalise(pictures: Tensor) -> Tensor:
    """Histogram equalisation of each channel, (N, C, H, W) in [0, 1], in 8 bits.

    The least value becomes 0, and any other the number of pixels up to it, without those of the
    least value, in units that make the largest 1. OpenCV's ``equalizeHist`` is the same.

    Example:
        >>> dark = torch.tensor([0.0, 0.2, 0.2, 0.4]).view(1, 1, 2, 2)
        >>> equalise(dark).flatten()
        tensor([0.0000, 0.6667, 0.6667, 1.0000])
    """
    values = (pictures.clamp(0, 1) * WHITE).round().long()
    planes = []
    for plane in values.flatten(0, 1).flatten(1):
        counts = torch.bincount(plane, minlength=WHITE + 1)
        least = counts[plane.min()]
        others = plane.numel() - least
        if others == 0:
            planes.append(plane.float())
            continue
        above = (counts.cumsum(0) - least).clamp(min=0).float()
        planes.append((above * (WHITE / others.float())).round()[plane])
    return (torch.stack(planes) / WHITE).view_as(pictures).to(pictures.dtype)


def encoder_for(weights: Mapping[str, Tensor], read: int) -> _Trunk:
    """The encoder of a checkpoint, with new weights.

    Args:
        weights: by name.
        read: channels of the features that the flow reads.

    Raises:
        NotPublished: there is none.
    """
    try:
        first = weights["RRDB.conv_first.weight"]
        growth = weights["RRDB.RRDB_trunk.0.RDB1.conv1.weight"].shape[0]
    except KeyError as error:
        raise NotPublished(f"The file has no RRDB encoder: {error} is missing.") from None
    features, in_channels = first.shape[:2]
    blocks = 1 + max(
        int(name.split(".")[2]) for name in weights if name.startswith("RRDB.RRDB_trunk.")
    )
    if "RRDB.fine_tune_color_map.0.weight" in weights:
        return LowLightEncoder(in_channels, features, growth, blocks, read // features - 1)
    scale = 2 ** sum(f"RRDB.upconv{number}.weight" in weights for number in (1, 2, 3))
    return SuperResolutionEncoder(features, growth, blocks, scale, tapped=read > features)


def _convolution(read: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(read, out, 3, padding=1)


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, _SLOPE)


def _halved(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)


def _with_taps(feature: Tensor, tapped: Sequence[Tensor]) -> Tensor:
    """A feature, and those of the tapped blocks at its size."""
    if not tapped:
        return feature
    resized = functional.interpolate(torch.cat(list(tapped), dim=1), feature.shape[-2:])
    return torch.cat([feature, resized], dim=1)


def _differences(x: Tensor, axis: int) -> Tensor:
    """Half of the next value minus the one before, zero beyond the edges."""
    padding = (0, 0, 1, 1) if axis == 2 else (1, 1, 0, 0)
    padded = functional.pad(x, padding)
    length = x.shape[axis]
    return 0.5 * (padded.narrow(axis, 2, length) - padded.narrow(axis, 0, length))
