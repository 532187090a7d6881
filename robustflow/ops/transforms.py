"""The three transforms as operators, and the way a call takes to its backend."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from robustflow import _triton, reference
from robustflow._backend import implementation
from robustflow.ops.registry import Transform, Transformed
from robustflow.reference.affine import (
    SCALE_ATAN_EXP,
    SCALE_EXP,
    SCALE_SIGMOID,
    SCALE_SOFTCLIP_EXP,
    SCALE_SOFTPLUS,
    SCALE_TANH_EXP,
)
from robustflow.reference.rq import (
    PARAMETRIZATION_KNOTS,
    PARAMETRIZATION_SOFTCLIP,
    PARAMETRIZATION_SOFTMAX,
    TAILS_CIRCULAR,
    TAILS_LINEAR,
    TAILS_NONE,
)

# Names of the public interface, and their numbers in the schemas (and in csrc/math).
TAILS: dict[str | None, int] = {
    None: TAILS_NONE,
    "linear": TAILS_LINEAR,
    "circular": TAILS_CIRCULAR,
}
PARAMETRIZATIONS = {
    "softmax": PARAMETRIZATION_SOFTMAX,
    "softclip": PARAMETRIZATION_SOFTCLIP,
    "knots": PARAMETRIZATION_KNOTS,
}
# Beyond this many bins the reference answers: kernels keep the bins on their stack (kMaxBins).
MAX_BINS = 256
# Scale functions, with the default bound of those that have one.
SCALES = {
    "sigmoid": (SCALE_SIGMOID, 1.0),
    "exp": (SCALE_EXP, 1.0),
    "softplus": (SCALE_SOFTPLUS, 1.0),
    "atan_exp": (SCALE_ATAN_EXP, 2.0),
    "tanh_exp": (SCALE_TANH_EXP, 2.0),
    "softclip_exp": (SCALE_SOFTCLIP_EXP, math.log(1000.0)),
}

MODIFIED_RQ = Transform(
    "modified_rq",
    reference.modified_rq,
    parameters=["Tensor params"],
    constants=[],
    config=[
        "bool inverse",
        "float left",
        "float right",
        "float min_bin",
        "float min_derivative",
        "bool softclip",
        "int batch_dims",
    ],
)
RQ = Transform(
    "rq",
    reference.rq,
    parameters=["Tensor widths", "Tensor? heights", "Tensor? derivatives"],
    constants=["Tensor? box"],
    config=[
        "int num_bins",
        "bool inverse",
        "int tails",
        "int parametrization",
        "float left",
        "float right",
        "float bottom",
        "float top",
        "float min_bin_width",
        "float min_bin_height",
        "float min_derivative",
        "float logit_scale",
        "int batch_dims",
    ],
)
AFFINE = Transform(
    "affine",
    reference.affine,
    parameters=["Tensor params", "Tensor? log_scale"],
    constants=[],
    config=[
        "bool inverse",
        "int scale",
        "float eps",
        "float clamp",
        "bool shift_first",
        "bool reciprocal",
        "int batch_dims",
    ],
)


TRANSFORMS = (MODIFIED_RQ, RQ, AFFINE)

if _triton.load():
    for transform in TRANSFORMS:
        transform.add_implementation(
            "triton",
            getattr(_triton.kernels, transform.name),
            getattr(_triton.kernels, f"{transform.name}_backward"),
            traced=not _triton.INTERPRETED,  # the interpreter needs numbers, not traces
        )


def modified_rq(x: Tensor, params: Tensor, *config: Any) -> tuple[Tensor, Tensor]:
    """``robustflow::modified_rq``, or the reference where no kernel serves the call."""
    return _route(MODIFIED_RQ, x, params, config[0])(x, params, *config)


def rq(
    x: Tensor,
    widths: Tensor,
    heights: Tensor | None,
    derivatives: Tensor | None,
    box: Tensor | None,
    *config: Any,
    by: Transformed | None = None,
) -> tuple[Tensor, Tensor]:
    """``robustflow::rq``, or the reference where no kernel serves the call.

    Args:
        by: what :func:`rq_route` said of this call, where it was asked before.
    """
    call = rq_route(x, widths, config[0], config[1]) if by is None else by
    if call is reference.rq:
        return call(x, widths, heights, derivatives, box, *config)
    if heights is not None and derivatives is not None:
        widths, heights, derivatives = _same_leading_shape(x, widths, heights, derivatives)
    if box is not None:
        box = _with_dims(box, x.dim() + 1)
    return call(x, widths, heights, derivatives, box, *config)


def rq_route(x: Tensor, widths: Tensor, num_bins: int, inverse: bool) -> Transformed:
    """What serves a call of :func:`rq` now: a kernel, or ``robustflow.reference.rq``."""
    if num_bins > MAX_BINS:
        return reference.rq
    return _route(RQ, x, widths, inverse)


def affine(
    x: Tensor, params: Tensor, log_scale: Tensor | None, *config: Any
) -> tuple[Tensor, Tensor]:
    """``robustflow::affine``, or the reference where no kernel serves the call."""
    call = _route(AFFINE, x, params, config[0])
    if call is not reference.affine and log_scale is not None:
        params, log_scale = _same_leading_shape(x, params, log_scale)
    return call(x, params, log_scale, *config)


def _route(transform: Transform, x: Tensor, params: Tensor, inverse: bool) -> Transformed:
    """What serves a call: an implementation, by one of its two ways, or the reference.

    The operators know reverse mode and vmap. In forward mode, and inside a torch.func transform
    that differentiates, the reference answers: PyTorch would return a silent zero.
    """
    name = implementation(transform.name, x, params, inverse)
    if name == "reference":
        return transform.reference
    chosen = transform.implementations[name]
    if torch.compiler.is_compiling():
        return chosen.operator
    if torch.autograd.forward_ad._current_level >= 0:
        return transform.reference
    if torch._C._functorch.peek_interpreter_stack() is None:
        return chosen.eager
    vmap = torch._C._functorch.TransformType.Vmap
    if all(level.key() == vmap for level in torch._C._functorch.get_interpreter_stack()):
        return chosen.operator
    return transform.reference


def _with_dims(tensor: Tensor, dims: int) -> Tensor:
    return tensor[(None,) * (dims - tensor.dim())] if tensor.dim() < dims else tensor


def _same_leading_shape(x: Tensor, *groups: Tensor) -> list[Tensor]:
    """Groups of parameters that broadcast alike (the kernels sum one pattern of gradients)."""
    dims = x.dim() + 1
    views = [_with_dims(group, dims) for group in groups]
    shapes = [view.shape[:-1] for view in views]
    for shape in shapes:
        if shape != shapes[0]:
            break
    else:
        return views
    shape = torch.broadcast_shapes(*shapes)
    return [view.expand(*shape, view.shape[-1]) for view in views]
