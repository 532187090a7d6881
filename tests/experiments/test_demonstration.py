"""The demonstration's parts, and a tiny run of all of it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import robustflow
from robustflow import nn as rnn
from robustflow.cli import main
from robustflow.experiments import demonstration, photographs, report, throughput
from robustflow.experiments.comparison import PICTURES, ModelResult, train_and_sample
from robustflow.experiments.data.builtin import Picture
from robustflow.experiments.faults import Faults, count_faults
from robustflow.experiments.photographs import crop, load
from robustflow.experiments.super_resolution import (
    QUICK_SETTINGS,
    CropSampler,
    Settings,
    bits_per_dimension,
    degrade,
    super_resolve,
)
from robustflow.experiments.throughput import Timing
from robustflow.experiments.workers import run_in_processes

TINY = replace(QUICK_SETTINGS, steps=1, iterations=2, batch_size=2, sample_size=32)


@pytest.mark.parametrize("picture", [*photographs.TRAINING, *PICTURES], ids=lambda p: p.title)
def test_every_picture_is_shipped_and_large_enough(picture: Picture) -> None:
    image = load(picture)
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    assert crop(image, picture.corner, Settings().sample_size).float().std() > 1


def test_a_missing_picture_names_the_package_to_install() -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.png.*scikit-image"):
        load(Picture("absent", "skimage/data/absent.png"))


def test_held_out_and_unfamiliar_pictures_are_not_trained_on() -> None:
    training = {picture.path for picture in photographs.TRAINING}
    unseen = {p.path for p in (photographs.HELD_OUT, *photographs.OUT_OF_DISTRIBUTION)}
    assert not training & unseen and photographs.CONTROL.path in training


def test_faults_are_counted_by_the_published_rule() -> None:
    nan, inf = math.nan, math.inf
    samples = torch.tensor(
        [[1.5, -0.5, 0.0, 1.0], [1.51, 0, 0, 0], [-0.51, 2, 0, 0], [nan, 0, 0, 0], [0, -inf, 0, 0]]
    ).view(5, 1, 2, 2)
    assert count_faults(samples) == Faults(samples=5, faulty=4, pixels=5 / 20, largest=inf)
    assert count_faults(samples[:1]) == Faults(samples=1, faulty=0, pixels=0.0, largest=1.5)


def test_degrading_keeps_what_low_resolution_can_hold() -> None:
    flat = torch.full((3, 18, 21), 100, dtype=torch.uint8)
    pair = degrade(flat)
    assert pair.high.shape == (3, 16, 20) and pair.low.shape == (3, 4, 5)
    torch.testing.assert_close(pair.low, torch.full((3, 4, 5), 100 / 255))
    torch.testing.assert_close(pair.upsampled, pair.high)


def test_crops_are_aligned_at_both_resolutions() -> None:
    # A slope of one 8-bit step a column: bicubic resampling keeps it, away from the borders.
    ramp = torch.arange(200, dtype=torch.uint8).expand(3, 120, 200)
    residual, low = CropSampler([degrade(ramp)], replace(TINY, batch_size=8), seed=0)()
    assert residual.shape == (8, 3, 32, 32) and low.shape == (8, 3, 8, 8)
    assert residual.abs().median() < 1 / 255  # the noise of half a step, and rounding


def test_bits_per_dimension_of_a_known_density() -> None:
    identity = rnn.ModifiedRQSplineInjector(48, 3)
    standard_normal = rnn.ConditionalFlow([[rnn.Squeeze(4), identity]])
    residual = torch.randn(2, 3, 8, 8)
    bits = bits_per_dimension(standard_normal, residual, torch.zeros(2, 3, 2, 2))
    nats = 0.5 * residual.square().mean() + 0.5 * math.log(2 * math.pi)
    # One 8-bit step is 1/255: the probability of a step is the density over 255.
    torch.testing.assert_close(bits, (nats + math.log(255)) / math.log(2))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    ("eager", "transform"),
    [
        (throughput.eager_modified_rq, rnn.ModifiedRQSpline()),
        (throughput.eager_affine, rnn.Affine()),
    ],
)
def test_the_eager_formulas_that_are_timed_are_the_same_transforms(
    eager: throughput.Transform, transform: rnn.ElementwiseTransform, inverse: bool
) -> None:
    x = 2 * torch.randn(4, 3, 8, 8, dtype=torch.float64)
    params = torch.randn(1, 3 * transform.num_params, 8, 8, dtype=torch.float64)
    expected = transform(x, params, inverse=inverse)
    torch.testing.assert_close(eager(x, params, inverse=inverse), expected, atol=1e-9, rtol=1e-9)


def test_a_seed_decides_everything() -> None:
    first, second = (train_and_sample("modified RQ", TINY, lambda *_: None) for _ in range(2))
    other = train_and_sample("modified RQ", replace(TINY, seed=1), lambda *_: None)
    assert first.faults == second.faults and first.bits_held_out == second.bits_held_out
    for picture in PICTURES:
        assert torch.equal(first.worst[picture.title], second.worst[picture.title])
    assert first.bits_training != other.bits_training


def test_recorded_tensors_are_what_the_transforms_were_given() -> None:
    result = train_and_sample("affine", TINY, lambda *_: None)
    x, params = result.inputs.training
    assert x.shape == (2, 48, 8, 8) and params.shape == (2, 96, 8, 8)
    x, params = result.inputs.sampling
    assert x.shape == (5, 48, 8, 8) and params.shape == (1, 96, 8, 8)


def test_samples_scatter_around_the_upsampled_picture() -> None:
    torch.manual_seed(0)
    pair = degrade(load(photographs.CONTROL)[:, :64, :64])
    norm = rnn.ActNorm(48)
    torch.nn.init.constant_(norm.log_scale, math.log(10))  # deviation 0.1
    identity = rnn.ModifiedRQSplineInjector(48, 3)
    flow = rnn.ConditionalFlow([[rnn.Squeeze(4), identity, norm]])
    samples = super_resolve(flow, pair, 5, temperature=0.5, seed=3)
    assert samples.shape == (5, 3, 64, 64)
    deviation = (samples - pair.upsampled).std()
    torch.testing.assert_close(deviation, torch.tensor(0.05), atol=1e-3, rtol=0)
    assert torch.equal(samples, super_resolve(flow, pair, 5, temperature=0.5, seed=3))


def double(number: int, report_progress: throughput.Transform) -> dict[str, torch.Tensor]:
    """A job for worker processes: negative numbers fail."""
    if number < 0:
        raise ArithmeticError(f"{number} is negative")
    report_progress(number, "half way")
    return {"twice": torch.tensor(2 * number), "threads": torch.tensor(torch.get_num_threads())}


def test_jobs_run_in_processes_of_one_thread_and_report() -> None:
    heard: list[tuple[str, int, str]] = []
    results = run_in_processes(
        double, {"one": (1,), "two": (2,)}, lambda *message: heard.append(message)
    )
    assert {name: int(result["twice"]) for name, result in results.items()} == {"one": 2, "two": 4}
    assert [int(result["threads"]) for result in results.values()] == [1, 1]
    assert sorted(heard) == [("one", 1, "half way"), ("two", 2, "half way")]


def test_a_failing_job_says_which_and_why() -> None:
    with pytest.raises(RuntimeError, match=r"'bad' failed[\s\S]*ArithmeticError: -1 is negative"):
        run_in_processes(double, {"bad": (-1,)}, lambda *_: None)


KILLED = """
import os, pathlib, sys, time
from robustflow import cli
from robustflow.experiments.workers import run_in_processes

def job(folder, report):
    pathlib.Path(folder, f"{os.getpid()}.pid").touch()
    time.sleep(600)

def run(args):
    from robustflow._files import write_atomically
    write_atomically(pathlib.Path("first.json"), "{}")
    run_in_processes(job, {name: (sys.argv[1],) for name in "a"}, print)

if __name__ == "__main__":
    import signal, types
    # A shell starts what it runs in the background with interrupts ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = types.ModuleType("robustflow.cli.paint")
    command.add_parser = lambda subparsers: subparsers.add_parser("paint")
    command.run = run
    sys.modules["robustflow.cli.paint"] = command
    cli.commands = lambda: ["paint"]
    sys.exit(cli.main(["paint"]))
"""


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_workers_end_with_a_stopped_command(
    tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    """Even with one that is killed; and one line says what it had written."""
    (tmp_path / "script.py").write_text(KILLED)
    (tmp_path / "pids").mkdir()
    process = subprocess.Popen(
        [sys.executable, "script.py", "pids"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(robustflow.__file__).parents[1])},
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: len(list(tmp_path.glob("pids/*.pid"))) == 1)
    (worker,) = (int(file.stem) for file in tmp_path.glob("pids/*.pid"))
    process.send_signal(sent)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code
    until(lambda: not is_running(worker))
    said = "robustflow paint: stopped; kept: first.json.\n"
    assert told == said or sent == signal.SIGKILL


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")  # Linux: one that ended and that nobody waited for
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_an_exploded_model_is_drawn_and_written_as_json() -> None:
    result = train_and_sample("affine", TINY, lambda *_: None)
    title = PICTURES[0].title
    result.worst[title][:, 0, 0] = math.inf
    result.worst[title][:, 1, 1] = math.nan
    result.faults[title][0.9] = Faults(5, 3, 0.25, math.inf)
    results: dict[str, ModelResult] = {"affine": result}
    timings = [Timing("affine", "training", 8, 1.0, 2.0, None)]
    assert report.draw(results, TINY).startswith(b"\x89PNG")
    content = json.loads(report.to_json(results, timings, TINY, {}, 1.0))
    rows = content["couplings"]["affine"]["pictures"]
    assert content["couplings"]["affine"]["total"]["faulty"] == 3
    assert len(rows) == len(PICTURES) * 3 and not content["meaningful"]
    assert rows[1] == {
        "picture": title,
        "kind": "training",
        "temperature": 0.9,
        "samples": 5,
        "faulty": 3,
        "pixels": 0.25,
        "largest": "inf",
    }


def test_an_output_that_cannot_be_written_costs_no_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out"
    file.touch()
    monkeypatch.setattr(demonstration, "_train_all", lambda *_: pytest.fail("it trained"))
    assert main(["demo", "--quick", "--output", str(file)]) == 2
    told = capsys.readouterr()
    assert f"robustflow demo: error: {file / 'demo.png'} cannot be written" in told.err
    assert told.out == ""


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_what_the_models_did_is_kept_where_the_timing_ends_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    result = train_and_sample("affine", TINY, lambda *_: None)

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(demonstration, "_train_all", lambda *_: {"affine": result})
    monkeypatch.setattr(demonstration, "time_transforms", fail)
    with pytest.raises(fault):
        demonstration.run_demonstration(TINY, tmp_path / "out", Console(quiet=True))
    content = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert list(content["couplings"]) == ["affine"] and content["throughput"] == []
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"demo.json", "demo.png"}


@pytest.mark.slow
def test_the_command_writes_its_files_and_prints_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Compiling takes longer than all the rest.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    folder = tmp_path / "out"
    assert main(["demo", "--quick", "--iterations", "3", "--output", str(folder)]) == 0
    assert sorted(file.name for file in folder.iterdir()) == ["demo.json", "demo.png"]
    content = json.loads((folder / "demo.json").read_text())
    assert list(content["couplings"]) == ["affine", "reparametrised affine", "modified RQ"]
    assert content["settings"]["iterations"] == 3 and len(content["throughput"]) == 4
    printed = capsys.readouterr().out
    assert "the numbers mean nothing" in printed
    for picture in PICTURES:
        assert picture.title in printed
    lines = [line.rstrip() for line in printed.splitlines() if str(folder) not in line]
    assert max(map(len, lines)) <= 80
