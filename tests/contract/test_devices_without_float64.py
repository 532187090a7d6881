"""Devices that have no float64, as MPS: nothing of ours puts any there unasked.

The meta device stands for one, with a mode in which it refuses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import robustflow.functional as F
import robustflow.nn as rnn
from robustflow import distributions as D
from robustflow._resizing import pseudo_inverse

DEVICE = "meta"


class _NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            wide = isinstance(leaf, Tensor) and leaf.dtype == torch.float64
            if wide and leaf.device.type == DEVICE:
                raise TypeError(f"{func} makes float64 on {DEVICE}.")
        return out


@pytest.fixture(autouse=True)
def no_float64() -> Iterator[None]:
    with _NoFloat64():
        yield


def there(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


def test_the_device_refuses() -> None:
    for make in (
        lambda: torch.ones(2, dtype=torch.float64, device=DEVICE),
        lambda: torch.ones(2, dtype=torch.float64).to(DEVICE),
        lambda: there(2).double(),
    ):
        with pytest.raises(TypeError, match="makes float64 on meta"):
            make()
    assert torch.ones(2, dtype=torch.float64).sum() == 2


# The same box three ways and more: numbers, sequences, and tensors of either place and precision.
BOUNDS: dict[str, dict[str, Any]] = {
    "a number": {"tail_bound": 3.0},
    "a list": {"tail_bound": [1.0, 2.0, 3.0]},
    "a tuple": {"tail_bound": (1, 2, 3)},
    "a tensor": {"tail_bound": torch.ones(3, device=DEVICE)},
    "float64 on the CPU": {"tail_bound": torch.ones(3, dtype=torch.float64)},
    "whole numbers": {"tail_bound": torch.ones(3, dtype=torch.int64, device=DEVICE)},
    "four numbers": {"left": -1.0, "right": 2, "bottom": -1.0, "top": 2},
    "four lists": {"left": [-1.0] * 3, "right": [2.0] * 3, "bottom": [-1.0] * 3, "top": [2.0] * 3},
    "a list and tensors": {
        "left": [-1.0, -1.0, -2.0],
        "right": torch.ones(3, device=DEVICE),
        "bottom": torch.full((3,), -1.0, dtype=torch.float64),
        "top": 1,
    },
}
both_directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def _check(pair: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    y, logabsdet = pair
    assert (y.dtype, logabsdet.dtype) == (dtype, torch.float32)
    assert y.device.type == logabsdet.device.type == DEVICE


@both_directions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bounds", BOUNDS)
def test_splines(bounds: str, dtype: torch.dtype, inverse: bool) -> None:
    tails = ("linear", "circular", None) if "tail_bound" in BOUNDS[bounds] else (None,)
    x = there(4, 3).to(dtype)
    for kind in tails:
        extra = {"linear": -1, "circular": 0, None: 1}[kind]
        options: Any = {"inverse": inverse, "tails": kind, **BOUNDS[bounds]}
        groups: Any = [there(4, 3, k).to(dtype) for k in (5, 5, 5 + extra)]
        for parametrization in ("softmax", "softclip", "knots"):
            options["parametrization"] = parametrization
            _check(F.rq_spline(x, *groups, **options), dtype)
            params = there(4, 3 * (15 + extra)).to(dtype)
            _check(F.rq_spline_packed(x, params, 5, **options), dtype)
        del options["inverse"]
        transform = D.RQSplineTransform(*groups, **options)
        _check((transform.inv if inverse else transform).call_and_ladj(x), dtype)


@both_directions
def test_other_transforms(inverse: bool) -> None:
    x = there(4, 3)
    for derivative in ("exp", "softclip"):
        call: Any = {"inverse": inverse, "derivative": derivative}
        _check(F.modified_rq_spline(x, there(4, 12), **call), torch.float32)
    for scale in ("sigmoid", "exp", "softplus", "atan_exp", "tanh_exp", "softclip_exp"):
        call = {"inverse": inverse, "scale": scale}
        _check(F.conditional_affine(x, there(4, 6), **call), torch.float32)
    for transform in (
        D.ModifiedRQSplineTransform(there(3, 4)),
        D.ConditionalAffineTransform(there(3, 2)),
    ):
        one_way = transform.inv if inverse else transform
        _check(one_way.call_and_ladj(x), torch.float32)


LAYERS: dict[str, Callable[[], torch.nn.Module]] = {
    "ActNorm": lambda: rnn.ActNorm(4),
    "InvertibleConv1x1": lambda: rnn.InvertibleConv1x1(4),
    "InvertibleConv1x1, plain": lambda: rnn.InvertibleConv1x1(4, lu=False),
    "RQSplineCoupling": lambda: rnn.RQSplineCoupling(4, spatial_dims=0, hidden_channels=8),
    "ModifiedRQSplineCoupling": lambda: rnn.ModifiedRQSplineCoupling(
        4, spatial_dims=0, hidden_channels=8
    ),
    "ConditionalAffineCoupling": lambda: rnn.ConditionalAffineCoupling(
        4, spatial_dims=0, hidden_channels=8
    ),
    "RQSplineAutoregressive": lambda: rnn.RQSplineAutoregressive(4),
    "circular spline": lambda: rnn.RQSplineCoupling(
        4, tails="circular", tail_bound=math.pi, spatial_dims=0, hidden_channels=8
    ),
    "a bound a channel": lambda: rnn.RQSplineCoupling(
        4, tail_bound=(1.0, 2.0, 3.0, 4.0), spatial_dims=0, hidden_channels=8
    ),
    "PhaseShift": lambda: rnn.PhaseShift(4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_made_under_a_default_device(name: str) -> None:
    """``torch.set_default_device``: made, used in both directions, and drawn from in a flow."""
    with torch.device(DEVICE):
        layer = LAYERS[name]()
    assert {p.device.type for p in layer.parameters()} == {DEVICE}
    flow = rnn.ConditionalFlow([[layer]]).eval()
    assert flow.log_prob(there(5, 4)).shape == (5,)
    assert flow.sample(5).shape == (5, 4)
    loss = flow.log_prob(there(5, 4)).sum()
    assert all(g.shape for g in torch.autograd.grad(loss, list(flow.parameters())))


def test_dequantize() -> None:
    with torch.device(DEVICE):
        layer = rnn.Dequantize(256)
    for inverse in (False, True):
        y, logabsdet = layer(there(5, 4), inverse=inverse)
        assert y.shape == (5, 4) and logabsdet.shape == (5,)


def test_convolution_is_a_rotation_in_the_defaults() -> None:
    """Whatever device made it: the default dtype, and a matrix whose inverse is its transpose."""
    for lu in (True, False):
        mix = rnn.InvertibleConv1x1(6, lu=lu)
        weight = mix.weight()
        assert {p.dtype for p in mix.parameters()} == {torch.float32}
        torch.testing.assert_close(weight @ weight.T, torch.eye(6), rtol=0, atol=1e-5)


def test_pseudo_inverse_of_a_resizing() -> None:
    """A matrix made in float64, on the CPU, whatever the default device."""
    with torch.device(DEVICE):
        assert pseudo_inverse(there(1, 3, 4, 4), 4).shape == (1, 3, 16, 16)
