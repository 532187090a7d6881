"""What is predicted: each operation, direction and dtype, on which kernel, and how often each loop
of that kernel runs for an element."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.aot.flow import loops_of, way_of, ways_through
from benchmarks.aot.pipes import Counts
from benchmarks.aot.sass import Instruction
from benchmarks.traffic import Traffic

# The kernels of csrc/cuda, compiled with the options of the workloads below.
PINNED = Path(__file__).with_name("pinned.cu")

SIZES = {"float32": 4, "bfloat16": 2}
_STORAGE = {"float32": "float float", "bfloat16": "bfloat16"}


@dataclass(frozen=True)
class Subject:
    """An operation in one direction, dtype and layout, on one kernel.

    Attributes:
        backend, transform, num_bins, direction, layout: as in ``benchmarks.gpu.predictions``.
        dtype: of x and the parameters.
        kernel: as ``toolchain.readable`` prints it.
        traffic: of one element.
        cost: from the kernel's instructions, what an element asks of a multiprocessor: for each
            loop the counts of a pass and its passes an element.
        dynamic_shared: bytes of a block that its launch adds to what the compiler knows of.
    """

    backend: str
    transform: str
    num_bins: int
    direction: str
    layout: str
    dtype: str
    kernel: str
    traffic: Traffic
    cost: Callable[[Subject, Sequence[Instruction]], list[tuple[Counts, float]]]
    dynamic_shared: int = 0

    @property
    def name(self) -> str:
        bins = self.num_bins or ""
        return f"{self.backend}.{self.transform}{bins}.{self.direction}.{self.layout}.{self.dtype}"

    @property
    def bytes(self) -> int:
        return self.traffic.of(self.direction)

    @property
    def is_gradient(self) -> bool:
        return self.direction.endswith("backward")

    @property
    def reads(self) -> int:
        """Bytes read for an element; the rest of ``bytes`` is written."""
        return self.traffic.inputs + (self.traffic.outputs if self.is_gradient else 0)

    @property
    def writes(self) -> int:
        return self.bytes - self.reads

    def counts(self, instructions: Sequence[Instruction]) -> Counts:
        """What an element asks of a multiprocessor."""
        total = Counts()
        for counts, passes in self.cost(self, instructions):
            total = total + counts.times(passes)
        return total


# Of the planar kernels (csrc/cuda/planes.h): vectors of a thread in a tile, and the dimensions over
# which elements are numbered when a batch of images comes with packed parameters.
_VECTORS = 4
_PLANAR_DIMS = 2


def _planes(subject: Subject, instructions: Sequence[Instruction]) -> list[tuple[Counts, float]]:
    """A loop over vectors of neighbouring elements, in it loops over dimensions, around it one over
    tiles. In the tile's reduction only one thread sums the warps: not counted."""
    loops = loops_of(instructions)
    elements = 16 // subject.traffic.parameter_size
    main = max(range(len(loops)), key=lambda i: loops[i].widest.moved("global", True))
    costs = [(way_of(loops[main].ways, subject.reads * elements, subject.writes * elements), 1.0)]
    for loop in loops:
        if loop.parent == main:
            if loop.widest.accesses:
                raise ValueError(f"{subject.kernel}: a loop inside the main one moves data.")
            costs.append((loop.widest, _PLANAR_DIMS - 1))
    if loops[main].parent >= 0:
        costs.append((loops[loops[main].parent].widest, 1 / _VECTORS))
    return [(counts, passes / elements) for counts, passes in costs]


def _staged(subject: Subject, instructions: Sequence[Instruction]) -> list[tuple[Counts, float]]:
    """A loop over tiles, a thread an element; in it, loops that copy rows by 16 bytes, and loops
    that write gradients to shared memory, a number at a time. Rows lie densely and one dimension
    numbers their elements, so that all loops for other layouts stay idle."""
    loops = loops_of(instructions)
    size = subject.traffic.parameter_size
    row = subject.traffic.parameters * size
    main = max(range(len(loops)), key=lambda i: (loops[i].parent < 0, loops[i].widest.issue))
    stores = 1 if subject.is_gradient else 2  # the gradient by x; or y and logabsdet
    costs = [(way_of(loops[main].ways, subject.reads - row, _of_x(subject), stores), 1.0)]
    copies: dict[bool, tuple[Counts, float]] = {}
    for loop in loops:
        counts = loop.widest
        read, written = counts.moved("global", True), counts.moved("global", False)
        stored, fetched = counts.moved("shared", False), counts.moved("shared", True)
        wide = counts.widths("global", bool(read)) == (16,)
        # Rows are float32 in shared memory whatever they are in global memory: that tells for
        # which dtype a loop is; float16 and bfloat16 look alike and cost the same to a few percent.
        # Copies that go past the registers (LDGSTS) are for numbers that need no conversion.
        if wide and read and (stored * size == read * 4 or (size == 4 and not stored)):
            copies[True] = counts, row / read
        elif wide and written and fetched * size == written * 4 and subject.is_gradient:
            copies[False] = counts, row / written
        elif loop.parent == main and stored and not (read or written or fetched):
            derivatives = (subject.traffic.parameters + 1) // 3 - 1
            costs.append((counts, derivatives * 4 / stored if subject.is_gradient else 0.0))
    if len(copies) != 1 + subject.is_gradient:
        raise ValueError(f"{subject.kernel}: its loops over rows were not found.")
    return costs + list(copies.values())


def _of_x(subject: Subject) -> int:
    """Bytes that a thread writes for its element outside of rows."""
    return subject.traffic.x_size if subject.is_gradient else subject.writes


def cuda_subjects() -> Iterator[Subject]:
    """All that the CUDA kernels do."""
    for dtype, size in SIZES.items():
        for direction in ("forward", "inverse", "backward", "inverse-backward"):
            inverse = "true" if direction.startswith("inverse") else "false"
            kind = "gradient" if direction.endswith("backward") else "transform"
            for transform, parameters, op in (
                ("modified_rq", 4, "Pinned ModifiedRqOp Single Exponential"),
                ("affine", 2, "Pinned AffineOp Single ScaleSigmoid"),
            ):
                yield Subject(
                    "cuda",
                    transform,
                    0,
                    direction,
                    "planar",
                    dtype,
                    f"planes_{kind}<{op} {_STORAGE[dtype]} {inverse}>",
                    Traffic(1, parameters, 0, x_size=size, parameter_size=size),
                    _planes,
                    dynamic_shared=64,
                )
            gradient = "true" if kind == "gradient" else "false"
            bins, threads = 8, 128
            row = 3 * bins - 1  # odd already: no number of padding
            yield Subject(
                "cuda",
                "rq",
                bins,
                direction,
                "rows",
                dtype,
                f"staged<Pinned RqOp Single {bins} LinearTails {inverse} {gradient}>",
                Traffic(1, row, 1, x_size=size, parameter_size=size),
                _staged,
                dynamic_shared=threads * (4 * (row + 1) + 8) + 64,
            )


def triton_subject(name: str, elements: float) -> Subject | None:
    """What a Triton kernel does, by its name in ``triton_launches``; None if that is not predicted.
    A thread of it has so many ``elements``."""
    found = _TRITON.fullmatch(name)
    if found is None:
        return None
    way, dtype = found["way"], _TRITON_DTYPES[found["dtype"]]
    if found["gradient"]:
        way = "backward" if way == "forward" else "inverse-backward"
    transform, bins = ("rq", 8) if found["transform"] == "rq8" else (found["transform"], 0)
    parameters = {"modified_rq": 4, "affine": 2, "rq": 3 * bins - 1}[transform]
    size = SIZES[dtype]
    return Subject(
        "triton",
        transform,
        bins,
        way,
        "planar" if found["layout"] == "planar" else "rows",
        dtype,
        name,
        Traffic(1, parameters, int(transform == "rq"), x_size=size, parameter_size=size),
        partial(_program, elements),
    )


_TRITON = re.compile(
    r"(?P<transform>modified_rq|affine|rq8)-(?P<way>forward|inverse)-"
    r"(?P<layout>planar|packed_rows)-(?P<dtype>fp32|bf16):"
    r"(transform|(?P<gradient>gradient))_kernel"
)
_TRITON_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def _program(
    elements: float, subject: Subject, instructions: Sequence[Instruction]
) -> list[tuple[Counts, float]]:
    """A program does a tile, or some in a loop; the loop counts if it reads from global memory."""
    straight = ways_through(instructions)
    costs = [(straight[max(straight, key=sum)], 1 / elements)]
    loops = [loop for loop in loops_of(instructions) if loop.widest.moved("global", True)]
    if len(loops) > 1:
        raise ValueError(f"{subject.kernel}: more than one loop reads: which are its tiles?")
    for loop in loops:
        tile = loop.widest
        costs.append((tile, subject.reads / tile.moved("global", True)))
    return costs
