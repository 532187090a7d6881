"""Bars: how many times faster than each competitor, and what a drop-in gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.plot_style import BLUE, GREY, ORANGE, TEXT, Look, key, looks
from robustflow.benchmarks.rows import duration

Record = Mapping[str, Any]

OPERATIONS = {
    "modified_rq_spline": "modified RQ spline",
    "rq_spline": "RQ spline",
    "conditional_affine": "conditional affine",
    "neural_spline_flow": "neural spline flow of nflows",
    "super_resolution_flow": "super-resolution flow",
}
DIRECTIONS = {
    "forward": "forward",
    "inverse": "inverse",
    "forward+backward": "training step (forward and backward)",
}
NAMES = {
    "eager": "eager PyTorch",
    "compiled": "torch.compile",
    "zuko": "zuko under torch.compile",
    "reference": "the PyTorch reference",
    "unpatched": "nflows without the patch",
    "one-by-one": "ten calls, projected once",
    "encoded-each-time": "ten calls, encoded each time",
    "ten-contexts": "one call, encoded ten times",
}
_BAR = 0.8  # of the room for one
_INCHES = 0.155  # for a bar


def speedups(rows: Sequence[Record], title: str, *, by_direction: bool = True) -> Figure:
    """A bar for every competitor of every row: its time over ours, on a logarithmic axis.

    A column for each direction and a line of bars for each case, or a line for every row. Where a
    case has several rows of one allocator, of several backends, the fastest is drawn.
    """
    allocators = list(dict.fromkeys(row["allocator"] for row in rows))
    first = "keeping" if "keeping" in allocators else allocators[0]
    second = "default" if first == "keeping" and "default" in allocators else None
    by_bar: dict[tuple[str, str, str], Record] = {}
    for each in sorted(rows, key=lambda row: -float(row["median_s"])):
        case, direction = _place(each, by_direction)
        by_bar[case, direction, each["allocator"]] = each
    present = {_place(row, by_direction)[1] for row in rows}
    directions = [each for each in DIRECTIONS if each in present]
    directions += sorted(present - set(directions))
    places, labels, headings, height = _layout(rows, by_direction)
    names = list(dict.fromkeys(name for row in rows for name in _competitors(row)))
    styles = looks(names)

    width = 3.0 + (2.3 * len(directions) if by_direction else 4.6)
    figure = Figure(figsize=(width, 1.5 + _INCHES * height), layout="constrained")
    axes = figure.subplots(1, len(directions), sharex=True, sharey=True, squeeze=False)[0]
    for axis, direction in zip(axes, directions, strict=True):
        for case, competitors in places.items():
            row: Record | None = by_bar.get((case, direction, first))
            other = by_bar.get((case, direction, second)) if second else None
            if row is None:
                middle = sum(competitors.values()) / len(competitors)
                axis.text(1.05, middle, "not measured", fontsize=6.5, va="center", style="italic")
                continue
            for name, place in competitors.items():
                if name in row["ratio"]:
                    _bar(axis, place, name, row, other, styles[name])
        axis.set_title(DIRECTIONS.get(direction, direction))
        axis.set_xlabel("competitor's time over ours")
        axis.axvline(1.0, color=TEXT, linewidth=1.0)
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    _ratio_axis(axes[0], [row for row in by_bar.values() if row["allocator"] in (first, second)])
    axes[0].set_yticks(list(labels.values()), list(labels))
    axes[0].set_ylim(height + 0.2, -1.2)
    for place, heading in headings.items():
        axes[0].text(
            -0.02,
            place,
            heading,
            transform=axes[0].get_yaxis_transform(),
            ha="right",
            va="center",
            fontweight="bold",
        )
    handles: list[Any] = [
        Patch(
            facecolor=_faded(look),
            edgecolor=look.colour,
            hatch=look.hatch,
            label=NAMES.get(name, name),
        )
        for name, look in styles.items()
    ]
    if second:
        handles.append(
            Line2D([], [], color=TEXT, marker="d", fillstyle="none", linestyle="",
                   label="with the default allocator (bars: one that keeps its memory)")
        )  # fmt: skip
    key(figure, handles, title, columns=4 if by_direction else 2)
    return figure


def _bar(
    axis: Axes, place: float, name: str, row: Record, other: Record | None, look: Look
) -> None:
    ratio = row["ratio"][name]
    noise = row.get("ratio_spread", {}).get(name, 0.0) / 2
    axis.barh(
        place,
        ratio - 1,
        left=1,
        height=_BAR,
        facecolor=_faded(look),
        edgecolor=look.colour,
        hatch=look.hatch,
        linewidth=0.9,
    )
    if noise:
        ends = ([ratio * (1 - 1 / (1 + noise))], [ratio * noise])
        axis.errorbar(ratio, place, xerr=ends, color=TEXT, linewidth=0.8, fmt="none")
    text, right = f"{ratio:.3g}×", max(1.0, ratio * (1 + noise))
    second = other["ratio"].get(name) if other else None
    if second is not None:
        axis.plot(second, place, marker="d", color=TEXT, fillstyle="none", markersize=4)
        text, right = f"{text} ({second:.3g})", max(right, second)
    axis.annotate(
        text,
        (right, place),
        xytext=(5, 0),
        textcoords="offset points",
        fontsize=6.5,
        va="center",
        color=look.colour,
    )


def _ratio_axis(axis: Axes, rows: Sequence[Record]) -> None:
    every = [ratio for row in rows for ratio in _competitors(row).values()]
    axis.set_xscale("log")
    # Room for the numbers beside the longest bar.
    low, high = min(0.9, *every) * 0.9, max(2.0, *every)
    axis.set_xlim(low, high * (high / low) ** 0.45)
    steps = (1.0, 2.0, 5.0) if high / low < 30 else (1.0, 3.0)
    axis.xaxis.set_major_locator(LogLocator(subs=steps))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _layout(
    rows: Sequence[Record], by_direction: bool
) -> tuple[dict[str, dict[str, float]], dict[str, float], dict[float, str], float]:
    """Where each case's competitors go, from above; labels and headings; the height in bars."""
    competitors: dict[str, dict[str, dict[str, None]]] = {}
    shapes: dict[str, str] = {}
    for row in rows:
        cases = competitors.setdefault(row["operation"], {})
        case, _ = _place(row, by_direction)
        cases.setdefault(case, {}).update(dict.fromkeys(_competitors(row)))
        shapes[case] = _size(row)
    places: dict[str, dict[str, float]] = {}
    labels: dict[str, float] = {}
    headings: dict[float, str] = {}
    at = 0.0
    for operation, cases in competitors.items():
        headings[at] = OPERATIONS.get(operation, operation)
        at += 1.3
        for case, names in cases.items():
            places[case] = {name: at + index for index, name in enumerate(names)}
            labels[f"{case}   {shapes[case]}"] = at + (len(names) - 1) / 2
            at += len(names) + 0.5
        at += 0.3
    return places, labels, headings, at - 0.8


def _competitors(row: Record) -> dict[str, float]:
    """Ratios by competitor: an inverse's own forward is none."""
    return {name: ratio for name, ratio in row["ratio"].items() if name != "forward"}


def _place(row: Record, by_direction: bool) -> tuple[str, str]:
    """The case and the column of a row: its name without the direction, and the direction."""
    name: str = row["name"].removeprefix("end-to-end.")
    if not by_direction:
        return name, ""
    return name.rpartition(".")[0] or name, row["direction"]


def _size(row: Record) -> str:
    size = "×".join(f"{each}" for each in row["shape"])
    return size if row["dtype"] == "float32" else f"{size} {row['dtype']}"


def _faded(look: Look) -> tuple[str, float]:
    return look.colour, 0.35


_MODES = {
    "off": Look(GREY, hatch=""),
    "on": Look(BLUE, hatch=""),
    "free": Look(ORANGE, hatch="////"),
}
_LEGEND = {
    "off": "as the library is",
    "on": "with robustflow's patch",
    "free": "with a transform that costs nothing: the bound",
}


def dropin(rows: Sequence[Record], title: str) -> Figure:
    """Time of a flow with the patch off, on, and with a free transform, over that with it off."""
    whats = list(dict.fromkeys(row["what"] for row in rows))
    flows = list(dict.fromkeys((row["library"], row["size"]) for row in rows))
    by_bar = {(row["library"], row["size"], row["what"]): row for row in rows}
    figure = Figure(
        figsize=(2.2 + 3.2 * len(whats), 1.4 + _INCHES * 3.6 * len(flows)), layout="constrained"
    )
    axes = figure.subplots(1, len(whats), sharex=True, sharey=True, squeeze=False)[0]
    for axis, what in zip(axes, whats, strict=True):
        for index, flow in enumerate(flows):
            row = by_bar.get((*flow, what))
            if row is None:
                axis.text(0.02, 3.6 * index + 1, "not measured", fontsize=6.5, style="italic")
                continue
            for offset, mode in enumerate(_MODES):
                _mode_bar(axis, 3.6 * index + offset, mode, row)
        axis.set_title(what)
        axis.set_xlabel("time over that of the library")
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
    longest = max(row["seconds"][mode] / row["seconds"]["off"] for row in rows for mode in _MODES)
    axes[0].set_xlim(0, longest * 1.42)
    axes[0].set_yticks(
        [3.6 * index + 1 for index in range(len(flows))], [f"{lib}, {size}" for lib, size in flows]
    )
    axes[0].set_ylim(3.6 * len(flows) - 0.8, -0.8)
    handles = [
        Patch(facecolor=_faded(look), edgecolor=look.colour, hatch=look.hatch, label=_LEGEND[mode])
        for mode, look in _MODES.items()
    ]
    key(figure, handles, title, columns=3)
    return figure


def _mode_bar(axis: Axes, place: float, mode: str, row: Record) -> None:
    look, seconds = _MODES[mode], row["seconds"]
    share = seconds[mode] / seconds["off"]
    axis.barh(
        place,
        share,
        height=_BAR,
        facecolor=_faded(look),
        edgecolor=look.colour,
        hatch=look.hatch,
        linewidth=0.9,
    )
    text = f"{mode}: {duration(seconds[mode])}"
    if mode != "off":
        text += f", {1 / share:.3g}× faster" if share <= 1 else f", {share:.3g}× slower"
    axis.annotate(
        text,
        (share, place),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=6.5,
        va="center",
        color=look.colour,
    )
