"""The suite's runner, its bars, the comparison of two runs, and `robustflow bench`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from robustflow import cli
from robustflow.benchmarks import allocator, bars, cases, compare, peers, report, suite
from robustflow.benchmarks.cases import Case
from robustflow.benchmarks.rows import Measured, Row, read_json, read_rows, write_json

MACHINE = {"cpu": "x", "cores": 2, "threads": 2, "platform": "Linux", "libc": "glibc"}


def _row(name: str = "tiny.rq8.train", **changes: Any) -> Row:
    case = cases.find(name)
    row = Row(
        name=name,
        operation=case.family.operation,
        direction=case.direction,
        shape=case.shape,
        dtype="float32",
        allocator="keeping",
        median_s=1e-3,
        spread=0.02,
        elements_per_s=case.elements / 1e-3,
        bytes=case.bytes,
        floor_fraction=0.5,
        ratio=dict.fromkeys(case.competitors, 10.0),
        ratio_spread=dict.fromkeys(case.competitors, 0.02),
    )
    return replace(row, **changes)


class Processes:
    """Stands in for `allocator.run`: remembers what was asked for and answers with rows."""

    def __init__(self, failing: str = "", faults: float = 0.0) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.threads: list[str | None] = []
        self.failing = failing
        self.faults = faults

    def __call__(self, policy: str, module: str, arguments: Sequence[str]) -> Any:
        self.asked.append((policy, list(arguments)))
        self.threads.append(os.environ.get("OMP_NUM_THREADS"))
        if arguments[0] == "faults":
            return self.faults
        if arguments[0] == "threads":
            return min(3, int(os.environ["OMP_NUM_THREADS"]))
        if arguments[0] == "memory":
            return 1 << 20
        name, competitors, under = arguments[1:4]
        if name == self.failing:
            raise RuntimeError(f"{name}: y against eager: only 3 % agree")
        ratio = {who: 10.0 for who in competitors.split(",") if who}
        spreads = dict.fromkeys(ratio, 0.02)
        row = _row(name, allocator=under, ratio=ratio, ratio_spread=spreads)
        return {"row": asdict(row), "left_out": {}}


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    fake = Processes()
    monkeypatch.setattr(allocator, "run", fake)
    monkeypatch.setattr(suite, "PROVIDERS", ())
    return fake


@pytest.fixture
def bench() -> Callable[..., int]:
    """`robustflow bench`."""
    pytest.importorskip("rich")
    return lambda *arguments: cli.main(["bench", *arguments])


def _names(*texts: str) -> list[Case]:
    return [cases.find(text) for text in texts]


# The list


def test_names_are_unique_and_say_place_transform_and_direction() -> None:
    names = [case.name for case in cases.ALL]
    assert len(set(names)) == len(names)
    for case in cases.ALL:
        _, _, verb = case.name.split(".")
        assert cases.DIRECTIONS[verb] == case.direction


def test_the_suite_has_every_way_of_every_place() -> None:
    for case in cases.SUITE:
        stem = case.name.rpartition(".")[0]
        for verb in cases.DIRECTIONS:
            assert cases.find(f"{stem}.{verb}") in cases.SUITE


def test_a_quick_run_has_the_quick_set_and_all_that_a_filter_names() -> None:
    assert cases.select("", quick=True) == cases.QUICK
    assert {case.name.split(".")[0] for case in cases.select("sr1", quick=True)} == {"sr1"}
    assert cases.select("sr1", quick=True) == cases.select("sr1")
    assert cases.select("") == list(cases.SUITE)


def test_competitors_are_chosen_in_the_order_of_the_case() -> None:
    case = cases.find("tiny.rq8.forward").against(["nflows", "eager", "zuko"])
    assert case.competitors == ("eager", "nflows")


# The runner


def test_each_case_runs_in_its_own_process_under_each_allocator(processes: Processes) -> None:
    chosen = _names("sr3.modified_rq.train", "tiny.rq8.train")
    said: list[str] = []
    kept: list[int] = []
    measured = suite.measure(chosen, suite.FULL, said.append, lambda m: kept.append(len(m.rows)))
    assert said == [case.name for case in chosen] and kept == [2, 4]
    assert [row.allocator for row in measured.rows] == ["keeping", "default"] * 2
    memory = [asked for policy, asked in processes.asked if policy == "returning"]
    assert memory == [
        ["memory", "sr3.modified_rq.train", who, "full"] for who in ("robustflow", "eager")
    ]
    assert [row.peak_bytes for row in measured.rows] == [1 << 20] * 2 + [None] * 2
    assert measured.eager_peaks == {"sr3.modified_rq.train": 1 << 20}
    timed = [asked for _, asked in processes.asked if asked[0] == "time"]
    assert timed[0] == ["time", chosen[0].name, "eager,compiled", "keeping", "3.0", "full"]
    assert not measured.left_out and not measured.failed


def test_a_quick_run_takes_small_shapes_and_no_peaks(processes: Processes) -> None:
    measured = suite.measure(_names("sr3.modified_rq.train"), suite.QUICK, lambda name: None)
    assert all(policy != "returning" for policy, _ in processes.asked)
    assert {asked[-1] for _, asked in processes.asked if asked[0] == "time"} == {"quick"}
    assert "peak memory" in measured.left_out


def test_a_wrong_result_has_no_row_and_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allocator, "run", Processes(failing="tiny.rq8.train"))
    chosen = _names("tiny.rq8.train", "tiny.rq8.forward")
    measured = suite.measure(chosen, suite.QUICK, lambda name: None)
    assert {row.name for row in measured.rows} == {"tiny.rq8.forward"}
    assert "only 3 % agree" in measured.failed["tiny.rq8.train"]
    assert any("FAILED: tiny.rq8.train" in remark for remark in report.remarks(measured))


def test_an_allocator_that_does_not_keep_its_memory_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allocator, "run", Processes(faults=0.9))
    measured = suite.measure(_names("tiny.rq8.train"), suite.QUICK, lambda name: None)
    assert [row.allocator for row in measured.rows] == ["default"]
    assert "90% fresh pages" in measured.left_out["keeping allocator"]


class Provider:
    """A module with rows of its own."""

    def names(self, quick: bool) -> Sequence[str]:
        return ["flow.train"] if quick else ["flow.train", "flow.sample"]

    def measure(self, filter: str, quick: bool, say: Callable[[str], None]) -> Measured:
        names = suite.provided(self, filter, quick)
        for name in names:
            say(name)
        return Measured([replace(_row(), name=name) for name in names])


def test_rows_of_other_modules_are_included(processes: Processes) -> None:
    def names(text: str, settings: suite.Settings) -> list[str]:
        said: list[str] = []
        chosen = cases.select(text) if text else []
        measured = suite.measure_all(
            chosen, [Provider()], text, settings, said.append, lambda measured: None
        )
        assert said == list(dict.fromkeys(row.name for row in measured.rows))
        return said

    assert names("", suite.FULL) == ["flow.train", "flow.sample"]
    assert names("", suite.QUICK) == ["flow.train"]
    assert names("flow.s", suite.QUICK) == ["flow.sample"]
    assert names("tiny.rq8.train", suite.FULL) == ["tiny.rq8.train"]


def test_the_named_providers_name_their_rows() -> None:
    for provider in suite.providers():
        every = list(provider.names(False))
        assert len(set(every)) == len(every) > 0
        assert set(provider.names(True)) <= set(every)
        assert not set(every) & {case.name for case in cases.ALL}


# Bars


def test_every_competitor_of_the_quick_set_has_a_bar() -> None:
    stated = {(bar.case, bar.measure) for bar in bars.QUICK_BARS}
    assert stated == {(case.name, who) for case in cases.QUICK for who in case.competitors}


@pytest.mark.parametrize(
    ("ratio", "spread", "strict", "within"),
    [(5.0, 0.0, True, True), (4.6, 0.05, False, False), (4.6, 0.1, False, True)],
)
def test_a_bar_is_missed_by_more_than_the_spread(
    ratio: float, spread: float, strict: bool, within: bool
) -> None:
    bar = bars.Bar("tiny.rq8.train", "nflows", 5.0)
    row = _row(ratio={"nflows": ratio}, ratio_spread={"nflows": spread})
    assert bar.met(row) is strict
    assert bar.met(row, within_spread=True) is within


def test_bars_are_judged_under_each_allocator_that_was_measured() -> None:
    bar = [bars.Bar("tiny.rq8.train", "nflows", 5.0)]
    good, bad = _row(), _row(allocator="default", ratio={"nflows": 1.0})
    without = _row(allocator="default", ratio={})

    def met(*rows: Row, judged: Sequence[str] = bars.ALLOCATORS) -> bool | None:
        (verdict,) = bars.judge(bar, rows, judged, within_spread=True)
        return verdict["met"]

    assert met(good, _row(allocator="default")) is True
    assert met(good, bad) is False
    assert met(good, bad, judged=["keeping"]) is True
    assert met(good, without) is None
    assert bars.judge(bar, [_row("tiny.rq8.forward")]) == []


def test_a_faster_competitor_is_named() -> None:
    rows = [_row(ratio={"eager": 2.0, "nflows": 0.5, "forward": 0.9})]
    assert report.slower_than_competitors(rows) == [
        "Slower: tiny.rq8.train (keeping) takes 2.00 times as long as nflows."
    ]


# Comparing


def _run(*rows: Row, **machine: Any) -> compare.Run:
    by_case = {f"{row.name}, {row.allocator}": row for row in rows}
    return compare.Run({**MACHINE, **machine}, by_case)


def _later(seconds: float, **changes: Any) -> Row:
    """The row in a second run whose competitors took as long as in the first."""
    row = _row()
    ratio = {name: ratio * row.median_s / seconds for name, ratio in row.ratio.items()}
    return _row(**{"median_s": seconds, "ratio": ratio, **changes})


@pytest.mark.parametrize(
    ("seconds", "spread", "verdict"),
    [
        (1.2e-3, 0.02, compare.SLOWER),
        (1.2e-3, 0.20, compare.SAME),  # within the noise of both
        (1.04e-3, 0.0, compare.SAME),  # within what any machine does
        (0.5e-3, 0.02, compare.FASTER),
    ],
)
def test_slower_is_slower_by_more_than_the_noise(
    seconds: float, spread: float, verdict: str
) -> None:
    result = compare.compare(_run(_row()), _run(_later(seconds, spread=spread)))
    (change,) = result.changes
    assert change.measure == "time" and not result.differs
    assert change.slowdown == pytest.approx(seconds / 1e-3)
    assert change.verdict == verdict
    assert bool(result.slower) is (verdict == compare.SLOWER)


def test_what_slows_the_competitors_too_is_the_machine() -> None:
    def verdict(after: Row) -> str:
        (change,) = compare.compare(_run(_row()), _run(after)).changes
        return change.verdict

    assert verdict(_row(median_s=1.5e-3)) == compare.SAME  # all ratios as before
    assert verdict(_row(median_s=0.5e-3)) == compare.SAME
    half = dict.fromkeys(_row().ratio, 5.0)
    assert verdict(_row(median_s=1.5e-3, ratio=half)) == compare.SLOWER
    assert verdict(_row(median_s=1.5e-3, ratio={})) == compare.SLOWER  # nothing tells otherwise


def test_between_machines_ratios_are_compared_and_not_times() -> None:
    after = _row(median_s=1.0, ratio={"eager": 10.0, "nflows": 5.0}, ratio_spread={})
    result = compare.compare(_run(_row()), _run(after, cpu="y"))
    assert result.differs == ["cpu: x and y"]
    verdicts = {change.measure: change.verdict for change in result.changes}
    assert verdicts == {"eager": compare.SAME, "nflows": compare.SLOWER}
    assert "cpu: x and y" in compare.report(result)


def test_threads_and_cards_are_part_of_the_machine() -> None:
    assert compare.compare(_run(_row()), _run(_row(), threads=1)).differs == ["threads: 2 and 1"]
    assert compare.compare(_run(_row()), _run(_row(), card={"name": "H"})).differs == [
        "card: None and H"
    ]


def test_rows_that_one_run_lacks_are_named() -> None:
    other = _row("tiny.rq8.forward")
    result = compare.compare(_run(_row(), other), _run(_row(), _row(allocator="default")))
    assert [change.case for change in result.changes] == ["tiny.rq8.train, keeping"]
    assert result.unmatched == {
        "tiny.rq8.forward, keeping": "only the first file has it",
        "tiny.rq8.train, default": "only the second file has it",
    }
    lone = compare.compare(_run(_row(ratio={})), _run(_row(), cpu="y"))
    assert "has none in both" in lone.unmatched["tiny.rq8.train, keeping"]


def _file(path: Path, *rows: Row, machine: dict[str, Any] = MACHINE) -> str:
    write_json(path, machine, rows)
    return str(path)


def test_bench_compare_exits_with_one_where_something_is_slower(
    bench: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _file(tmp_path / "a.json", _row())
    after = _file(tmp_path / "b.json", _later(2e-3))
    assert bench("--compare", before, before) == 0
    assert bench("--compare", after, before) == 0
    capsys.readouterr()
    assert bench("--compare", before, after) == 1
    output = capsys.readouterr().out
    assert "2.00x" in output and "1 slower by more than the noise" in output


def test_bench_compare_refuses_what_it_cannot_compare(
    bench: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = _file(tmp_path / "a.json", _row())
    other = _file(tmp_path / "b.json", _row(shape=(3, 8)))
    twice = _file(tmp_path / "twice.json", _row(), _row())
    for name, text in (("text", "no"), ("list", "[]"), ("rows", '{"machine": {}, "rows": [{}]}')):
        (tmp_path / name).write_text(text)
    for bad, words in (
        (other, "no case that can be compared"),
        (twice, "more than one row of tiny.rq8.train"),
        (str(tmp_path / "none"), "cannot be read"),
        (str(tmp_path / "text"), "is not JSON"),
        (str(tmp_path / "list"), "has no rows and machine"),
        (str(tmp_path / "rows"), "no row of a benchmark"),
    ):
        assert bench("--compare", good, bad) == 2
        assert words in capsys.readouterr().err


def test_keys_of_other_suites_tell_rows_apart(tmp_path: Path) -> None:
    """A GPU's file has two backends' rows of one case."""
    records = [{**asdict(_row()), "backend": backend} for backend in ("cuda", "triton")]
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"machine": MACHINE, "rows": records}))
    assert len(compare.read(path).rows) == 2
    assert read_rows(path) == [_row(), _row()]


# The command


def test_bench_measures_prints_and_keeps(
    bench: Callable[..., int],
    processes: Processes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    path = tmp_path / "new" / "bench.json"
    arguments = ["--quick", "--filter", "tiny.rq8", "--against", "eager", "--threads", "3"]
    assert bench(*arguments, "--json", str(path)) == 0
    record = json.loads(path.read_text())
    assert record["complete"] is True and record["quick"] is True and record["failed"] == {}
    assert record["machine"]["threads"] == 3 and set(processes.threads) == {"3"}
    assert "OMP_NUM_THREADS" not in os.environ
    assert record["against"] == ["eager"]
    rows = read_rows(path)
    assert len(rows) == 6 and all(set(row.ratio) == {"eager"} for row in rows)
    output = capsys.readouterr().out
    assert all(row.name in output for row in rows) and "3 threads" in output


def test_bench_fails_where_results_are_wrong(
    bench: Callable[..., int], processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.failing = "tiny.rq8.train"
    assert bench("--quick", "--filter", "tiny.rq8.train") == 1
    assert "FAILED: tiny.rq8.train" in capsys.readouterr().out


def test_bench_judges_bars(
    bench: Callable[..., int],
    processes: Processes,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("--quick", "--bars", "--filter", "tiny.rq8.train", "--against", "eager")
    assert bench(*arguments) == 0
    assert "met" in capsys.readouterr().out
    monkeypatch.setattr(bars, "QUICK_BARS", (bars.Bar("tiny.rq8.train", "eager", 11.0),))
    assert bench(*arguments) == 1
    assert "MISSED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--filter", "nothing"], "workloads sr1, sr2, sr3, low-light"),
        (["--against", "eager,pyro"], "knows eager, compiled, nflows, zuko, normflows, got pyro"),
        (["--bars"], "add --quick"),
        (["--quick", "--bars", "--filter", "sr1"], "no bar is stated"),
    ],
)
def test_bench_refuses_what_there_is_not(
    bench: Callable[..., int],
    processes: Processes,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    assert bench(*arguments) == 2
    assert words in capsys.readouterr().err
    assert not processes.asked


def test_bench_refuses_a_competitor_that_is_not_installed(
    bench: Callable[..., int],
    processes: Processes,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "zuko", None)
    assert bench("--against", "eager,zuko") == 2
    assert f"pip install zuko=={peers.VERSIONS['zuko']}" in capsys.readouterr().err
    assert not processes.asked


def test_bench_refuses_threads_that_there_are_not(
    bench: Callable[..., int], processes: Processes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--quick", "--threads", "4") == 2
    assert "PyTorch uses 3 threads here where 4 are asked for" in capsys.readouterr().err
    assert [asked for _, asked in processes.asked] == [["threads"]]


@pytest.mark.parametrize("threads", ["0", "two"])
def test_bench_refuses_a_wrong_number_of_threads(
    threads: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", "--threads", threads])
    assert exit_.value.code == 2
    assert "--threads" in capsys.readouterr().err


@pytest.mark.slow
def test_bench_measures_a_tiny_case_for_real(tmp_path: Path) -> None:
    """The processes, their arguments and answers; the package as the command finds it."""
    pytest.importorskip("rich")
    path = tmp_path / "bench.json"
    arguments = ["bench", "--quick", "--filter", "tiny.affine.forward", "--against", "eager"]
    assert cli.main([*arguments, "--json", str(path)]) == 0
    for row in read_rows(path):
        assert row.shape == (64, 8) and row.median_s > 0
        assert set(row.ratio) == set(row.ratio_spread) == {"eager"}


def test_a_record_that_cannot_be_written_is_kept_elsewhere_once_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "results.json"
    folder.mkdir()
    assert write_json(folder, {}, [], complete=False) is False
    assert "could not be written yet: it is a folder" in capsys.readouterr().err
    assert write_json(folder, {}, [], complete=True) is False
    (kept,) = tmp_path.glob("robustflow-*/results.json")
    assert read_json(kept)["complete"] is True
    assert str(kept) in capsys.readouterr().err


def test_a_path_that_cannot_be_written_costs_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "robustflow.benchmarks.suite.measure_all", lambda *_: pytest.fail("it measured")
    )
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", "--quick", "--json", str(tmp_path)])
    assert exit_.value.code == 2
    assert f"argument --json: {tmp_path} cannot be written" in capsys.readouterr().err
