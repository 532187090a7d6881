"""Describe the machine of a measurement."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

import robustflow
from robustflow.benchmarks import peers


def describe() -> dict[str, Any]:
    """Processor, instruction sets, libraries and threads, but no name of the machine or the user.

    ``robustflow`` is :func:`robustflow.build_info`, with the instruction set in use. ``backends``
    is :func:`robustflow.backends`.
    """
    return {
        "cpu": _cpu_model(),
        "cpu_flags": [flag for flag in ("avx2", "fma", "avx512f") if flag in _cpu_flags()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()),
        "preloaded": os.environ.get("LD_PRELOAD", ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "peers": {peer: peers.version(peer) for peer in peers.VERSIONS},
        "robustflow": robustflow.build_info(),
        "backends": robustflow.backends(),
    }


def headline(description: dict[str, Any]) -> str:
    """The machine in one line. A second line says why the fused kernels are not in use, if so."""
    build = description["robustflow"]
    lines = [
        f"{description['cpu']}, {description['cores']} cores, {description['threads']} threads, "
        f"torch {description['torch']}, kernels: {build.get('isa', 'unknown')}"
    ]
    if description["backends"]["cpu"] is not True:
        lines.append(f"The fused kernels are not in use. {description['backends']['cpu']}")
    return "\n".join(lines)


def has_avx512() -> bool:
    return "avx512f" in _cpu_flags()


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    return _cpuinfo("flags").split()


def _cpuinfo(key: str) -> str:
    """The first value of ``key`` in Linux's description of the processors, or an empty string."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    values = (line.partition(":")[2] for line in lines if line.partition(":")[0].strip() == key)
    return next(values, "").strip()
