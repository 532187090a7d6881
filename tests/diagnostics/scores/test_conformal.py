"""The conformal threshold: its rank, its guarantee by simulation, and too few pictures."""

from __future__ import annotations

import math

import pytest
import torch

from robustflow.diagnostics import MahalanobisScore, conformal_threshold
from robustflow.diagnostics.scores import pictures_needed

REPETITIONS = 20_000


@pytest.mark.parametrize(
    ("number", "alpha", "rate"),
    [(19, 0.1, 2 / 20), (25, 0.1, 2 / 26), (99, 0.01, 1 / 100), (40, 0.5, 20 / 41)],
)
def test_false_alarms_are_as_rare_as_promised(number: int, alpha: float, rate: float) -> None:
    """With a density the rate is exactly floor((n + 1) alpha) / (n + 1), heavy tails or not."""
    heavy = torch.distributions.Cauchy(0.0, 1.0)
    scores = heavy.sample((REPETITIONS, number + 1)).double()
    thresholds = [conformal_threshold(row[:-1], alpha) for row in scores]
    alarms = float((scores[:, -1] > torch.tensor(thresholds)).double().mean())
    error = math.sqrt(rate * (1 - rate) / REPETITIONS)
    assert abs(alarms - rate) < 4 * error
    assert alpha - 1 / (number + 1) <= rate <= alpha


def test_ties_only_make_alarms_rarer() -> None:
    scores = torch.randint(3, (REPETITIONS, 20)).double()
    thresholds = [conformal_threshold(row[:-1], 0.1) for row in scores]
    assert float((scores[:, -1] > torch.tensor(thresholds)).double().mean()) <= 0.1


def test_the_guarantee_holds_for_pictures_whose_pixels_correlate() -> None:
    """However alike the pixels of a picture are: pictures are what is counted."""

    def pictures(number: int) -> torch.Tensor:
        brightness = torch.distributions.StudentT(2.5).sample((number, 1, 1))
        return brightness + 0.3 * torch.randn(number, 3, 16)

    score = MahalanobisScore(pooling="max").fit(pictures(60))
    repetitions, number, alpha = 1500, 19, 0.1
    found = score.score(pictures(repetitions * (number + 1))).view(repetitions, number + 1)
    alarms = 0
    for row in found:
        score._calibration = row[:-1]
        alarms += bool(row[-1] > score.threshold(alpha))
    assert abs(alarms / repetitions - alpha) < 4 * math.sqrt(alpha * (1 - alpha) / repetitions)


def test_calibrating_scores_the_pictures_of_all_batches() -> None:
    held_out = torch.randn(9, 3, 4, 4)
    score = MahalanobisScore().fit(torch.randn(20, 3, 4, 4)).calibrate(held_out.split(4))
    expected = score.score(held_out)
    assert score.calibration_scores is not None
    torch.testing.assert_close(score.calibration_scores, expected)
    assert score.threshold(0.1) == pytest.approx(float(expected.max()))


@pytest.mark.parametrize(("alpha", "needed"), [(0.1, 9), (0.05, 19), (0.01, 99), (0.3, 3)])
def test_too_few_pictures_are_told_how_many(alpha: float, needed: int) -> None:
    assert pictures_needed(alpha) == needed
    enough = torch.arange(1.0, needed + 1)
    assert conformal_threshold(enough, alpha) == needed
    message = f"alpha = {alpha:g} needs at least {needed} calibration pictures, and there are"
    with pytest.raises(ValueError, match=message):
        conformal_threshold(enough[1:], alpha)


def test_infinite_scores_are_counted_and_nan_is_refused() -> None:
    scores = torch.cat([torch.arange(10.0), torch.tensor([math.inf] * 9)])
    assert conformal_threshold(scores, 0.5) == 9.0
    assert conformal_threshold(scores, 0.1) == math.inf
    with pytest.raises(ValueError, match="NaN"):
        conformal_threshold(scores * 0, 0.5)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, math.nan])
def test_alpha_is_a_rate(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        conformal_threshold(torch.arange(100.0), alpha)
