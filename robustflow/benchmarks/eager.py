"""The textbook formulas in plain PyTorch, as a good user would write them.

Benchmarks state speed and accuracy relative to these functions, so do not change them unless they
are wrong. They are the formulas of the papers (Durkan et al. 2019, arXiv:1906.04032; Hong, Park,
Chun 2023, arXiv:2212.04319; Hong, Chun 2023, arXiv:2304.04555), and not the forms that
``robustflow.reference`` and the kernels use. They use ``torch.where`` instead of masks and gathers
where they can. Logits do not saturate.

Each function takes and returns what its namesake in ``robustflow.functional`` does.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Reduce = Literal["sum", "none"]


def modified_rq_spline(
    x: Tensor,
    params: Tensor,
    *,
    inverse: bool = False,
    interval: tuple[float, float] = (-0.5, 0.5),
    min_bin: float = 1e-3,
    min_derivative: float = 1e-3,
    derivative: Literal["exp", "softclip"] = "exp",
    reduce: Reduce = "sum",
) -> tuple[Tensor, Tensor]:
    """x (N, C, *S), params (N, C*4, *S): width, height, derivative, shift logits."""
    lo, hi = interval
    length = hi - lo
    width_logit, height_logit, derivative_logit, shift = params.unflatten(1, (-1, 4)).unbind(2)
    first_width = length * (min_bin + (1 - 2 * min_bin) * torch.sigmoid(width_logit))
    first_height = length * (min_bin + (1 - 2 * min_bin) * torch.sigmoid(height_logit))
    if derivative == "exp":
        inner = min_derivative + (1 - min_derivative) * torch.exp(derivative_logit)
    else:
        inner = torch.exp(_softclip(derivative_logit, -math.log(min_derivative)))

    argument = x - shift if inverse else x
    clamped = argument.clamp(lo, hi)
    upper = clamped >= lo + (first_height if inverse else first_width)
    x_k = torch.where(upper, lo + first_width, lo)
    y_k = torch.where(upper, lo + first_height, lo)
    width = torch.where(upper, length - first_width, first_width)
    height = torch.where(upper, length - first_height, first_height)
    d_k = torch.where(upper, inner, 1.0)
    d_k1 = torch.where(upper, 1.0, inner)

    result, logabsdet = _bin(clamped, x_k, y_k, width, height, d_k, d_k1, inverse)
    inside = (argument > lo) & (argument < hi)
    result = torch.where(inside, result, argument)
    logabsdet = torch.where(inside, logabsdet, 0.0)
    return result if inverse else result + shift, _reduce(logabsdet, reduce)


def rq_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    *,
    tails: Literal["linear", "circular"] = "linear",
    tail_bound: float = 1.0,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    parametrization: Literal["softmax", "softclip"] = "softmax",
    reduce: Reduce = "none",
) -> tuple[Tensor, Tensor]:
    """inputs (*,); widths, heights (*, K); derivatives (*, K-1) linear, (*, K) circular."""
    num_bins = unnormalized_widths.shape[-1]
    if parametrization == "softmax":
        widths = F.softmax(unnormalized_widths, dim=-1)
        heights = F.softmax(unnormalized_heights, dim=-1)
        widths = min_bin_width + (1 - min_bin_width * num_bins) * widths
        heights = min_bin_height + (1 - min_bin_height * num_bins) * heights
        derivatives = min_derivative + F.softplus(unnormalized_derivatives)
    else:
        limit = -math.log(min_derivative)
        widths = F.softmax(_softclip(unnormalized_widths, limit / 2), dim=-1)
        heights = F.softmax(_softclip(unnormalized_heights, limit / 2), dim=-1)
        derivatives = torch.exp(_softclip(unnormalized_derivatives, limit))
    if tails == "linear":
        derivatives = F.pad(derivatives, (1, 1), value=1.0)
    else:
        derivatives = torch.cat([derivatives, derivatives[..., :1]], dim=-1)
    knots_x = tail_bound * (2 * F.pad(torch.cumsum(widths, dim=-1), (1, 0)) - 1)
    knots_y = tail_bound * (2 * F.pad(torch.cumsum(heights, dim=-1), (1, 0)) - 1)

    clamped = inputs.clamp(-tail_bound, tail_bound)
    inner_knots = (knots_y if inverse else knots_x)[..., 1:-1]
    k = (clamped.unsqueeze(-1) >= inner_knots).sum(-1, keepdim=True)
    x_k, x_k1 = _take(knots_x, k), _take(knots_x, k + 1)
    y_k, y_k1 = _take(knots_y, k), _take(knots_y, k + 1)
    d_k, d_k1 = _take(derivatives, k), _take(derivatives, k + 1)

    result, logabsdet = _bin(clamped, x_k, y_k, x_k1 - x_k, y_k1 - y_k, d_k, d_k1, inverse)
    inside = (inputs > -tail_bound) & (inputs < tail_bound)
    result = torch.where(inside, result, inputs)
    logabsdet = torch.where(inside, logabsdet, 0.0)
    return result, _reduce(logabsdet, reduce)


def cubic_bspline(
    x: Tensor,
    params: Tensor,
    *,
    inverse: bool = False,
    interval: tuple[float, float] = (-0.5, 0.5),
    min_bin: float = 1e-2,
    reduce: Reduce = "sum",
) -> tuple[Tensor, Tensor]:
    """x (N, C, *S), params (N, C*11, *S): 4 knot logits, 6 control logits, shift."""
    lo, hi = interval
    params = params.unflatten(1, (-1, 11)).movedim(2, -1)
    free = 1 - 8 * min_bin
    spacings = F.pad(min_bin + free * F.softmax(params[..., :4], -1), (4, 4), value=min_bin)
    rises = F.pad(min_bin + free * F.softmax(params[..., 4:10], -1), (2, 2), value=min_bin)
    knots = F.pad(torch.cumsum(spacings, -1), (1, 0)) - 2 * min_bin  # the box is [0, 1]
    points = F.pad(torch.cumsum(rises, -1), (1, 0)) - min_bin

    argument = x - params[..., 10] if inverse else x
    u = ((argument - lo) / (hi - lo)).clamp(0.0, 1.0)
    if inverse:
        t = [knots[..., j : j + 8] for j in range(6)]
        at_knots, _ = _de_boor(t[2], t, [points[..., j : j + 8] for j in range(4)])
        k = (u.unsqueeze(-1) >= at_knots[..., 1:]).sum(-1, keepdim=True)
    else:
        k = (u.unsqueeze(-1) >= knots[..., 3:10]).sum(-1, keepdim=True)
    t = [_take(knots, k + j) for j in range(6)]
    p = [_take(points, k + j) for j in range(4)]
    if inverse:
        low, high = t[2], t[3]
        result = 0.5 * (low + high)
        for _ in range(12):  # Newton's method, by bisection where it leaves the bracket
            value, slope = _de_boor(result, t, p)
            too_high = value > u
            low, high = torch.where(too_high, low, result), torch.where(too_high, result, high)
            newton = result - (value - u) / slope
            inside = (newton >= low) & (newton <= high)
            result = torch.where(inside, newton, 0.5 * (low + high))
        _, slope = _de_boor(result, t, p)
    else:
        result, slope = _de_boor(u, t, p)
    result = lo + (hi - lo) * result
    logabsdet = torch.log(slope)
    inside = (argument > lo) & (argument < hi)
    result = torch.where(inside, result, argument)
    logabsdet = torch.where(inside, -logabsdet if inverse else logabsdet, 0.0)
    return result if inverse else result + params[..., 10], _reduce(logabsdet, reduce)


def conditional_affine(
    x: Tensor,
    params: Tensor,
    *,
    inverse: bool = False,
    scale: Literal["sigmoid", "exp"] = "sigmoid",
    eps: float = 1e-4,
    shift_first: bool = True,
    reduce: Reduce = "sum",
) -> tuple[Tensor, Tensor]:
    """x (N, C, *S), params (N, C*2, *S): shift, scale logit."""
    shift, logit = params.unflatten(1, (-1, 2)).unbind(2)
    if scale == "exp":
        s, log_s = torch.exp(logit), logit
    else:
        s = torch.sigmoid(logit + 2) + eps
        log_s = torch.log(s)
    if inverse:
        result = x / s - shift if shift_first else (x - shift) / s
        return result, _reduce(-log_s, reduce)
    result = (x + shift) * s if shift_first else x * s + shift
    return result, _reduce(log_s, reduce)


def _bin(
    value: Tensor,
    x_k: Tensor,
    y_k: Tensor,
    width: Tensor,
    height: Tensor,
    d_k: Tensor,
    d_k1: Tensor,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """One rational-quadratic bin, element by element (arXiv:1906.04032, equations 4 to 8)."""
    s = height / width
    bend = d_k + d_k1 - 2 * s
    if inverse:
        rise = value - y_k
        a = height * (s - d_k) + rise * bend
        b = height * d_k - rise * bend
        c = -s * rise
        # Rounding makes the discriminant negative now and then.
        discriminant = (b * b - 4 * a * c).clamp(min=0.0)
        t = 2 * c / (-b - torch.sqrt(discriminant))
        result = x_k + t * width
    else:
        t = (value - x_k) / width
    t_1t = t * (1 - t)
    denominator = s + bend * t_1t
    if not inverse:
        result = y_k + height * (s * t * t + d_k * t_1t) / denominator
    numerator = d_k1 * t * t + 2 * s * t_1t + d_k * (1 - t) ** 2
    logabsdet = 2 * torch.log(s) + torch.log(numerator) - 2 * torch.log(denominator)
    return result, -logabsdet if inverse else logabsdet


def _de_boor(x: Tensor, t: list[Tensor], p: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Value and slope at x in [t2, t3], by de Boor's recursion on 6 knots and 4 points."""
    d = list(p)
    slope = x
    for r in range(1, 4):
        for j in range(3, r - 1, -1):
            left, right = t[j - 1], t[j + 3 - r]
            alpha = (x - left) / (right - left)
            if r == 3:
                slope = 3 * (d[j] - d[j - 1]) / (right - left)
            d[j] = d[j - 1] + alpha * (d[j] - d[j - 1])
    return d[3], slope


def _softclip(logit: Tensor, limit: float) -> Tensor:
    return logit / (1 + torch.abs(logit) / limit)


def _take(values: Tensor, k: Tensor) -> Tensor:
    return values.gather(-1, k).squeeze(-1)


def _reduce(logabsdet: Tensor, reduce: Reduce) -> Tensor:
    if reduce == "none" or logabsdet.dim() < 2:
        return logabsdet
    return logabsdet.flatten(1).sum(1)
