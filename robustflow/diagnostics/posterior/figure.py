"""The figure of a posterior report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from robustflow.diagnostics.figures import new_figure
from robustflow.diagnostics.intervals import Estimate
from robustflow.diagnostics.posterior.measures import Measures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAND = 1.358  # of the Kolmogorov-Smirnov statistic times sqrt(N), at 95 %
_COLOURS = ("#2166ac", "#b2182b", "#1a7f37", "#7b3294", "#b35806", "#35978f", "#c51b7d", "#4d4d4d")


def posterior_figure(measures: Measures) -> Figure:
    """:meth:`~robustflow.diagnostics.PosteriorReport.figure`."""
    figure = new_figure(figsize=(13, 6.2))
    axes = figure.subplots(2, 4)
    _coverage(axes[0, 0], measures)
    _ranks(axes[0, 1], measures)
    _tarp(axes[0, 2], measures)
    _spread(axes[0, 3], measures)
    spread = measures.spread
    shared = max(float(spread.error_map.max()), float(spread.spread_map.max()))
    maps = [
        (measures.coverage_map, f"coverage (nominal {measures.coverage_level:.2f})", (0.0, 1.0)),
        (_flat(spread.z_map), "size of z-scores (1 if calibrated)", (0.0, 2.0)),
        (_flat(spread.error_map), "error of the mean", (0.0, shared)),
        (_flat(spread.spread_map), "spread of the samples", (0.0, shared)),
    ]
    for axis, (values, title, limits) in zip(axes[1], maps, strict=True):
        _map(figure, axis, values, title, limits)
    for axis in axes.ravel():
        axis.tick_params(labelsize=7)
        axis.title.set_fontsize(9)
        axis.xaxis.label.set_fontsize(8)
        axis.yaxis.label.set_fontsize(8)
    return figure


def _curve(
    axis: Any, x: Sequence[float], estimates: Sequence[Estimate], colour: str, label: str
) -> None:
    axis.fill_between(
        x,
        [each.low for each in estimates],
        [each.high for each in estimates],
        color=colour,
        alpha=0.18,
        linewidth=0,
    )
    values = [each.value for each in estimates]
    axis.plot(x, values, ".-", color=colour, label=label, linewidth=1)


def _diagonal(axis: Any) -> None:
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)


def _coverage(axis: Any, measures: Measures) -> None:
    _diagonal(axis)
    for each, colour in zip(measures.coverage, _COLOURS, strict=False):
        _curve(axis, each.nominal, each.observed, colour, each.region)
    axis.set_title("coverage of central intervals")
    axis.set_xlabel("nominal")
    axis.set_ylabel("observed")
    axis.legend(fontsize=7, frameon=False)


def _ranks(axis: Any, measures: Measures) -> None:
    number = measures.pictures
    for (name, values), colour in zip(measures.rank_values.items(), _cycle(), strict=False):
        ordered = np.sort(values.numpy())
        share = np.arange(1, number + 1) / number
        axis.step(ordered, share - ordered, where="post", color=colour, label=name, linewidth=0.9)
    for sign in (-1, 1):
        axis.axhline(sign * _BAND / math.sqrt(number), color="0.6", linestyle="--", linewidth=0.8)
    axis.set_title(f"ranks of linear functionals, p = {measures.rank_p_value:.2g}")
    axis.set_xlabel("rank / K")
    axis.set_ylabel("distribution - uniform (dashed: 95 % each)")
    axis.legend(fontsize=6, frameon=False, ncols=2)


def _cycle() -> list[str]:
    return list(_COLOURS) * 8


def _tarp(axis: Any, measures: Measures) -> None:
    _diagonal(axis)
    tarp = measures.tarp
    _curve(axis, tarp.credibility, tarp.observed, _COLOURS[0], "")
    axis.set_title(f"TARP, p = {tarp.test.p_value:.2g}")
    axis.set_xlabel("credibility")
    axis.set_ylabel("expected coverage")


def _spread(axis: Any, measures: Measures) -> None:
    spreads, errors = zip(*measures.spread.bins, strict=True)
    top = 1.05 * max(*spreads, *errors)
    axis.plot([0, top], [0, top], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    axis.plot(spreads, errors, ".-", color=_COLOURS[0], linewidth=1)
    axis.set_xlim(0, top)
    axis.set_ylim(0, top)
    axis.set_title(f"spread over error {measures.spread.ratio.value:.2f}")
    axis.set_xlabel("spread of the samples, in bins of pixels")
    axis.set_ylabel("error of the mean")


def _flat(values: Tensor) -> Tensor:
    """A map without channels: their root mean square."""
    return values.square().mean(dim=0).sqrt() if values.dim() > 1 else values


def _map(
    figure: Figure, axis: Any, values: Tensor, title: str, limits: tuple[float, float]
) -> None:
    axis.set_title(title)
    if values.dim() == 2:
        image = axis.imshow(values.numpy(), vmin=limits[0], vmax=limits[1], cmap="viridis")
        axis.set_axis_off()
        bar = figure.colorbar(image, ax=axis, shrink=0.8)
        bar.ax.tick_params(labelsize=7)
        return
    if values.dim() > 2:  # a volume: its middle
        _map(figure, axis, values[len(values) // 2], title, limits)
        return
    axis.plot(values.numpy(), color=_COLOURS[0], linewidth=1)
    axis.set_ylim(limits[0], 1.05 * limits[1])
