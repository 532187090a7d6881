"""What a process with AddressSanitizer runs: the conformance suite on the emulated kernels.

Every check in every order of the threads: where a barrier is missing, results depend on it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.backends.emulated import backend, grid
from tests.conformance import cases
from tests.conformance.cases import Case
from tests.conformance.compare import Results

each_way = [(inverse, reduce) for inverse in (False, True) for reduce in ("none", "sum")]


def _bits(tensor: Tensor) -> Tensor:
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(sizes[tensor.element_size()])


def _differing(one: Results, other: Results) -> list[str]:
    """The results that are not the same to the last bit."""
    pairs = ((name, value, getattr(other, name)) for name, value in one.items())
    return [name for name, a, b in pairs if not torch.equal(_bits(a), _bits(b))]


@pytest.mark.parametrize("case", grid.CASES, ids=str)
def test_matches_the_oracle_in_every_order_of_the_threads(case: Case) -> None:
    for inverse, reduce in each_way:
        forward = cases.check(backend.TARGET, case, inverse, reduce)
        data, _ = cases.expected(case, inverse, reduce)
        for name, order in backend.OTHER_ORDERS.items():
            with backend.order(*order):
                results = cases.run_target(backend.TARGET, case, data, inverse, reduce)
            assert not (differing := _differing(forward, results)), (
                f"{differing} differ between threads taken forward and {name}: a barrier is "
                f"missing. {case}, inverse={inverse}, reduce={reduce!r}"
            )


@pytest.mark.parametrize("case", grid.CUT, ids=str)
@pytest.mark.parametrize("elements", [7, 64])
def test_matches_the_oracle_in_several_launches(case: Case, elements: int) -> None:
    for inverse, reduce in each_way:
        data, _ = cases.expected(case, inverse, reduce)
        before = backend.launches()
        cases.run_target(backend.TARGET, case, data, inverse, reduce)
        usual = backend.launches() - before
        with backend.largest_launch(elements):
            cases.check(backend.TARGET, case, inverse, reduce)
        assert backend.launches() - before - usual > usual
