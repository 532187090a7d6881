"""The list of workloads: which transform, on tensors of which shape, against which competitors.

Names are PLACE.TRANSFORM.DIRECTION. A place is where the shape comes from; shapes are those of x,
samples first. ``SUITE`` is what ``robustflow bench`` measures, ``QUICK`` the part of it that
``--quick`` keeps, ``FOUNDATION`` what ``benchmarks.foundation`` has targets for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

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
    SMALL,
    SR,
    Family,
    Place,
)
from robustflow.benchmarks.traffic import Traffic

# What --against knows. ``eager`` is the textbook formula in plain PyTorch (eager.py),
# ``compiled`` the same under torch.compile; zuko runs under torch.compile too.
COMPETITORS = ("eager", "compiled", "nflows", "zuko", "normflows")

DIRECTIONS = {"forward": "forward", "inverse": "inverse", "train": "forward+backward"}


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
class Workload:
    """One case.

    Attributes:
        name: unique; what ``--filter`` looks in.
        family: the transform.
        direction: ``forward``, ``inverse`` or ``forward+backward``; the first two without grad.
        shape: of x.
        competitors: of :data:`COMPETITORS`; and ``forward``, robustflow's own, for an inverse.
        quick_shape: a smaller shape for a quick look.
    """

    name: str
    family: Family
    direction: str
    shape: tuple[int, ...]
    competitors: tuple[str, ...]
    quick_shape: tuple[int, ...] | None = None

    @property
    def operation(self) -> str:
        return self.family.operation

    @property
    def num_bins(self) -> int:
        return self.family.num_bins

    @property
    def options(self) -> Mapping[str, Any]:
        return self.family.options

    @property
    def parameters(self) -> tuple[int, ...]:
        """Parameters an element, tensor by tensor."""
        groups = self.family.groups
        return groups if self.operation == "rq_spline" else (sum(groups),)

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def logabsdets(self) -> int:
        """Log-determinants returned: one an element for ``rq_spline``, else one a sample."""
        return self.elements if self.operation == "rq_spline" else self.shape[0]

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.elements, sum(self.parameters), self.logabsdets)

    @property
    def bytes(self) -> int:
        return self.traffic.of(self.direction)

    @property
    def is_small(self) -> bool:
        """Whether the Python path, not the kernel, is what the case measures."""
        return self.elements < SMALL

    def quick(self) -> Workload:
        return self if self.quick_shape is None else replace(self, shape=self.quick_shape)

    def against(self, competitors: Sequence[str]) -> Workload:
        """The same case with those of its competitors that are among ``competitors``."""
        kept = tuple(name for name in self.competitors if name in competitors)
        return replace(self, competitors=kept)

    def tiny(self) -> Workload:
        """The same case on a handful of elements: loads libraries, starts threads."""
        return replace(self, shape=tuple(min(size, 4) for size in self.shape))


def _workload(place: Place, family: Family, verb: str, *more_competitors: str) -> Workload:
    return Workload(
        f"{place.name}.{family.name}.{verb}",
        family,
        DIRECTIONS[verb],
        place.shape,
        (*family.competitors, *more_competitors),
        place.quick_shape,
    )


def _all_ways(place: Place, *families: Family) -> list[Workload]:
    return [_workload(place, family, verb) for family in families for verb in DIRECTIONS]


SUITE = (
    *(work for place in (*SR, LOW_LIGHT) for work in _all_ways(place, MODIFIED_RQ, AFFINE)),
    *(work for place in NSF[:2] for work in _all_ways(place, RQ10)),
    *_all_ways(NSF[2], RQ10, RQ8_ZUKO, AFFINE, AFFINE_ZUKO),
    *_all_ways(NSF[3], RQ8),
    *(work for place in CALORIMETER for work in _all_ways(place, RQ8)),
    *_all_ways(LATTICE, RQ8_CIRCULAR),
    *_all_ways(TINY, RQ8, MODIFIED_RQ, AFFINE),
    *_all_ways(SR[2], CUBIC_BSPLINE),
)

FOUNDATION = (
    _workload(LARGE, MODIFIED_RQ, "forward"),
    _workload(LARGE, MODIFIED_RQ, "inverse", "forward"),
    _workload(LARGE, MODIFIED_RQ, "train"),
    _workload(LARGE_ROWS, RQ8, "forward"),
    _workload(LARGE_ROWS, RQ8, "train"),
    _workload(LARGE_ROWS, RQ8_ZUKO, "forward"),
    _workload(LARGE_ROWS, RQ8_ZUKO, "train"),
    _workload(LARGE_AFFINE, AFFINE, "forward"),
    _workload(TINY, RQ8, "forward"),
    _workload(TINY, RQ8, "train"),
)

EVERY = (*SUITE, *(work for work in FOUNDATION if work not in SUITE))


def find(name: str) -> Workload:
    """The workload of a name.

    Raises:
        ValueError: there is none.
    """
    for workload in EVERY:
        if workload.name == name:
            return workload
    raise ValueError(f"No workload {name!r}; there are {', '.join(w.name for w in EVERY)}.")


def chosen(text: str, quick: bool = False) -> Sequence[Workload]:
    """The suite's workloads whose name contains ``text``, of full shape; without a text, a quick
    run has only :data:`QUICK`."""
    if quick and not text:
        return QUICK
    return [work for work in SUITE if text in work.name]


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
