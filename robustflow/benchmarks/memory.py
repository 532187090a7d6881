"""Peak memory of a call, from Linux's count of resident pages.

A profiler counts only what torch's allocator provides. The peak of the resident set (VmHWM) counts
every page that was touched, also those of a kernel's workspace. For it to be exact, the process
must return memory as soon as it is freed (the ``returning`` policy of ``allocator``), and must
already have loaded its libraries and started its threads: run a tiny case first. The remaining
error is about a megabyte, so measure tensors of tens of megabytes.
"""

from __future__ import annotations

from collections.abc import Callable

from robustflow import _resident


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes that one call of ``function`` adds to the memory of this process.

    The call's result is counted.

    Raises:
        RuntimeError: not on Linux, or the high-water mark cannot be reset here.
    """
    try:
        before = _resident.reset_peak()
    except OSError as error:
        raise RuntimeError(
            f"Peak memory is read from Linux's /proc, which failed here ({error}): "
            "run this benchmark on Linux, or leave peak memory out."
        ) from error
    result = function()
    after = _resident.peak()
    del result
    return max(0, after - before)
