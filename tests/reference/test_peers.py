"""The K-bin parametrisations against the libraries whose checkpoints use them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from robustflow._transforms import count_derivatives
from tests.reference.calls import affine, rq


def raw(num_bins: int, tails: str | None, count: int = 4000) -> list[Tensor]:
    sizes = [num_bins, num_bins, count_derivatives(num_bins, tails)]
    return [2 * torch.randn(count, size, dtype=torch.float64) for size in sizes]


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("num_bins", [2, 8, 11])
def test_nflows_with_linear_tails(num_bins: int, inverse: bool) -> None:
    splines = pytest.importorskip("nflows.transforms.splines")
    groups = raw(num_bins, "linear")
    x = 3 * torch.randn(4000, dtype=torch.float64)
    expected = splines.unconstrained_rational_quadratic_spline(
        x, *groups, inverse=inverse, tails="linear", tail_bound=3.0
    )
    found = rq(x, *groups, num_bins=num_bins, inverse=inverse, box=(-3.0, 3.0, -3.0, 3.0))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inverse", [False, True])
def test_nflows_without_tails(inverse: bool) -> None:
    splines = pytest.importorskip("nflows.transforms.splines")
    groups = raw(6, None)
    # nflows asks of an inverse's input, too, whether it is between left and right.
    low, high = (-1.0, 1.5) if inverse else (-2.0, 2.0)
    x = low + (high - low) * torch.rand(4000, dtype=torch.float64)
    expected = splines.rational_quadratic_spline(
        x, *groups, inverse=inverse, left=-2.0, right=2.0, bottom=-1.0, top=1.5
    )
    found = rq(x, *groups, num_bins=6, tails=None, inverse=inverse, box=(-2.0, 2.0, -1.0, 1.5))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("inverse", [False, True])
def test_normflows_with_circular_tails(inverse: bool) -> None:
    splines = pytest.importorskip("normflows.utils.splines")
    groups = raw(7, "circular")
    x = 2 * torch.randn(4000, dtype=torch.float64)
    expected = splines.unconstrained_rational_quadratic_spline(
        x, *groups, inverse=inverse, tails="circular", tail_bound=torch.pi
    )
    edges = (-torch.pi, torch.pi, -torch.pi, torch.pi)
    found = rq(x, *groups, num_bins=7, tails="circular", inverse=inverse, box=edges)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_bins", [2, 8, 11])
def test_zuko(num_bins: int) -> None:
    transforms = pytest.importorskip("zuko.transforms")
    groups = raw(num_bins, "linear")
    transform = transforms.MonotonicRQSTransform(*groups, bound=5.0, slope=1e-3)
    settings: dict[str, Any] = {
        "num_bins": num_bins,
        "parametrization": "softclip",
        "box": (-5.0, 5.0, -5.0, 5.0),
    }
    x = 3 * torch.randn(4000, dtype=torch.float64)
    y, logabsdet = rq(x, *groups, **settings)
    expected = transform.call_and_ladj(x)
    torch.testing.assert_close((y, logabsdet), expected, rtol=1e-9, atol=1e-9)
    found, _ = rq(y, *groups, inverse=True, **settings)
    torch.testing.assert_close(found, transform.inv(y), rtol=1e-8, atol=1e-8)


def test_zuko_affine() -> None:
    transforms = pytest.importorskip("zuko.transforms")
    shift, logit = torch.randn(2, 100, dtype=torch.float64) * 5
    x = torch.randn(100, dtype=torch.float64)
    expected = transforms.MonotonicAffineTransform(shift, logit, slope=1e-3).call_and_ladj(x)
    found = affine(
        x,
        torch.stack([shift, logit], -1),
        scale="softclip_exp",
        clamp=-torch.tensor(1e-3, dtype=torch.float64).log().item(),
        shift_first=False,
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
