"""The cubic B-spline against de Boor's recursion in 100-digit arithmetic (``oracle``).

Adversarial elements: knots and their neighbours, box edges, logits of up to 1e4, the smallest bins
from 1e-4 to 0.12 of the box, boxes from 1e-3 to 1e3. The exact gradients are central differences,
whose step of 1e-30 leaves 60 digits. An error is judged by what rounding explains: an ulp of the
result, and what moving the element's x by an ulp of the box does to the exact result, as its knots
are rounded to ulps of the box.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from robustflow import use_backend
from robustflow.functional import cubic_bspline
from tests.reference import oracle

SETTINGS = [
    ((-0.5, 0.5), 1e-2, 1.0),  # the box, the smallest bin, the size of logits
    ((-0.5, 0.5), 1e-2, 8.0),
    ((-0.5, 0.5), 1e-4, 3.0),
    ((-0.5, 0.5), 0.12, 1e4),
    ((-1e3, 1e3), 1e-3, 4.0),
    ((0.0, 1e-3), 1e-2, 1e4),
]
ELEMENTS = 13  # of each
STEP = mpf(10) ** -30

needs_native = pytest.mark.skipif(
    importlib.util.find_spec("robustflow._C") is None, reason="the native library is not built"
)
backends = pytest.mark.parametrize(
    "backend", ["reference", pytest.param("cpu", marks=needs_native)]
)
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32], ids=["float64", "float32"]
)
both_directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


@dataclass(frozen=True)
class Case:
    """float32 numbers held in float64; all elements have the same settings."""

    interval: tuple[float, float]
    min_bin: float
    x: Tensor  # (N,)
    params: Tensor  # (N, 11)
    cotangents: Tensor  # (N, 2)


Results = tuple[Tensor, Tensor, Tensor, Tensor]  # y, logabsdet, gradients by x and by params


def _case(index: int, inverse: bool) -> Case:
    interval, min_bin, scale = SETTINGS[index]
    generator = torch.Generator().manual_seed(2 * index + inverse)
    left, right = interval
    params = scale * torch.randn(ELEMENTS, 11, generator=generator)
    params[:, 10] = 0  # so that an inverse's input keeps its place
    x = left + (right - left) * torch.rand(ELEMENTS, generator=generator)
    x[:3] = torch.tensor([left, right, left + 1e-6 * (right - left)])
    x[3] = torch.nextafter(torch.tensor(right), torch.tensor(left))
    for i in range(4, 9):  # the knots as float32 has them: on one side or on the other
        spline = oracle.cubic_bspline(params[i].tolist(), interval=interval, min_bin=min_bin)
        knot = spline.knots[i - 1]
        x[i] = float(spline.forward(knot)[0] if inverse else knot)
    cotangents = torch.randn(ELEMENTS, 2, generator=generator)
    return Case(interval, min_bin, x.double(), params.double(), cotangents.double())


@functools.cache
def _elements(inverse: bool) -> list[tuple[Case, list[Element]]]:
    cases = [_case(index, inverse) for index in range(len(SETTINGS))]
    return [(case, [Element(case, i, inverse) for i in range(ELEMENTS)]) for case in cases]


@functools.cache
def _cases(inverse: bool, dtype: torch.dtype) -> list[tuple[Case, Results, Results]]:
    """With the exact results, and by how much rounding moves them."""
    return [
        (case, *_exact(case, elements, torch.finfo(dtype).eps))
        for case, elements in _elements(inverse)
    ]


def _exact(case: Case, elements: list[Element], eps: float) -> tuple[Results, Results]:
    exact, moved = [], []
    ulp = eps * max(abs(edge) for edge in case.interval)
    for element in elements:
        here, *there = (element.results(i * ulp) for i in (0, -1, 1))
        exact.append(here)
        moved.append([max(abs(t[i] - here[i]) for t in there) for i in range(len(here))])
    return _results(exact), _results(moved)


def _results(rows: list[list[mpf]]) -> Results:
    table = torch.tensor([[float(v) for v in row] for row in rows], dtype=torch.float64)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3:]


class Element:
    """The exact results of an element."""

    def __init__(self, case: Case, index: int, inverse: bool) -> None:
        settings: Any = {"interval": case.interval, "min_bin": case.min_bin}
        params, x = case.params[index].tolist(), case.x[index].item()
        self.inverse = inverse
        self.spline = oracle.cubic_bspline(params, **settings)
        self.at = self.spline.inverse(x)[0] if inverse else mpf(x)
        # An inverse's input that moves moves its result by that over the slope; so do knots of x.
        self.lever = 1 + (mp.exp(-self.spline.forward(self.at)[1]) if inverse else 0)
        self.cotangents = [mpf(c) for c in case.cotangents[index].tolist()]
        self.neighbours = [
            [
                oracle.cubic_bspline([*params[:i], params[i] + step, *params[i + 1 :]], **settings)
                for step in (-STEP, STEP)
            ]
            for i in range(10)
        ]

    def results(self, moved_by: float) -> list[mpf]:
        """The value, logabsdet, the gradients by x and by the parameters."""
        at = self.at + self.lever * moved_by
        spline, (grad_y, grad_l) = self.spline, self.cotangents
        y, logabsdet = spline.forward(at)
        slope, bend = _central(spline.forward(at - STEP), spline.forward(at + STEP))
        if spline.is_outside(at):
            slope, bend = mpf(1), mpf(0)
        by_x = grad_y * slope + grad_l * bend
        if self.inverse:  # implicitly: the cotangents of the forward spline's y and log-determinant
            by_x = (grad_y - grad_l * bend) / slope
            y, logabsdet, grad_y, grad_l = at, -logabsdet, -by_x, -grad_l
        moved = (_central(*(s.forward(at) for s in pair)) for pair in self.neighbours)
        by_logits = [grad_y * by_y + grad_l * by_l for by_y, by_l in moved]
        return [y, logabsdet, by_x, *by_logits, grad_y]


def _central(minus: oracle.Pair, plus: oracle.Pair) -> oracle.Pair:
    return (plus[0] - minus[0]) / (2 * STEP), (plus[1] - minus[1]) / (2 * STEP)


def _run(case: Case, inverse: bool, dtype: torch.dtype, backend: str) -> Results:
    x, params = (t.to(dtype).requires_grad_() for t in (case.x, case.params))
    settings: Any = {"interval": case.interval, "min_bin": case.min_bin, "reduce": "none"}
    with use_backend(backend):
        y, logabsdet = cubic_bspline(x[:, None], params, inverse=inverse, **settings)
        cotangents = tuple(c[:, None].to(dtype) for c in case.cotangents.unbind(1))
        by_x, by_params = torch.autograd.grad((y, logabsdet), (x, params), cotangents)
    return y[:, 0].detach(), logabsdet[:, 0].detach(), by_x, by_params


def _errors(inverse: bool, dtype: torch.dtype, backend: str) -> list[Tensor]:
    """Of each result, in units of what rounding explains: of an ulp in the unit of the box, of a
    log-determinant of 1 or of a gradient of it by the box, and of what moves the exact result."""
    eps = torch.finfo(dtype).eps
    each = []
    for case, exact, moved in _cases(inverse, dtype):
        left, right = case.interval
        edge, by_box = max(abs(left), abs(right)), max(1.0, 1 / (right - left))
        found = _run(case, inverse, dtype, backend)
        each.append(
            [
                ((f.double() - e).abs() / (eps * (unit + e.abs()) + m)).flatten()
                for f, e, m, unit in zip(
                    found, exact, moved, (edge, 1.0, by_box, max(edge, by_box)), strict=True
                )
            ]
        )
    return [torch.cat(errors) for errors in zip(*each, strict=True)]


# What was measured, rounded up: values within 1.2 and the kernel's gradients within 3.4. Autograd
# forms the reference's from terms that cancel, where a bin is small beside its neighbours.
WORST = {"reference": (2.0, 2.0, 128.0, 128.0), "cpu": (2.0, 2.0, 5.0, 5.0)}


@both_directions
@backends
@dtypes
def test_rounding_explains_the_errors(inverse: bool, dtype: torch.dtype, backend: str) -> None:
    for errors, worst in zip(_errors(inverse, dtype, backend), WORST[backend], strict=True):
        assert errors.max() <= worst


@needs_native
@both_directions
def test_kernel_is_as_accurate_as_the_reference(inverse: bool) -> None:
    """In float32: the median within 1.5 times the reference's, the largest within 2."""
    kernel, reference = (_errors(inverse, torch.float32, b) for b in ("cpu", "reference"))
    for ours, theirs in zip(kernel, reference, strict=True):
        assert ours.median() <= 1.5 * theirs.median() + 0.02
        assert ours.max() <= 2 * theirs.max()


@backends
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_round_trip_in_float32(
    setting: tuple[tuple[float, float], float, float], backend: str
) -> None:
    """Within ulps of the box over the slope: where the curve is flat, y does not determine x."""
    (left, right), min_bin, scale = setting
    generator = torch.Generator().manual_seed(7)
    x = left + (right - left) * torch.rand(4000, 1, generator=generator)
    params = scale * torch.randn(4000, 11, generator=generator)
    params[:, 10] = 0
    settings: Any = {"interval": (left, right), "min_bin": min_bin, "reduce": "none"}
    with use_backend(backend):
        y, logabsdet = cubic_bspline(x, params, **settings)
        back, logabsdet_back = cubic_bspline(y, params, inverse=True, **settings)
    ulp = torch.finfo(torch.float32).eps * max(abs(left), abs(right))
    slope = logabsdet.exp().minimum((-logabsdet_back).exp())
    # Knots are rounded on both axes, and the slope between y and its rounding is not the one at y.
    assert ((back - x).abs() <= ulp * (4 + 8 / slope)).all()


@backends
@both_directions
@dtypes
def test_any_finite_logits(inverse: bool, dtype: torch.dtype, backend: str) -> None:
    """Finite results and gradients inside; the tail's exactly outside, where NaN is not read."""
    generator = torch.Generator().manual_seed(11)
    x = torch.rand(2000, 1, generator=generator, dtype=dtype) - 0.5
    params = 10.0 ** (38 * torch.rand(2000, 11, generator=generator, dtype=dtype))
    params *= torch.randn(2000, 11, generator=generator, dtype=dtype).sign()
    params[:, 10] = 0
    x[::5], params[::5, :10] = 0.5 + x[::5].abs(), torch.nan
    x.requires_grad_()
    params.requires_grad_()
    with use_backend(backend):
        y, logabsdet = cubic_bspline(x, params, inverse=inverse, reduce="none")
        by_x, by_params = torch.autograd.grad((y.sum() + 2 * logabsdet.sum()), (x, params))
    assert all(t.isfinite().all() for t in (y, logabsdet, by_x, by_params))
    assert torch.equal(y[::5], x[::5]) and not logabsdet[::5].any()
    assert (by_x[::5] == 1).all() and not by_params[::5, :10].any()
    assert (by_params[::5, 10] == (-1 if inverse else 1)).all()
