"""A point of benchmarks.scaling: a transform at one N and K, in each direction, on 1 and 2 threads.

N is the number of elements. For transforms with planar parameters, x is a batch of pictures with
ten channels of 100 x 100; below 1e5 elements it is one picture with fewer channels or pixels. For
the RQ spline, x has shape (N,).

The data repeats itself after 1e5 elements. So only the results for the first 1e5 have to be
compared with eager PyTorch: all later ones must have the same bits.
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
from robustflow.benchmarks.families import AFFINE, MODIFIED_RQ, RQ8, Family, Workload
from robustflow.benchmarks.rows import Row
from robustflow.benchmarks.timing import Timing
from robustflow.benchmarks.worker import PRIMED_INPUTS

THREADS = (1, 2)
PERIOD = 10**5  # elements after which the data repeats itself
SIDE = 100  # of a picture
# The most bytes for the buffers of a copy, far beyond any cache; a longer copy uses them
# repeatedly.
MAX_COPY_BYTES = 1 << 30
SMALL = 1 << 27  # bytes of a training step: points below it share a process
# Competitors are slow, so they are timed up to this many elements, and up to this many bytes of a
# forward call (which admits K = 8 at that many elements, and no more bins).
COMPETITOR_MAX_ELEMENTS, COMPETITOR_MAX_BYTES = 10**6, 11 * 10**7


@dataclass(frozen=True)
class ScalingRow(Row):
    """A point in one direction on a number of threads: a :class:`Row` with more fields.

    Attributes:
        sweep: what varies, ``n`` or ``k``.
        threads: of the operation and of the copy.
        num_bins: K; 0 for a transform without bins.
        seconds_per_element, bytes_per_element: ``median_s`` and ``bytes`` over the elements.
        copy_bytes_per_s: bytes that the copy, timed in the same rounds, reads and writes a second.
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
        sweep: what varies, ``n`` or ``k``.
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
        channels = min(self.count, PERIOD) // space
        return (self.count // (space * channels), channels, space)

    def case(self, direction: str) -> Case:
        """The case in one of :data:`robustflow.benchmarks.cases.DIRECTIONS`."""
        workload = Workload(f"scaling-{self.sweep}", self.shape)
        competitor = "nflows" if "nflows" in self.family.competitors else "eager"
        return Case(workload, self.family, DIRECTIONS[direction], (competitor,))

    @property
    def bytes_needed(self) -> int:
        """Of a training step (inputs, cotangents, outputs, gradients) and of the copy."""
        case = self.case("train")
        traffic = case.traffic
        return 2 * (traffic.inputs + traffic.outputs) + min(case.bytes, MAX_COPY_BYTES)

    @property
    def has_competitors(self) -> bool:
        """Whether competitors are timed too, which are slow."""
        return (
            self.count <= COMPETITOR_MAX_ELEMENTS
            and self.case("forward").bytes <= COMPETITOR_MAX_BYTES
        )

    @property
    def bytes_to_prime(self) -> int:
        """Bytes of heap to touch before the clock starts, under the allocator that keeps memory."""
        inputs = self.case("train").traffic.inputs
        return max(self.bytes_needed, PRIMED_INPUTS * inputs if self.has_competitors else 0)

    @property
    def is_small(self) -> bool:
        return self.case("train").bytes <= SMALL

    def to_json(self) -> dict[str, Any]:
        return {"sweep": self.sweep, "num_bins": self.family.num_bins, "count": self.count} | {
            "operation": self.family.operation
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Point:
        if record["num_bins"]:
            family = with_bins(record["num_bins"])
        else:
            family = {family.operation: family for family in FAMILIES}[record["operation"]]
        return cls(record["sweep"], family, record["count"])


FAMILIES = (MODIFIED_RQ, AFFINE, RQ8)


def with_bins(num_bins: int) -> Family:
    """The RQ spline of K bins."""
    return replace(RQ8, name=f"rq{num_bins}", num_bins=num_bins)


def short(count: int) -> str:
    """A number of elements in scientific notation with one digit.

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
    """Seconds for a call. The number of threads is set before the clock starts."""
    torch.set_num_threads(on_threads.threads)
    return timing.sample_by(time.perf_counter, on_threads.function, calls)


def copies(sizes: Iterable[int]) -> dict[int, timing.Function]:
    """A copy for each number of bytes to read and write, all with the same two buffers.

    A copy of more than :data:`MAX_COPY_BYTES` goes over the buffers several times. They are far
    larger than the caches, so each pass reads from memory.
    """
    times = {size: max(1, math.ceil(size / MAX_COPY_BYTES)) for size in sizes}
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
    """Tensors for every direction, and how many times they hold their first :data:`PERIOD`."""
    case = point.case("train")
    repeats = max(1, point.count // PERIOD)
    first = (case.shape[0] // repeats, *case.shape[1:])
    inputs = calls.make_inputs(replace(case, smaller_shape=first))

    def repeated(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(each.repeat(repeats, *[1] * (each.dim() - 1)) for each in tensors)

    return Inputs(repeated(inputs.leaves), repeated(inputs.cotangents)), repeats


def checked(case: Case, inputs: Inputs, repeats: int) -> Calls:
    """The case's calls, after a check of their results.

    The results of the first period are compared with eager PyTorch and the competitors. Those of
    all other periods must have the same bits as the first.

    Raises:
        AssertionError: a result is wrong; the message says where.
    """
    length = case.shape[0] // repeats
    period = replace(
        case,
        smaller_shape=(length, *case.shape[1:]),
        competitors=tuple(dict.fromkeys(("eager", *case.competitors))),
    )

    def first(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(tensor[:length] for tensor in tensors)

    small = calls.bind(period, Inputs(first(inputs.leaves), first(inputs.cotangents)))
    # With more bins each is narrower, so the rounding error of x is a larger part of its width.
    calls.check_agreement(small, rounding=1e-4 * max(0.0, case.family.num_bins / 8 - 1))
    expected: Any = small.ours()
    whole = calls.bind(case, inputs)
    results: Any = OnThreads(max(usable_threads()), whole.ours)()
    for index, (result, first_period) in enumerate(zip(results, expected, strict=True)):
        for start in range(0, len(result), length):
            if not torch.equal(result[start : start + length], first_period):
                raise AssertionError(
                    f"{case.name}: result {index} from sample {start} on differs from the "
                    "first samples', which have the same inputs."
                )
    return whole


def measure_point(
    point: Point, text: str, policy: str, *, seconds: float, min_rounds: int
) -> tuple[list[ScalingRow], dict[str, str]]:
    """Measure the rows of a point whose name contains ``text``, in this process.

    Returns:
        The rows; and what was left out, with the reason.
    """
    selected = [
        (point.case(direction), threads)
        for direction in DIRECTIONS
        for threads in usable_threads()
        if text in row_name(point.case(direction), threads)
    ]
    inputs, repeats = inputs_of(point)
    left_out: dict[str, str] = {}
    prepared: dict[str, Calls] = {}
    for case, _ in selected:
        if case.name not in prepared:
            competitors = case.competitors if point.has_competitors else ()
            prepared[case.name] = checked(replace(case, competitors=competitors), inputs, repeats)
            left_out |= prepared[case.name].left_out
    floors = copies({case.bytes for case, _ in selected})
    functions: dict[str, OnThreads] = {}
    for case, threads in selected:
        case_calls = prepared[case.name]
        functions[row_name(case, threads)] = OnThreads(threads, case_calls.ours)
        functions[_copy_name(case, threads)] = OnThreads(threads, floors[case.bytes])
        if threads == max(usable_threads()):
            for who, function in case_calls.competitors.items():
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
    """The case's name, its number of elements and that of threads."""
    return f"{case.name}.n{short(case.elements)}.t{threads}"


def usable_threads() -> tuple[int, ...]:
    """The entries of :data:`THREADS` for which this process has enough cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return tuple(threads for threads in THREADS if threads <= cores)
