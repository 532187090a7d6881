"""The reference transforms with keywords, names and defaults in place of their bare positions."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from robustflow import reference
from robustflow._transforms import SCALES, count_derivatives

Pair = tuple[Tensor, Tensor]
Call = Callable[..., Pair]


def modified_rq(
    x: Tensor,
    params: Tensor,
    *,
    inverse: bool = False,
    interval: tuple[float, float] = (-0.5, 0.5),
    min_bin: float = 1e-3,
    min_derivative: float = 1e-3,
    derivative: str = "exp",
    batch_dims: int | None = None,
) -> Pair:
    keep = x.dim() if batch_dims is None else batch_dims
    return reference.modified_rq(
        x, params, inverse, *interval, min_bin, min_derivative, derivative, keep
    )


def rq(
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None = None,
    derivatives: Tensor | None = None,
    *,
    num_bins: int,
    inverse: bool = False,
    tails: str | None = "linear",
    parametrization: str = "softmax",
    box: tuple[float, float, float, float] = (-1.0, 1.0, -1.0, 1.0),
    box_tensor: Tensor | None = None,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    logit_scale: float = 1.0,
    batch_dims: int | None = None,
) -> Pair:
    keep = x.dim() if batch_dims is None else batch_dims
    return reference.rq(
        x,
        widths,
        heights,
        derivatives,
        box_tensor,
        num_bins,
        inverse,
        tails,
        parametrization,
        *box,
        min_bin_width,
        min_bin_height,
        min_derivative,
        logit_scale,
        keep,
    )


def affine(
    x: Tensor,
    params: Tensor,
    log_scale: Tensor | None = None,
    *,
    inverse: bool = False,
    scale: str = "sigmoid",
    eps: float = 1e-4,
    clamp: float = 2.0,
    shift_first: bool = True,
    reciprocal: bool = False,
    batch_dims: int | None = None,
) -> Pair:
    keep = x.dim() if batch_dims is None else batch_dims
    return reference.affine(
        x, params, log_scale, inverse, scale, eps, clamp, shift_first, reciprocal, keep
    )


def cubic_bspline(
    x: Tensor,
    params: Tensor,
    *,
    inverse: bool = False,
    interval: tuple[float, float] = (-0.5, 0.5),
    min_bin: float = 1e-2,
    batch_dims: int | None = None,
) -> Pair:
    keep = x.dim() if batch_dims is None else batch_dims
    return reference.cubic_bspline(x, params, inverse, *interval, min_bin, keep)


def random_knots(
    num_bins: int, tails: str | None, *, length: float = 2.0, smallest: float = 1e-3
) -> Tensor:
    """Ready-made sizes and derivatives (2K + D,) in float64; sizes down to ``smallest``."""

    def sizes() -> Tensor:
        raw = torch.exp(torch.rand(num_bins, dtype=torch.float64) * torch.tensor(smallest).log())
        return length * raw / raw.sum()

    spread = torch.rand(count_derivatives(num_bins, tails), dtype=torch.float64) * 14 - 7
    return torch.cat([sizes(), sizes(), spread.exp()])


def calls() -> list[Any]:
    """(function of x and packed parameters, number of parameters), in both directions."""
    cases: list[tuple[str, Call, int]] = [
        ("modified_rq-exp", modified_rq, 4),
        ("modified_rq-softclip", partial(modified_rq, derivative="softclip"), 4),
        # At knots, l has no second derivative: none is at an input.
        ("cubic_bspline", partial(cubic_bspline, min_bin=2e-2), 11),
    ]
    for tails, parametrization in itertools.product(
        ("linear", "circular", None), ("softmax", "softclip")
    ):
        call = partial(
            rq, num_bins=3, tails=tails, parametrization=parametrization, logit_scale=0.6
        )
        cases.append((f"rq-{parametrization}-{tails}", call, 6 + count_derivatives(3, tails)))
    for scale in SCALES:
        cases.append((f"affine-{scale}", partial(affine, scale=scale), 2))
    cases.append(("affine-reciprocal", partial(affine, shift_first=False, reciprocal=True), 2))
    return [
        pytest.param(partial(call, inverse=inverse), count, id=f"{name}-{way}")
        for name, call, count in cases
        for inverse, way in ((False, "forward"), (True, "inverse"))
    ]


def inputs(count: int, *leading: int) -> Pair:
    """x in and out of the boxes and parameters of a size that finite differences can bear."""
    x = torch.linspace(-0.83, 0.87, 6, dtype=torch.float64).expand(*leading, 6).clone()
    params = torch.randn(*leading, 6, count, dtype=torch.float64)
    params[..., -1] *= 0.1
    return x.requires_grad_(), params.requires_grad_()
