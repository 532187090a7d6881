"""Operators of deepinv as tasks, and trained flows as its reconstruction models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from robustflow import _resizing
from robustflow.experiments.data.crops import CropDataset, Source
from robustflow.experiments.imaging.checkpoints import CheckpointError
from robustflow.experiments.imaging.config import Config, override, preset
from robustflow.experiments.imaging.loading import load_flow
from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.experiments.imaging.training import Trainer
from robustflow.experiments.tasks import SuperResolution

deepinv = pytest.importorskip("deepinv", reason="pip install 'robustflow[deepinv]'")

from robustflow.experiments.imaging.reconstructor import FlowReconstructor  # noqa: E402
from robustflow.experiments.tasks.physics import PhysicsTask  # noqa: E402

SIDE = 16


def sensing(sigma: float = 0.0, **options: Any) -> PhysicsTask:
    """Compressed sensing of greyscale pictures: measurements are vectors."""
    noise = deepinv.physics.GaussianNoise(sigma)
    physics = deepinv.physics.CompressedSensing(
        m=100, img_size=(1, SIDE, SIDE), noise_model=noise, rng=torch.Generator().manual_seed(0)
    )
    return PhysicsTask(physics, channels=1, **options)


def small() -> Config:
    config = preset("denoise", "tiny")
    changes: dict[str, object] = {
        "model.steps": 1,
        "model.hidden_channels": 8,
        "encoder.channels": 8,
        "encoder.blocks": 1,
        "data.crop": SIDE,
        "training.iterations": 2,
        "training.batch_size": 2,
        "training.threads": 1,
        "output.validation_batches": 1,
        "output.samples_every": 2,
        "output.tensorboard": "false",
    }
    for key, value in changes.items():
        config = override(config, key, value)
    return config


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_downsampling_is_that_of_matlab(scale: int) -> None:
    """Against an independent implementation of imresize."""
    x = torch.rand(2, 3, 6 * scale, 8 * scale, dtype=torch.float64)
    theirs = deepinv.physics.DownsamplingMatlab(factor=scale).A(x)
    torch.testing.assert_close(_resizing.downsample(x, scale), theirs, rtol=0, atol=1e-12)


def test_a_linear_operator_is_seen_through_its_pseudo_inverse() -> None:
    task = sensing()
    x = torch.rand(2, 1, SIDE, SIDE)
    y = task(x)
    matrix = task.physics._A.flatten(1)  # (m, pixels)
    expected = x.flatten(1) @ (torch.linalg.pinv(matrix) @ matrix).T
    torch.testing.assert_close(y.flatten(1), expected, atol=1e-3, rtol=0)
    assert task.linear
    torch.testing.assert_close(task.first_guess(y), y)
    torch.testing.assert_close(task.observe(x), y)


def test_noise_follows_the_generator_alone() -> None:
    task = sensing(0.1)
    x = torch.rand(1, 1, SIDE, SIDE)
    state = torch.get_rng_state()
    one, again, other = (task.measure(x, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    noise = one - task.physics.A(x)
    assert 0.07 < float(noise.std()) < 0.13


def test_a_flow_is_trained_kept_and_samples_for_the_operator(tmp_path: Path) -> None:
    task = sensing(0.02)
    Trainer(small(), tmp_path, task=task).run()
    with pytest.raises(CheckpointError, match="was trained for the task 'physics'"):
        load_flow(tmp_path)
    flow = load_flow(tmp_path, task).flow
    assert isinstance(flow, ImagingFlow)
    reconstructor = FlowReconstructor(flow, num_samples=3)
    measurements = task.measure(torch.rand(2, 1, SIDE, SIDE))
    same = [torch.Generator().manual_seed(1) for _ in range(3)]
    samples = reconstructor.sample(measurements, task.physics, 3, generator=same[0])
    assert samples.shape == (2, 3, 1, SIDE, SIDE)
    expected = flow.sample(task.condition(measurements), 3, generator=same[1])
    torch.testing.assert_close(samples, expected)
    mean = reconstructor(measurements, task.physics, generator=same[2])
    torch.testing.assert_close(mean, samples.mean(dim=1))
    assert isinstance(reconstructor, deepinv.models.Reconstructor)


def test_measurements_of_super_resolution_are_its_observations() -> None:
    config = override(override(preset("sr", "tiny"), "model.steps", 1), "encoder.blocks", 1)
    flow = ImagingFlow(config)
    physics = deepinv.physics.DownsamplingMatlab(factor=4)
    y = physics(torch.rand(1, 3, 32, 32))
    samples = FlowReconstructor(flow).sample(y, physics, 2, temperature=0.0)
    assert samples.shape == (1, 2, 3, 32, 32)
    assert isinstance(flow.task, SuperResolution)
    torch.testing.assert_close(samples[:, 0], flow.sample(y, temperature=0.0)[:, 0])


def test_pictures_become_greyscale(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    Image.fromarray(np.full((SIDE, SIDE, 3), (255, 0, 0), np.uint8)).save(tmp_path / "red.png")
    source = Source(tmp_path / "red.png", (SIDE, SIDE))
    item = CropDataset([source], sensing(), SIDE, dequantise=False)[0, 0]
    torch.testing.assert_close(item["x"], torch.full((1, SIDE, SIDE), 0.299))


def test_mistakes_are_named() -> None:
    with pytest.raises(TypeError, match=r"must be a deepinv.physics.Physics, got SuperResolution"):
        PhysicsTask(SuperResolution())
    task = sensing(condition=lambda measured: measured[:, None, None])
    with pytest.raises(ValueError, match="The condition of measurements must be pictures"):
        task.observe(torch.rand(1, 1, SIDE, SIDE))
    with pytest.raises(ValueError, match="x of the task 'physics' has 2 channels"):
        PhysicsTask(sensing().physics, channels=2).from_rgb(torch.rand(1, 3, 8, 8))
