"""Time functions in alternation (A B A B …); report medians and their spread.

Times from two separate runs also compare two states of the machine. Here every round calls each
function once (a fast one several times), so other load and changes of the clock affect all of them
alike. The result is the median over the rounds, with its interquartile range.
"""

from __future__ import annotations

import functools
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Function = Callable[[], object]
Timed = TypeVar("Timed", bound=Function)


@dataclass(frozen=True)
class Timing:
    """Seconds for a call of one function: one sample for each round."""

    samples: tuple[float, ...]
    calls_per_sample: int = 1

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        return spread(self.samples)


def spread(samples: Sequence[float]) -> float:
    """The interquartile range over the median: 0.1 means half the samples lie within 10 %.

    Example:
        >>> spread([1.0, 1.0, 1.0, 1.0])
        0.0
    """
    if len(samples) < 2:
        return 0.0
    first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
    return (third - first) / statistics.median(samples)


def ratio_spread(first: Timing, second: Timing) -> float:
    """The spread of the ratio of two timings of one run, computed round by round.

    Changes of the machine that affected both cancel.

    Example:
        >>> ratio_spread(Timing((2.0, 4.0, 6.0)), Timing((1.0, 2.0, 3.0)))
        0.0
    """
    return spread([a / b for a, b in zip(first.samples, second.samples, strict=True)])


def row_figures(
    ours: Timing, copy: Timing, competitors: Mapping[str, Timing], elements: int
) -> dict[str, Any]:
    """The fields of a ``rows.Row`` that follow from times, also those of a copy of as many bytes.

    Example:
        >>> figures = row_figures(Timing((2.0,)), Timing((1.0,)), {"eager": Timing((8.0,))}, 100)
        >>> figures["elements_per_s"], figures["floor_fraction"], figures["ratio"]
        (50.0, 0.5, {'eager': 4.0})
    """
    return {
        "median_s": ours.median,
        "spread": ours.spread,
        "elements_per_s": elements / ours.median,
        "floor_fraction": copy.median / ours.median,
        "ratio": {name: theirs.median / ours.median for name, theirs in competitors.items()},
        "ratio_spread": {name: ratio_spread(theirs, ours) for name, theirs in competitors.items()},
    }


def alternate(
    functions: Mapping[str, Timed],
    *,
    seconds: float = 5.0,
    min_rounds: int = 5,
    max_rounds: int = 400,
    warmup: int = 3,
    min_sample: float = 2e-3,
    clock: Callable[[], float] = time.perf_counter,
    sampler: Callable[[Timed, int], float] | None = None,
) -> dict[str, Timing]:
    """Time the functions in alternation.

    Args:
        functions: name to function; the order is the order within a round.
        seconds: how long to go on, without the warm-up.
        min_rounds, max_rounds: bounds on the number of rounds, whatever ``seconds`` is.
        warmup: rounds before the clock starts, in which functions may compile.
        min_sample: a function faster than this many seconds is called in a loop, and a sample is
            the loop's time over its length.
        clock: the clock, in seconds.
        sampler: a function that times a number of calls of a function and returns seconds for each
            call, in place of ``clock``. A GPU needs one: its work continues after the call returns.

    Returns:
        A :class:`Timing` for each function.

    Raises:
        ValueError: no functions, or fewer than one round.
        RuntimeError: torch.compile compiled something inside the timed rounds.

    Example:
        >>> times = alternate({"sleep": lambda: time.sleep(1e-3)}, seconds=0.02)
        >>> times["sleep"].median >= 1e-3
        True
    """
    if not functions:
        raise ValueError("Nothing to time: pass at least one function.")
    if min_rounds < 1 or max_rounds < min_rounds:
        raise ValueError(
            f"min_rounds must be from 1 to max_rounds, got {min_rounds} and {max_rounds}."
        )
    for _ in range(max(1, warmup)):
        for function in functions.values():
            function()
    sample = sampler or functools.partial(sample_by, clock)
    calls = {
        name: _calls_for(functools.partial(sample, function), min_sample)
        for name, function in functions.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in functions}
    compiled_before = _compiled_graphs()
    with _no_garbage_collection():
        begin = clock()
        while len(samples[next(iter(functions))]) < max_rounds:
            for name, function in functions.items():
                samples[name].append(sample(function, calls[name]))
            rounds = len(samples[name])
            if rounds >= min_rounds and clock() - begin >= seconds:
                break
    if _compiled_graphs() != compiled_before:
        raise RuntimeError(
            "torch.compile compiled inside the timed rounds, so the times are worthless: "
            "raise warmup, or give the function inputs of one shape."
        )
    return {name: Timing(tuple(samples[name]), calls[name]) for name in functions}


def copy_of(num_bytes: int) -> Function:
    """A copy that moves ``num_bytes``: half of them read, half of them written.

    It is the floor of an operation that reads and writes ``num_bytes`` in all. Both tensors are
    written here, so that all their pages exist before the clock starts.
    """
    source = torch.ones(max(1, num_bytes // 8), dtype=torch.float32)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def sample_by(clock: Callable[[], float], function: Function, calls: int) -> float:
    """Seconds for a call, timed in a loop of ``calls`` calls."""
    begin = clock()
    for _ in range(calls):
        function()
    return (clock() - begin) / calls


def _calls_for(sample: Callable[[int], float], min_sample: float) -> int:
    calls = 1
    while calls < 1 << 20:
        if sample(calls) * calls >= min_sample:
            break
        calls *= 2
    return calls


def _compiled_graphs() -> int:
    """Graphs that torch.compile has compiled so far in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
