"""`find_artifacts` and `judge_detectors`: kind by kind, on planted artifacts, on signals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import jaccard_score, roc_auc_score
from torch import Tensor

from robustflow._resizing import downsample
from robustflow.diagnostics import Thresholds, find_artifacts, judge_detectors
from robustflow.diagnostics.artifacts import Kind, contrast_map, faulty_pixels
from robustflow.diagnostics.artifacts.ensemble import ensemble_scores
from robustflow.diagnostics.artifacts.grid import grid_scores
from robustflow.diagnostics.artifacts.regions import least_area, regions
from robustflow.diagnostics.artifacts.samples import displayed
from robustflow.diagnostics.intervals import bootstrap_interval, wilson_interval
from robustflow.experiments import faults
from robustflow.experiments.tasks import Task
from robustflow.functional import conditional_affine
from tests.diagnostics import planted


def grey(*shape: int, value: float = 0.4) -> Tensor:
    """Grey, with a little noise."""
    return value + 0.02 * torch.randn(shape)


# Artifact, form of the samples, kind, and least AUROC, IoU and share of pictures that are hit.
FOUND: list[tuple[str, str, Kind, float, float, float]] = [
    ("huge values", "floats", "range", 0.999, 0.99, 1.0),
    ("huge values", "floats", "saturated", 0.999, 0.99, 1.0),
    ("huge values", "8 bits", "saturated", 0.999, 0.99, 1.0),
    ("huge values", "8 bits", "consistency", 0.99, 0.7, 1.0),
    ("huge values", "8 bits", "reference", 0.97, 0.1, 0.3),
    ("huge values", "8 bits", "ensemble", 0.99, 0.9, 1.0),
    ("not a number", "floats", "range", 0.999, 0.99, 1.0),
    ("not a number", "floats", "black", 0.999, 0.9, 0.9),
    ("not a number", "8 bits", "black", 0.999, 0.9, 0.9),
    ("not a number", "8 bits", "consistency", 0.99, 0.7, 1.0),
    ("another colour", "8 bits", "consistency", 0.99, 0.7, 1.0),
    ("another colour", "8 bits", "ensemble", 0.99, 0.4, 1.0),
    ("noise", "8 bits", "ensemble", 0.98, 0.3, 1.0),
    ("noise", "8 bits", "reference", 0.98, 0.3, 0.4),
    ("squares", "8 bits", "grid", 0.97, 0.6, 1.0),
]


@pytest.mark.parametrize(("name", "form", "kind", "auroc", "iou", "pictures"), FOUND)
def test_planted_artifacts_are_found(
    name: str, form: str, kind: Kind, auroc: float, iou: float, pictures: float
) -> None:
    case = planted.plant(name)
    samples = planted.in_8_bits(case.samples) if form == "8 bits" else case.samples
    truth = case.truth
    if kind == "ensemble":
        samples, truth, groups = case.among_others(samples)
        found = find_artifacts(samples, groups=groups, kinds=[kind])
    else:
        found = find_artifacts(samples, case.observation, "sr4", case.reference, kinds=[kind])
    judged = judge_detectors(found, truth, resamples=10)[kind]
    assert judged.auroc.value >= auroc
    assert judged.iou.value >= iou
    assert judged.hit_pictures.value >= pictures
    assert judged.false_alarms.value <= 0.015
    if kind == "ensemble":
        assert judged.false_pictures.value == 0


def test_clean_photographs_are_clean() -> None:
    clean = planted.photographs()
    observation = (downsample(clean, 4).clamp(0, 1) * 255).round() / 255
    for found in (find_artifacts(clean), find_artifacts(clean, observation, "sr4", clean)):
        assert not found.found, found.table()
    assert {"consistency", "reference"} <= set(found.masks)


def test_clamped_huge_values_give_primary_colours_and_nan_gives_black() -> None:
    """The cause of the two kinds of visible artifact, by couplings whose scale has collapsed."""
    collapsed = torch.tensor([0.0, -40.0]).repeat(3).view(1, 6, 1, 1)  # scale 1e-4, the smallest

    def exploded(z: Tensor, couplings: int) -> Tensor:
        for _ in range(couplings):
            z, _ = conditional_affine(z, collapsed, inverse=True)
        return z

    def in_a_file(x: Tensor) -> Tensor:
        return x.clamp(0, 1).mul(255).to(torch.uint8)

    z = torch.randn(1, 3, 64, 64)
    huge = exploded(z, 3)
    assert torch.isfinite(huge).all() and huge.abs().median() > 1e11
    colours = in_a_file(huge).movedim(1, -1).reshape(-1, 3).unique(dim=0)
    every_corner = torch.cartesian_prod(*[torch.tensor([0, 255], dtype=torch.uint8)] * 3)
    assert torch.equal(colours, every_corner)
    infinite = exploded(z, 12)
    assert torch.isinf(infinite).all()
    mixed = torch.nn.functional.conv2d(
        infinite, torch.linalg.qr(torch.randn(3, 3))[0][..., None, None]
    )
    nan = torch.isnan(mixed)  # inf - inf
    assert nan.float().mean() > 0.5
    assert (in_a_file(mixed)[nan] == 0).all()
    assert torch.equal(in_a_file(displayed(mixed)), in_a_file(mixed))

    picture = grey(1, 3, 64, 64)
    picture[..., 8:16, 8:16] = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1) * 1e12
    picture[..., 40:48, 40:48] = torch.tensor(math.inf) - torch.tensor(math.inf)
    found = find_artifacts(picture)
    red, black = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    red[..., 8:16, 8:16] = black[..., 40:48, 40:48] = True
    assert torch.equal(found.masks["saturated"], red)
    assert torch.equal(found.masks["black"], black)
    assert torch.equal(found.masks["range"], red | black)


def test_range_is_the_published_rule() -> None:
    samples = torch.rand(4, 3, 8, 8) * 3 - 1
    samples[0, 0, 0, 0], samples[1, 1, 1, 1] = math.nan, -math.inf
    found = find_artifacts(samples, kinds=["range"])
    assert torch.equal(found.masks["range"], faulty_pixels(samples).any(dim=1))
    assert found.counts["range"] == faults.count_faults(samples).faulty
    edges = torch.tensor([1.5, -0.5]).view(2, 1, 1, 1)
    assert not find_artifacts(edges, kinds=["range"]).found
    beyond = torch.nextafter(edges, edges * 4)
    assert find_artifacts(beyond, kinds=["range"]).counts == {"range": 2}


def test_regions_are_as_large_as_the_picture_asks() -> None:
    assert least_area((64, 64), 1 / 4096) == 4 and least_area((256, 256), 1 / 4096) == 16
    for side, smallest in ((64, 2), (256, 4)):
        picture = grey(2, 3, side, side)
        red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
        picture[0, :, 9 : 9 + smallest, 9 : 9 + smallest] = red
        picture[1, :, 9 : 9 + smallest, 9 : 8 + smallest] = red
        found = find_artifacts(picture, kinds=["saturated"])
        assert found.flagged["saturated"].tolist() == [True, False]
        assert found.masks["saturated"].sum() == smallest**2


def test_regions_that_touch_at_a_corner_are_one() -> None:
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[1:3, 1:3] = mask[3:5, 3:5] = True
    ((box, region),) = regions(mask, 8)
    assert box == (slice(0, 6), slice(0, 6)) and torch.equal(region, mask)
    assert not list(regions(mask, 9))


def test_shadows_that_fade_are_no_artifact_and_black_with_an_edge_is() -> None:
    distance = (torch.arange(64)[:, None] - 32).square() + (torch.arange(64) - 32).square()
    fading = ((distance.sqrt() - 15) / 60).clamp(0, 1)
    cut = torch.where(distance < 225, 0.0, 0.3)
    samples = torch.stack([fading, cut, -1e4 * (distance < 100) + fading]).unsqueeze(1)
    found = find_artifacts(samples.expand(-1, 3, -1, -1), kinds=["black"])
    assert found.flagged["black"].tolist() == [False, True, True]


@pytest.mark.parametrize("colour", [(1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)])
def test_a_block_that_the_observation_has_is_no_artifact(colour: tuple[float, ...]) -> None:
    block = torch.tensor(colour).view(3, 1, 1)
    scene = grey(1, 3, 64, 64)
    plain = downsample(scene, 4)
    scene[..., 8:24, 8:24] = block
    observation = downsample(scene, 4)
    made_up = scene.clone()
    made_up[..., 40:56, 40:56] = block
    kinds: list[Kind] = ["saturated", "black"]
    kind = "black" if sum(colour) == 0 else "saturated"
    assert not find_artifacts(scene, observation, kinds=kinds).found
    found = find_artifacts(made_up, observation, kinds=kinds)
    wanted = torch.zeros(1, 64, 64, dtype=torch.bool)
    wanted[..., 40:56, 40:56] = True
    assert torch.equal(found.masks[kind], wanted)
    assert find_artifacts(scene, plain, kinds=kinds).counts[kind] == 1
    # Without an observation black with an edge counts, and white does not: skies are white.
    alone = find_artifacts(scene, kinds=kinds)
    assert alone.found is (sum(colour) < 3)
    # An observation of the same size is compared as it is.
    assert not find_artifacts(scene, scene, kinds=kinds).found
    assert find_artifacts(made_up, scene, kinds=kinds).counts[kind] == 1


class Halved:
    """A task that is no callable."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@pytest.mark.parametrize(
    ("task", "apply"),
    [
        ("sr4", lambda x: downsample(x, 4)),
        ("x4", lambda x: downsample(x, 4)),
        (4, lambda x: downsample(x, 4)),
        (None, lambda x: downsample(x, 4)),
        (Halved(), lambda x: x / 2),
        (lambda x: x.mean(dim=1, keepdim=True), lambda x: x.mean(dim=1, keepdim=True)),
        (torch.nn.AvgPool2d(8), torch.nn.AvgPool2d(8)),
    ],
    ids=["name", "short", "scale", "sizes", "object", "function", "module"],
)
def test_consistency_is_the_residual(task: Any, apply: Callable[[Tensor], Tensor]) -> None:
    samples = grey(2, 3, 32, 48)
    observation = apply(samples)
    observation[0, 0, 1, 2] += 0.5
    observation[1] -= 0.01
    found = find_artifacts(samples, observation, task)
    residual = (apply(samples) - observation).abs().amax(dim=1)
    factor = 32 // residual.shape[1]
    expected = residual.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    torch.testing.assert_close(found.scores["consistency"], expected, atol=1e-6, rtol=0)
    wanted = torch.zeros(2, 32, 48, dtype=torch.bool)
    wanted[0, factor : 2 * factor, 2 * factor : 3 * factor] = True
    assert torch.equal(found.masks["consistency"], wanted)


def test_a_huge_value_is_inconsistent_where_it_is() -> None:
    samples = grey(1, 3, 64, 64)
    observation = downsample(samples, 4)
    samples[0, 0, 33, 21], samples[0, 0, 5, 5] = 1e20, math.nan
    mask = find_artifacts(samples, observation, thresholds=Thresholds(consistency=0.05)).masks[
        "consistency"
    ]
    assert mask[0, 33, 21] and mask[0, 5, 5]
    assert mask.sum() <= 4 * 16  # of 256 pixels of the observation


def test_tasks_of_experiments_are_tasks() -> None:
    class Mean(Task):
        name = "mean"

        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=(-2, -1), keepdim=True)

        def pseudo_inverse(self, y: Tensor) -> Tensor:
            return y

    samples = grey(3, 3, 32, 32)
    found = find_artifacts(samples, samples.mean(dim=(-2, -1), keepdim=True) + 0.2, Mean())
    assert found.masks["consistency"].all()


def test_the_contrast_map_is_its_formula() -> None:
    x, y = torch.rand(2, 2, 24, 30, dtype=torch.float64)
    place = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(place**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2

    def deviation(channel: Tensor, row: int, column: int) -> float:
        part = channel[row - 5 : row + 6, column - 5 : column + 6]
        mean = (window * part).sum()
        return float((window * (part - mean) ** 2).sum().sqrt())

    found = contrast_map(x, y)
    assert found.shape == (24, 30)
    for row, column in ((5, 5), (12, 17), (18, 24)):
        expected = 0.0
        for a, b in zip(x, y, strict=True):
            s, t = deviation(a, row, column), deviation(b, row, column)
            expected += (2 * s * t + 0.0009) / (s**2 + t**2 + 0.0009) / 2
        assert float(found[row, column]) == pytest.approx(expected, rel=1e-9)
    assert torch.equal(contrast_map(x, x), torch.ones(24, 30, dtype=torch.float64))


def test_ensemble_scores_are_robust_deviations() -> None:
    samples = 0.5 + 0.1 * torch.randn(9, 2, 12, 14, dtype=torch.float64)
    median = samples.median(dim=0).values
    deviation = (samples - median).abs().median(dim=0).values
    windows = deviation.unfold(1, 5, 1).unfold(2, 5, 1).mean(dim=(-2, -1))
    inner = (..., slice(2, -2), slice(2, -2))
    expected = ((samples - median).abs()[inner] / (1.4826 * windows + 1 / 255)).amax(dim=1)
    torch.testing.assert_close(ensemble_scores(samples)[inner], expected)


def test_ensembles_see_past_samples_that_are_not_finite() -> None:
    samples = grey(6, 3, 32, 32)
    samples[:2, :, 4:8, 4:8] = math.nan
    samples[2, :, 4:8, 4:8] = 0.9
    found = find_artifacts(samples, groups=[0] * 6, kinds=["ensemble"])
    wanted = torch.zeros(6, 32, 32, dtype=torch.bool)
    wanted[:3, 4:8, 4:8] = True
    assert torch.equal(found.masks["ensemble"], wanted)
    assert torch.isinf(found.scores["ensemble"][:2, 4:8, 4:8]).all()
    assert torch.isfinite(found.scores["ensemble"][2:]).all()


def test_samples_of_one_observation_are_known_from_it_or_from_groups() -> None:
    samples = grey(8, 3, 32, 32)
    observation = downsample(samples[:1], 4)
    assert "ensemble" in find_artifacts(samples, observation).masks
    assert "ensemble" in find_artifacts(samples, observation[0]).masks
    assert "ensemble" not in find_artifacts(samples, observation.expand(8, -1, -1, -1)).masks
    assert "ensemble" not in find_artifacts(samples).masks
    assert "ensemble" not in find_artifacts(samples[:3], observation).masks
    pairs = find_artifacts(samples, groups=[0, 1] * 4, kinds=["ensemble"])
    torch.testing.assert_close(pairs.scores["ensemble"][::2], ensemble_scores(samples[::2]))
    few = find_artifacts(samples, groups=[0] * 5 + [1] * 3, kinds=["ensemble"])
    assert (few.scores["ensemble"][5:] == 0).all()


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_grid_is_found_at_its_period_and_in_its_place(levels: int) -> None:
    period = 2**levels
    sample = grey(3, 192, 192)
    sample[:, 64:128, 64:128][:, ::period, ::period] += 0.4
    scores = grid_scores(sample, levels)
    assert scores[80:112, 80:112].min() > 1 > scores[:32].max()
    other = grey(3, 192, 192)
    other[:, ::5, ::7] += 0.3  # periods that no squeeze has
    assert grid_scores(other, levels).max() < 0.7


def test_stripes_in_one_direction_are_no_grid() -> None:
    sample = grey(3, 64, 64)
    sample[:, ::4] += 0.3
    assert grid_scores(sample, 2).max() < 0.7


@pytest.mark.parametrize("form", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_find_the_same(form: torch.dtype) -> None:
    case = planted.plant("huge values")
    samples = case.samples[:3].clamp(-3e4, 3e4).to(form)
    found = find_artifacts(samples, case.observation[:3].to(form), "sr4")
    for kind, mask in find_artifacts(
        samples.float(), case.observation[:3].to(form).float()
    ).masks.items():
        assert torch.equal(found.masks[kind], mask), kind


def test_signals() -> None:
    """(N, 2, T), values in [-1, 1], as audio has them."""
    time = torch.arange(4096) / 4096
    signal = 0.5 * torch.sin(2 * math.pi * 55.3 * time) + 0.02 * torch.randn(6, 2, 4096)
    observation = downsample(signal, 4)
    reference = signal.clone()
    signal[0, :, 400:420] = torch.tensor([[3e9], [-3e9]])
    signal[1, 0, 900] = math.nan
    signal[2, :, 1000:3000:4] += 0.6
    signal[3, :, 2000:2100] = 0.05 * torch.randn(2, 100) + 0.9
    signal[4, :, 1200:1264] = 0.7 * torch.randn(2, 64)
    found = find_artifacts(
        signal, observation, "sr4", reference, groups=[0] * 6, value_range=(-1, 1)
    )
    assert set(found.masks) == {
        "range",
        "saturated",
        "consistency",
        "reference",
        "ensemble",
        "grid",
    }
    assert found.masks["range"].shape == (6, 4096)
    assert found.masks["range"][0, 400:420].all() and found.masks["range"][1, 900]
    assert found.counts["saturated"] == 1 and found.masks["saturated"][0].sum() == 20
    assert found.flagged["grid"].tolist() == [False, False, True, False, False, False]
    assert found.masks["grid"][2, 1200:2800].all() and not found.masks["grid"][2, 3400:].any()
    assert found.masks["consistency"][3, 2008:2092].all()
    assert found.masks["ensemble"][3, 2000:2100].all()
    assert found.masks["reference"][4, 1200:1264].sum() > 10
    assert not found.masks["reference"][4, :1190].any()
    assert not found.any[5].any()
    # Limits of the published rule in this range: -2 and 2.
    inside = torch.full((1, 1, 256), 1.99)
    assert not find_artifacts(inside, kinds=["range"], value_range=(-1, 1)).found
    assert find_artifacts(inside + 0.02, kinds=["range"], value_range=(-1, 1)).found


def test_counts_rates_and_table() -> None:
    samples = grey(20, 3, 32, 32)
    samples[3, :, 2:6, 2:6] = math.nan
    found = find_artifacts(samples)
    assert found.counts == {"range": 1, "saturated": 0, "black": 1, "grid": 0}
    rate = found.rates["range"]
    expected = binomtest(1, 20).proportion_ci(method="wilson")
    assert (rate.value, rate.low, rate.high) == pytest.approx((0.05, expected.low, expected.high))
    assert found.pixels["range"] == pytest.approx(16 / (20 * 32 * 32))
    assert found.any.sum() == 16
    lines = found.table().splitlines()
    assert lines[0].split() == ["kind", "samples", "rate", "[95", "%]", "pixels"]
    assert lines[1].startswith("range") and "1 of 20" in lines[1] and "0.0781 %" in lines[1]
    assert str(found) == found.table()
    stored = json.loads(json.dumps(found.to_dict()))
    assert stored["black"]["flagged"] == 1 and stored["black"]["rate"]["value"] == 0.05


@pytest.mark.parametrize(("successes", "trials"), [(0, 20), (3, 17), (50, 50), (1, 1)])
def test_wilson_is_scipys(successes: int, trials: int) -> None:
    found = wilson_interval(successes, trials)
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_bootstrap_of_a_mean_is_its_standard_error() -> None:
    values = torch.randn(60, dtype=torch.float64)
    found = bootstrap_interval(lambda counts: float(counts @ values / counts.sum()), 60)
    error = float(values.std(correction=0)) / math.sqrt(60)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_judgements_are_scikit_learns() -> None:
    truth = torch.rand(12, 2, 9, 11) < 0.15
    truth[:3] = False
    pixels = truth.any(dim=1)
    score = (torch.randn(12, 9, 11) + pixels).round(decimals=1)  # ties
    mask = score > 1
    mask[:2] = False
    judged = judge_detectors({"a": mask}, truth, scores={"a": score, "b": -score}, resamples=200)
    a, b = judged["a"], judged["b"]
    assert a.auroc.value == pytest.approx(roc_auc_score(pixels.flatten(), score.flatten()))
    assert b.auroc.value == pytest.approx(1 - a.auroc.value)
    assert a.iou.value == pytest.approx(jaccard_score(pixels.flatten(), mask.flatten()))
    assert a.false_alarms.value == pytest.approx(float(mask[~pixels].float().mean()))
    assert a.hit_pictures.value == float(mask[3:].flatten(1).any(dim=1).float().mean())
    assert a.false_pictures.value == pytest.approx(1 / 3)
    assert a.auroc.low < a.auroc.value < a.auroc.high and a.iou.low < a.iou.value < a.iou.high
    assert math.isnan(b.iou.value)
    assert json.loads(json.dumps(b.to_dict()))["iou"] == {"value": None, "low": None, "high": None}


def test_the_auroc_of_many_different_scores() -> None:
    truth = torch.rand(4, 100, 100) < 0.02
    score = torch.randn(4, 100, 100).exp() + 2 * truth
    score[0, 0, :50] = math.inf
    judged = judge_detectors({}, truth, scores={"a": score}, resamples=5)["a"]
    finite = score.nan_to_num(posinf=1e9).flatten()
    assert judged.auroc.value == pytest.approx(roc_auc_score(truth.flatten(), finite), abs=5e-4)


def test_without_any_artifact_only_false_alarms_are_judged() -> None:
    found = find_artifacts(grey(5, 3, 32, 32))
    judged = judge_detectors(found, torch.zeros(5, 32, 32, dtype=torch.bool), resamples=5)
    assert set(judged) == set(found.masks)
    assert math.isnan(judged["range"].auroc.value) and math.isnan(judged["range"].iou.value)
    assert judged["range"].false_pictures.value == 0


SAMPLES = torch.rand(4, 3, 32, 32)
LOW = torch.rand(4, 3, 8, 8)
BAD_CALLS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "an observation of another size": (
        lambda: find_artifacts(SAMPLES, LOW[..., :6]),
        ValueError,
        r"observation of \(3, 8, 6\) is no whole-number reduction of samples of \(3, 32, 32\)",
    ),
    "an observation of another task": (
        lambda: find_artifacts(SAMPLES, LOW, "sr2"),
        ValueError,
        r"task makes \(3, 16, 16\) of a sample of .*, and the observation is \(3, 8, 8\)",
    ),
    "observations of other samples": (
        lambda: find_artifacts(SAMPLES, LOW[:3]),
        ValueError,
        r"observation must be given for each of the 4 samples, or once for all",
    ),
    "a larger observation": (
        lambda: find_artifacts(LOW, SAMPLES),
        ValueError,
        "no whole-number reduction",
    ),
    "a reference of another size": (
        lambda: find_artifacts(SAMPLES, reference=LOW),
        ValueError,
        r"reference must have the shape of a sample, \(3, 32, 32\), got \(3, 8, 8\)",
    ),
    "a task alone": (
        lambda: find_artifacts(SAMPLES, task="sr4"),
        ValueError,
        "A task needs an observation",
    ),
    "another task": (
        lambda: find_artifacts(SAMPLES, LOW, "sharpen"),
        ValueError,
        "task must be a scale such as 'sr4' .* got 'sharpen'",
    ),
    "no task": (
        lambda: find_artifacts(SAMPLES, LOW, 4.5),  # type: ignore[arg-type]
        TypeError,
        "task must be a scale .* got float",
    ),
    "a scale of one": (lambda: find_artifacts(SAMPLES, LOW, 1), ValueError, "at least 2, got 1"),
    "a scale that does not divide": (
        lambda: find_artifacts(SAMPLES, LOW, "sr5"),
        ValueError,
        "Samples of 32x32 cannot be downsampled by 5: crop them",
    ),
    "samples of several observations": (
        lambda: find_artifacts(SAMPLES[None]),
        ValueError,
        r"\(N, C, H, W\) or \(N, C, T\), got \(1, 4, 3, 32, 32\).*groups=",
    ),
    "no samples": (lambda: find_artifacts(SAMPLES[:0]), ValueError, "must not be empty"),
    "bytes": (
        lambda: find_artifacts((SAMPLES * 255).to(torch.uint8)),
        TypeError,
        r"samples must have floating-point values.*samples\.float\(\) / 255",
    ),
    "another kind": (
        lambda: find_artifacts(SAMPLES, kinds=["colour"]),  # type: ignore[list-item]
        ValueError,
        "kinds must be one of 'range', 'saturated'",
    ),
    "no kind": (lambda: find_artifacts(SAMPLES, kinds=[]), ValueError, "at least one of range"),
    "consistency without an observation": (
        lambda: find_artifacts(SAMPLES, kinds=["consistency"]),
        ValueError,
        "'consistency' cannot be found: give an observation",
    ),
    "consistency at one size without a task": (
        lambda: find_artifacts(SAMPLES, SAMPLES, kinds=["consistency"]),
        ValueError,
        "and a task if both have one size",
    ),
    "an ensemble of three": (
        lambda: find_artifacts(SAMPLES[:3], groups=[7] * 3, kinds=["ensemble"]),
        ValueError,
        "give at least 4 samples of one observation",
    ),
    "groups of other samples": (
        lambda: find_artifacts(SAMPLES, groups=[0, 1]),
        ValueError,
        r"a number for each of the 4 samples, got shape \(2,\)",
    ),
    "a picture without a block": (
        lambda: find_artifacts(SAMPLES[..., :30], kinds=["grid"]),
        ValueError,
        "'grid' cannot be found: samples need at least 32 pixels a side",
    ),
    "levels of zero": (
        lambda: find_artifacts(SAMPLES, grid_levels=0),
        ValueError,
        "grid_levels must be a whole number of at least 1, got 0",
    ),
    "a range upside down": (
        lambda: find_artifacts(SAMPLES, value_range=(1, 0)),
        ValueError,
        "value_range must be finite and increasing",
    ),
    "black in a signal": (
        lambda: find_artifacts(SAMPLES.flatten(2), kinds=["black"]),
        ValueError,
        "a signal has no colour",
    ),
    "a truth of numbers": (
        lambda: judge_detectors({}, SAMPLES),
        TypeError,
        "truth must be bool",
    ),
    "masks of numbers": (
        lambda: judge_detectors({"a": SAMPLES}, SAMPLES > 0.5),
        TypeError,
        "The mask 'a' must be bool.*scores=",
    ),
    "a truth of other pictures": (
        lambda: judge_detectors({"a": SAMPLES[:, 0] > 1}, LOW[:, 0] > 1),
        ValueError,
        r"'a' has shape \(4, 32, 32\), and the truth has \(4, 8, 8\)",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_say_what_to_do(name: str) -> None:
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call()


def test_small_pictures_and_one_channel_work() -> None:
    for shape in ((1, 1, 1, 1), (2, 1, 7, 5), (1, 3, 3, 40), (2, 4, 33, 1)):
        found = find_artifacts(grey(*shape))
        assert not found.found and found.any.shape == (shape[0], *shape[2:])
    black = torch.zeros(1, 1, 8, 8)
    assert find_artifacts(black).counts["black"] == 1  # nothing around it: no shadow
    assert find_artifacts(torch.full((1, 3, 8, 8), math.nan)).counts["range"] == 1
