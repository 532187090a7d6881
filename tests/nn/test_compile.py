"""Whole flows in one graph whose batch size varies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow.nn import (
    CircularBase,
    CircularShift,
    ConditionalFlow,
    Coupling,
    ModifiedRQSpline,
    PhaseShift,
    RQSplineCoupling,
    Split,
    Squeeze,
    flow_step,
)
from tests.nn.checks import normal, perturbed
from tests.nn.two_level_flow import two_level_flow


class TwoSizes(nn.Module):
    def forward(self, low: Tensor) -> list[Tensor]:
        return [low, nn.functional.avg_pool2d(low, 2)]


def pictures() -> ConditionalFlow:
    options: Any = {"hidden_channels": 8}
    levels = [
        [Squeeze(), *flow_step(4, 3, ModifiedRQSpline(), **options), Split(4, 3, **options)],
        [Squeeze(), *flow_step(8, 3, ModifiedRQSpline(), **options)],
    ]
    return ConditionalFlow(levels, TwoSizes())


def torus() -> ConditionalFlow:
    options: Any = {"spatial_dims": 0, "hidden_channels": 8}
    layers: list[nn.Module] = [
        PhaseShift(3, bound=(3.0, None, 3.0)),
        RQSplineCoupling(
            3, 2, tails=("circular", "linear", "circular"), tail_bound=(3.0, 2.0, 3.0), **options
        ),
        Coupling(3, 2, CircularShift((3.0, None, 3.0)), reverse=True, **options),
    ]
    return ConditionalFlow([layers], base=CircularBase(3, bound=(3.0, None, 3.0)))


@pytest.mark.parametrize("make", [pictures, torus])
def test_batch_sizes_vary_in_one_graph(make: Any) -> None:
    torch.compiler.reset()
    flow = perturbed(make(), 0.1).float().eval()
    shapes = ((1, 8, 12), (3, 4, 6)) if make is pictures else ((3,), (2,))
    log_prob = torch.compile(flow.log_prob, fullgraph=True, dynamic=True, backend="eager")
    inverse = torch.compile(flow.inverse, fullgraph=True, dynamic=True, backend="eager")
    for number in (2, 5, 4):
        x, context = (torch.randn(number, *shape) for shape in shapes)
        torch.testing.assert_close(log_prob(x, context), flow.log_prob(x, context))
        latents, _ = flow(x, context)
        torch.testing.assert_close(inverse(latents, context), flow.inverse(latents, context))
        with pytest.raises(Exception, match="must have the batch size of z, or 1"):
            log_prob(x, torch.randn(number + 1, *shapes[1]))


def gradients(function: Any, flow: ConditionalFlow, *given: Any) -> Any:
    """Results, and the gradients of their sum of squares by all weights."""
    found = function(*given)
    parts = torch.utils._pytree.tree_leaves(found)
    loss = sum(part.square().sum() for part in parts)
    weights = list(flow.parameters())
    return found, torch.autograd.grad(loss, weights, allow_unused=True)


@pytest.mark.parametrize("make", [pictures, torus])
def test_gradients_are_eager_ones_for_any_marked_batch_size(make: Any) -> None:
    """Forward and backward in one graph each; a further batch size compiles nothing."""
    torch.compiler.reset()
    flow = perturbed(make(), 0.1).eval()
    shapes = ((1, 8, 12), (3, 4, 6)) if make is pictures else ((3,), (2,))
    log_prob, inverse = (
        torch.compile(function, fullgraph=True, backend="aot_eager")
        for function in (flow.log_prob, flow.inverse)
    )
    for number in (5, 3):
        given = [torch.randn(number, *shape, dtype=torch.float64) for shape in shapes]
        latents = [latent.detach() for latent in flow(*given)[0]]
        for tensor in (*given, *latents):
            torch._dynamo.mark_dynamic(tensor, 0)
        stance = "default" if number == 5 else "fail_on_recompile"
        with torch.compiler.set_stance(stance):
            found = [
                gradients(log_prob, flow, *given),
                gradients(inverse, flow, latents, given[1]),
            ]
        expected = [
            gradients(flow.log_prob, flow, *given),
            gradients(flow.inverse, flow, latents, given[1]),
        ]
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_the_cpp_wrapper_has_eager_gradients() -> None:
    """The option that docs/compile.md is about; Inductor's own code, forward and backward."""
    torch.compiler.reset()
    layer = RQSplineCoupling(4, num_bins=4, tail_bound=3.0, spatial_dims=0, hidden_channels=8)
    flow = perturbed(ConditionalFlow([[layer]]), 0.1)
    x = torch.randn(6, 4, dtype=torch.float64)
    compiled = torch.compile(flow.log_prob, fullgraph=True, options={"cpp_wrapper": True})
    torch.testing.assert_close(
        gradients(compiled, flow, x), gradients(flow.log_prob, flow, x), rtol=1e-9, atol=1e-9
    )


def test_flow_compiles_without_graph_breaks() -> None:
    flow = two_level_flow(ModifiedRQSpline())
    x, low = normal(2, 3, 8, 4), normal(2, 3, 4, 2)
    log_prob = torch.compile(flow.log_prob, fullgraph=True, backend="eager")
    torch.testing.assert_close(log_prob(x, low), flow.log_prob(x, low))
    inverse = torch.compile(flow.inverse, fullgraph=True, backend="eager")
    latents, _ = flow(x, low)
    torch.testing.assert_close(inverse(latents, low), flow.inverse(latents, low))
