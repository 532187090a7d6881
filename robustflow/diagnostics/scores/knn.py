"""The distance of features to their k-th nearest neighbour in a subset of the training features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from robustflow._checks import check_choice
from robustflow.diagnostics.scores.coreset import Reservoir, greedy_k_center
from robustflow.diagnostics.scores.features import (
    Features,
    as_batches,
    as_levels,
    check_finite,
    tiles,
)
from robustflow.diagnostics.scores.score import FeatureScore, Pooling, check_same_levels

_CANDIDATES = 10  # random pixels for each one that k-center selects from them
_DISTANCES = 2**21  # how many distances are in memory at once

DEFAULT_K = 5


@dataclass(frozen=True)
class Neighbours:
    """The chosen training features of one level.

    Attributes:
        coreset: (M, C), divided by ``scale``.
        scale: (C,), standard deviations, or ones.
        k: the neighbour whose distance counts.
    """

    coreset: Tensor
    scale: Tensor
    k: int

    @property
    def channels(self) -> int:
        return self.scale.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> Neighbours:
        return replace(
            self, coreset=self.coreset.to(device, dtype), scale=self.scale.to(device, dtype)
        )

    def score(self, features: Tensor) -> Tensor:
        """The distance of rows (M, C) to the k-th nearest of the coreset -> (M,)."""
        centre = self.coreset.mean(dim=0)  # matrix products are accurate near the origin only
        centred = replace(self, coreset=self.coreset - centre)
        rows = features / self.scale - centre
        step = max(1, _DISTANCES // len(self.coreset))
        return torch.cat([centred._kth_distance(part) for part in rows.split(step)])

    def _kth_distance(self, rows: Tensor) -> Tensor:
        """Matrix products find the nearest rows; differences give their distance.

        Products alone would lose small distances to cancellation.
        """
        squares = self.coreset.square().sum(dim=1) - 2 * rows @ self.coreset.T
        nearest = squares.topk(self.k, dim=1, largest=False).indices
        farthest = torch.zeros_like(rows[:, 0])
        for index in nearest.unbind(dim=1):
            farthest = torch.maximum(farthest, (rows - self.coreset[index]).square().sum(dim=1))
        return farthest.sqrt()

    def tensors(self) -> dict[str, Tensor]:
        return {"coreset": self.coreset, "scale": self.scale, "k": torch.tensor(self.k)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Neighbours:
        return cls(tensors["coreset"], tensors["scale"], int(tensors["k"]))


class KNNScore(FeatureScore):
    """The Euclidean distance of features to the k-th nearest of the training pictures' features.

    It assumes nothing about their distribution, where
    :class:`~robustflow.diagnostics.MahalanobisScore` assumes a Gaussian. It keeps a *coreset* of
    the training pixels: a uniform random subset, or the pixels that best cover a ten times larger
    random subset (greedy k-center). Scores of levels are summed, unless ``apart=True``.

    Args:
        k: the neighbour whose distance counts, at least 1. More is smoother.
        coreset_size: the number of pixels kept for each level.
        coreset: "k-center" also covers rare features; "reservoir" is a random subset, so that
            distances are small where training features are dense.
        standardize: divide every channel by its standard deviation over the random choice; a
            constant channel by the mean of the others' deviations.
        seed: of the random choice. The same seed, pictures and order give the same score.
        pooling: how a picture's score comes from its pixels': "mean" or "max".

    Raises:
        ValueError: an option out of range.

    Sources: Sun et al., 2022 (arXiv:2204.06507) for the k-th distance; Roth et al., 2022
    (arXiv:2106.08265) for a greedy coreset of features of pixels.

    Example:
        >>> import torch
        >>> from robustflow.diagnostics import KNNScore
        >>> _ = torch.manual_seed(0)
        >>> training = [torch.randn(8, 4, 16, 16) for _ in range(5)]
        >>> score = KNNScore(coreset_size=500).fit(training)
        >>> unlike = torch.randn(2, 4, 16, 16) * torch.tensor([1.0, 4.0]).view(2, 1, 1, 1)
        >>> near, far = score.score(unlike)
        >>> bool(3 * near < far)
        True
    """

    def __init__(
        self,
        *,
        k: int = DEFAULT_K,
        coreset_size: int = 2000,
        coreset: Literal["k-center", "reservoir"] = "k-center",
        standardize: bool = True,
        seed: int = 0,
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__(pooling=pooling)
        check_choice("coreset", coreset, ("k-center", "reservoir"))
        for name, value in (("k", k), ("coreset_size", coreset_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if k > coreset_size:
            raise ValueError(f"k = {k} neighbours need a coreset_size of at least {k}.")
        self.k = k
        self.coreset_size = coreset_size
        self.coreset = coreset
        self.standardize = standardize
        self.seed = seed

    @property
    def neighbours(self) -> dict[str, Neighbours]:
        """What was fitted, by level: coresets and scales."""
        return dict(self._models)

    @torch.no_grad()
    def fit(self, batches: Iterable[Features] | Features) -> KNNScore:
        """Select the coreset from training pictures. An earlier fit and calibration are dropped.

        Args:
            batches: as :meth:`MahalanobisScore.fit` takes them.

        Returns:
            self.

        Raises:
            ValueError: batches that differ in levels or channels, features that are not finite,
                fewer pixels than k.
        """
        streams: dict[str, Reservoir] = {}
        candidates = self.coreset_size * (_CANDIDATES if self.coreset == "k-center" else 1)
        for features in as_batches(batches):
            levels = as_levels(features)
            if not streams:
                streams = {name: Reservoir(candidates, self.seed) for name in levels}
                channels = {name: level.shape[1] for name, level in levels.items()}
            check_same_levels(levels, channels)
            for name, level in levels.items():
                for _, _, tile in tiles(level):
                    check_finite(tile)
                    streams[name].add(tile.flatten(0, 1))
        if not streams:
            raise ValueError("batches holds no features: fit on at least one picture.")
        self._models = {name: self._choose(name, stream.rows) for name, stream in streams.items()}
        self._calibration = None
        return self

    def _choose(self, name: str, rows: Tensor) -> Neighbours:
        if len(rows) < self.k:
            raise ValueError(
                f"Level {name!r} has {len(rows)} pixels, and k = {self.k} neighbours are wanted: "
                "fit on more pictures, or take a smaller k."
            )
        scale = _deviations(rows) if self.standardize else torch.ones_like(rows[0])
        rows = rows / scale
        if self.coreset == "k-center":
            rows = rows[greedy_k_center(rows - rows.mean(dim=0), self.coreset_size)]
        return Neighbours(rows, scale, self.k)

    def _settings(self) -> dict[str, Any]:
        names = ("k", "coreset_size", "coreset", "standardize", "seed", "pooling")
        return {name: getattr(self, name) for name in names}

    @staticmethod
    def _level_model(tensors: dict[str, Tensor]) -> Neighbours:
        return Neighbours.from_tensors(tensors)


def _deviations(rows: Tensor) -> Tensor:
    """Standard deviations of the channels of rows (M, C) -> (C,), none of them zero."""
    deviations = rows.std(dim=0, correction=0)
    constant = deviations <= 1e-12 * rows.abs().amax(dim=0)
    mean = deviations[~constant].mean() if not constant.all() else rows.new_ones(())
    return torch.where(constant, mean, deviations)
