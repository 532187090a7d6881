"""The stopwatch: on a GPU by events, in rows of calls and through CUDA graphs; on a CPU a clock.

The second is for rehearsals where there is no GPU; nothing it says is of a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.gpu.calls import Call
from robustflow.benchmarks import timing

# Calls captured in one graph: launching the graph itself is then a small part of what is timed.
GRAPH_CALLS = 16
_WARMUP_CALLS = 3


class GraphRefused(RuntimeError):
    """The call cannot be captured here; the message says why."""


class Meter(Protocol):
    """Times calls, in seconds; every method leaves the device idle."""

    device: torch.device

    def cold(self, call: Call, calls: int) -> float:
        """A call that finds nothing of its inputs in the cache: what large tensors meet."""

    def latency(self, call: Call, calls: int) -> float:
        """A call in a row of calls, the work of launching it included."""

    def graph(self, call: Call) -> Call:
        """A call that replays ``GRAPH_CALLS`` captured ones; :class:`GraphRefused` otherwise."""

    def peak_bytes(self, call: Call) -> int | None:
        """The most memory that one call holds beyond its inputs, what it returns included."""

    def release(self) -> None:
        """Give back the memory that nothing holds."""


class CudaMeter:
    """On the current CUDA device.

    Before each cold sample a buffer of sixteen times the L2 cache is read (read, not written: lines
    that were written would have to go to memory while the clock runs). That also keeps the GPU busy
    while the CPU enqueues the call, so that events bracket the call's own work alone.
    """

    def __init__(self, device: torch.device, cache_bytes: int) -> None:
        self.device = device
        self._buffer = torch.ones(max(1, 16 * cache_bytes // 4), device=device)

    def cold(self, call: Call, calls: int) -> float:
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        with call.chosen():
            self._buffer.amax()
            begin.record()
            for _ in range(calls):
                call.function()
            end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    def latency(self, call: Call, calls: int) -> float:
        def finished() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        with call.chosen():
            return timing.sample_by(finished, call.function, calls)

    def graph(self, call: Call) -> Call:
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        try:
            with call.chosen():
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(_WARMUP_CALLS):
                        call.function()
                torch.cuda.current_stream().wait_stream(side)
                with torch.cuda.graph(graph):
                    for _ in range(GRAPH_CALLS):
                        call.function()
        except RuntimeError as error:
            raise GraphRefused(f"A CUDA graph of the call cannot be captured: {error}") from error

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return ()

        return Call(replay)

    def peak_bytes(self, call: Call) -> int | None:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return peak

    def release(self) -> None:
        torch.cuda.empty_cache()


class HostMeter:
    """On the CPU: the clock around the call, whatever is asked."""

    device = torch.device("cpu")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def cold(self, call: Call, calls: int) -> float:
        return self.latency(call, calls)

    def latency(self, call: Call, calls: int) -> float:
        with call.chosen():
            return timing.sample_by(self._clock, call.function, calls)

    def graph(self, call: Call) -> Call:
        raise GraphRefused("CUDA graphs need a GPU.")

    def peak_bytes(self, call: Call) -> int | None:
        return None

    def release(self) -> None:
        pass
