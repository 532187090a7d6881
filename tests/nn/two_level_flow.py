"""A small flow of pictures with every kind of layer, and features of two sizes."""

from __future__ import annotations

from torch import Tensor, nn

from robustflow.nn import ConditionalFlow, ElementwiseTransform, Split, Squeeze, flow_step
from tests.nn.checks import perturbed


class TwoLevelEncoder(nn.Module):
    """Features at the size of the low-resolution picture, and at half of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, low: Tensor) -> list[Tensor]:
        features = self.layer(low)
        return [features, nn.functional.avg_pool2d(features, 2)]


def two_level_flow(transform: ElementwiseTransform) -> ConditionalFlow:
    """3 channels at 8x4, then 12 at 4x2 of which 6 leave, then 24 at 2x1."""
    levels = [
        [Squeeze(), *flow_step(12, 4, transform, hidden_channels=8), Split(12, 4)],
        [Squeeze(), *flow_step(24, 4, transform, hidden_channels=8)],
    ]
    return perturbed(ConditionalFlow(levels, TwoLevelEncoder()), 0.1).eval()
