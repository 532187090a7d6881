"""Base class of the scores of features: levels, pixels and pictures, calibration, files."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, overload

import torch
from torch import Tensor
from torch.nn import functional

from robustflow._checks import check_choice
from robustflow._extras import require
from robustflow._files import write_atomically
from robustflow.diagnostics.scores.conformal import Calibrated
from robustflow.diagnostics.scores.features import (
    Features,
    as_batches,
    as_levels,
    tiles,
    widest_dtype,
)

Pooling = Literal["mean", "max"]
Per = Literal["picture", "pixel"]
_FILES = "A file of scores"
_KEY, _VERSION = "robustflow.score", 1  # of the metadata of files, and of their form


class LevelModel(Protocol):
    """The fitted model of one level.

    Attributes:
        channels: of the level's features.
    """

    @property
    def channels(self) -> int: ...

    def to(self, device: torch.device, dtype: torch.dtype) -> LevelModel:
        """The same, on another device."""
        ...

    def score(self, features: Tensor) -> Tensor:
        """Rows of finite features (M, C), on the model's device -> (M,)."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a file."""
        ...


ScoreT = TypeVar("ScoreT", bound="FeatureScore")


class FeatureScore(Calibrated, ABC):
    """How far features are from those of training pictures; larger is further.

    Subclasses say what is learned (:meth:`_fit`) and what a score is.

    Args:
        pooling: how a picture's score comes from those of its pixels: "mean", or "max", which sees
            a small region and is the noisier for it.
    """

    def __init__(self, *, pooling: Pooling = "mean") -> None:
        check_choice("pooling", pooling, ("mean", "max"))
        self.pooling = pooling
        self._models: dict[str, Any] = {}

    @property
    def levels(self) -> dict[str, int]:
        """Channels by level; empty before :meth:`fit`."""
        return {name: model.channels for name, model in self._models.items()}

    @overload
    def score(
        self, features: Features, *, per: Per = ..., apart: Literal[False] = ...
    ) -> Tensor: ...

    @overload
    def score(
        self, features: Features, *, per: Per = ..., apart: Literal[True]
    ) -> dict[str, Tensor]: ...

    @torch.no_grad()
    def score(
        self,
        features: Features,
        *,
        per: Per = "picture",
        apart: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Score a batch of features.

        Args:
            features: (N, C, \\*S) or (N, C), or levels of them, with the names and channels that
                were fitted; float64, float32, bfloat16 or float16, on any device.
            per: "picture" for one score a picture, "pixel" for one a position.
            apart: levels apart, in a dict; otherwise their sum.

        Returns:
            (N,) per picture or (N, \\*S) per pixel, on the features' device; float64, or float32
            where the device has no float64. Per pixel, the sum over levels has the resolution of
            the finest; a coarser pixel counts for all those that it covers. A pixel with a feature
            that is not finite scores infinity.

        Raises:
            RuntimeError: nothing was fitted.
            ValueError: levels of other names or channels than were fitted.
        """
        check_choice("per", per, ("picture", "pixel"))
        pixels = {
            name: self._pixel_scores(self._models[name], level)
            for name, level in self._fitting_levels(features).items()
        }
        if per == "picture":
            pooled = {name: self._pool(scores) for name, scores in pixels.items()}
            return pooled if apart else torch.stack(list(pooled.values())).sum(dim=0)
        return pixels if apart else _sum_at_finest(list(pixels.values()))

    def calibrate(self: ScoreT, batches: Iterable[Features] | Features) -> ScoreT:
        """Score held-out pictures, of which :meth:`threshold` takes a quantile.

        Args:
            batches: features of pictures that were not fitted on, and that are like those of which
                false alarms are to be counted; a generator will do. Replaces earlier ones.

        Returns:
            self.

        Raises:
            ValueError: no picture.
        """
        scores = [self.score(features).cpu().double() for features in as_batches(batches)]
        if not scores:
            raise ValueError("batches holds no features: calibrate on at least one picture.")
        self._calibration = torch.cat(scores)
        return self

    def save(self, path: str | Path) -> None:
        """Write all that was fitted and calibrated to a safetensors file, atomically.

        Raises:
            RuntimeError: nothing was fitted.
            ModuleNotFoundError: safetensors is not installed.
        """
        self._check_fitted()
        safetensors = require("safetensors.torch", _FILES, "diagnostics")
        tensors = {
            f"level.{number}.{key}": tensor.cpu().contiguous()
            for number, model in enumerate(self._models.values())
            for key, tensor in model.tensors().items()
        }
        if self._calibration is not None:
            tensors["calibration"] = self._calibration
        about = {
            "version": _VERSION,
            "class": type(self).__name__,
            "settings": self._settings(),
            "levels": list(self._models),
        }
        metadata = {_KEY: json.dumps(about)}
        write_atomically(Path(path), safetensors.save(tensors, metadata))

    @classmethod
    def load(cls: type[ScoreT], path: str | Path) -> ScoreT:
        """Read what :meth:`save` wrote; it scores as before, on any device.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file of something else, or of another score.
            ModuleNotFoundError: safetensors is not installed.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}: give what save(path) wrote.")
        safetensors = require("safetensors", _FILES, "diagnostics")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is no whole safetensors file: {error}") from None
        about = json.loads(metadata.get(_KEY, "{}"))
        if about.get("version") != _VERSION:
            raise ValueError(
                f"{path} holds no score that this version of robustflow reads: its form is "
                f"{about.get('version', 'another')}, and {_VERSION} is wanted."
            )
        if about["class"] != cls.__name__:
            raise ValueError(
                f"{path} holds a {about['class']}: read it with {about['class']}.load(path)."
            )
        score = cls(**about["settings"])
        for number, name in enumerate(about["levels"]):
            prefix = f"level.{number}."
            score._models[name] = cls._level_model(
                {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            )
        score._calibration = tensors.get("calibration")
        return score

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON has them."""

    @staticmethod
    @abstractmethod
    def _level_model(tensors: dict[str, Tensor]) -> LevelModel:
        """A level's model from the result of ``tensors()``."""

    def _pixel_scores(self, model: LevelModel, level: Tensor) -> Tensor:
        """(N, C, \\*S) -> (N, \\*S)."""
        dtype = widest_dtype(level.device)
        model = model.to(level.device, dtype)
        scores = level.new_empty((level.shape[0], level[0, 0].numel()), dtype=dtype)
        for which, where, tile in tiles(level):
            rows = tile.flatten(0, 1)
            finite = torch.isfinite(rows).all(dim=1)
            distances = model.score(torch.where(finite[:, None], rows, 0.0))
            distances = torch.where(finite, distances, torch.inf)
            scores[which, where] = distances.view(tile.shape[:2])
        return scores.view(level.shape[0], *level.shape[2:])

    def _pool(self, pixels: Tensor) -> Tensor:
        flat = pixels.flatten(1) if pixels.dim() > 1 else pixels[:, None]
        return flat.mean(dim=1) if self.pooling == "mean" else flat.amax(dim=1)

    def _check_fitted(self) -> None:
        if not self._models:
            raise RuntimeError(f"This {type(self).__name__} has learned nothing: call fit first.")

    def _fitting_levels(self, features: Features) -> dict[str, Tensor]:
        """The levels, in the order of those that were fitted."""
        self._check_fitted()
        levels = as_levels(features)
        check_same_levels(levels, self.levels)
        return {name: levels[name] for name in self._models}


def check_same_levels(levels: dict[str, Tensor], fitted: dict[str, int]) -> None:
    """Whether a batch has the levels and channels of those fitted before."""
    if set(levels) != set(fitted):
        raise ValueError(
            f"These features have the levels {sorted(levels)}, and those fitted before had "
            f"{sorted(fitted)}: give the same levels, by the same names."
        )
    for name, level in levels.items():
        if level.shape[1] != fitted[name]:
            raise ValueError(
                f"Level {name!r} of features has {level.shape[1]} channels (shape "
                f"{tuple(level.shape)}), and {fitted[name]} were fitted: take features of the same "
                "layer of the same network, with channels in dimension 1."
            )


def _sum_at_finest(scores: list[Tensor]) -> Tensor:
    """Sum of (N, \\*S) at the resolution of the largest, each pixel spread over those it covers."""
    finest = max(scores, key=Tensor.numel)
    total = torch.zeros_like(finest)
    for part in scores:
        if part.shape != finest.shape and part.dim() > 1:
            if part.dim() != finest.dim():
                raise ValueError(
                    f"Levels of shapes {tuple(part.shape)} and {tuple(finest.shape)} share no "
                    "pixels: ask for apart=True, or for scores per picture."
                )
            size = finest.shape[1:]
            part = functional.interpolate(part[:, None], size, mode="nearest-exact")[:, 0]
        total += part.view(-1, *[1] * (finest.dim() - 1)) if part.dim() == 1 else part
    return total
