"""The Mahalanobis distance to the training pictures, beyond that to pictures in general."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustflow.diagnostics.scores.features import Features
from robustflow.diagnostics.scores.mahalanobis import (
    EffectiveNumber,
    Gaussian,
    GaussianFit,
    Shrinkage,
)
from robustflow.diagnostics.scores.score import FeatureScore, Pooling


@dataclass(frozen=True)
class GaussianPair:
    """The Gaussian of the training pictures and that of the background, for one level."""

    training: Gaussian
    background: Gaussian

    @property
    def channels(self) -> int:
        return self.training.channels

    def to(self, device: torch.device, dtype: torch.dtype) -> GaussianPair:
        return GaussianPair(self.training.to(device, dtype), self.background.to(device, dtype))

    def score(self, features: Tensor) -> Tensor:
        """The difference of squared distances of rows (M, C) -> (M,)."""
        return self.training.score(features) - self.background.score(features)

    def tensors(self) -> dict[str, Tensor]:
        pair = {"training": self.training, "background": self.background}
        return {
            f"{which}.{key}": tensor
            for which, gaussian in pair.items()
            for key, tensor in gaussian.tensors().items()
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> GaussianPair:
        def of(which: str) -> Gaussian:
            keys = [key for key in tensors if key.startswith(f"{which}.")]
            return Gaussian.from_tensors({k.removeprefix(f"{which}."): tensors[k] for k in keys})

        return cls(of("training"), of("background"))


class RelativeMahalanobisScore(FeatureScore):
    r"""The squared Mahalanobis distance to the training pictures, minus that to a background.

        score = (f - mu)' Sigma^-1 (f - mu) - (f - mu_0)' Sigma_0^-1 (f - mu_0)

    Features far from all pictures score about as much by both Gaussians: what is left is how much
    *more* unlike the training pictures a picture is than unlike pictures in general. Negative
    where it is more like the former. With equal determinants it is twice a log-likelihood ratio.

    In Ren et al. there is a Gaussian for each of a classifier's classes, and the background is all
    classes together. Conditional inputs have no classes, so you choose the background: pictures of
    all kinds, which may include the training pictures.

    Args:
        pooling, shrinkage, effective_number: as in :class:`MahalanobisScore`.

    Source: Ren et al., 2021 (arXiv:2106.09022).

    Example:
        >>> import torch
        >>> from robustflow.diagnostics import RelativeMahalanobisScore
        >>> _ = torch.manual_seed(0)
        >>> stretch = torch.tensor([1.0, 5.0]).view(2, 1, 1)  # pictures differ in channel 1 anyway
        >>> background = [torch.randn(8, 2, 16, 16) * stretch for _ in range(5)]
        >>> training = [torch.randn(8, 2, 16, 16) for _ in range(5)]
        >>> score = RelativeMahalanobisScore().fit(training, background)
        >>> score.score(training[0]).shape
        torch.Size([8])
        >>> bool((score.score(background[0]) > score.score(training[0])).all())
        True
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
    def gaussians(self) -> dict[str, GaussianPair]:
        """What was fitted, by level."""
        return dict(self._models)

    def fit(
        self,
        batches: Iterable[Features] | Features,
        background: Iterable[Features] | Features | None = None,
    ) -> RelativeMahalanobisScore:
        """Fit both Gaussians; forgets what was fitted and calibrated before.

        Args:
            batches: features of the training pictures, as :meth:`MahalanobisScore.fit` takes them.
            background: features of pictures in general, of the same levels and channels.

        Returns:
            self.

        Raises:
            ValueError: no background, or what :meth:`MahalanobisScore.fit` raises.
        """
        if background is None:
            raise ValueError(
                "RelativeMahalanobisScore needs a background: fit(batches, background) with "
                "features of pictures in general, by the same network. Without one, take "
                "MahalanobisScore."
            )
        training = self._fitting.levels(batches)
        channels = {name: gaussian.channels for name, gaussian in training.items()}
        general = self._fitting.levels(background)
        general_channels = {name: gaussian.channels for name, gaussian in general.items()}
        if general_channels != channels:
            raise ValueError(
                f"The background has levels of channels {general_channels}, and batches "
                f"{channels}: take both from the same layers of the same network."
            )
        self._models = {name: GaussianPair(training[name], general[name]) for name in training}
        self._calibration = None
        return self

    def _settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling, **self._fitting.settings()}

    @staticmethod
    def _level_model(tensors: dict[str, Tensor]) -> GaussianPair:
        return GaussianPair.from_tensors(tensors)
