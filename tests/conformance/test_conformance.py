"""Every operation, direction, dtype, layout and reduction of every backend against the oracle."""

from __future__ import annotations

import pytest
import torch

from conformance.cases import Case, case_params, check
from conformance.poison import poisoned
from conformance.targets import Target


@pytest.mark.parametrize(("target", "case"), case_params())
def test_matches_the_oracle(target: Target, case: Case) -> None:
    """y, logabsdet and every gradient, forward and inverse, summed and not."""
    for inverse in (False, True):
        for reduce in ("none", "sum"):
            check(target, case, inverse, reduce)


def test_poison_reaches_new_tensors() -> None:
    """The suite would be blind to unwritten elements if memory came back clean."""
    with poisoned():
        fresh = torch.empty(1 << 12)
    assert bool(fresh.isnan().all())
