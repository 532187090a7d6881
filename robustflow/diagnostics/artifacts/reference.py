"""`reference`: places where a sample's local contrast is not that of a safe sample."""

from __future__ import annotations

from torch import Tensor

from robustflow.diagnostics.artifacts.regions import keep_regions, least_area, opened
from robustflow.diagnostics.artifacts.samples import Detection, Sample, displayed
from robustflow.diagnostics.artifacts.windows import gaussian, window_mean

_WINDOW, _DEVIATION = 11, 1.5  # of the Gaussian window, in pixels
_C = 0.03**2  # for values in [0, 1]
_RADIUS = 2  # of the opening: a square of 5 x 5


def contrast_map(x: Tensor, y: Tensor) -> Tensor:
    """D of two pictures: 1 where their local contrasts are equal, near 0 where one has none.

    In each channel, with s the standard deviation in a Gaussian window of 11 pixels (deviation
    1.5), C = 0.03^2 for values in [0, 1], and then the mean over channels:

        D = (2 s_x s_y + C) / (s_x^2 + s_y^2 + C)

    Args:
        x, y: (C, \\*S), values in [0, 1].

    Returns:
        (\\*S).

    Source: Xie et al., 2023 (DeSRA, arXiv:2307.02457), equation 7, with the constants of its
    code. Near the edges the mirrored picture fills the window.
    """
    s_x, s_y = _deviations(x), _deviations(y)
    return ((2 * s_x * s_y + _C) / (s_x**2 + s_y**2 + _C)).mean(dim=0)


def reference(sample: Sample) -> Detection:
    """Where 1 - D is above ``thresholds.contrast``, in regions.

    As in DeSRA, pixels that no square of 5 x 5 covers are dropped, then regions that are small.
    Its further dilation, and its thresholds by semantic class, are left out.
    """
    assert sample.safe is not None
    score = 1 - contrast_map(displayed(sample.x), displayed(sample.safe))
    mask = opened(score > sample.thresholds.contrast, _RADIUS)
    return Detection(score, keep_regions(mask, least_area(sample.size, sample.thresholds.area)))


def _deviations(x: Tensor) -> Tensor:
    """Standard deviations in windows around every pixel of (C, \\*S)."""
    weights = gaussian(_WINDOW, _DEVIATION)
    variance = window_mean(x.square(), weights) - window_mean(x, weights).square()
    return variance.clamp(min=0).sqrt()
