"""The monitor's figures: variance by layer, and the surroundings of an onset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustflow.diagnostics.kinds import Kind
from robustflow.diagnostics.onsets import Onset, components
from robustflow.diagnostics.table import LayerRecord, MonitorReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BEFORE, _AFTER = 4, 11  # layers that a panel shows before an onset's and behind it
_LOWEST, _HIGHEST = -1.0, 5.0  # where its colours end, log10 |z|
_COLUMNS = 8
_COLOUR, _REFERENCE, _MARK = "#b2182b", "#2166ac", "#00e5d0"


@dataclass(frozen=True)
class LayerMap:
    """Magnitudes of z behind one layer.

    Attributes:
        name, kind: the layer's.
        step: number of its call; -1 for the latents.
        magnitudes: (N, \\*S), the largest |z| of each position's channels; or (N, C), |z|, where
            z is a vector.
        reach: how many positions a value can travel in the layer; None: everywhere.
    """

    name: str
    kind: Kind
    step: int
    magnitudes: Tensor
    reach: int | None

    def of(self, rows: Sequence[int]) -> LayerMap:
        """The map of these samples alone."""
        return replace(self, magnitudes=self.magnitudes[list(rows)])


def new_figure(**options: Any) -> Figure:
    """A matplotlib figure without a window.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Figures need matplotlib: pip install 'robustflow[experiments]', or matplotlib itself."
        ) from error
    return Figure(layout="constrained", **options)


def variance_figure(report: MonitorReport, reference: MonitorReport | None) -> Figure:
    """:meth:`InverseMonitor.figure`."""
    rows = [each for each in report.layers if each.direction == "sampling"] or list(report.layers)
    figure = new_figure(figsize=(max(6.0, 0.15 * len(rows) + 2.5), 4.6))
    axis = figure.subplots()
    curves = [("variance", rows, _COLOUR)]
    if reference is not None:
        by_name = {(each.name, each.direction): each for each in reference.layers}
        known = [by_name.get((each.name, each.direction)) for each in rows]
        curves[0] = ("this monitor", rows, _COLOUR)
        curves.append(("reference", [each for each in known if each is not None], _REFERENCE))
    place = {(each.name, each.direction): i for i, each in enumerate(rows, start=1)}
    for label, layers, colour in curves:
        ends = [(0, layers[0].input_variance)] if layers else []
        ends += [(place[each.name, each.direction], each.output_variance) for each in layers]
        drawn = [(x, y) for x, y in ends if math.isfinite(y) and y > 0]
        axis.plot(*zip(*drawn, strict=True), ".-", color=colour, label=label, linewidth=1.2)
    _mark_onsets(axis, rows)
    axis.set_yscale("log")
    axis.set_ylabel("variance of z behind the layer")
    axis.set_xlabel("layers in the order of sampling, from latents to data")
    axis.set_xlim(-0.5, len(rows) + 0.5)
    _name_layers(axis, rows)
    if reference is not None or any(each.onsets for each in rows):
        axis.legend(fontsize=8, frameon=False)
    axis.grid(axis="y", alpha=0.3)
    return figure


def _mark_onsets(axis: Any, rows: Sequence[LayerRecord]) -> None:
    label: str | None = "explosions begin"
    for x, each in enumerate(rows, start=1):
        if each.onsets:
            axis.axvline(x, color="0.6", linewidth=0.8, linestyle=":", zorder=0, label=label)
            label = None


def _name_layers(axis: Any, rows: Sequence[LayerRecord]) -> None:
    step = max(1, math.ceil(len(rows) / 40))
    shown = [(i, each) for i, each in enumerate(rows, start=1) if (i - 1) % step == 0]
    axis.set_xticks([0, *(i for i, _ in shown)])
    labels = ["latents", *(f"{each.name} ({each.kind})" for _, each in shown)]
    axis.set_xticklabels(labels, rotation=90, fontsize=6)


def onset_panel(onset: Onset, maps: Sequence[LayerMap], radius: int, growth: float) -> Figure:
    """:meth:`InverseMonitor.panel`; maps of one sample each."""
    # Layers that multiply by constants are left out, if there are others.
    shown = [each for each in maps if each.kind not in ("actnorm", "1x1", "elementwise")]
    at = next((i for i, each in enumerate(shown) if each.step == onset.step), None)
    if at is None:
        shown, at = list(maps), [each.step for each in maps].index(onset.step)
    # The reach of a layer that is left out still counts.
    shown = [
        replace(each, reach=_travel(maps, before.step, each.step))
        for before, each in zip([shown[0], *shown], shown, strict=False)
    ][max(0, at - _BEFORE) : at + _AFTER + 1]
    extra = len(onset.shape) - 3
    if extra > 0:  # a volume, seen along its first dimensions
        channel, *place = onset.position
        flat = (channel, *place[extra:])
        onset = replace(onset, position=flat, shape=(onset.shape[0], *onset.shape[-2:]))
        along = tuple(range(1, 1 + extra))
        shown = [replace(each, magnitudes=each.magnitudes.amax(along)) for each in shown]
    if extra >= 0:
        return _pictures(onset, shown, radius, growth)
    return _rows(onset, shown, radius)


def _travel(maps: Sequence[LayerMap], after: int, until: int) -> int | None:
    """How far a value can travel in the layers between two steps, the second included."""
    reaches = [each.reach for each in maps if after < each.step <= until]
    known = [each for each in reaches if each is not None]
    return sum(known) if len(known) == len(reaches) else None


def _pictures(onset: Onset, maps: Sequence[LayerMap], radius: int, growth: float) -> Figure:
    columns = min(_COLUMNS, len(maps))
    rows = math.ceil(len(maps) / columns)
    figure = new_figure(figsize=(1.45 * columns + 1, 1.75 * rows + 2.6))
    figure.suptitle(str(onset), fontsize=9)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.75 * rows, 2.1))
    above, below = halves
    axes = above.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    image = None
    for axis, each, field in zip(axes, maps, _fields(onset, maps), strict=False):
        window, corner, cell = _window(each, onset, radius)
        image = axis.imshow(
            window, cmap="magma", vmin=_LOWEST, vmax=_HIGHEST, interpolation="nearest"
        )
        axis.set_title(f"{each.name}\n{each.kind}", fontsize=5.5, pad=2)
        if field is not None and each.step >= onset.step:
            _draw_field(axis, onset, corner, cell, field)
    above.colorbar(image, ax=list(axes), label="log10 |z|", shrink=0.8)
    _draw_radii(below.subplots(), onset, maps, growth)
    return figure


def _window(
    each: LayerMap, onset: Onset, radius: int
) -> tuple[Any, tuple[float, ...], tuple[float, ...]]:
    """log10 |z| around an onset; the window's corner and a position's size, in its own pixels."""
    log = each.magnitudes[0].float().log10().nan_to_num(nan=_HIGHEST, neginf=-math.inf).cpu()
    sides = log.shape
    cell = tuple(side / there for side, there in zip(sides, onset.shape[1:], strict=True))
    corner, index = [], []
    for at, side, scale in zip(onset.position[1:], sides, cell, strict=True):
        low = max(0, round((at - radius) * scale))
        corner.append(low)
        index.append(slice(low, min(side, round((at + radius + 1) * scale))))
    return log[tuple(index)].numpy(), tuple(corner), cell


def _draw_field(
    axis: Any, onset: Onset, corner: Sequence[float], cell: Sequence[float], field: int
) -> None:
    from matplotlib.patches import Rectangle

    top, left = (
        (at - field) * scale - low - 0.5
        for at, scale, low in zip(onset.position[1:], cell, corner, strict=True)
    )
    height, width = ((2 * field + 1) * scale for scale in cell)
    axis.add_patch(Rectangle((left, top), width, height, fill=False, color=_MARK, linewidth=0.8))


def _fields(onset: Onset, maps: Sequence[LayerMap]) -> list[int | None]:
    """How far the receptive field of the onset's place extends behind each layer; None: all."""
    fields: list[int | None] = []
    field: int | None = 0
    for each in maps:
        if each.step > onset.step:
            field = None if field is None or each.reach is None else field + each.reach
        fields.append(field)
    return fields


def _draw_radii(axis: Any, onset: Onset, maps: Sequence[LayerMap], growth: float) -> None:
    fields = _fields(onset, maps)
    sides = onset.shape[1:]
    whole = max(max(at, side - 1 - at) for at, side in zip(onset.position[1:], sides, strict=True))
    steps = [each.step - onset.step for each in maps]
    limits = [whole if field is None else min(field, whole) for field in fields]
    radii = [_radius(each, onset, growth) if each.step >= onset.step else math.nan for each in maps]
    at_and_after = [
        limit if step >= 0 else math.nan for limit, step in zip(limits, steps, strict=True)
    ]
    axis.plot(
        steps, at_and_after, color=_REFERENCE, linewidth=5, alpha=0.4, label="receptive field"
    )
    axis.plot(steps, radii, ".-", color=_COLOUR, label=f"|z| of {growth:g} or more")
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("layers behind the onset", fontsize=8)
    axis.set_ylabel("radius (positions)", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=7, frameon=False)
    axis.grid(alpha=0.3)


def _radius(each: LayerMap, onset: Onset, growth: float) -> float:
    """Radius of the patch of large |z| at an onset; NaN without one."""
    large = ~(each.magnitudes[0] < growth)
    labels = components(large[None])[0]
    pairs = list(zip(onset.position[1:], onset.shape[1:], strict=True))
    distance = torch.zeros(large.shape, device=large.device)
    for dim, (at, there) in enumerate(pairs):
        # In positions of the onset's layer, since z may have another size by then.
        index = (torch.arange(large.shape[dim], device=large.device) * there) // large.shape[dim]
        far = (index - at).abs().view(-1, *[1] * (large.dim() - 1 - dim))
        distance = torch.maximum(distance, far)
    here = labels[(distance == 0) & large]
    return float(distance[labels == here[0]].max()) if len(here) else math.nan


def _rows(onset: Onset, maps: Sequence[LayerMap], radius: int) -> Figure:
    """One picture for vectors and signals: a row a layer."""
    columns = max(each.magnitudes[0].numel() for each in maps)
    low, high = 0, columns
    _, *place = onset.position
    if place:  # a signal, or the first of more dimensions
        scale = columns / math.prod(onset.shape[1:])
        low = max(0, math.floor((place[-1] - radius) * scale))
        high = min(columns, math.ceil((place[-1] + radius + 1) * scale))
    image = torch.full((len(maps), columns), math.nan)
    for row, each in enumerate(maps):
        log = each.magnitudes[0].float().log10().flatten().cpu()
        image[row] = log.repeat_interleave(columns // len(log))
    figure = new_figure(figsize=(6.5, 0.22 * len(maps) + 1.6))
    axis = figure.subplots()
    shown = axis.imshow(
        image[:, low:high].nan_to_num(nan=_HIGHEST).numpy(),
        cmap="magma",
        vmin=_LOWEST,
        vmax=_HIGHEST,
        aspect="auto",
        interpolation="nearest",
        extent=(low - 0.5, high - 0.5, len(maps) - 0.5, -0.5),
    )
    axis.set_yticks(range(len(maps)), [f"{each.name} ({each.kind})" for each in maps], fontsize=7)
    axis.set_xlabel("position" if place else "feature", fontsize=8)
    axis.locator_params(axis="x", integer=True)
    figure.suptitle(str(onset), fontsize=8)
    figure.colorbar(shown, label="log10 |z|")
    return figure
