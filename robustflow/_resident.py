"""Resident memory of this process, as Linux counts it: all pages that were touched."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def reset_peak() -> int:
    """Reset the high-water mark to the present size, in bytes, and return that.

    Raises:
        OSError: not on Linux, or it cannot be reset here.
    """
    _CLEAR.write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The high-water mark in bytes since :func:`reset_peak`.

    Raises:
        OSError: not on Linux.
    """
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise OSError(f"{_STATUS} has no {key}")
