"""benchmarks.reversible: errors are of the right thing, and the picture draws all of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import plots, reversible
from benchmarks.reversible import Shape
from robustflow.benchmarks import allocator

TINY = Shape(depths=(2,), side=8, memory_side=8, batch=2, hidden=8)


@pytest.mark.parametrize("kind", ["modified RQ", "affine"])
def test_rebuilt_gradients_are_the_stored_ones_in_a_shallow_flow(kind: str) -> None:
    errors = reversible.measure_errors(kind, 2, TINY)
    assert errors["store"] < 1e-4
    assert errors["reversible"] < 1e-4
    assert errors["rebuilt inputs"] < 1e-5


def test_small_scales_of_an_affine_flow_spoil_them() -> None:
    errors = reversible.measure_errors("affine, small scales", 16, Shape())
    assert errors["store"] < 1e-4
    assert errors["reversible"] > 1


def test_rebuilding_takes_less_memory() -> None:
    """In a process of its own, whose allocator hands back what is freed."""
    shape = Shape(depths=(4, 16), side=8, memory_side=32, hidden=8)
    task = json.dumps({"shape": asdict(shape), "kind": "modified RQ"})
    few, many = (
        result["peak_bytes"]
        for result in allocator.run("returning", reversible.MODULE, ["--worker", task])
    )
    assert many["store"] > 3 * few["store"]
    assert many["reversible"] < 0.3 * many["store"]


def test_the_table_and_the_picture_have_every_depth(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = []
    for kind in ("modified RQ", "affine, small scales"):
        task = json.dumps({"shape": asdict(TINY), "kind": kind})
        reversible.worker(task, str(tmp_path / "result.json"))
        results += json.loads((tmp_path / "result.json").read_text())
    results[-1]["errors"]["reversible"] = "inf"
    for result in results:
        result["peak_bytes"] = {"store": 2 << 20, "reversible": 1 << 20}
    assert [result["depth"] for result in results] == [2, 2]
    said = reversible.report(results)
    assert "modified RQ, 2 steps" in said and "inf" in said
    record = {"rows": [], "machine": {"robustflow": {}}, "reversible": results}
    (tmp_path / "made.json").write_text(json.dumps(record))
    assert plots.main([str(tmp_path / "made.json"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "made-reversible.svg").read_text().count("affine, small scales") >= 1
