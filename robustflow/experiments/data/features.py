"""Features of a frozen encoder, computed once for each picture and orientation, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustflow._files import replacing
from robustflow.experiments.data.crops import Source, orient
from robustflow.experiments.data.reading import read_picture
from robustflow.experiments.tasks.base import WHITE, Task


class FeatureCache:
    """Crops of the features of whole observations.

    A picture's whole observation goes through the encoder, as in sampling, and not crop by crop, so
    a crop's features depend on its surroundings too. They are kept as float32 ``.npy`` files, named
    by a hash of picture, orientation, task and encoder, and read through memory maps.

    Args:
        folder: of the files; created if missing.
        sources: the pictures.
        task: makes the observations; without noise.
        encode: from an observation (1, C, H, W) to features (1, F, H, W).
        key: what identifies the encoder's weights.
        limit_gib: of all files; features beyond it are computed each time.

    Raises:
        ValueError: the task draws noise, so that an observation is another one each time.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        task: Task,
        encode: Callable[[Tensor], Tensor],
        key: str,
        *,
        limit_gib: float,
    ) -> None:
        if task.random:
            raise ValueError(f"The task {task.name!r} draws noise: its features cannot be kept.")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._sources = list(sources)
        self._task = task
        self._encode = encode
        self._key = key
        self._limit = limit_gib * 2**30
        self._used = sum(file.stat().st_size for file in folder.glob("*.npy"))

    @property
    def gib(self) -> float:
        """What the files take."""
        return self._used / 2**30

    def crops(self, places: Tensor, side: int) -> Tensor:
        """Features (N, F, side / scale, side / scale) of crops (N, 4): picture, orientation, top,
        left, in pixels of x."""
        scale = self._task.scale
        out = []
        for picture, orientation, top, left in places.tolist():
            features = self._of(picture, orientation)
            rows = slice(top // scale, (top + side) // scale)
            columns = slice(left // scale, (left + side) // scale)
            out.append(torch.from_numpy(np.array(features[:, rows, columns])))
        return torch.stack(out)

    def _of(self, picture: int, orientation: int) -> np.ndarray:
        source = self._sources[picture]
        state = source.path.stat()
        observed = source.observation or source.path
        identity = (source.path.resolve(), observed, state.st_size, state.st_mtime_ns)
        text = repr((*map(str, identity), orientation, self._task, self._key))
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npy"
        if not path.exists():
            features = self._compute(source, orientation)
            if self._used + features.nbytes <= self._limit:
                with replacing(path) as file:
                    np.save(file, features)
                self._used += features.nbytes
            return features
        # Opened for each use: an open map holds a file descriptor, and there may be thousands.
        mapped: np.ndarray = np.load(path, mmap_mode="r")
        return mapped

    @torch.no_grad()
    def _compute(self, source: Source, orientation: int) -> np.ndarray:
        if source.observation is not None:
            y = orient(read_picture(source.observation), orientation)[None].float() / WHITE
        else:
            picture = orient(read_picture(source.path), orientation)
            multiple = self._task.size_multiple
            height, width = (side - side % multiple for side in picture.shape[-2:])
            x = self._task.from_rgb(picture[None, :, :height, :width].float() / WHITE)
            y = self._task.observe(x)
        return self._encode(y)[0].float().cpu().numpy()
