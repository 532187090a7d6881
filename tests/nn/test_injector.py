"""Injector: its inverse and its log-determinant."""

from __future__ import annotations

import pytest
import torch

from robustflow.nn import ElementwiseTransform, Injector
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
    layer = Injector(
        CHANNELS, CONTEXT_CHANNELS, transform, hidden_channels=8, spatial_dims=len(spatial)
    )
    z, context = normal(2, CHANNELS, *spatial), normal(2, CONTEXT_CHANNELS, *spatial)
    assert_is_a_flow_layer(perturbed(layer), z, context)


@pytest.mark.parametrize("transform", SPLINES, ids=repr)
def test_a_new_spline_injector_is_the_identity(transform: ElementwiseTransform) -> None:
    layer = Injector(CHANNELS, CONTEXT_CHANNELS, transform)
    assert_is_the_identity(
        layer, torch.randn(2, CHANNELS, 4, 4), torch.randn(2, CONTEXT_CHANNELS, 4, 4)
    )


def test_one_context_serves_a_batch_as_copies_of_it_would() -> None:
    layer = perturbed(Injector(CHANNELS, CONTEXT_CHANNELS))
    assert_one_context_serves_a_batch(
        layer, normal(4, CHANNELS, 4, 4), normal(1, CONTEXT_CHANNELS, 4, 4)
    )


def test_needs_a_context() -> None:
    with pytest.raises(ValueError, match="context"):
        Injector(4, 2)(torch.randn(2, 4))
