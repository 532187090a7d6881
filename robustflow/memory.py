"""Keep freed memory in the process, so that large tensors reuse pages that are mapped already.

:func:`retain_memory` does so for all tensors. Fused layers do so by themselves, for tensors that
wait for their backward pass; :func:`empty_cache` frees those.
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass

from robustflow import _native

# <malloc.h>. Not M_MMAP_THRESHOLD, which glibc before 2.35 caps at 32 MiB and an int at 2 GiB.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4

# A symbol that identifies an allocator which replaces the C library's.
_REPLACEMENTS = {"tcmalloc": "tc_version", "jemalloc": "mallctl", "mimalloc": "mi_version"}


@dataclass(frozen=True)
class Retention:
    """What :func:`retain_memory` did; true where it applied.

    Attributes:
        applied: whether freed memory now stays in the process.
        reason: a sentence that says why, or why not.
    """

    applied: bool
    reason: str

    def __bool__(self) -> bool:
        return self.applied


def retain_memory() -> Retention:
    """Let this process keep the memory of freed CPU tensors and use it again.

    glibc asks the system for the memory of each large tensor and gives it back when the tensor
    is freed, so every new one pays for its pages again, which costs more than the kernel that
    fills them: filling a new 39 MB tensor took 20 ms, and 1.4 ms after this call (2 cores).
    Call it once, before large tensors are made.

    The price: the process does not shrink again, and its peak can be higher where sizes vary. It
    concerns tensors that the main thread allocates; other threads' large tensors are mapped
    afresh as before. Nothing else changes. An allocator such as tcmalloc or jemalloc keeps its
    memory by itself.

    Returns:
        A :class:`Retention`: whether it applied (glibc only), and a sentence that says why.

    Source:
        mallopt(3): ``M_MMAP_MAX`` = 0, ``M_TRIM_THRESHOLD`` = -1.

    Example:
        >>> import robustflow
        >>> retention = robustflow.retain_memory()
        >>> isinstance(retention.reason, str)
        True
    """
    name = allocator()
    if name != "glibc":
        return Retention(False, f"The allocator is {name}, and this is a setting of glibc's.")
    mallopt = ctypes.CDLL(None).mallopt
    if not (mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1)):
        return Retention(False, "glibc's mallopt refused the settings.")
    return Retention(True, "glibc keeps the memory of freed tensors from now on.")


def empty_cache() -> int:
    """Free the memory that fused layers keep for their next training step.

    A fused layer on the CPU stores what its backward pass needs. When that is freed, up to 256 MiB
    of it stay in the process for the next step, because new pages would cost up to a quarter of
    that step. Call this where a program goes on without training and needs the memory.

    Returns:
        How many bytes were freed; 0 where none had been kept.

    Example:
        >>> import robustflow
        >>> freed = robustflow.empty_cache()
        >>> robustflow.empty_cache()
        0
    """
    autograd = _native.autograd()
    return 0 if autograd is None else int(autograd.empty_pool())


def allocator() -> str:
    """Who serves malloc here: glibc, tcmalloc, jemalloc, mimalloc, or else the system's name."""
    if platform.system() == "Windows":
        return "Windows"
    process = ctypes.CDLL(None)
    for name, symbol in _REPLACEMENTS.items():
        if hasattr(process, symbol):
            return name
    return platform.libc_ver()[0] or platform.system()
