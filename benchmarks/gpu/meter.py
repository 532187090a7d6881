"""Measure the time and memory of calls on a GPU; on a CPU, only to rehearse the suite."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.gpu.calls import Call
from robustflow.benchmarks import timing

# Calls captured in one graph, so that launching the graph is a small part of the measured time.
GRAPH_CALLS = 16
_WARMUP_CALLS = 3


class GraphRefused(RuntimeError):
    """The call cannot be captured here; the message says why."""


class Meter(Protocol):
    """Times calls, in seconds. After every method the device is idle."""

    device: torch.device

    def cold(self, call: Call, calls: int) -> float:
        """Seconds for a call whose inputs are not in the cache, as is usual for large tensors."""

    def latency(self, call: Call, calls: int) -> float:
        """Seconds for a call among consecutive calls, with the time to launch it."""

    def graph(self, call: Call) -> Call:
        """A call that replays ``GRAPH_CALLS`` captured calls.

        Raises:
            GraphRefused: they cannot be captured.
        """

    def peak_bytes(self, call: Call) -> int | None:
        """The most memory that one call holds, with its results and without its inputs."""

    def release(self) -> None:
        """Free memory that the allocator caches."""


class CudaMeter:
    """Measures on the current CUDA device.

    Before each cold sample it reads a buffer of sixteen times the L2 cache. (Writing would leave
    modified cache lines, which the GPU would have to write to memory while the clock runs.) That
    also keeps the GPU busy while the CPU enqueues the call, so that the events enclose only the
    call's work.
    """

    def __init__(self, device: torch.device, cache_bytes: int) -> None:
        self.device = device
        self._buffer = torch.ones(max(1, 16 * cache_bytes // 4), device=device)

    def cold(self, call: Call, calls: int) -> float:
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        with call.selected():
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

        with call.selected():
            return timing.sample_by(finished, call.function, calls)

    def graph(self, call: Call) -> Call:
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        try:
            with call.selected():
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
    """Measures on the CPU: every method that times a call uses the clock."""

    device = torch.device("cpu")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def cold(self, call: Call, calls: int) -> float:
        return self.latency(call, calls)

    def latency(self, call: Call, calls: int) -> float:
        with call.selected():
            return timing.sample_by(self._clock, call.function, calls)

    def graph(self, call: Call) -> Call:
        raise GraphRefused("CUDA graphs need a GPU.")

    def peak_bytes(self, call: Call) -> int | None:
        return None

    def release(self) -> None:
        pass
