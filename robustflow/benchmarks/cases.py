"""Benchmark cases, for CPUs and GPUs, and the lists of those measured on a CPU.

A case is a transform on tensors of one shape in one direction. Its name is
WORKLOAD.TRANSFORM.DIRECTION, such as ``sr1.affine.train``. A workload is a shape of x, samples
first, with the name of the application that it comes from. ``SUITE`` is what ``robustflow bench``
measures, ``QUICK`` the part of it that ``--quick`` measures, ``FOUNDATION`` what
``benchmarks.foundation`` has targets for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch

from robustflow.benchmarks.families import (
    AFFINE,
    AFFINE_ZUKO,
    CUBIC_BSPLINE,
    LOW_LIGHT,
    MODIFIED_RQ,
    RQ8,
    RQ8_CIRCULAR,
    RQ8_ZUKO,
    RQ10,
    SR,
    Family,
    Workload,
)
from robustflow.benchmarks.traffic import Traffic

# What --against knows. ``eager`` is the textbook formula in plain PyTorch (eager.py),
# ``compiled`` the same under torch.compile; zuko runs under torch.compile too.
COMPETITORS = ("eager", "compiled", "nflows", "zuko", "normflows")

# Directions as they are in a case's name, and what they stand for. A name has any other direction
# unchanged.
DIRECTIONS = {"forward": "forward", "inverse": "inverse", "train": "forward+backward"}
_IN_NAMES = {direction: in_name for in_name, direction in DIRECTIONS.items()}


# Neural spline flows of simulation-based inference: training batches, then samples of a posterior.
NSF = (
    Workload("nsf-1e2", (100, 2)),
    Workload("nsf-1e3", (1000, 5)),
    Workload("nsf-1e4", (10_000, 20)),
    Workload("nsf-1e5", (100_000, 10), (20_000, 10)),
)
# Calorimeter simulation: the energies of layers, then the voxels of a shower.
CALORIMETER = (Workload("calo-30", (1024, 30)), Workload("calo-368", (1024, 368), (128, 368)))
# A field of angles on 16 x 16 sites.
LATTICE = Workload("lattice", (1024, 256), (256, 256))
TINY = Workload("tiny", (64, 8))
# Far larger than any cache: 10 million elements with planar parameters, a million with rows.
LARGE = Workload("large", (16, 96, 80, 80), (2, 96, 80, 80))
LARGE_AFFINE = Workload("large", (16, 100, 80, 80), (2, 100, 80, 80))
LARGE_ROWS = Workload("large", (1 << 20,), (1 << 17,))


@dataclass(frozen=True)
class Case:
    """A transform on tensors of one shape in one direction.

    Attributes:
        workload: the shape of x.
        family: the transform, and the layout of its parameters.
        direction: ``forward`` or ``inverse`` (without gradients), ``forward+backward`` or
            ``inverse+backward`` (with gradients), or the backward pass alone: ``backward`` or
            ``inverse-backward``.
        competitors: from :data:`COMPETITORS`. An inverse can also have ``forward``, robustflow's
            own forward transform. Not used on a GPU: benchmarks/gpu/plan.py chooses the
            comparisons.
        dtype: of x, y and the cotangent of y.
        parameter_dtype: of the parameters.
        scale: ``full``, or why the shape is smaller: ``quick``, ``rehearsal``, ``memory``.
        smaller_shape: a shape of x to use instead of the workload's.
    """

    workload: Workload
    family: Family
    direction: str
    competitors: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    parameter_dtype: torch.dtype = torch.float32
    scale: str = "full"
    smaller_shape: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The name that ``--filter`` searches. It ends with the dtypes unless all are float32."""
        direction = _IN_NAMES.get(self.direction, self.direction)
        name = f"{self.workload.name}.{self.family.name}.{direction}"
        return name if self.dtypes == "float32" else f"{name}.{self.dtypes}"

    @property
    def dtypes(self) -> str:
        x, parameters = dtype_name(self.dtype), dtype_name(self.parameter_dtype)
        return x if x == parameters else f"{x}x{parameters}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of x."""
        return self.smaller_shape or self.workload.shape

    @property
    def parameter_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each parameter tensor: ``rq_spline`` has several, other operations one."""
        if self.family.operation == "rq_spline":
            return tuple((*self.shape, size) for size in self.family.groups)
        if len(self.shape) == 1:
            return ((*self.shape, self.family.parameters),)
        samples, channels, *space = self.shape
        return ((samples, channels * self.family.parameters, *space),)

    @property
    def logabsdet_shape(self) -> tuple[int, ...]:
        """One log-determinant for each element with ``rq_spline``, for each sample otherwise."""
        return self.shape if self.family.operation == "rq_spline" else self.shape[:1]

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def inverse(self) -> bool:
        return self.direction.startswith("inverse")

    @property
    def trains(self) -> bool:
        """Whether there is a backward pass."""
        return "backward" in self.direction

    @property
    def only_backward(self) -> bool:
        """Whether the backward pass is timed alone."""
        return self.trains and "+" not in self.direction

    @property
    def traffic(self) -> Traffic:
        return Traffic(
            self.elements,
            self.family.parameters,
            prod(self.logabsdet_shape),
            x_size=self.dtype.itemsize,
            parameter_size=self.parameter_dtype.itemsize,
        )

    @property
    def bytes(self) -> int:
        return self.traffic.of(self.direction)

    def quick(self) -> Case:
        """The same case on the workload's smaller shape, if it has one."""
        if self.workload.quick_shape is None:
            return self
        return replace(self, smaller_shape=self.workload.quick_shape, scale="quick")

    def tiny(self) -> Case:
        """The same case on few elements, to load libraries and start threads."""
        return replace(self, smaller_shape=tuple(min(size, 4) for size in self.shape), scale="tiny")

    def shrunk(self, max_elements: int, scale: str) -> Case:
        """The same case on at most ``max_elements``: halves the longest dimension repeatedly."""
        shape = list(self.shape)
        while prod(shape) > max_elements:
            longest = shape.index(max(shape))
            shape[longest] = -(-shape[longest] // 2)
        if tuple(shape) == self.shape:
            return self
        return replace(self, smaller_shape=tuple(shape), scale=scale)

    def against(self, competitors: Sequence[str]) -> Case:
        """The same case with only those of its competitors that are in ``competitors``."""
        kept = tuple(name for name in self.competitors if name in competitors)
        return replace(self, competitors=kept)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _case(workload: Workload, family: Family, direction: str, *more_competitors: str) -> Case:
    competitors = (*family.competitors, *more_competitors)
    return Case(workload, family, DIRECTIONS[direction], competitors)


def _all_directions(workload: Workload, *families: Family) -> list[Case]:
    return [_case(workload, family, name) for family in families for name in DIRECTIONS]


SUITE = (
    *(
        case
        for workload in (*SR, LOW_LIGHT)
        for case in _all_directions(workload, MODIFIED_RQ, AFFINE)
    ),
    *(case for workload in NSF[:2] for case in _all_directions(workload, RQ10)),
    *_all_directions(NSF[2], RQ10, RQ8_ZUKO, AFFINE, AFFINE_ZUKO),
    *_all_directions(NSF[3], RQ8),
    *(case for workload in CALORIMETER for case in _all_directions(workload, RQ8)),
    *_all_directions(LATTICE, RQ8_CIRCULAR),
    *_all_directions(TINY, RQ8, MODIFIED_RQ, AFFINE),
    *_all_directions(SR[2], CUBIC_BSPLINE),
)

FOUNDATION = (
    _case(LARGE, MODIFIED_RQ, "forward"),
    _case(LARGE, MODIFIED_RQ, "inverse", "forward"),
    _case(LARGE, MODIFIED_RQ, "train"),
    _case(LARGE_ROWS, RQ8, "forward"),
    _case(LARGE_ROWS, RQ8, "train"),
    _case(LARGE_ROWS, RQ8_ZUKO, "forward"),
    _case(LARGE_ROWS, RQ8_ZUKO, "train"),
    _case(LARGE_AFFINE, AFFINE, "forward"),
    _case(TINY, RQ8, "forward"),
    _case(TINY, RQ8, "train"),
)

ALL = (*SUITE, *(case for case in FOUNDATION if case not in SUITE))


def find(name: str) -> Case:
    """The case with this name.

    Raises:
        ValueError: there is none.
    """
    for case in ALL:
        if case.name == name:
            return case
    raise ValueError(f"No case {name!r}; there are {', '.join(case.name for case in ALL)}.")


def select(text: str, quick: bool = False) -> Sequence[Case]:
    """The suite's cases, in full shape, whose name contains ``text``.

    For a quick run without a text: :data:`QUICK`.
    """
    if quick and not text:
        return QUICK
    return [case for case in SUITE if text in case.name]


# One case for each kind of kernel; robustflow/benchmarks/bars.py has bars for each.
QUICK = tuple(
    find(name)
    for name in (
        "sr3.modified_rq.forward",
        "sr3.modified_rq.inverse",
        "sr3.modified_rq.train",
        "sr3.affine.train",
        "nsf-1e4.rq10.forward",
        "nsf-1e4.rq8-softclip.train",
        "lattice.rq8-circular.inverse",
        "tiny.rq8.train",
    )
)
