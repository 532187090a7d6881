"""The robustness report of a trained imaging flow."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from robustflow.diagnostics.report.report import robustness_report
from robustflow.diagnostics.report.result import RobustnessReport
from robustflow.experiments.data.builtin import Split
from robustflow.experiments.data.squares import squares_of
from robustflow.experiments.imaging.loading import load_own_flow
from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.experiments.tasks.base import WHITE

LOGGER = logging.getLogger("robustflow.experiments.imaging")


class BadPictures(ValueError):
    """A folder whose pictures cannot be used; the text says why."""


def report_on(
    checkpoint: Path,
    *,
    training: Path | None,
    held_out: Path | None,
    ood: Path | None,
    size: int,
    number: int,
    temperatures: Sequence[float],
    growth: float,
    seed: int,
    out: Path,
) -> RobustnessReport:
    """:func:`robustness_report` of a checkpoint, on squares of pictures.

    Args:
        checkpoint: as for :func:`load_own_flow`.
        training, held_out, ood: folders of pictures; None: those that packages ship.
        size: of the squares, in pixels of x; made a multiple of the flow's.
        number, temperatures, growth, seed, out: as for :func:`robustness_report`.

    Raises:
        CheckpointError: no checkpoint.
        BadPictures: squares too small for the flow, or a folder that is missing, or without a
            picture that is large enough.
    """
    flow, config = load_own_flow(checkpoint)
    if size < flow.size_multiple:
        raise BadPictures(
            f"The squares must have at least {flow.size_multiple} pixels, got {size}."
        )
    size -= size % flow.size_multiple
    folders: dict[Split, Path | None] = {"train": training, "held_out": held_out, "ood": ood}
    contexts = {split: observations(flow, split, folder, size) for split, folder in folders.items()}
    return robustness_report(
        flow,
        contexts["train"],
        contexts["ood"],
        held_out=contexts["held_out"],
        certified=flow.flow,
        num_samples=number,
        temperatures=temperatures,
        growth=growth,
        seed=seed,
        out=out,
        title=f"{config.task.name}, {config.model.coupling}",
    )


def observations(
    flow: ImagingFlow, split: Split, folder: Path | None, size: int
) -> dict[str, Tensor]:
    """By title, the observations (1, C, H, W) of squares of pictures.

    Args:
        flow: whose task observes.
        split: of the built-in set, where no folder is named.
        folder: of pictures, of which the middle is taken.
        size: of the squares.

    Raises:
        BadPictures: as for :func:`report_on`.
    """
    try:
        squares, skipped = squares_of(split if folder is None else folder, size)
    except (OSError, ValueError) as error:
        raise BadPictures(str(error)) from None
    for each in skipped:
        LOGGER.warning("%s is left out: %s.", each.path, each.reason)
    generator = torch.Generator().manual_seed(0)
    device = next(flow.parameters()).device
    return {
        title: flow.task.observe(flow.task.from_rgb(square[None].float() / WHITE), generator).to(
            device
        )
        for title, square in squares.items()
    }
