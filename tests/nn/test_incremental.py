"""Autoregressive inverses without gradients: every unit of the conditioner is computed once."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow.nn.incremental import (
    ELEMENTWISE,
    Add,
    Masked,
    Operation,
    PlannedNetwork,
    incremental_inverse,
    make_plan,
)
from tests.nn.checks import normal, perturbed

pytestmark = pytest.mark.usefixtures("without_fused_layers")

FEATURES, CONTEXT_FEATURES = 5, 2


class Counted:
    """How many numbers the linear layers made, each once for each sample."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        linear = nn.functional.linear

        def counting(*args: Any) -> Tensor:
            out = linear(*args)
            self.made += out.numel()
            return out

        monkeypatch.setattr(nn.functional, "linear", counting)


@pytest.mark.parametrize("features", [1, 2, FEATURES])
@pytest.mark.parametrize("context_features", [0, CONTEXT_FEATURES])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "transform",
    [rnn.Affine(), rnn.ModifiedRQSpline(), rnn.RQSpline(4, tail_bound=3.0)],
    ids=lambda transform: type(transform).__name__,
)
def test_equals_the_passes(
    transform: Any,
    reverse: bool,
    context_features: int,
    features: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = perturbed(
        rnn.Autoregressive(
            features, context_features, transform, hidden_features=12, reverse=reverse
        )
    )
    y = 2 * normal(7, features)
    for contexts in (7, 1):
        context = normal(contexts, context_features) if context_features else None
        expected = layer(y, context, inverse=True)
        assert expected[0].requires_grad
        state = layer.project(context)
        with torch.no_grad():
            counted = Counted(monkeypatch)
            found = layer.transform_with(y, state, inverse=True)
        torch.testing.assert_close(found, tuple(each.detach() for each in expected))
        assert counted.made == 7 * (12 + 12 + features * transform.num_params)


def test_what_it_leaves_to_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changed the network, or watches it, is asked as often as before."""
    y = normal(3, FEATURES)
    calls: list[int] = []

    def watched() -> rnn.Autoregressive:
        layer = rnn.Autoregressive(FEATURES, hidden_features=8).double()
        layer.conditioner.get_submodule("trunk.1").register_forward_hook(lambda *_: calls.append(1))
        return layer

    class Own(rnn.MaskedConditioner):
        def forward(self, z1: Tensor, projected: Tensor | None = None) -> Tensor:
            calls.append(1)
            return super().forward(z1, projected)

    own = rnn.Autoregressive(
        FEATURES, conditioner=Own(FEATURES, 0, FEATURES * 4, hidden_features=8)
    ).double()
    with torch.no_grad():
        for layer in (watched(), own):
            calls.clear()
            layer(y, inverse=True)
            assert len(calls) == FEATURES
        layer = rnn.Autoregressive(FEATURES, hidden_features=8)
        counted = Counted(monkeypatch)
        layer(y.float(), inverse=True)
        once = counted.made
        with torch.autocast("cpu", torch.bfloat16):
            layer(y.float(), inverse=True)
        assert counted.made - once == FEATURES * once


def test_the_plan_follows_the_module() -> None:
    layer = perturbed(rnn.Autoregressive(FEATURES, CONTEXT_FEATURES, hidden_features=8))
    y, context = normal(3, FEATURES), normal(3, CONTEXT_FEATURES)
    with torch.no_grad():
        expected = layer(y, context, inverse=True)
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            torch.testing.assert_close(copied(y, context, inverse=True), expected)
        single = copy.deepcopy(layer).float()
        found = single(y.float(), context.float(), inverse=True)
        torch.testing.assert_close(found[0].double(), expected[0], atol=1e-4, rtol=1e-4)
        # Another mask: the last feature first.
        other = rnn.Autoregressive(FEATURES, CONTEXT_FEATURES, hidden_features=8, reverse=True)
        for mine, its in zip(layer.modules(), other.modules(), strict=True):
            if isinstance(mine, rnn.masked.MaskedLinear):
                mine.mask = its.get_buffer("mask")
        x, _ = layer(y, context, inverse=True)
        torch.testing.assert_close(layer(x, context)[0], y, atol=1e-4, rtol=1e-4)


def masked(outputs: int, inputs: int, connected: Any) -> Masked:
    mask = torch.tensor(
        [[float(connected(i, j)) for j in range(inputs)] for i in range(outputs)],
        dtype=torch.float64,
    )
    return Masked(normal(outputs, inputs), normal(outputs), mask)


def test_a_graph_of_features_with_residual_connections_and_a_context() -> None:
    """Features 1 and 2 read feature 0 alone, and are had in one step; feature 3 reads all."""
    parents: dict[int, set[int]] = {0: set(), 1: {0}, 2: {0}, 3: {0, 1, 2}}
    # Hidden unit u is of feature u % 4: it reads that feature's parents, and the context (4).
    first = masked(8, 5, lambda u, j: j == 4 or j in parents[u % 4])
    inner = masked(8, 8, lambda u, v: parents[v % 4] <= parents[u % 4])
    last = masked(8, 8, lambda p, u: parents[u % 4] <= parents[p // 2])
    operations: list[Operation] = [first, nn.Tanh(), inner, nn.Tanh(), inner, Add(2), last]
    plan = make_plan(operations, 4, 1)
    assert plan is not None and plan.features == (slice(0, 1), slice(1, 3), slice(3, 4))

    def network(x: Tensor, context: Tensor) -> Tensor:
        def run(layer: Masked, value: Tensor) -> Tensor:
            return nn.functional.linear(value, layer.weight * layer.mask, layer.bias)

        hidden = run(first, torch.cat([x, context], 1)).tanh()
        hidden = hidden + run(inner, run(inner, hidden).tanh())
        return run(last, hidden).view(-1, 4, 2)

    y, context = normal(6, 4), normal(6, 1)
    found = incremental_inverse(
        PlannedNetwork(operations, plan), y, lambda y, p: y * p[..., 0].exp() + p[..., 1], context
    )
    params = network(found, context)
    torch.testing.assert_close(found, y * params[..., 0].exp() + params[..., 1])


@pytest.mark.parametrize("why", ["a cycle", "a residual of the input", "sums of unlike units"])
def test_what_has_no_plan(why: str) -> None:
    operations: list[Operation] = [masked(2, 2, lambda i, j: i > j), nn.ReLU()]
    if why == "a cycle":
        operations.append(masked(2, 2, lambda i, j: True))
    elif why == "a residual of the input":
        operations += [Add(0), masked(2, 2, lambda i, j: i >= j)]
    else:  # unit 0 of the second layer can be computed before unit 1, of the first after it
        operations += [masked(2, 2, lambda i, j: i <= j), Add(1), masked(2, 2, lambda i, j: i > j)]
    assert make_plan(operations, 2) is None


def test_every_elementwise_class_is() -> None:
    x = normal(6, 4)
    for kind in ELEMENTWISE:
        module = kind()
        torch.testing.assert_close(module(x)[:, 1:3], module(x[:, 1:3]), msg=kind.__name__)
        assert not list(module.parameters())


def test_whoever_has_a_say_is_asked() -> None:
    """A hook, a replaced part or a method of one's own changes the result as it does by passes."""
    y, context = normal(3, FEATURES), normal(3, CONTEXT_FEATURES)

    class Half(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) / 2

    class Own(rnn.Autoregressive):
        def params_of(self, z1: Tensor, state: Any) -> Tensor:
            return super().params_of(z1, state) / 2

    def hooked(name: str) -> rnn.Autoregressive:
        layer = rnn.Autoregressive(FEATURES, CONTEXT_FEATURES, hidden_features=8)
        layer.conditioner.get_submodule(name).register_forward_hook(lambda m, i, out: out / 2)
        return layer

    def replaced(name: str, part: Any) -> rnn.Autoregressive:
        layer = rnn.Autoregressive(FEATURES, CONTEXT_FEATURES, hidden_features=8)
        setattr(layer.conditioner, name, part(getattr(layer.conditioner, name)))
        return layer

    layers = {
        "hook of the conditioner": hooked(""),
        "hook of the trunk": hooked("trunk"),
        "another trunk": replaced("trunk", lambda trunk: Half(*trunk)),
        "a longer trunk": replaced("trunk", lambda trunk: nn.Sequential(*trunk, Half())),
        "a nested trunk": replaced(
            "trunk", lambda trunk: nn.Sequential(trunk[0], nn.Sequential(*trunk[1:3]), trunk[3])
        ),
        "another method": Own(FEATURES, CONTEXT_FEATURES, hidden_features=8),
        "another forward": replaced("forward", lambda own: lambda *args: own(*args) / 2),
    }
    for name, layer in layers.items():
        layer = perturbed(layer)
        expected = layer(y, context, inverse=True)[0].detach()
        with torch.no_grad():
            torch.testing.assert_close(layer(y, context, inverse=True)[0], expected, msg=name)


def test_a_mask_that_is_written_to() -> None:
    layer = perturbed(rnn.Autoregressive(FEATURES, hidden_features=8))
    other = perturbed(rnn.Autoregressive(FEATURES, hidden_features=8, reverse=True))
    y = normal(3, FEATURES)
    with torch.no_grad():
        layer(y, inverse=True)
        for mine, its in zip(layer.modules(), other.modules(), strict=True):
            if isinstance(mine, rnn.masked.MaskedLinear):
                mine.mask.copy_(its.get_buffer("mask"))
        x, _ = layer(y, inverse=True)
        torch.testing.assert_close(layer(x)[0], y, atol=1e-6, rtol=1e-6)


def test_errors_are_the_plain_ways() -> None:
    layer = rnn.Autoregressive(FEATURES, CONTEXT_FEATURES, hidden_features=8).double()
    with torch.no_grad():
        with pytest.raises(ValueError, match="called with what its project"):
            layer.transform_with(normal(3, FEATURES), None, inverse=True)
        with pytest.raises(ValueError, match="context"):
            layer(normal(1, FEATURES), normal(6, CONTEXT_FEATURES), inverse=True)
        x, logabsdet = layer.to("meta")(
            normal(3, FEATURES).to("meta"), normal(3, CONTEXT_FEATURES).to("meta"), inverse=True
        )
    assert x.is_meta and logabsdet.shape == (3,)
