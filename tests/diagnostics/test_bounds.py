"""Bounds of elementwise transforms: no parameters beat them, and some come near."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustflow.diagnostics.bounds import Bounds, bounds_of
from robustflow.nn import Affine, CubicBSpline, ModifiedRQSpline, RQSpline

TRANSFORMS: dict[str, Any] = {
    "affine": Affine(),
    "affine, eps 1e-2": Affine(eps=1e-2),
    "affine, eps 0": Affine(eps=0.0),
    "reparametrised affine": Affine(reciprocal=True),
    "exp": Affine(scale="exp"),
    "softplus": Affine(scale="softplus", eps=1e-3, shift_first=False),
    "FrEIA's": Affine(scale="atan_exp", shift_first=False),
    "tanh": Affine(scale="tanh_exp", clamp=1.5),
    "zuko's": Affine(scale="softclip_exp", shift_first=False),
    "modified RQ": ModifiedRQSpline(),
    "published RQ": ModifiedRQSpline.published(),
    "modified RQ, wide bins": ModifiedRQSpline(interval=(-1.0, 2.0), min_bin=0.2),
    "B-spline": CubicBSpline(),
    "B-spline, wide bins": CubicBSpline(interval=(-1.0, 2.0), min_bin=0.1),
    "RQ": RQSpline(),
    "RQ, 2 bins, wide": RQSpline(num_bins=2, tail_bound=1.0, min_bin_width=0.1, min_bin_height=0.2),
    "RQ, 1 bin": RQSpline(num_bins=1),
    "RQ, zuko's": RQSpline(num_bins=5, tail_bound=5.0, parametrization="softclip"),
    "circular": RQSpline(num_bins=4, tails="circular", tail_bound=math.pi),
    "circular, by channel": RQSpline(num_bins=4, tails=("circular",), tail_bound=(2.0,)),
    "no tails": RQSpline(num_bins=4, tails=None, tail_bound=1.0),
}
EVERY = pytest.mark.parametrize("name", TRANSFORMS)


def bounds(name: str) -> Bounds:
    found = bounds_of(TRANSFORMS[name])
    assert found is not None
    return found


def size(name: str) -> float:
    """About how large an input is, where the transform bends."""
    return bounds(name).radius or 1.0


def shift_of(name: str, params: Tensor) -> Tensor:
    transform = TRANSFORMS[name]
    if isinstance(transform, Affine):
        return params[:, :1]
    with_shift = isinstance(transform, (CubicBSpline, ModifiedRQSpline))
    return params[:, -1:] if with_shift else torch.zeros(len(params), 1)


def inverse(name: str, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """x and log |dx/dy|, of one element a row."""
    x, logabsdet = TRANSFORMS[name](y, params, inverse=True)
    return x, logabsdet[:, None]


def search(
    name: str, gain: Callable[[Tensor, Tensor], Tensor], *, rows: int = 400, steps: int = 100
) -> Tensor:
    """The largest ``gain(y, params)`` found by gradient, from small and extreme parameters.

    y is tried within the box and about it.
    """
    torch.manual_seed(0)
    count = TRANSFORMS[name].num_params
    params = torch.randn(rows, count, dtype=torch.float64)
    params *= torch.tensor([1.0, 8.0, 45.0, 1e4]).double().repeat_interleave(rows // 4)[:, None]
    y = size(name) * 1.3 * (2 * torch.rand(rows, 1, dtype=torch.float64) - 1)
    params.requires_grad_()
    y.requires_grad_()
    optimizer = torch.optim.Adam([{"params": params, "lr": 0.5}, {"params": y, "lr": 0.01}])
    best = torch.tensor(-math.inf, dtype=torch.float64)
    for _ in range(steps):
        optimizer.zero_grad()
        value = gain(y, params)
        found = value.detach()
        best = torch.maximum(best, found[found.isfinite()].max())
        (-value[value.isfinite()].sum()).backward()
        optimizer.step()
    return best


@EVERY
def test_no_parameters_beat_the_inverse_derivative(name: str) -> None:
    """Found by gradient: at most the bound; an affine transform's is nearly reached."""
    proven = bounds(name)
    limit = (proven.computed or proven.derivative).reciprocal.high
    best = float(search(name, lambda y, params: inverse(name, y, params)[1]))
    assert best <= math.log(limit) + 1e-9
    if isinstance(TRANSFORMS[name], Affine):
        assert best >= math.log(limit) - 1e-2


def worst(transform: CubicBSpline | ModifiedRQSpline | RQSpline) -> Tensor:
    """Parameters of a first bin as wide and as low as can be, its second knot as steep; of a
    B-spline, of a first free bin."""
    flat, steep = -1e18, 1e18
    if isinstance(transform, CubicBSpline):
        logits = [1e4, *[-1e4] * 3, *[-1e4] * 3, *[1e4] * 3, 0.0]
        return torch.tensor([logits], dtype=torch.float64)
    if isinstance(transform, ModifiedRQSpline):
        return torch.tensor([[40.0, -40.0, steep, 0.0]], dtype=torch.float64)
    others = transform.num_bins - 1
    derivatives = [steep] * transform.num_derivatives
    if transform.tails != "linear":
        derivatives[0] = flat
    logits = [1e4, *[-1e4] * others, -1e4, *[1e4] * others, *derivatives]
    return torch.tensor([logits], dtype=torch.float64)


@pytest.mark.parametrize(
    "name", [n for n, each in TRANSFORMS.items() if not isinstance(each, Affine)]
)
def test_the_inverse_derivative_of_a_spline_is_within_a_factor_of_two(name: str) -> None:
    transform, proven = TRANSFORMS[name], bounds(name)
    least = (proven.computed or proven.derivative).low
    left = -proven.radius if isinstance(transform, RQSpline) else transform.interval[0]
    distance = torch.logspace(-30, 0, 20000, dtype=torch.float64) * 2 * size(name)
    x = (left + distance)[:, None]
    found = transform(x, worst(transform).expand(len(x), -1))[1]
    best = math.exp(float(found[found.isfinite()].min()))
    assert least <= best * (1 + 1e-9)
    assert best <= 2 * least


@EVERY
def test_no_parameters_beat_the_forward_derivative(name: str) -> None:
    proven = bounds(name)
    limit = (proven.computed or proven.derivative).high

    def gain(x: Tensor, params: Tensor) -> Tensor:
        return TRANSFORMS[name](x, params)[1][:, None]

    assert float(search(name, gain)) <= math.log(limit) + 1e-9


@pytest.mark.parametrize(
    "name", [name for name in TRANSFORMS if not isinstance(TRANSFORMS[name], Affine)]
)
def test_no_parameters_move_a_value_further_than_the_displacement(name: str) -> None:
    def gain(y: Tensor, params: Tensor) -> Tensor:
        return (inverse(name, y, params)[0] - (y - shift_of(name, params))).abs()

    # The shift moves y out of the box: hold it where it is.
    limit = bounds(name).displacement
    best = float(search(name, gain))
    assert best <= limit
    if "bin" not in name:
        assert best >= 0.9 * limit


@given(
    name=st.sampled_from(list(TRANSFORMS)),
    data=st.data(),
)
def test_the_line_bounds_every_inverse(name: str, data: st.DataObject) -> None:
    """|x| <= gain |y| + constant + shift |t|, both ways, at whatever hypothesis thinks of."""
    finite = st.floats(-1e6, 1e6)
    count = TRANSFORMS[name].num_params
    row = data.draw(st.lists(finite, min_size=count, max_size=count))
    value = data.draw(finite)
    params = torch.tensor([row], dtype=torch.float64)
    given_value = torch.tensor([[value]], dtype=torch.float64)
    shift = float(shift_of(name, params).abs())
    for line, backwards in ((bounds(name).inverse, True), (bounds(name).forward, False)):
        out = float(TRANSFORMS[name](given_value, params, inverse=backwards)[0])
        if math.isnan(out):  # outside a box without tails
            assert TRANSFORMS[name] == RQSpline(num_bins=4, tails=None, tail_bound=1.0)
            continue
        limit = sum(
            factor * term
            for factor, term in ((line.gain, abs(value)), (line.constant, 1.0), (line.shift, shift))
            if term
        )
        assert abs(out) <= limit * (1 + 1e-12)


@EVERY
def test_the_tail_is_what_it_says(name: str) -> None:
    proven = bounds(name)
    torch.manual_seed(0)
    params = 40 * torch.randn(2000, TRANSFORMS[name].num_params, dtype=torch.float64)
    params[:10] *= 1e18
    x = proven.radius + 10 * torch.rand(2000, 1, dtype=torch.float64) + 1e-9
    x = torch.where(torch.rand_like(x) < 0.5, x, -x)
    log_derivative = TRANSFORMS[name](x, params)[1]
    if proven.tail is None:
        assert log_derivative.isnan().all()
        return
    tail = proven.tail
    if proven.computed is not None and tail.ratio > 1:
        tail = proven.computed
    ratio = float(log_derivative.max() - log_derivative.min())
    assert float(log_derivative.max()) <= math.log(tail.high) + 1e-12
    assert float(log_derivative.min()) >= math.log(tail.low) - 1e-12
    assert ratio == pytest.approx(math.log(tail.ratio), rel=1e-3, abs=1e-12)


def test_the_published_numbers() -> None:
    assert bounds("affine").inverse.gain == pytest.approx(1e4)
    tail = bounds("affine").tail
    assert tail is not None and tail.ratio == pytest.approx(10001)
    assert bounds("reparametrised affine").inverse.gain == pytest.approx(1.0001)
    assert bounds("exp").inverse.gain == math.inf
    computed = bounds("exp").computed
    assert computed is not None and computed.high == pytest.approx(math.exp(40))
    assert bounds("FrEIA's").inverse.gain == pytest.approx(math.exp(2), rel=3e-3)
    assert bounds("published RQ").displacement == pytest.approx(0.999)
    assert bounds("published RQ").tail == bounds("RQ").tail


@EVERY
def test_reversed_twice_is_the_same(name: str) -> None:
    proven = bounds(name)
    twice = proven.reversed.reversed
    assert twice.derivative.low == pytest.approx(proven.derivative.low)
    assert (twice.inverse, twice.forward) == (proven.inverse, proven.forward)
    assert proven.reversed.inverse == proven.forward
