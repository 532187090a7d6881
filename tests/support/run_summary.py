"""The last lines of a run, collected from all of its processes.

The worker processes of pytest-xdist have no terminal: each sends its lines to the process that
started it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

_KEY = "robustflow_run_summary"  # among what a process of pytest-xdist's sends at its end


@dataclass
class RunSummary:
    """``sections``: title and text of each; ``gpu_tests``: names of those that need a GPU."""

    sections: list[tuple[str, str]] = field(default_factory=list)
    gpu_tests: set[str] = field(default_factory=set)


_STASH = pytest.StashKey[RunSummary]()


def of(config: pytest.Config) -> RunSummary:
    """A run's, to read or to add to."""
    return config.stash.setdefault(_STASH, RunSummary())


def send(config: pytest.Config) -> None:
    """In a process of pytest-xdist's: hand all of it on; elsewhere nothing."""
    output = getattr(config, "workeroutput", None)
    if output is not None:
        summary = of(config)
        output[_KEY] = (summary.sections, sorted(summary.gpu_tests))


def receive(config: pytest.Config, node: Any) -> None:
    """In the process that started it: take over what ``node`` sent, if it came to its end."""
    sections, gpu_tests = getattr(node, "workeroutput", {}).get(_KEY, ((), ()))
    summary = of(config)
    summary.sections += sections
    summary.gpu_tests.update(gpu_tests)
