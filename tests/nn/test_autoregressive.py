"""The autoregressive layer: its Jacobian is triangular, and D passes invert it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from robustflow.nn import (
    Affine,
    Autoregressive,
    ConditionalFlow,
    MaskedConditioner,
    ModifiedRQSpline,
    RQSplineAutoregressive,
)
from tests.nn.checks import assert_is_a_flow_layer, normal, perturbed

FEATURES, CONTEXT_FEATURES = 5, 2


@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("context_features", [0, CONTEXT_FEATURES])
@pytest.mark.parametrize("reverse", [False, True])
def test_inverts_with_the_jacobians_determinant(
    reverse: bool, context_features: int, features: int
) -> None:
    layer = perturbed(
        RQSplineAutoregressive(features, context_features, hidden_features=12, reverse=reverse)
    )
    context = normal(3, context_features) if context_features else None
    assert_is_a_flow_layer(layer, 2 * normal(3, features), context)


@pytest.mark.parametrize("transform", [Affine(), ModifiedRQSpline()], ids=repr)
def test_with_other_transforms(transform: Any) -> None:
    layer = perturbed(Autoregressive(FEATURES, CONTEXT_FEATURES, transform, hidden_features=16))
    assert_is_a_flow_layer(layer, normal(3, FEATURES), normal(3, CONTEXT_FEATURES))


@pytest.mark.parametrize("context_features", [0, CONTEXT_FEATURES])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_jacobian_is_triangular_and_full(reverse: bool, context_features: int) -> None:
    """No feature sees a later one, and (somewhere among 64 points) each sees all before it."""
    layer = perturbed(
        RQSplineAutoregressive(FEATURES, context_features, hidden_features=16, reverse=reverse)
    )
    z = normal(64, FEATURES)
    context = normal(64, context_features) if context_features else None
    # Points do not mix, so the sum over them has each point's Jacobian in its place.
    jacobian = torch.autograd.functional.jacobian(lambda z: layer(z, context)[0].sum(0), z)
    seen = (jacobian != 0).any(dim=1)  # (output, input)
    triangle = torch.ones(FEATURES, FEATURES, dtype=torch.bool).tril()
    assert torch.equal(seen, triangle.T if reverse else triangle)
    if context is not None:
        jacobian = torch.autograd.functional.jacobian(lambda c: layer(z, c)[0].sum(0), context)
        assert bool((jacobian != 0).any(dim=1).all())  # the first feature too


def test_a_new_layer_is_the_identity() -> None:
    z = torch.randn(4, FEATURES)
    y, logabsdet = RQSplineAutoregressive(FEATURES, CONTEXT_FEATURES)(
        z, torch.randn(1, CONTEXT_FEATURES)
    )
    torch.testing.assert_close(y, z, atol=2e-6, rtol=0)
    torch.testing.assert_close(logabsdet, torch.zeros(4), atol=5e-6, rtol=0)


def test_gradients_in_both_directions() -> None:
    layer = perturbed(RQSplineAutoregressive(3, 2, num_bins=3, hidden_features=4))
    inputs = (normal(2, 3).requires_grad_(), normal(2, 2).requires_grad_())
    assert torch.autograd.gradcheck(layer, inputs)
    assert torch.autograd.gradcheck(lambda y, c: layer(y, c, inverse=True), inputs)


def test_every_parameter_learns() -> None:
    layer = perturbed(RQSplineAutoregressive(FEATURES, CONTEXT_FEATURES, hidden_features=16))
    y, logabsdet = layer(normal(64, FEATURES), normal(64, CONTEXT_FEATURES))
    (y.square().sum() - logabsdet.sum()).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


def test_a_flow_projects_its_conditioners_together() -> None:
    layers = [
        perturbed(RQSplineAutoregressive(FEATURES, CONTEXT_FEATURES, reverse=turn))
        for turn in (False, True)
    ]
    z, context = normal(4, FEATURES), normal(4, CONTEXT_FEATURES)
    (latent,), logabsdet = ConditionalFlow([layers])(z, context)
    expected, total = z, torch.zeros(())
    for layer in layers:
        expected, change = layer(expected, context)
        total = total + change
    torch.testing.assert_close((latent, logabsdet), (expected, total), atol=1e-10, rtol=1e-10)


class Strict(nn.Module):
    """A user's conditioner: parameters from the sum of the features before."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(4))

    def forward(self, z: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        before = z.cumsum(dim=1) - z + context.sum(dim=1, keepdim=True)
        return (before[:, :, None] * self.slope).flatten(1)


def test_a_users_conditioner() -> None:
    layer = perturbed(Autoregressive(FEATURES, CONTEXT_FEATURES, conditioner=Strict()))
    assert_is_a_flow_layer(layer, normal(3, FEATURES), normal(3, CONTEXT_FEATURES))
    one, copies = normal(1, CONTEXT_FEATURES), normal(3, FEATURES)
    expected = layer(copies, one.repeat(3, 1))
    torch.testing.assert_close(layer(copies, one), expected, atol=0, rtol=0)


def test_wrong_uses() -> None:
    with pytest.raises(ValueError, match="hidden_features must be at least 5"):
        RQSplineAutoregressive(5, hidden_features=4)
    with pytest.raises(ValueError, match="features must be a whole number of at least 1"):
        MaskedConditioner(0, 1, 0)
    layer = RQSplineAutoregressive(5, 2)
    with pytest.raises(ValueError, match="needs a context of 2 channels"):
        layer(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="z must have 0 spatial"):
        layer(torch.zeros(2, 5, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="batch size of z, or 1"):
        layer(torch.zeros(2, 5), torch.zeros(3, 2))


def test_why_an_inverse_takes_passes_is_said(caplog: pytest.LogCaptureFixture) -> None:
    layer, z = Autoregressive(4), torch.randn(5, 4)
    with caplog.at_level("DEBUG", "robustflow.nn"):
        with torch.no_grad(), torch.device("meta"):
            layer(z, inverse=True)
        assert "takes D passes" not in caplog.text
        layer(z, inverse=True)
    assert "gradients are enabled" in caplog.text
