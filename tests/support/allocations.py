"""Peak memory by torch's own count of allocations."""

from __future__ import annotations

from collections.abc import Callable

import torch


def peak(step: Callable[[], object], device: str = "cpu") -> int:
    """Bytes allocated and not yet freed at their highest, in one call."""
    if device == "cuda":
        step()  # what the first call keeps is none of a call's
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profiler:
        result = step()
    now = top = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            top = max(top, now)
    del result
    return top
