"""Conditioners: projecting contexts once is exact, and any module can be one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustflow.nn import ConditionalFlow, Conditioner, Coupling, Injector
from robustflow.nn.conditioner import project_together
from tests.nn.checks import assert_is_a_flow_layer, normal, perturbed

CHANNELS, CONTEXT_CHANNELS = 5, 3


class OwnConditioner(nn.Module):
    """What a user might write: one part, no project."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2 + CONTEXT_CHANNELS, out_channels, 3, padding=1)

    def forward(self, z1: Tensor, context: Tensor) -> Tensor:
        return self.layer(torch.cat([z1, context], dim=1))


def test_any_module_can_be_the_conditioner() -> None:
    own_coupling = OwnConditioner(3 * 4)
    own_injector = nn.Conv2d(CONTEXT_CHANNELS, CHANNELS * 4, 1)
    z, context = normal(2, CHANNELS, 4, 4), normal(2, CONTEXT_CHANNELS, 4, 4)
    injector = perturbed(Injector(CHANNELS, CONTEXT_CHANNELS, conditioner=own_injector))
    coupling = perturbed(Coupling(CHANNELS, CONTEXT_CHANNELS, conditioner=own_coupling))
    assert_is_a_flow_layer(injector, z, context)
    assert_is_a_flow_layer(coupling, z, context)
    flow = ConditionalFlow([[injector, coupling]])
    expected = coupling(injector(z, context)[0], context)[0]
    torch.testing.assert_close(flow(z, context)[0][0], expected)
    assert flow.sample(3, context).shape == (2, 3, CHANNELS, 4, 4)


def test_projecting_together_equals_projecting_one_by_one() -> None:
    conditioners = [
        perturbed(Conditioner(z_channels, 4, 6, hidden_channels=hidden))
        for z_channels, hidden in ((0, 8), (3, 8), (3, 16))
    ]
    context = normal(2, 4, 5, 5).requires_grad_()
    names = ("context_layer.weight", "context_layer.bias")
    leaves = [context, *(c.get_parameter(name) for c in conditioners for name in names)]
    together = project_together(conditioners, context)
    one_by_one = [conditioner.project(context) for conditioner in conditioners]
    torch.testing.assert_close(together, one_by_one, atol=1e-12, rtol=1e-12)
    gradients = [
        torch.autograd.grad(
            torch.cat([p.square().flatten() for p in way]).sum(), leaves, allow_unused=True
        )
        for way in (together, one_by_one)
    ]
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=1e-10)


class ScaledConditioner(Conditioner):
    """A user's change to what is projected."""

    def project(self, context: Tensor) -> Tensor:
        return super().project(3 * context)


def test_a_replaced_project_is_called_by_the_flow() -> None:
    own = ScaledConditioner(0, CONTEXT_CHANNELS, CHANNELS * 4)
    layers = [
        perturbed(Injector(CHANNELS, CONTEXT_CHANNELS, conditioner=own)),
        perturbed(Injector(CHANNELS, CONTEXT_CHANNELS)),
    ]
    z, context = normal(2, CHANNELS, 4, 4), normal(2, CONTEXT_CHANNELS, 4, 4)
    latents, _ = ConditionalFlow([layers])(z, context)
    torch.testing.assert_close(latents[0], layers[1](layers[0](z, context)[0], context)[0])


def test_conditioner_in_two_parts_is_a_convolution_of_the_concatenation() -> None:
    conditioner = perturbed(Conditioner(3, 4, 6, hidden_channels=8))
    z1, context = normal(2, 3, 5, 5), normal(2, 4, 5, 5)
    z_layer, context_layer = conditioner.z_layer, conditioner.context_layer
    assert isinstance(z_layer, nn.Conv2d) and isinstance(context_layer, nn.Conv2d)
    weight = torch.cat([z_layer.weight, context_layer.weight], dim=1)
    hidden = nn.functional.conv2d(
        torch.cat([z1, context], dim=1), weight, context_layer.bias, padding=1
    )
    torch.testing.assert_close(
        conditioner(z1, conditioner.project(context)), conditioner.trunk(hidden)
    )


def test_wrong_sizes_are_errors() -> None:
    with pytest.raises(ValueError, match="odd"):
        Conditioner(2, 2, 2, kernel_size=2)
    with pytest.raises(ValueError, match="spatial_dims"):
        Conditioner(2, 2, 2, spatial_dims=4)
