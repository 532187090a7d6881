"""Conformal lower bounds on a reconstruction's PSNR and SSIM, without its truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow.diagnostics.intervals import Estimate, mean_interval
from robustflow.diagnostics.posterior.conformal import calibrate, held
from robustflow.diagnostics.posterior.quality import psnr, ssim

Metric = Callable[[Tensor, Tensor], Tensor]
METRICS: Mapping[str, Metric] = {"PSNR": psnr, "SSIM": ssim}


@dataclass(frozen=True)
class QualityBound:
    """A lower bound on a metric of the samples' mean against the truth.

    With probability at least ``1 - alpha`` a new picture's metric is at least :meth:`bound` of its
    samples, if it and the pictures of the calibration are exchangeable.

    Attributes:
        metric: "PSNR", in dB, or "SSIM".
        alpha: chance of a picture that is worse than its bound.
        offset: subtracted from the metric that the samples predict; negative if they are too
            pessimistic.
        pictures: number of pictures that it was calibrated on.
        mean_bound: over all pictures.
        mean_metric: mean of the metric itself.
        held: the share of the other pictures that are at least as good as their bound.
    """

    metric: str
    alpha: float
    offset: float
    pictures: int
    mean_bound: Estimate
    mean_metric: Estimate
    held: Estimate

    def bound(self, samples: Tensor) -> float:
        """The bound from a new picture's samples (K, C, H, W), as many as before."""
        return _less(foretold(samples, METRICS[self.metric], self.alpha), self.offset)


def foretold(samples: Tensor, metric: Metric, alpha: float) -> float:
    """The predicted metric: the alpha-quantile over the samples, each taken for the truth.

    Args:
        samples: (K, C, H, W); their mean is the reconstruction.
        metric: larger is better.
        alpha: of the quantile.
    """
    mean = samples.mean(dim=0, keepdim=True).expand_as(samples)
    return float(metric(mean, samples).quantile(alpha))


def quality_bound(
    name: str,
    predictions: Sequence[float],
    metrics: Sequence[float],
    parts: tuple[Tensor, Tensor],
    alpha: float,
) -> QualityBound:
    """From each picture's :func:`foretold` value and the metric of its mean.

    Source: Wen, Ahmad and Schniter, 2025, Conformal bounds on full-reference image quality for
    imaging inverse problems (arXiv:2505.09528): the bound from a quantile over samples.
    """
    differences = (torch.tensor(predictions) - torch.tensor(metrics)).tolist()
    offset = calibrate(differences, parts, alpha)
    return QualityBound(
        name,
        alpha,
        offset,
        len(parts[0]),
        mean_interval([_less(each, offset) for each in predictions]),
        mean_interval(metrics),
        held(differences, parts, offset),
    )


def _less(predicted: float, offset: float) -> float:
    """The bound; none at all where PSNR was foretold infinite, by samples without any spread."""
    return -math.inf if offset == math.inf else predicted - offset
