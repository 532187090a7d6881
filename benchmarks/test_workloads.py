"""The same workloads under pytest-benchmark: ``pytest benchmarks --benchmark-json FILE``.

A group is a workload: robustflow and each competitor, whose results are compared with robustflow's
before it is timed. ``-k`` chooses workloads, ``--quick`` their smaller shapes. pytest-benchmark
times one function after the other: for ratios use ``robustflow bench``, which alternates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from robustflow.benchmarks import cases, peers, workloads
from robustflow.benchmarks.workloads import Workload

pytest.importorskip("pytest_benchmark", reason="pip install 'robustflow[bench]'")

CONTESTANTS = [
    pytest.param(work, who, id=f"{work.name}-{who}")
    for work in workloads.SUITE
    for who in ("robustflow", *work.competitors)
]


@pytest.fixture(autouse=True)
def _forget_compiled() -> Iterator[None]:
    """torch.compile stops compiling a function that it has met in too many shapes."""
    yield
    peers.forget_compiled()


@pytest.mark.parametrize(("workload", "who"), CONTESTANTS)
def test_workload(
    workload: Workload, who: str, benchmark: Any, pytestconfig: pytest.Config
) -> None:
    if pytestconfig.getoption("--quick", default=False):
        workload = workload.quick()
    case = cases.prepare(workload.against([who]))
    if who in case.left_out:
        pytest.skip(case.left_out[who])
    cases.check_agreement(case)
    benchmark.group = workload.name
    benchmark.extra_info.update(
        operation=workload.operation,
        direction=workload.direction,
        shape=list(workload.shape),
        bytes=workload.bytes,
    )
    benchmark(case.competitors.get(who, case.ours))
