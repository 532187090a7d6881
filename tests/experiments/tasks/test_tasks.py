"""Inverse problems: operators, adjoints, pseudo-inverses, and how a task is named."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from robustflow import _resizing
from robustflow.experiments.tasks import TASKS, SuperResolution, Task, make_task


def picture(height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.rand(2, 3, height, width, dtype=torch.float64)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_downsampling_is_the_stretched_cubic_kernel_on_a_mirrored_picture(scale: int) -> None:
    """Against the definition: Keys' kernel, a = -1/2, sums of weights 1, mirrored edges."""
    x = torch.rand(1, 1, 4 * scale, 1, dtype=torch.float64).expand(-1, -1, -1, scale)
    column = x[0, 0, :, 0]
    length = len(column)

    def kernel(t: float) -> float:
        t = abs(t)
        if t < 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0

    expected = []
    for out in range(4):
        centre = (out + 0.5) * scale - 0.5
        places = range(int(centre) - 2 * scale - 1, int(centre) + 2 * scale + 2)
        weights = [kernel((place - centre) / scale) for place in places]
        mirrored = [
            min(place % (2 * length), 2 * length - 1 - place % (2 * length)) for place in places
        ]
        values = [float(column[place]) for place in mirrored]
        expected.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    made = _resizing.downsample(x, scale)[0, 0, :, 0]
    # interpolate keeps its weights in float32 at most on some builds
    torch.testing.assert_close(made, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_the_pseudo_inverse_of_downsampling_is_consistent_and_smallest() -> None:
    x = picture()
    y = _resizing.downsample(x, 4)
    made = _resizing.pseudo_inverse(y, 4)
    torch.testing.assert_close(_resizing.downsample(made, 4), y, atol=1e-6, rtol=0)
    # What is missing of x is orthogonal to it: there is no smaller picture with this y.
    assert abs(float((made * (x - made)).sum())) < 1e-4


@pytest.mark.parametrize("name", [name for name, kind in TASKS.items() if kind.linear])
def test_the_adjoint_satisfies_its_definition(name: str) -> None:
    task = make_task(name)
    x = picture() - 0.5
    y = torch.randn_like(task(x))
    torch.testing.assert_close((task(x) * y).sum(), (x * task.adjoint(y)).sum())


def test_a_task_that_is_not_linear_has_no_adjoint() -> None:
    with pytest.raises(TypeError, match="'lowlight' is not linear"):
        make_task("lowlight").adjoint(picture())


@pytest.mark.parametrize("name", list(TASKS))
def test_observations_are_8_bit_pictures_and_depend_on_the_generator_alone(name: str) -> None:
    task = make_task(name)
    x = picture().float()
    first, again, other = (
        task.observe(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first.shape[1] == task.observation_channels
    assert torch.equal(first, again)
    assert torch.equal(first, other) != task.random
    steps = first * 255
    torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    assert first.min() >= 0 and first.max() <= 1
    assert task.first_guess(first).shape == x.shape


def test_low_light_has_the_noise_that_it_says() -> None:
    task = make_task("lowlight", {"darkest": 0.5, "brightest": 0.5, "shot": 4e-3, "read": 5e-3})
    y = task.observe(torch.full((1, 3, 400, 400), 0.9), torch.Generator().manual_seed(0))
    light = y**2.2
    mean = 0.5 * 0.9**2.2
    assert float(light.mean()) == pytest.approx(mean, rel=5e-3)
    assert float(light.var()) == pytest.approx(4e-3 * mean + 25e-6, rel=3e-2)


def test_inpainting_shows_what_its_mask_says() -> None:
    task = make_task("inpaint", {"seen": 0.25})
    x = picture().float()
    y = task.observe(x)
    mask = y[:, 3:]
    assert float(mask.mean()) == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(y[:, :3], (x * 255).round() / 255 * mask, atol=1e-6, rtol=0)


@dataclass(frozen=True)
class Negative(Task):
    """One of a user's own."""

    name = "negative"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 - x


def test_a_task_of_ones_own_is_named_by_where_it_is() -> None:
    assert isinstance(make_task(f"{__name__}:Negative"), Negative)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("lowligt", {}, "Did you mean 'lowlight'"),
        ("sr", {"scal": 2}, "no option 'scal'. Did you mean 'scale'"),
        ("sr", {"scale": 1}, "scale must be a whole number of at least 2"),
        ("denoise", {"sigma": -1.0}, "sigma must be at least 0"),
        ("denoise", {"sigma": "much"}, "sigma must be a number, got 'much'"),
        ("no.such.module:Class", {}, "cannot be imported"),
        ("torch:Tensor", {}, "is no subclass"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_task(name, options)


def test_super_resolution_crops_know_their_surroundings() -> None:
    """The observation of a part with its margin is the part of the whole's observation."""
    task = SuperResolution(4)
    x = picture(64, 64).float()
    whole = task(x)
    part = task(x[..., 16 - task.margin : 40 + task.margin, 16 - task.margin : 40 + task.margin])
    cut = task.margin // 4
    torch.testing.assert_close(part[..., cut:-cut, cut:-cut], whole[..., 4:10, 4:10])
