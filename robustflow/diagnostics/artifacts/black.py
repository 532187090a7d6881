"""`black`: regions that NaN, or values far below zero, leave in a picture."""

from __future__ import annotations

from torch import Tensor

from robustflow.diagnostics.artifacts.published_rule import faulty_pixels
from robustflow.diagnostics.artifacts.regions import keep_regions, least_area, ring
from robustflow.diagnostics.artifacts.samples import Detection, Sample, displayed


def black(sample: Sample) -> Detection:
    """Regions that are displayed as pure black, and that the observation does not have.

    A region counts if a value inside broke the published rule before clamping, or, where none did
    (in a file of 8 bits none can), if it has an edge: the shadows of photographs fade into black.
    The score is the darkness of the brightest channel.
    """
    brightest, observed = displayed(sample.x).amax(dim=0), sample.observed
    faulty = faulty_pixels(sample.x).any(dim=0)

    def counts(box: tuple[slice, ...], region: Tensor) -> bool:
        if observed is not None and observed[box][region].float().mean() > 0.5:
            return False
        if faulty[box][region].any():
            return True
        around = brightest[box][ring(region)]
        return around.numel() == 0 or bool(around.median() >= sample.thresholds.edge)

    area = least_area(sample.size, sample.thresholds.area)
    dark = brightest <= sample.thresholds.limit
    return Detection(1 - brightest, keep_regions(dark, area, counts))
