"""A small encoder of the observation, trained with the flow."""

from __future__ import annotations

from torch import Tensor, nn


class TinyEncoder(nn.Module):
    """Features of an observation: (N, in_channels, H, W) in [0, 1] -> (N, channels, H, W).

    Args:
        channels: of the features.
        blocks: residual blocks of two 3x3 convolutions.
        in_channels: of the observation.

    Example:
        >>> import torch
        >>> TinyEncoder(32)(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 32, 8, 8])
    """

    def __init__(self, channels: int, blocks: int = 3, in_channels: int = 3) -> None:
        super().__init__()
        self.channels = channels
        self.first = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1),
            )
            for _ in range(blocks)
        )

    def forward(self, observation: Tensor) -> Tensor:
        features = self.first(observation - 0.5)
        for block in self.blocks:
            features = features + block(features)
        return features
