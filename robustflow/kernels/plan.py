"""How the elements of a call are visited: which dimensions merge, and what a program does.

Every operand of a call (inputs and outputs) is read or written through its strides over the
dimensions of x. Some dimensions may be *summed*: those over which log-determinants, or gradients of
shared parameters, are added up; the others are *kept*. In each of the two classes, dimensions are
sorted as y has them in memory and merged wherever the strides of every operand permit. The fastest
one of all is the *inner* dimension; the others, kept ones first, are the outer ones.

A *group* is the set of rows that are added into one row of sums: with S the product of the summed
outer dimensions, group g holds the rows [g S, (g + 1) S) of the flattened outer dimensions. Without
sums there is one group. A program processes a *chunk* of a group, which is several tiles in turn,
and writes one partial sum; `sums.py` adds these in order. (If each sum is over one short row, a
tile holds many whole rows.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MAX_OUTER_DIMS = 3
"""Outer dimensions that a kernel's arguments have room for."""

MAX_TILES = 64
"""Tiles of a program that multiplies a log-determinant's factors: as many as
:func:`indexing.multiply_log` may take."""

MAX_GRADIENT_TILES = 1024
"""Tiles of a program that adds up gradients."""

CHUNKS = 256
"""Chunks that a sample is cut into before its programs take a second tile each: one sample alone
then gives each of an H100's 132 multiprocessors something to do. By reasoning, not by measurement.
It must not depend on the number of samples: a sample's sum does not depend on those beside it."""

PROGRAMS = 1024
"""Programs that suffice where gradients are added up, about 8 a multiprocessor: with fewer chunks
there are fewer partial sums to write and to read. By reasoning, not by measurement."""

_SMALLEST_RUN = 16
"""Shortest block of the inner dimension where that is longer: 64 bytes, two sectors of memory."""

# indexing.py says what is summed.
SUM_NOTHING, SUM_ROWS, SUM_GROUP, SUM_INNER, SUM_KEPT = 0, 1, 2, 3, 4

_INT64_FROM = 1 << 30
"""Offsets from here on are computed in 64 bits; half of 2^31 leaves room for a tile's overhang."""

Strides = tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """See the module. ``axes`` are the outer dimensions and the inner one; each is the tuple of the
    original dimensions that were merged into it, the fastest last."""

    axes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    groups: int
    rows: int
    sums: int
    block: int
    block_inner: int
    tiles: int
    chunks: int
    int64_index: bool

    @property
    def outer_dims(self) -> int:
        return len(self.axes) - 1

    @property
    def inner(self) -> int:
        return self.sizes[-1]

    @property
    def programs(self) -> int:
        blocks = 1 if self.sums == SUM_GROUP else -(-self.inner // self.block_inner)
        groups = self.groups
        if self.sums == SUM_KEPT:
            groups = -(-groups // (self.block // self.block_inner))
        return groups * self.chunks * blocks

    @property
    def parts(self) -> int:
        """Partial sums for each sum."""
        return self.chunks if self.sums in (SUM_ROWS, SUM_GROUP, SUM_KEPT) else 1

    def strides(self, strides: Strides) -> Strides:
        """Strides (outer 0, outer 1, outer 2, inner) of an operand; zero for a missing axis."""
        each = [strides[axis[-1]] if axis else 0 for axis in self.axes]
        padding = [0] * (MAX_OUTER_DIMS - self.outer_dims)
        return (*each[:-1], *padding, each[-1])

    def geometry(self) -> tuple[int, ...]:
        """Arguments of every kernel: groups, rows, inner, chunks, sizes of outer dims 1 and 2."""
        outer = (*self.sizes[:-1], 1, 1, 1)
        return self.groups, self.rows, self.inner, self.chunks, outer[1], outer[2]

    def constants(self) -> dict[str, Any]:
        """Compile-time arguments of every kernel."""
        return {
            "TILES": self.tiles,
            "BLOCK": self.block,
            "BLOCK_INNER": self.block_inner,
            "OUTER_DIMS": self.outer_dims,
            "SUMS": self.sums,
            "INT64_INDEX": self.int64_index,
        }


def operand_strides(tensor: Tensor, shape: Sequence[int]) -> Strides:
    """Strides over the dimensions of x, zero where the tensor has size 1.

    Raises:
        ValueError: the tensor does not broadcast to x.
    """
    strides = tensor.stride()
    out = []
    for dim, size in enumerate(shape):
        if tensor.shape[dim] != size and tensor.shape[dim] != 1:
            raise ValueError(
                f"dimension {dim} of a tensor is {tensor.shape[dim]} where x has {size}: it must "
                "be the same, or 1 for a value that is shared."
            )
        out.append(0 if tensor.shape[dim] == 1 else strides[dim])
    return tuple(out)


def make_plan(
    shape: Sequence[int],
    order: Strides,
    operands: Sequence[Strides],
    summed: Sequence[int] | None,
    block: int,
    planes: int = 1,
    independent: bool = True,
) -> Plan | None:
    """The plan of a call; None if more dimensions remain than a kernel has arguments for.

    Args:
        shape: of x, not empty.
        order: strides of a dense tensor of that shape, which give the order in memory.
        operands: strides of every operand, ``order`` included.
        summed: the dimensions that are summed; None where there are no sums.
        block: elements of a tile.
        planes: the largest distance in memory between an element's first and last parameter.
        independent: the bits of a sum must not depend on the number of sums.
    """
    dims = [dim for dim, size in enumerate(shape) if size != 1]
    dims.sort(key=lambda dim: -order[dim])
    is_summed = frozenset(summed or ())
    kept = _merged([dim for dim in dims if dim not in is_summed], shape, operands)
    added = _merged([dim for dim in dims if dim in is_summed], shape, operands)
    axes = [*kept, *added]
    inner_summed = bool(dims) and dims[-1] in is_summed
    if kept and not inner_summed:
        axes.append(axes.pop(len(kept) - 1))
    if not axes:
        axes = [()]
    if len(axes) > 1 + MAX_OUTER_DIMS:
        return None
    sizes = [math.prod(shape[dim] for dim in axis) for axis in axes]
    outer, inner = math.prod(sizes[:-1]), sizes[-1]

    sums, rows = SUM_NOTHING, outer
    if summed is not None:
        sums = SUM_GROUP if inner_summed else SUM_ROWS
        rows = math.prod(shape[dim] for axis in added for dim in axis)
        rows //= inner if inner_summed else 1
        if inner_summed and rows == 1 and 2 * inner <= block:
            sums, rows = SUM_INNER, outer
    groups = outer // rows
    # With enough sums to fill tiles, each lane adds rows one by one.
    if sums == SUM_ROWS and groups > 1 and inner < block <= groups * inner:
        sums = SUM_KEPT
    if sums == SUM_INNER:
        block_inner = power_of_two_from(inner)
    else:
        block_inner = _block_inner(inner, groups if sums == SUM_KEPT else rows, block)
    tiles = rows if sums == SUM_KEPT else -(-rows // (block // block_inner))
    if sums == SUM_GROUP:
        tiles *= -(-inner // block_inner)
    per_program = 1
    if sums in (SUM_ROWS, SUM_GROUP, SUM_KEPT):
        chunks, max_tiles = CHUNKS, MAX_TILES
        if not independent:
            others = groups * inner // block if sums == SUM_KEPT else groups
            others *= -(-inner // block_inner) if sums == SUM_ROWS else 1
            chunks, max_tiles = -(-PROGRAMS // max(others, 1)), MAX_GRADIENT_TILES
        per_program = min(power_of_two_from(-(-tiles // chunks)), max_tiles)
    extent = max(
        sum((size - 1) * abs(stride) for size, stride in zip(shape, strides, strict=True))
        for strides in operands
    )
    return Plan(
        axes=tuple(axes),
        sizes=tuple(sizes),
        groups=groups,
        rows=rows,
        sums=sums,
        block=block,
        block_inner=block_inner,
        tiles=per_program,
        chunks=-(-tiles // per_program),
        int64_index=bool(extent + planes >= _INT64_FROM or math.prod(shape) >= _INT64_FROM),
    )


def power_of_two_from(number: int) -> int:
    """The smallest power of two not below it; gives torch.compile a range for a dynamic size."""
    power = 1
    while power < number:
        power *= 2
    return power


def _merged(
    dims: Sequence[int], shape: Sequence[int], operands: Sequence[Strides]
) -> list[tuple[int, ...]]:
    axes: list[tuple[int, ...]] = []
    for dim in dims:
        size = shape[dim]
        if axes and all(strides[axes[-1][-1]] == strides[dim] * size for strides in operands):
            axes[-1] = (*axes[-1], dim)
        else:
            axes.append((dim,))
    return axes


def _block_inner(inner: int, rows: int, block: int) -> int:
    """The block of the inner dimension that leaves the fewest lanes idle; the longest of those."""
    if rows == 1:
        return block

    def lanes(size: int) -> int:
        tile_rows = block // size
        return -(-inner // size) * size * (-(-rows // tile_rows) * tile_rows)

    longest = min(block, power_of_two_from(inner))
    sizes = [longest]
    while sizes[-1] > _SMALLEST_RUN:
        sizes.append(sizes[-1] // 2)
    return min(sizes, key=lanes)


def dense_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A new dense tensor in the memory order of another one."""
    return torch.empty_like(tensor, dtype=dtype)


def order_of(tensor: Tensor) -> Strides:
    """The strides of ``dense_like(tensor)``."""
    return torch.empty_like(tensor, device="meta").stride()


def slabs(
    shape: Sequence[int],
    tensors: Sequence[Tensor | None],
    plan_of: Callable[[Sequence[int], Sequence[Tensor | None]], Plan | None],
) -> Iterator[tuple[Plan, list[Tensor | None]]]:
    """Cut a call along its shortest dimensions until each piece has a plan.

    Yields:
        the plan of a piece, and views of the tensors, whose leading dimensions broadcast to it.
    """
    plan = plan_of(shape, tensors)
    if plan is not None:
        yield plan, list(tensors)
        return
    cut = min((d for d in range(len(shape)) if shape[d] > 1), key=lambda d: shape[d])
    rest = [size for d, size in enumerate(shape) if d != cut]
    for i in range(shape[cut]):
        pieces = [t if t is None else t.select(cut, i if t.shape[cut] > 1 else 0) for t in tensors]
        yield from slabs(rest, pieces, plan_of)
