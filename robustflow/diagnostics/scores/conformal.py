"""Conformal thresholds from scores of held-out pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def conformal_threshold(scores: Tensor, alpha: float) -> float:
    """The score that a new picture exceeds with probability at most alpha.

    The k-th smallest of the n scores, k = ceil((n + 1)(1 - alpha)). If the n pictures and a new
    one are exchangeable (for instance independent draws of one distribution), and neither they
    nor it were fitted on, then for every n and every distribution

        P(score of the new picture > threshold) <= alpha,
        and >= alpha - 1/(n + 1) if no two scores are equal.

    The probability is over the n pictures and the new one together: for one set of n the rate of
    later alarms varies around it, as a Beta(n + 1 - k, k) variable if scores have a density.
    Pixels of a picture are not exchangeable with those of another: count pictures.

    Args:
        scores: (n,), one for each picture; infinite ones are allowed.
        alpha: the rate of false alarms, in (0, 1).

    Raises:
        ValueError: alpha out of range, NaN among the scores, or too few of them: below
            1/alpha - 1 no score is large enough.

    Source: Vovk, Gammerman and Shafer, 2005; Lei et al., 2018 (arXiv:1604.04173), section 2.

    Example:
        >>> conformal_threshold(torch.arange(1.0, 20.0), alpha=0.1)
        18.0
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha!r}.")
    if torch.isnan(scores).any():
        raise ValueError("scores must not be NaN: no order is known for them.")
    number = scores.numel()
    rank = math.ceil((number + 1) * (1 - alpha) - 1e-9)  # 1e-9: 20 * (1 - 0.1) is 18, not above
    if rank > number:
        raise ValueError(
            f"alpha = {alpha:g} needs at least {pictures_needed(alpha)} calibration pictures, and "
            f"there are {number}: hold more pictures out, or take a larger alpha."
        )
    return float(scores.flatten().sort().values[rank - 1])


class Calibrated:
    """A score that was calibrated on held-out pictures, so that it has a threshold."""

    _calibration: Tensor | None = None

    @property
    def calibration_scores(self) -> Tensor | None:
        """Scores of the pictures given to ``calibrate``, (n,); None before."""
        return self._calibration

    def threshold(self, alpha: float) -> float:
        """The score that a picture like the calibration pictures seldom exceeds.

        The conformal quantile over pictures: P(score > threshold) <= alpha, whatever the
        distribution, if the calibration pictures and the new one are exchangeable and none was
        fitted on. See :func:`~robustflow.diagnostics.scores.conformal_threshold`.

        Raises:
            RuntimeError: ``calibrate`` was not called.
            ValueError: alpha outside (0, 1), or too few calibration pictures for it.
        """
        if self._calibration is None:
            raise RuntimeError(
                "threshold(alpha) needs scores of held-out pictures: call calibrate(batches) first."
            )
        return conformal_threshold(self._calibration, alpha)


def pictures_needed(alpha: float) -> int:
    """How many calibration pictures there must be for alpha: at least 1/alpha - 1.

    Example:
        >>> pictures_needed(0.05)
        19
    """
    return math.ceil(1 / alpha - 1 - 1e-9)
