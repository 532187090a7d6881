"""Judges detectors by a mask of the true artifacts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustflow.diagnostics.artifacts.find import Artifacts
from robustflow.diagnostics.intervals import (
    NOTHING,
    Estimate,
    auroc_of_pictures,
    bootstrap_interval,
    wilson_interval,
)


@dataclass(frozen=True)
class Judgement:
    """Figures of one detector; NaN where artifacts or masks are missing.

    Attributes:
        auroc: the probability that a pixel of an artifact scores above another, ties by half.
        iou: intersection over union of mask and truth, over all pictures together.
        false_alarms: the share of pixels without artifact that are in the mask.
        hit_pictures: of the pictures with an artifact, the share with anything in the mask.
        false_pictures: of the pictures without, the share with anything in the mask.

    Intervals are of 95 %: for the first three by bootstrap over pictures, for the others Wilson's.
    """

    auroc: Estimate
    iou: Estimate
    false_alarms: Estimate
    hit_pictures: Estimate
    false_pictures: Estimate

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, None for NaN."""
        return {name: estimate.as_json() for name, estimate in vars(self).items()}


@torch.no_grad()
def judge_detectors(
    found: Artifacts | Mapping[str, Tensor],
    truth: Tensor,
    *,
    scores: Mapping[str, Tensor] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Judgement]:
    """Judge masks and scores by the truth.

    The truth may be planted, or the ``.contaminated`` mask of an
    :class:`~robustflow.diagnostics.InverseMonitor`: every pixel that an explosion reached.

    Args:
        found: what :func:`find_artifacts` returned, or masks by name, (N, \\*S), bool.
        truth: (N, \\*S), or (N, C, \\*S), which counts a pixel where any channel does; bool.
        scores: by name, (N, \\*S), larger where an artifact is likelier; those of ``found`` by
            default.
        resamples, seed: of the bootstrap over pictures.

    Returns:
        A judgement for every name among masks and scores.

    Raises:
        TypeError: masks or a truth that are not bool.
        ValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> from robustflow.diagnostics import judge_detectors
        >>> truth = torch.zeros(8, 16, 16, dtype=torch.bool)
        >>> truth[:4, 4:8, 4:8] = True
        >>> mask = truth.roll(1, dims=2)  # one pixel off
        >>> judged = judge_detectors({"late": mask}, truth, scores={"late": mask.float()})["late"]
        >>> print(judged.iou, judged.hit_pictures, sep=", ")
        0.600 [0.600, 0.600], 1.000 [0.510, 1.000]
    """
    masks = found.masks if isinstance(found, Artifacts) else dict(found)
    if scores is None:
        scores = found.scores if isinstance(found, Artifacts) else {}
    names = list(dict.fromkeys([*masks, *scores]))
    if truth.dtype != torch.bool:
        raise TypeError(f"truth must be bool, got {truth.dtype}: compare it with a threshold.")
    like = next(iter([*masks.values(), *scores.values()]), truth)
    if truth.dim() == like.dim() + 1:
        truth = truth.any(dim=1)
    for name in names:
        for tensor in (masks.get(name), scores.get(name)):
            if tensor is not None and tensor.shape != truth.shape:
                raise ValueError(
                    f"{name!r} has shape {tuple(tensor.shape)}, and the truth has "
                    f"{tuple(truth.shape)}: both must be of the same pictures."
                )
        if name in masks and masks[name].dtype != torch.bool:
            raise TypeError(
                f"The mask {name!r} must be bool, got {masks[name].dtype}: give scores by scores=."
            )
    flat_truth = truth.flatten(1).cpu()

    def over_pictures(statistic: Callable[[Tensor], float]) -> Estimate:
        return bootstrap_interval(statistic, len(truth), resamples=resamples, seed=seed)

    judged = {}
    for name in names:
        auroc = iou = false_alarms = hit_pictures = false_pictures = NOTHING
        if name in scores:
            auroc = over_pictures(auroc_of_pictures(scores[name].flatten(1).cpu(), flat_truth))
        if name in masks:
            mask = masks[name].flatten(1).cpu()
            iou = over_pictures(_ratio(mask & flat_truth, mask | flat_truth))
            false_alarms = over_pictures(_ratio(mask & ~flat_truth, ~flat_truth))
            flagged, has = mask.any(dim=1), flat_truth.any(dim=1)
            hit_pictures = wilson_interval(int(flagged[has].sum()), int(has.sum()))
            false_pictures = wilson_interval(int(flagged[~has].sum()), int((~has).sum()))
        judged[name] = Judgement(auroc, iou, false_alarms, hit_pictures, false_pictures)
    return judged


def _ratio(part: Tensor, whole: Tensor) -> Callable[[Tensor], float]:
    """Pixels of ``part`` over those of ``whole``, (N, pixels), with pictures counted as drawn."""
    parts, wholes = part.sum(dim=1).double(), whole.sum(dim=1).double()

    def statistic(counts: Tensor) -> float:
        total = float(counts @ wholes)
        return float(counts @ parts) / total if total else math.nan

    return statistic
