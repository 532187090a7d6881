"""Run a benchmark in a process of its own, under a chosen allocator.

glibc returns the memory of a large tensor to the system when it is freed, and maps new pages for
the next one. Touching new pages can cost more than the operation that fills them. So each case is
measured twice: under the ``default`` policy, which is what users have, and under ``keeping``, where
glibc keeps its memory, which shows the time of the kernels alone. Peak memory is measured under
``returning``, where every large block is returned at once. Environment variables of glibc set the
last two.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_HUGE = str(1 << 40)

POLICIES: dict[str, dict[str, str]] = {
    "default": {},
    # Either of the first two would do, but glibc before 2.35 limits the threshold to 32 MB.
    "keeping": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_MMAP_THRESHOLD_": _HUGE,
        "MALLOC_TRIM_THRESHOLD_": _HUGE,
    },
    "returning": {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
}


def environment(policy: str) -> dict[str, str]:
    """The environment variables of a process under ``policy``.

    Raises:
        ValueError: an unknown policy, or one that needs glibc where there is none.

    Example:
        >>> "MALLOC_TRIM_THRESHOLD_" in environment("default")
        False
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}.")
    if POLICIES[policy] and platform.libc_ver()[0] != "glibc":
        raise ValueError(
            f"The allocator policy {policy!r} is set through glibc's environment variables, and "
            "this Python does not run on glibc: use 'default', with jemalloc or tcmalloc "
            "preloaded if you want one that keeps its memory."
        )
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    inherited.pop("GLIBC_TUNABLES", None)
    return {**inherited, **POLICIES[policy]}


def run(policy: str, module: str, arguments: Sequence[str]) -> Any:
    """Run ``python -m module *arguments FILE`` under ``policy``; return the JSON that it writes.

    The process has the import path of this one.

    Raises:
        RuntimeError: the process failed; the message ends with what it wrote to stderr.
    """
    imported_from = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        process = subprocess.run(
            [sys.executable, "-m", module, *arguments, str(result)],
            env={**environment(policy), "PYTHONPATH": imported_from},
            cwd=folder,  # an empty one, because Python imports from there first
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if process.returncode != 0:
            raise RuntimeError(
                f"{module} {' '.join(arguments)} failed under the {policy} allocator:\n"
                f"{process.stderr[-3000:]}"
            )
        return json.loads(result.read_text())


def prime(num_bytes: int) -> None:
    """Touch ``num_bytes`` of heap, so that the policy ``keeping`` has no new pages from then on.

    glibc's aligned allocation often cannot reuse the block that was just freed and extends the heap
    instead, so without this the first dozens of large tensors would have new pages.
    """
    torch.empty(max(1, num_bytes), dtype=torch.uint8).fill_(0)


def faults_of_a_fill(num_bytes: int = 1 << 26, repeats: int = 16) -> float:
    """Page faults, as a fraction of the pages, when a new tensor of ``num_bytes`` is filled.

    About 1 under an allocator that returns its memory (less with large pages), about 0 under one
    that keeps it. This shows whether a policy has its effect.
    """
    prime(8 * num_bytes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        torch.empty(num_bytes, dtype=torch.uint8).fill_(1)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults / (repeats * num_bytes / resource.getpagesize())
