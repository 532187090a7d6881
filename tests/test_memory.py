"""`retain_memory`: what it changes is counted in page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

import robustflow
from robustflow.memory import allocator

FAULTS = """
import resource, sys, torch
import robustflow
if sys.argv[1] == "retain":
    assert robustflow.retain_memory()
for _ in range(12):  # glibc has a block of the right size and alignment after at most six
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def page_faults(mode: str) -> int:
    """Page faults of filling one more tensor of 40 MB, in a fresh process."""
    code = [sys.executable, "-c", FAULTS, mode]
    return int(subprocess.run(code, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(allocator() != "glibc", reason="retain_memory is for glibc's allocator")
def test_a_freed_tensors_memory_is_used_again() -> None:
    kept, default = page_faults("retain"), page_faults("leave")
    assert kept < 100, "a retained tensor's pages should be in place already"
    # Pages of 4 KiB, or fewer and larger ones where the system hands those out.
    assert default > kept


def test_the_result_says_whether_it_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustflow.memory.allocator", lambda: "jemalloc")
    retention = robustflow.retain_memory()
    assert not retention and not retention.applied
    assert "jemalloc" in retention.reason
