"""The cases of ``robustflow bench`` under pytest-benchmark.

    pytest benchmarks --benchmark-json FILE

Each case is a group of pytest-benchmark, with robustflow and its competitors. Before a competitor
is timed, its results are compared with robustflow's. ``-k`` selects cases, and ``--quick`` uses
their smaller shapes. pytest-benchmark times one function after the other; for ratios use
``robustflow bench``, which alternates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from robustflow.benchmarks import calls, cases, peers
from robustflow.benchmarks.cases import Case

pytest.importorskip("pytest_benchmark", reason="pip install 'robustflow[bench]'")

CALLS = [
    pytest.param(case, who, id=f"{case.name}-{who}")
    for case in cases.SUITE
    for who in ("robustflow", *case.competitors)
]


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    """torch.compile stops compiling a function after too many different input shapes."""
    yield
    peers.forget_compiled()


@pytest.mark.parametrize(("case", "who"), CALLS)
def test_case(case: Case, who: str, benchmark: Any, pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--quick", default=False):
        case = case.quick()
    prepared = calls.prepare(case.against([who]))
    if who in prepared.left_out:
        pytest.skip(prepared.left_out[who])
    calls.check_agreement(prepared)
    benchmark.group = case.name
    benchmark.extra_info.update(
        operation=case.family.operation,
        direction=case.direction,
        shape=list(case.shape),
        bytes=case.bytes,
    )
    benchmark(prepared.competitors.get(who, prepared.ours))
