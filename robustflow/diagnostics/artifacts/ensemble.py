"""`ensemble`: places where a sample is far from the other samples of its observation."""

from __future__ import annotations

import torch
from torch import Tensor

from robustflow.diagnostics.artifacts.published_rule import HIGHEST, LOWEST
from robustflow.diagnostics.artifacts.regions import keep_regions, least_area
from robustflow.diagnostics.artifacts.samples import Detection, Sample
from robustflow.diagnostics.artifacts.windows import window_mean

LEAST_SAMPLES = 4  # with fewer, the median says nothing
_WINDOW = 5  # pixels over which deviations are averaged: that of few samples is noisy
_FLOOR = 1 / 255  # an 8-bit step: where all samples agree, rounding is no outlier
_NORMAL = 1.4826  # standard deviations in the median absolute deviation of a Gaussian


def ensemble_scores(samples: Tensor) -> Tensor:
    """Distance from the median of the samples, in robust standard deviations.

    With the median m over S samples, and MAD the median of |x - m|, averaged over 5 x 5 pixels:

        score = max over channels |x - m| / (1.4826 MAD + 1/255)

    infinite where x is not finite. Values are clamped to the published rule's range first. Where
    more than half of the samples have the artifact, the median has it too, and it is not seen.

    Args:
        samples: (S, C, \\*S) of one observation, values in units of their range.

    Returns:
        (S, \\*S).
    """
    finite = torch.isfinite(samples)
    x = torch.where(finite, samples, torch.nan).clamp(LOWEST, HIGHEST)
    median = x.nanmedian(dim=0).values
    distance = (x - median).abs()
    deviation = distance.nanmedian(dim=0).values.nan_to_num(nan=0.0)  # NaN: no sample is finite
    spread = window_mean(deviation, torch.full((_WINDOW,), 1 / _WINDOW))
    score = (distance / (_NORMAL * spread + _FLOOR)).amax(dim=1)
    return torch.where(finite.all(dim=1), score, torch.inf)


def ensemble(sample: Sample) -> Detection:
    """Where :func:`ensemble_scores` is above ``thresholds.ensemble``, in regions.

    Single pixels far from the median of a few samples are common; regions of them are rare.
    """
    assert sample.outliers is not None
    far = sample.outliers > sample.thresholds.ensemble
    area = least_area(sample.size, sample.thresholds.area)
    return Detection(sample.outliers, keep_regions(far, area))
