"""Autoregressive layers of nflows, normflows, glasflow, fused, in both directions."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow import compat
from robustflow.fused import is_available
from tests.support.fused_layers import Results, assert_same, counts, results_and_gradients

pytestmark = [
    pytest.mark.skipif(not is_available(), reason="robustflow._autograd is not built"),
    pytest.mark.usefixtures("float64_by_default"),
]

NFLOWS = "transforms.autoregressive:MaskedPiecewiseRationalQuadraticAutoregressiveTransform"
LAYERS = {
    "nflows": f"nflows.{NFLOWS}",
    "glasflow": f"glasflow.nflows.{NFLOWS}",
    "normflows": "normflows.flows.neural_spline.autoregressive:"
    "MaskedPiecewiseRationalQuadraticAutoregressive",
}
FEATURES, CONTEXT, HIDDEN = 5, 3, 12
ACTIVATIONS: dict[str, Any] = {"relu": functional.relu, "tanh": torch.tanh, "ELU": nn.ELU(0.5)}
each_library = pytest.mark.parametrize("library", LAYERS)


def make_layer(library: str = "nflows", context: bool = False, **options: Any) -> Any:
    module, _, name = LAYERS[library].partition(":")
    pytest.importorskip(library)
    settings = {"num_bins": 4, "tails": "linear", "tail_bound": 2.0, **options}
    layer = getattr(importlib.import_module(module), name)(
        FEATURES, HIDDEN, context_features=CONTEXT if context else None, **settings
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def run(layer: Any, x: Tensor, context: Tensor | None) -> Results:
    """Outputs of the forward direction, and the gradients by the inputs and all parameters."""
    x = x.clone().requires_grad_()
    context = None if context is None else context.clone().requires_grad_()
    y, logabsdet = layer(x, context)
    y.sin().sum().add(logabsdet.sin().sum()).backward()
    return results_and_gradients(layer, [y, logabsdet], [x, context])


def invert(layer: Any, y: Tensor, context: Tensor | None = None) -> list[Tensor | None]:
    with torch.no_grad():
        return list(layer.inverse(y, context))


@each_library
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("samples", [1, 7, 500])
def test_both_directions_are_the_librarys(
    library: str, residual: bool, context: bool, activation: str, samples: int
) -> None:
    if library == "normflows" and context and not residual:
        pytest.skip("normflows has no plain blocks with a context")
    options = {"use_residual_blocks": residual, "activation": ACTIVATIONS[activation]}
    layer = make_layer(library, context, **options)
    x = 1.5 * torch.randn(samples, FEATURES)
    given = torch.randn(samples, CONTEXT) if context else None
    expected, expected_inverse = run(layer, x, given), invert(layer, x, given)
    with compat.patch(library):
        found, inverse = run(layer, x, given), invert(layer, x, given)
        assert counts(library) == (2, 0)
        assert compat.patched()[library] == {"kernel": 2, "reference": 0, "fallback": 0}
    assert_same(found, expected)
    assert_same(inverse, expected_inverse, 1e-9)


@each_library
@pytest.mark.parametrize("tails", ["linear", "circular"])
@pytest.mark.parametrize("samples", [3, 700])
def test_the_inverse_in_float32(library: str, tails: str, samples: int) -> None:
    """Inverting is as near to the exact inverse as the library's own passes are."""
    if tails == "circular" and library != "normflows":
        pytest.skip("nflows has no circular tails")
    layer = make_layer(library, tails=tails).float()
    y = torch.randn(samples, FEATURES).float()
    theirs = invert(layer, y)
    with compat.patch(library):
        ours = invert(layer, y)
        assert counts(library) == (1, 0)
    exact = invert(layer.double(), y.double())
    for found, other, truth in zip(ours, theirs, exact, strict=True):
        assert found is not None and other is not None and truth is not None
        assert found.dtype == other.dtype == torch.float32
        error = float((found - truth).abs().max())
        assert error <= 2e-6 + 4 * float((other - truth).abs().max())


def test_one_row_of_context_serves_all() -> None:
    layer, x, context = make_layer(context=True), torch.randn(9, FEATURES), torch.randn(1, CONTEXT)
    expected, expected_inverse = run(layer, x, context), invert(layer, x, context)
    with compat.patch("nflows"):
        assert_same(run(layer, x, context), expected)
        assert_same(invert(layer, x, context), expected_inverse, 1e-9)
        assert counts() == (2, 0)


def hooked(layer: Any) -> None:
    layer.autoregressive_net.final_layer.register_forward_hook(lambda _m, _i, output: 2 * output)


def of_another_class(layer: Any) -> None:
    class Linear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    layer.autoregressive_net.initial_layer.__class__ = Linear


def subclassed(layer: Any) -> None:
    layer.__class__ = type("Own", (type(layer),), {})


def other_activation(layer: Any) -> None:
    for block in layer.autoregressive_net.blocks:
        block.activation = functional.softplus
    layer.autoregressive_net.activation = functional.softplus


@pytest.mark.parametrize("change", [hooked, of_another_class, subclassed, other_activation])
@pytest.mark.parametrize("when", ["from the start", "after a call"])
def test_what_is_not_served_takes_the_librarys_way(
    change: Callable[[Any], None], when: str
) -> None:
    layer = make_layer()
    x = torch.rand(20, FEATURES)
    with compat.patch("nflows"):
        if when == "after a call":
            run(layer, x, None)
            invert(layer, x)
        before = counts()
        change(layer)
        found, inverse = run(layer, x, None), invert(layer, x)
        assert counts() == (before[0], before[1] + (0 if change is subclassed else 2))
    assert_same(found, run(layer, x, None))
    assert_same(inverse, invert(layer, x), 1e-9)


def test_gradients_of_the_inverse_are_the_librarys(caplog: pytest.LogCaptureFixture) -> None:
    layer = make_layer()
    y = torch.randn(6, FEATURES)

    def gradients() -> Results:
        leaf = y.clone().requires_grad_()
        x, logabsdet = layer.inverse(leaf)
        (x.sin().sum() + logabsdet.sum()).backward()
        return results_and_gradients(layer, [x, logabsdet], [leaf])

    expected = gradients()
    compat._patch.counts._logged.clear()
    with compat.patch("nflows"), caplog.at_level(logging.DEBUG, "robustflow.compat"):
        assert_same(gradients(), expected, 1e-9)
        assert counts() == (0, 1)
    assert "gradients of an autoregressive inverse are wanted" in caplog.text


def test_a_mask_that_is_written_to_is_read_again() -> None:
    layer = make_layer()
    y = torch.randn(20, FEATURES)
    with compat.patch("nflows"):
        invert(layer, y)
        layer.autoregressive_net.initial_layer.mask[:, 0] = 0
        found = invert(layer, y)
        assert counts() == (2, 0)
        layer.autoregressive_net.initial_layer.mask.fill_(1)  # no order is left
        passes = invert(layer, y)
        assert counts() == (2, 1)
    assert_same(passes, invert(layer, y), 1e-9)
    layer.autoregressive_net.initial_layer.mask.copy_(
        make_layer().autoregressive_net.initial_layer.mask
    )
    layer.autoregressive_net.initial_layer.mask[:, 0] = 0
    assert_same(found, invert(layer, y), 1e-9)


def test_what_changes_is_read_at_every_call() -> None:
    layer = make_layer(dropout_probability=0.5)
    x = torch.randn(20, FEATURES)
    with compat.patch("nflows"):
        layer.train()
        layer(x)
        assert counts() == (0, 1)  # dropout
        layer.eval()
        layer(x)
        layer.tail_bound = 1.5
        layer.autoregressive_net.hidden_features = 4  # nflows scales the logits by it
        layer.autoregressive_net.load_state_dict(make_layer().autoregressive_net.state_dict())
        found, inverse = run(layer, x, None), invert(layer, x)
        assert counts() == (3, 1)
    assert_same(found, run(layer, x, None))
    assert_same(inverse, invert(layer, x), 1e-9)


@pytest.mark.parametrize("random_mask", [False, True])
def test_masks_by_chance(random_mask: bool) -> None:
    layer = make_layer(use_residual_blocks=False, random_mask=random_mask, num_blocks=3)
    y = torch.randn(20, FEATURES)
    expected = invert(layer, y)
    with compat.patch("nflows"):
        assert_same(invert(layer, y), expected, 1e-9)
        assert counts() == (1, 0)
