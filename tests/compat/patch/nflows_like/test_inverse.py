"""Autoregressive inverses of nflows and normflows: each unit of the network is computed once."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from robustflow import compat
from tests.compat.served import counts

pytestmark = pytest.mark.usefixtures("without_fused_layers")

LAYERS = {
    "nflows": "nflows.transforms.autoregressive:"
    "MaskedPiecewiseRationalQuadraticAutoregressiveTransform",
    "normflows": "normflows.flows.neural_spline.autoregressive:"
    "MaskedPiecewiseRationalQuadraticAutoregressive",
}
FEATURES, CONTEXT, HIDDEN, BINS, BATCH = 5, 3, 16, 4, 7
ACTIVATIONS: dict[str, Any] = {"relu": functional.relu, "tanh": torch.tanh, "ELU": nn.ELU()}
each_library = pytest.mark.parametrize("library", LAYERS)


def make(library: str, **options: Any) -> Any:
    module, _, name = LAYERS[library].partition(":")
    pytest.importorskip(library)
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "features": FEATURES,
        "hidden_features": HIDDEN,
        "context_features": None,
        "num_bins": BINS,
        "tails": "linear",
        "tail_bound": 3.0,
        **options,
    }
    layer = getattr(importlib.import_module(module), name)(**settings).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


class Counter:
    """Numbers that linear layers make for each sample."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        linear = functional.linear

        def counting(*args: Any) -> Tensor:
            out = linear(*args)
            self.made += out.numel()
            return out

        monkeypatch.setattr(functional, "linear", counting)

    def of(self, call: Callable[[], object]) -> float:
        self.made = 0
        call()
        return self.made / BATCH


def units(layer: Any) -> int:
    return sum(m.out_features for m in layer.modules() if isinstance(m, nn.Linear))


@each_library
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("context_features", [None, CONTEXT])
@pytest.mark.parametrize("residual", [True, False])
def test_equals_the_librarys_passes(
    library: str,
    residual: bool,
    context_features: int | None,
    activation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if library == "normflows" and not residual and context_features:
        pytest.skip("normflows has no plain blocks with a context")
    options = {"use_residual_blocks": residual, "context_features": context_features}
    layer = make(library, activation=ACTIVATIONS[activation], **options)
    y = 2 * torch.randn(BATCH, FEATURES).double()
    context = torch.randn(BATCH, CONTEXT).double() if context_features else None
    counter = Counter(monkeypatch)
    with torch.no_grad():
        expected = layer.inverse(y, context)
        with compat.patch(library):
            found = layer.inverse(y, context)
            assert compat.patched()[library] == counts(kernel=FEATURES)
            assert counter.of(lambda: layer.inverse(y, context)) == units(layer)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert counter.of(lambda: layer.inverse(y, context)) > 3 * units(layer)
    with compat.patch(library):  # with gradients: the library's passes
        by_passes = layer.inverse(y, context)
        assert compat.patched()[library] == counts(kernel=FEATURES, fallback=1)
    assert by_passes[0].requires_grad
    torch.testing.assert_close(tuple(t.detach() for t in by_passes), expected)


KEPT: dict[str, tuple[dict[str, Any], str]] = {
    "dropout": ({"dropout_probability": 0.5}, "dropout is on"),
    "batch norm": ({"use_batch_norm": True}, "has a BatchNorm1d"),
    "an activation with weights": ({"activation": nn.PReLU(HIDDEN)}, "has a PReLU"),
    "an unknown activation": ({"activation": lambda x: x.cumsum(-1)}, "known to be elementwise"),
    "no tails": ({"tails": None}, "or there are none"),
    "a bound for each feature": (
        {"tail_bound": torch.linspace(2, 3, FEATURES).double()},
        "belong to single features",
    ),
    "a hook": ({}, "hooks watch a MaskedLinear"),
    "another network": ({}, "not the library's own"),
}


@each_library
@pytest.mark.parametrize("why", KEPT)
def test_what_keeps_the_passes(
    library: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is counted, and said why."""
    layer = make(library, **KEPT[why][0])
    if why == "dropout":
        layer.train()
    elif why == "a hook":
        layer.autoregressive_net.final_layer.register_forward_hook(lambda *_: None)
    elif why == "another network":
        layer.autoregressive_net = Wrapped(layer.autoregressive_net)
    y = torch.rand(BATCH, FEATURES).double()
    counter = Counter(monkeypatch)
    compat._patch.counts._logged.clear()
    with torch.no_grad(), compat.patch(library), caplog.at_level("DEBUG", "robustflow.compat"):
        assert counter.of(lambda: layer.inverse(y)) == FEATURES * units(layer)
        assert compat.patched()[library]["fallback"] >= 1
    assert ".inverse runs, since" in caplog.text and KEPT[why][1] in caplog.text


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Tensor:
        out: Tensor = self.inner(*args)
        return out


@each_library
def test_another_library_of_that_name_keeps_its_passes(
    library: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A MADE that is put together as none that we know."""
    layer = make(library)
    made = type(layer.autoregressive_net)
    forward = made.forward
    monkeypatch.setattr(made, "forward", lambda self, *args: 2 * forward(self, *args))
    keeps_its_passes(library, layer, "does not know how the library puts them", monkeypatch, caplog)


@each_library
def test_a_probe_that_fails_says_so(
    library: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A MADE with other arguments than those that the probe gives it."""
    layer = make(library)
    made = type(layer.autoregressive_net)
    init = made.__init__

    def other(self: Any, *args: Any, hidden_features: int = 9, **options: Any) -> None:
        if "activation" in options:
            raise TypeError("no such option")
        init(self, *args, hidden_features, **options)

    monkeypatch.setattr(made, "__init__", other)
    keeps_its_passes(library, layer, "TypeError('no such option')", monkeypatch, caplog)


def keeps_its_passes(
    library: str,
    layer: Any,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The results, the work, the count; said when it is patched and when it is called."""
    y = torch.randn(BATCH, FEATURES).double()
    counter = Counter(monkeypatch)
    compat._patch.counts._logged.clear()
    with torch.no_grad(), caplog.at_level("DEBUG", "robustflow.compat"):
        expected = layer.inverse(y)
        with compat.patch(library):
            assert reason in caplog.text
            caplog.clear()
            torch.testing.assert_close(layer.inverse(y), expected, rtol=1e-9, atol=1e-9)
            assert compat.patched()[library] == counts(kernel=FEATURES, fallback=1)
            assert reason in caplog.text
            assert counter.of(lambda: layer.inverse(y)) == FEATURES * units(layer)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT: dict[str, Callable[[], Any]] = {
    "default device": lambda: torch.device("meta"),
    "fake tensors": FakeTensorMode,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype": lambda: default_dtype(torch.bfloat16),
}


@pytest.mark.parametrize("ambient", AMBIENT)
@each_library
def test_where_it_is_patched_does_not_matter(
    library: str, ambient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes make networks and numbers, which default devices, dtypes and modes would reach."""
    layer = make(library)
    y = torch.randn(BATCH, FEATURES).double()
    state = torch.get_rng_state()
    with AMBIENT[ambient]():
        handle = compat.patch(library)
    assert torch.equal(torch.get_rng_state(), state)
    counter = Counter(monkeypatch)
    with handle, torch.no_grad():
        assert counter.of(lambda: layer.inverse(y)) == units(layer)
        assert compat.patched()[library]["fallback"] == 0


@each_library
def test_a_default_device_where_it_samples(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make(library, context_features=CONTEXT)
    y, context = torch.randn(BATCH, FEATURES).double(), torch.randn(BATCH, CONTEXT).double()
    expected = layer.inverse(y, context)
    counter = Counter(monkeypatch)
    with compat.patch(library), torch.no_grad(), torch.device("meta"):
        torch.testing.assert_close(layer.inverse(y, context), expected, rtol=1e-9, atol=1e-9)
        assert counter.of(lambda: layer.inverse(y, context)) == units(layer)


def test_inverses_of_other_layers_are_not_counted() -> None:
    """They share the method, and have no spline."""
    transforms = pytest.importorskip("nflows.transforms")
    layer = transforms.MaskedAffineAutoregressiveTransform(FEATURES, HIDDEN).double()
    y = torch.randn(BATCH, FEATURES).double()
    with compat.patch("nflows"), torch.no_grad():
        layer.inverse(y)
        assert compat.patched()["nflows"] == counts()


@each_library
def test_masks_that_are_loaded(library: str) -> None:
    y = torch.randn(BATCH, FEATURES).double()
    options = {"use_residual_blocks": False, "random_mask": True}
    layer, other = make(library, **options), make(library, **options)
    torch.manual_seed(1)
    fresh = type(other)(FEATURES, HIDDEN, num_bins=BINS, tails="linear", tail_bound=3.0, **options)
    with torch.no_grad(), compat.patch(library):
        layer.inverse(y)
        layer.load_state_dict(fresh.double().state_dict())
        x, _ = layer.inverse(y)
        torch.testing.assert_close(layer.forward(x)[0], y, rtol=1e-7, atol=1e-7)


@each_library
def test_dropout_that_stays_on(library: str) -> None:
    layer = make(library, dropout_probability=0.5)
    for module in layer.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    y = torch.randn(BATCH, FEATURES).double()
    with torch.no_grad(), compat.patch(library):
        assert not torch.equal(layer.inverse(y)[0], layer.inverse(y)[0])


def test_one_context_for_all_and_a_network_that_is_a_function() -> None:
    layer = make("nflows", use_residual_blocks=False, context_features=CONTEXT)
    base = type(layer).__mro__[1]

    class Own(base):  # type: ignore[valid-type, misc]
        def _elementwise_inverse(self, inputs: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
            return inputs - params, params.sum(-1)

    own = Own(lambda x, context: x.cumsum(-1) - x)
    y, context = torch.randn(BATCH, FEATURES).double(), torch.randn(CONTEXT).double()
    with torch.no_grad():
        for call in (lambda: layer.inverse(y, context), lambda: own.inverse(y)):
            expected = call()
            with compat.patch("nflows"):
                torch.testing.assert_close(call(), expected, rtol=1e-9, atol=1e-9)
