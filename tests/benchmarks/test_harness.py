"""The harness measures what it says: statistics, bytes, competitors, rows, peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import robustflow
from benchmarks import accuracy, foundation, subjects
from robustflow.benchmarks import allocator, bars, calls, cases, eager, peers, rows, timing
from robustflow.benchmarks.cases import Case
from robustflow.benchmarks.rows import Measured

ROOT = Path(__file__).resolve().parents[2]

on_linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc"
)


class Clock:
    """Time that passes only when a function says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def function(self, name: str, durations: list[float]) -> Callable[[], None]:
        """A function that takes each of ``durations`` in turn, over and over."""
        count = 0

        def call() -> None:
            nonlocal count
            self.calls.append(name)
            self.now += durations[count % len(durations)]
            count += 1

        return call


def test_alternation_takes_turns_and_reports_medians() -> None:
    clock = Clock()
    functions = {"a": clock.function("a", [1.0, 1.0, 4.0]), "b": clock.function("b", [3.0])}
    times = timing.alternate(functions, seconds=1.0, min_rounds=6, warmup=2, clock=clock)
    assert times["a"].median == 1.0 and times["b"].median == 3.0
    assert sorted(times["a"].samples) == [1.0, 1.0, 1.0, 1.0, 4.0, 4.0]
    assert times["b"].spread == 0.0 and times["a"].spread > 0
    assert clock.calls[-12:] == ["a", "b"] * 6


def test_fast_functions_are_timed_in_a_loop() -> None:
    clock = Clock()
    times = timing.alternate(
        {"fast": clock.function("fast", [1e-5])}, seconds=0.0, min_sample=1e-3, clock=clock
    )
    assert times["fast"].calls_per_sample == 128
    assert times["fast"].median == pytest.approx(1e-5)


def test_a_sampler_stands_in_for_the_clock() -> None:
    counts: list[int] = []

    def sampler(function: Callable[[], None], calls: int) -> float:
        counts.append(calls)
        return 3.0 / calls

    times = timing.alternate(
        {"a": lambda: None}, seconds=0.0, min_rounds=4, min_sample=0.0, sampler=sampler
    )
    assert times["a"].samples == (3.0,) * 4
    assert counts == [1] * 5


def test_time_is_kept_to() -> None:
    clock = Clock()
    times = timing.alternate(
        {"a": clock.function("a", [1.0])}, seconds=20.0, min_rounds=2, clock=clock
    )
    assert len(times["a"].samples) == 20


def test_spread_is_the_interquartile_range_over_the_median() -> None:
    assert timing.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert timing.spread([7.0]) == 0.0


def test_nothing_to_time_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one function"):
        timing.alternate({})
    with pytest.raises(ValueError, match="min_rounds"):
        timing.alternate({"a": lambda: None}, min_rounds=5, max_rounds=4)


def test_copy_moves_the_bytes_it_is_asked_for() -> None:
    target = timing.copy_of(800)()
    assert isinstance(target, torch.Tensor)
    assert target.numel() * target.element_size() * 2 == 800
    assert bool((target == 1).all())


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("subject", subjects.SUBJECTS, ids=lambda subject: subject.name)
def test_eager_is_the_reference_in_float64(subject: subjects.Subject, inverse: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, params = subjects.ordinary(subject, 500, inverse, generator)
    x, params = x.double(), subjects.double(params)
    cotangents = (torch.randn(500).double(), torch.randn(500).double())
    expected = accuracy.evaluate(subject.oracle, x, params, inverse, cotangents)
    found = accuracy.evaluate(subject.eager, x, params, inverse, cotangents)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_eager_circular_tails_are_the_reference_in_float64() -> None:
    torch.manual_seed(0)
    x = 4 * torch.randn(200).double()
    widths, heights, derivatives = torch.randn(3, 200, 8).double()
    with robustflow.use_backend("reference"):
        expected = robustflow.functional.rq_spline(
            x, widths, heights, derivatives, tails="circular", tail_bound=3.0
        )
    found = eager.rq_spline(x, widths, heights, derivatives, tails="circular", tail_bound=3.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_eager_sums_the_log_determinant_of_a_sample() -> None:
    x, params = torch.randn(3, 2, 5), torch.randn(3, 8, 5)
    _, summed = eager.modified_rq_spline(x, params)
    _, each = eager.modified_rq_spline(x, params, reduce="none")
    assert summed.shape == (3,)
    torch.testing.assert_close(summed, each.sum((1, 2)))


@pytest.mark.parametrize("subject", subjects.SUBJECTS[:3], ids=lambda subject: subject.name)
def test_knots_that_do_not_move_change_nothing(subject: subjects.Subject) -> None:
    """So that what a moved knot does is the move's doing."""
    x, params = subjects.adversarial(subject, 500, False, torch.Generator().manual_seed(0))
    x, params = x.double(), subjects.double(params)
    torch.testing.assert_close(
        subject.moved(x, params, False), subject.oracle(x, params, False), rtol=1e-6, atol=1e-6
    )
    moved, _ = subject.moved(x, params, False, x_knot=(1, 1e-4))
    assert not torch.equal(moved, subject.oracle(x, params, False)[0])


def test_accuracy_convicts_a_wrong_transform() -> None:
    honest = subjects.modified_rq(0.5, "exp")

    def wrong(
        x: torch.Tensor, params: subjects.Parameters, inverse: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        y, logabsdet = honest.fused(x, params, inverse)
        # The oracle is this function under the reference backend, and stays honest.
        return (y if robustflow.current_backend() == "reference" else y + 1e-4), logabsdet

    lines = accuracy.compare(replace(honest, fused=wrong), "ordinary", False, 500)
    verdicts = {line.quantity: line.passes for line in lines}
    assert verdicts["y"] is False
    assert verdicts["grad shift"] is True


def test_ulp_and_quantile() -> None:
    values = torch.tensor([0.1, 0.5, -0.75, 1.0, 3.0])
    expected = torch.tensor([2.0**-24, 2.0**-24, 2.0**-24, 2.0**-23, 2.0**-22]).double()
    assert torch.equal(accuracy.ulp(values, 0.5), expected)
    assert accuracy.quantile(torch.arange(10.0), 0.5) == 4.0


@pytest.mark.parametrize(
    ("name", "an_element"),
    [
        ("large.modified_rq.forward", 24),
        ("sr3.modified_rq.train", 68),
        ("large.rq8.forward", 104),
        ("tiny.rq8.train", 304),
        ("lattice.rq8-circular.forward", 108),
        ("low-light.affine.inverse", 16),
        ("nsf-1e4.affine-softclip.train", 44),
    ],
)
def test_bytes_are_those_of_the_contract(name: str, an_element: int) -> None:
    case = cases.find(name)
    summed = case.family.operation != "rq_spline"
    times_moved = 2 if case.trains else 1
    samples = 4 * case.shape[0] * times_moved if summed else 0
    assert case.bytes == an_element * case.elements + samples


@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.name)
def test_competitors_agree_with_ours(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case in its tiny form; what is compiled in a benchmark runs as it is here."""
    monkeypatch.setattr(peers, "compiled", lambda function, **options: function)
    prepared = calls.prepare(case.tiny())
    if prepared.left_out:
        pytest.skip("; ".join(prepared.left_out.values()))
    assert tuple(prepared.competitors) == case.competitors
    calls.check_agreement(prepared)
    outputs = prepared.ours()
    assert isinstance(outputs, tuple)
    gradients = 1 + len(case.parameter_shapes) if case.trains else 0
    assert len(outputs) == 2 + gradients


def test_a_disagreement_is_found() -> None:
    prepared = calls.prepare(cases.find("sr3.modified_rq.forward").tiny().against(["eager"]))
    honest = prepared.competitors["eager"]()
    assert isinstance(honest, tuple)
    y, logabsdet = honest

    def wrong() -> tuple[torch.Tensor, ...]:
        return y, logabsdet + 0.1

    with pytest.raises(AssertionError, match="logabsdet against eager"):
        calls.check_agreement(replace(prepared, competitors={"eager": wrong}))


def test_a_missing_peer_is_left_out_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nflows", None)
    prepared = calls.prepare(cases.find("tiny.rq8.forward").tiny().against(["eager", "nflows"]))
    assert list(prepared.competitors) == ["eager"]
    assert "pip install nflows==" in prepared.left_out["nflows"]


KEYS = {
    "name",
    "operation",
    "direction",
    "shape",
    "dtype",
    "allocator",
    "median_s",
    "spread",
    "elements_per_s",
    "bytes",
    "floor_fraction",
    "peak_bytes",
    "ratio",
    "ratio_spread",
}


def _row(name: str, allocator: str = "keeping", **changes: object) -> rows.Row:
    case = cases.find(name)
    row = rows.Row(
        name=name,
        operation=case.family.operation,
        direction=case.direction,
        shape=case.shape,
        dtype="float32",
        allocator=allocator,
        median_s=0.5,
        spread=0.01,
        elements_per_s=case.elements / 0.5,
        bytes=case.bytes,
        floor_fraction=0.7,
        ratio={"eager": 41.0, "compiled": 2.0},
    )
    return replace(row, **changes)  # type: ignore[arg-type]


def test_rows_have_the_stable_keys_and_survive_json(tmp_path: Path) -> None:
    row = _row("large.modified_rq.forward")
    assert set(asdict(row)) == KEYS == set(rows.KEYS)
    rows.write_json(tmp_path / "results.json", {"cpu": "x"}, [row])
    assert rows.read_rows(tmp_path / "results.json") == [row]
    assert json.loads((tmp_path / "results.json").read_text())["machine"] == {"cpu": "x"}


def test_targets_are_judged_on_the_keeping_allocator() -> None:
    measured = [
        _row("large.modified_rq.forward"),
        _row("large.modified_rq.forward", "default", ratio={"eager": 10.0, "compiled": 9.0}),
    ]
    verdicts = {verdict["target"]: verdict for verdict in foundation.judge(Measured(measured))}
    assert len(verdicts) == 3
    assert verdicts[">= 40x eager"]["met"] is True
    assert verdicts[">= 40x eager"]["default"] == 10.0
    assert verdicts[">= 3x compiled"]["met"] is False
    assert verdicts[">= 65% of a copy"]["keeping"] == 0.7


def test_every_target_and_bar_has_its_case_and_competitor() -> None:
    for target in (*foundation.TARGETS, *bars.QUICK_BARS):
        case = cases.find(target.case)
        assert target.measure in (*case.competitors, "copy", "memory")


def test_memory_target_counts_cotangents_above_the_line_only() -> None:
    traffic = cases.find("large.modified_rq.train").traffic
    row = _row("large.modified_rq.train", peak_bytes=traffic.inputs + traffic.outputs)
    # x, params and their gradients 5 + 5, y 1, cotangent of y 1: 12 alive, 11 below the line.
    assert bars.memory_ratio(row) == pytest.approx(12 / 11, rel=1e-4)


TEMPORARY = """
import torch
from robustflow.benchmarks import memory

def function():
    temporary = torch.ones(64 << 18)  # 64 MiB
    return temporary[:1].clone()

function()
print(memory.peak_bytes(function))
"""


@on_linux
def test_peak_memory_sees_a_temporary() -> None:
    # In a fresh process: one that has run for long may have such a block at hand, touched already.
    peak = subprocess.run(
        [sys.executable, "-c", TEMPORARY],
        env=allocator.environment("returning"),
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert int(peak) == pytest.approx(64 << 20, rel=0.1)


def test_allocator_policies_are_set_and_unknown_ones_refused() -> None:
    assert not any(key.startswith("MALLOC_") for key in allocator.environment("default"))
    with pytest.raises(ValueError, match="policy must be one of"):
        allocator.environment("forgetful")


@pytest.mark.slow
@on_linux
def test_a_case_runs_in_a_process_of_its_own() -> None:
    faults = allocator.run("default", "robustflow.benchmarks.worker", ["faults"])
    assert 0.0 <= faults < 1.1
    with pytest.raises(RuntimeError, match="No case 'nothing'"):
        allocator.run(
            "default", "robustflow.benchmarks.worker", ["memory", "nothing", "robustflow", "full"]
        )
