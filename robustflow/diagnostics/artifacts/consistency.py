"""`consistency`: a sample whose observation would not be the one that was observed."""

from __future__ import annotations

from robustflow.diagnostics.artifacts.observations import residual
from robustflow.diagnostics.artifacts.samples import Detection, Sample, enlarged


def consistency(sample: Sample) -> Detection:
    """Where |A(x) - y|, the largest over channels, is above ``thresholds.consistency``.

    Needs no ground truth. A pixel of the observation counts for all pixels of the sample that it
    covers.
    """
    assert sample.observation is not None and sample.apply is not None
    score = enlarged(residual(sample.x, sample.observation, sample.apply), sample.size)
    return Detection(score, score > sample.thresholds.consistency)
