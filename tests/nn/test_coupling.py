"""Coupling: its inverse, its log-determinant, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from robustflow.nn import Coupling, ElementwiseTransform
from tests.nn.checks import (
    SPLINES,
    TRANSFORMS,
    assert_is_a_flow_layer,
    assert_is_the_identity,
    assert_one_context_serves_a_batch,
    normal,
    perturbed,
)

CHANNELS, CONTEXT_CHANNELS = 5, 3


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
@pytest.mark.parametrize("spatial", [(), (4,), (4, 3), (2, 3, 2)], ids=str)
def test_inverts_and_knows_its_log_determinant(
    transform: ElementwiseTransform, spatial: tuple[int, ...]
) -> None:
    layer = Coupling(
        CHANNELS, CONTEXT_CHANNELS, transform, hidden_channels=8, spatial_dims=len(spatial)
    )
    z, context = normal(2, CHANNELS, *spatial), normal(2, CONTEXT_CHANNELS, *spatial)
    assert_is_a_flow_layer(perturbed(layer), z, context)


@pytest.mark.parametrize("transform", SPLINES, ids=repr)
def test_a_new_spline_coupling_is_the_identity(transform: ElementwiseTransform) -> None:
    layer = Coupling(CHANNELS, CONTEXT_CHANNELS, transform)
    assert_is_the_identity(
        layer, torch.randn(2, CHANNELS, 4, 4), torch.randn(2, CONTEXT_CHANNELS, 4, 4)
    )


def test_one_context_serves_a_batch_as_copies_of_it_would() -> None:
    layer = perturbed(Coupling(CHANNELS, CONTEXT_CHANNELS))
    assert_one_context_serves_a_batch(
        layer, normal(4, CHANNELS, 4, 4), normal(1, CONTEXT_CHANNELS, 4, 4)
    )


def test_coupling_keeps_the_first_half_and_reads_no_other() -> None:
    coupling = perturbed(Coupling(CHANNELS, CONTEXT_CHANNELS))
    z, context = normal(2, CHANNELS, 4, 4), normal(2, CONTEXT_CHANNELS, 4, 4)
    y, _ = coupling(z, context)
    assert torch.equal(y[:, :2], z[:, :2])
    changed = z.clone()
    changed[:, 3] += 1
    assert torch.equal(coupling(changed, context)[0][:, 2], y[:, 2])


def test_needs_two_channels() -> None:
    with pytest.raises(ValueError, match="channels must be at least 2"):
        Coupling(1, 2)
