"""Artifacts in the picture files of any model: a table, a JSON file, and masks."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

import robustflow
from robustflow._files import check_writable, write_atomically
from robustflow.diagnostics.artifacts import KINDS, Thresholds, find_artifacts
from robustflow.diagnostics.intervals import Estimate, wilson_interval
from robustflow.experiments.console import say
from robustflow.experiments.data.reading import (
    Skipped,
    UnreadablePicture,
    picture_files,
    read_picture,
)
from robustflow.experiments.tasks.base import WHITE

_SHOWN = 20  # pictures that the table lists


class BadRequest(ValueError):
    """The request cannot be fulfilled; the text says why."""


@dataclass
class Report:
    """What was found.

    Attributes:
        pictures: by name, the share of pixels by kind, for all kinds that were looked for.
        masks: by name, the mask's file by kind, for those found.
        skipped: files that could not be read.
        alone: pictures without a low-resolution picture that could be read.
    """

    pictures: dict[str, dict[str, float]] = field(default_factory=dict)
    masks: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)

    @property
    def found(self) -> bool:
        """Whether any picture has any artifact."""
        return any(self.masks.values())

    def rates(self) -> dict[str, Estimate]:
        """By kind, the share of the pictures in which it was looked for, with Wilson's interval."""
        rates: dict[str, Estimate] = {}
        for kind in KINDS:
            looked = [shares[kind] for shares in self.pictures.values() if kind in shares]
            if looked:
                rates[kind] = wilson_interval(sum(share > 0 for share in looked), len(looked))
        return rates

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "robustflow": robustflow.__version__,
            "found": self.found,
            "kinds": {kind: rate.as_json() for kind, rate in self.rates().items()},
            "pictures": {
                name: {"pixels": shares, "masks": self.masks.get(name, {})}
                for name, shares in self.pictures.items()
            },
            "without_low_resolution": self.alone,
            "skipped": [{"file": str(s.path), "reason": s.reason} for s in self.skipped],
            "thresholds": asdict(Thresholds()),
        }


def check_pictures(
    folder: Path,
    out: Path,
    *,
    console: Console,
    low: Path | None = None,
    scale: int = 4,
) -> Report:
    """Look for artifacts in every picture below a folder; write and print what is found.

    Args:
        folder: of pictures.
        out: a folder, created if missing; gets ``check.json`` and ``masks/NAME.KIND.png``, white
        where
            the artifact is. Masks of an earlier check there are removed.
        console: where the table goes.
        low: folder of low-resolution pictures, matched by name (:func:`match`). Pictures of one
            of them are samples of one observation.
        scale: a picture's side over that of its low-resolution picture.

    Raises:
        BadRequest: no folder, no picture that can be read, no low-resolution picture for any, or
            one of another size.
        UnwritablePath: ``out`` cannot be written.
    """
    check_writable(out / "check.json")
    files = _by_name(folder, out)
    lows = {} if low is None else _by_name(low, out)
    groups: dict[str | None, list[str]] = {}
    for name in files:
        groups.setdefault(match(name, list(lows), scale), []).append(name)
    report = Report()
    if low is not None:
        report.alone = list(groups.get(None, []))
        if len(report.alone) == len(files):
            raise BadRequest(
                f"No picture of {folder} has its low-resolution picture in {low}: they must have "
                f"the same name, such as {next(iter(lows))} for {next(iter(lows))}-00."
            )
    _remove_masks(out)
    batches: list[tuple[str | None, list[str]]] = []
    for key, names in groups.items():  # without an observation each picture is on its own
        batches += [(key, [name]) for name in names] if key is None else [(key, names)]
    for key, names in track(batches, "Checking", console=console, transient=True):
        pictures = _read(files, names, report)
        observation = None
        if key is not None and pictures:
            observation = _read(lows, [key], report).get(key)
            if observation is None:
                report.alone += pictures
            else:
                _check_sizes(files, pictures, lows[key], observation, scale)
        for size in dict.fromkeys(picture.shape for picture in pictures.values()):
            alike = {name: x for name, x in pictures.items() if x.shape == size}
            _look(alike, observation, scale, out, report)
    if not report.pictures:
        reasons = "; ".join(str(skipped) for skipped in report.skipped)
        raise BadRequest(f"No picture of {folder} can be read: {reasons}.")
    report.pictures = {name: report.pictures[name] for name in files if name in report.pictures}
    write_atomically(out / "check.json", json.dumps(report.to_dict(), indent=1) + "\n")
    _print(report, out, console)
    return report


def match(name: str, lows: Sequence[str], scale: int) -> str | None:
    """The name of the low-resolution picture that a picture was made from, if it is among them.

    Names are without the file's ending. NAME or NAMEx4 (x8, ... by the scale) belongs to NAME and
    to every name that continues it after a sign: NAME-00, NAME_sample1, NAME.2. The longest counts.

    Example:
        >>> lows = ["0801x4", "0802x4", "cat", "cat-2"]
        >>> [match(name, lows, 4) for name in ("0801", "0802_sample_03", "cat-2-01", "category")]
        ['0801x4', '0802x4', 'cat-2', None]
    """
    matches = []
    for low in lows:
        for base in {low, low.removesuffix(f"x{scale}")}:
            if base and (name == base or re.match(re.escape(base) + r"[^0-9a-zA-Z]", name)):
                matches.append((len(base), low))
    return max(matches)[1] if matches else None


def _by_name(folder: Path, out: Path) -> dict[str, Path]:
    """The pictures below a folder by their path without its ending; none of those in ``out``."""
    try:
        files = picture_files(folder)
    except (OSError, ValueError) as error:
        raise BadRequest(str(error)) from None
    named: dict[str, Path] = {}
    for path in files:
        if out.resolve() in path.resolve().parents:
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in named:
            raise BadRequest(
                f"{named[name]} and {path} have the same name: keep one of them in the folder."
            )
        named[name] = path
    if not named:
        raise BadRequest(
            f"There is no picture in {folder} but those in {out}: name another folder."
        )
    return named


def _read(files: Mapping[str, Path], names: Sequence[str], report: Report) -> dict[str, Tensor]:
    """Pictures (3, H, W) with values in [0, 1], without those that cannot be read."""
    pictures = {}
    for name in names:
        try:
            pictures[name] = read_picture(files[name]).float() / WHITE
        except UnreadablePicture as error:
            report.skipped.append(Skipped(files[name], str(error)))
    return pictures


def _check_sizes(
    files: Mapping[str, Path],
    pictures: Mapping[str, Tensor],
    low: Path,
    observation: Tensor,
    scale: int,
) -> None:
    height, width = (scale * side for side in observation.shape[1:])
    for name, picture in pictures.items():
        if picture.shape[1:] == (height, width):
            continue
        raise BadRequest(
            f"{files[name]} has {picture.shape[2]} x {picture.shape[1]} pixels, and {low} "
            f"{observation.shape[2]} x {observation.shape[1]}: with --scale {scale} the former "
            f"must have {width} x {height}. Give the scale, or the low-resolution pictures, that "
            "they are made from."
        )


def _look(
    pictures: Mapping[str, Tensor],
    observation: Tensor | None,
    scale: int,
    out: Path,
    report: Report,
) -> None:
    """Find artifacts in pictures of one size and observation, and write their masks."""
    artifacts = find_artifacts(
        torch.stack(list(pictures.values())),
        observation,
        f"sr{scale}" if observation is not None and scale > 1 else None,
    )
    # 8 bits cannot leave the range.
    masks = {kind: mask for kind, mask in artifacts.masks.items() if kind != "range"}
    for number, name in enumerate(pictures):
        report.pictures[name] = {k: float(m[number].float().mean()) for k, m in masks.items()}
        for kind, mask in masks.items():
            if mask[number].any():
                path = Path("masks", f"{name}.{kind}.png")
                write_atomically(out / path, _png(mask[number]))
                report.masks.setdefault(name, {})[kind] = path.as_posix()


def _png(mask: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask.cpu().numpy()).save(buffer, format="png")
    return buffer.getvalue()


def _remove_masks(out: Path) -> None:
    """The masks of an earlier check, as its ``check.json`` lists them."""
    try:
        earlier = json.loads((out / "check.json").read_text())
        masks = [mask for one in earlier["pictures"].values() for mask in one["masks"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # none, or not ours
    folder = (out / "masks").resolve()
    for mask in masks:
        path = (out / mask).resolve()
        if folder in path.parents and path.suffix == ".png":
            path.unlink(missing_ok=True)


def _print(report: Report, out: Path, console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, title=f"{len(report.pictures)} pictures", title_justify="left")
    for title in ("kind", "pictures", "rate [95 %]", "pixels"):
        table.add_column(title, justify="left" if title == "kind" else "right")
    for kind, rate in report.rates().items():
        looked = [shares[kind] for shares in report.pictures.values() if kind in shares]
        count, mean = sum(share > 0 for share in looked), sum(looked) / len(looked)
        table.add_row(kind, f"{count} of {len(looked)}", str(rate), f"{100 * mean:.3g} %")
    console.print(table)
    worst = sorted(report.masks, key=lambda name: -max(report.pictures[name].values()))
    if worst:
        table = Table(box=SIMPLE_HEAD, title="worst first", title_justify="left")
        table.add_column("picture", overflow="fold")
        table.add_column("share of its pixels")
        for name in worst[:_SHOWN]:
            shares = report.pictures[name]
            kinds = ", ".join(f"{kind} {100 * shares[kind]:.3g} %" for kind in report.masks[name])
            table.add_row(escape(name), kinds)
        console.print(table)
    if len(worst) > _SHOWN:
        say(console, f"... and {len(worst) - _SHOWN} more.")
    for skipped in report.skipped:
        say(console, f"{skipped.path} is left out: {skipped.reason}.", style="yellow")
    for name in report.alone[:_SHOWN]:
        say(console, f"{name} has no low-resolution picture: checked without.", style="yellow")
    if len(report.alone) > _SHOWN:
        say(console, f"... and {len(report.alone) - _SHOWN} more without one.", style="yellow")
    say(console, f"{out / 'check.json'} has all of it.")
