"""The last lines of a run of GPU tests: the card, the versions, and each backend's outcomes."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from importlib.metadata import version
from typing import Any

import torch

import robustflow
from robustflow.cli.doctor import describe_gpu
from tests.conformance.targets import GPU

_OUTCOMES = ("passed", "failed", "error", "skipped")


def lines(stats: Mapping[str, Iterable[Any]], gpu_tests: Set[str]) -> list[str]:
    """The summary of pytest's reports by outcome, of which ``gpu_tests`` need a GPU."""
    if not gpu_tests:
        return []
    by_target: dict[str, Counter[str]] = {str(target): Counter() for target in GPU}
    by_target["the rest"] = Counter()
    for outcome in _OUTCOMES:
        for report in stats.get(outcome, ()):
            if report.nodeid in gpu_tests:
                names = (name for name in by_target if f"[{name}" in report.nodeid)
                by_target[next(names, "the rest")][outcome] += 1
    if not any(by_target.values()):
        return [
            f"{len(gpu_tests)} tests need a GPU and were left out, as torch sees none: run "
            "`pytest -m gpu` on a machine with one."
        ]
    return [*_machine(), *(_row(name, counts) for name, counts in by_target.items())]


def _row(name: str, counts: Counter[str]) -> str:
    outcomes = ", ".join(f"{counts[outcome]} {outcome}" for outcome in _OUTCOMES if counts[outcome])
    return f"{name}: {outcomes or 'no tests'}"


def _machine() -> list[str]:
    if not torch.cuda.is_available():
        return ["No GPU: this run shows nothing of the GPU backends. Run it on a machine with one."]
    gpu, cuda = describe_gpu(), robustflow.build_info()["cuda"]
    triton = version("triton") if importlib.util.find_spec("triton") else "not installed"
    built = cuda.get("architectures", "not built")
    return [
        f"{gpu['cards']}, driver {gpu['driver']}",
        f"torch {torch.__version__} (CUDA {torch.version.cuda}), triton {triton}, CUDA library: "
        f"{built}",
    ]
