"""`saturated`: regions of the colours that huge values leave once they are clamped."""

from __future__ import annotations

import torch
from torch import Tensor

from robustflow.diagnostics.artifacts.regions import keep_regions, least_area
from robustflow.diagnostics.artifacts.samples import Detection, Sample, displayed


def saturated(sample: Sample) -> Detection:
    """Regions in which every channel is at a limit.

    Values of a huge magnitude end at 0 or at 1 in each channel: red, green, blue, cyan, magenta,
    yellow, white or black. Black is a kind of its own. White counts only where an observation
    shows that it should not be there: skies and lamps are white in ordinary photographs. In a
    signal both limits count. A region that the observation has itself does not.

    The score is how near all channels are to limits, times how colourful (or bright) that is.
    """
    shown, observed = displayed(sample.x), sample.observed
    high, low = shown.amax(dim=0), shown.amin(dim=0)
    to_limit = torch.minimum(shown, 1 - shown).amax(dim=0)
    if len(sample.size) == 1:
        weight = torch.ones_like(high)
    else:
        weight = high - low if observed is None else high
    at_limit = (to_limit <= sample.thresholds.limit) & (weight > 0.5)

    def counts(box: tuple[slice, ...], region: Tensor) -> bool:
        return observed is None or not bool(observed[box][region].float().mean() > 0.5)

    area = least_area(sample.size, sample.thresholds.area)
    return Detection((1 - 2 * to_limit) * weight, keep_regions(at_limit, area, counts))
