"""The scores of a report: their features, fitted on the training contexts, and their maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustflow.diagnostics.gain_score import GainScore
from robustflow.diagnostics.report.evidence import (
    Evidence,
    FeatureFunction,
    Sampler,
)
from robustflow.diagnostics.scores import (
    KNNScore,
    MahalanobisScore,
    RelativeMahalanobisScore,
    tap,
)
from robustflow.diagnostics.scores.features import as_levels
from robustflow.diagnostics.scores.knn import DEFAULT_K

GAIN = "gain"
FEATURES, HIDDEN, RAW = "conditioning features", "conditioner's hidden input", "raw observation"
_CORESET = 2000


def fit_scores(
    batches: Callable[[], Sequence[Any]], background: Callable[[], Sequence[Any]]
) -> dict[str, Any]:
    """The fitted scores, from features of the training contexts and of all contexts."""
    return {
        "Mahalanobis": MahalanobisScore().fit(batches()),
        "nearest neighbours": KNNScore(k=_neighbours(batches()), coreset_size=_CORESET).fit(
            batches()
        ),
        "relative Mahalanobis": RelativeMahalanobisScore().fit(batches(), background()),
    }


def _neighbours(batches: Sequence[Any]) -> int:
    """The usual k, or fewer where there are fewer pixels."""
    coarsest = [min(level[:, 0].numel() for level in as_levels(each).values()) for each in batches]
    return min(DEFAULT_K, sum(coarsest))


def score_contexts(evidence: Sequence[Evidence], looks_at: str, features: FeatureFunction) -> None:
    """Add scores that depend on the contexts alone to the evidence.

    Args:
        evidence: of all contexts; familiar ones are fitted on.
        looks_at: :data:`FEATURES` or :data:`RAW`.
        features: of a context (1, C, \\*S).
    """
    extracted = [detached(features(each.context)) for each in evidence]

    def of(familiar: bool) -> list[Any]:
        pairs = zip(extracted, evidence, strict=True)
        return [part for part, each in pairs if each.familiar or not familiar]

    for name, score in fit_scores(lambda: of(True), lambda: of(False)).items():
        for part, each in zip(extracted, evidence, strict=True):
            _add(each, f"{name}, {looks_at}", score.score(part, per="pixel")[0])


def score_hidden(
    model: nn.Module,
    sampler: Sampler,
    evidence: Sequence[Evidence],
    *,
    layer: str,
    number: int,
    temperature: float,
    seed: int,
) -> None:
    """Add the scores of a conditioner's hidden layer, which reads z1 and the features.

    Args:
        model, sampler: as for :func:`sample_and_watch`; the samples are drawn again, alike.
        evidence: of all contexts; familiar ones are fitted on.
        layer: the module's name. The coupling that is sampled first reads latents that no explosion
            has reached, so its score is a prediction.
        number, temperature, seed: of the samples.
    """
    extracted = []
    for each in evidence:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad(), tap(model, layer) as tapped:
            sampler(each.context, number, temperature, generator)
            extracted.append(tapped.take())

    def of(familiar: bool) -> list[Any]:
        pairs = zip(extracted, evidence, strict=True)
        return [part for part, each in pairs if each.familiar or not familiar]

    for name, score in fit_scores(lambda: of(True), lambda: of(False)).items():
        for part, each in zip(extracted, evidence, strict=True):
            _add(each, f"{name}, {HIDDEN}", score.score(part, per="pixel"))


def score_gains(model: nn.Module, sampler: Sampler, evidence: Sequence[Evidence]) -> None:
    """Add the largest inverse derivative while inverting the latents' mean, for each context."""

    def at_the_mean(_: nn.Module, context: Tensor) -> Tensor:
        return sampler(context, 1, 0.0, torch.Generator())

    score = GainScore(model, run=at_the_mean)
    for each in evidence:
        each.scores[GAIN] = float(score(each.context)[0])


def hidden_layer_of(model: nn.Module) -> str | None:
    """The first activation of the conditioner that is sampled first; None without one."""
    from robustflow.nn import Coupling, Split

    layer = None
    for name, module in model.named_modules():
        if isinstance(module, Coupling) and not isinstance(module, Split):
            layer = f"{name}.conditioner.trunk.0"  # the last in the flow is the first in sampling
    return layer if layer in dict(model.named_modules()) else None


def detached(features: Any) -> Any:
    """Features as tensors without gradients, by level."""
    levels = {name: level.detach() for name, level in as_levels(features).items()}
    return next(iter(levels.values())) if len(levels) == 1 else levels


def _add(evidence: Evidence, name: str, pixels: Tensor) -> None:
    """A map of scores, brought to the grid, and the picture's score, its mean."""
    values: NDArray[np.float64] = pixels.cpu().double().numpy()
    evidence.maps[name] = _on_grid(values, evidence.grid)
    finite = values[np.isfinite(values)]
    evidence.scores[name] = float(finite.mean()) if finite.size else float("inf")


def _on_grid(values: NDArray[np.float64], grid: tuple[int, ...]) -> NDArray[np.float64]:
    sample_dims = values.ndim - len(grid)
    if values.shape[sample_dims:] == grid:
        return values
    for axis, cells in enumerate(grid, start=sample_dims):
        size = values.shape[axis]
        index = ((np.arange(cells) + 0.5) * size / cells).astype(int)
        values = np.take(values, index, axis=axis)
    return values
