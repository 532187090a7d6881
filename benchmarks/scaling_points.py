"""A point of benchmarks.scaling: a transform at one N and K, every way, on 1 and 2 threads.

Planar cases are pictures of ten channels at 100 x 100, as many as N asks for (below 1e4 elements,
one of one channel). Beyond one such picture, or 1e5 rows, the data repeats itself: so the results
of every element are known from the first stretch, which is checked against eager PyTorch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from robustflow.benchmarks import calls, timing
from robustflow.benchmarks.calls import Calls, Inputs
from robustflow.benchmarks.cases import DIRECTIONS, Case
from robustflow.benchmarks.families import AFFINE, MODIFIED_RQ, RQ8, Family, Place
from robustflow.benchmarks.rows import Row
from robustflow.benchmarks.timing import Timing
from robustflow.benchmarks.worker import PRIMED_INPUTS

THREADS = (1, 2)
STRETCH = 10**5  # elements after which the data repeats itself
SIDE = 100  # of a picture
COPY_AT_ONCE = 1 << 30  # bytes; a longer copy is made of several, each beyond any cache
SMALL = 1 << 27  # bytes of a training step: points below it share a process
# Up to where competitors are timed: elements, and bytes of a call (K = 8 at as many rows).
AFFORDABLE = (10**6, 11 * 10**7)


@dataclass(frozen=True)
class ScalingRow(Row):
    """A point in one direction on a number of threads: the keys of every row, and these.

    Attributes:
        sweep: ``n`` or ``k``, what the point is one of many of.
        threads: of the operation and of the copy.
        num_bins: K; 0 where there is none.
        seconds_per_element, bytes_per_element: ``median_s`` and ``bytes`` over the elements.
        copy_bytes_per_s: of the copy of as many bytes in the same rounds, read and written.
    """

    sweep: str = "n"
    threads: int = 1
    num_bins: int = 0
    seconds_per_element: float = 0.0
    bytes_per_element: float = 0.0
    copy_bytes_per_s: float = 0.0


@dataclass(frozen=True)
class Point:
    """A transform at one N and K.

    Attributes:
        sweep: ``n`` or ``k``.
        family: the transform.
        count: elements of x.
    """

    sweep: str
    family: Family
    count: int

    @property
    def name(self) -> str:
        return f"{self.family.name}, N = {short(self.count)}"

    @property
    def shape(self) -> tuple[int, ...]:
        if self.family.operation == "rq_spline":
            return (self.count,)
        space = min(self.count, SIDE * SIDE)
        channels = min(self.count, STRETCH) // space
        return (self.count // (space * channels), channels, space)

    def case(self, verb: str) -> Case:
        """``verb`` is one of :data:`robustflow.benchmarks.cases.DIRECTIONS`."""
        place = Place(f"scaling-{self.sweep}", self.shape)
        competitor = "nflows" if "nflows" in self.family.competitors else "eager"
        return Case(place, self.family, DIRECTIONS[verb], (competitor,))

    @property
    def bytes_needed(self) -> int:
        """Of a training step (inputs, cotangents, outputs, gradients) and of the copy."""
        case = self.case("train")
        traffic = case.traffic
        return 2 * (traffic.inputs + traffic.outputs) + min(case.bytes, COPY_AT_ONCE)

    @property
    def is_affordable(self) -> bool:
        """Whether competitors, slow as they are, are timed too."""
        elements, num_bytes = AFFORDABLE
        return self.count <= elements and self.case("forward").bytes <= num_bytes

    @property
    def bytes_to_prime(self) -> int:
        """Heap to touch beforehand where memory is kept."""
        inputs = self.case("train").traffic.inputs
        return max(self.bytes_needed, PRIMED_INPUTS * inputs if self.is_affordable else 0)

    @property
    def is_small(self) -> bool:
        return self.case("train").bytes <= SMALL

    def to_json(self) -> dict[str, Any]:
        return {"sweep": self.sweep, "num_bins": self.family.num_bins, "count": self.count} | {
            "operation": self.family.operation
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Point:
        found = {family.operation: family for family in FAMILIES}[record["operation"]]
        family = with_bins(record["num_bins"]) if record["num_bins"] else found
        return cls(record["sweep"], family, record["count"])


FAMILIES = (MODIFIED_RQ, AFFINE, RQ8)


def with_bins(num_bins: int) -> Family:
    """The RQ spline of K bins."""
    return replace(RQ8, name=f"rq{num_bins}", num_bins=num_bins)


def short(count: int) -> str:
    """A number of elements in few letters.

    Example:
        >>> short(30_000), short(10**8)
        ('3e4', '1e8')
    """
    return f"{count:.0e}".replace("e+0", "e")


@dataclass(frozen=True)
class OnThreads:
    """A function and the number of threads that it is to run on."""

    threads: int
    function: timing.Function

    def __call__(self) -> object:
        torch.set_num_threads(self.threads)
        return self.function()


def sample_seconds(on_threads: OnThreads, calls: int) -> float:
    """Seconds a call; the threads are set before the clock starts."""
    torch.set_num_threads(on_threads.threads)
    return timing.sample_by(time.perf_counter, on_threads.function, calls)


def copies(sizes: Iterable[int]) -> dict[int, timing.Function]:
    """For each number of bytes a copy that moves it, all in the same two buffers.

    A long one goes over buffers of :data:`COPY_AT_ONCE` several times: nothing of them is left in a
    cache when their turn comes again.
    """
    times = {size: max(1, math.ceil(size / COPY_AT_ONCE)) for size in sizes}
    lengths = {size: max(1, size // (8 * times[size])) for size in times}
    source = torch.ones(max(lengths.values()))
    target = torch.zeros_like(source)

    def make(size: int) -> timing.Function:
        to, of = target[: lengths[size]], source[: lengths[size]]

        def copy() -> None:
            for _ in range(times[size]):
                to.copy_(of)

        return copy

    return {size: make(size) for size in times}


def inputs_of(point: Point) -> tuple[Inputs, int]:
    """Tensors for every direction, and how often they repeat their first :data:`STRETCH`."""
    case = point.case("train")
    repeats = max(1, point.count // STRETCH)
    first = (case.shape[0] // repeats, *case.shape[1:])
    inputs = calls.make_inputs(replace(case, smaller_shape=first))

    def repeated(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(each.repeat(repeats, *[1] * (each.dim() - 1)) for each in tensors)

    return Inputs(repeated(inputs.leaves), repeated(inputs.cotangents)), repeats


def checked(case: Case, inputs: Inputs, repeats: int) -> Calls:
    """The case's calls once their results are known to be right.

    The first stretch is compared with eager PyTorch and the competitors, and every later one with
    the first: they must be the same bits.

    Raises:
        AssertionError: they are not; the message says where.
    """
    length = case.shape[0] // repeats
    stretch = replace(
        case,
        smaller_shape=(length, *case.shape[1:]),
        competitors=tuple(dict.fromkeys(("eager", *case.competitors))),
    )

    def first(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(tensor[:length] for tensor in tensors)

    small = calls.bind(stretch, Inputs(first(inputs.leaves), first(inputs.cotangents)))
    # A bin of K is K times smaller, and where x lies in it is known K times less well.
    calls.check_agreement(small, rounding=1e-4 * max(0.0, case.family.num_bins / 8 - 1))
    expected: Any = small.ours()
    whole = calls.bind(case, inputs)
    results: Any = OnThreads(max(usable_threads()), whole.ours)()
    for index, (tensor, right) in enumerate(zip(results, expected, strict=True)):
        for start in range(0, len(tensor), length):
            if not torch.equal(tensor[start : start + length], right):
                raise AssertionError(
                    f"{case.name}: result {index} from sample {start} on differs from the "
                    "first samples', which have the same inputs."
                )
    return whole


def measure_point(
    point: Point, text: str, policy: str, *, seconds: float, min_rounds: int
) -> tuple[list[ScalingRow], dict[str, str]]:
    """The rows of a point whose name contains ``text``, in this process; and what was left out.

    A row's name is that of the case, its number of elements and of threads.
    """
    selected = [
        (point.case(verb), threads)
        for verb in DIRECTIONS
        for threads in usable_threads()
        if text in row_name(point.case(verb), threads)
    ]
    inputs, repeats = inputs_of(point)
    left_out: dict[str, str] = {}
    prepared: dict[str, Calls] = {}
    for case, _ in selected:
        if case.name not in prepared:
            competitors = case.competitors if point.is_affordable else ()
            prepared[case.name] = checked(replace(case, competitors=competitors), inputs, repeats)
            left_out |= prepared[case.name].left_out
    floors = copies({case.bytes for case, _ in selected})
    functions: dict[str, OnThreads] = {}
    for case, threads in selected:
        of_case = prepared[case.name]
        functions[row_name(case, threads)] = OnThreads(threads, of_case.ours)
        functions[_copy_name(case, threads)] = OnThreads(threads, floors[case.bytes])
        if threads == max(usable_threads()):
            for who, function in of_case.competitors.items():
                functions[_name_of(who, case, threads)] = OnThreads(threads, function)
    times = timing.alternate(
        functions, seconds=seconds, min_rounds=min_rounds, warmup=1, sampler=sample_seconds
    )
    rows = [_row(point.sweep, case, threads, policy, times) for case, threads in selected]
    return rows, left_out


def _row(
    sweep: str, case: Case, threads: int, policy: str, times: Mapping[str, Timing]
) -> ScalingRow:
    ours = times[row_name(case, threads)]
    copy = times[_copy_name(case, threads)]
    others = {
        who: times[_name_of(who, case, threads)]
        for who in case.competitors
        if _name_of(who, case, threads) in times
    }
    return ScalingRow(
        name=row_name(case, threads),
        operation=case.family.operation,
        direction=case.direction,
        shape=case.shape,
        dtype=case.dtypes,
        allocator=policy,
        bytes=case.bytes,
        **timing.row_figures(ours, copy, others, elements=case.elements),
        sweep=sweep,
        threads=threads,
        num_bins=case.family.num_bins,
        seconds_per_element=ours.median / case.elements,
        bytes_per_element=case.bytes / case.elements,
        copy_bytes_per_s=case.bytes / copy.median,
    )


def _name_of(who: str, case: Case, threads: int) -> str:
    return f"{who}: {row_name(case, threads)}"


def _copy_name(case: Case, threads: int) -> str:
    return f"copy of {case.bytes} on {threads}"


def row_name(case: Case, threads: int) -> str:
    return f"{case.name}.n{short(case.elements)}.t{threads}"


def usable_threads() -> tuple[int, ...]:
    """Of :data:`THREADS`, those for which this process has a core each."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return tuple(threads for threads in THREADS if threads <= cores)
