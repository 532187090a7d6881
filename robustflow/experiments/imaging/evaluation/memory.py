"""The most memory that a call needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from robustflow import _resident

Result = TypeVar("Result")


def peak_bytes(function: Callable[[], Result], device: torch.device) -> tuple[Result, int | None]:
    """A call's result, and the most bytes that were in use beyond those before it.

    On a GPU, of PyTorch's allocator. On the CPU, of the process's resident pages, which Linux
    counts: memory that an earlier call has freed and the C library has kept counts as before, so
    of several calls the largest says most. None on other systems.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    try:
        before = _resident.reset_peak()
    except OSError:
        return function(), None
    result = function()
    return result, max(0, _resident.peak() - before)
