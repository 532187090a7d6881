"""The tasks in order of importance, so that the least important are left out if time runs out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu.calls import AGAINST, COMPILED, EAGER, MASKED, REFERENCE, ZUKO, why_not
from robustflow.benchmarks import families
from robustflow.benchmarks.cases import Case
from robustflow.benchmarks.families import LOW_LIGHT, SR, Family, Workload

FULL, QUICK, REHEARSAL = "full", "quick", "rehearsal"
# The largest number of elements of a case.
_ELEMENTS = {FULL: 1 << 26, QUICK: 1 << 23, REHEARSAL: 1 << 10}

# The shapes of the targets, with 64 M elements.
LARGE = {"planar": Workload("large", (16, 64, 256, 256)), "rows": Workload("large", (1 << 26,))}
PICTURES = (*SR, LOW_LIGHT)
# Neural spline flows in ten dimensions.
TABLES = tuple(Workload(f"nsf-1e{power}", (10**power, 10)) for power in (6, 5, 4, 3, 2))
# Small shapes, for which launching takes most of the time: the third level of one picture, and a
# small batch of simulation-based inference.
TINY = {"planar": Workload("one", (1, 96, 20, 20)), "rows": Workload("64x8", (64, 8))}

_BF16, _F16 = torch.bfloat16, torch.float16
_CALLS = ("forward", "inverse", "forward+backward")
_PLAIN = ("forward", "inverse", "backward", "forward+backward")
_REST = ("inverse+backward", "inverse-backward")
_MAIN = (families.MODIFIED_RQ, families.RQ8_PACKED_ROWS, families.AFFINE)
_MOST = (*_MAIN, families.RQ8_PACKED_PLANAR, families.CUBIC_BSPLINE)


@dataclass(frozen=True)
class Task:
    """Measure a case with every backend; or, with ``against``, one competitor on it."""

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
        """Seconds that it may take on a GPU like an H100, with compilation."""
        if self.compiles:
            return 40.0 if self.case.trains else 25.0
        return 6.0


def plan(scale: str, text: str = "", against: Sequence[str] = AGAINST) -> list[Task]:
    """The tasks, the most important first.

    Args:
        scale: ``full``, ``quick`` or ``rehearsal``: the size of the tensors.
        text: only cases whose name contains it.
        against: the competitors to compare with.
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
    # The cases of the targets.
    yield from _measure(_MOST, _PLAIN)
    yield from _measure(_MOST, _PLAIN, _BF16, _BF16)
    yield from _compare((REFERENCE, EAGER), _MAIN, _CALLS)
    yield from _compare((COMPILED,), _MAIN, _CALLS)
    # Small batches, then the shapes of applications; together they show which backend is faster.
    small = [(family, TINY[family.layout]) for family in _MAIN]
    small += [(families.RQ8_PACKED_ROWS, workload) for workload in TABLES if workload.is_small]
    large = [(family, workload) for family in _MAIN[::2] for workload in PICTURES]
    large += [(families.RQ8_PACKED_ROWS, workload) for workload in TABLES if not workload.is_small]
    for family, workload in (*small, *large):
        for direction in _CALLS:
            yield Task(Case(workload, family, direction))
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
    for family, workload in (*small, *large):
        for direction in _CALLS:
            yield Task(Case(workload, family, direction), REFERENCE)
    yield from _compare((REFERENCE, COMPILED), _MAIN, _CALLS, _BF16)
    for family, workload in (*small, *large):
        for direction in _CALLS:
            yield Task(Case(workload, family, direction), COMPILED)


def _measure(
    families: Iterable[Family],
    directions: Iterable[str],
    dtype: torch.dtype = torch.float32,
    parameter_dtype: torch.dtype = torch.float32,
) -> Iterable[Task]:
    return map(Task, _large_cases(families, directions, dtype, parameter_dtype))


def _compare(
    competitors: Iterable[str],
    families: Iterable[Family],
    directions: Iterable[str],
    dtype: torch.dtype = torch.float32,
) -> Iterable[Task]:
    cases = _large_cases(families, directions, dtype, dtype)
    return (Task(case, competitor) for competitor in competitors for case in cases)


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
