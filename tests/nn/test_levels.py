"""Levels with and without a Split: what goes on, what leaves, and the sizes of both."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustflow.nn import (
    ActNorm,
    Affine,
    ConditionalFlow,
    Split,
    Squeeze,
    flow_step,
)
from tests.nn.checks import assert_is_a_flow, normal, perturbed


def test_a_level_without_a_split_hands_everything_on() -> None:
    levels = [[Squeeze(2), ActNorm(12)], [Squeeze(2), ActNorm(48)]]
    flow = perturbed(ConditionalFlow(levels)).eval()
    x = normal(2, 3, 8, 4)
    (latent,), _ = flow(x)
    assert latent.shape == (2, 48, 2, 1)
    assert_is_a_flow(flow, x)
    samples = flow.sample(3, size=(8, 4), temperature=0.0)
    assert samples.shape == (3, 3, 8, 4)
    torch.testing.assert_close(flow(samples)[0][0], torch.zeros(3, 48, 2, 1, dtype=torch.float64))


class ThreeSizes(nn.Module):
    """Features of 2 channels at the sizes of the published 4x network's levels, for 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, low: Tensor) -> list[Tensor]:
        features = self.layer(low)
        return [
            nn.functional.interpolate(features, scale_factor=2.0),
            features,
            nn.functional.avg_pool2d(features, 2),
        ]


def published_4x() -> ConditionalFlow:
    """Three levels, of which the first alone ends with a Split: latents 6 and 96 channels."""

    def step(channels: int) -> list[nn.Module]:
        return flow_step(channels, 2, Affine(), hidden_channels=4)

    levels = [
        [Squeeze(2), *step(12), Split(12, 2)],
        [Squeeze(2), *step(24)],
        [Squeeze(2), *step(96)],
    ]
    return perturbed(ConditionalFlow(levels, ThreeSizes()), 0.05).eval()


def test_the_published_4x_networks_shape() -> None:
    flow, x, low = published_4x(), normal(2, 3, 16, 16), normal(2, 3, 4, 4)
    latents, _ = flow(x, low)
    assert [latent.shape[1:] for latent in latents] == [(6, 8, 8), (96, 2, 2)]
    assert_is_a_flow(flow, x, low)
    for number in (1, 3):
        samples = flow.sample(number, low, temperature=0.0)
        assert samples.shape == (2, number, 3, 16, 16)
        for latent in flow(samples[:, 0], low)[0]:
            torch.testing.assert_close(latent, torch.zeros_like(latent), atol=1e-9, rtol=0)


def test_a_split_in_a_middle_level_alone() -> None:
    levels: list[list[nn.Module]] = [[ActNorm(4)], [Split(4, spatial_dims=0)], [ActNorm(2)]]
    flow, x = perturbed(ConditionalFlow(levels)).eval(), normal(3, 4)
    assert [latent.shape for latent in flow(x)[0]] == [(3, 2), (3, 2)]
    assert_is_a_flow(flow, x)
    assert flow.sample(5).shape == (5, 4)


@pytest.mark.parametrize("where", ["first", "last", "both"])
def test_channels_are_known_through_layers_that_change_them(where: str) -> None:
    """A level may end, or consist, of squeezes: the samples have the data's shape."""
    first: list[nn.Module] = [ActNorm(3), Squeeze(2)]
    every: dict[str, list[list[nn.Module]]] = {
        "first": [first, [ActNorm(12)]],
        "last": [first],
        "both": [first, [Squeeze(2)]],
    }
    flow = perturbed(ConditionalFlow(every[where])).eval()
    assert flow.sample(2, size=(8, 4)).shape == (2, 3, 8, 4)
    assert_is_a_flow(flow, normal(2, 3, 8, 4))


def test_log_prob_counts_every_value_once() -> None:
    """Of the identity, whatever the levels: the density of as many standard normal values."""
    x = torch.randn(2, 3, 16, 16)
    flow = ConditionalFlow([[Squeeze(2)], [Squeeze(2)], [Squeeze(2), ActNorm(192)]]).eval()
    expected = -0.5 * (x.square().flatten(1).sum(1) + x[0].numel() * math.log(2 * math.pi))
    torch.testing.assert_close(flow.log_prob(x), expected)


def test_a_missing_or_surplus_latent_is_named() -> None:
    flow = published_4x()
    latents, _ = flow(normal(1, 3, 16, 16), low := normal(1, 3, 4, 4))
    for wrong in (latents[:1], (*latents, latents[0])):
        with pytest.raises(ValueError, match=f"latents must be a tuple of 2.*got {len(wrong)}"):
            flow.inverse(wrong, low)
