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

# A contestant that does not fit the memory is tried on half the elements, down to this many.
_FEWEST_ELEMENTS = 1 << 20
_THEIRS = "theirs"


@dataclass
class Budget:
    """Seconds to spend, from now on."""

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
    """Rows, and by name what there is no row or ratio of, with the reason.

    Attributes:
        wrong: results of robustflow that the float64 reference refutes; their speed is not taken.
        failed: calls of robustflow that raised.
        left_out: contestants and graphs that cannot be had here.
        not_measured: what the budget or the memory had no room for.
    """

    rows: list[GpuRow] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)


@dataclass
class Suite:
    """The measuring of cases on one device.

    Attributes:
        device_name: for the rows.
        backends: of robustflow, in alternation.
        copy_bytes_per_s: what fractions of the floor are of.
        seconds: of timing, a case.
        seed: of the inputs.
    """

    device_name: str
    backends: Sequence[str]
    meter: Meter
    copy_bytes_per_s: float
    seconds: float
    seed: int
    results: Results = field(default_factory=Results)

    def run(self, tasks: Sequence[Task], budget: Budget, done: Callable[[Task], None]) -> None:
        """Do the tasks for which there is time; ``done`` is called after each."""
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
        """Forget a task: the next one finds the memory free."""
        gc.collect()
        if task.compiles:
            # Else Dynamo gives up on code that it has compiled eight times, for eight cases.
            torch.compiler.reset()
        self.meter.release()

    def _measure(self, case: Case) -> None:
        """Rows of a case, one a backend."""
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
        small = case.place.is_small
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
        """Seconds a call inside a graph, by backend."""
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
        """Ratios of one contestant, in the rows of a case."""
        if not any(row.name == task.case.name for row in self.results.rows):
            self.results.left_out[task.name] = "There is no row of ours to compare with."
            return
        case = task.case
        while not self._fits(case, task):
            # Only now is the exception, and with it what the contestant allocated, gone.
            gc.collect()
            self.meter.release()
            case = task.case.shrunk(case.elements // 2, "memory")
            if case.elements < _FEWEST_ELEMENTS:
                self.results.left_out[task.name] = "It does not fit the device's memory."
                return

    def _fits(self, case: Case, task: Task) -> bool:
        """Compare on one shape; False where the memory does not suffice."""
        who = task.against
        try:
            tensors = make_tensors(case, self.meter.device, self.seed)
            theirs = make_call(who, tensors)
            check(task.name, tensors, theirs)
            mine = {
                row.backend: make_call(row.backend, tensors)
                for row in self.results.rows
                if row.name == task.case.name
            }
            times = self._alternate(case, {_THEIRS: theirs, **mine})
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
        small = case.place.is_small
        return timing.alternate(
            calls,
            seconds=self.seconds,
            max_rounds=200,
            min_sample=2e-3 if small else 0.0,
            sampler=self.meter.latency if small else self.meter.cold,
        )


def _sentence(error: Exception) -> str:
    """An exception in one line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"
