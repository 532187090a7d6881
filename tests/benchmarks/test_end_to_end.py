"""benchmarks.end_to_end: what it compares is the same flow, and its bytes are the transforms'."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import robustflow
from robustflow import functional as F
from robustflow.benchmarks import allocator, end_to_end, peers, rows, suite
from robustflow.benchmarks.end_to_end import JOBS, Job, Within
from robustflow.benchmarks.rows import Measured, Row, RowProvider
from robustflow.benchmarks.traffic import Traffic
from robustflow.experiments import super_resolution as sr

SR_JOBS = [job for job in JOBS if job.operation == "super_resolution_flow"]


def _job(name: str) -> Job:
    return next(job for job in JOBS if job.name == name)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_competitors_give_the_same_results(job: Job) -> None:
    if job.operation == "neural_spline_flow":
        pytest.importorskip("nflows")
    case = job.make(True)
    case.check()
    assert case.competitors
    before = robustflow.current_backend()
    for within in (case.ours, *case.competitors.values()):
        within()
    assert robustflow.current_backend() == before and robustflow.compat.patched() == {}


@pytest.mark.parametrize("name", ["sr.train", "sr.sample", "sr.ten-samples"])
def test_another_flow_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = F.modified_rq_spline

    def wrong(*arguments: Any, **options: Any) -> Any:
        y, logabsdet = own(*arguments, **options)
        return 1.5 * y, logabsdet

    case = _job(name).make(True)

    def wrong_in_batches(x: Any, params: Any, **options: Any) -> Any:
        """Ours alone shares one condition among ten samples."""
        return (wrong if len(x) > len(params) else own)(x, params, **options)

    # The eager competitor does not go through it.
    replacement = wrong_in_batches if name == "sr.ten-samples" else wrong
    monkeypatch.setattr(F, "modified_rq_spline", replacement)
    with pytest.raises(AssertionError, match="of the flow"):
        case.check()


def test_the_reference_serves_the_reference() -> None:
    case = _job("sr.sample").make(True)
    assert end_to_end.transform_bytes(case.ours) > 0
    assert end_to_end.transform_bytes(case.competitors["reference"]) == 0
    assert end_to_end.transform_bytes(case.competitors["eager"]) == 0


def test_the_patch_serves_the_flow() -> None:
    pytest.importorskip("nflows")
    case = _job("nsf.train").make(True)
    assert end_to_end.transform_bytes(case.ours) > 0
    assert end_to_end.transform_bytes(case.competitors["unpatched"]) == 0


@pytest.mark.skipif(robustflow.backends()["cpu"] is not True, reason="no CPU kernels here")
@pytest.mark.parametrize("samples", [5, 1])
def test_bytes_are_those_of_the_contract(samples: int) -> None:
    x = torch.randn(5, 3, 4, 4)
    params = torch.randn(samples, 12, 4, 4)
    elements, ones = x.numel(), 3 * 4 * 4 * samples
    counted = end_to_end.transform_bytes(Within(lambda: F.modified_rq_spline(x, params)))
    # One condition for all samples is read once.
    assert counted == 4 * (elements + 4 * ones + elements + 5)


@pytest.mark.skipif(robustflow.backends()["cpu"] is not True, reason="no CPU kernels here")
def test_bytes_of_a_step_are_those_of_the_contract() -> None:
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    params = torch.randn(5, 12, 4, 4, requires_grad=True)
    cotangents = (torch.randn(5, 3, 4, 4), torch.randn(5))

    def step() -> Any:
        return torch.autograd.grad(F.modified_rq_spline(x, params), (x, params), cotangents)

    traffic = Traffic(x.numel(), 4, 5)
    assert end_to_end.transform_bytes(Within(step)) == traffic.of("forward+backward")


def test_expanded_tensors_count_once() -> None:
    assert end_to_end._bytes_of(torch.zeros(3).expand(5, 3)) == 12
    assert end_to_end._bytes_of(torch.zeros(5, 3)) == 60


def test_flows_differ_in_who_computes_alone() -> None:
    flows = end_to_end.super_resolution_flows(sr.QUICK_SETTINGS)
    states = [flow.state_dict() for flow in flows.values()]
    for state in states[1:]:
        torch.testing.assert_close(state, states[0], rtol=0, atol=0)


def test_it_gives_rows_to_the_suite() -> None:
    provider: RowProvider = end_to_end
    assert end_to_end.__name__ in suite.PROVIDERS
    every, quick = provider.names(False), provider.names(True)
    assert len(set(every)) == len(every) and set(quick) < set(every)
    assert all(name.startswith("end-to-end.") for name in every)
    assert {"training step", "sampling", "latency", "ten samples"} == {j.direction for j in JOBS}
    # A text reaches every row, in a quick run too.
    assert [job.name for job in end_to_end.chosen("large", True)] == [
        "nsf-large-batch.train",
        "nsf-large-batch.sample",
    ]


@pytest.mark.parametrize("name", ["sr-one.sample", "sr.ten-samples"])
def test_rows(name: str) -> None:
    job = _job(name)
    row = end_to_end.time_job(job, True, "default", seconds=0.0)
    assert row.name == f"end-to-end.{name}" and row.direction == job.direction
    assert row.ratio.keys() == row.ratio_spread.keys() == job.make(True).competitors.keys()
    assert row.bytes > 0 and row.floor_fraction > 0 and len(row.shape) == 4


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(policy: str, module: str, arguments: list[str]) -> Any:
        assert module == "robustflow.benchmarks.end_to_end" and arguments[0] == "--worker"
        *given, _ = arguments
        seconds = "0.0" if arguments[1] == "time" else arguments[-1]
        end_to_end.worker(*given[1:], seconds, str(tmp_path / "result"))
        return json.loads((tmp_path / "result").read_text())

    monkeypatch.setattr(allocator, "run", run)
    monkeypatch.setattr(suite, "works", lambda policy, measured: policy == "default")


@pytest.mark.usefixtures("in_this_process")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    assert end_to_end.main(["--quick", "--filter", "sr-one", "--json", str(file)]) == 0
    (row,) = rows.read_rows(file)
    assert row.name == "end-to-end.sr-one.sample" and row.allocator == "default"
    assert row.shape == (1, 3, 32, 32) and set(row.ratio) == {"reference", "eager"}
    assert "end-to-end.sr-one.sample" in capsys.readouterr().out


@pytest.mark.usefixtures("in_this_process")
def test_wrong_results_have_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> Any:
        raise RuntimeError("AssertionError: other results")

    monkeypatch.setattr(allocator, "run", run)
    said: list[str] = []
    measured: Measured = end_to_end.measure("sr-one", True, said.append)
    assert said == ["end-to-end.sr-one.sample"] and measured.rows == []
    assert "other results" in measured.failed["end-to-end.sr-one.sample"]


def test_a_missing_peer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(peer: str) -> None:
        raise peers.PeerMissing(f"{peer} cannot be imported.")

    monkeypatch.setattr(peers, "check", missing)
    monkeypatch.setattr(suite, "works", lambda policy, measured: True)
    measured = end_to_end.measure("nsf-one", True, lambda name: None)
    assert measured.left_out == {"end-to-end.nsf-one.sample": "nflows cannot be imported."}


def test_a_full_run_measures_peak_memory_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row("x", "x", "x", (1,), "float32", "default", 1.0, 0.0, 1.0, 1, 1.0)
    asked: list[tuple[str, str]] = []

    def run(policy: str, module: str, arguments: list[str]) -> Any:
        asked.append((policy, arguments[1]))
        return 123 if arguments[1] == "peak" else asdict(row)

    monkeypatch.setattr(allocator, "run", run)
    monkeypatch.setattr(suite, "works", lambda policy, measured: policy == "default")
    measured = end_to_end.measure("sr.train", False, lambda name: None)
    assert asked == [("returning", "peak"), ("default", "time")]
    assert measured.rows == [replace(row, peak_bytes=123)]


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        end_to_end.main(["--filter", "nothing is called so"])
    assert "there are end-to-end.nsf.train" in capsys.readouterr().err
