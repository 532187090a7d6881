"""The work in order of importance: what there is no time for at the end is what matters least."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu.calls import AGAINST, COMPILED, EAGER, MASKED, REFERENCE, ZUKO, why_not
from robustflow.benchmarks import families
from robustflow.benchmarks.cases import Case
from robustflow.benchmarks.families import LOW_LIGHT, SR, Family, Place

FULL, QUICK, REHEARSAL = "full", "quick", "rehearsal"
# The most elements of a case.
_ELEMENTS = {FULL: 1 << 26, QUICK: 1 << 23, REHEARSAL: 1 << 10}

# 64 M elements: the shapes that the targets are stated for.
LARGE = {"planar": Place("large", (16, 64, 256, 256)), "rows": Place("large", (1 << 26,))}
PICTURES = (*SR, LOW_LIGHT)
# Neural spline flows of ten dimensions.
TABLES = tuple(Place(f"nsf-1e{power}", (10**power, 10)) for power in (6, 5, 4, 3, 2))
# Launch-bound: one picture's third level, and the small batch of simulation-based inference.
TINY = {"planar": Place("one", (1, 96, 20, 20)), "rows": Place("64x8", (64, 8))}

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
    small = [(family, TINY[family.layout]) for family in _MAIN]
    small += [(families.RQ8_PACKED_ROWS, place) for place in TABLES if place.is_small]
    large = [(family, place) for family in _MAIN[::2] for place in PICTURES]
    large += [(families.RQ8_PACKED_ROWS, place) for place in TABLES if not place.is_small]
    for family, place in (*small, *large):
        for direction in _CALLS:
            yield Task(Case(place, family, direction))
    # The peers.
    yield from _compare(MASKED, (families.RQ8_PACKED_ROWS,), _CALLS)
    for direction in _CALLS:
        for who in MASKED:
            yield Task(Case(TINY["rows"], families.RQ8_PACKED_ROWS, direction), who)
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
            yield Task(Case(place, family, direction), REFERENCE)
    yield from _compare((REFERENCE, COMPILED), _MAIN, _CALLS, _BF16)
    for family, place in (*small, *large):
        for direction in _CALLS:
            yield Task(Case(place, family, direction), COMPILED)


def _measure(
    families: Iterable[Family],
    directions: Iterable[str],
    dtype: torch.dtype = torch.float32,
    parameter_dtype: torch.dtype = torch.float32,
) -> Iterable[Task]:
    return map(Task, _large_cases(families, directions, dtype, parameter_dtype))


def _compare(
    contestants: Iterable[str],
    families: Iterable[Family],
    directions: Iterable[str],
    dtype: torch.dtype = torch.float32,
) -> Iterable[Task]:
    cases = _large_cases(families, directions, dtype, dtype)
    return (Task(case, contestant) for contestant in contestants for case in cases)


def _large_cases(
    families: Iterable[Family],
    directions: Iterable[str],
    dtype: torch.dtype,
    parameter_dtype: torch.dtype,
) -> list[Case]:
    return [
        Case(LARGE[family.layout], family, direction, dtype=dtype, parameter_dtype=parameter_dtype)
        for family, direction in itertools.product(families, directions)
    ]
