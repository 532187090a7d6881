"""The demonstration's figure: each coupling's samples of each picture, and their errors."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from robustflow.diagnostics.artifacts import faulty_pixels
from robustflow.experiments.faults import Faults

_LARGEST_ERROR = 0.3  # where the error map's colours end
_FAULT_COLOUR = (0.1, 1.0, 0.9)


@dataclass(frozen=True)
class Row:
    """One picture.

    Attributes:
        title: what it shows; ``kind`` says what it is for ("training picture", ...).
        low, truth: (3, h, w) and (3, H, W), values in [0, 1].
        samples: by coupling, one sample (3, H, W), not clamped.
        faults: by coupling.
    """

    title: str
    kind: str
    low: Tensor
    truth: Tensor
    samples: dict[str, Tensor]
    faults: dict[str, Faults]


def comparison_figure(rows: Sequence[Row], title: str, caption: str) -> bytes:
    """A PNG: a row per picture; low resolution, samples, truth, and the samples' errors."""
    couplings = list(rows[0].samples)
    count = len(couplings)
    figure = Figure(figsize=(1.62 * (2 * count + 2), 1.68 * len(rows) + 1.1), layout="constrained")
    figure.suptitle(title, fontsize=13, fontweight="bold")
    figure.supxlabel(caption, fontsize=8.5, color="0.35")
    axes = figure.subplots(len(rows), 2 * count + 2, squeeze=False)
    errors = [f"error of\n{coupling}" for coupling in couplings]
    headings = ["low resolution", *couplings, "ground truth", *errors]
    for axis, heading in zip(axes[0], headings, strict=True):
        axis.set_title(heading, fontsize=9)
    for row, line in zip(rows, axes, strict=True):
        _draw(line[0], _displayable(row.low))
        _draw(line[count + 1], _displayable(row.truth))
        line[0].set_ylabel(f"{row.title}\n({row.kind})", fontsize=8.5)
        for index, coupling in enumerate(couplings):
            sample, faults = row.samples[coupling], row.faults[coupling]
            _draw(line[1 + index], _displayable(sample), faults)
            _draw(line[count + 2 + index], _error_map(sample, row.truth))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _draw(axis: Axes, pixels: np.ndarray, faults: Faults | None = None) -> None:
    axis.imshow(pixels, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    if faults is not None:
        faulty = faults.faulty > 0
        axis.set_xlabel(
            f"{faults.faulty} of {faults.samples} faulty",
            fontsize=7.5,
            labelpad=2,
            color="crimson" if faulty else "0.35",
            fontweight="bold" if faulty else "normal",
        )


def _displayable(image: Tensor) -> np.ndarray:
    """(3, H, W) -> (H, W, 3) in [0, 1]: clamped as a viewer would, NaN black."""
    return image.nan_to_num(nan=0.0).clamp(0, 1).permute(1, 2, 0).numpy()


def _error_map(sample: Tensor, truth: Tensor) -> np.ndarray:
    """Mean absolute error in colour; pixels that break the published rule stand out."""
    error = (sample - truth).abs().mean(dim=0).nan_to_num(nan=1.0).clamp(0, _LARGEST_ERROR)
    pixels = colormaps["inferno"]((error / _LARGEST_ERROR).numpy())[..., :3]
    pixels[faulty_pixels(sample).any(dim=0).numpy()] = _FAULT_COLOUR
    return pixels
