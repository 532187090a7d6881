"""Every operation, direction, dtype, layout and reduction of every backend against the oracle."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch

from tests.conformance.cases import Case, case_params, check
from tests.conformance.poison import poisoned
from tests.conformance.targets import Target


@pytest.mark.parametrize(("target", "case"), case_params())
def test_matches_the_oracle(target: Target, case: Case) -> None:
    """y, logabsdet and every gradient, forward and inverse, summed and not."""
    for inverse in (False, True):
        for reduce in ("none", "sum"):
            check(target, case, inverse, reduce)


def test_poison_reaches_new_memory() -> None:
    """The suite would be blind to unwritten elements if memory came back clean."""
    with poisoned():
        fresh = torch.empty(1 << 12)
    assert bool(fresh.isnan().all())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc's filling is glibc's")
def test_poison_reaches_malloc() -> None:
    """Below torch.empty too, where an operator's C++ side may allocate."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    with poisoned():
        block = libc.malloc(1 << 14)
        content = set(ctypes.string_at(block, 1 << 14))
        libc.free(block)
    assert content == {0xBF}
