"""The transforms, as a user calls them with tensors.

Every function returns ``(y, logabsdet)``. They check their arguments, look at packed parameters
through strides (nothing is copied), and hand over to :mod:`robustflow.ops`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robustflow import ops
from robustflow._checks import (
    check_choice,
    check_leading_shape,
    check_same_device,
    check_tensor,
)
from robustflow._rq_arguments import Bound, box_of, check_rq_parameters
from robustflow._transforms import AFFINE, CUBIC_BSPLINE, MODIFIED_RQ, RQ, count_derivatives

Reduce = Literal["sum", "none"]
ParamOrder = Literal["channel", "parameter"]

_PARAM_ORDER = ("channel", "parameter")
_modified_rq, _rq, _affine, _cubic_bspline = (
    ops.of(spec) for spec in (MODIFIED_RQ, RQ, AFFINE, CUBIC_BSPLINE)
)


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
    param_order: ParamOrder = "channel",
) -> tuple[Tensor, Tensor]:
    """The modified rational-quadratic spline: two bins, identity outside, and a shift.

    Whatever the parameters, ``|T(x) - x - shift|`` is less than the length of the interval, so
    neither direction can explode. All-zero parameters give the identity.

    Args:
        x: (N, C, \\*S), any number of dimensions; float64, float32, bfloat16 or float16.
        params: (N, C*4, \\*S), as a convolution or a linear layer makes them, in the order width,
            height, derivative, shift logits; or (N, C, \\*S, 4) with the parameters last. Any
            dimension but the packed one may be 1 and is then shared (and its gradient summed).
        inverse: solve for the input instead.
        interval: the box, on both axes; outside it the transform is ``x + shift``.
        min_bin: smallest bin, as a fraction of the interval, in (0, 0.5).
        min_derivative: smallest derivative at the inner knot, in (0, 1).
        derivative: ``"exp"``, the paper's, or ``"softclip"``, bounded to
            ``[min_derivative, 1 / min_derivative]``.
        reduce: ``"sum"`` adds the log-determinant over all but the first dimension.
        param_order: where packed, ``"channel"`` is index ``c * 4 + p``, ``"parameter"`` is
            ``p * C + c``.

    Returns:
        ``y`` like ``x``; ``logabsdet`` (N,), or like ``x`` with ``reduce="none"``; float32, or
        float64 if an input is.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.

    Source: Hong, Park, Chun, ICCV 2023 (arXiv:2212.04319), from the spline of Durkan et al. 2019
    (arXiv:1906.04032).

    Example:
        >>> x, params = torch.randn(2, 3, 8, 8), torch.randn(2, 12, 8, 8)
        >>> y, logabsdet = modified_rq_spline(x, params)
        >>> z, _ = modified_rq_spline(y, params, inverse=True)
        >>> logabsdet.shape, bool((z - x).abs().max() < 1e-3)
        (torch.Size([2]), True)
    """
    check_tensor("x", x)
    config = MODIFIED_RQ.config(
        inverse, interval, min_bin, min_derivative, derivative, reduce, x.dim()
    )
    params = _unpack("params", params, x, MODIFIED_RQ.num_params, param_order)
    return _modified_rq.apply(x, params, *config)


def rq_spline(
    inputs: Tensor,
    unnormalized_widths: Tensor,
    unnormalized_heights: Tensor,
    unnormalized_derivatives: Tensor,
    inverse: bool = False,
    *,
    tails: Literal["linear", "circular"] | None = "linear",
    tail_bound: Bound = 1.0,
    left: Bound | None = None,
    right: Bound | None = None,
    bottom: Bound | None = None,
    top: Bound | None = None,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    parametrization: Literal["softmax", "softclip", "knots"] = "softmax",
    logit_scale: float = 1.0,
    reduce: Reduce = "none",
) -> tuple[Tensor, Tensor]:
    """The monotone rational-quadratic spline with K bins, element by element.

    Args:
        inputs: (\\*,), any shape; float64, float32, bfloat16 or float16.
        unnormalized_widths: (\\*, K). Leading dimensions broadcast against ``inputs``.
        unnormalized_heights: (\\*, K).
        unnormalized_derivatives: (\\*, K-1) with linear tails (the boundary's derivative is 1),
            (\\*, K) circular (the last knot's is the first's), (\\*, K+1) without tails.
        inverse: solve for the input instead.
        tails: outside the box ``"linear"`` and ``"circular"`` are the identity; None gives NaN. At
            its edges linear tails have the derivative 1; those of the others belong to the spline.
            Where the dtype of ``inputs`` cannot hold an edge, as half types often cannot, what it
            rounds the edge to is the edge: ``y`` is rounded to nothing beyond, and so a chain of
            splines without tails stays in its box.
        tail_bound: the box is [-tail_bound, tail_bound] on both axes: a number, or a sequence or
            tensor that broadcasts to ``inputs`` (one bound per dimension).
        left, right, bottom, top: the box edge by edge, instead of ``tail_bound``.
        min_bin_width, min_bin_height: smallest bin, as a fraction of the box, in (0, 1/K).
        min_derivative: smallest derivative; for ``"softclip"`` the slope, so that derivatives lie
            in ``[min_derivative, 1 / min_derivative]``.
        parametrization: ``"softmax"`` (softmax sizes with a minimum, softplus derivatives:
            Durkan et al., nflows, normflows), ``"softclip"`` (soft-clipped logits, exp
            derivatives: zuko), or ``"knots"``: bin sizes in the units of the box, positive and
            summing to it, and positive derivatives, used as they are.
        logit_scale: multiplies the width and height logits (1/sqrt(hidden units) in nflows).
        reduce: ``"none"``, or ``"sum"`` over all but the first dimension.

    Returns:
        ``y`` like ``inputs``; ``logabsdet`` like ``inputs``, or (N,); float32, or float64 if an
        input is.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.

    Source: Durkan et al., Neural Spline Flows, 2019 (arXiv:1906.04032); circular tails: Rezende
    et al. 2020 (arXiv:2002.02428).

    Example:
        >>> x = torch.linspace(-2, 2, 5)
        >>> w, h, d = torch.zeros(5, 8), torch.zeros(5, 8), torch.full((5, 7), 0.5413)
        >>> y, logabsdet = rq_spline(x, w, h, d, tail_bound=3.0)
        >>> bool((y - x).abs().max() < 1e-3)
        True
    """
    check_tensor("inputs", inputs)
    groups = (unnormalized_widths, unnormalized_heights, unnormalized_derivatives)
    num_bins, leading = check_rq_parameters(groups, inputs, tails)
    if leading is None or leading != inputs.shape:
        inputs = inputs.expand(_broadcast(inputs, groups))
    box, edges = box_of(inputs, tail_bound, left, right, bottom, top)
    config = RQ.config(
        num_bins,
        inverse,
        tails,
        parametrization,
        edges,
        min_bin_width,
        min_bin_height,
        min_derivative,
        logit_scale,
        reduce,
        inputs.dim(),
    )
    return _rq.apply(inputs, *groups, box, *config)


def rq_spline_packed(
    x: Tensor,
    params: Tensor,
    num_bins: int,
    *,
    inverse: bool = False,
    tails: Literal["linear", "circular"] | None = "linear",
    tail_bound: Bound = 1.0,
    left: Bound | None = None,
    right: Bound | None = None,
    bottom: Bound | None = None,
    top: Bound | None = None,
    min_bin_width: float = 1e-3,
    min_bin_height: float = 1e-3,
    min_derivative: float = 1e-3,
    parametrization: Literal["softmax", "softclip", "knots"] = "softmax",
    logit_scale: float = 1.0,
    reduce: Reduce = "none",
    param_order: ParamOrder = "channel",
) -> tuple[Tensor, Tensor]:
    """:func:`rq_spline` on one packed parameter tensor, as the conditioner made it.

    Args:
        x: (N, C, \\*S), any number of dimensions.
        params: (N, C*P, \\*S) or (N, C, \\*S, P), with P = 3K-1 parameters under linear tails, 3K
            circular, 3K+1 without tails: K width logits, K height logits, then derivatives. Any
            dimension but the packed one may be 1 and is then shared.
        num_bins: K.
        param_order: where packed, ``"channel"`` is index ``c * P + p``, ``"parameter"`` is
            ``p * C + c``.

    The other arguments, the result and the errors are :func:`rq_spline`'s.

    Example:
        >>> x, params = torch.randn(4, 6), torch.randn(4, 6 * 23)
        >>> y, logabsdet = rq_spline_packed(x, params, 8, tail_bound=3.0, reduce="sum")
        >>> y.shape, logabsdet.shape
        (torch.Size([4, 6]), torch.Size([4]))
    """
    check_tensor("x", x)
    box, edges = box_of(x, tail_bound, left, right, bottom, top)
    config = RQ.config(
        num_bins,
        inverse,
        tails,
        parametrization,
        edges,
        min_bin_width,
        min_bin_height,
        min_derivative,
        logit_scale,
        reduce,
        x.dim(),
    )
    num_params = 2 * num_bins + count_derivatives(num_bins, tails)
    params = _unpack("params", params, x, num_params, param_order)
    return _rq.apply(x, params, None, None, box, *config)


def conditional_affine(
    x: Tensor,
    params: Tensor,
    log_scale: Tensor | None = None,
    *,
    inverse: bool = False,
    scale: Literal[
        "sigmoid", "exp", "softplus", "atan_exp", "tanh_exp", "softclip_exp"
    ] = "sigmoid",
    eps: float = 1e-4,
    clamp: float | None = None,
    shift_first: bool = True,
    reciprocal: bool = False,
    reduce: Reduce = "sum",
    param_order: ParamOrder = "channel",
) -> tuple[Tensor, Tensor]:
    """The conditional affine transform ``(x + shift) * s`` or ``x * s + shift``.

    With a the scale logit, the scale s is

    - ``"sigmoid"``: sigmoid(a + 2) + eps (SRFlow, LLFlow, Glow),
    - ``"exp"``: exp(a), ``"softplus"``: softplus(a) + eps,
    - ``"atan_exp"``: exp(clamp * 0.636 * atan(a)), clamp 2 (FrEIA's default),
    - ``"tanh_exp"``: exp(clamp * tanh(a)), clamp 2 (FrEIA's AllInOneBlock, RealNVP),
    - ``"softclip_exp"``: exp(a / (1 + \\|a\\| / clamp)), clamp log 1000 (zuko).

    Log-scales saturate at +-40.

    Args:
        x: (N, C, \\*S), any number of dimensions.
        params: (N, C*2, \\*S) or (N, C, \\*S, 2), in the order shift, scale logit; any dimension
            but the packed one may be 1 and is then shared. With ``log_scale`` given, the shift
            alone, (N, C, \\*S).
        log_scale: the scale logits as a tensor of their own, (N, C, \\*S).
        inverse: apply the inverse.
        scale: the scale function.
        eps: added to the scale of ``"sigmoid"`` and ``"softplus"``, at least 0.
        clamp: the bound on the log-scale of the last three; None takes their default.
        shift_first: ``(x + shift) * s`` (SRFlow) rather than ``x * s + shift`` (nflows, FrEIA).
        reciprocal: use 1/s for s (the reparametrised affine of arXiv:2212.04319's code).
        reduce: ``"sum"`` over all but the first dimension, or ``"none"``.
        param_order: where packed, ``"channel"`` is index ``c * 2 + p``, ``"parameter"`` is
            ``p * C + c``.

    Returns:
        ``y`` like ``x``; ``logabsdet`` (N,) or like ``x``; float32, or float64 if an input is.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.

    Source: Lugmayr et al., SRFlow, 2020 (arXiv:2006.14200); Dinh et al. 2017 (arXiv:1605.08803).

    Example:
        >>> x, params = torch.randn(2, 3), torch.randn(2, 6)
        >>> y, logabsdet = conditional_affine(x, params)
        >>> z, _ = conditional_affine(y, params, inverse=True)
        >>> bool((z - x).abs().max() < 1e-4)
        True
    """
    check_tensor("x", x)
    config = AFFINE.config(inverse, scale, eps, clamp, shift_first, reciprocal, reduce, x.dim())
    if log_scale is None:
        shift = _unpack("params", params, x, AFFINE.num_params, param_order)
    else:
        for name, tensor in (("params", params), ("log_scale", log_scale)):
            check_tensor(name, tensor)
            check_same_device(name, tensor, x)
            check_leading_shape(name, tensor.shape, x.shape, "x's shape (or 1 where shared)")
        shift, log_scale = params.unsqueeze(-1), log_scale.unsqueeze(-1)
    return _affine.apply(x, shift, log_scale, *config)


def cubic_bspline(
    x: Tensor,
    params: Tensor,
    *,
    inverse: bool = False,
    interval: tuple[float, float] = (-0.5, 0.5),
    min_bin: float = 1e-2,
    reduce: Reduce = "sum",
    param_order: ParamOrder = "channel",
) -> tuple[Tensor, Tensor]:
    """The monotone cubic B-spline: eight bins, identity outside, and a shift.

    Twice differentiable, and its slope is bounded whatever the parameters, in both directions: with
    m = ``min_bin`` it lies in [3m / (1 - 5m), (1 - 7m) / m], with the default in [0.03, 93].
    ``|T(x) - x - shift|`` is less than the length of the interval.

    Args:
        x: (N, C, \\*S), any number of dimensions; float64, float32, bfloat16 or float16.
        params: (N, C*11, \\*S), as a convolution or a linear layer makes them: 4 knot logits (the
            widths of the four inner bins; the outer two at each end have the smallest), 6 control
            logits (the differences of the control points), and the shift; or (N, C, \\*S, 11) with
            the parameters last. Any dimension but the packed one may be 1 and is then shared (and
            its gradient summed).
        inverse: solve for the input instead, by a fixed number of steps.
        interval: the box, on both axes; outside it the transform is ``x + shift``.
        min_bin: smallest bin, and smallest difference of control points, as a fraction of the
            interval, in (0, 1/8).
        reduce: ``"sum"`` adds the log-determinant over all but the first dimension.
        param_order: where packed, ``"channel"`` is index ``c * 11 + p``, ``"parameter"`` is
            ``p * C + c``.

    Returns:
        ``y`` like ``x``; ``logabsdet`` (N,), or like ``x`` with ``reduce="none"``; float32, or
        float64 if an input is.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.

    Source: Hong, Chun, AAAI 2023 (arXiv:2304.04555); Hong, Park, Chun, ICCV 2023
    (arXiv:2212.04319).

    Example:
        >>> x, params = torch.randn(2, 3, 8, 8), torch.randn(2, 33, 8, 8)
        >>> y, logabsdet = cubic_bspline(x, params)
        >>> z, _ = cubic_bspline(y, params, inverse=True)
        >>> logabsdet.shape, bool((z - x).abs().max() < 1e-4)
        (torch.Size([2]), True)
    """
    check_tensor("x", x)
    config = CUBIC_BSPLINE.config(inverse, interval, min_bin, reduce, x.dim())
    params = _unpack("params", params, x, CUBIC_BSPLINE.num_params, param_order)
    return _cubic_bspline.apply(x, params, *config)


def _unpack(name: str, params: Tensor, x: Tensor, num_params: int, order: str) -> Tensor:
    """View packed parameters as (*x.shape, P): strides only, no copy."""
    check_tensor(name, params)
    check_same_device(name, params, x)
    check_choice("param_order", order, _PARAM_ORDER)
    shape, packed = x.shape, params.shape
    if len(packed) == len(shape) + 1 and packed[-1] == num_params:
        check_leading_shape(name, packed[:-1], shape, "x's shape (or 1 where shared)")
        return params
    if len(packed) != len(shape) or len(shape) < 2 or packed[1] != shape[1] * num_params:
        if len(shape) >= 2:
            expected = f"{(shape[0], shape[1] * num_params, *shape[2:])} (packed) or "
        else:
            expected = ""
        raise ValueError(
            f"{name} must have shape {expected}{(*shape, num_params)} for x of shape "
            f"{tuple(shape)} with {num_params} parameters an element, got {tuple(packed)}."
        )
    samples, space = packed[0], packed[2:]
    if samples != shape[0] or space != shape[2:]:
        expected = "x's (or 1 where shared)"
        check_leading_shape(name, (samples, *space), (shape[0], *shape[2:]), expected)
    if order == "channel":
        params = params.view(samples, shape[1], num_params, *space)
        return params.movedim(2, -1) if space else params
    return params.view(samples, num_params, shape[1], *space).movedim(1, -1)


def _broadcast(x: Tensor, groups: tuple[Tensor, Tensor, Tensor]) -> torch.Size:
    shapes = [x.shape, *(group.shape[:-1] for group in groups)]
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ValueError(
            "inputs and the leading dimensions of unnormalized_widths, unnormalized_heights and "
            "unnormalized_derivatives must broadcast, got "
            f"{', '.join(str(tuple(shape)) for shape in shapes)}."
        ) from None
