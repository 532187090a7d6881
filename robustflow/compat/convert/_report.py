"""What a conversion replaced, and what it kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Replaced:
    """One affine transform that is a modified RQ spline now.

    Attributes:
        name: qualified name of the layer, and of the transform in it where it has several.
        old: what the layer was.
        new: what it is.
        channels: number of channels that are transformed.
        interval: the box, after the constant scale and shift: the lowest and the highest edge
            of all channels.
        mean_log_scale: mean of the constant log-scales over the channels, in the direction from
            data to latents. Minus it is the log of what the inverse multiplies by.
    """

    name: str
    old: str
    new: str
    channels: int
    interval: tuple[float, float]
    mean_log_scale: float


@dataclass(frozen=True)
class Kept:
    """One layer that stays as it was.

    Attributes:
        name: qualified name of the layer.
        kind: what it is.
        reason: why it was not replaced.
    """

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`robustflow.convert_affine` did; ``str()`` of it is a table.

    Attributes:
        replaced: the transforms that are modified RQ splines now.
        kept: the affine layers that stay, each with the reason.
    """

    replaced: tuple[Replaced, ...]
    kept: tuple[Kept, ...]

    def __str__(self) -> str:
        lines = [f"Replaced {len(self.replaced)}, kept {len(self.kept)}."]
        if self.replaced:
            rows = [
                (
                    row.name or "(model)",
                    f"{row.old} -> {row.new}",
                    str(row.channels),
                    f"[{row.interval[0]:.3g}, {row.interval[1]:.3g}]",
                    f"{row.mean_log_scale:+.3f}",
                )
                for row in self.replaced
            ]
            lines += _table(("replaced", "", "channels", "box", "mean log-scale"), rows)
        if self.kept:
            kept = [(row.name or "(model)", row.kind, row.reason) for row in self.kept]
            lines += _table(("kept", "", "reason"), kept)
        return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    every = [head, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in every
    ]
