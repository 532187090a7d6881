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
from tests.nn.checks import perturbed


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
