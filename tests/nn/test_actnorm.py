"""ActNorm: its inverse, and its first batch, which sets the layer where it tells enough."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustflow.compat.srflow import ActNorm as SRFlowActNorm
from robustflow.compat.srflow import Conditioner as SRFlowConditioner
from robustflow.nn import ActNorm, ConditionalFlow, RQSplineCoupling
from tests.nn.checks import assert_is_a_flow_layer, normal, perturbed

CHANNELS = 6

# From a first batch to bias and log-scale, by the layer and by SRFlow's.
Set = Callable[[Tensor], tuple[Tensor, Tensor]]


def by_layer(first: Tensor) -> tuple[Tensor, Tensor]:
    norm = ActNorm(CHANNELS)
    norm(first)
    return norm.bias.detach(), norm.log_scale.detach()


def by_srflow(first: Tensor) -> tuple[Tensor, Tensor]:
    norm = SRFlowActNorm(CHANNELS)
    norm.initialise(first[:, :, None, None])
    return norm.bias.detach().flatten(), norm.logs.detach().flatten()


each_layer = pytest.mark.parametrize("settings_of", [by_layer, by_srflow])


def rows(number: int) -> Tensor:
    return torch.randn(number, CHANNELS) * torch.logspace(-2, 2, CHANNELS) + 3


@each_layer
def test_an_ordinary_batch_is_standardised(settings_of: Set) -> None:
    first = rows(64)
    bias, log_scale = settings_of(first)
    torch.testing.assert_close(bias, -first.mean(0), atol=0, rtol=1e-5)
    torch.testing.assert_close(log_scale, -first.std(0, correction=0).log(), atol=1e-3, rtol=0)


@each_layer
@pytest.mark.parametrize("value", [0.0, 0.25, 0.1, -3e5, 1e-30])
def test_a_constant_channel_is_shifted_but_not_scaled(settings_of: Set, value: float) -> None:
    first = rows(63)
    expected, expected_scale = settings_of(first)
    first[:, 2] = value
    bias, log_scale = settings_of(first)
    assert log_scale[2] == 0
    torch.testing.assert_close(bias[2], torch.tensor(-value), atol=0, rtol=1e-6)
    others = [0, 1, 3, 4, 5]
    assert torch.equal(bias[others], expected[others])
    assert torch.equal(log_scale[others], expected_scale[others])


@each_layer
def test_a_channel_that_only_rounding_moves_is_not_scaled(settings_of: Set) -> None:
    first = rows(64)
    first[:, 1] = 0.7
    first[::3, 1] = math.nextafter(0.7, 1.0)
    first[1::3, 1] *= 1 + 2**-23
    assert len(first[:, 1].unique()) > 1
    assert settings_of(first)[1][1] == 0


@each_layer
@pytest.mark.parametrize("number", [1, 2, 3])
def test_few_values_do_not_tell_a_deviation(settings_of: Set, number: int) -> None:
    first = rows(number)
    bias, log_scale = settings_of(first)
    torch.testing.assert_close(bias, -first.mean(0))
    assert not log_scale.any()


def test_positions_are_values_too() -> None:
    """One picture tells the deviation of its channels."""
    first = 7 * torch.randn(1, 3, 8, 8)
    norm = ActNorm(3)
    y, _ = norm(first)
    torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


@each_layer
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_elements_that_are_not_finite_are_left_out(settings_of: Set, bad: float) -> None:
    first = rows(64)
    expected = [settings_of(first[1:]), settings_of(first)]
    first[0, 1] = bad
    bias, log_scale = settings_of(first)
    for channel, want in ((1, expected[0]), (0, expected[1]), (5, expected[1])):
        torch.testing.assert_close(bias[channel], want[0][channel])
        torch.testing.assert_close(log_scale[channel], want[1][channel])
    first[:, 1] = bad
    bias, log_scale = settings_of(first)
    assert bias[1] == log_scale[1] == 0
    torch.testing.assert_close(bias[0], expected[1][0][0])


@each_layer
@pytest.mark.parametrize("size", [1e-25, 1e25, 3e38])
def test_no_square_leaves_the_range(settings_of: Set, size: float) -> None:
    unit = torch.rand(64, CHANNELS) * 2 - 1
    bias, log_scale = settings_of(unit * size)
    assert bool((bias.isfinite() & log_scale.isfinite()).all())
    deviation = unit.double().std(0, correction=0) * size + 1e-6
    torch.testing.assert_close(log_scale.double(), -deviation.log(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    first = (300 * torch.randn(1000, 2) + 1000).to(dtype)
    norm = ActNorm(2).to(dtype)
    norm(first)
    expected = -first.double().std(0, correction=0).log()
    torch.testing.assert_close(norm.log_scale.double(), expected, atol=0.02, rtol=0)
    assert bool(norm.bias.isfinite().all())


@pytest.mark.parametrize("nothing", [torch.zeros(0, CHANNELS), torch.full((5, CHANNELS), math.nan)])
def test_a_batch_without_a_finite_element_is_not_the_first(nothing: Tensor) -> None:
    norm = ActNorm(CHANNELS)
    y, logabsdet = norm(nothing)
    assert y.shape == nothing.shape and logabsdet.shape == (len(nothing),)
    assert not norm.initialised and not norm.bias.any() and not norm.log_scale.any()
    first = rows(64)
    norm(first)
    assert bool(norm.initialised)
    torch.testing.assert_close((norm.bias, norm.log_scale), by_layer(first), atol=0, rtol=0)


def test_srflows_conditioner_waits_for_a_batch() -> None:
    conditioner = SRFlowConditioner(2, 3, 4, 8)
    norms = [module for module in conditioner.modules() if isinstance(module, SRFlowActNorm)]
    conditioner(torch.zeros(0, 5, 4, 4))
    assert not any(norm.inited for norm in norms)
    conditioner(torch.randn(1, 5, 1, 1))  # a batch of one value a channel
    assert all(norm.inited and not norm.logs.any() for norm in norms)


def test_a_flow_after_a_first_batch_of_one_is_a_density_still() -> None:
    flow = ConditionalFlow([[ActNorm(4), RQSplineCoupling(4, spatial_dims=0)]])
    first, x = torch.randn(1, 4), torch.randn(256, 4)
    flow.log_prob(first)
    expected = torch.distributions.Normal(first, 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(flow.log_prob(x), expected)


def test_actnorm_takes_its_state_from_the_first_batch_only() -> None:
    norm = ActNorm(3)
    batch = 5 * torch.randn(16, 3, 4, 4) + torch.tensor([-2.0, 0.0, 7.0]).view(1, 3, 1, 1)
    norm.eval()
    assert torch.equal(norm(batch)[0], batch)  # evaluation does not set anything
    norm.train()
    y, _ = norm(batch)
    torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(norm(2 * batch)[0], norm(2 * batch)[0])
    scale = norm.log_scale.detach().clone()
    norm(3 * batch)
    assert torch.equal(norm.log_scale, scale)


@pytest.mark.parametrize("copy_of", ["state_dict", "deepcopy", "pickle"])
def test_a_copied_actnorm_stays_initialised(copy_of: str) -> None:
    norm = ActNorm(3)
    norm(5 * torch.randn(16, 3))
    if copy_of == "state_dict":
        other = ActNorm(3)
        other.load_state_dict(norm.state_dict())
    else:
        other = copy.deepcopy(norm) if copy_of == "deepcopy" else pickle.loads(pickle.dumps(norm))
    other(torch.randn(16, 3))
    assert torch.equal(other.log_scale, norm.log_scale)


def test_an_uninitialised_state_initialises_after_loading() -> None:
    norm, fresh = ActNorm(3), ActNorm(3).state_dict()
    norm(5 * torch.randn(16, 3))
    norm.load_state_dict(fresh)
    y, _ = norm(9 * torch.randn(64, 3))
    torch.testing.assert_close(y.std(dim=0, correction=0), torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("spatial", [(), (3,), (4, 2)], ids=str)
def test_inverts_and_knows_its_log_determinant(spatial: tuple[int, ...]) -> None:
    layer = perturbed(ActNorm(CHANNELS), 0.1).eval()
    assert_is_a_flow_layer(layer, normal(2, CHANNELS, *spatial), None)
