"""Which of the conformance suite's combinations run on the emulator, where an element takes long.

Every configuration, every layout with each kernel, every pair of dtypes with each kernel, but not
all of their product; large layouts shrunk to what is large for the emulated device.
"""

from __future__ import annotations

from dataclasses import replace

from tests.conformance import layouts, operations
from tests.conformance.cases import DTYPES, Case
from tests.conformance.layouts import Layout
from tests.conformance.operations import RQ, Operation

# The planar kernels take 16 bytes at a time, and sizes that fill them; with four tiles of a sample
# that is long enough for a sum of parts on a device of three multiprocessors.
_WIDE_IMAGE = (2, 3, 8, 16)
_LONG_IMAGE = (2, 1, 32, 64)
_PLANAR_KERNELS = tuple(
    op for op in operations.REPRESENTATIVES if len(op.parts) == 1 and not isinstance(op, RQ)
)
# Shared memory holds a row for each thread: so many bins leave a block few threads.
_MANY_BINS = (RQ(100, "linear", "softmax"), RQ(256, "circular", "softclip"))


def _usual(operation: Operation) -> tuple[Layout, ...]:
    return layouts.USUAL_PACKED if len(operation.parts) == 1 else layouts.USUAL_SEPARATE


def _configurations() -> list[Case]:
    """Each in float32 on one usual layout, and in another pair of dtypes on the other."""
    cases = []
    for i, op in enumerate(operations.ALL):
        usual = _usual(op)
        cases.append(Case(op, usual[i % len(usual)], DTYPES[0]))
        other = DTYPES[1 + i % (len(DTYPES) - 1)]
        cases.append(Case(op, usual[(i + 1) % len(usual)], other))
    return cases


def _kernels() -> list[Case]:
    dtypes = [
        Case(op, layout, pair)
        for op in operations.REPRESENTATIVES
        for layout in _usual(op)
        for pair in DTYPES
    ]
    layouts_ = [
        Case(op, layout, DTYPES[(i + j) % len(DTYPES)])
        for j, op in enumerate(operations.REPRESENTATIVES)
        for i, layout in enumerate(layouts.PACKED if len(op.parts) == 1 else layouts.SEPARATE)
    ]
    return dtypes + layouts_


def _planar() -> list[Case]:
    """The layouts of images in a size that the planar kernels take, and long samples."""
    images = [
        replace(layout, name=f"wide_{layout}", shape=_WIDE_IMAGE)
        for layout in layouts.PACKED
        if layout.shape == layouts.PLANAR.shape
    ]
    long = Layout("long", _LONG_IMAGE)
    return [
        Case(op, layout, DTYPES[(i + j) % len(DTYPES)])
        for j, op in enumerate(_PLANAR_KERNELS)
        for i, layout in enumerate(images)
    ] + [
        Case(op, layout, pair)
        for op in _PLANAR_KERNELS
        for layout in (images[0], long)
        for pair in DTYPES
    ]


def _large() -> list[Case]:
    def shrunk(layout: Layout) -> Layout:
        shape = (701, 3) if len(layout.shape) == 2 else (2, 1, 29, 37)
        return replace(layout, shape=shape)

    return [
        Case(op, shrunk(layout), DTYPES[0])
        for op in operations.REPRESENTATIVES
        for layout in (layouts.LARGE_PACKED if len(op.parts) == 1 else layouts.LARGE_SEPARATE)
    ]


def _many_bins() -> list[Case]:
    rows = Layout("few_rows", (7, 3))
    shared = Layout("few_rows_shared", (7, 3), shared=(0,))
    return [
        Case(op, layout, pair)
        for op in _MANY_BINS
        for layout in (rows, shared)
        for pair in DTYPES[:2]
    ]


CASES = list(dict.fromkeys(_configurations() + _kernels() + _planar() + _large() + _many_bins()))
# Cut into launches of a few elements, as tensors beyond 2^31 elements are on a GPU.
CUT = [
    Case(op, layout, DTYPES[0])
    for op in operations.REPRESENTATIVES
    for layout in (layouts.PACKED if len(op.parts) == 1 else layouts.SEPARATE)
    if layout.name
    in (
        *("planar", "rows", "transposed", "video", "shared_by_batch", "shared_by_space"),
        *("shared_by_all", "x_expanded", "separate_rows", "separate_shared_all"),
    )
] + [Case(op, Layout("wide", _WIDE_IMAGE), DTYPES[0]) for op in _PLANAR_KERNELS]
