"""What is measured, on a CPU and on a GPU alike: cases, and the list of those of a CPU.

A case is a transform on tensors of one shape in one direction. Its name is PLACE.TRANSFORM.VERB. A
place is where the shape comes from; shapes are those of x, samples first. ``SUITE`` is what
``robustflow bench`` measures, ``QUICK`` the part of it that ``--quick`` keeps, ``FOUNDATION`` what
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
    Place,
)
from robustflow.benchmarks.traffic import Traffic

# What --against knows. ``eager`` is the textbook formula in plain PyTorch (eager.py),
# ``compiled`` the same under torch.compile; zuko runs under torch.compile too.
COMPETITORS = ("eager", "compiled", "nflows", "zuko", "normflows")

# Directions by the verbs of names. Every other direction is its own verb.
DIRECTIONS = {"forward": "forward", "inverse": "inverse", "train": "forward+backward"}
_VERBS = {direction: verb for verb, direction in DIRECTIONS.items()}


# Neural spline flows of simulation-based inference: training batches, then samples of a posterior.
NSF = (
    Place("nsf-1e2", (100, 2)),
    Place("nsf-1e3", (1000, 5)),
    Place("nsf-1e4", (10_000, 20)),
    Place("nsf-1e5", (100_000, 10), (20_000, 10)),
)
# Calorimeter simulation: the energies of layers, then the voxels of a shower.
CALORIMETER = (Place("calo-30", (1024, 30)), Place("calo-368", (1024, 368), (128, 368)))
# A field of angles on 16 x 16 sites.
LATTICE = Place("lattice", (1024, 256), (256, 256))
TINY = Place("tiny", (64, 8))
# Well beyond any cache: 10 million elements of planes, a million rows.
LARGE = Place("large", (16, 96, 80, 80), (2, 96, 80, 80))
LARGE_AFFINE = Place("large", (16, 100, 80, 80), (2, 100, 80, 80))
LARGE_ROWS = Place("large", (1 << 20,), (1 << 17,))


@dataclass(frozen=True)
class Case:
    """A transform on tensors of one shape in one direction.

    Attributes:
        place: the shape of x.
        family: the transform, and the layout of its parameters.
        direction: ``forward`` or ``inverse``, without gradients; the same followed by
            ``+backward``, with them, or by ``-backward``, the backward pass alone. ``backward`` is
            that of the forward transform alone.
        competitors: of :data:`COMPETITORS`; and ``forward``, robustflow's own, for an inverse. A
            GPU's suite plans its comparisons apart.
        dtype: of x, y and the cotangent of y.
        parameter_dtype: of the parameters.
        scale: ``full``, or why the shape is smaller: ``quick``, ``rehearsal``, ``memory``.
        smaller_shape: of x, in place of the place's.
    """

    place: Place
    family: Family
    direction: str
    competitors: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    parameter_dtype: torch.dtype = torch.float32
    scale: str = "full"
    smaller_shape: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """What ``--filter`` looks in: PLACE.TRANSFORM.VERB, and the dtypes if not float32."""
        verb = _VERBS.get(self.direction, self.direction)
        name = f"{self.place.name}.{self.family.name}.{verb}"
        return name if self.dtypes == "float32" else f"{name}.{self.dtypes}"

    @property
    def dtypes(self) -> str:
        x, parameters = dtype_name(self.dtype), dtype_name(self.parameter_dtype)
        return x if x == parameters else f"{x}x{parameters}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of x."""
        return self.smaller_shape or self.place.shape

    @property
    def parameter_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of each parameter tensor: one a group for ``rq_spline``, else one for all."""
        if self.family.operation == "rq_spline":
            return tuple((*self.shape, size) for size in self.family.groups)
        if len(self.shape) == 1:
            return ((*self.shape, self.family.parameters),)
        samples, channels, *space = self.shape
        return ((samples, channels * self.family.parameters, *space),)

    @property
    def logabsdet_shape(self) -> tuple[int, ...]:
        """One log-determinant an element for ``rq_spline``, else one a sample."""
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
        """The same case on the place's shape for a quick look."""
        if self.place.quick_shape is None:
            return self
        return replace(self, smaller_shape=self.place.quick_shape, scale="quick")

    def tiny(self) -> Case:
        """The same case on a handful of elements: loads libraries, starts threads."""
        return replace(self, smaller_shape=tuple(min(size, 4) for size in self.shape), scale="tiny")

    def shrunk(self, max_elements: int, scale: str) -> Case:
        """The same case on at most so many elements: its longest side halved again and again."""
        shape = list(self.shape)
        while prod(shape) > max_elements:
            longest = shape.index(max(shape))
            shape[longest] = -(-shape[longest] // 2)
        if tuple(shape) == self.shape:
            return self
        return replace(self, smaller_shape=tuple(shape), scale=scale)

    def against(self, competitors: Sequence[str]) -> Case:
        """The same case with those of its competitors that are among ``competitors``."""
        kept = tuple(name for name in self.competitors if name in competitors)
        return replace(self, competitors=kept)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _case(place: Place, family: Family, verb: str, *more_competitors: str) -> Case:
    competitors = (*family.competitors, *more_competitors)
    return Case(place, family, DIRECTIONS[verb], competitors)


def _all_verbs(place: Place, *families: Family) -> list[Case]:
    return [_case(place, family, verb) for family in families for verb in DIRECTIONS]


SUITE = (
    *(case for place in (*SR, LOW_LIGHT) for case in _all_verbs(place, MODIFIED_RQ, AFFINE)),
    *(case for place in NSF[:2] for case in _all_verbs(place, RQ10)),
    *_all_verbs(NSF[2], RQ10, RQ8_ZUKO, AFFINE, AFFINE_ZUKO),
    *_all_verbs(NSF[3], RQ8),
    *(case for place in CALORIMETER for case in _all_verbs(place, RQ8)),
    *_all_verbs(LATTICE, RQ8_CIRCULAR),
    *_all_verbs(TINY, RQ8, MODIFIED_RQ, AFFINE),
    *_all_verbs(SR[2], CUBIC_BSPLINE),
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
    """The case of a name.

    Raises:
        ValueError: there is none.
    """
    for case in ALL:
        if case.name == name:
            return case
    raise ValueError(f"No case {name!r}; there are {', '.join(case.name for case in ALL)}.")


def select(text: str, quick: bool = False) -> Sequence[Case]:
    """The suite's cases whose name contains ``text``, of full shape; without a text, a quick run
    has only :data:`QUICK`."""
    if quick and not text:
        return QUICK
    return [case for case in SUITE if text in case.name]


# One case of every kind of kernel; bars are stated for each (robustflow.benchmarks.bars).
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
