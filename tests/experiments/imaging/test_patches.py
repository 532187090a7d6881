"""Flows of patches: what PatchNR makes of them is their density."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow.experiments.imaging.patches import PatchFlow

SIDE = 6


def off_the_identity(flow: rnn.ConditionalFlow) -> rnn.ConditionalFlow:
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return flow.eval()


def of_vectors() -> PatchFlow:
    layers = [rnn.RQSplineCoupling(SIDE**2, spatial_dims=0, reverse=turn) for turn in (False, True)]
    return PatchFlow(off_the_identity(rnn.ConditionalFlow([layers])))


def of_pictures() -> PatchFlow:
    """Two levels, of which the first sends out half of its channels."""
    first = [rnn.Squeeze(2), *rnn.flow_step(4, 0, rnn.ModifiedRQSpline()), rnn.Split(4)]
    last = rnn.flow_step(2, 0, rnn.ModifiedRQSpline())
    return PatchFlow(off_the_identity(rnn.ConditionalFlow([first, last])), (1, SIDE, SIDE))


def density(flow: PatchFlow, patches: Tensor) -> Tensor:
    x = patches if flow.shape is None else patches.unflatten(1, flow.shape)
    return flow.flow.log_prob(x)


@pytest.mark.parametrize("make", [of_vectors, of_pictures])
def test_there_and_back(make: Callable[[], PatchFlow]) -> None:
    flow = make()
    patches = torch.rand(5, SIDE**2)
    latents, logabsdet = flow(patches)
    back, inverse = flow(latents, rev=True)
    torch.testing.assert_close(back, patches, atol=1e-5, rtol=0)
    torch.testing.assert_close(inverse, -logabsdet, atol=1e-3, rtol=0)


def test_a_flow_that_is_none_of_patches() -> None:
    with_context = rnn.ConditionalFlow([rnn.flow_step(4, 3, rnn.ModifiedRQSpline())])
    with pytest.raises(ValueError, match="takes a context"):
        PatchFlow(with_context)
    base = torch.distributions.Uniform(torch.zeros(4), torch.ones(4))
    layers: list[nn.Module] = [rnn.RQSplineCoupling(4, spatial_dims=0)]
    other = rnn.ConditionalFlow([layers], base=torch.distributions.Independent(base, 1))
    with pytest.raises(ValueError, match="standard normal"):
        PatchFlow(other)


@pytest.mark.parametrize("make", [of_vectors, of_pictures])
def test_patchnr_is_the_negative_log_density(make: Callable[[], PatchFlow]) -> None:
    optim = pytest.importorskip("deepinv.optim", reason="pip install 'robustflow[deepinv]'")
    flow = make()
    prior = optim.PatchNR(normalizing_flow=flow, patch_size=SIDE, channels=1)
    patches = torch.rand(2, 7, SIDE**2)
    constant = SIDE**2 / 2 * math.log(2 * math.pi)
    expected = -density(flow, patches.flatten(0, 1)).view(2, 7) - constant
    torch.testing.assert_close(prior.fn(patches), expected, rtol=1e-5, atol=1e-3)


def test_a_step_along_the_gradient_of_a_picture_makes_it_likelier() -> None:
    optim = pytest.importorskip("deepinv.optim", reason="pip install 'robustflow[deepinv]'")
    flow = of_vectors()
    prior = optim.PatchPrior(
        optim.PatchNR(normalizing_flow=flow, patch_size=SIDE), n_patches=-1, patch_size=SIDE
    )
    x = torch.rand(1, 1, 12, 12)
    gradient = prior.grad(x).detach()
    with torch.no_grad():
        change = prior.fn(x - 1e-3 * gradient) - prior.fn(x)
    assert float(change) == pytest.approx(-1e-3 * float(gradient.square().sum()), rel=0.05)
