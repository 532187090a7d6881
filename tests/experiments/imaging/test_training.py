"""Training: the configuration, exact resumption, what is kept and what is said."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from robustflow import nn as rnn
from robustflow.cli import main
from robustflow.experiments.data.reading import read_picture
from robustflow.experiments.imaging import checkpoints
from robustflow.experiments.imaging.checkpoints import CheckpointError, State
from robustflow.experiments.imaging.config import (
    Config,
    ConfigError,
    from_toml,
    override,
    preset,
    to_toml,
)
from robustflow.experiments.imaging.couplings import COUPLINGS
from robustflow.experiments.imaging.loading import load_flow
from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.experiments.imaging.preview import Preview, preview
from robustflow.experiments.imaging.progress import TensorBoard
from robustflow.experiments.imaging.robustness import observations
from robustflow.experiments.imaging.tiles import receptive_field, sample_in_tiles
from robustflow.experiments.imaging.training import Listener, Trainer, TrainingStopped, Update

PRESETS = [
    ("sr", "tiny"),
    ("sr", "small"),
    ("sr", "paper"),
    ("sr", "paper-8x"),
    ("lowlight", "tiny"),
    ("lowlight", "paper"),
    ("deblur", "tiny"),
    ("inpaint", "small"),
]
SMALL = {
    "model.steps": 1,
    "model.hidden_channels": 8,
    "encoder.channels": 8,
    "encoder.blocks": 1,
    "training.iterations": 12,
    "training.batch_size": 2,
    "training.threads": 1,
    "output.checkpoint_every": 4,
    "output.validate_every": 6,
    "output.validation_batches": 1,
}


def small(changes: Mapping[str, object] | None = None) -> Config:
    config = preset("sr", "tiny")
    for key, value in {**SMALL, **(changes or {})}.items():
        config = override(config, key, value)
    return config


@pytest.mark.parametrize(("task", "name"), PRESETS)
def test_a_configuration_survives_being_written(task: str, name: str) -> None:
    config = preset(task, name).check()
    assert from_toml(to_toml(config)) == config


def test_the_paper_presets_are_the_published_sizes() -> None:
    four, eight, light = (
        preset(*each).model for each in [("sr", "paper"), ("sr", "paper-8x"), ("lowlight", "paper")]
    )
    assert (four.levels, four.steps, four.split_levels) == (3, 16, (1,))
    assert (eight.levels, eight.steps) == (4, 20)
    assert (light.levels, light.steps, light.split_levels) == (3, 12, ())


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("training.iterations", "ten", "[training] iterations must be a whole number, got 'ten'"),
        ("training.learning_rat", 1, "Did you mean 'learning_rate'?"),
        ("trainin.seed", 1, "Did you mean 'training'?"),
        ("model.split_levels", "[2]", "[model] split_levels must lie in 1 to 1"),
        ("training.ema", 2, "[training] ema must lie in [0, 1)"),
        ("data.crop", 30, "[data] crop must be a multiple of 4"),
        ("model.coupling", "afine", "[model] coupling must be one of"),
        ("model.coupling_options", "{interva = 3}", "interva"),
        ("task.scal", 2, "[task] The task 'sr' has no option 'scal'"),
        ("encoder.name", "none.pth", "There is no file none.pth"),
        ("training.activations", "none", "[training] activations must be one of"),
        ("model.coupling_options", "{interval = [1, 0]}", "[model] coupling_options: "),
        ("model.head_kernel_size", 2, "[model] head_kernel_size must be odd, got 2"),
        ("training.learning_rate", "inf", "[training] learning_rate must be above 0 and finite"),
        ("training.milestones", "[90000]", "[training] milestones are parts of the iterations"),
        ("training.seed", -1, "[training] seed must be at least 0"),
        ("encoder.cache_gib", -1, "[encoder] cache_gib must be at least 0"),
        ("task.scale", "four", "[task] scale must be a whole number, got 'four'"),
    ],
)
def test_a_bad_option_is_named(key: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        ImagingFlow(override(preset("sr", "tiny"), key, value))


class Recorder(Listener):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.bits: dict[int, float] = {}
        self.notes: list[str] = []

    def updated(self, update: Update, state: State) -> None:
        self.bits[update.step] = update.bits

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)


def losses(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return checkpoints.read_model(path)[0]


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """kill -9 at moments all over the training; losses and weights as if nothing had happened."""
    settings = [f"{key}={value}" for key, value in (SMALL | {"training.iterations": 40}).items()]
    arguments = ["train", "sr", *(word for each in settings for word in ("--set", each))]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "robustflow.cli", *arguments, "--out", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for lines in (6, 17, 29):
        resume = ["--resume"] if checkpoints.complete(folder / "checkpoints") else []
        process = subprocess.Popen([*command, *resume], env=environment, stderr=subprocess.DEVNULL)
        log = folder / "log.jsonl"
        deadline = time.monotonic() + 120
        while not (log.exists() and len(log.read_text().splitlines()) >= lines):
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main([*arguments, "--out", str(folder), "--resume"]) == 0
    assert losses(folder) == losses(tmp_path / "whole")
    assert len(losses(folder)) == 40
    last = "checkpoints/step-00000040"
    ours, theirs = weights(folder / last), weights(tmp_path / "whole" / last)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert not [path for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]


def test_checkpoints_that_are_kept_and_what_is_in_them(tmp_path: Path) -> None:
    config = small({"output.keep": 2})
    trainer = Trainer(config, tmp_path)
    trainer.run()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best", "step-00000008", "step-00000012"]
    loaded = load_flow(tmp_path)
    assert loaded.config == config
    x, y = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 8, 8)
    for step in ("best", "step-00000012"):
        flow = load_flow(tmp_path / "checkpoints" / step).flow
        if load_flow(tmp_path / "checkpoints" / step).step == 12:
            torch.testing.assert_close(flow.log_prob(x, y), trainer.sampler_flow.log_prob(x, y))
    with pytest.raises(TrainingStopped, match="already holds a training"):
        Trainer(config, tmp_path)
    file = tmp_path / "checkpoints" / "step-00000012" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_flow(file)


def test_a_loss_that_is_not_finite_is_skipped_and_kept(tmp_path: Path) -> None:
    config = small({"training.skip_limit": 3, "output.tensorboard": "false"})
    recorder = Recorder()
    trainer = Trainer(config, tmp_path, listener=recorder)
    before = {name: each.clone() for name, each in trainer.flow.state_dict().items()}
    log_prob = trainer.flow.log_prob
    trainer.flow.log_prob = lambda *args, **kwargs: log_prob(*args, **kwargs) * math.nan  # type: ignore[method-assign]
    with pytest.raises(TrainingStopped, match="3 losses or gradients in a row"):
        trainer.run()
    assert len(list((tmp_path / "bad-batches").iterdir())) == 3
    assert trainer.state.skipped == 3
    trained = [name for name, _ in trainer.flow.named_parameters() if "conditioner" in name]
    assert all(torch.equal(before[name], trainer.flow.state_dict()[name]) for name in trained)


def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    """The second is told; after the first was killed, with its loading workers, it goes on."""
    config = small({"training.iterations": 100_000, "data.workers": 1})
    kept = tmp_path / "my.toml"
    kept.write_text(to_toml(config))
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "robustflow.cli", "train", "sr", "--config", str(kept)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [*command, "--out", str(folder)], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not checkpoints.complete(folder / "checkpoints"):
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sentence = f"is in use by another training: process {process.pid} on"
    with pytest.raises(TrainingStopped, match=sentence):
        Trainer(config, folder, resume=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = checkpoints.read_state(checkpoints.complete(folder / "checkpoints")[-1]).step
    shorter = override(config, "training.iterations", done + 1)
    assert Trainer(shorter, folder, resume=True).run().step == done + 1


def test_a_training_that_cannot_begin_leaves_its_folder_free(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no folder"):
        Trainer(small({"data.train": str(tmp_path / "none")}), tmp_path / "out")
    assert Trainer(small(), tmp_path / "out").state.step == 0


def test_the_average_shares_a_frozen_encoder(tmp_path: Path) -> None:
    config = small({"encoder.frozen": True, "training.iterations": 4})
    trainer = Trainer(config, tmp_path)
    before = [weight.clone() for weight in trainer.flow.encoder.parameters()]
    trainer.run()
    assert trainer.average is not None
    averaged = trainer.sampler_flow
    assert averaged.encoder is trainer.flow.encoder
    for weight, started in zip(trainer.flow.encoder.parameters(), before, strict=True):
        assert torch.equal(weight, started)
    tensors = checkpoints.read_training(tmp_path / "checkpoints" / "step-00000004")[1]
    assert not any(name.startswith("average.module.encoder.") for name in tensors)
    assert any(name.startswith("average.module.flow.") for name in tensors)
    longer = Trainer(override(config, "training.iterations", 6), tmp_path, resume=True)
    theirs = longer.sampler_flow.state_dict()
    assert all(torch.equal(each, theirs[name]) for name, each in averaged.state_dict().items())
    assert longer.run().step == 6


def test_sigterm_saves_and_the_next_run_goes_on(tmp_path: Path) -> None:
    config = small()

    class Stopper(Recorder):
        def updated(self, update: Update, state: State) -> None:
            super().updated(update, state)
            if update.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    state = Trainer(config, tmp_path, listener=Stopper()).run()
    assert state.step == 5
    assert [path.name for path in checkpoints.complete(tmp_path / "checkpoints")][-1] == (
        "step-00000005"
    )
    assert Trainer(config, tmp_path, resume=True).run().step == 12
    assert [line["step"] for line in losses(tmp_path)] == list(range(1, 13))


def test_a_training_goes_on_with_its_own_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SMALL | {"training.iterations": 4, "output.tensorboard": "false"}
    arguments = ["train", "sr", *(w for k, v in settings.items() for w in ("--set", f"{k}={v}"))]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    config = (tmp_path / "config.toml").read_bytes()
    resume = ["train", "sr", "--out", str(tmp_path), "--resume"]
    for changes, sentences in {
        ("model.steps=2", "encoder.channels=4"): (
            "[model] steps was 1 and is 2",
            "[encoder] channels was 8 and is 4",
        ),
        ("training.ema=0",): ("[training] ema (0 or not) was True and is False",),
        ("training.iterations=3",): ("[training] iterations is 3", "after 4 already"),
    }.items():
        assert main([*resume, *(word for each in changes for word in ("--set", each))]) == 2
        said = capsys.readouterr().err
        assert all(sentence in said for sentence in sentences)
        assert (tmp_path / "config.toml").read_bytes() == config
    assert main([*resume, "--iterations", "5", "--set", "training.ema=0.9"]) == 0
    assert [line["step"] for line in losses(tmp_path)] == [1, 2, 3, 4, 5]


def test_lines_of_the_log_that_are_not_whole_go(tmp_path: Path) -> None:
    Trainer(small({"training.iterations": 4}), tmp_path).run()
    log = tmp_path / "log.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:3], lines[3][:9], '{"step": 5, "bits": 1.0}', '{"st']))
    Trainer(small({"training.iterations": 6}), tmp_path, resume=True).run()
    assert [line["step"] for line in losses(tmp_path)] == [1, 2, 3, 5, 6]
    assert log.read_text().splitlines()[:3] == lines[:3]


def test_a_kill_beside_a_best_checkpoint_leaves_no_older_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training comes to the step again: then best must not be behind the state that it has."""

    def write(step: int, *, best: bool) -> None:
        state = State(step=step, best_bits=1 / step)
        tensors = {"a": torch.zeros(1)}
        checkpoints.write(tmp_path, state, "", tensors, tensors, keep=1, best=best)

    write(4, best=True)
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if target.name.startswith("step-"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        write(8, best=True)
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["step-00000004"]
    assert checkpoints.read_state(tmp_path / "best").step == 8


def test_one_of_several_processes_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    recorder = Recorder()
    assert Trainer(small(), tmp_path, listener=recorder).listener is not recorder
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="batch_size must be a multiple of the 2 processes"):
        Trainer(small({"training.batch_size": 3}), tmp_path)


def test_samples_in_training_and_what_the_monitor_saw(tmp_path: Path) -> None:
    flow = ImagingFlow(small()).eval()
    y, x = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 32, 32)
    healthy = preview(flow, y, x)
    assert healthy.grid.shape == (3, 64, 5 * 32)
    assert torch.equal(healthy.grid[:, :32, 32:64], x[0])
    assert torch.equal(healthy.grid[:, 32::4, :32:4], y[1])
    assert healthy.onsets == 0
    assert 1 < healthy.magnitude < 50
    norm = next(layer for layer in flow.modules() if isinstance(layer, rnn.ActNorm))
    with torch.no_grad():
        norm.bias.fill_(-5000)
    broken = preview(flow, y, x)
    assert broken.onsets > 0
    assert broken.magnitude == pytest.approx(5000, rel=0.01)


def test_tensorboard_shows_each_update_once(tmp_path: Path) -> None:
    """A run that was killed after update 6, and one that goes on from a checkpoint of update 3."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((1, 6), (4, 5)):
        logs = TensorBoard(tmp_path, first)
        for step in range(first, last + 1):
            logs.updated(Update(step, 1.0, 1.0, skipped=False), State())
        logs.sampled(last, Preview(torch.zeros(3, 8, 8), 12.0, 3.0, 1))
        logs.saved(tmp_path)
        time.sleep(1.1)  # files of one second have one name
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in found.Scalars("training/bits per dimension")] == [1, 2, 3, 4, 5]
    assert [e.value for e in found.Scalars("sampling/largest magnitude")] == [12.0]


def test_a_full_disk_leaves_the_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    trainer = Trainer(small(), tmp_path)
    step = trainer.state
    step.step = 4
    trainer._save(best=False)
    monkeypatch.setattr(checkpoints, "save_file", full)
    step.step = 8
    with pytest.raises(CheckpointError, match="No space left on device"):
        trainer._save(best=False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("coupling", list(COUPLINGS))
def test_every_coupling_trains(coupling: str, tmp_path: Path) -> None:
    recorder = Recorder()
    config = small({"model.coupling": coupling, "training.learning_rate": 3e-3})
    Trainer(config, tmp_path, listener=recorder).run()
    assert recorder.bits[12] < recorder.bits[1] - 0.1


@pytest.mark.parametrize("task", ["lowlight", "inpaint"])
def test_density_and_samples_of_a_task_fit_together(task: str) -> None:
    """A sample's latents are those that it was made from: prior mean, noise and guess included."""
    torch.manual_seed(0)
    config = replace(preset(task, "tiny"), model=replace(preset(task, "tiny").model, steps=1))
    flow = ImagingFlow(config).eval()
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    y = flow.task.observe(torch.rand(1, 3, 32, 32), torch.Generator().manual_seed(0))
    prepared = flow.prepare(y)
    latents = flow.draw_latents(2, (32, 32), torch.Generator().manual_seed(1))
    pictures = flow.decode(latents, prepared)
    log_prob = flow.log_prob(pictures, prepared=prepared)
    back, logabsdet = flow.flow(
        pictures if prepared.guess is None else pictures - prepared.guess,
        condition=prepared.condition,
    )
    mean = 0 if prepared.mean is None else prepared.mean
    assert (prepared.mean is not None) == (task == "lowlight")
    torch.testing.assert_close(back[-1] - mean, latents[-1], atol=1e-3, rtol=0)
    torch.testing.assert_close(
        log_prob, logabsdet + flow.flow.latent_log_prob(latents), rtol=1e-4, atol=0.5
    )


def test_tiles_with_a_whole_halo_are_the_whole_picture() -> None:
    torch.manual_seed(0)
    flow = ImagingFlow(small()).eval()
    with torch.no_grad():
        for weight in flow.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    y = torch.rand(1, 3, 24, 32)
    whole = flow.sample(y, generator=torch.Generator().manual_seed(0))[0, 0]

    def error(halo: int | None) -> float:
        generator = torch.Generator().manual_seed(0)
        tiled = sample_in_tiles(flow, y, tile=32, halo=halo, generator=generator)
        return float((tiled - whole).abs().max())

    assert error(None) < 1e-5
    assert error(0) > 1e-3
    assert receptive_field(flow) < 96


def test_activations_are_rebuilt_or_recomputed_with_the_same_gradients() -> None:
    gradients = []
    for activations in ("store", "recompute", "reversible"):
        torch.manual_seed(0)
        config = small({"training.activations": activations})
        flow = ImagingFlow(config).double().train()
        x, y = torch.rand(2, 3, 32, 32).double(), torch.rand(2, 3, 8, 8).double()
        flow.log_prob(x, y)  # the first batch of actnorm
        with torch.no_grad():
            for weight in flow.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        flow.log_prob(x, y).sum().backward()
        gradients.append([w.grad for w in flow.parameters() if w.grad is not None])
    for others in gradients[1:]:
        for mine, stored in zip(others, gradients[0], strict=True):
            torch.testing.assert_close(
                mine, stored, rtol=1e-7, atol=1e-7 * float(stored.abs().max())
            )


def test_commands_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sr", "--preset", "tinny", "--out", str(tmp_path)]) == 2
    assert "Did you mean 'tiny'?" in capsys.readouterr().err
    assert main(["train", "sr", "--data", str(tmp_path / "no"), "--out", str(tmp_path)]) == 2
    assert "[data] train: There is no folder" in capsys.readouterr().err
    kept = tmp_path / "other.toml"
    kept.write_text(to_toml(preset("denoise", "tiny")))
    assert main(["train", "sr", "--config", str(kept), "--out", str(tmp_path)]) == 2
    assert "TASK is 'sr', and the configuration's [task] name is 'denoise'" in (
        capsys.readouterr().err
    )
    assert main(["train", "sr", "--resume", "--out", str(tmp_path / "new")]) == 1
    assert "no checkpoint" in capsys.readouterr().err
    assert main(["sample", str(tmp_path), "x.png"]) == 2
    assert "There is no picture x.png" in capsys.readouterr().err
    assert main(["info", str(tmp_path)]) == 2
    assert "There is no checkpoint at" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["train", "sr", "--out", str(tmp_path / "file" / "out")]) == 1
    assert "cannot be written to" in capsys.readouterr().err
    assert main(["train", "sr", "--print-config", "--set", "model.steps=3"]) == 0
    assert from_toml(capsys.readouterr().out).model.steps == 3


def test_samples_are_the_same_whole_in_tiles_and_by_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(small({"training.iterations": 2}), tmp_path / "flow").run()
    low = tmp_path / "low"
    low.mkdir()
    for name in ("a", "b"):
        pixels = (torch.rand(3, 24, 40) * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(low / f"{name}.png")
    command = ["sample", str(tmp_path / "flow"), str(low), "-n", "2"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    assert main([*command, "--out", str(tmp_path / "tiles"), "--tile", "48", "--halo", "96"]) == 0
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main([*command, "--out", str(tmp_path / "shared")]) == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == ["a-00.png", "a-01.png", "b-00.png", "b-01.png"]
    for name in names:
        whole = read_picture(tmp_path / "whole" / name).int()
        assert whole.shape == (3, 96, 160)
        assert torch.equal(read_picture(tmp_path / "shared" / name).int(), whole)
        # Tiles differ by rounding in float32, which can tip the rounding to 8 bits.
        assert int((read_picture(tmp_path / "tiles" / name).int() - whole).abs().max()) <= 1


def test_many_samples_are_decoded_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(small({"training.iterations": 1}), tmp_path / "flow").run()
    Image.new("RGB", (8, 8), (90, 60, 30)).save(tmp_path / "low.png")
    sizes: list[int] = []
    decode = ImagingFlow.decode

    def counted(flow: ImagingFlow, latents: list[torch.Tensor], *rest: Any) -> torch.Tensor:
        sizes.append(len(latents[0]))
        return decode(flow, latents, *rest)

    monkeypatch.setattr(ImagingFlow, "decode", counted)
    monkeypatch.setattr(ImagingFlow, "block_size", lambda *_: 2)
    command = ["sample", str(tmp_path / "flow"), str(tmp_path / "low.png")]
    assert main([*command, "-n", "5", "--out", str(tmp_path / "out")]) == 0
    assert sizes == [2, 2, 1]
    assert len(list((tmp_path / "out").iterdir())) == 5
    sizes.clear()
    flow = load_flow(tmp_path / "flow").flow
    drawn = flow.sample(torch.rand(2, 3, 8, 8), 3)
    assert drawn.shape == (2, 3, 3, 32, 32)
    assert sizes == [2, 1, 2, 1]


def test_pictures_of_one_name_and_folders_that_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    flow = str(tmp_path / "flow")
    Trainer(small({"training.iterations": 1}), Path(flow)).run()
    low = tmp_path / "low"
    (low / "more").mkdir(parents=True)
    for folder in (low, low / "more"):
        Image.new("RGB", (32, 32)).save(folder / "a.png")
    out = tmp_path / "out"
    assert main(["sample", flow, str(low), "--out", str(out)]) == 2
    assert "would both be sampled to a-00.png" in capsys.readouterr().err
    assert not list(out.iterdir())
    report = ["report", flow, "--out", str(tmp_path / "report")]
    assert main([*report, "--ood", str(tmp_path / "none")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert main([*report, "--size", "3"]) == 2
    assert "The squares must have at least 4 pixels, got 3" in capsys.readouterr().err
    (low / "broken.png").write_bytes(b"")
    model = load_flow(tmp_path / "flow").flow
    assert isinstance(model, ImagingFlow)
    assert set(observations(model, "ood", low, 32)) == {"a.png", "more/a.png"}
    assert "broken.png is left out: the file is empty" in caplog.text


def several(number: int, arguments: list[str], out: Path) -> None:
    """Train by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={number}"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command += ["-m", "robustflow.experiments.train", *arguments, "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_as_one(tmp_path: Path, parallel: str) -> None:
    """The same crops and the same losses, up to the order of sums; and each goes on alone."""
    settings = SMALL | {
        "training.iterations": 6,
        "training.batch_size": 4,
        "training.parallel": parallel,
        "output.samples_every": 3,
        "output.checkpoint_every": 3,
    }
    arguments = ["sr", *(word for k, v in settings.items() for word in ("--set", f"{k}={v}"))]
    assert main(["train", *arguments, "--out", str(tmp_path / "one")]) == 0
    several(2, arguments, tmp_path / "two")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 6
    assert one[0]["bits"] == pytest.approx(two[0]["bits"], rel=1e-6)
    assert one[0]["gradient_norm"] == pytest.approx(two[0]["gradient_norm"], rel=1e-5)
    for mine, theirs in zip(
        one, two, strict=True
    ):  # Adam makes much of rounding in small gradients
        assert mine["bits"] == pytest.approx(theirs["bits"], rel=1e-3)
    last = "checkpoints/step-00000006"
    for name in ("model", "training"):
        ours, others = (
            checkpoints.read_model(tmp_path / each / last / f"{name}.safetensors")[0]
            for each in ("one", "two")
        )
        assert {key: each.shape for key, each in ours.items()} == {
            key: each.shape for key, each in others.items()
        }
    # The updates, in units of how far six of them have moved the weights.
    torch.manual_seed(0)
    began = ImagingFlow(small()).state_dict()
    ended = [checkpoints.read_training(tmp_path / each / last)[1] for each in ("one", "two")]
    moved, apart = (
        torch.cat([(a - b).flatten() for a, b in pairs]).norm()
        for pairs in (
            [(ended[0][f"model.{name}"], each) for name, each in began.items() if each.dim()],
            [
                (ended[0][f"model.{name}"], ended[1][f"model.{name}"])
                for name, each in began.items()
                if each.dim()
            ],
        )
    )
    assert apart < 0.02 * moved
    assert isinstance(load_flow(tmp_path / "two").flow, ImagingFlow)
    # Both ways: one process goes on from two, and two from one.
    longer = [*arguments, "--set", "training.iterations=8", "--resume"]
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path / "two", alone)
    assert main(["train", *longer, "--out", str(alone)]) == 0
    several(2, longer, tmp_path / "one")
    several(2, longer, tmp_path / "two")
    again = losses(tmp_path / "two")
    assert again[6]["bits"] == pytest.approx(losses(alone)[6]["bits"], rel=1e-5)
    assert again[6]["gradient_norm"] == pytest.approx(losses(alone)[6]["gradient_norm"], rel=1e-4)
    assert len(losses(tmp_path / "one")) == 8
