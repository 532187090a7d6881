"""What is done to modules: copied, pickled, compiled, run in half precision; each layer alike."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustflow.nn import (
    ActNorm,
    ConditionalAffineCoupling,
    ConditionalAffineInjector,
    InvertibleConv1x1,
    ModifiedRQSplineCoupling,
    ModifiedRQSplineInjector,
    RQSplineAutoregressive,
    RQSplineCoupling,
    RQSplineInjector,
    Split,
)
from tests.nn.checks import perturbed

D, CONTEXT = 4, 3
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "affine coupling": lambda: ConditionalAffineCoupling(D, CONTEXT, spatial_dims=0),
    "affine injector": lambda: ConditionalAffineInjector(D, CONTEXT, spatial_dims=0),
    "modified coupling": lambda: ModifiedRQSplineCoupling(D, CONTEXT, spatial_dims=0, reverse=True),
    "modified injector": lambda: ModifiedRQSplineInjector(D, CONTEXT, spatial_dims=0),
    "RQ coupling": lambda: RQSplineCoupling(D, spatial_dims=0),
    "RQ injector": lambda: RQSplineInjector(D, CONTEXT, spatial_dims=0, tails="circular"),
    "autoregressive": lambda: RQSplineAutoregressive(D, CONTEXT, hidden_features=8, reverse=True),
    "split": lambda: Split(D, CONTEXT, spatial_dims=0),
    "actnorm": lambda: ActNorm(D),
    "LU": lambda: InvertibleConv1x1(D),
    "plain": lambda: InvertibleConv1x1(D, lu=False),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def made(name: str) -> nn.Module:
    return perturbed(LAYERS[name](), 0.1).float().eval()


def inputs(layer: Any) -> tuple[Tensor, Tensor | None]:
    z, context = torch.randn(6, D), torch.randn(6, CONTEXT)
    return z, context if layer.context_channels else None


@each_layer
@pytest.mark.parametrize("copied", ["state_dict", "deepcopy", "pickle", "torch.save"])
def test_a_copy_is_the_same_layer(name: str, copied: str) -> None:
    layer = made(name)
    if copied == "state_dict":
        other = LAYERS[name]().eval()
        other.load_state_dict(layer.state_dict(), strict=True)
    elif copied == "deepcopy":
        other = copy.deepcopy(layer)
    elif copied == "pickle":
        other = pickle.loads(pickle.dumps(layer))
    else:
        torch.save(layer, file := io.BytesIO())
        file.seek(0)
        other = torch.load(file, weights_only=False)
    z, context = inputs(layer)
    for inverse in (False, True):
        expected = layer(z, context, inverse=inverse)
        torch.testing.assert_close(other(z, context, inverse=inverse), expected, atol=0, rtol=0)


@each_layer
def test_compiles_in_one_graph(name: str) -> None:
    torch.compiler.reset()  # all share one forward, and a forward has a limited number of graphs
    layer = made(name)
    z, context = inputs(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for inverse in (False, True):
        expected = layer(z, context, inverse=inverse)
        torch.testing.assert_close(compiled(z, context, inverse=inverse), expected)


@each_layer
def test_repr_has_the_size(name: str) -> None:
    first = repr(made(name)).splitlines()[0]
    wanted = f"({D}" if name in ("actnorm", "LU", "plain") else "("
    assert first.startswith(type(made(name)).__name__ + wanted)
    assert f"channels={D}" in repr(made(name)) or wanted != "("


@each_layer
def test_under_autocast_z_keeps_its_precision(name: str) -> None:
    """The layer comes back to z as in float32, and what it says is near float32's."""
    layer = made(name)
    z, context = inputs(layer)
    expected, expected_logabsdet = layer(z, context)
    with torch.autocast("cpu", torch.bfloat16):
        y, logabsdet = layer(z, context)
        back, _ = layer(y, context, inverse=True)
    assert y.dtype == logabsdet.dtype == back.dtype == torch.float32
    torch.testing.assert_close(y, expected, atol=0.1, rtol=0.05)
    torch.testing.assert_close(logabsdet, expected_logabsdet, atol=0.2, rtol=0.05)
    if name != "autoregressive":  # whose conditioner rounds what it has solved for
        torch.testing.assert_close(back, z, atol=1e-4, rtol=0)
    (y.sum() + logabsdet.sum()).backward()
    for parameter in layer.parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.dtype == torch.float32
        assert bool(gradient.isfinite().all())


@each_layer
def test_in_half_precision_throughout(name: str) -> None:
    layer = made(name).bfloat16()
    z, context = (tensor if tensor is None else tensor.bfloat16() for tensor in inputs(layer))
    assert z is not None
    wide = copy.deepcopy(layer).float()
    for inverse in (False, True):
        y, logabsdet = layer(z, context, inverse=inverse)
        assert y.dtype == torch.bfloat16 and logabsdet.dtype == torch.float32
        expected, expected_logabsdet = wide(
            z.float(), None if context is None else context.float(), inverse=inverse
        )
        torch.testing.assert_close(y.float(), expected, atol=0.15, rtol=0.05)
        torch.testing.assert_close(logabsdet, expected_logabsdet, atol=0.2, rtol=0.05)


class Waits(TorchDispatchMode):
    """Counts the operators that wait for a device: a value read, a factorisation checked."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.number += any(
            name in str(func)
            for name in ("_local_scalar_dense", "_linalg_check_errors", "nonzero", "is_nonzero")
        )
        return func(*args, **(kwargs or {}))


def test_waits_are_seen() -> None:
    with Waits() as waits:
        torch.linalg.inv(torch.eye(2))
        torch.ones(()).item()
    assert waits.number == 2


@each_layer
def test_neither_direction_waits_for_the_device(name: str) -> None:
    layer = made(name)
    z, context = inputs(layer)
    with Waits() as waits:
        y, logabsdet = layer(z, context)
        x, minus = layer(y, context, inverse=True)
        (x.sum() + logabsdet.sum() + minus.sum()).backward()
    assert waits.number == 0


def test_a_trained_actnorm_compiles_in_training_mode_after_loading() -> None:
    trained, norm = ActNorm(3), ActNorm(3)
    z = 5 * torch.randn(16, 3) + 1
    trained(z)
    norm.load_state_dict(trained.state_dict())
    compiled = torch.compile(norm, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(2 * z), trained(2 * z))
