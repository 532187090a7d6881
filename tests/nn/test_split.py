"""Split: its own transform, and its two halves."""

from __future__ import annotations

import torch

from robustflow.nn import Split
from tests.nn.checks import assert_is_a_flow_layer, normal, perturbed

CHANNELS, CONTEXT_CHANNELS = 5, 3


def test_split_is_a_bounded_layer_and_divides() -> None:
    split = perturbed(Split(CHANNELS, CONTEXT_CHANNELS, log_scale_bound=2.0), 0.3)
    z, context = normal(2, CHANNELS, 4, 4), normal(2, CONTEXT_CHANNELS, 4, 4)
    assert_is_a_flow_layer(split, z, context)
    kept, latent = split.divide(split(z, context)[0])
    assert torch.equal(kept, z[:, :2]) and latent.shape == (2, 3, 4, 4)
    _, logabsdet = split(z, 1e6 * context)  # absurd contexts: the bound, 3 * 16 values, holds
    assert bool((logabsdet.abs() <= 2 * 48).all())
