"""Couplings and autoregressive layers over (N, D) fused, against the same layers unfused."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustflow.nn as rnn
from robustflow.diagnostics import InverseMonitor
from robustflow.fused import is_available
from tests.support.fused_layers import Results, assert_same, results_and_gradients

pytestmark = [
    pytest.mark.skipif(not is_available(), reason="robustflow._autograd is not built"),
    pytest.mark.usefixtures("float64_by_default"),
]

FEATURES, CONTEXT = 5, 3
TRANSFORMS = {
    "modified": rnn.ModifiedRQSpline(),
    "published": rnn.ModifiedRQSpline.published(),
    "bins": rnn.RQSpline(6, tail_bound=2.0),
    "circular": rnn.RQSpline(4, tails="circular"),
    "softclip": rnn.RQSpline(5, parametrization="softclip"),
}


def make_layer(kind: str, context: int = 0, transform: Any = None, **options: Any) -> Any:
    if kind == "autoregressive":
        layer: Any = rnn.Autoregressive(FEATURES, context, transform, hidden_features=12, **options)
    else:
        reverse = kind == "reverse"
        layer = rnn.Coupling(
            FEATURES,
            context,
            transform,
            reverse=reverse,
            hidden_channels=12,
            spatial_dims=0,
            **options,
        )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def run(layer: Any, z: Tensor, context: Tensor | None, inverse: bool = False) -> Results:
    z = z.clone().requires_grad_()
    context = None if context is None else context.clone().requires_grad_()
    y, logabsdet = layer(z, context, inverse=inverse)
    (y.sin().sum() + 2 * logabsdet.sum()).backward()
    return results_and_gradients(layer, [y, logabsdet], [z, context])


def run_unfused(layer: Any, *args: Any, **options: Any) -> Results:
    """The same with a hook in the conditioner, which changes nothing."""
    handle = layer.conditioner.register_forward_hook(lambda _m, _i, output: output)
    try:
        return run(layer, *args, **options)
    finally:
        handle.remove()


class Reasons(logging.Handler):
    """Why layers were not fused."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "not fused" in record.msg:
            self.found.append(record.getMessage())


@pytest.fixture
def reasons() -> Iterator[list[str]]:
    log, handler = logging.getLogger("robustflow.nn"), Reasons()
    before = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    yield handler.found
    log.removeHandler(handler)
    log.setLevel(before)


@pytest.mark.parametrize("kind", ["coupling", "reverse", "autoregressive"])
@pytest.mark.parametrize("context", [0, CONTEXT])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("samples", [1, 300])
def test_results_and_gradients_are_those_of_the_parts(
    kind: str, context: int, transform: str, samples: int, reasons: list[str]
) -> None:
    layer = make_layer(kind, context, TRANSFORMS[transform])
    z = torch.randn(samples, FEATURES)
    given = torch.randn(samples, context) if context else None
    inverses = (False,) if kind == "autoregressive" else (False, True)
    for inverse in inverses:
        found = run(layer, z, given, inverse)
        served = not reasons
        expected = run_unfused(layer, z, given, inverse=inverse)
        assert_same(found, expected)
        assert served == (transform != "circular"), reasons
        assert any("hooks" in reason or "circles" in reason for reason in reasons)
        reasons.clear()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("context", [0, CONTEXT])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("samples", [1, 300])
def test_the_inverse_of_an_autoregressive_layer(
    reverse: bool, context: int, transform: str, samples: int, reasons: list[str]
) -> None:
    layer = make_layer("autoregressive", context, TRANSFORMS[transform], reverse=reverse)
    y = torch.randn(samples, FEATURES)
    given = torch.randn(1 if samples == 1 else samples, context) if context else None
    with torch.no_grad():
        found = layer(y, given, inverse=True)
    assert (not reasons) == (transform != "circular"), reasons
    x, logabsdet = found
    with torch.no_grad():
        again, forward_logabsdet = layer(x, given)
    assert_same([again, forward_logabsdet], [y, -logabsdet], 1e-9)
    reasons.clear()
    with_gradients = layer(y, given, inverse=True)
    assert any("gradients" in reason or "circles" in reason for reason in reasons)
    assert_same(list(found), [each.detach() for each in with_gradients], 1e-9)


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
def test_the_same_bits_on_any_number_of_threads(kind: str, reasons: list[str]) -> None:
    layer = make_layer(kind, CONTEXT)
    z, context = torch.randn(3000, FEATURES), torch.randn(3000, CONTEXT)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results = run(layer, z, context)
        with torch.no_grad():
            found.append([*results, *layer(z, context, inverse=True)])
    assert not reasons
    for other in found[1:]:
        assert_same(other, found[0], 0.0)


def test_one_context_for_all(reasons: list[str]) -> None:
    layer = make_layer("coupling", CONTEXT)
    z, context = torch.randn(20, FEATURES), torch.randn(1, CONTEXT)
    found = run(layer, z, context)
    assert not reasons
    assert_same(found, run_unfused(layer, z, context))


def test_float32(reasons: list[str]) -> None:
    layer = make_layer("coupling", CONTEXT).float()
    z, context = torch.randn(20, FEATURES).float(), torch.randn(20, CONTEXT).float()
    found = run(layer, z, context)
    assert not reasons
    assert_same(found, run_unfused(layer, z, context), 1e-5)


def test_what_is_not_served_runs_unfused(reasons: list[str]) -> None:
    z = torch.randn(20, FEATURES)

    class Own(rnn.Coupling):
        def params_of(self, z1: Tensor, state: Any) -> Tensor:
            return 2 * super().params_of(z1, state)

    own = Own(FEATURES, hidden_channels=4, spatial_dims=0)
    twice = rnn.Coupling(FEATURES, conditioner=nn.Linear(2, 12))
    wide = make_layer("coupling", transform=rnn.RQSpline(4, tail_bound=(1.0, 2.0, 3.0, 4.0, 5.0)))
    for layer in (twice, wide, make_layer("coupling").bfloat16()):
        y, logabsdet = layer(z.to(next(layer.parameters()).dtype))
        assert y.shape == z.shape and logabsdet.shape == (20,) and len(reasons) == 1
        reasons.clear()
    assert own(z)[0].shape == z.shape


def test_gradients_of_gradients_and_functional_transforms() -> None:
    layer = make_layer("coupling")
    z = (0.8 * torch.randn(2, FEATURES)).requires_grad_()
    parameters = list(layer.parameters())
    assert torch.autograd.gradgradcheck(lambda z, *_: layer(z), (z, *parameters[-1:]))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: layer(row[None])[0][0]))(z)
    expected = torch.autograd.functional.jacobian(lambda z: layer(z)[0].sum(0), z).movedim(1, 0)
    assert torch.allclose(jacobian, expected)


def test_a_monitor_sees_the_parts() -> None:
    layer = make_layer("coupling")
    z = torch.randn(20, FEATURES)
    with torch.no_grad(), InverseMonitor(layer) as monitor:
        layer(z, inverse=True)
    assert monitor.report().layers[0].largest_derivative is not None
