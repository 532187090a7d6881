"""Values of the reference transforms against 100-digit arithmetic.

The bound on y is a mixed one, since y = T(x) may be arbitrarily steep: the result must lie between
the exact values at x - delta and x + delta, widened by delta, with delta = 4 eps of the box's edge.
The log-derivative must lie in the range of the exact one over the same interval, widened by what
rounding a knot does to the bin's size: 4 eps (1 + |l| + 2 B / min(W, H)).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

from robustflow._transforms import SCALES, count_derivatives
from robustflow.reference import numerics
from tests.reference import oracle
from tests.reference.calls import affine, modified_rq, random_knots, rq

DTYPES = (torch.float64, torch.float32)
ULPS = 4


def points(spline: oracle.Spline, dtype: torch.dtype, *, inverse: bool, count: int = 12) -> Tensor:
    """Knots and box edges with their neighbours in ``dtype``, and points in and out of the box."""
    knots = torch.tensor([float(k) for k in (spline.ys if inverse else spline.xs)], dtype=dtype)
    up, down = torch.full_like(knots, math.inf), torch.full_like(knots, -math.inf)
    above, below = torch.nextafter(knots, up), torch.nextafter(knots, down)
    low, high = knots[0], knots[-1]
    anywhere = low + (high - low) * (torch.rand(count, dtype=dtype) * 1.2 - 0.1)
    special = torch.tensor([0.0, 1e-30, -1e-30], dtype=dtype)
    return torch.cat([knots, above, torch.nextafter(above, up), below, anywhere, special])


def assert_matches(
    spline: oracle.Spline, x: Tensor, result: tuple[Tensor, Tensor], *, inverse: bool
) -> None:
    """Check (y, logabsdet) of every element of x against the oracle, within the file's bound."""
    directions: list[Callable[[mpf], oracle.Pair]] = [spline.forward, spline.inverse]
    exact, back = reversed(directions) if inverse else directions
    source, target = (spline.ys, spline.xs) if inverse else (spline.xs, spline.ys)
    unit = mpf(ULPS * torch.finfo(x.dtype).eps)
    edge = max(map(abs, (*source, *target)))
    delta = unit * edge

    def inside(value: mpf) -> mpf:
        hair = mpf("1e-60")
        return min(max(value, source[0] + hair), source[-1] - hair)

    for value, y, logabsdet in zip(x.tolist(), *(r.tolist() for r in result), strict=True):
        label = f"at {value!r}: y {y!r}, logabsdet {logabsdet!r}, inverse {inverse}, {spline}"
        y_exact, _ = exact(value)
        if mp.isnan(y_exact):
            assert math.isnan(y) and math.isnan(logabsdet), label
        elif spline.is_outside(value, inverse=inverse):
            assert y == value and logabsdet == 0, label
        else:
            nearby = [inside(mpf(value) + move) for move in (-delta, 0, delta)]
            # The log-derivative may have a peak at a knot that is narrower than delta.
            nearby[1:1] = [k for k in source[1:-1] if abs(k - value) <= delta]
            ys, logs = map(list, zip(*map(exact, nearby), strict=True))
            assert ys[0] - delta <= y <= ys[-1] + delta, label
            side = min(spline.smallest_side(v, inverse=inverse) for v in nearby)
            slack = unit * (1 + max(map(abs, logs)) + 2 * edge / side)
            if not min(logs) - slack <= logabsdet <= max(logs) + slack:
                # In between it may have one more peak, wide only when seen along the other axis.
                steps = [ys[0] + (ys[-1] - ys[0]) * i / 200 for i in range(1, 200)]
                logs += [-back(v)[1] for v in steps]
            assert min(logs) - slack <= logabsdet <= max(logs) + slack, label


def test_the_oracle_agrees_with_itself() -> None:
    """Its log-derivatives are those of its values, and its two directions are inverse."""
    raw = random_knots(4, None, smallest=1e-4).tolist()
    spline = oracle.rq_spline(
        raw[:4], raw[4:8], raw[8:], box=(-1, 1, -1, 1), tails=None, parametrization="knots"
    )
    for x in torch.rand(20, dtype=torch.float64).mul(2).sub(1).tolist():
        y, logabsdet = spline.forward(x)
        x_again, logabsdet_again = spline.inverse(y)
        slope = mp.diff(lambda v: spline.forward(v)[0], x, h=mpf("1e-40"))
        assert abs(slope - mp.exp(logabsdet)) <= abs(slope) * mpf("1e-30")
        assert abs(x - x_again) <= mpf("1e-60")
        assert abs(logabsdet + logabsdet_again) <= mpf("1e-60")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("derivative", ["exp", "softclip"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("interval", [(-0.5, 0.5), (-3.0, 3.0), (0.0, 1e-3), (1e5, 1e6)])
def test_modified_rq_matches_exact_arithmetic(
    dtype: torch.dtype, derivative: str, inverse: bool, interval: tuple[float, float]
) -> None:
    sizes = (0.0, 0.7, -3.0, 7.0, 20.0, -1e4, 1e38, -1e38)
    slopes = (0.0, 1.0, -6.0, 12.0, 39.5, -1e4, 1e38, -1e38)
    combinations = list(itertools.product(sizes, sizes, slopes))
    rng = random.Random(0)
    for logits in [(0.0, 0.0, 0.0), *rng.sample(combinations, 7)]:
        params = torch.tensor([*logits, 0.0], dtype=dtype)
        spline = oracle.modified_rq_spline(
            params.tolist(), interval=interval, derivative=derivative
        )
        x = points(spline, dtype, inverse=inverse)
        result = modified_rq(x, params, inverse=inverse, interval=interval, derivative=derivative)
        assert_matches(spline, x, result, inverse=inverse)


def test_modified_rq_shifts_tails_and_spline_alike() -> None:
    x = torch.tensor([-0.7, -0.2, 0.4, 0.9], dtype=torch.float64)
    params = torch.tensor([0.5, -1.0, 0.3, 0.125], dtype=torch.float64)
    unshifted = params * torch.tensor([1.0, 1.0, 1.0, 0.0])
    for inverse, moved in ((False, x), (True, x - 0.125)):
        y, logabsdet = modified_rq(x, params, inverse=inverse)
        y0, logabsdet0 = modified_rq(moved, unshifted, inverse=inverse)
        assert torch.equal(y, y0 if inverse else y0 + 0.125)
        assert torch.equal(logabsdet, logabsdet0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("tails", ["linear", "circular", None])
@pytest.mark.parametrize("parametrization", ["softmax", "softclip", "knots"])
def test_rq_matches_exact_arithmetic(
    dtype: torch.dtype, inverse: bool, tails: str | None, parametrization: str
) -> None:
    box = (-2.5, 0.5, -2.5, 0.5) if tails else (-1.0, 2.0, 10.0, 14.0)
    for num_bins, magnitude in ((1, 1.0), (2, 1e38), (5, 2.0), (8, 30.0), (8, 1e4), (16, 1.0)):
        count = count_derivatives(num_bins, tails)
        if parametrization == "knots":
            raw = random_knots(num_bins, tails, length=3.0)
            if tails is None:
                raw[num_bins : 2 * num_bins] *= 4 / 3
        else:
            raw = (torch.randn(2 * num_bins + count, dtype=torch.float64) * magnitude).clamp(
                -3e38, 3e38
            )
        raw = raw.to(dtype)
        widths, heights, derivatives = raw.split([num_bins, num_bins, count])
        settings: dict[str, Any] = {
            "tails": tails,
            "parametrization": parametrization,
            "min_derivative": 1e-3 if num_bins > 2 else 0.02,
            "logit_scale": 0.37 if num_bins > 5 else 1.0,
        }
        spline = oracle.rq_spline(
            widths.tolist(), heights.tolist(), derivatives.tolist(), box=box, **settings
        )
        x = points(spline, dtype, inverse=inverse)
        for packed in (True, False):
            groups = (raw, None, None) if packed else (widths, heights, derivatives)
            result = rq(x, *groups, num_bins=num_bins, inverse=inverse, box=box, **settings)
            if packed:
                assert_matches(spline, x, result, inverse=inverse)
                expected = result
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("inverse", [False, True])
def test_rq_takes_a_box_for_each_element(inverse: bool) -> None:
    edges = torch.tensor([[-1.0, 2.0, 0.0, 4.0], [-3.0, -1.0, 5.0, 5.5], [0.0, 9.0, -1.0, 1.0]])
    edges = edges.double()
    params = torch.randn(13, dtype=torch.float64)
    low, high = (edges[:, 2], edges[:, 3]) if inverse else (edges[:, 0], edges[:, 1])
    x = low + (high - low) * torch.rand(5, 3, dtype=torch.float64)
    settings: dict[str, Any] = {"num_bins": 4, "tails": None, "inverse": inverse}
    together = rq(x, params, box_tensor=edges, **settings)
    for i, box in enumerate(edges.tolist()):
        alone = rq(x[:, i], params, box=tuple(box), **settings)
        torch.testing.assert_close([v[:, i] for v in together], list(alone), rtol=1e-12, atol=1e-12)


def test_zero_parameters_give_the_identity() -> None:
    for dtype, ulp in ((torch.float64, 2.0**-53), (torch.float32, 2.0**-24)):
        for inverse in (False, True):
            x = torch.linspace(-0.6, 0.6, 10001, dtype=dtype)
            y, logabsdet = modified_rq(x, torch.zeros(4, dtype=dtype), inverse=inverse)
            assert (y - x).abs().max() <= ulp / 2
            assert logabsdet.abs().max() <= 5 * ulp
            for num_bins in (1, 2, 8, 13):
                x = torch.linspace(-3.5, 3.5, 10001, dtype=dtype)
                y, logabsdet = rq(
                    x,
                    torch.zeros(3 * num_bins - 1, dtype=dtype),
                    num_bins=num_bins,
                    inverse=inverse,
                    box=(-3.0, 3.0, -3.0, 3.0),
                    parametrization="softclip",
                )
                assert (y - x).abs().max() <= 8 * ulp
                assert logabsdet.abs().max() <= 32 * ulp
            y, logabsdet = affine(x, torch.zeros(2, dtype=dtype), scale="exp", inverse=inverse)
            assert torch.equal(y, x) and not logabsdet.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", list(SCALES))
@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_affine_matches_exact_arithmetic(dtype: torch.dtype, scale: str, eps: float) -> None:
    rounding = torch.finfo(dtype).eps
    logits = (0.0, 0.3, -2.0, 17.0, -30.0, 39.0, -41.0, 1e4, -1e4, 1e38, -1e38)
    logits = tuple(torch.tensor(logits, dtype=dtype).tolist())
    x, shift = torch.tensor([0.7, -1.9], dtype=dtype).tolist()
    flags = (False, True)
    for inverse, shift_first, reciprocal in itertools.product(flags, flags, flags):
        settings: dict[str, Any] = {
            "inverse": inverse,
            "scale": scale,
            "eps": eps,
            "clamp": 1.7,
            "shift_first": shift_first,
            "reciprocal": reciprocal,
        }
        params = torch.tensor([[shift, logit] for logit in logits], dtype=dtype)
        z = torch.full((len(logits),), x, dtype=dtype)
        packed = affine(z, params, **settings)
        separate = affine(z, params[:, :1], params[:, 1:], **settings)
        for ours, theirs in zip(packed, separate, strict=True):
            assert torch.equal(ours, theirs)
        for logit, y, logabsdet in zip(logits, *(p.tolist() for p in packed), strict=True):
            y_exact, l_exact = oracle.affine(x, shift, logit, **settings)
            gain = mp.exp(l_exact)
            unit = rounding * (1 + abs(l_exact))  # of a number that an exp makes of its logarithm
            terms = (abs(x) + abs(shift)) * gain + (0 if shift_first != inverse else abs(shift))
            assert abs(y - y_exact) <= 2 * unit * terms, (settings, logit)
            assert abs(logabsdet - l_exact) <= 2 * unit, (settings, logit)


def test_logabsdet_is_summed_over_the_trailing_dimensions() -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    calls = [
        lambda n: modified_rq(x, torch.randn(2, 3, 1, 4, generator=_seeded()), batch_dims=n),
        lambda n: rq(x, torch.randn(1, 3, 5, 14, generator=_seeded()), num_bins=5, batch_dims=n),
        lambda n: affine(x, torch.randn(5, 2, generator=_seeded()), batch_dims=n),
    ]
    for call in calls:
        y, each = call(3)
        assert y.shape == each.shape == x.shape
        for keep in (0, 1, 2):
            y_again, total = call(keep)
            assert torch.equal(y, y_again)
            torch.testing.assert_close(total, each.flatten(keep).sum(-1), rtol=1e-14, atol=1e-14)
            assert total.shape == x.shape[:keep]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_parameters_that_broadcast_equal_parameters_written_out() -> None:
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    for leading in [(), (1, 1, 1), (4, 1, 6), (3, 1), (1, 3, 6)]:
        for size, call in (
            (4, modified_rq),
            (2, affine),
            (23, lambda x, p: rq(x, p, num_bins=8)),
        ):
            params = torch.randn(*leading, size, dtype=torch.float64)
            written_out = params.expand(4, 3, 6, size).clone()
            torch.testing.assert_close(
                call(x, params), call(x, written_out), rtol=1e-12, atol=1e-12
            )


def test_softplus_is_exact_in_float64() -> None:
    """Also where torch's default has turned linear, at a relative error of 1e-10."""
    logits = [-700.0, -30.0, 0.0, 19.0, 20.5, 23.0, 39.5, 41.0, 1e4]
    found = numerics.softplus(torch.tensor(logits, dtype=torch.float64)).tolist()
    for logit, value in zip(logits, found, strict=True):
        exact = mp.log1p(mp.exp(mpf(logit)))
        assert abs(value - exact) <= 4e-16 * exact
