"""RRDB: the residual-in-residual dense network of ESRGAN, and its taps as features.

Source: Wang et al., ESRGAN, 2018 (arXiv:1809.00219); the taps: SRFlow, Lugmayr et al., 2020
(arXiv:2006.14200).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCKS = 23
FEATURES = 64
GROWTH = 32
TAPS = (1, 8, 15, 22)  # blocks whose outputs are features, beside the last convolution's
_SLOPE = 0.2
RESIDUAL = 0.2


class DenseBlock(nn.Module):
    """Five convolutions, each of which reads all that came before; a scaled residual."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for index in range(5):
            width = features if index == 4 else growth
            convolution = nn.Conv2d(features + index * growth, width, 3, padding=1)
            self.add_module(f"conv{index + 1}", convolution)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for index in range(4):
            new = self.get_submodule(f"conv{index + 1}")(seen)
            seen = torch.cat([seen, functional.leaky_relu(new, _SLOPE)], dim=1)
        return x + RESIDUAL * self.get_submodule("conv5")(seen)


class ResidualBlock(nn.Module):
    """Three dense blocks inside a scaled residual."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(features, growth)
        self.rdb2 = DenseBlock(features, growth)
        self.rdb3 = DenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDB(nn.Module):
    """4x super-resolution by RRDB; :class:`RRDBEncoder` takes its features.

    The names of its weights are those of the newer published files (``conv_first``,
    ``body.0.rdb1.conv1``, ...).

    Args:
        in_channels: of the picture that it reads.
        features, growth, blocks: the published 64, 32, 23.

    Example:
        >>> sum(weight.numel() for weight in RRDB().parameters())
        16697987
    """

    def __init__(
        self,
        in_channels: int = 3,
        features: int = FEATURES,
        growth: int = GROWTH,
        blocks: int = BLOCKS,
    ) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(in_channels, features, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(features, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_up2 = nn.Conv2d(features, features, 3, padding=1)
        self.conv_hr = nn.Conv2d(features, features, 3, padding=1)
        self.conv_last = nn.Conv2d(features, 3, 3, padding=1)

    def features(self, picture: Tensor) -> list[Tensor]:
        """Outputs of the tapped blocks, and of the body's last convolution, each (N, 64, H, W)."""
        first = hidden = self.conv_first(picture)
        tapped = []
        for index, block in enumerate(self.body):
            hidden = block(hidden)
            if index in TAPS:
                tapped.append(hidden)
        return [*tapped, first + self.conv_body(hidden)]

    def forward(self, picture: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 3, 4H, 4W)."""
        hidden = self.features(picture)[-1]
        for convolution in (self.conv_up1, self.conv_up2):
            hidden = functional.interpolate(hidden, scale_factor=2, mode="nearest")
            hidden = functional.leaky_relu(convolution(hidden), _SLOPE)
        return self.conv_last(functional.leaky_relu(self.conv_hr(hidden), _SLOPE))


class RRDBEncoder(nn.Module):
    """The features of an :class:`RRDB`: (N, 3, H, W) in [0, 1] -> (N, 320, H, W).

    Args:
        network: whose features; a new one of the published size by default.
    """

    def __init__(self, network: RRDB | None = None) -> None:
        super().__init__()
        self.network = network or RRDB()
        features = self.network.conv_first.out_channels
        taps = sum(tap < len(self.network.body) for tap in TAPS)
        self.channels = features * (taps + 1)
        # What comes after the features is the super-resolver's own.
        for name in ("conv_up1", "conv_up2", "conv_hr", "conv_last"):
            self.network.get_submodule(name).requires_grad_(False)

    def forward(self, observation: Tensor) -> Tensor:
        return torch.cat(self.network.features(observation), dim=1)
