"""The Mahalanobis distance of features to those of the training pictures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from robustflow.diagnostics.scores.features import (
    Features,
    as_batches,
    as_levels,
    supports_float64,
)
from robustflow.diagnostics.scores.moments import Moments
from robustflow.diagnostics.scores.score import FeatureScore, Pooling, check_same_levels
from robustflow.diagnostics.scores.shrinkage import oas_shrinkage, shrink

Shrinkage = Literal["oas"] | float
EffectiveNumber = Literal["estimate", "pixels", "pictures"] | float


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian over the features of one level.

    Attributes:
        mean: (C,).
        cholesky: lower triangular (C, C), its product with its transpose the shrunk covariance.
        shrinkage: how far the covariance was shrunk, in [0, 1].
        number: the number of independent pixels used for the shrinkage.
        pixels, pictures: how many there were.
    """

    mean: Tensor
    cholesky: Tensor
    shrinkage: float
    number: float
    pixels: int
    pictures: int

    @property
    def channels(self) -> int:
        return self.mean.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> Gaussian:
        return replace(
            self, mean=self.mean.to(device, dtype), cholesky=self.cholesky.to(device, dtype)
        )

    def score(self, features: Tensor) -> Tensor:
        """The squared distance of rows (M, C) -> (M,)."""
        whitened = torch.linalg.solve_triangular(
            self.cholesky, (features - self.mean).T, upper=False
        )
        return whitened.square().sum(dim=0)

    def tensors(self) -> dict[str, Tensor]:
        counts = [self.shrinkage, self.number, self.pixels, self.pictures]
        return {
            "mean": self.mean,
            "cholesky": self.cholesky,
            "counts": torch.tensor(counts, dtype=torch.float64),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Gaussian:
        shrinkage, number, pixels, pictures = tensors["counts"].tolist()
        return cls(
            tensors["mean"], tensors["cholesky"], shrinkage, number, int(pixels), int(pictures)
        )


class GaussianFit:
    """Fits Gaussians: base class of :class:`MahalanobisScore` and its relatives."""

    def __init__(
        self,
        shrinkage: Shrinkage,
        effective_number: EffectiveNumber,
    ) -> None:
        if not _is_option(shrinkage, ("oas",), 0, 1):
            raise ValueError(f"shrinkage must be 'oas' or a number from 0 to 1, got {shrinkage!r}.")
        if not _is_option(effective_number, ("estimate", "pixels", "pictures"), 1, math.inf):
            raise ValueError(
                "effective_number must be 'estimate', 'pixels', 'pictures' or a number of at least "
                f"1, got {effective_number!r}."
            )
        self.shrinkage = shrinkage
        self.effective_number = effective_number

    def settings(self) -> dict[str, Any]:
        """The arguments."""
        return {"shrinkage": self.shrinkage, "effective_number": self.effective_number}

    def levels(self, batches: Iterable[Features] | Features) -> dict[str, Gaussian]:
        """One Gaussian a level."""
        moments: dict[str, Moments] = {}
        for features in as_batches(batches):
            levels = as_levels(features)
            if not moments:
                moments = {name: _moments_beside(level) for name, level in levels.items()}
            check_same_levels(levels, {name: len(m.mean) for name, m in moments.items()})
            for name, level in levels.items():
                moments[name].add(level)
        if not moments:
            raise ValueError("batches holds no features: fit on at least two pictures.")
        return {
            name: self._gaussian(name, level_moments) for name, level_moments in moments.items()
        }

    def _gaussian(self, name: str, moments: Moments) -> Gaussian:
        channels = len(moments.mean)
        if moments.pixels < 2:
            raise ValueError(
                f"Level {name!r} has {moments.pixels} pixel, and a covariance needs at least 2 "
                f"(better 10 for each of the {channels} channels): fit on more pictures."
            )
        covariance = moments.covariance
        number = self._number(moments)
        shrinkage = (
            oas_shrinkage(covariance, number) if self.shrinkage == "oas" else float(self.shrinkage)
        )
        cholesky, failed = torch.linalg.cholesky_ex(shrink(covariance, shrinkage))
        if failed or not cholesky.diagonal().square().amin() > _smallest_variance(covariance):
            raise ValueError(
                f"The covariance of level {name!r} is singular: {moments.pixels} pixels for "
                f"{channels} channels, shrinkage {shrinkage:g}. Fit on more pixels, leave out "
                "channels that are constant or copies of others, or shrink more (shrinkage=0.01)."
            )
        return Gaussian(moments.mean, cholesky, shrinkage, number, moments.pixels, moments.pictures)

    def _number(self, moments: Moments) -> float:
        if self.effective_number == "estimate":
            return moments.effective_number()
        if self.effective_number == "pixels":
            return float(moments.pixels)
        if self.effective_number == "pictures":
            return float(moments.pictures)
        return float(self.effective_number)


class MahalanobisScore(FeatureScore):
    r"""The squared Mahalanobis distance of features to those of the training pictures.

    A Gaussian is fitted to the features of every level, each pixel a sample: mean mu, and the
    covariance S shrunk by oracle approximation,

        Sigma = (1 - rho) S + rho tr(S)/p I          score = (f - mu)' Sigma^-1 (f - mu)

    so that a pixel like the training's scores p, the number of channels, on average. Pictures are
    read one batch at a time, in float64 (on the CPU where the device has none), in memory that
    does not grow with their number. Scores of levels are summed, unless ``apart=True``.

    rho depends on n, the number of independent samples. Pixels of one picture are not independent:
    with n = all pixels the covariance is hardly shrunk, however few the pictures. By default n is
    estimated from how much the pictures' own second moments differ.

    Args:
        pooling: how a picture's score comes from its pixels': "mean" or "max".
        shrinkage: "oas", or rho itself, in [0, 1].
        effective_number: n of "oas". "estimate" as above (for features (N, C): N), "pixels",
            "pictures", or a number of at least 1.

    Raises:
        ValueError: an option out of range.

    Sources: Lee et al., 2018 (arXiv:1807.03888), there with a mean for each class of a
    classifier, which conditional inputs do not have, and on features averaged over the picture:
    average them yourself for that. Chen et al., 2010 (arXiv:0907.4698), for the shrinkage, in
    scikit-learn's form.

    Example:
        >>> import torch
        >>> from robustflow.diagnostics import MahalanobisScore
        >>> _ = torch.manual_seed(0)
        >>> training = [torch.randn(8, 4, 16, 16) for _ in range(5)]      # batches of features
        >>> score = MahalanobisScore().fit(training)
        >>> unlike = torch.randn(2, 4, 16, 16) + torch.tensor([0.0, 3.0]).view(2, 1, 1, 1)
        >>> [round(x) for x in score.score(unlike).tolist()]              # 4 channels: 4 is usual
        [4, 40]
        >>> score.score(unlike, per="pixel").shape
        torch.Size([2, 16, 16])

        A threshold that new pictures like the held-out ones exceed with probability 0.1 at most:

        >>> held_out = (torch.randn(8, 4, 16, 16) for _ in range(5))
        >>> score.score(unlike) > score.calibrate(held_out).threshold(alpha=0.1)
        tensor([False,  True])

        Features of a network's layer: see :func:`robustflow.diagnostics.tap`.
    """

    def __init__(
        self,
        *,
        pooling: Pooling = "mean",
        shrinkage: Shrinkage = "oas",
        effective_number: EffectiveNumber = "estimate",
    ) -> None:
        super().__init__(pooling=pooling)
        self._fitting = GaussianFit(shrinkage, effective_number)

    @property
    def gaussians(self) -> dict[str, Gaussian]:
        """What was fitted, by level: means, Cholesky factors, shrinkage and numbers."""
        return dict(self._models)

    def fit(self, batches: Iterable[Features] | Features) -> MahalanobisScore:
        """Fit to training pictures; forgets what was fitted and calibrated before.

        Args:
            batches: iterable of features, each (N, C, \\*S) or (N, C), or a tuple, list or dict of
                levels; a generator is read once. A tensor or dict alone is one batch, and a list
                is a list of batches.

        Returns:
            self.

        Raises:
            ValueError: batches that differ in levels or channels, features that are not finite,
                too few pixels or pictures, a covariance that is singular.
        """
        self._models, self._calibration = dict(self._fitting.levels(batches)), None
        return self

    def _settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling, **self._fitting.settings()}

    @staticmethod
    def _level_model(tensors: dict[str, Tensor]) -> Gaussian:
        return Gaussian.from_tensors(tensors)


def _moments_beside(level: Tensor) -> Moments:
    """Sums on the level's device, or on the CPU where that has no float64."""
    device = level.device
    if not supports_float64(device):
        device = torch.device("cpu")
        warnings.warn(
            f"{level.device.type} has no float64: the means and covariances of features are summed "
            "on the CPU.",
            stacklevel=2,
        )
    return Moments(level.shape[1], device)


def _smallest_variance(covariance: Tensor) -> float:
    """Below this a direction's variance is rounding error."""
    return float(covariance.diagonal().amax()) * len(covariance) * torch.finfo(torch.float64).eps


def _is_option(value: object, words: tuple[str, ...], lowest: float, highest: float) -> bool:
    if isinstance(value, str):
        return value in words
    return isinstance(value, (int, float)) and lowest <= value <= highest
