"""Calibration: every measure on a Gaussian problem, where it can be computed, and by libraries."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from robustflow.diagnostics import PosteriorReport, posterior_report
from robustflow.diagnostics.intervals import Estimate
from robustflow.diagnostics.posterior import crps, energy_score, linear_functionals, ranks
from robustflow.diagnostics.posterior.conformal import needed_multiplier
from robustflow.diagnostics.posterior.coverage import WHOLE, inside, means, sides_of, tails
from robustflow.diagnostics.posterior.quality import psnr, ssim
from robustflow.diagnostics.posterior.tarp import LEVELS, distance_rank, references_of
from tests.diagnostics.gaussian_problem import (
    MISSES,
    SIDE,
    bias_of,
    draw,
    posterior,
    problems,
    rank_law,
)

PICTURES, SAMPLES = 200, 19
SHAPE = (1, SIDE, SIDE)
EACH = pytest.mark.parametrize("name", MISSES)


@lru_cache(maxsize=1)
def known() -> tuple[Tensor, Tensor]:
    truth, mean = problems(PICTURES, seed=1)
    return truth.float(), mean


@lru_cache(maxsize=4)
def samples_of(name: str) -> Tensor:
    return draw(known()[1], SAMPLES, MISSES[name], seed=2).float()


@lru_cache(maxsize=4)
def report_of(name: str) -> PosteriorReport:
    return posterior_report(samples_of(name), known()[0])


def error(estimate: Estimate) -> float:
    """Its standard error, from its 95 % interval."""
    return (estimate.high - estimate.low) / (2 * 1.96)


def agrees(estimate: Estimate, expected: float) -> None:
    """Within 4 standard errors; those of a rate over pictures where all pictures are alike."""
    deviation = error(estimate) or math.sqrt(expected * (1 - expected) / PICTURES)
    assert abs(estimate.value - expected) < 4 * deviation, f"{estimate}: {expected}"


@EACH
def test_coverage_is_what_it_is(name: str) -> None:
    """Of pixels, of means of 4 x 4 and of all, at every level; 1 - 2a/(K + 1) if calibrated."""
    miss = MISSES[name]
    pixels = torch.eye(SIDE**2, dtype=torch.float64).view(-1, *SHAPE)
    for side, found in zip(sides_of(SHAPE), report_of(name).coverage, strict=True):
        weights = means(pixels, side).flatten(1).T
        laws = [rank_law(SAMPLES, bias, miss.width) for bias in bias_of(weights, miss)]
        law = np.mean(laws, axis=0)
        for (a, nominal), observed in zip(tails(SAMPLES).items(), found.observed, strict=True):
            expected = float(law[a : SAMPLES - a + 1].sum())
            agrees(observed, expected)
            if name == "calibrated":
                assert expected == pytest.approx(nominal, abs=1e-7)
    assert [each.region for each in report_of(name).coverage] == [
        "pixels",
        "means of 4 x 4",
        "means of all",
    ]


@EACH
def test_ranks_of_functionals_have_the_law_that_they_should(name: str) -> None:
    report, miss = report_of(name), MISSES[name]
    weights = linear_functionals(SHAPE)
    places = np.arange(SAMPLES + 1)
    for bias, (functional, found) in zip(
        bias_of(torch.stack(list(weights.values())), miss), report.ranks.items(), strict=True
    ):
        law = rank_law(SAMPLES, bias, miss.width)
        mean = law @ places
        variance = float(law @ (places - mean) ** 2)
        values = found.double().numpy()
        assert abs(values.mean() - mean) < 4 * math.sqrt(variance / PICTURES), functional
        fourth = law @ (places - mean) ** 4
        spread = math.sqrt((fourth - variance**2) / PICTURES)
        assert abs(values.var() - variance) < 4.5 * spread, functional


def test_the_tests_of_uniformity_say_what_is_wrong() -> None:
    calibrated = report_of("calibrated")
    assert calibrated.rank_p_value > 0.05 and calibrated.tarp.test.p_value > 0.05
    assert "linear functionals: p" in str(calibrated) and "uniform." in str(calibrated)
    for name, words in (
        ("too wide", "the samples are too wide"),
        ("too narrow", "the samples are too narrow"),
        ("biased", "the truth lies below the samples"),
    ):
        report = report_of(name)
        assert report.rank_p_value < 1e-3 and report.tarp.test.p_value < 1e-3
        assert words in str(report)


def test_p_values_of_calibrated_samples_are_uniform_themselves() -> None:
    """Of 40 sets of 40 pictures: as many p-values below 0.1 as there should be."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for seed in range(40):
        x = torch.randn(40, 6, 12, generator=generator)
        report = posterior_report(x[:, 1:], x[:, 0], seed=seed)
        found += [each.p_value for each in report.rank_tests.values()]
        found.append(report.tarp.test.p_value)
    rate = np.mean(np.array(found) < 0.1)
    assert abs(rate - 0.1) < 0.05


@EACH
def test_tarp_is_the_probability_of_the_balls(name: str) -> None:
    """Expected from many draws of each picture's truth and samples, for the same references."""
    truth, mean = known()
    generator = torch.Generator().manual_seed(0)
    references = references_of(truth, generator)
    report = posterior_report(samples_of(name), truth, references=references, quality=())
    many = draw(mean, 200, MISSES[name], seed=3)
    others = draw(mean, 200, MISSES["calibrated"], seed=4)
    far = [(each - references[:, None]).flatten(2).norm(dim=2) for each in (many, others)]
    chance = (
        torch.stack(
            [
                torch.searchsorted(a, b)
                for a, b in zip(far[0].sort(dim=1).values, far[1], strict=True)
            ]
        )
        / far[0].shape[1]
    )
    law = torch.distributions.Binomial(SAMPLES, chance.flatten()[:, None])
    weights = law.log_prob(torch.arange(SAMPLES + 1.0)).exp().double().mean(dim=0)
    edges = torch.arange(SAMPLES + 1, dtype=torch.float64)
    for level, observed in zip(LEVELS, report.tarp.observed, strict=True):
        below = (level * (SAMPLES + 1) - edges).clamp(0, 1)  # how much of a rank's step
        expected = float(weights @ below)
        deviation = math.sqrt(expected * (1 - expected) / PICTURES)
        assert abs(observed.value - expected) < 4 * deviation


@EACH
def test_spread_errors_and_z_scores_are_those_of_the_formulas(name: str) -> None:
    spread, miss = report_of(name).spread, MISSES[name]
    error_square = 1 + miss.width**2 / SAMPLES + miss.bias**2  # over the posterior's variance
    own = (1 + 1 / SAMPLES) * miss.width**2
    agrees(spread.ratio, math.sqrt(own / error_square))
    agrees(spread.z_size, math.sqrt(error_square / own))
    half = (SAMPLES - 1) / 2
    inverse = math.sqrt(half) * math.exp(math.lgamma(half - 0.5) - math.lgamma(half))
    agrees(spread.z_mean, -miss.bias / miss.width * inverse)
    deviation = posterior()[2].diagonal().sqrt().view(SHAPE)
    relative = spread.spread_map / deviation / math.sqrt(own)
    assert relative.sub(1).abs().max() < 0.05
    assert (spread.error_map / deviation / math.sqrt(error_square)).sub(1).abs().max() < 0.2
    assert len(spread.bins) == 10


@EACH
def test_conformal_promises_hold_whatever_the_samples_are_worth(name: str) -> None:
    report, miss = report_of(name), MISSES[name]
    truth, mean = problems(400, seed=11)
    truth, fresh = truth.float(), draw(mean, SAMPLES, miss, seed=12).float()
    intervals = report.intervals
    assert intervals is not None and intervals.pictures == PICTURES // 2
    held = []
    for samples, x in zip(fresh, truth, strict=True):
        low, high = intervals.interval(samples)
        held.append(float(((x >= low) & (x <= high)).float().mean()) >= 0.9)
    rates = [np.mean(held)]
    for metric, function in (("PSNR", psnr), ("SSIM", ssim)):
        bound = report.bounds[metric]
        reached = [
            float(function(samples.mean(dim=0, keepdim=True), x[None])) >= bound.bound(samples)
            for samples, x in zip(fresh, truth, strict=True)
        ]
        rates.append(np.mean(reached))
    number = intervals.pictures
    expected = math.ceil((number + 1) * 0.9) / (number + 1)
    variance = expected * (1 - expected)
    deviation = math.sqrt(variance / (number + 2) + variance / len(held))
    for rate in rates:
        assert abs(rate - expected) < 4 * deviation
    if name != "calibrated":
        calibrated = report_of("calibrated").intervals
        assert calibrated is not None
        ratio = intervals.multiplier / calibrated.multiplier
        assert ratio == pytest.approx(
            {"too wide": 1 / 1.6, "too narrow": 1 / 0.6}.get(name, ratio), rel=0.07
        )


def test_proper_scores_are_those_of_the_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    z = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    expected = z.numpy() * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi)
    np.testing.assert_allclose(crps(x, z).numpy(), expected, atol=0.02)
    assert float(energy_score(x[:500, :1], z[:1])) == pytest.approx(float(crps(x[:500], z)[0]))
    few = x[:5]
    distances = torch.stack([(a - b).norm() for i, a in enumerate(few) for b in few[:i]])
    score = (few - z).norm(dim=1).mean() - distances.sum() / 20
    assert float(energy_score(few, z)) == pytest.approx(float(score) / math.sqrt(3))
    with pytest.raises(ValueError, match="at least 2"):
        crps(x[:1], z)


def test_ties_are_decided_by_lot() -> None:
    generator = torch.Generator().manual_seed(0)
    found = ranks(torch.zeros(3, 20_000), torch.zeros(20_000), generator)
    shares = torch.bincount(found, minlength=4) / len(found)
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.015, rtol=0)


def test_ranks_are_those_of_sbi() -> None:
    sbi = pytest.importorskip("sbi.diagnostics")
    truth, samples = known()[0][:120].flatten(1), samples_of("biased")[:120].flatten(2)

    class Sampler:
        def sample_batched(self, shape: object, x: Tensor, show_progress_bars: bool) -> Tensor:
            return samples.transpose(0, 1)

    found, _ = sbi.run_sbc(
        truth, truth, Sampler(), num_posterior_samples=SAMPLES, show_progress_bar=False
    )
    own = torch.stack([ranks(x, t) for x, t in zip(samples, truth, strict=True)])
    assert torch.equal(found.long(), own)


@pytest.mark.parametrize("name", ["calibrated", "too narrow"])
def test_expected_coverage_is_that_of_tarp(name: str) -> None:
    tarp = pytest.importorskip("tarp")
    truth, samples = known()[0].flatten(1), samples_of(name).flatten(2)
    references = references_of(truth, torch.Generator().manual_seed(5))
    expected, levels = tarp.get_tarp_coverage(
        samples.transpose(0, 1).numpy(), truth.numpy(), references=references.numpy()
    )
    every = zip(samples, truth, references, strict=True)
    share = torch.stack([distance_rank(*each) for each in every]).double() / SAMPLES
    own = [float((share < level).double().mean()) for level in levels[:-1]]
    np.testing.assert_allclose(own, expected[:-1], atol=1e-12)


def test_an_interval_holds_just_the_share_that_was_asked_for() -> None:
    samples, truth = samples_of("biased")[0], known()[0][0]
    multiplier = needed_multiplier(samples, truth, 0.9)
    deviation, mean = torch.std_mean(samples, dim=0)
    share = ((truth - mean).abs() <= multiplier * deviation * (1 + 1e-12)).double().mean()
    assert 0.9 <= float(share) < 0.9 + 1 / truth.numel()


def test_levels_are_those_that_samples_allow_exactly() -> None:
    """The truth and K samples are alike: it is in [a-th smallest, a-th largest] by symmetry."""
    order = torch.rand(50_000, 8).argsort(dim=1).argsort(dim=1)[:, 0]
    for a, share in tails(7).items():
        assert float(inside(order, 7, a).float().mean()) == pytest.approx(share, abs=0.01)


def test_vectors_signals_and_own_functionals(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(30, 9, 5, generator=generator)
    report = posterior_report(vectors[:, 1:], vectors[:, 0], functionals={"first": torch.eye(5)[0]})
    assert list(report.ranks) == ["first"] and not report.bounds
    expected = (vectors[:, 1:, 0] < vectors[:, :1, 0]).sum(dim=1)
    assert torch.equal(report.ranks["first"], expected)
    assert [each.region for each in report.coverage] == ["components", "means of all"]
    signals = torch.randn(12, 9, 2, 32, generator=generator)
    report = posterior_report(signals[:, 1:], signals[:, 0])
    assert [each.region for each in report.coverage][1:] == [
        "means of 4",
        "means of 16",
        "means of all",
    ]
    report.figure().savefig(tmp_path / "signals.png")
    few = posterior_report(signals[:5, 1:], signals[:5, 0])
    assert few.intervals is None and "need more pictures" in str(few)


def test_the_report_as_text_figure_and_json(tmp_path: Path) -> None:
    report = report_of("too narrow")
    text = str(report)
    assert text.startswith("200 pictures of 1 x 12 x 12, 19 samples of each")
    assert "PSNR of the mean is at least" in text
    saved = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert saved["coverage"][0]["observed"][0]["value"] == report.coverage[0].observed[0].value
    assert saved["bounds"]["SSIM"]["offset"] == report.bounds["SSIM"].offset
    figure = report.figure()
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == "coverage of central intervals"
    figure.savefig(tmp_path / "report.png")


def test_bad_calls_say_what_to_do() -> None:
    x = torch.rand(10, 6, 1, 4, 4)
    with pytest.raises(ValueError, match=r"samples must be \(N, K, \*S\)"):
        posterior_report(x, x[:, :, 0])
    with pytest.raises(ValueError, match="at least 4 of each"):
        posterior_report(x[:, :3], x[:, 5])
    with pytest.raises(ValueError, match="alpha must lie"):
        posterior_report(x[:, :5], x[:, 5], alpha=1.0)
    with pytest.raises(ValueError, match="functional 'w' must have"):
        posterior_report(x[:, :5], x[:, 5], functionals={"w": torch.ones(3)})
    with pytest.raises(ValueError, match="references must have"):
        posterior_report(x[:, :5], x[:, 5], references=x[:1, 5])
    with pytest.raises(ValueError, match="sides of at least 11"):
        posterior_report(x[:, :5], x[:, 5], quality=["SSIM"])
    broken = x.clone()
    broken[3, 2, 0, 1, 1] = math.nan
    with pytest.raises(ValueError, match="samples of 1 pictures hold values that are not finite"):
        posterior_report(broken[:, :5], x[:, 5])


def test_regions_leave_out_remainders() -> None:
    x = torch.arange(10.0).expand(1, 1, 5, 10)
    assert means(x, 4).tolist() == [[[[1.5, 5.5]]]]
    assert means(x, WHOLE).tolist() == [[4.5]]
