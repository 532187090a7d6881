"""The work in order of importance: what there is no time for at the end is what matters least."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu import cases
from benchmarks.gpu.calls import AGAINST, COMPILED, EAGER, MASKED, REFERENCE, ZUKO, why_not
from benchmarks.gpu.cases import Case
from robustflow.benchmarks import families
from robustflow.benchmarks.families import Family, Place

FULL, QUICK, REHEARSAL = "full", "quick", "rehearsal"
# The most elements of a case.
_ELEMENTS = {FULL: 1 << 26, QUICK: 1 << 23, REHEARSAL: 1 << 10}

_BF16, _F16 = torch.bfloat16, torch.float16
_CALLS = ("forward", "inverse", "forward+backward")
_PLAIN = ("forward", "inverse", "backward", "forward+backward")
_REST = ("inverse+backward", "inverse-backward")
_MAIN = (families.MODIFIED_RQ, families.RQ8_PACKED_ROWS, families.AFFINE)
_MOST = (*_MAIN, families.RQ8_PACKED_PLANAR, families.CUBIC_BSPLINE)


@dataclass(frozen=True)
class Task:
    """Measure a case with every backend, or (``against``) one contestant on it.

    ``seconds``: what it may take on a card like an H100, compiling included: it is not started
    with less left.
    """

    case: Case
    against: str = ""

    @property
    def name(self) -> str:
        return f"{self.case.name} against {self.against}" if self.against else self.case.name

    @property
    def compiles(self) -> bool:
        return self.against in (COMPILED, ZUKO)

    @property
    def seconds(self) -> float:
        if self.compiles:
            return 40.0 if self.case.trains else 25.0
        return 6.0


def plan(scale: str, text: str = "", against: Sequence[str] = AGAINST) -> list[Task]:
    """Every task whose case's name contains ``text``, the most important first.

    Args:
        scale: ``full``, ``quick`` or ``rehearsal``: the size of the tensors.
        against: the contestants to compare with.
    """
    tasks = []
    for task in _tasks():
        if text not in task.case.name or (task.against and task.against not in against):
            continue
        if task.against and why_not(task.against, task.case):
            continue
        tasks.append(Task(task.case.shrunk(_ELEMENTS[scale], scale), task.against))
    return tasks


def _tasks() -> Iterable[Task]:
    # What the targets are about.
    yield from _measure(_MOST, _PLAIN)
    yield from _measure(_MOST, _PLAIN, _BF16, _BF16)
    yield from _compare((REFERENCE, EAGER), _MAIN, _CALLS)
    yield from _compare((COMPILED,), _MAIN, _CALLS)
    # Small batches, then shapes of practice: with the large ones they say which backend is faster.
    small = [(family, cases.TINY[family.layout]) for family in _MAIN]
    small += [(families.RQ8_PACKED_ROWS, place) for place in cases.TABLES if place.is_small]
    large = [(family, place) for family in _MAIN[::2] for place in cases.PICTURES]
    large += [(families.RQ8_PACKED_ROWS, place) for place in cases.TABLES if not place.is_small]
    for family, place in (*small, *large):
        for direction in _CALLS:
            yield Task(Case(family, direction, place))
    # The peers.
    yield from _compare(MASKED, (families.RQ8_PACKED_ROWS,), _CALLS)
    for direction in _CALLS:
        for who in MASKED:
            yield Task(Case(families.RQ8_PACKED_ROWS, direction, cases.TINY["rows"]), who)
    yield from _measure((families.RQ8_PACKED_SOFTCLIP,), _CALLS)
    yield from _compare((ZUKO,), (families.RQ8_PACKED_SOFTCLIP,), _CALLS)
    # The rest of the table.
    yield from _measure(_MOST, _PLAIN, torch.float32, _BF16)
    yield from _measure(_MOST, _PLAIN, _F16, _F16)
    yield from _measure(_MOST, _REST)
    for dtype in (_BF16, _F16):
        yield from _measure(_MOST, _REST, dtype, dtype)
    yield from _measure(_MOST, _REST, torch.float32, _BF16)
    others = (families.RQ8_PACKED_PLANAR, families.CUBIC_BSPLINE)
    yield from _compare((REFERENCE, EAGER, COMPILED), others, _CALLS)
    for family, place in (*small, *large):
        for direction in _CALLS:
            yield Task(Case(family, direction, place), REFERENCE)
    yield from _compare((REFERENCE, COMPILED), _MAIN, _CALLS, _BF16)
    for family, place in (*small, *large):
        for direction in _CALLS:
            yield Task(Case(family, direction, place), COMPILED)


def _large(family: Family) -> Place:
    return cases.LARGE[family.layout]


def _measure(
    families: Iterable[Family],
    directions: Iterable[str],
    dtype: torch.dtype = torch.float32,
    parameter_dtype: torch.dtype = torch.float32,
) -> Iterable[Task]:
    directions = tuple(directions)
    for family in families:
        for direction in directions:
            yield Task(Case(family, direction, _large(family), dtype, parameter_dtype))


def _compare(
    contestants: Iterable[str],
    families: Iterable[Family],
    directions: Iterable[str],
    dtype: torch.dtype = torch.float32,
) -> Iterable[Task]:
    families, directions = tuple(families), tuple(directions)
    for who in contestants:
        for family in families:
            for direction in directions:
                yield Task(Case(family, direction, _large(family), dtype, dtype), who)
