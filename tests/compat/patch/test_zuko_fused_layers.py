"""zuko's autoregressive and coupling layers fused: the same results, or zuko's methods."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow import compat
from robustflow.fused import is_available
from tests.support.fused_layers import Results, assert_same, counts, results_and_gradients

zuko = pytest.importorskip("zuko")
pytestmark = [
    pytest.mark.skipif(not is_available(), reason="robustflow._autograd is not built"),
    pytest.mark.usefixtures("float64_by_default"),
]

FEATURES, CONTEXT, BINS = 5, 3, 6


def make_layer(kind: str, context: int = 0, **options: Any) -> Any:
    layers = {
        "autoregressive": zuko.flows.autoregressive.MaskedAutoregressiveTransform,
        "coupling": zuko.flows.coupling.GeneralCouplingTransform,
    }
    spline = partial(zuko.transforms.MonotonicRQSTransform, slope=1e-2, bound=2.0)
    settings = {
        "univariate": spline,
        "shapes": [(BINS,), (BINS,), (BINS - 1,)],
        "hidden_features": (12, 12),
        **options,
    }
    layer = layers[kind](FEATURES, context, **settings)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return layer


def run(layer: Any, x: Tensor, context: Tensor | None, inverse: bool = False) -> Results:
    """Outputs, and the gradients by the inputs and all parameters."""
    x = x.clone().requires_grad_()
    context = None if context is None else context.clone().requires_grad_()
    transform = layer(context)
    outputs = [transform.inv(x)] if inverse else [*transform.call_and_ladj(x), transform(x)]
    sum((i + 1) * output.sin().sum() for i, output in enumerate(outputs)).backward()
    return results_and_gradients(layer, outputs, [x, context])


zuko_counts = partial(counts, "zuko")


EITHER: list[dict[str, Any]] = [
    {},
    {"activation": nn.ELU},
    {"activation": nn.Tanh, "hidden_features": (8, 16, 8)},
]
AUTOREGRESSIVE: list[dict[str, Any]] = [
    {"residual": True},
    {"passes": 2},
    {"order": torch.arange(FEATURES).flip(0)},
]
CASES = [
    *(("autoregressive", options) for options in EITHER + AUTOREGRESSIVE),
    *(("coupling", options) for options in [*EITHER, {"bias": False}]),
]


@pytest.mark.parametrize("kind, options", CASES, ids=str)
@pytest.mark.parametrize("context", [0, CONTEXT])
@pytest.mark.parametrize("shape", [(7,), (300,), (), (2, 3)], ids=str)
def test_results_and_gradients_are_zukos(
    kind: str, context: int, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer = make_layer(kind, context, **options)
    x = 1.5 * torch.randn(*shape, FEATURES)
    given = torch.randn(*shape, context) if context else None
    expected = run(layer, x, given)
    with compat.patch("zuko"):
        found = run(layer, x, given)
        assert zuko_counts() == (2, 0)  # call_and_ladj, and the call
        assert compat.patched()["zuko"] == {"kernel": 2, "reference": 0, "fallback": 0}
    assert_same(found, expected)


@pytest.mark.parametrize("options", EITHER + AUTOREGRESSIVE, ids=str)
@pytest.mark.parametrize("context", [0, CONTEXT])
@pytest.mark.parametrize("shape", [(7,), (300,), (), (2, 3)], ids=str)
def test_the_inverse_of_an_autoregressive_layer(
    context: int, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer = make_layer("autoregressive", context, **options)
    y = 1.5 * torch.randn(*shape, FEATURES)
    given = torch.randn(*shape, context) if context else None
    with torch.no_grad():
        expected = layer(given).inv(y)
        with compat.patch("zuko"):
            found = layer(given).inv(y)
            assert zuko_counts() == (1, 0)
            assert compat.patched()["zuko"] == {"kernel": 1, "reference": 0, "fallback": 0}
    assert_same([found], [expected], 1e-9)


def test_an_autoregressive_inverse_that_takes_zukos_passes() -> None:
    layer = make_layer("autoregressive")
    y = torch.randn(20, FEATURES)
    fewer = zuko.transforms.AutoregressiveTransform(layer().meta, 2)
    with_gradients = run(layer, y, None, inverse=True)
    with torch.no_grad():
        expected = fewer.inv(y)
    with compat.patch("zuko"):
        assert_same(run(layer, y, None, inverse=True), with_gradients, 1e-9)
        with torch.no_grad():
            assert_same([fewer.inv(y)], [expected], 1e-9)
        assert zuko_counts()[0] == 0
        layer.passes = 3
        with torch.no_grad():
            found = layer().inv(y)
        assert zuko_counts()[0] == 0
    with torch.no_grad():
        assert_same([found], [layer().inv(y)], 1e-9)


def test_a_graph_of_dependencies() -> None:
    """Features that depend on none before them are computed in one step."""
    adjacency = torch.eye(FEATURES, dtype=torch.bool)
    adjacency[2, 0] = adjacency[3, 2] = adjacency[4, 1] = True
    layer = make_layer("autoregressive", adjacency=adjacency)
    y = torch.randn(20, FEATURES)
    with torch.no_grad():
        expected = layer().inv(y)
        with compat.patch("zuko"):
            assert_same([layer().inv(y)], [expected], 1e-9)
            assert zuko_counts() == (1, 0)


@pytest.mark.parametrize("context", [0, CONTEXT])
def test_the_inverse_of_a_coupling(context: int) -> None:
    layer = make_layer("coupling", context)
    y = 1.5 * torch.randn(20, FEATURES)
    given = torch.randn(20, context) if context else None
    expected = run(layer, y, given, inverse=True)
    with compat.patch("zuko"):
        found = run(layer, y, given, inverse=True)
        assert zuko_counts() == (1, 0)
    assert_same(found, expected)


def test_one_context_for_many_samples() -> None:
    layer = make_layer("autoregressive", CONTEXT)
    x, context = torch.randn(4, 6, FEATURES), torch.randn(CONTEXT)
    expected = run(layer, x, context)
    with compat.patch("zuko"):
        found = run(layer, x, context)
        assert zuko_counts() == (2, 0)
    assert_same(found, expected)
    more = torch.randn(7, 1, 1, CONTEXT)  # more than x has: zuko's way
    expected = run(layer, x, more)
    with compat.patch("zuko"):
        found = run(layer, x, more)
        assert zuko_counts() == (0, 2)
    assert_same(found, expected)


def test_a_whole_flow_in_float32() -> None:
    flow = zuko.flows.NSF(FEATURES, CONTEXT, transforms=3, bins=BINS).float()
    x, context = torch.randn(50, FEATURES).float(), torch.randn(50, CONTEXT).float()
    expected = flow(context).log_prob(x)
    with compat.patch("zuko"):
        found = flow(context).log_prob(x)
        assert zuko_counts() == (3, 0)
    assert float((found - expected).abs().max()) < 1e-3


def hooked(layer: Any) -> None:
    layer.hyper[0].register_forward_hook(lambda _m, _i, output: 2 * output)


def other_activation(layer: Any) -> None:
    layer.hyper[1] = nn.Softplus()


def stronger_mask(layer: Any) -> None:
    layer.hyper[0].weight.requires_grad_(False)
    nn.utils.parametrizations.weight_norm(layer.hyper[2])


@pytest.mark.parametrize("change", [hooked, other_activation, stronger_mask])
@pytest.mark.parametrize("kind", ["autoregressive", "coupling"])
def test_what_is_not_served_takes_zukos_way(kind: str, change: Callable[[Any], None]) -> None:
    layer = make_layer(kind)
    x = torch.randn(20, FEATURES)
    with compat.patch("zuko"):
        run(layer, x, None)
        assert zuko_counts() == (2, 0)
        change(layer)
        found = run(layer, x, None)
        assert zuko_counts() == (2, 2)
    assert_same(found, run(layer, x, None))


def test_other_networks_and_splines_take_zukos_way() -> None:
    class OwnLayer(zuko.flows.autoregressive.MaskedAutoregressiveTransform):  # type: ignore[name-defined]
        def meta(self, c: Any, x: Tensor) -> Any:
            return super().meta(c, 2 * x)

    circular = partial(zuko.flows.spline.CircularRQSTransform, slope=1e-3)
    bounds = torch.rand(FEATURES) + 1
    by_feature = partial(zuko.transforms.MonotonicRQSTransform, bound=bounds.unsqueeze(-1))
    x = torch.randn(20, FEATURES)
    own = OwnLayer(
        FEATURES, univariate=zuko.transforms.MonotonicRQSTransform, shapes=[(3,), (3,), (2,)]
    )
    layers = [
        make_layer("coupling", normalize=True),
        make_layer("autoregressive", univariate=circular),
        make_layer("autoregressive", univariate=by_feature),
        make_layer("autoregressive", hidden_features=(300, 300)),
        own,
    ]
    for layer in layers:
        expected = run(layer, x, None)
        with compat.patch("zuko"):
            found = run(layer, x, None)
            assert zuko_counts()[0] == 0
        assert_same(found, expected)


def test_masks_are_read_at_every_call() -> None:
    layer = make_layer("autoregressive")
    x = torch.randn(20, FEATURES)
    with compat.patch("zuko"):
        run(layer, x, None)
        layer.hyper[0].mask.zero_()
        found = run(layer, x, None)
        assert zuko_counts() == (4, 0)
    assert_same(found, run(layer, x, None))


def test_gradients_of_gradients() -> None:
    layer = make_layer("autoregressive", activation=nn.Tanh, hidden_features=(6,))
    x = (0.8 * torch.randn(2, FEATURES)).requires_grad_()
    parameters = list(layer.parameters())
    with compat.patch("zuko"):
        assert torch.autograd.gradgradcheck(
            lambda x, *_: layer().call_and_ladj(x), (x, *parameters[-2:])
        )
        assert zuko_counts()[1] == 0
