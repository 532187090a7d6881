# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="assignment"
# ruff: noqa: RUF005  (Triton knows no (*a, b))
"""Where a program's elements lie, and how values are loaded and stored, for every kernel.

robustflow/kernels/plan.py says what rows and the inner dimension are. A tile is BLOCK elements: of
BLOCK / BLOCK_INNER rows, BLOCK_INNER elements each, along the inner dimension.
"""

from __future__ import annotations

import triton
import triton.language as tl

from robustflow.kernels.elementary import LOG_2, split_exponent

# What the numbers of a group are, in READS and WRITES of loops.py.
GROUP_TENSOR = tl.constexpr(0)  # index of the tensor that holds the group
GROUP_FIRST = tl.constexpr(1)  # its first plane there
GROUP_COUNT = tl.constexpr(2)  # number of planes
GROUP_PADDED = tl.constexpr(3)  # that number, rounded up to a power of two
GROUP_ROWS = tl.constexpr(4)  # ROWS of load_planes()

# The kind of sum, chosen by plan.py.
SUM_NOTHING = tl.constexpr(0)
SUM_ROWS = tl.constexpr(1)  # the rows of a group; each inner element has a sum of its own
SUM_GROUP = tl.constexpr(2)  # the rows of a group along the inner dimension too
SUM_INNER = tl.constexpr(3)  # each row along the inner dimension, of which a tile holds all
SUM_KEPT = tl.constexpr(4)  # as SUM_ROWS, but a tile is one row of each of many groups


@triton.jit
def locate_program(
    inner,
    chunks,
    BLOCK_INNER: tl.constexpr,
    SUMS: tl.constexpr,
    INT64_INDEX: tl.constexpr,
):
    """(group, chunk, block of the inner dimension) of this program; for SUM_KEPT the group is the
    block of groups."""
    program = tl.program_id(0)
    if INT64_INDEX:
        program = program.to(tl.int64)
    if SUMS == SUM_GROUP:  # its tiles go along the inner dimension too
        return program // chunks, program % chunks, program * 0
    else:
        inner_blocks = (inner + (BLOCK_INNER - 1)) // BLOCK_INNER
        rest = program // inner_blocks
        return rest // chunks, rest % chunks, program % inner_blocks


@triton.jit
def locate_tile(
    group,
    tile,
    inner_block,
    shape,
    BLOCK: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    OUTER_DIMS: tl.constexpr,
    SUMS: tl.constexpr,
):
    """(index, mask) of a group's tile; the index is (outer 0, outer 1, outer 2, inner).

    shape: groups, rows, inner, and the sizes of outer dimensions 1 and 2.
    """
    groups, rows, inner, size1, size2 = shape
    element = tl.arange(0, BLOCK)
    if SUMS == SUM_GROUP:
        inner_blocks = (inner + (BLOCK_INNER - 1)) // BLOCK_INNER
        inner_block = tile % inner_blocks
        tile = tile // inner_blocks
    i = inner_block * BLOCK_INNER + element % BLOCK_INNER
    if SUMS == SUM_KEPT:
        group = group * (BLOCK // BLOCK_INNER) + element // BLOCK_INNER
        row = tile + element * 0
        mask = (group < groups) & (row < rows) & (i < inner)
    else:
        row = tile * (BLOCK // BLOCK_INNER) + element // BLOCK_INNER
        mask = (row < rows) & (i < inner)
    i0, i1, i2 = _outer_index(group * rows + row, size1, size2, OUTER_DIMS)
    return (i0, i1, i2, i), mask


@triton.jit
def locate_sums(
    group,
    tile,
    inner_block,
    shape,
    BLOCK: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    OUTER_DIMS: tl.constexpr,
    SUMS: tl.constexpr,
):
    """(index, mask) of a program's sums, one for each result of sum_tile()."""
    if SUMS == SUM_KEPT:
        return locate_tile(group, 0, inner_block, shape, BLOCK, BLOCK_INNER, OUTER_DIMS, SUMS)
    else:
        _, rows, inner, size1, size2 = shape
        if SUMS == SUM_INNER:
            row = tile * (BLOCK // BLOCK_INNER) + tl.arange(0, BLOCK // BLOCK_INNER)
            i = row * 0
        else:
            if SUMS == SUM_GROUP:
                i = tl.arange(0, 1)
            else:
                i = inner_block * BLOCK_INNER + tl.arange(0, BLOCK_INNER)
            row = i * 0
        i0, i1, i2 = _outer_index(group * rows + row, size1, size2, OUTER_DIMS)
        return (i0, i1, i2, i), (row < rows) & (i < inner)


@triton.jit
def _outer_index(row, size1, size2, OUTER_DIMS: tl.constexpr):
    if OUTER_DIMS <= 1:
        return row, row * 0, row * 0
    elif OUTER_DIMS == 2:
        return row // size1, row % size1, row * 0
    else:
        rest = row // size2
        return rest // size1, rest % size1, row % size2


@triton.jit
def offset(index, strides, OUTER_DIMS: tl.constexpr):
    """The offset of each element of an index in a tensor with these strides."""
    i0, i1, i2, i = index
    stride0, stride1, stride2, stride_inner = strides
    at = i * stride_inner
    if OUTER_DIMS >= 1:
        at += i0 * stride0
    if OUTER_DIMS >= 2:
        at += i1 * stride1
    if OUTER_DIMS >= 3:
        at += i2 * stride2
    return at


@triton.jit
def at_index(index, tensors, GROUPS: tl.constexpr, OUTER_DIMS: tl.constexpr):
    """(pointer, offset of each element, distance between its numbers) for each group of parameters.

    GROUPS: READS or WRITES of loops.py. A pointer is None if nothing is to be written.
    """
    out = ()
    for g in tl.static_range(len(GROUPS)):
        pointer, strides, plane = tensors[GROUPS[g][GROUP_TENSOR]]
        if pointer is not None:
            pointer += GROUPS[g][GROUP_FIRST] * plane
        out = out + ((pointer, offset(index, strides, OUTER_DIMS), plane),)
    return out


@triton.jit
def load_or_zero(pointer, at, mask, like):
    """A cotangent in the dtype of ``like``; zero if there is none."""
    if pointer is None:
        return tl.zeros_like(like)
    else:
        return tl.load(pointer + at, mask=mask, other=0.0).to(like.dtype)


@triton.jit
def unpack(tile, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The COUNT columns (a power of two) of a tile [BLOCK, COUNT], as a tuple of [BLOCK].

    Halves first: then a thread gets its whole row in one exchange through shared memory.
    """
    if COUNT == 1:
        return (tl.reshape(tile, [BLOCK]),)
    else:
        halves = tl.permute(tl.reshape(tile, [BLOCK, 2, COUNT // 2]), [0, 2, 1])
        first, second = tl.split(halves)
        return unpack(first, COUNT // 2, BLOCK) + unpack(second, COUNT // 2, BLOCK)


@triton.jit
def pack(columns, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The tile [BLOCK, COUNT] of COUNT columns (a power of two)."""
    if COUNT == 1:
        return tl.reshape(columns[0], [BLOCK, 1])
    else:
        first = ()
        second = ()
        for k in tl.static_range(COUNT // 2):
            first = first + (columns[k],)
            second = second + (columns[COUNT // 2 + k],)
        halves = tl.join(pack(first, COUNT // 2, BLOCK), pack(second, COUNT // 2, BLOCK))
        return tl.reshape(tl.permute(halves, [0, 2, 1]), [BLOCK, COUNT])


@triton.jit
def load_planes(
    pointer,
    at,
    stride,
    mask,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The COUNT parameters of each element, as a tuple of [BLOCK] in DTYPE.

    ROWS: 0 loads one plane after another. Otherwise an element's parameters are adjacent and are
    loaded as a tile of rows, each of which begins at a multiple of ROWS from the first. PADDED is
    the next power of two.
    """
    if ROWS > 0:
        first = tl.multiple_of(at[:, None], [ROWS, ROWS])
        k = tl.arange(0, PADDED)
        tile = tl.load(
            pointer + (first + k[None, :]),
            mask=mask[:, None] & (k < COUNT)[None, :],
            other=0.0,
        )
        return unpack(tile.to(DTYPE), PADDED, BLOCK)
    else:
        planes = ()
        for k in tl.static_range(COUNT):
            plane = tl.load(pointer + (at + k * stride), mask=mask, other=0.0)
            planes = planes + (plane.to(DTYPE),)
        return planes


@triton.jit
def store_planes(
    pointer,
    at,
    stride,
    mask,
    planes,
    COUNT: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The opposite of load_planes."""
    if ROWS > 0:
        first = tl.multiple_of(at[:, None], [ROWS, ROWS])
        columns = planes
        for _ in tl.static_range(PADDED - COUNT):
            columns = columns + (planes[0],)
        k = tl.arange(0, PADDED)
        tl.store(
            pointer + (first + k[None, :]),
            pack(columns, PADDED, BLOCK).to(pointer.dtype.element_ty),
            mask=mask[:, None] & (k < COUNT)[None, :],
        )
    else:
        for k in tl.static_range(COUNT):
            tl.store(pointer + (at + k * stride), planes[k].to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def sum_tile(tile, BLOCK: tl.constexpr, BLOCK_INNER: tl.constexpr, SUMS: tl.constexpr):
    """A tile's sums: [BLOCK_INNER] over rows, [1] over a group, [BLOCK / BLOCK_INNER] by row."""
    if SUMS == SUM_KEPT:
        return tile
    elif SUMS == SUM_GROUP:
        return tl.sum(tl.reshape(tile, [1, BLOCK]), axis=1)
    elif SUMS == SUM_INNER:
        return tl.sum(tl.reshape(tile, [BLOCK // BLOCK_INNER, BLOCK_INNER]), axis=1)
    else:
        return tl.sum(tl.reshape(tile, [BLOCK // BLOCK_INNER, BLOCK_INNER]), axis=0)


@triton.jit
def multiply_log(mantissa, exponent, factor):
    """Multiply a product, kept as (mantissa, exponent), by one more factor.

    Up to 64 factors, or the mantissas' product could overflow. A factor that is NaN or infinite has
    no mantissa: it makes the product NaN.
    """
    m, e = split_exponent(factor)
    return tl.fma(mantissa, m, factor - factor), exponent + e


@triton.jit
def log_of_product(mantissa, exponent):
    return exponent * LOG_2 + tl.log(mantissa)


@triton.jit
def part_offset(chunk, stride, SUMS: tl.constexpr):
    """Where a program's partial sums begin."""
    if SUMS == SUM_INNER:  # whole sums
        return 0
    else:
        return chunk.to(tl.int64) * stride


@triton.jit
def store_sums(
    pointer,
    at,
    stride,
    mask,
    sums,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
    SUMS: tl.constexpr,
):
    """A program's partial sums of COUNT planes."""
    for k in tl.static_range(COUNT):
        total = sum_tile(sums[k], BLOCK, BLOCK_INNER, SUMS)
        tl.store(pointer + (at + k * stride), total.to(pointer.dtype.element_ty), mask=mask)
