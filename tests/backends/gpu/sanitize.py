"""Small calls of every kernel under compute-sanitizer, which comes with the CUDA toolkit.

    python -m tests.backends.gpu.sanitize [cuda] [triton]

runs memcheck (reads and writes out of bounds, misaligned) and racecheck (hazards in shared memory)
on each backend, by default on those that are available. Exit code 0: all clean.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import robustflow

ROOT = Path(__file__).parents[3]
TOOLS = ("memcheck", "racecheck")
BACKENDS = ("cuda", "triton")
FOUND = 99  # compute-sanitizer's exit code where it found something


def find_sanitizer() -> str | None:
    """compute-sanitizer on PATH, or in CUDA_HOME, or where the toolkit puts itself."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    places = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def command(sanitizer: str, tool: str, backend: str) -> list[str]:
    """The sanitizer on tests/backends/gpu/small_run.py."""
    return [
        *(sanitizer, "--tool", tool, "--error-exitcode", str(FOUND)),
        *("--target-processes", "application-only", "--print-limit", "20"),
        *(sys.executable, "-m", "tests.backends.gpu.small_run", backend),
    ]


def check(sanitizer: str, tool: str, backend: str) -> str:
    """What a tool found, and an empty string where it is clean.

    torch's allocator is switched off: its large blocks would hide what is read beyond a tensor.
    """
    done = subprocess.run(
        command(sanitizer, tool, backend),
        cwd=ROOT,
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode == 0 and " calls" in done.stdout:
        return ""
    return f"exit code {done.returncode}\n{done.stdout}"


def main(names: Sequence[str]) -> int:
    """Run each tool on each backend; 0 where all are clean, else 1, and 2 for a bad call."""
    if unknown := set(names) - set(BACKENDS):
        print(f"{', '.join(sorted(unknown))}: the backends to look at are {', '.join(BACKENDS)}.")
        return 2
    available = robustflow.backends()
    backends = names or [name for name in BACKENDS if available[name] is True]
    reasons = [f"{name}: {available[name]}" for name in BACKENDS if available[name] is not True]
    missing = [name for name in backends if available[name] is not True]
    if missing or not backends:
        print("\n".join(["There is nothing to look at.", *reasons]))
        return 1
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print("compute-sanitizer was not found: it comes with the CUDA toolkit; set CUDA_HOME.")
        return 1
    failures = 0
    for backend in backends:
        for tool in TOOLS:
            report = check(sanitizer, tool, backend)
            failures += bool(report)
            print(f"{backend}, {tool}: {report or 'clean'}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
