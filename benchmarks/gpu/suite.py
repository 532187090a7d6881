"""Measure the planned cases within a budget of time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from benchmarks.gpu.calls import Call, check, make_call, make_tensors
from benchmarks.gpu.meter import GRAPH_CALLS, GraphRefused, Meter
from benchmarks.gpu.plan import Task
from benchmarks.gpu.row import GpuRow
from robustflow.benchmarks import peers, timing
from robustflow.benchmarks.cases import Case, dtype_name

# A competitor that does not fit in memory is tried with half the elements, down to this number.
_MIN_ELEMENTS = 1 << 20
_THEIRS = "theirs"


@dataclass
class Budget:
    """A number of seconds to spend, counted from the object's creation."""

    seconds: float
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._begin = self.clock()

    @property
    def spent(self) -> float:
        return self.clock() - self._begin

    @property
    def left(self) -> float:
        return self.seconds - self.spent


@dataclass
class Results:
    """The rows; and what has no row or no ratio, by name, with the reason.

    Attributes:
        rows: one for each case and backend.
        wrong: robustflow's result differs from the float64 reference; it is not timed.
        failed: a call of robustflow raised an error.
        left_out: competitors and graphs that are not available here.
        not_measured: there was not enough time or memory.
    """

    rows: list[GpuRow] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)


@dataclass
class Suite:
    """Measures cases on one device.

    Attributes:
        device_name: for the rows.
        backends: of robustflow, timed in alternation.
        meter: times the calls.
        copy_bytes_per_s: the speed of a copy, which gives the floor.
        seconds: of timing for each case.
        seed: of the inputs.
        results: what has been measured so far.
    """

    device_name: str
    backends: Sequence[str]
    meter: Meter
    copy_bytes_per_s: float
    seconds: float
    seed: int
    results: Results = field(default_factory=Results)

    def run(self, tasks: Sequence[Task], budget: Budget, done: Callable[[Task], None]) -> None:
        """Measure the tasks for which there is time; ``done`` is called after each."""
        for i, task in enumerate(tasks):
            if budget.left < task.seconds:
                self.results.not_measured[task.name] = (
                    f"no time: it may take {task.seconds:g} s, and of {budget.seconds:g} s "
                    f"{max(0.0, budget.left):.0f} were left."
                )
                continue
            if task.against:
                self._compare(task)
            else:
                self._measure(task.case)
            try:
                self._clear(task)
            except RuntimeError as error:
                # After an illegal access nothing on the device works any more in this process.
                self.results.failed[f"the device after {task.name}"] = _sentence(error)
                for other in tasks[i + 1 :]:
                    self.results.not_measured[other.name] = "the device had failed."
                return
            done(task)

    def _clear(self, task: Task) -> None:
        """Free the memory of a task for the next one."""
        gc.collect()
        if task.compiles:
            # Dynamo stops compiling a function after eight different input shapes.
            torch.compiler.reset()
        self.meter.release()

    def _measure(self, case: Case) -> None:
        """Add the rows of a case, one for each backend."""
        try:
            tensors = make_tensors(case, self.meter.device, self.seed)
            calls = {}
            for backend in self.backends:
                name = f"{case.name} by {backend}"
                try:
                    call = make_call(backend, tensors)
                    check(name, tensors, call)
                    calls[backend] = call
                except AssertionError as error:
                    self.results.wrong[name] = str(error)
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    self.results.failed[name] = _sentence(error)
            if calls:
                self.results.rows += self._rows(case, calls)
        except torch.OutOfMemoryError:
            self.results.not_measured[case.name] = "it does not fit the device's memory."
        except Exception as error:
            self.results.failed[case.name] = _sentence(error)

    def _rows(self, case: Case, calls: dict[str, Call]) -> list[GpuRow]:
        small = case.workload.is_small
        times = self._alternate(case, calls)
        graphs = self._graph_times(case, calls) if small else {}
        rows = []
        for backend, call in calls.items():
            median = times[backend].median
            rows.append(
                GpuRow(
                    name=case.name,
                    operation=case.family.operation,
                    direction=case.direction,
                    shape=case.shape,
                    dtype=dtype_name(case.dtype),
                    allocator="caching" if self.meter.device.type == "cuda" else "default",
                    median_s=median,
                    spread=times[backend].spread,
                    elements_per_s=case.elements / median,
                    bytes=case.bytes,
                    floor_fraction=case.bytes / self.copy_bytes_per_s / median,
                    peak_bytes=None if small else self.meter.peak_bytes(call),
                    device=self.device_name,
                    backend=backend,
                    layout=case.family.layout,
                    parameter_dtype=dtype_name(case.parameter_dtype),
                    scale=case.scale,
                    timing="latency" if small else "cold",
                    graph_s=graphs.get(backend),
                )
            )
        return rows

    def _graph_times(self, case: Case, calls: dict[str, Call]) -> dict[str, float]:
        """Seconds for a call inside a graph, by backend."""
        replays = {}
        for backend, call in calls.items():
            try:
                replays[backend] = self.meter.graph(call)
            except GraphRefused as error:
                self.results.left_out[f"{case.name} by {backend} in a graph"] = str(error)
        if not replays:
            return {}
        times = self._alternate(case, replays)
        return {backend: times[backend].median / GRAPH_CALLS for backend in replays}

    def _compare(self, task: Task) -> None:
        """Add the ratios of one competitor to the rows of a case."""
        if not any(row.name == task.case.name for row in self.results.rows):
            self.results.left_out[task.name] = "There is no row of ours to compare with."
            return
        case = task.case
        while not self._fits(case, task):
            # The exception kept the competitor's tensors alive; now they can be freed.
            gc.collect()
            self.meter.release()
            case = task.case.shrunk(case.elements // 2, "memory")
            if case.elements < _MIN_ELEMENTS:
                self.results.left_out[task.name] = "It does not fit the device's memory."
                return

    def _fits(self, case: Case, task: Task) -> bool:
        """Compare on the shape of ``case``; returns False if there is not enough memory."""
        who = task.against
        try:
            tensors = make_tensors(case, self.meter.device, self.seed)
            theirs = make_call(who, tensors)
            check(task.name, tensors, theirs)
            ours = {
                row.backend: make_call(row.backend, tensors)
                for row in self.results.rows
                if row.name == task.case.name
            }
            times = self._alternate(case, {_THEIRS: theirs, **ours})
        except torch.OutOfMemoryError:
            return False
        except (AssertionError, peers.PeerMissing) as error:
            self.results.left_out[task.name] = str(error)
        except Exception as error:
            self.results.left_out[task.name] = _sentence(error)
        else:
            for i, row in enumerate(self.results.rows):
                if row.name == task.case.name:
                    ratio = times[_THEIRS].median / times[row.backend].median
                    self.results.rows[i] = replace(
                        row,
                        ratio={**row.ratio, who: ratio},
                        ratio_elements={**row.ratio_elements, who: case.elements},
                    )
        return True

    def _alternate(self, case: Case, calls: dict[str, Call]) -> dict[str, timing.Timing]:
        small = case.workload.is_small
        return timing.alternate(
            calls,
            seconds=self.seconds,
            max_rounds=200,
            min_sample=2e-3 if small else 0.0,
            sampler=self.meter.latency if small else self.meter.cold,
        )


def _sentence(error: Exception) -> str:
    """The type and the first line of an exception."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"
