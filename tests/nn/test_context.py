"""A context is used or refused: it is never left out of account without a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow.nn import (
    ActNorm,
    Condition,
    ConditionalFlow,
    Coupling,
    RQSplineAutoregressive,
    RQSplineCoupling,
    RQSplineInjector,
    Split,
)
from tests.nn.checks import normal, perturbed

D, CONTEXT = 4, 3

Call = Callable[[ConditionalFlow, Any], Any]
CALLS: dict[str, Call] = {
    "log_prob": lambda flow, c: flow.log_prob(normal(2, D), c),
    "forward": lambda flow, c: flow(normal(2, D), c),
    "inverse": lambda flow, c: flow.inverse((normal(2, D),), c),
    "sample": lambda flow, c: flow.sample(2, c),
    "condition": lambda flow, c: flow.condition(c),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))


def conditional() -> ConditionalFlow:
    layers = [RQSplineInjector(D, CONTEXT, spatial_dims=0), Coupling(D, CONTEXT, spatial_dims=0)]
    return perturbed(ConditionalFlow([layers]))


@each_call
def test_a_flow_that_takes_none_refuses_a_context(call: Call) -> None:
    layers = [ActNorm(D), RQSplineCoupling(D, spatial_dims=0), RQSplineAutoregressive(D)]
    flow = perturbed(ConditionalFlow([layers]))
    assert not flow.needs_context
    for context in (normal(2, CONTEXT), normal(7, CONTEXT), [normal(2, CONTEXT)]):
        with pytest.raises(ValueError, match="context was given, but no layer"):
            call(flow, context)


@pytest.mark.parametrize("kind", [Coupling, RQSplineCoupling, Split, RQSplineAutoregressive])
def test_a_layer_that_takes_none_refuses_a_context(kind: Any) -> None:
    options = {} if kind is RQSplineAutoregressive else {"spatial_dims": 0}
    layer = kind(D, **options).double()
    with pytest.raises(ValueError, match=r"takes no context: .* context_channels=3"):
        layer(normal(2, D), normal(2, CONTEXT))


def test_an_encoder_that_no_layer_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="encoder was given, but no layer takes"):
        ConditionalFlow([[ActNorm(D)]], nn.Linear(CONTEXT, CONTEXT))


@pytest.mark.parametrize("number", [0, 3, 5])
def test_another_batch_size_is_refused(number: int) -> None:
    flow = conditional()
    for call in (CALLS["log_prob"], CALLS["forward"], CALLS["inverse"]):
        with pytest.raises(ValueError, match=f"batch size of z, or 1: it has {number}, z has 2"):
            call(flow, normal(number, CONTEXT))


class OwnConditioner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D // 2 + CONTEXT, D // 2 * 4)

    def forward(self, z1: Tensor, context: Tensor) -> Tensor:
        return self.layer(torch.cat([z1, context], dim=1))


def test_another_batch_size_is_refused_before_a_users_conditioner_sees_it() -> None:
    layer = Coupling(D, CONTEXT, conditioner=OwnConditioner()).double()
    with pytest.raises(ValueError, match="batch size of z, or 1: it has 3, z has 2"):
        layer(normal(2, D), normal(3, CONTEXT))


class Uneven(nn.Module):
    """Features of another batch size in each level."""

    def forward(self, context: Tensor) -> list[Tensor]:
        return [context, context[:1]]


def test_features_of_uneven_batch_sizes_are_refused() -> None:
    levels: list[list[nn.Module]] = [
        [Split(D, CONTEXT, spatial_dims=0)],
        [Coupling(2, CONTEXT, spatial_dims=0)],
    ]
    flow = ConditionalFlow(levels, Uneven()).double()
    with pytest.raises(ValueError, match=r"one batch size, got \[3, 1\]"):
        flow.condition(normal(3, CONTEXT))


def test_a_condition_is_checked() -> None:
    flow, x = conditional(), normal(2, D)
    condition = flow.condition(normal(2, CONTEXT))
    expected = flow.log_prob(x, condition=condition)
    assert expected.shape == (2,)
    wrong: Any = normal(2, CONTEXT)
    for call in (flow.log_prob, flow):
        with pytest.raises(TypeError, match="condition must be what"):
            call(x, condition=wrong)
    other = ConditionalFlow([[Coupling(D, CONTEXT, spatial_dims=0)]]).double()
    with pytest.raises(ValueError, match=r"another flow: its levels have \[1\] layers.*\[2\]"):
        flow.log_prob(x, condition=other.condition(normal(2, CONTEXT)))
    unconditional = ConditionalFlow([[ActNorm(D), ActNorm(D)]]).double()
    with pytest.raises(ValueError, match="condition was given, but no layer of this flow"):
        unconditional.sample(2, condition=condition)
    assert isinstance(condition, Condition)
