"""The report's figures, each as an SVG or a PNG inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustflow.diagnostics.figures import new_figure
from robustflow.diagnostics.report.statistics import Bin

_INK, _FAMILIAR, _UNFAMILIAR = "#444444", "#2166ac", "#b2182b"


def as_svg(figure: Any) -> str:
    """A figure as a data address of an SVG: sharp at any size, and in print."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _address(buffer.getvalue(), "image/svg+xml")


def as_png(figure: Any, dpi: int = 110) -> str:
    """A figure with many points as a data address of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return _address(buffer.getvalue(), "image/png")


def picture(pixels: NDArray[np.uint8]) -> str:
    """Pixels (H, W, 3) as a data address of a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return _address(buffer.getvalue(), "image/png")


def _address(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def to_pixels(sample: Tensor) -> NDArray[np.uint8]:
    """(C, H, W) as it would be saved: clamped to [0, 1]; what is not finite is black."""
    values = sample[:3] if sample.shape[0] >= 3 else sample[:1].expand(3, -1, -1)
    scaled = (values.nan_to_num(nan=0.0).clamp(0, 1) * 255).round().byte()
    return scaled.permute(1, 2, 0).cpu().numpy()


def masked(sample: Tensor, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The sample with the outline of a mask (H, W) drawn in magenta."""
    pixels = to_pixels(sample).copy()
    inside = torch.from_numpy(mask)[None, None].float()
    if inside.shape[-2:] != sample.shape[-2:]:
        inside = torch.nn.functional.interpolate(inside, sample.shape[-2:], mode="nearest")
    grown = torch.nn.functional.max_pool2d(inside, 3, stride=1, padding=1)
    edge = ((grown - inside)[0, 0] > 0).numpy()
    pixels[edge] = (255, 0, 255)
    return pixels


def heat(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """A map (h, w) of scores as colours, on a scale that all pictures share."""
    from matplotlib import colormaps

    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    colours: NDArray[np.uint8] = colormaps["inferno"](scaled, bytes=True)[..., :3]
    side = max(1, 160 // max(values.shape))
    return np.ascontiguousarray(colours.repeat(side, axis=0).repeat(side, axis=1))


def rates_figure(bins: Mapping[str, Sequence[Bin]], label: str) -> Any:
    """The rate of failures by bin of score, a panel a score."""
    columns = min(3, len(bins))
    rows = -(-len(bins) // columns)
    figure = new_figure(figsize=(3.1 * columns, 2.3 * rows))
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis, (name, score_bins) in zip(axes, bins.items(), strict=False):
        axis.bar(
            range(len(score_bins)), [100 * each.rate for each in score_bins], color=_UNFAMILIAR
        )
        axis.set_title(name, fontsize=8)
        axis.set_xticks([0, len(score_bins) - 1], ["lowest", "highest"], fontsize=7)
        axis.tick_params(axis="y", labelsize=7)
        axis.set_ylabel(f"{label}, %", fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(bins) :]:
        axis.set_visible(False)
    figure.supxlabel("score, in bins of equally many grid points", fontsize=8)
    return figure


def scatter_figure(
    scores: Mapping[str, Sequence[float]],
    rates: Sequence[float],
    titles: Sequence[str],
    familiar: Sequence[bool],
    label: str,
) -> Any:
    """Each picture's score against its rate of failures, a panel a score."""
    columns = min(3, len(scores))
    rows = -(-len(scores) // columns)
    figure = new_figure(figsize=(3.1 * columns, 2.5 * rows))
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    colours = [_FAMILIAR if each else _UNFAMILIAR for each in familiar]
    for axis, (name, values) in zip(axes, scores.items(), strict=False):
        axis.scatter(values, [100 * rate for rate in rates], c=colours, s=14)
        for x, rate, title in zip(values, rates, titles, strict=True):
            axis.annotate(
                title,
                (x, 100 * rate),
                fontsize=5.5,
                color=_INK,
                xytext=(2, 2),
                textcoords="offset points",
            )
        axis.set_title(name, fontsize=8)
        if min(values) > 0 and max(values) > 20 * min(values):
            axis.set_xscale("log")
        axis.tick_params(labelsize=7)
        axis.set_ylabel(f"{label}, %", fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(scores) :]:
        axis.set_visible(False)
    return figure


def causes_figure(onsets: NDArray[np.float64], titles: Sequence[str]) -> Any:
    """Onsets by picture (rows) and latent (columns)."""
    figure = new_figure(figsize=(1.6 + 0.45 * onsets.shape[1], 0.9 + 0.26 * onsets.shape[0]))
    axis = figure.subplots()
    shown = np.log10(1 + onsets)
    axis.imshow(shown, cmap="inferno", aspect="auto", vmin=0)
    half = shown.max() / 2
    for row, values in enumerate(onsets):
        for column, value in enumerate(values):
            colour = "black" if shown[row, column] > half > 0 else "white"
            axis.text(
                column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour
            )
    axis.set_yticks(range(len(titles)), titles, fontsize=7)
    axis.set_xticks(range(onsets.shape[1]), [f"z{i + 1}" for i in range(onsets.shape[1])])
    axis.tick_params(axis="x", labelsize=7)
    return figure
