"""Contract: a bad call raises a typed error that names the argument, the value and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import robustflow.functional as F
from tests.conformance.targets import Target

Z = torch.zeros


def modified(x: Any = None, params: Any = None, **options: Any) -> Any:
    x = Z(2, 3, 4) if x is None else x
    return F.modified_rq_spline(x, Z(2, 12, 4) if params is None else params, **options)


def rq(x: Any = None, w: Any = None, h: Any = None, d: Any = None, **options: Any) -> Any:
    default = (Z(5), Z(5, 8), Z(5, 8), Z(5, 7))
    given = (x, w, h, d)
    x, w, h, d = (b if a is None else a for a, b in zip(given, default, strict=True))
    return F.rq_spline(x, w, h, d, **options)


def packed(x: Any = None, params: Any = None, num_bins: Any = 8, **options: Any) -> Any:
    x = Z(5, 2) if x is None else x
    return F.rq_spline_packed(x, Z(5, 46) if params is None else params, num_bins, **options)


def affine(x: Any = None, params: Any = None, **options: Any) -> Any:
    x = Z(2, 3, 4) if x is None else x
    return F.conditional_affine(x, Z(2, 6, 4) if params is None else params, **options)


Call = Callable[[], Any]
# (id, call, exception, words that the message must have: argument, given, wanted)
BAD_CALLS: list[tuple[str, Call, type[Exception], list[str]]] = [
    ("x a list", lambda: modified(x=[1.0]), TypeError, ["x", "list", "Tensor"]),
    ("params a list", lambda: modified(params=[1.0]), TypeError, ["params", "list", "Tensor"]),
    ("x integer", lambda: modified(x=Z(2, 3, 4).long()), TypeError, ["x", "int64", "float"]),
    ("x bool", lambda: affine(x=Z(2, 3, 4).bool()), TypeError, ["x", "bool", "float"]),
    (
        "x complex",
        lambda: affine(x=Z(2, 3, 4).to(torch.complex64)),
        TypeError,
        ["x", "complex64", "float"],
    ),
    (
        "params integer",
        lambda: packed(params=Z(5, 46).int()),
        TypeError,
        ["params", "int32", "float"],
    ),
    (
        "params one short",
        lambda: modified(params=Z(2, 11, 4)),
        ValueError,
        ["params", "(2, 11, 4)", "(2, 12, 4)"],
    ),
    (
        "params of another batch",
        lambda: modified(params=Z(3, 12, 4)),
        ValueError,
        ["params", "3", "2"],
    ),
    (
        "params of another space",
        lambda: affine(params=Z(2, 6, 5)),
        ValueError,
        ["params", "5", "4"],
    ),
    (
        "params a dimension short",
        lambda: affine(params=Z(2, 6)),
        ValueError,
        ["params", "(2, 6)", "(2, 6, 4)"],
    ),
    (
        "x of size 1 under a batch of params",
        lambda: modified(x=Z(1, 3, 4)),
        ValueError,
        ["params", "2", "1"],
    ),
    (
        "packed of another number of bins",
        lambda: packed(num_bins=7),
        ValueError,
        ["params", "(5, 46)", "40"],
    ),
    ("num_bins zero", lambda: packed(num_bins=0), ValueError, ["num_bins", "0", "1"]),
    ("num_bins a float", lambda: packed(num_bins=8.0), ValueError, ["num_bins", "8.0", "whole"]),
    ("reduce", lambda: modified(reduce="mean"), ValueError, ["reduce", "mean", "sum", "none"]),
    ("reduce of rq", lambda: rq(reduce="mean"), ValueError, ["reduce", "mean", "sum", "none"]),
    (
        "derivative",
        lambda: modified(derivative="softplus"),
        ValueError,
        ["derivative", "softplus", "exp", "softclip"],
    ),
    ("interval reversed", lambda: modified(interval=(1, -1)), ValueError, ["interval", "1", "-1"]),
    ("interval empty", lambda: modified(interval=(1, 1)), ValueError, ["interval", "1", "increas"]),
    (
        "interval infinite",
        lambda: modified(interval=(0, float("inf"))),
        ValueError,
        ["interval", "inf", "finite"],
    ),
    ("interval of three", lambda: modified(interval=(0, 1, 2)), ValueError, ["interval", "pair"]),
    ("min_bin large", lambda: modified(min_bin=0.5), ValueError, ["min_bin", "0.5", "1/2"]),
    ("min_bin zero", lambda: modified(min_bin=0.0), ValueError, ["min_bin", "0.0"]),
    (
        "min_derivative large",
        lambda: modified(min_derivative=1.0),
        ValueError,
        ["min_derivative", "1.0", "(0, 1)"],
    ),
    ("tails", lambda: rq(tails="quadratic"), ValueError, ["tails", "quadratic", "linear"]),
    ("tails list", lambda: rq(tails=["linear"]), ValueError, ["tails", "['linear']", "linear"]),
    (
        "parametrization",
        lambda: rq(parametrization="exp"),
        ValueError,
        ["parametrization", "exp", "softmax", "softclip", "knots"],
    ),
    (
        "K+1 derivatives under linear tails",
        lambda: rq(d=Z(5, 9)),
        ValueError,
        ["unnormalized_derivatives", "(5, 9)", "7"],
    ),
    (
        "K-1 derivatives under circular tails",
        lambda: rq(tails="circular"),
        ValueError,
        ["unnormalized_derivatives", "(5, 7)", "8"],
    ),
    (
        "no bins",
        lambda: rq(w=Z(5, 0), h=Z(5, 0)),
        ValueError,
        ["unnormalized_widths", "at least one bin", "(5, 0)"],
    ),
    (
        "heights of other bins",
        lambda: rq(h=Z(5, 6)),
        ValueError,
        ["unnormalized_heights", "(5, 6)", "8"],
    ),
    (
        "widths 0-d",
        lambda: rq(w=Z(())),
        ValueError,
        ["unnormalized_widths", "0-d", "bins"],
    ),
    (
        "widths that do not broadcast",
        lambda: rq(w=Z(4, 8)),
        ValueError,
        ["unnormalized_widths", "4", "5"],
    ),
    (
        "tail_bound negative",
        lambda: rq(tail_bound=-1.0),
        ValueError,
        ["tail_bound", "-1.0"],
    ),
    ("tail_bound zero", lambda: rq(tail_bound=0.0), ValueError, ["tail_bound", "0.0"]),
    ("left above right", lambda: rq(left=2.0), ValueError, ["left", "right", "2.0"]),
    (
        "rectangle with tails",
        lambda: rq(left=-2.0, right=2.0),
        ValueError,
        ["tails", "linear", "left", "bottom"],
    ),
    (
        "tail_bound that does not broadcast",
        lambda: rq(tail_bound=torch.ones(4)),
        ValueError,
        ["tail_bound", "4", "5"],
    ),
    (
        "tail_bound with a gradient",
        lambda: rq(tail_bound=torch.ones(5, requires_grad=True)),
        ValueError,
        ["tail_bound", "grad"],
    ),
    (
        "min_bin_width large",
        lambda: rq(min_bin_width=0.125),
        ValueError,
        ["min_bin_width", "0.125", "1/8"],
    ),
    (
        "min_bin_height large",
        lambda: rq(min_bin_height=0.2),
        ValueError,
        ["min_bin_height", "0.2", "1/8"],
    ),
    (
        "min_derivative zero",
        lambda: rq(min_derivative=0.0),
        ValueError,
        ["min_derivative", "0.0", "positive"],
    ),
    (
        "slope of softclip",
        lambda: rq(parametrization="softclip", min_derivative=1.5),
        ValueError,
        ["min_derivative", "1.5", "softclip"],
    ),
    ("scale", lambda: affine(scale="relu"), ValueError, ["scale", "relu", "sigmoid", "exp"]),
    ("eps negative", lambda: affine(eps=-1.0), ValueError, ["eps", "-1.0", "0"]),
    ("eps NaN", lambda: affine(eps=float("nan")), ValueError, ["eps", "nan", "0"]),
    ("clamp zero", lambda: affine(scale="tanh_exp", clamp=0.0), ValueError, ["clamp", "0.0"]),
    (
        "param_order",
        lambda: affine(param_order="rows"),
        ValueError,
        ["param_order", "rows", "channel", "parameter"],
    ),
    (
        "log_scale of another shape",
        lambda: affine(params=Z(2, 3, 4), log_scale=Z(2, 3, 5)),
        ValueError,
        ["log_scale", "5", "4"],
    ),
    (
        "log_scale integer",
        lambda: affine(params=Z(2, 3, 4), log_scale=Z(2, 3, 4).long()),
        TypeError,
        ["log_scale", "int64", "float"],
    ),
    (
        "params on another device",
        lambda: modified(params=Z(2, 12, 4, device="meta")),
        ValueError,
        ["params", "meta", "cpu"],
    ),
]


@pytest.mark.parametrize(
    ("call", "exception", "words"),
    [bad[1:] for bad in BAD_CALLS],
    ids=[bad[0] for bad in BAD_CALLS],
)
def test_bad_call(
    device_target: Target, call: Call, exception: type[Exception], words: list[str]
) -> None:
    with pytest.raises(exception) as caught:
        call()
    assert type(caught.value) is exception
    message = str(caught.value)
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"
    assert re.search(r"[.:]$|[.] ", message), f"not a sentence: {message}"


@pytest.mark.parametrize("call", [modified, rq, packed, affine], ids=lambda c: c.__name__)
def test_the_good_call_beside_them(device_target: Target, call: Callable[[], Any]) -> None:
    """The defaults above are right: only what a bad call changes makes it bad."""
    with torch.device(device_target.device):
        y, logabsdet = call()
    assert bool(y.isfinite().all()) and bool(logabsdet.isfinite().all())


@pytest.mark.parametrize("name", ["modified_rq", "rq", "affine"])
def test_raw_operator_refuses_what_would_read_out_of_bounds(
    name: str, native_target: Target
) -> None:
    """The operators are public too: torch.ops.robustflow.* must not trust shapes."""
    operator = native_target.implementation(name).operator
    config: dict[str, tuple[Any, ...]] = {
        "modified_rq": (False, -0.5, 0.5, 1e-3, 1e-3, False, 2),
        "rq": (None, None, None, 8, False, 1, 0, -1.0, 1.0, -1.0, 1.0, 1e-3, 1e-3, 1e-3, 1.0, 2),
        "affine": (None, False, 0, 1e-4, 1.0, True, False, 2),
    }
    size = {"modified_rq": 4, "rq": 23, "affine": 2}[name]
    bad: list[tuple[Tensor, Tensor]] = [
        (Z(3, 2), Z(3, 2, size - 1)),
        (Z(3, 2), Z(2, 2, size)),
        (Z(3, 2), Z(3, 3, size)),
        (Z(3, 2), Z(5, 3, 2, size)),
        (Z(3, 2).int(), Z(3, 2, size)),
    ]
    for x, params in bad:
        x, params = x.to(native_target.device), params.to(native_target.device)
        with pytest.raises((RuntimeError, ValueError, TypeError, NotImplementedError)):
            operator(x, params, *config[name])
