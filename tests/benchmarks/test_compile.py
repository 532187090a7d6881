"""benchmarks.compile: every way of a case has a row; the compiler itself is left out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import compile as compiling
from robustflow.benchmarks.dropin_cases import TINY


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options that torch.compile was given; it returns the function as it is."""
    given: list[dict[str, Any]] = []

    def without_compiling(function: Any, **options: Any) -> Any:
        given.append(options)
        return function

    monkeypatch.setattr(torch, "compile", without_compiling)
    return given


@pytest.mark.parametrize(
    ("flow", "what"),
    [("nflows", "training step"), ("nflows", "sampling"), ("robustflow.nn", "sampling")],
)
def test_a_case_has_every_way(flow: str, what: str, asked: list[dict[str, Any]]) -> None:
    if flow == "nflows":
        pytest.importorskip("nflows")
    ways = compiling.ways_of(what, list(compiling.WAYS))
    assert ("freezing" in ways) == (what == "sampling") and ways[-1] == "dynamic"
    rows = compiling.measure(flow, what, 16, ways, 0.0, TINY)
    unpatched = ["unpatched"] if flow == "nflows" else []
    assert [row.way for row in rows] == [*unpatched, "eager", *ways]
    assert all(row.median_s > 0 for row in rows)
    assert {"options": {"cpp_wrapper": True}} in asked and len(asked) == len(ways)
    for row in rows[len(unpatched) + 1 :]:
        assert row.compile_s is not None
        # Adam's rate is too small to move a weight.
        assert row.difference == (0 if what == "training step" else None)
    assert rows[-1].graphs_of_another_batch == 0
    said = compiling.report(rows)
    assert f"{flow}, {what}, batch 16" in said and "cpp_wrapper" in said
