"""The conditional affine transform of SRFlow, Glow, RealNVP, FrEIA and zuko: shift and scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robustflow.reference.numerics import (
    LINEAR_LIMIT,
    LOGIT_LIMIT,
    compute_dtype,
    saturate,
    softclip,
    softplus,
    sum_from,
)


def affine(
    x: Tensor,
    params: Tensor,
    log_scale: Tensor | None,
    inverse: bool,
    scale: str,
    eps: float,
    clamp: float,
    shift_first: bool,
    reciprocal: bool,
    batch_dims: int,
) -> tuple[Tensor, Tensor]:
    """y = (x + t) s, or x s + t, elementwise.

    Args:
        x: shape S, any floating dtype.
        params: broadcasts to S + (2,): shift and scale logit; to S + (1,), the shift alone, when
            ``log_scale`` is given.
        log_scale: broadcasts to S + (1,): the scale logit a; or None.
        inverse: y / s - t, or (y - t) / s.
        scale: "sigmoid", sigmoid(a + 2) + eps; "exp", exp(a); "softplus", softplus(a) + eps;
            "atan_exp", exp(clamp 0.636 atan(a)); "tanh_exp", exp(clamp tanh(a)); "softclip_exp",
            exp(a / (1 + |a| / clamp)). Logits of sigmoid and exp saturate at +-40, those of
            softplus at -40 and 2**60.
        eps: added to sigmoid and softplus.
        clamp: bound of the soft-clamped log-scales.
        shift_first: which of the two forms.
        reciprocal: s is one over the scale above.
        batch_dims: the log-determinant is summed over the dimensions of x from this one on.

    Returns:
        y of the shape and dtype of x, and the log-determinant +-log s of shape S[:batch_dims] in
        the compute dtype: float64 if x or any parameter is, else float32. It is NaN where x is.

    Example:
        >>> affine(torch.ones(1), torch.zeros(2), None, False, "exp", 0.0, 2.0, True, False, 1)
        (tensor([1.]), tensor([0.]))
    """
    dtype = compute_dtype(x, params, log_scale)
    z = x.to(dtype)
    shift = params[..., 0].to(dtype)
    logit = (params[..., 1] if log_scale is None else log_scale[..., 0]).to(dtype)

    factor, log_factor = _factor(logit, scale, eps, clamp, divide=inverse != reciprocal)
    if inverse:
        shift = -shift
    y = (z + shift) * factor if shift_first != inverse else z * factor + shift
    logabsdet = torch.where(z.isnan(), math.nan, log_factor)
    return y.to(x.dtype), sum_from(logabsdet, batch_dims)


def _factor(
    logit: Tensor, scale: str, eps: float, clamp: float, *, divide: bool
) -> tuple[Tensor, Tensor]:
    """The factor of x (the scale, or one over it if ``divide``), and its logarithm."""
    if scale == "softplus":
        value = softplus(saturate(logit, -LOGIT_LIMIT, LINEAR_LIMIT)) + eps
    elif scale == "sigmoid" and eps > 0:
        value = torch.sigmoid(saturate(logit + 2)) + eps
    else:
        log_value = _log_scale(logit, scale, clamp)
        if divide:
            log_value = -log_value
        return torch.exp(log_value), log_value
    log_value = torch.log(value)
    return (1 / value, -log_value) if divide else (value, log_value)


def _log_scale(logit: Tensor, scale: str, clamp: float) -> Tensor:
    """The log of a scale that is an exponential; sigmoid counts as one if eps is 0."""
    if scale == "sigmoid":
        return torch.nn.functional.logsigmoid(saturate(logit + 2))
    if scale == "atan_exp":
        logit = clamp * 0.636 * torch.atan(logit)
    elif scale == "tanh_exp":
        logit = clamp * torch.tanh(logit)
    elif scale == "softclip_exp":
        logit = softclip(logit, clamp)
    return saturate(logit)
