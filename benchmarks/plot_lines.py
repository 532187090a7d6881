"""Lines: what benchmarks.scaling measured, against the number of elements and of bins."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from benchmarks.plot_bars import DIRECTIONS, OPERATIONS
from benchmarks.plot_style import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    TEAL,
    TEXT,
    Look,
    looks,
    not_measured,
    remark,
)

Record = Mapping[str, Any]

_THREADS = {1: Look(TEAL, "o"), 2: Look(BLUE, "s")}
_FRACTIONS = {
    "forward": Look(BLUE, "s"),
    "inverse": Look(PURPLE, "o", "--"),
    "forward+backward": Look(GREEN, "^", "-."),
}
_PANEL = (2.9, 2.25)  # inches
_NARROWEST = 4.6  # for the title and the caption
_SHORT = {**DIRECTIONS, "forward+backward": "training step"}


def against_elements(rows: Sequence[Record], title: str, cache: int | None) -> Figure:
    """Nanoseconds an element against N: a column for each operation, a line for each direction."""
    rows = [row for row in rows if row["sweep"] == "n"]
    operations, directions = (
        _kinds(rows, "operation", OPERATIONS),
        _kinds(rows, "direction", _SHORT),
    )
    figure, axes = _panels(len(directions), len(operations), title)
    every = {_count(row) for row in rows}
    for line, direction in zip(axes, directions, strict=True):
        for axis, operation in zip(line, operations, strict=True):
            chosen = [r for r in rows if (r["operation"], r["direction"]) == (operation, direction)]
            _times(axis, chosen, _count, every)
            _mark_cache(axis, chosen, cache, "bottom")
            _element_axis(axis, every, room=60)
            axis.set_title(f"{_operation(operation, chosen)}, {_SHORT[direction]}")
        line[0].set_ylabel("ns an element")
    for axis in axes[-1]:
        axis.set_xlabel("elements, N")
    return figure


def against_bins(rows: Sequence[Record], title: str) -> Figure:
    """Nanoseconds an element against K, a column for each direction."""
    rows = [row for row in rows if row["sweep"] == "k"]
    directions = _kinds(rows, "direction", _SHORT)
    figure, axes = _panels(1, len(directions), title)
    every = {row["num_bins"] for row in rows}
    for axis, direction in zip(axes[0], directions, strict=True):
        chosen = [row for row in rows if row["direction"] == direction]
        _times(axis, chosen, lambda row: int(row["num_bins"]), every)
        axis.set_xlim(min(every) / 1.2, max(every) * 6)
        # The axis is logarithmic: 8 and 10 would be written into each other.
        named = [each for each in sorted(every) if each & (each - 1) == 0] or sorted(every)
        axis.set_xticks(named, [str(each) for each in named])
        axis.xaxis.set_minor_locator(NullLocator())
        count = _power(_count(chosen[0]))
        axis.set_title(f"RQ spline, {count} rows, {_SHORT[direction]}")
        axis.set_xlabel("bins, K")
    axes[0][0].set_ylabel("ns an element")
    return figure


def floor_fractions(
    rows: Sequence[Record], title: str, cache: int | None, verdicts: Sequence[Record]
) -> Figure:
    """The fraction of the floor against N: a column for each operation, a line for each number of
    threads; with how far each varies beyond the last cache, where that was judged."""
    rows = [row for row in rows if row["sweep"] == "n"]
    operations = _kinds(rows, "operation", OPERATIONS)
    threads = sorted({row["threads"] for row in rows})
    figure, axes = _panels(len(threads), len(operations), title, sharey=True)
    every = {_count(row) for row in rows}
    axes[0][0].set_ylim(0, 1.08 * max(1.0, *(row["floor_fraction"] for row in rows)))
    for line, number in zip(axes, threads, strict=True):
        for axis, operation in zip(line, operations, strict=True):
            chosen = [r for r in rows if (r["operation"], r["threads"]) == (operation, number)]
            names = []
            for direction, look in _FRACTIONS.items():
                points = sorted(
                    (_count(row), row["floor_fraction"])
                    for row in chosen
                    if row["direction"] == direction
                )
                if points:
                    _line(axis, points, look)
                    names.append((*points[-1], _SHORT[direction], look.colour))
            if not names:
                not_measured(axis)
            axis.set_xscale("log")
            _element_axis(axis, every, room=300)
            _name_lines(axis, names, logarithmic=False)
            axis.axhline(1.0, color=TEXT, linewidth=1.0, linestyle=(0, (1, 1.5)))
            _mark_cache(axis, chosen, cache, "top")
            noun = "thread" if number == 1 else "threads"
            axis.set_title(f"{_operation(operation, chosen)}, {number} {noun}")
            judged = [
                f"{_SHORT[verdict['direction']]} {verdict['ratio']:.2f}×"
                for verdict in verdicts
                if verdict["ratio"] is not None
                and (verdict["operation"], verdict["threads"]) == (operation, number)
            ]
            if judged:
                axis.set_xlabel(
                    "beyond the cache, largest over smallest:\n" + ", ".join(judged), fontsize=6.5
                )
        line[0].set_ylabel("fraction of a copy's speed")
        line[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axis in axes[-1]:
        axis.set_xlabel("\n".join(filter(None, ("elements, N", axis.get_xlabel()))))
    return figure


def _panels(height: int, width: int, title: str, **shared: Any) -> tuple[Figure, Any]:
    figure = Figure(
        figsize=(max(_PANEL[0] * width, _NARROWEST) + 0.4, _PANEL[1] * height + 0.7),
        layout="constrained",
    )
    axes = figure.subplots(height, width, squeeze=False, **shared)
    figure.suptitle(title, fontsize=10)
    return figure, axes


def _times(axis: Axes, rows: Sequence[Record], of: Any, every: Iterable[int]) -> None:
    """Ours and the floor for each number of threads, and the competitors."""
    names: list[tuple[float, float, str, str]] = []
    for threads in sorted({row["threads"] for row in rows}):
        look = _THREADS.get(threads, Look(PURPLE, "v"))
        mine = sorted((row for row in rows if row["threads"] == threads), key=of)
        noun = "thread" if threads == 1 else "threads"
        ours = [(of(row), 1e9 * row["seconds_per_element"]) for row in mine]
        floor = [
            (at, time * row["floor_fraction"]) for (at, time), row in zip(ours, mine, strict=True)
        ]
        _line(axis, ours, look)
        names.append((*ours[-1], f"{threads} {noun}", look.colour))
        axis.plot(
            *zip(*floor, strict=True), color=look.colour, linestyle=(0, (4, 2)), linewidth=1.0
        )
        names.append((*floor[-1], f"floor, {threads}", look.colour))
        competitors = list(dict.fromkeys(name for row in mine for name in row["ratio"]))
        for name, style in looks(competitors).items():
            theirs = [
                (at, time * row["ratio"][name])
                for (at, time), row in zip(ours, mine, strict=True)
                if name in row["ratio"]
            ]
            _line(axis, theirs, style)
            names.append((*theirs[-1], f"{name}, {threads}", style.colour))
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    if not names:
        not_measured(axis)
        return
    _name_lines(axis, names, logarithmic=True)
    missing = sorted(set(every) - {of(row) for row in rows})
    if missing:
        remark(axis, f"not measured: {', '.join(_power(each) for each in missing)}", y=0.02)


def _line(axis: Axes, points: Sequence[tuple[float, float]], look: Look) -> None:
    axis.plot(
        *zip(*points, strict=True),
        color=look.colour,
        marker=look.marker,
        linestyle=look.dashes,
        markeredgewidth=0,
    )


def _name_lines(
    axis: Axes, names: Sequence[tuple[float, float, str, str]], *, logarithmic: bool
) -> None:
    """Write (x, y, name, colour) beside the lines' ends, no two on top of each other."""
    low, high = axis.get_ylim()

    def place(y: float) -> float:
        if logarithmic:
            return math.log(y / low) / math.log(high / low)
        return (y - low) / (high - low)

    right = max(x for x, *_ in names) if names else 1.0
    taken = -math.inf
    for x, y, name, colour in sorted(names, key=lambda each: each[1]):
        at = max(place(y), taken + 0.075)
        taken = at
        begins = right if place(y) != at or x > right / 3 else x
        axis.annotate(
            name,
            (x, y),
            xytext=(begins * 1.35, at),
            textcoords=axis.get_xaxis_transform(),
            fontsize=6.5,
            va="center",
            color=colour,
        )


def _element_axis(axis: Axes, counts: Iterable[int], room: float) -> None:
    """N in powers of ten, with room beyond the last for the lines' names: a factor."""
    low, high = min(counts), max(counts)
    axis.set_xlim(low / 2, high * room)
    exponents = range(round(math.log10(low)), math.floor(math.log10(high)) + 1)
    axis.set_xticks([10**exponent for exponent in exponents])
    axis.xaxis.set_minor_locator(NullLocator())


def _mark_cache(axis: Axes, rows: Sequence[Record], cache: int | None, where: str) -> None:
    """Where a call begins to move more than the last cache holds."""
    if cache is None or not rows:
        return
    at = cache / max(row["bytes_per_element"] for row in rows)
    axis.axvline(at, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)))
    axis.annotate(
        "last cache",
        (at, 0.97 if where == "top" else 0.03),
        xycoords=axis.get_xaxis_transform(),
        xytext=(-2, 0),
        textcoords="offset points",
        rotation=90,
        fontsize=6,
        ha="right",
        va=where,
        color=TEXT,
    )


def _kinds(rows: Sequence[Record], key: str, order: Iterable[str]) -> list[str]:
    present = {row[key] for row in rows}
    return [each for each in order if each in present]


def _operation(operation: str, rows: Sequence[Record]) -> str:
    bins = {row["num_bins"] for row in rows} - {0}
    name = OPERATIONS[operation]
    return f"{name}, K = {bins.pop()}" if len(bins) == 1 else name


def _count(row: Record) -> int:
    return math.prod(row["shape"])


def _number(value: float) -> str:
    return f"{value:g}" if value < 10_000 else _power(round(value))


def _power(count: int) -> str:
    """A round number in few signs: 3·10⁵."""
    exponent = int(math.log10(count))
    if count < 1000 or count % 10**exponent:
        return str(count)
    digit = count // 10**exponent
    power = "10" + str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if digit == 1 else f"{digit}·{power}"
