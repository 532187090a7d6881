"""The picture of `benchmarks.reversible`: error and memory against depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks import plot_style
from benchmarks.plot_style import BLUE, ORANGE, RED, TEAL, Look

_LOOKS = {
    "modified RQ": Look(BLUE, "o"),
    "affine": Look(ORANGE, "^"),
    "modified RQ, steep": Look(TEAL, "s"),
    "affine, small scales": Look(RED, "D"),
}
_DASHES = {"store": ":", "reversible": "-"}
_WORDS = {"store": "stored", "reversible": "rebuilt"}
_MOST = 1e2  # errors beyond it, and those that are not finite, are drawn here


def reversible(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Two panels: the gradients' error, and the peak of memory, of each kind and way."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    errors, peaks = figure.subplots(1, 2)
    handles = []
    for kind, look in _LOOKS.items():
        points = [result for result in results if result["kind"] == kind]
        depths = [point["depth"] for point in points]
        for way, dashes in _DASHES.items():
            style = {"color": look.colour, "marker": look.marker, "linestyle": dashes}
            values = [min(_MOST, float(point["errors"][way])) for point in points]
            errors.plot(depths, values, **style)
            mebibytes = [point["peak_bytes"][way] / 2**20 for point in points]
            label = f"{kind}, {_WORDS[way]}"
            handles += peaks.plot(depths, mebibytes, label=label, **style)
    for axis, title in ((errors, "error of the gradients"), (peaks, "peak memory, MiB")):
        axis.set(xscale="log", yscale="log", xlabel="steps", title=title)
        depths = sorted({result["depth"] for result in results})
        axis.set_xticks(depths, [str(depth) for depth in depths])
        axis.minorticks_off()
    errors.axhline(1.0, color=plot_style.GREY, linewidth=0.8)
    errors.text(depths[-1], 0.6, "above: noise", ha="right", va="top", size=6.5, style="italic")
    plot_style.key(figure, handles, "Activations stored, or rebuilt from outputs", 4)
    return figure
