# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
# ruff: noqa: RUF005  (Triton does not support (*a, b))
"""The two Triton kernels, transform and gradient, which every transform shares.

Each loops over tiles of elements and applies the transform's formula. A formula is two functions of
a tile, which :func:`transform_formula` and :func:`gradient_formula` choose by name.

A kernel's arguments are tensors and numbers, never tuples or functions, because torch.compile puts
the same kernels into its graphs and fails with those (torch 2.13). ``torch.library.wrap_triton``
ignores tensors in tuples: it decides that the kernel has no effect and drops it, without an error.
Inductor raises a TypeError for a tuple of numbers, and writes invalid Python for a jit function as
a constant. So each kernel has enough arguments for any transform: ``params0`` to ``params2``, one
``constant``, and nine settings. Its first lines collect them into tuples.

Constants of both kernels:

- TRANSFORM: the name of the formula; OPTIONS: its settings that are not floats, and the number of
  parameters of each group;
- READS: where to read each group of an element's parameters, and how: a tuple whose places
  :mod:`indexing` names GROUP_TENSOR to GROUP_ROWS; WRITES: the same for the gradients;
- IN_REGISTERS: whether an element's parameters and gradients fit in registers. If not, the formula
  reads and writes them itself;
- TILES to INT64_INDEX: see robustflow/kernels/plan.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from robustflow.kernels.affine import affine_gradient, affine_transform
from robustflow.kernels.cubic_bspline import cubic_bspline_gradient, cubic_bspline_transform
from robustflow.kernels.indexing import (
    GROUP_COUNT,
    GROUP_PADDED,
    GROUP_ROWS,
    GROUP_TENSOR,
    SUM_NOTHING,
    at_index,
    load_or_zero,
    load_planes,
    locate_program,
    locate_sums,
    locate_tile,
    log_of_product,
    multiply_log,
    offset,
    part_offset,
    store_planes,
    store_sums,
    sum_tile,
)
from robustflow.kernels.modified_rq import modified_rq_gradient, modified_rq_transform
from robustflow.kernels.rq import rq_gradient_by_bins, rq_transform


@triton.jit
def transform_formula(
    x, params, constant, mask, settings,
    TRANSFORM: tl.constexpr, OPTIONS: tl.constexpr, IN_REGISTERS: tl.constexpr,
    INVERSE: tl.constexpr, X_DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(output, slope dy/dx of the forward transform, its logarithm) of each element.

    params: for each group in READS a tuple of numbers, or without IN_REGISTERS what at_index()
    returns.
    """
    if TRANSFORM == "modified_rq":
        return modified_rq_transform(x, params, settings, OPTIONS, INVERSE)
    elif TRANSFORM == "rq":
        return rq_transform(
            x, params, constant, mask, settings, OPTIONS, IN_REGISTERS, INVERSE, X_DTYPE, BLOCK
        )
    elif TRANSFORM == "affine":
        return affine_transform(x, params, settings, OPTIONS, INVERSE)
    else:
        tl.static_assert(TRANSFORM == "cubic_bspline")
        return cubic_bspline_transform(x, params, settings, INVERSE)


@triton.jit
def gradient_formula(
    x, params, constant, mask, grad_output, grad_logabsdet, settings, index, grads,
    TRANSFORM: tl.constexpr, OPTIONS: tl.constexpr, WRITES: tl.constexpr,
    IN_REGISTERS: tl.constexpr, INVERSE: tl.constexpr, X_DTYPE: tl.constexpr, BLOCK: tl.constexpr,
    OUTER_DIMS: tl.constexpr,
):  # fmt: skip
    """(gradient of x, for each group in WRITES a tuple of gradients) of each element.

    grad_output and grad_logabsdet are the cotangents of the output and of logabsdet, in either
    direction. Without IN_REGISTERS, the formula stores the gradients of the parameters itself.
    """
    if TRANSFORM == "modified_rq":
        return modified_rq_gradient(
            x, params, grad_output, grad_logabsdet, settings, OPTIONS, INVERSE
        )
    elif TRANSFORM == "rq":
        return rq_gradient_by_bins(
            x, params, constant, mask, grad_output, grad_logabsdet, settings, index, grads, OPTIONS,
            WRITES, IN_REGISTERS, INVERSE, X_DTYPE, BLOCK, OUTER_DIMS,
        )  # fmt: skip
    elif TRANSFORM == "affine":
        return affine_gradient(x, params, grad_output, grad_logabsdet, settings, OPTIONS, INVERSE)
    else:
        tl.static_assert(TRANSFORM == "cubic_bspline")
        return cubic_bspline_gradient(x, params, grad_output, grad_logabsdet, settings, INVERSE)


@triton.jit
def as_scalars(settings, DTYPE: tl.constexpr):
    out = ()
    for k in tl.static_range(len(settings)):
        out = out + (tl.full([], settings[k], DTYPE),)
    return out


@triton.jit
def load_params(
    sources, mask,
    READS: tl.constexpr, IN_REGISTERS: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The formula's params: see transform_formula()."""
    if not IN_REGISTERS:
        return sources
    else:
        out = ()
        for g in tl.static_range(len(READS)):
            if READS[g][GROUP_COUNT] == 0:
                out = out + ((),)
            else:
                pointer, at, plane = sources[g]
                planes = load_planes(
                    pointer, at, plane, mask, READS[g][GROUP_COUNT], READS[g][GROUP_PADDED],
                    READS[g][GROUP_ROWS], BLOCK, DTYPE,
                )  # fmt: skip
                out = out + (planes,)
        return out


@triton.jit
def transform_kernel(
    x, params0, params1, params2, constant, y, logabsdet,
    setting0: tl.float64, setting1: tl.float64, setting2: tl.float64, setting3: tl.float64,
    setting4: tl.float64, setting5: tl.float64, setting6: tl.float64, setting7: tl.float64,
    setting8: tl.float64,
    groups, rows, inner, chunks, size1, size2,
    x_0, x_1, x_2, x_inner,
    params0_0, params0_1, params0_2, params0_inner, params0_plane,
    params1_0, params1_1, params1_2, params1_inner, params1_plane,
    params2_0, params2_1, params2_2, params2_inner, params2_plane,
    constant_0, constant_1, constant_2, constant_inner, constant_plane,
    y_0, y_1, y_2, y_inner,
    logabsdet_0, logabsdet_1, logabsdet_2, logabsdet_inner, logabsdet_part,
    TRANSFORM: tl.constexpr, INVERSE: tl.constexpr, OPTIONS: tl.constexpr, READS: tl.constexpr,
    IN_REGISTERS: tl.constexpr, DTYPE: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_INNER: tl.constexpr, OUTER_DIMS: tl.constexpr, SUMS: tl.constexpr,
    INT64_INDEX: tl.constexpr,
):  # fmt: skip
    settings = as_scalars(
        (setting0, setting1, setting2, setting3, setting4, setting5, setting6, setting7, setting8),
        DTYPE,
    )
    x_strides = (x_0, x_1, x_2, x_inner)
    params = (
        (params0, (params0_0, params0_1, params0_2, params0_inner), params0_plane),
        (params1, (params1_0, params1_1, params1_2, params1_inner), params1_plane),
        (params2, (params2_0, params2_1, params2_2, params2_inner), params2_plane),
    )
    constant_strides = (constant_0, constant_1, constant_2, constant_inner)
    y_strides = (y_0, y_1, y_2, y_inner)
    logabsdet_strides = (logabsdet_0, logabsdet_1, logabsdet_2, logabsdet_inner)
    shape = (groups, rows, inner, size1, size2)

    group, chunk, inner_block = locate_program(inner, chunks, BLOCK_INNER, SUMS, INT64_INDEX)
    mantissa = tl.full([BLOCK], 1.0, DTYPE)
    exponent = tl.full([BLOCK], 0.0, DTYPE)
    for t in range(TILES):
        index, mask = locate_tile(
            group, chunk * TILES + t, inner_block, shape, BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS
        )
        at = offset(index, x_strides, OUTER_DIMS)
        key = tl.load(x + at, mask=mask, other=0.0).to(DTYPE)
        sources = at_index(index, params, READS, OUTER_DIMS)
        value, slope, log_slope = transform_formula(
            key, load_params(sources, mask, READS, IN_REGISTERS, BLOCK, DTYPE),
            (constant, offset(index, constant_strides, OUTER_DIMS), constant_plane),
            mask, settings,
            TRANSFORM, OPTIONS, IN_REGISTERS, INVERSE, x.dtype.element_ty, BLOCK,
        )  # fmt: skip
        at = offset(index, y_strides, OUTER_DIMS)
        tl.store(y + at, value.to(y.dtype.element_ty), mask=mask)
        if SUMS == SUM_NOTHING:
            at = offset(index, logabsdet_strides, OUTER_DIMS)
            tl.store(logabsdet + at, -log_slope if INVERSE else log_slope, mask=mask)
        else:
            mantissa, exponent = multiply_log(mantissa, exponent, tl.where(mask, slope, 1.0))
    if SUMS != SUM_NOTHING:
        total = sum_tile(log_of_product(mantissa, exponent), BLOCK, BLOCK_INNER, SUMS)
        index, mask = locate_sums(
            group, chunk, inner_block, shape, BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS
        )
        at = offset(index, logabsdet_strides, OUTER_DIMS)
        at += part_offset(chunk, logabsdet_part, SUMS)
        tl.store(logabsdet + at, -total if INVERSE else total, mask=mask)


@triton.jit
def gradient_kernel(
    x, params0, params1, params2, constant, grad_y, grad_logabsdet,
    grad_x, grad0, grad1, grad2,
    setting0: tl.float64, setting1: tl.float64, setting2: tl.float64, setting3: tl.float64,
    setting4: tl.float64, setting5: tl.float64, setting6: tl.float64, setting7: tl.float64,
    setting8: tl.float64,
    groups, rows, inner, chunks, size1, size2,
    x_0, x_1, x_2, x_inner,
    params0_0, params0_1, params0_2, params0_inner, params0_plane,
    params1_0, params1_1, params1_2, params1_inner, params1_plane,
    params2_0, params2_1, params2_2, params2_inner, params2_plane,
    constant_0, constant_1, constant_2, constant_inner, constant_plane,
    grad_y_0, grad_y_1, grad_y_2, grad_y_inner,
    grad_logabsdet_0, grad_logabsdet_1, grad_logabsdet_2, grad_logabsdet_inner,
    grad_x_0, grad_x_1, grad_x_2, grad_x_inner,
    grad0_0, grad0_1, grad0_2, grad0_inner, grad0_plane, grad0_part,
    grad1_0, grad1_1, grad1_2, grad1_inner, grad1_plane, grad1_part,
    grad2_0, grad2_1, grad2_2, grad2_inner, grad2_plane, grad2_part,
    TRANSFORM: tl.constexpr, INVERSE: tl.constexpr, OPTIONS: tl.constexpr, READS: tl.constexpr,
    WRITES: tl.constexpr, IN_REGISTERS: tl.constexpr, DTYPE: tl.constexpr, TILES: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_INNER: tl.constexpr, OUTER_DIMS: tl.constexpr, SUMS: tl.constexpr,
    INT64_INDEX: tl.constexpr,
):  # fmt: skip
    settings = as_scalars(
        (setting0, setting1, setting2, setting3, setting4, setting5, setting6, setting7, setting8),
        DTYPE,
    )
    x_strides = (x_0, x_1, x_2, x_inner)
    params = (
        (params0, (params0_0, params0_1, params0_2, params0_inner), params0_plane),
        (params1, (params1_0, params1_1, params1_2, params1_inner), params1_plane),
        (params2, (params2_0, params2_1, params2_2, params2_inner), params2_plane),
    )
    constant_strides = (constant_0, constant_1, constant_2, constant_inner)
    grad_y_strides = (grad_y_0, grad_y_1, grad_y_2, grad_y_inner)
    grad_logabsdet_strides = (
        grad_logabsdet_0, grad_logabsdet_1, grad_logabsdet_2, grad_logabsdet_inner
    )  # fmt: skip
    grad_x_strides = (grad_x_0, grad_x_1, grad_x_2, grad_x_inner)
    grads = (
        (grad0, (grad0_0, grad0_1, grad0_2, grad0_inner), grad0_plane),
        (grad1, (grad1_0, grad1_1, grad1_2, grad1_inner), grad1_plane),
        (grad2, (grad2_0, grad2_1, grad2_2, grad2_inner), grad2_plane),
    )
    parts = (grad0_part, grad1_part, grad2_part)
    shape = (groups, rows, inner, size1, size2)

    group, chunk, inner_block = locate_program(inner, chunks, BLOCK_INNER, SUMS, INT64_INDEX)
    sums = ()
    if SUMS != SUM_NOTHING:
        zero = tl.full([BLOCK], 0.0, DTYPE)
        for g in tl.static_range(len(WRITES)):
            zeros = ()
            for _ in tl.static_range(tl.constexpr(WRITES[g][GROUP_COUNT])):
                zeros = zeros + (zero,)
            sums = sums + (zeros,)
    for t in range(TILES):
        index, mask = locate_tile(
            group, chunk * TILES + t, inner_block, shape, BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS
        )
        at = offset(index, x_strides, OUTER_DIMS)
        key = tl.load(x + at, mask=mask, other=0.0).to(DTYPE)
        sources = at_index(index, params, READS, OUTER_DIMS)
        loaded = load_params(sources, mask, READS, IN_REGISTERS, BLOCK, DTYPE)
        at = offset(index, grad_y_strides, OUTER_DIMS)
        grad_y_tile = load_or_zero(grad_y, at, mask, key)
        at = offset(index, grad_logabsdet_strides, OUTER_DIMS)
        grad_logabsdet_tile = load_or_zero(grad_logabsdet, at, mask, key)
        grad_x_tile, grad_tiles = gradient_formula(
            key, loaded,
            (constant, offset(index, constant_strides, OUTER_DIMS), constant_plane),
            mask, grad_y_tile, grad_logabsdet_tile, settings, index, grads,
            TRANSFORM, OPTIONS, WRITES, IN_REGISTERS, INVERSE, x.dtype.element_ty, BLOCK,
            OUTER_DIMS,
        )  # fmt: skip
        if grad_x is not None:
            at = offset(index, grad_x_strides, OUTER_DIMS)
            tl.store(grad_x + at, grad_x_tile.to(grad_x.dtype.element_ty), mask=mask)
        if IN_REGISTERS:
            if SUMS == SUM_NOTHING:
                targets = at_index(index, grads, WRITES, OUTER_DIMS)
                store_groups(targets, grad_tiles, mask, WRITES, BLOCK)
            else:
                sums = add_groups(sums, grad_tiles, mask, grads, WRITES)
    if SUMS != SUM_NOTHING:
        index, mask = locate_sums(
            group, chunk, inner_block, shape, BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS
        )
        targets = at_index(index, grads, WRITES, OUTER_DIMS)
        for g in tl.static_range(len(WRITES)):
            pointer, at, plane = targets[g]
            if pointer is not None:
                at += part_offset(chunk, parts[WRITES[g][GROUP_TENSOR]], SUMS)
                store_sums(
                    pointer, at, plane, mask, sums[g], WRITES[g][GROUP_COUNT], BLOCK,
                    BLOCK_INNER, SUMS,
                )  # fmt: skip


@triton.jit
def store_groups(targets, grad_tiles, mask, WRITES: tl.constexpr, BLOCK: tl.constexpr):
    """Store a tile's gradients, for the groups whose gradient is needed."""
    for g in tl.static_range(len(WRITES)):
        pointer, at, plane = targets[g]
        if pointer is not None:
            store_planes(
                pointer, at, plane, mask, grad_tiles[g], WRITES[g][GROUP_COUNT],
                WRITES[g][GROUP_PADDED], WRITES[g][GROUP_ROWS], BLOCK,
            )  # fmt: skip


@triton.jit
def add_groups(sums, grad_tiles, mask, grads, WRITES: tl.constexpr):
    """Add a tile's gradients to the sums, for the groups whose gradient is needed."""
    out = ()
    for g in tl.static_range(len(WRITES)):
        planes = ()
        for k in tl.static_range(tl.constexpr(WRITES[g][GROUP_COUNT])):
            if grads[WRITES[g][GROUP_TENSOR]][0] is None:
                planes = planes + (sums[g][k],)
            else:
                planes = planes + (sums[g][k] + tl.where(mask, grad_tiles[g][k], 0.0),)
        out = out + (planes,)
    return out
