"""The toy's picture: samples, what grows and where, and the controls."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image
from torch import Tensor

from robustflow.diagnostics.bounds import bounds_of
from robustflow.experiments.toy import attack, reading
from robustflow.experiments.toy.law import LAWS
from robustflow.experiments.toy.models import COUPLINGS
from robustflow.experiments.toy.reading import LayerReading
from robustflow.experiments.toy.runs import CORNERS, RunResult
from robustflow.experiments.toy.summary import NOT_MEANINGFUL, Outcome, magnitude, percent

_COLOURS = {
    "additive": "#8c8c8c",
    "affine": "#d1123f",
    "soft-clamped affine": "#e07b16",
    "reparametrised affine": "#8a5fb5",
    "modified RQ, ±0.5": "#6bb52f",
    "modified RQ, ±3": "#168a55",
    "RQ, 8 bins": "#1c6fb8",
}
_OTHERS = ("#0e9aa7", "#a0522d", "#444444")  # of couplings that the catalogue gains
_QUIET = "0.35"
_PALE = "0.75"
_LAW = "widening"
_WINDOW = {1.0: 1.5, reading.OUTSIDE: 6.0}  # half of the side of what a scatter plot shows
_LARGEST = 1e12  # where the axes of magnitudes end
_SLOPES = (1e-4, 1e4)


def draw(outcome: Outcome) -> bytes:
    """A PNG, with the first seed that was not rejected in the scatter plots."""
    layout = ConstrainedLayoutEngine(rect=(0.006, 0.006, 0.988, 0.988))
    figure = Figure(figsize=(13, 11.6), layout=layout)
    title = "A toy in two dimensions: which coupling's inverse explodes, where, and why"
    if not outcome.settings.meaningful:
        title += f"\n{NOT_MEANINGFUL}"
    figure.suptitle(title, fontsize=13, fontweight="bold")
    figure.supxlabel(_caption(outcome), fontsize=8.5, color=_QUIET)
    bands: Any = figure.subfigures(3, 1, height_ratios=(4.05, 4.1, 2.7), hspace=0.02)
    _draw_samples(bands[0], outcome)
    growth, variance, slopes = bands[1].subplots(1, 3, width_ratios=(1.15, 1.15, 1.0))
    _draw_growth(growth, outcome)
    _draw_variance(variance, outcome)
    _draw_slopes(slopes, outcome)
    board, attacks = bands[2].subfigures(1, 2, width_ratios=(1.6, 1.0))
    _draw_board(board, outcome)
    _draw_attacks(attacks.subplots(), outcome)
    return _small_png(figure)


def _caption(outcome: Outcome) -> str:
    seeds = list(dict.fromkeys(result.run.seed for result in outcome.results))
    words = f"seed {seeds[0]}"
    if len(seeds) > 1:
        words = f"seeds {seeds[0]} to {seeds[-1]}, the first in full colour"
    return (
        f"x given y, both in two dimensions; four steps a flow, {outcome.settings.iterations} "
        f"iterations, {words}. Trained on y in [-1, 1]²; radius: the larger of |y₁| and |y₂|.\n"
        "Beyond radius 1 nothing was learned: what a coupling decides there is how wrong a sample "
        "can be."
    )


def _small_png(figure: Figure) -> bytes:
    """As a PNG of 256 colours: half of the size, and no difference to the eye."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    smaller = io.BytesIO()
    image.save(smaller, format="png", optimize=True)
    return smaller.getvalue()


def _colour(coupling: str) -> str:
    if coupling in _COLOURS:
        return _COLOURS[coupling]
    more = [name for name in COUPLINGS if name not in _COLOURS]
    return _OTHERS[more.index(coupling) % len(_OTHERS)]


def _draw_samples(band: SubFigure, outcome: Outcome) -> None:
    couplings = outcome.couplings(_LAW)
    lines = band.subplots(2, 1 + len(couplings), squeeze=False)
    data = _corner_data()
    for radius, line in zip(_WINDOW, lines, strict=True):
        for axis in line[0 if radius == 1 else 1 :]:
            _prepare(axis, radius)
    _scatter(lines[0, 0], data, "0.25", 1.0)
    lines[0, 0].set_title("data", fontsize=10)
    lines[1, 0].axis("off")
    lines[1, 0].text(
        *(0.5, 0.55),
        "no data: training\nends at radius 1.\nDotted: where all\ntraining data lie",
        transform=lines[1, 0].transAxes,
        ha="center",
        va="center",
        fontsize=8.5,
        color=_QUIET,
    )
    for axis, words in zip(lines[:, 0], ("radius 1", f"radius {reading.OUTSIDE:g}"), strict=True):
        axis.text(
            *(-0.12, 0.5),
            f"y at {words}",
            transform=axis.transAxes,
            rotation=90,
            ha="right",
            va="center",
            fontsize=9.5,
            fontweight="bold",
        )
    for column, coupling in enumerate(couplings, start=1):
        result = outcome.of(_LAW, coupling)[0]
        colour = _colour(coupling)
        lines[0, column].set_title(coupling.replace(" ", "\n", 1), fontsize=10, color=colour)
        _scatter(lines[0, column], result.corners_inside, colour, 1.0)
        lines[0, column].set_xlabel(f"{result.nats:.2f} nats", fontsize=8.5, color=_QUIET)
        _scatter(lines[1, column], result.corners_outside, colour, reading.OUTSIDE)
        outside = result.at(reading.OUTSIDE)
        lines[1, column].set_xlabel(
            f"largest |x| {magnitude(outside.largest)}"
            + (f"\nabsurd: {percent(outside.absurd)}" if outside.absurd else ""),
            fontsize=8.5,
            color="crimson" if outside.absurd else _QUIET,
            fontweight="bold" if outside.absurd else "normal",
        )


def _corner_data() -> Tensor:
    y = reading.conditions(1.0, CORNERS).repeat_interleave(256, dim=0)
    x = LAWS[_LAW].given(y, torch.Generator().manual_seed(0))
    return x.unflatten(0, (CORNERS, -1))


def _prepare(axis: Axes, radius: float) -> None:
    limit = _WINDOW[radius]
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
    for spine in axis.spines.values():
        spine.set_color(_PALE)
    edge = LAWS[_LAW].largest
    if radius > 1:  # where the training data were
        axis.plot(
            edge * np.array([-1, 1, 1, -1, -1]),
            edge * np.array([-1, -1, 1, 1, -1]),
            *(":",),
            color="0.5",
            linewidth=0.9,
            zorder=3,
        )


def _scatter(axis: Axes, samples: Tensor, colour: str, radius: float) -> None:
    """Samples (corners, n, 2); those outside the window lie on its edge."""
    limit = _WINDOW[radius]
    points = samples.flatten(0, 1).nan_to_num(nan=math.inf)
    sizes = points.abs().amax(dim=1)
    away = sizes > limit
    share = float(away.float().mean())
    inside = points[~away].numpy()
    axis.plot(*inside.T, ".", color=colour, markersize=1.6, alpha=0.6, markeredgewidth=0)
    if share:
        finite = points[away].clamp(-1e30, 1e30)
        edge = (finite / finite.abs().amax(dim=1, keepdim=True) * limit * 0.985).numpy()
        axis.plot(*edge.T, "s", color=colour, markersize=1.8, alpha=0.5, markeredgewidth=0)
    if share >= 0.005:
        axis.text(
            *(0, 0.62 * limit),
            f"{share:.0%} beyond\nthis window",
            ha="center",
            va="center",
            fontsize=8,
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
            zorder=4,
        )


def _draw_growth(axis: Axes, outcome: Outcome) -> None:
    _title(axis, "Largest |x|, by the radius of y")
    _magnitudes(axis, 0.25, 10 * _extreme(outcome))
    ends = {}
    for coupling in outcome.couplings(_LAW):
        colour = _colour(coupling)
        for index, result in enumerate(outcome.of(_LAW, coupling)):
            values = [min(each.largest, _LARGEST) for each in result.radii]
            _line(axis, reading.RADII, values, colour, index)
            if not index:
                ends[coupling] = (values[-1], colour)
    for index, result in enumerate(outcome.of("fixed width", "affine")):
        values = [min(each.largest, _LARGEST) for each in result.radii]
        _line(axis, reading.RADII, values, _colour("affine"), index, dashes=(3, 2))
        if not index:
            ends["affine, fixed width"] = (values[-1], _colour("affine"))
    radii = np.geomspace(1, reading.RADII[-1], 50)
    limit = [reading.absurd_limit(LAWS[_LAW], radius) for radius in radii]
    axis.plot(radii, limit, color=_QUIET, linewidth=0.9, linestyle=":")
    axis.text(1.03, 1.7 * limit[0], "absurd above", fontsize=8, color=_QUIET, va="bottom")
    axis.set_xscale("log")
    axis.set_xlim(1, reading.RADII[-1] * 3.6)
    axis.set_xticks(reading.RADII, [f"{radius:g}" for radius in reading.RADII])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(which="minor", bottom=False)
    axis.set_xlabel("radius of y (training: up to 1)", fontsize=8.5, color=_QUIET)
    _label_ends(axis, reading.RADII[-1] * 1.06, ends)


def _draw_variance(axis: Axes, outcome: Outcome) -> None:
    _title(axis, f"Variance layer by layer, y at radius {reading.OUTSIDE:g}")
    couplings = outcome.couplings(_LAW)
    first = {coupling: outcome.of(_LAW, coupling)[0] for coupling in couplings}
    names = [layer.name for layer in first[couplings[0]].outside]
    places = np.arange(1, len(names) + 1)
    familiar = np.array([_variances(result.inside) for result in first.values()])
    _magnitudes(axis, 1e-3, 10 * _extreme(outcome) ** 2)
    axis.fill_between(
        places, familiar.min(axis=0), familiar.max(axis=0), color="0.88", linewidth=0, zorder=0
    )
    axis.text(
        *(places[-1], familiar[:, -1].min() * 0.6),
        "training y, all couplings",
        fontsize=8,
        color=_QUIET,
        ha="right",
        va="top",
    )
    ends = {}
    for coupling in couplings:
        for index, result in enumerate(outcome.of(_LAW, coupling)):
            values = _variances(result.outside)
            _line(axis, places, values, _colour(coupling), index)
            if not index:
                ends[coupling] = (values[-1], _colour(coupling))
        explosion = first[coupling].explosion
        if explosion is not None:
            start = names.index(explosion.name)
            axis.annotate(
                "explodes here",
                (places[start], min(explosion.variance, _LARGEST**2)),
                (6, 4),
                textcoords="offset points",
                fontsize=8,
                color=_colour(coupling),
                fontweight="bold",
            )
    axis.set_xlim(0.5, places[-1] * 1.45)
    axis.set_xticks(places, [name.split(" ")[0] for name in names], rotation=90, fontsize=8)
    for place, name in zip(places, names, strict=True):
        if name.startswith("coupling"):
            axis.axvspan(place - 0.4, place + 0.4, color="#fff3d6", linewidth=0, zorder=-1)
    axis.set_xlabel("layers in the order of sampling", fontsize=8.5, color=_QUIET)
    _label_ends(axis, places[-1] + 0.35, ends)


def _draw_slopes(axis: Axes, outcome: Outcome) -> None:
    _title(axis, "Slope c′ of the coupling that grows most")
    couplings = [c for c in outcome.couplings(_LAW) if c != "additive"]
    edges = np.linspace(math.log10(_SLOPES[0]), math.log10(_SLOPES[1]), 97)
    for row, coupling in enumerate(reversed(couplings)):
        result = outcome.of(_LAW, coupling)[0]
        place = _busiest(result)
        colour = _colour(coupling)
        for layers, face, alpha in ((result.inside, "0.55", 0.55), (result.outside, colour, 0.75)):
            slopes = layers[place].slopes
            assert slopes is not None
            counts, _ = np.histogram(slopes.clamp(*_SLOPES).log10().numpy(), edges)
            heights = 0.85 * counts / counts.max()
            axis.stairs(row + heights, edges, baseline=row, fill=True, color=face, alpha=alpha)
        bounds = bounds_of(COUPLINGS[coupling])
        assert bounds is not None and bounds.tail is not None
        low, high = math.log10(bounds.tail.low), math.log10(bounds.tail.high)
        axis.plot([low, high], [row, row], color=colour, linewidth=2.4, solid_capstyle="round")
        axis.plot([low, high], [row, row], "|", color=colour, markersize=7, markeredgewidth=1.6)
        axis.text(
            *(edges[-1] + 0.1, row + 0.3),
            coupling.replace(" ", "\n", 1),
            fontsize=8,
            color=colour,
            va="center",
        )
    axis.set_xlim(edges[0] - 0.15, edges[-1])
    axis.set_ylim(-0.15, len(couplings))
    axis.set_yticks([])
    axis.set_xticks(range(-4, 5, 2), [f"$10^{{{power}}}$" for power in range(-4, 5, 2)], fontsize=8)
    axis.set_xlabel(
        "grey: training y; colour: radius 3; bar: all that is allowed\n"
        "(splines: outside the box). The inverse multiplies by 1/c′.",
        fontsize=8.5,
        color=_QUIET,
    )
    _bare(axis, "left")


def _busiest(result: RunResult) -> int:
    """The coupling that grows most, among the layers: where explosions begin, if there are any."""

    def growth(index: int) -> float:
        before = result.outside[index - 1].magnitude if index else 1.0
        return result.outside[index].magnitude / max(1.0, before)

    couplings = [i for i, layer in enumerate(result.outside) if layer.slopes is not None]
    return max(couplings, key=lambda i: (result.outside[i].onsets, growth(i)))


def _draw_board(band: SubFigure, outcome: Outcome) -> None:
    law = LAWS["checkerboard"]
    couplings = outcome.couplings("checkerboard")
    axes = band.subplots(1, 1 + len(couplings))
    band.suptitle(
        "Control: a law of eight modes, as wide for every y. Here expressive power decides",
        fontsize=10,
        x=0.01,
        ha="left",
        fontweight="bold",
    )
    centre = torch.zeros(2048, 2)
    shown: list[tuple[str, Tensor, str, str]] = [
        ("data", law.given(centre, torch.Generator().manual_seed(0)), "0.25", "at y = 0")
    ]
    for coupling in couplings:
        result = outcome.of("checkerboard", coupling)[0]
        above = f"{result.nats - law.entropy:.2f} nats above\nthe law's entropy"
        shown.append((coupling, result.centre, _colour(coupling), above))
    for axis, (name, samples, colour, words) in zip(axes, shown, strict=True):
        axis.plot(*samples.numpy().T, ".", color=colour, markersize=1.4, markeredgewidth=0)
        axis.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), xticks=[], yticks=[], aspect="equal")
        axis.set_title(name, fontsize=10, color=colour)
        axis.set_xlabel(words, fontsize=8.5, color=_QUIET)
        for spine in axis.spines.values():
            spine.set_color(_PALE)


def _draw_attacks(axis: Axes, outcome: Outcome) -> None:
    radius = attack.RADII[-1]
    _title(axis, f"Worst y within radius {radius:g}")
    couplings = outcome.couplings(_LAW)
    for row, coupling in enumerate(reversed(couplings)):
        colour = _colour(coupling)
        for result in outcome.of(_LAW, coupling):
            worst = result.attacks[-1]
            ends = [min(worst.largest, 1e20), min(worst.bound, 1e20)]
            axis.plot(ends, [row, row], color=colour, linewidth=1.2, alpha=0.4)
            axis.plot(ends[:1], [row], "o", color=colour, markersize=5)
            axis.plot(ends[1:], [row], "|", color=colour, markersize=9, markeredgewidth=2)
    axis.set_xscale("log")
    axis.set_xlim(0.5, None)
    axis.set_yticks(range(len(couplings)), reversed(couplings), fontsize=8)
    for label, coupling in zip(axis.get_yticklabels(), reversed(couplings), strict=True):
        label.set_color(_colour(coupling))
    axis.set_ylim(-0.6, len(couplings) - 0.4)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    axis.xaxis.set_major_locator(LogLocator(numticks=8))
    axis.set_xlabel(
        "largest |x|: dot, found by gradient; bar, certified", fontsize=8.5, color=_QUIET
    )
    _bare(axis, "left")


def _title(axis: Axes, words: str) -> None:
    axis.set_title(words, fontsize=10, loc="left", fontweight="bold")


def _bare(axis: Axes, *more: str) -> None:
    for side in ("top", "right", *more):
        axis.spines[side].set_visible(False)


def _magnitudes(axis: Axes, low: float, high: float) -> None:
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    axis.tick_params(axis="y", labelsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.yaxis.set_major_locator(LogLocator(numticks=9))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(_power))
    _bare(axis)


def _power(value: float, _: int) -> str:
    exponent = round(math.log10(value))
    return f"{value:g}" if abs(exponent) < 3 else f"$10^{{{exponent}}}$"


def _extreme(outcome: Outcome) -> float:
    """The largest |x| that the axes must hold."""
    every = [each.largest for result in outcome.results for each in result.radii]
    return min(max(every), _LARGEST)


def _variances(layers: Sequence[LayerReading]) -> list[float]:
    return [min(layer.variance, _LARGEST**2) for layer in layers]


def _line(
    axis: Axes,
    x: Sequence[float] | np.ndarray,
    y: Sequence[float],
    colour: str,
    index: int,
    dashes: tuple[int, int] | None = None,
) -> None:
    """The first seed's line, or a fainter one of another seed."""
    (line,) = axis.plot(
        x, y, color=colour, linewidth=1.0 if index else 1.9, alpha=0.45 if index else 1.0
    )
    if dashes is not None:
        line.set_dashes(dashes)
    elif not index:
        line.set(marker="o", markersize=3)


def _label_ends(axis: Axes, x: float, ends: Mapping[str, tuple[float, str]]) -> None:
    """Names beside the ends of the lines of a logarithmic axis, moved apart."""
    low, high = np.log10(axis.get_ylim())
    gap = 0.052 * (high - low)
    names = sorted(ends, key=lambda name: ends[name][0])
    places = spread(
        [float(np.log10(max(ends[name][0], 10**low))) for name in names], gap, low + gap / 2
    )
    for name, place in zip(names, places, strict=True):
        axis.text(x, 10**place, name, fontsize=8, color=ends[name][1], va="center")


def spread(places: Sequence[float], gap: float, lowest: float) -> list[float]:
    """Ascending places moved as little as a sweep each way needs, at least ``gap`` apart.

    Example:
        >>> spread([0.0, 0.1, 5.0], 1.0, -10.0)
        [-0.45, 0.55, 5.0]
    """
    groups: list[list[float]] = []  # each: sum of what its labels wanted minus their offsets, size
    for place in places:
        groups.append([place, 1.0])
        while len(groups) > 1:
            (total, count), (upper, more) = groups[-2:]
            start, above = total / count, upper / more
            if above >= start + gap * count:
                break
            groups[-2:] = [[total + upper - gap * count * more, count + more]]
    result: list[float] = []
    for total, count in groups:
        start = max(total / count, lowest, result[-1] + gap if result else -math.inf)
        result += [start + gap * index for index in range(int(count))]
    return result
