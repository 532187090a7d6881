"""Peak memory of a call, from the kernel's own count of resident pages.

A profiler sees only what goes through torch's allocator; the high-water mark of the resident set
(VmHWM) sees every page that was touched, a kernel's own work space included. For it to be exact
the process must hand memory back as soon as it is freed (the ``returning`` policy of
``allocator``) and must have loaded its libraries and started its threads: run a tiny
case first. What remains uncertain is about a megabyte, so measure tensors of tens of megabytes.
"""

from __future__ import annotations

from collections.abc import Callable

from robustflow import _resident


def peak_bytes(function: Callable[[], object]) -> int:
    """The most bytes that one call of ``function`` adds to what the process holds already.

    What the call returns is alive at its end and is counted.

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
