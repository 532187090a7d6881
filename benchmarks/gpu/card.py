"""The GPU: its properties, its state, and how fast it copies."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu.calls import Call
from benchmarks.gpu.meter import Meter
from robustflow.benchmarks import machine, timing

REHEARSAL = "CPU rehearsal: no figure here is of a GPU"  # in place of a GPU's name

_MIB = 1 << 20
# Sizes of copies, in bytes read and written: up to sizes far larger than any cache.
COPIES = tuple(size * _MIB for size in (128, 256, 512, 1024, 2048, 4096))
REHEARSED_COPIES = (_MIB, 2 * _MIB)
# Fields to query from nvidia-smi.
_STATE = (
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
)
_UNKNOWN = "unknown"


def describe(device: torch.device) -> dict[str, Any]:
    """:func:`machine.describe`, and ``card``: the GPU with its driver and versions."""
    return {**machine.describe(), "card": _describe_card(device)}


def _describe_card(device: torch.device) -> dict[str, Any]:
    versions = {"cuda": torch.version.cuda, "triton": _version("triton")}
    if device.type != "cuda":
        return {"name": REHEARSAL, **versions}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": cache_bytes(device),
        "driver": _ask_driver(device, ("driver_version",)).get("driver_version", _UNKNOWN),
        **versions,
    }


def state(device: torch.device) -> dict[str, str]:
    """Clocks, power and temperature now, as nvidia-smi prints them; empty without nvidia-smi."""
    return _ask_driver(device, _STATE) if device.type == "cuda" else {}


def cache_bytes(device: torch.device) -> int:
    """The size of the L2 cache."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def copy_speeds(meter: Meter, sizes: Sequence[int], seconds: float) -> list[dict[str, float]]:
    """How fast the device copies random numbers.

    Returns:
        ``{bytes, median_s, spread, bytes_per_s}`` for each size. ``bytes`` counts those read and
        those written. Sizes that do not fit in the memory are left out.
    """
    measured = []
    for size in sizes:
        try:
            source = torch.randn(size // 8, device=meter.device)
            target = torch.zeros_like(source)
        except torch.OutOfMemoryError:
            break
        times = timing.alternate(
            {"copy": Call(lambda s=source, t=target: (t.copy_(s),))},  # type: ignore[misc]
            seconds=seconds,
            min_sample=0.0,
            max_rounds=100,
            sampler=meter.cold,
        )["copy"]
        measured.append(
            {
                "bytes": size,
                "median_s": times.median,
                "spread": times.spread,
                "bytes_per_s": size / times.median,
            }
        )
        del source, target
        meter.release()
    return measured


def best_copy(speeds: Sequence[dict[str, float]]) -> float:
    """The bytes per second of the fastest size; fractions of the floor are relative to it."""
    if not speeds:
        raise RuntimeError("The card has no room for a copy of 64 MiB: free its memory first.")
    return max(speed["bytes_per_s"] for speed in speeds)


def _ask_driver(device: torch.device, names: Sequence[str]) -> dict[str, str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    uuid = torch.cuda.get_device_properties(device).uuid
    command = [
        program,
        f"--query-gpu={','.join(names)}",
        "--format=csv,noheader",
        f"--id=GPU-{uuid}",  # because nvidia-smi may number GPUs differently than torch
    ]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in answer.stdout.split(",")]
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
