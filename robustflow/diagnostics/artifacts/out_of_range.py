"""`range`: pixels with a value that no picture has."""

from __future__ import annotations

from robustflow.diagnostics.artifacts.published_rule import distance_from_grey, faulty_pixels
from robustflow.diagnostics.artifacts.samples import Detection, Sample


def out_of_range(sample: Sample) -> Detection:
    """Where a channel breaks the published rule; its distance from grey is the score."""
    score = distance_from_grey(sample.x).amax(dim=0)
    return Detection(score, faulty_pixels(sample.x).any(dim=0))
