"""Data of whole levels: the noise, the way back, and the bits that the levels take."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from robustflow.nn import ConditionalFlow, Dequantize, LogProb, RQSplineCoupling


@pytest.mark.parametrize("levels", [2, 3, 10, 256, 1000, 65536])
@pytest.mark.parametrize("interval", [None, (0.0, 1.0), (-1.0, 1.0)])
def test_levels_come_back(levels: int, interval: Any) -> None:
    """All of them, many times: no noise, however close to a whole number, changes one."""
    layer = Dequantize(levels, interval=interval)
    low, high = interval or (0, levels - 1)
    level = torch.arange(levels, dtype=torch.float32).repeat(2**18 // levels + 1)[:, None]
    x = low + level * ((high - low) / (levels - 1))
    z, logabsdet = layer(x)
    assert bool(((z > 0) & (z < 1)).all())
    torch.testing.assert_close(z, (level + 0.5) / levels, atol=0.5 / levels, rtol=0)
    back, minus = layer(z, inverse=True)
    torch.testing.assert_close(back, x, atol=1e-6 * max(1.0, high), rtol=0)
    assert torch.equal(((back - low) * (levels - 1) / (high - low)).round(), level)
    torch.testing.assert_close(logabsdet, torch.full((len(x),), -math.log(levels)))
    assert torch.equal(minus, -logabsdet)


def test_the_noise_is_uniform_and_new_in_every_call() -> None:
    layer, x = Dequantize(4), torch.full((200_000, 1), 2.0)
    noise = layer(x)[0] * 4 - 2
    assert not torch.equal(noise, layer(x)[0] * 4 - 2)
    shares = torch.histc(noise, 10, 0.0, 1.0) / len(x)
    torch.testing.assert_close(shares, torch.full((10,), 0.1), atol=0.003, rtol=0)


def test_probabilities_of_levels_sum_to_the_mass_of_the_density() -> None:
    """Of a standard normal on (0, 1): the mean of exp(log_prob) over the noise is a probability."""
    flow = ConditionalFlow(
        [[Dequantize(4, interval=(-1.0, 1.0)), RQSplineCoupling(2, spatial_dims=0)]]
    )
    grid = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)) * (2 / 3) - 1
    density = flow.log_prob(grid.repeat(20_000, 1)).exp()
    mass = density.view(20_000, 16).mean(0).sum()
    one = torch.distributions.Normal(0.0, 1.0)
    expected = (one.cdf(torch.tensor(1.0)) - one.cdf(torch.tensor(0.0))) ** 2
    torch.testing.assert_close(mass, expected, atol=1e-3, rtol=0)
    # A value of 4 levels whose noisy copy has density p in (0, 1) takes 2 - log2 p bits.
    bits = flow.bits_per_dim(torch.full((50_000, 2), -1.0)).mean()
    z = torch.rand(50_000, 2) / 4
    wanted = 2 - one.log_prob(z).mean() / math.log(2)
    torch.testing.assert_close(bits, wanted, atol=2e-3, rtol=0)


def test_samples_are_levels() -> None:
    flow = ConditionalFlow([[Dequantize(8), RQSplineCoupling(3, spatial_dims=0)]])
    samples, density = flow.sample_and_log_prob(500)
    assert set(samples.unique().tolist()) <= set(range(8))
    assert bool(density.isfinite().all())


def test_gradients_are_those_of_the_scaling() -> None:
    layer = Dequantize(256)
    x = torch.randint(256, (3, 2)).float().requires_grad_()
    z, _ = layer(x)
    (to_x,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(to_x, torch.full_like(x, 1 / 256))
    z = z.detach().requires_grad_()
    back, _ = layer(z, inverse=True)
    (to_z,) = torch.autograd.grad(back.sum(), z)
    torch.testing.assert_close(to_z, torch.full_like(z, 256.0))
    assert torch.equal(back, x)


@pytest.mark.parametrize("activations", ["store", "recompute", "reversible"])
def test_it_trains_whatever_a_step_keeps(activations: Any) -> None:
    layers = [Dequantize(4), RQSplineCoupling(2, spatial_dims=0)]
    flow = ConditionalFlow([layers], activations=activations)
    x = torch.randint(4, (64, 2)).float()
    gradients: list[Tensor] = []
    for each in (flow, ConditionalFlow([[layers[0], layers[1]]])):
        torch.manual_seed(1)
        each.zero_grad()
        each.log_prob(x).mean().backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None])
        )
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


def test_wrong_arguments() -> None:
    wrong: Any = Dequantize
    for levels in (1, 2.5):
        with pytest.raises(ValueError, match="levels must be a whole number of at least 2"):
            wrong(levels)
    with pytest.raises(ValueError, match="interval must be finite and increasing"):
        wrong(4, interval=(1, 0))
    with pytest.raises(TypeError, match=r"convert it with z.float\(\)"):
        Dequantize(256)(torch.zeros(2, 3, dtype=torch.uint8))


def test_log_prob_as_a_modules_forward() -> None:
    flow = ConditionalFlow([[RQSplineCoupling(4, 3, spatial_dims=0)]])
    model, x, context = LogProb(flow), torch.randn(5, 4), torch.randn(5, 3)
    assert torch.equal(model(x, context), flow.log_prob(x, context))
    condition = flow.condition(context)
    assert torch.equal(model(x, condition=condition), flow.log_prob(x, context))
    assert list(model.parameters()) == list(flow.parameters())
    wrong: Any = torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match="flow must have a method log_prob, and Linear has none"):
        LogProb(wrong)
