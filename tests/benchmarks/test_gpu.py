"""The GPU suite as far as a CPU can test it: all but events, graphs and the figures themselves."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import robustflow
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import calls, card, meter, report, suite, targets
from benchmarks.gpu.plan import FULL, LARGE, QUICK, REHEARSAL, TINY, Task, plan
from benchmarks.gpu.row import GpuRow, clearly_faster, fastest
from robustflow.benchmarks import bars, families, rows
from robustflow.benchmarks.cases import Case, dtype_name

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
BACKENDS = [name for name in ("cpu", "reference") if robustflow.backends()[name] is True]
Dtypes = tuple[torch.dtype, torch.dtype]  # of x, of the parameters
F32: Dtypes = (torch.float32, torch.float32)
BF16: Dtypes = (torch.bfloat16, torch.bfloat16)
F16: Dtypes = (torch.float16, torch.float16)
AUTOCAST: Dtypes = (torch.float32, torch.bfloat16)
DIRECTIONS = (
    *("forward", "inverse", "backward", "forward+backward", "inverse-backward"),
    "inverse+backward",
)
FAMILIES = (
    *(families.MODIFIED_RQ, families.AFFINE, families.CUBIC_BSPLINE),
    *(families.RQ8_PACKED_ROWS, families.RQ8_PACKED_PLANAR, families.RQ8_PACKED_SOFTCLIP),
)


def _tiny(
    family: families.Family, direction: str = "forward", dtypes: Dtypes = F32, elements: int = 512
) -> Case:
    return _large(family, direction, dtypes).shrunk(elements, REHEARSAL)


def _large(family: families.Family, direction: str = "forward", dtypes: Dtypes = F32) -> Case:
    x, parameters = dtypes
    workload = LARGE[family.layout]
    return Case(workload, family, direction, dtype=x, parameter_dtype=parameters)


def _suite(device: meter.Meter | None = None, backends: list[str] = BACKENDS) -> suite.Suite:
    return suite.Suite(
        device_name=card.REHEARSAL,
        backends=backends,
        meter=device or meter.HostMeter(),
        copy_bytes_per_s=1e9,
        seconds=0.0,
        seed=0,
    )


def _run(*arguments: str) -> int:
    return command.main(["--device", "cpu", "--seed", "1", *arguments])


# The command


def test_the_command_rehearses_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results" / "gpu.json"
    assert (
        _run("--filter", "affine.inverse", "--against", "reference,eager", "--json", str(file)) == 0
    )
    record = json.loads(file.read_text())
    assert record["complete"] is True
    assert record["gpu_measurement"] is False
    assert record["scale"] == "rehearsal"
    assert record["machine"]["card"]["name"] == card.REHEARSAL
    assert record["wrong"] == record["failed"] == record["not_measured"] == {}
    assert {row["backend"] for row in record["rows"]} == set(BACKENDS)
    for row in record["rows"]:
        assert set(rows.KEYS) < set(row)
        assert row["device"] == card.REHEARSAL and row["scale"] == "rehearsal"
        assert row["median_s"] > 0
    names = {row["name"] for row in record["rows"]}
    for direction in ("inverse", "inverse-backward", "inverse+backward"):
        assert f"large.affine.{direction}" in names
    compared = next(r for r in record["rows"] if r["name"] == "large.affine.inverse")
    assert set(compared["ratio"]) == {"reference", "eager"} == set(compared["ratio_elements"])
    # Nothing that a CPU did may be held against a target, or be printed beside one.
    assert record["targets"]
    for verdict in record["targets"]:
        assert verdict["met"] is None and verdict["value"] is None
        assert verdict["verdict"] == "not measured"
    printed = capsys.readouterr().out
    assert printed.startswith(card.REHEARSAL)
    assert printed.rstrip().endswith(card.REHEARSAL + ".")
    assert printed.index("G el/s") < printed.index("verdict")


def test_what_there_is_no_time_for_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    assert _run("--filter", "modified_rq", "--seconds", "0", "--json", str(file)) == 0
    record = json.loads(file.read_text())
    assert record["rows"] == []
    expected = plan(REHEARSAL, "modified_rq")
    assert list(record["not_measured"]) == [task.name for task in expected]
    assert "no time" in record["not_measured"]["large.modified_rq.forward"]
    assert "Not measured: large.modified_rq.forward: no time" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--quick"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("This measures a GPU, and torch sees none: run it where nvidia-smi")


def test_without_a_backend_it_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = {"cpu": True, "cuda": "No nvcc.", "triton": "No Triton.", "reference": True}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(robustflow, "backends", lambda: reasons)
    assert command.main([]) == 2
    assert "cuda: No nvcc. triton: No Triton." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--filter", "nothing"], "no case's name contains 'nothing'"),
        (["--against", "reference,jax"], "got jax"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _run(*arguments)
    assert said in capsys.readouterr().err


def test_the_module_runs() -> None:
    command_line = [sys.executable, "-m", "benchmarks.gpu", "--help"]
    run = subprocess.run(command_line, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert run.returncode == 0, run.stderr
    assert "--quick" in run.stdout
    assert "--device" not in run.stdout


# What there is to measure


@pytest.mark.parametrize(
    ("family", "dtypes", "call", "backward"),
    [
        (families.MODIFIED_RQ, F32, 24, 44),
        (families.MODIFIED_RQ, BF16, 12, 22),
        (families.MODIFIED_RQ, AUTOCAST, 16, 28),
        (families.AFFINE, F32, 16, 28),
        (families.RQ8_PACKED_ROWS, F32, 104, 200),
    ],
)
def test_bytes_are_those_of_the_contract(
    family: families.Family, dtypes: Dtypes, call: int, backward: int
) -> None:
    def of(direction: str) -> float:
        case = _large(family, direction, dtypes)
        # Planar cases return one number a sample, which is next to nothing an element.
        return case.bytes / case.elements

    assert of("forward") == of("inverse") == pytest.approx(call, rel=1e-5)
    assert of("backward") == of("inverse-backward") == pytest.approx(backward, rel=1e-5)
    assert of("forward+backward") == of("inverse+backward") == of("forward") + of("backward")


def test_an_unknown_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="direction must be one of"):
        _ = _tiny(families.AFFINE, "sideways").bytes


def test_the_large_shapes_have_64_m_elements() -> None:
    for family in FAMILIES:
        assert _large(family).elements == 1 << 26


@pytest.mark.parametrize("scale", [FULL, QUICK, REHEARSAL])
def test_the_plan_names_every_task_once_and_measures_before_it_compares(scale: str) -> None:
    tasks = plan(scale)
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names)
    measured = set()
    for task in tasks:
        if task.against:
            assert task.case.name in measured
        measured.add(task.case.name)
    limit = {FULL: 1 << 26, QUICK: 1 << 23, REHEARSAL: 1 << 10}[scale]
    assert max(task.case.elements for task in tasks) <= limit
    assert {task.case.scale for task in tasks} <= {FULL, scale}


def test_every_operation_direction_and_dtype_is_planned() -> None:
    planned = {
        (task.case.family.name, task.case.direction, task.case.dtypes) for task in plan(FULL)
    }
    for family in (
        families.MODIFIED_RQ,
        families.RQ8_PACKED_ROWS,
        families.RQ8_PACKED_PLANAR,
        families.AFFINE,
    ):
        for direction in DIRECTIONS:
            for dtypes in ("float32", "bfloat16", "float16", "float32xbfloat16"):
                assert (family.name, direction, dtypes) in planned


def test_a_case_shrinks_by_halves() -> None:
    case = _large(families.MODIFIED_RQ)
    assert case.shrunk(1 << 26, "memory") is case
    half = case.shrunk(1 << 25, "memory")
    assert half.elements == 1 << 25 and half.scale == "memory" and half.name == case.name


# The check before the clock


@pytest.mark.parametrize("dtypes", [F32, BF16, F16, AUTOCAST])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("who", [*BACKENDS, "eager", "nflows", "normflows"])
def test_competitors_pass_the_check(
    who: str, family: families.Family, direction: str, dtypes: Dtypes
) -> None:
    case = _tiny(family, direction, dtypes)
    if calls.why_not(who, case):
        with pytest.raises(ValueError, match=who):
            calls.make_call(who, calls.make_tensors(case, CPU, 0))
        return
    if who in calls.MASKED and importlib.util.find_spec(who) is None:
        pytest.skip(f"{who} is not installed")
    tensors = calls.make_tensors(case, CPU, 0)
    call = calls.make_call(who, tensors)
    calls.check("case", tensors, call)
    results = call()
    assert len(results) == len(calls.labels(case))
    if case.trains:
        assert results[-1].shape == tensors.params.shape
        assert results[-1].dtype == tensors.params.dtype


def _broken(break_it: Callable[[torch.Tensor], None], label: str) -> tuple[calls.Tensors, Any]:
    """A right call but for one result, which ``break_it`` changes."""
    case = _tiny(families.MODIFIED_RQ, "forward+backward", elements=1 << 14)
    tensors = calls.make_tensors(case, CPU, 0)
    honest = calls.make_call("reference", tensors)

    def call() -> tuple[torch.Tensor, ...]:
        results = honest()
        break_it(results[calls.labels(case).index(label)])
        return results

    return tensors, calls.Call(call)


@pytest.mark.parametrize("label", ["y", "logabsdet", "gradient of x", "gradient of the parameters"])
def test_a_wrong_result_is_found(label: str) -> None:
    def shift(result: torch.Tensor) -> None:
        result += 0.1 * (1 + result.abs())

    with pytest.raises(AssertionError, match=f"case: {label} of samples"):
        calls.check("case", *_broken(shift, label))


def test_a_single_number_that_is_not_written_is_found() -> None:
    """A call that fills all of a kept buffer but one: once poisoned, that one stays NaN."""
    case = _tiny(families.AFFINE, elements=1 << 14)
    tensors = calls.make_tensors(case, CPU, 0)
    honest = calls.make_call("reference", tensors)
    y, logabsdet = (result.clone() for result in honest())

    def forgetful() -> tuple[torch.Tensor, ...]:
        right_y, right_logabsdet = honest()
        logabsdet.copy_(right_logabsdet)
        y.flatten()[:777].copy_(right_y.flatten()[:777])
        y.flatten()[778:].copy_(right_y.flatten()[778:])
        return y, logabsdet

    with pytest.raises(AssertionError, match="y has NaN, or numbers that were never written"):
        calls.check("case", tensors, calls.Call(forgetful))


def test_large_cases_are_checked_at_both_ends_and_in_the_middle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "_CHECKED_AT_ONCE", 100)
    case = _tiny(families.RQ8_PACKED_ROWS, elements=1024)
    assert calls._checked_ranges(case) == [(0, 100), (462, 562), (924, 1024)]
    for place in (5, 500, 1023):

        def spoil(result: torch.Tensor, place: int = place) -> None:
            result[max(0, place - 30) : place + 30] += 1.0

        tensors = calls.make_tensors(case, CPU, 0)
        honest = calls.make_call("reference", tensors)

        def wrong(honest: calls.Call = honest, spoil: Any = spoil) -> tuple[torch.Tensor, ...]:
            results = honest()
            spoil(results[0])
            return results

        with pytest.raises(AssertionError, match="y of samples"):
            calls.check("case", tensors, calls.Call(wrong))


# The suite


def test_no_speed_is_reported_of_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(what: str, *_: object) -> None:
        raise AssertionError(f"{what}: y is wrong")

    monkeypatch.setattr(suite, "check", check)
    measured = _suite()
    name = _tiny(families.AFFINE).name
    measured.run([Task(_tiny(families.AFFINE))], suite.Budget(100.0), lambda task: None)
    assert measured.results.rows == []
    assert set(measured.results.wrong) == {f"{name} by {backend}" for backend in BACKENDS}


def test_a_wrong_competitor_gets_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    case = _tiny(families.AFFINE)
    measured = _suite()
    measured.run([Task(case)], suite.Budget(100.0), lambda task: None)

    def check(what: str, *_: object) -> None:
        raise AssertionError(f"{what}: y is wrong")

    monkeypatch.setattr(suite, "check", check)
    measured.run([Task(case, "eager")], suite.Budget(100.0), lambda task: None)
    assert [row.ratio for row in measured.results.rows] == [{}] * len(BACKENDS)
    assert "y is wrong" in measured.results.left_out[f"{case.name} against eager"]


def test_the_exit_status_tells_of_wrong_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(what: str, *_: object) -> None:
        raise AssertionError("y differs")

    monkeypatch.setattr(suite, "check", check)
    assert _run("--filter", "large.affine.forward", "--against", "") == 1
    assert "Wrong, so no speed is reported: large.affine.forward" in capsys.readouterr().out


def test_a_call_that_raises_is_listed_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    make_call = calls.make_call

    def sometimes(who: str, tensors: calls.Tensors) -> calls.Call:
        if tensors.case.direction == "inverse":
            raise RuntimeError("no kernel image\nand a stack")
        return make_call(who, tensors)

    monkeypatch.setattr(suite, "make_call", sometimes)
    measured = _suite(backends=["reference"])
    tasks = [Task(_tiny(families.AFFINE, direction)) for direction in ("inverse", "forward")]
    measured.run(tasks, suite.Budget(100.0), lambda task: None)
    assert list(measured.results.failed.values()) == ["RuntimeError: no kernel image"]
    assert [row.direction for row in measured.results.rows] == ["forward"]


def test_the_budget_is_kept_and_cheap_tasks_still_fit() -> None:
    now = 0.0
    cheap, dear = Task(_tiny(families.AFFINE)), Task(_tiny(families.AFFINE), "compiled-reference")
    other = Task(_tiny(families.AFFINE, "inverse"))
    finished = []

    def done(task: Task) -> None:
        nonlocal now
        now += 10.0
        finished.append(task)

    measured = _suite(backends=["reference"])
    measured.run([cheap, dear, other], suite.Budget(17.0, lambda: now), done)
    assert finished == [cheap, other]
    assert list(measured.results.not_measured) == [dear.name]
    assert "7 were left" in measured.results.not_measured[dear.name]


def test_a_competitor_too_large_for_the_memory_is_compared_on_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_call = calls.make_call

    def hungry(who: str, tensors: calls.Tensors) -> calls.Call:
        if who == "eager" and tensors.case.elements > 256:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return make_call(who, tensors)

    monkeypatch.setattr(suite, "make_call", hungry)
    monkeypatch.setattr(suite, "_MIN_ELEMENTS", 1)
    case = _tiny(families.MODIFIED_RQ, elements=1024)
    measured = _suite(backends=["reference"])
    measured.run([Task(case), Task(case, "eager")], suite.Budget(100.0), lambda task: None)
    (row,) = measured.results.rows
    assert row.shape == case.shape
    assert row.ratio["eager"] > 0 and row.ratio_elements == {"eager": 256}

    monkeypatch.setattr(suite, "_MIN_ELEMENTS", 1000)
    measured.run([Task(case, "eager")], suite.Budget(100.0), lambda task: None)
    assert "does not fit" in measured.results.left_out[f"{case.name} against eager"]


def test_a_case_too_large_for_the_memory_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_tensors(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(suite, "make_tensors", make_tensors)
    measured = _suite()
    measured.run([Task(_tiny(families.AFFINE))], suite.Budget(100.0), lambda task: None)
    assert list(measured.results.not_measured) == ["large.affine.forward"]


def test_a_device_that_fails_ends_the_run() -> None:
    class Dead(meter.HostMeter):
        def release(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    first, second = Task(_tiny(families.AFFINE)), Task(_tiny(families.AFFINE, "inverse"))
    measured = _suite(Dead())
    measured.run([first, second], suite.Budget(100.0), lambda task: None)
    assert "illegal memory access" in measured.results.failed[f"the device after {first.name}"]
    assert measured.results.not_measured == {second.name: "the device had failed."}


def test_a_small_case_has_its_time_in_a_graph() -> None:
    class WithGraphs(meter.HostMeter):
        def graph(self, call: calls.Call) -> calls.Call:
            def replay() -> tuple[torch.Tensor, ...]:
                for _ in range(meter.GRAPH_CALLS):
                    call()
                return ()

            return calls.Call(replay)

    workload = TINY["rows"]
    measured = _suite(WithGraphs(), ["reference"])
    case = Case(workload, families.RQ8_PACKED_ROWS, "forward")
    measured.run([Task(case)], suite.Budget(100.0), lambda task: None)
    (row,) = measured.results.rows
    assert row.timing == "latency" and row.peak_bytes is None and row.graph_s is not None
    # One call or sixteen and a sixteenth: the same, were the machine quiet.
    assert 0.1 < row.graph_s / row.median_s < 10


# The stopwatch and the card


class Log(list[str]):
    """A stand-in for torch.cuda's events, which writes down what happens in which order."""

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        log = self

        class Event:
            def record(self) -> None:
                log.append("record")

            def synchronize(self) -> None:
                log.append("wait")

            def elapsed_time(self, end: object) -> float:
                return 6.0  # milliseconds

        return Event()


def test_cold_samples_read_the_buffer_first_and_wait_last(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    monkeypatch.setattr(torch.cuda, "Event", log.event)
    device = meter.CudaMeter(CPU, cache_bytes=1000)
    assert device._buffer.numel() * 4 == 16_000

    class Buffer:
        def amax(self) -> None:
            log.append("flush")

    device._buffer = Buffer()  # type: ignore[assignment]

    def function() -> tuple[torch.Tensor, ...]:
        assert robustflow.current_backend() == "reference"
        log.append("call")
        return ()

    assert device.cold(calls.Call(function, "reference"), 3) == pytest.approx(2e-3)
    assert log == ["flush", "record", "call", "call", "call", "record", "wait"]


def test_latency_waits_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))

    def function() -> tuple[torch.Tensor, ...]:
        log.append("call")
        return ()

    assert meter.CudaMeter(CPU, 4).latency(calls.Call(function), 2) >= 0
    assert log == ["wait", "call", "call", "wait"]


def test_copies_count_bytes_read_and_written() -> None:
    ticks = iter(range(10**6))
    clock = meter.HostMeter(lambda: 0.5 * next(ticks))
    (speed,) = card.copy_speeds(clock, [8000], seconds=0.0)
    assert speed["bytes"] == 8000 and speed["median_s"] == 0.5
    assert card.best_copy([speed, {"bytes_per_s": 1.0}]) == 16000.0
    with pytest.raises(RuntimeError, match="no room"):
        card.best_copy([])


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("580.1, 1980 MHz\n", {"driver_version": "580.1", "clocks.sm": "1980 MHz"}),
        ("580.1\n", {}),
        (subprocess.CalledProcessError(6, "nvidia-smi"), {}),
    ],
)
def test_the_driver_is_asked_about_torchs_card(
    answer: str | Exception, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    class Properties:
        uuid = "1-2-3"

    def run(command_line: list[str], **_: object) -> Any:
        asked.append(command_line)
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(command_line, 0, answer)

    monkeypatch.setattr(shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    found = card._ask_driver(torch.device("cuda"), ("driver_version", "clocks.sm"))
    assert found == expected
    assert "--id=GPU-1-2-3" in asked[0]
    assert "--query-gpu=driver_version,clocks.sm" in asked[0]


# Rows and targets


def _row(name: str, backend: str = "cuda", **changes: Any) -> GpuRow:
    case = next(task.case for task in plan(FULL) if task.case.name == name)
    row = GpuRow(
        name=name,
        operation=case.family.operation,
        direction=case.direction,
        shape=case.shape,
        dtype=dtype_name(case.dtype),
        allocator="caching",
        median_s=1e-3,
        spread=0.01,
        elements_per_s=case.elements / 1e-3,
        bytes=case.bytes,
        floor_fraction=0.5,
        device="Some Card",
        backend=backend,
        layout=case.family.layout,
        parameter_dtype=dtype_name(case.parameter_dtype),
    )
    return replace(row, **changes)


FORWARD = "large.modified_rq.forward"
HALF = "large.modified_rq.forward.bfloat16"


def _verdict(start: str, *measured: GpuRow, on_gpu: bool = True) -> targets.Judgement:
    judgements = targets.judge(measured, on_gpu)
    return next(each for each in judgements if each.verdict.target.startswith(start))


@pytest.mark.parametrize(("fraction", "met"), [(0.90, True), (0.899, False)])
def test_a_fraction_is_judged(fraction: float, met: bool) -> None:
    verdict = _verdict(f"{FORWARD}: >= 90% of a copy", _row(FORWARD, floor_fraction=fraction))
    assert verdict.met is met and verdict.value == fraction
    assert verdict.verdict.word == ("met" if met else "MISSED")


def test_the_faster_backend_is_judged() -> None:
    slow = _row(FORWARD, "cuda", floor_fraction=0.5, median_s=2e-3)
    fast = _row(FORWARD, "triton", floor_fraction=0.95, median_s=1e-3)
    verdict = _verdict(f"{FORWARD}: >= 90%", slow, fast)
    assert verdict.met is True and verdict.backend == "triton"
    assert fastest([slow, fast], FORWARD) is fast and fastest([], FORWARD) is None


@pytest.mark.parametrize(("ratio", "met"), [(3.0, True), (2.9, False)])
def test_a_ratio_is_judged(ratio: float, met: bool) -> None:
    measured = _row(FORWARD, ratio={"compiled-reference": ratio})
    assert _verdict(f"{FORWARD}: >= 3x compiled-reference", measured).met is met
    untimed = _verdict(f"{FORWARD}: >= 30x reference", measured)
    assert untimed.met is None and "not timed" in untimed.why


def test_nothing_is_judged_that_the_target_is_not_about() -> None:
    good = _row(FORWARD, floor_fraction=0.99)
    assert _verdict(FORWARD, replace(good, scale=QUICK)).met is None
    assert _verdict(FORWARD).why == "there is no such row."
    rehearsed = _verdict(FORWARD, good, on_gpu=False)
    assert rehearsed.met is None and rehearsed.value is None


@pytest.mark.parametrize(("fraction", "met"), [(0.80, True), (0.79, False)])
def test_bf16_may_be_ten_points_under_float32(fraction: float, met: bool) -> None:
    assert _verdict(HALF, _row(HALF, floor_fraction=fraction)).met is met


def test_every_target_is_planned() -> None:
    names = {task.name for task in plan(FULL)}
    for target in targets.TARGETS:
        assert target.case in names
        if target.measure != bars.COPY:
            assert f"{target.case} against {target.measure}" in names


def test_only_targets_of_the_filter_are_judged() -> None:
    judged = targets.judge([], True, "affine")
    assert judged and all(".affine." in each.target.case for each in judged)


def test_rows_survive_json(tmp_path: Path) -> None:
    row = _row(FORWARD, ratio={"eager": 31.0}, ratio_elements={"eager": 1 << 25}, graph_s=1e-6)
    rows.write_json(tmp_path / "gpu.json", {}, [row])
    (record,) = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert GpuRow.from_json(record) == row
    assert set(rows.KEYS) < set(asdict(row))
    assert [file.name for file in tmp_path.iterdir()] == ["gpu.json"]


def test_the_tables_show_the_share_of_the_copys_speed() -> None:
    line = _row(FORWARD, floor_fraction=0.91)
    header, shown = report.measured([line]).splitlines()
    assert "of copy" in header and "91%" in shown
    verdicts = report.targets([_verdict(FORWARD, line)])
    assert "91.0%" in verdicts and verdicts.endswith("met")


def _both(cuda_us: float, triton_us: float, spread: float) -> list[GpuRow]:
    return [
        _row(FORWARD, "cuda", median_s=cuda_us * 1e-6, spread=spread),
        _row(FORWARD, "triton", median_s=triton_us * 1e-6, spread=spread),
    ]


@pytest.mark.parametrize(
    ("cuda_us", "triton_us", "spread", "expected"),
    [
        (100.0, 104.0, 0.03, "cuda"),
        (104.0, 100.0, 0.03, "triton"),
        (100.0, 104.0, 0.05, None),  # noise decides
    ],
)
def test_the_clearly_faster_backend_is_named(
    cuda_us: float, triton_us: float, spread: float, expected: str | None
) -> None:
    measured = _both(cuda_us, triton_us, spread)
    assert clearly_faster(measured, FORWARD) == expected
    header, *shown = report.measured(measured).splitlines()
    assert "faster" in header
    for line in shown:
        assert line.rstrip().endswith(expected or "-")


def test_one_backend_alone_is_not_faster() -> None:
    assert clearly_faster([_row(FORWARD)], FORWARD) is None
