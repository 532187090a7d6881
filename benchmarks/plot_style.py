"""How the pictures look: legible in print and on a dark page, in colour and without.

Backgrounds are transparent, so every colour is of a middling lightness: each stands out by a
contrast of 3.5 or more from white and from the dark pages in use. Nothing is told by colour alone:
lines differ in their markers and dashes, bars in their hatching, and both bear their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE = "#3b7fc4", "#cc6a1a", "#3a8f4f", "#9467c9"
RED, TEAL, OCHRE, GREY = "#cf4a5c", "#1f8f96", "#9a7d1c", "#7d7d7d"
TEXT = "#777777"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, OCHRE, GREY, TEXT)

RC: Any = {  # of matplotlib.rc_context
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "axes.titlecolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "legend.labelcolor": TEXT,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.7,
    "svg.hashsalt": "robustflow",  # the same picture gives the same file
    "savefig.dpi": 110,  # about 1,000 pixels wide
}


@dataclass(frozen=True)
class Look:
    """Of a line or of a bar."""

    colour: str
    marker: str = "o"
    dashes: str = "-"
    hatch: str = ""


# The competitors, wherever they appear; one that is not here gets a look of SPARE.
COMPETITORS: Mapping[str, Look] = {
    "eager": Look(ORANGE, "^", ":", ""),
    "compiled": Look(PURPLE, "v", ":", "////"),
    "nflows": Look(GREEN, "D", ":", "...."),
    "normflows": Look(OCHRE, "P", ":", "xxxx"),
    "zuko": Look(RED, "X", ":", "\\\\\\\\"),
    "reference": Look(TEAL, "*", ":", "----"),
}
SPARE = (
    Look(BLUE, "s", ":", "++++"),
    Look(GREEN, "h", ":", "oooo"),
    Look(RED, "<", ":", "////"),
    Look(GREY, ">", ":", "...."),
)


def looks(competitors: list[str]) -> dict[str, Look]:
    """A look for each competitor."""
    spare = [each for each in competitors if each not in COMPETITORS]
    chosen = {name: SPARE[index % len(SPARE)] for index, name in enumerate(spare)}
    return {name: COMPETITORS.get(name) or chosen[name] for name in competitors}


def key(figure: Figure, handles: Sequence[Any], title: str, columns: int) -> None:
    """What the looks stand for, above a picture, under its title."""
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(columns, len(handles)),
        title=title,
        title_fontsize=10,
    )


def caption(figure: Figure, text: str) -> None:
    """Small print below a picture: the command and the machine that made it."""
    figure.supxlabel(text, fontsize=6.5, color=TEXT, x=0.01, ha="left")


def remark(axis: Axes, text: str, *, x: float = 0.03, y: float = 0.96) -> None:
    """Small print in a corner of the axes, at fractions of them."""
    vertical = "top" if y > 0.5 else "bottom"
    axis.text(x, y, text, transform=axis.transAxes, fontsize=6.5, va=vertical, style="italic")


def not_measured(axis: Axes) -> None:
    """Says in an empty panel why it is empty."""
    axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", style="italic")
    axis.grid(False)
