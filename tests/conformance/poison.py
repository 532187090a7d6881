"""Fills memory before a kernel gets it, so that an element that it does not write is noticed."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_M_PERTURB = -6  # glibc's malloc.h
# glibc fills new blocks with the complement of this byte and freed ones with the byte itself. Both
# are then of ordinary size in every float type (float32: -1.4979 and 3.0039), so that a sum that
# starts from garbage is as visible as an element that is never written. NaN would need the byte 0,
# which glibc takes for "off".
_FREED = 0x40
_GPU_BLOCKS = (1 << 24, *([1 << 17] * 16))  # float32 numbers; below 1 MiB is torch's small pool


def _mallopt_perturb(byte: int) -> bool:
    """Ask glibc to fill blocks; False where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_PERTURB, byte) == 1


@contextmanager
def poisoned(device: str = "cpu") -> Iterator[None]:
    """Within it, new memory holds garbage: NaN from torch.empty, about -1.5 from malloc.

    Two ways, because an operator's C++ side may allocate below ``torch.empty``. On a GPU, blocks of
    NaN are first freed to torch's caching allocator: a large one and small ones, which it keeps in
    separate pools.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic  # mypy does not see its property
    fills = deterministic.fill_uninitialized_memory
    deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    if device == "cuda":
        blocks = [torch.full((size,), float("nan"), device=device) for size in _GPU_BLOCKS]
        del blocks
    _mallopt_perturb(_FREED)
    try:
        yield
    finally:
        _mallopt_perturb(0)
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        deterministic.fill_uninitialized_memory = fills
