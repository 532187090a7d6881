"""benchmarks.scaling: its points, its copies, its checks, and what it says of the last cache."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import scaling, scaling_points
from benchmarks.scaling import Settings
from benchmarks.scaling_points import FAMILIES, Point, ScalingRow, with_bins
from robustflow.benchmarks import allocator, calls, rows, suite
from robustflow.benchmarks.cases import Case
from robustflow.benchmarks.families import AFFINE, MODIFIED_RQ, RQ8
from robustflow.benchmarks.rows import Measured, read_json

TINY = Settings((100,), (4,), 100, seconds=0.0, min_rounds=1)


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_points_cover_what_they_should() -> None:
    every = scaling.points(Settings())
    for family in FAMILIES:
        counts = {point.count for point in every if (point.sweep, point.family) == ("n", family)}
        assert {10**exponent for exponent in range(2, 9)} <= counts
    bins = {point.family.num_bins for point in every if point.sweep == "k"}
    assert min(bins) == 2 and max(bins) == 64
    names = [
        scaling_points.row_name(point.case(verb), threads)
        for point in every
        for verb in ("forward", "inverse", "train")
        for threads in (1, 2)
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("count", [100, 3000, 10**5, 3 * 10**5, 10**8])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_point_has_its_number_of_elements(count: int, family: Any) -> None:
    point = Point("n", family, count)
    assert point.case("forward").elements == count
    assert Point.from_json(json.loads(json.dumps(point.to_json()))) == point


def test_the_memory_of_a_point_is_counted() -> None:
    # Modified RQ: 5 inputs and their gradients, y and its cotangent, 4 bytes each; 1000 samples'
    # log-determinants and cotangents; and the copy.
    point = Point("n", MODIFIED_RQ, 10**8)
    assert point.bytes_needed == 48 * 10**8 + 8 * 1000 + scaling_points.MAX_COPY_BYTES
    assert scaling.why_left_out(point, "default", 10**12) is None
    assert "free" in (scaling.why_left_out(point, "default", 10**9) or "")
    # K = 8: 24 inputs an element are 9.6 GB alone.
    too_large = scaling.why_left_out(Point("n", RQ8, 10**8), "default", 10**12)
    assert too_large is not None and "8 GB is the limit" in too_large


def test_what_is_left_of_memory_and_cache_is_plausible() -> None:
    assert 1 << 20 < scaling.free_bytes() < 1 << 50
    cache = scaling.last_cache_bytes()
    assert cache is None or 1 << 14 <= cache <= 1 << 34


def test_copies_move_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    own = torch.Tensor.copy_

    def copy(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        copied.append(2 * 4 * self.numel())
        return own(self, other)

    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    monkeypatch.setattr(scaling_points, "MAX_COPY_BYTES", 1600)
    made = scaling_points.copies([800, 4800])
    made[800]()
    assert copied == [800]
    made[4800]()
    assert copied[1:] == [1600, 1600, 1600]


@pytest.mark.parametrize("family", [AFFINE, MODIFIED_RQ, with_bins(4)], ids=lambda f: f.name)
def test_inputs_repeat_and_every_period_is_checked(
    family: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling_points, "PERIOD", 50)
    monkeypatch.setattr(scaling_points, "SIDE", 5)
    point = Point("n", family, 200)
    inputs, repeats = scaling_points.inputs_of(point)
    assert repeats == 4
    for tensor in (*inputs.leaves, *inputs.cotangents):
        first, *others = tensor.chunk(4)
        assert all(torch.equal(first, other) for other in others)
    case = replace(point.case("train"), competitors=())
    result: Any = scaling_points.checked(case, inputs, repeats).ours()
    assert result[0].shape == point.shape

    own = calls.bind

    def wrong(of: Case, inputs: calls.Inputs) -> calls.Calls:
        """Right for the first period alone; for all four, the last element is wrong."""
        right = own(of, inputs)
        if of.shape != point.shape:
            return right

        def ours() -> Any:
            result: Any = right.ours()
            result[0].view(-1)[-1] += 1
            return result

        return replace(right, ours=ours)

    monkeypatch.setattr(calls, "bind", wrong)
    with pytest.raises(AssertionError, match="result 0 from sample"):
        scaling_points.checked(case, inputs, repeats)


def test_rows_of_a_point() -> None:
    point = Point("k", with_bins(4), 100)
    found, _ = scaling_points.measure_point(point, "", "default", seconds=0.0, min_rounds=1)
    threads = scaling_points.usable_threads()
    assert [row.name for row in found] == [
        f"scaling-k.rq4.{verb}.n1e2.t{count}"
        for verb in ("forward", "inverse", "train")
        for count in threads
    ]
    for row in found:
        assert (row.sweep, row.num_bins, row.shape) == ("k", 4, (100,))
        assert row.seconds_per_element == pytest.approx(row.median_s / 100)
        assert row.bytes_per_element * 100 == row.bytes
        floor = row.copy_bytes_per_s * row.median_s / row.bytes
        assert row.floor_fraction == pytest.approx(1 / floor)
        assert bool(row.ratio) <= (row.threads == max(threads))
    assert found[0].bytes == 4 * 100 * (1 + 11 + 2)
    some, _ = scaling_points.measure_point(
        point, "inverse.n1e2.t1", "default", seconds=0.0, min_rounds=1
    )
    assert [row.name for row in some] == ["scaling-k.rq4.inverse.n1e2.t1"]


def _row(count: int, fraction: float, **changes: Any) -> ScalingRow:
    row = ScalingRow(
        name=f"scaling-n.affine.forward.n{count}.t1",
        operation="conditional_affine",
        direction="forward",
        shape=(count,),
        dtype="float32",
        allocator="keeping",
        median_s=1.0,
        spread=0.0,
        elements_per_s=float(count),
        bytes=16 * count,
        floor_fraction=fraction,
        seconds_per_element=1 / count,
        bytes_per_element=16.0,
        copy_bytes_per_s=16 * count / fraction,
    )
    return replace(row, **changes)


def test_only_points_beyond_the_cache_are_compared() -> None:
    found = [_row(100, 0.1), _row(1000, 0.5), _row(2000, 0.7), _row(4000, 0.6)]
    (verdict,) = scaling.steadiness(found, cache=8000)
    assert verdict["elements"] == [1000, 2000, 4000]
    assert verdict["ratio"] == pytest.approx(1.4) and verdict["met"] is True
    (verdict,) = scaling.steadiness([*found, _row(8000, 0.4)], cache=8000)
    assert verdict["ratio"] == pytest.approx(1.75) and verdict["met"] is False
    (verdict,) = scaling.steadiness(found, cache=10**6)
    assert verdict["ratio"] is None and verdict["met"] is None
    text = scaling.report(found, scaling.steadiness(found, cache=8000), Measured())
    assert "50% to 70%  1.40x" in text and "met" in text


def test_each_direction_and_sweep_is_judged_by_itself() -> None:
    found = [
        _row(1000, 0.5),
        _row(2000, 0.5),
        _row(1000, 0.1, direction="inverse"),
        _row(2000, 0.4, direction="inverse"),
        _row(3000, 0.01, sweep="k"),
    ]
    verdicts = scaling.steadiness(found, cache=1)
    assert [(each["direction"], each["met"]) for each in verdicts] == [
        ("forward", True),
        ("inverse", False),
    ]


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers run here; a process of its own takes seconds to start."""

    def run(policy: str, module: str, arguments: list[str]) -> Any:
        assert module == "benchmarks.scaling" and arguments[0] == "--worker"
        scaling.worker(arguments[1], str(tmp_path / "result"))
        return json.loads((tmp_path / "result").read_text())

    monkeypatch.setattr(allocator, "run", run)
    monkeypatch.setattr(suite, "works", lambda policy, measured: policy == "default")
    monkeypatch.setattr(scaling, "QUICK", TINY)


@pytest.mark.usefixtures("in_this_process")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "scaling.json"
    arguments = ["--quick", "--filter", "forward", "--json", str(file)]
    assert scaling.main(arguments) == 0
    record = read_json(file)
    kinds = {(row["sweep"], row["operation"], row["num_bins"]) for row in record["rows"]}
    assert kinds == {
        ("n", "modified_rq_spline", 0),
        ("n", "conditional_affine", 0),
        ("n", "rq_spline", 8),
        ("k", "rq_spline", 4),
    }
    assert {row["direction"] for row in record["rows"]} == {"forward"}
    assert set(rows.KEYS) < set(record["rows"][0]) and record["failed"] == {}
    assert "scaling-n.affine.forward.n1e2.t1" in capsys.readouterr().out
    # Nothing is beyond the cache: a check cannot be met by what was not measured.
    assert scaling.main([*arguments, "--check"]) == 1


@pytest.mark.usefixtures("in_this_process")
def test_what_does_not_fit_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scaling, "free_bytes", lambda: 1000)
    assert scaling.main(["--quick", "--filter", "affine"]) == 0
    assert "Left out: affine, N = 1e2, default. It may take" in capsys.readouterr().out


@pytest.mark.usefixtures("in_this_process")
def test_a_failure_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> Any:
        raise RuntimeError("It broke.")

    monkeypatch.setattr(allocator, "run", run)
    assert scaling.main(["--quick", "--filter", "affine"]) == 1
    assert "FAILED: affine, N = 1e2, default. It broke." in capsys.readouterr().out


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--quick", "--filter", "nothing is called so"])
    assert "names are like scaling-n.modified_rq.forward.n1e2.t1" in capsys.readouterr().err


def test_settings_reach_the_worker(tmp_path: Path) -> None:
    work = {"points": [Point("n", AFFINE, 100).to_json()], "text": "forward", "policy": "default"}
    scaling.worker(json.dumps(work | asdict(TINY)), str(tmp_path / "result"))
    (first, *_) = json.loads((tmp_path / "result").read_text())["rows"]
    assert first["name"] == "scaling-n.affine.forward.n1e2.t1"
