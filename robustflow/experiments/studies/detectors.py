"""Automatic detection of artifacts, judged by the monitor's masks of explosions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustflow.diagnostics import InverseMonitor, find_artifacts, judge_detectors
from robustflow.diagnostics.figures import new_figure
from robustflow.experiments.data.builtin import Split
from robustflow.experiments.imaging.robustness import observations
from robustflow.experiments.studies.figures import COLOURS, in_order, mean, tidy, values
from robustflow.experiments.studies.study import Cell, Row, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SPLITS: tuple[Split, ...] = ("train", "held_out", "ood")


@torch.no_grad()
def measure(cell: Cell) -> list[Row]:
    """A row for each temperature and kind of artifact."""
    return [row for temperature in cell.settings["temperatures"] for row in _at(cell, temperature)]


def _at(cell: Cell, temperature: float) -> list[Row]:
    flow, settings = cell.flow, cell.settings
    masks: dict[str, list[Tensor]] = {}
    scores: dict[str, list[Tensor]] = {}
    truth = []
    for split in _SPLITS:
        for y in observations(flow, split, None, settings["size"]).values():
            generator = torch.Generator().manual_seed(cell.seed)
            with InverseMonitor(flow) as monitor:
                samples = flow.sample(
                    y, settings["number"], temperature=temperature, generator=generator
                )[0]
            safe = flow.sample(y, 1, temperature=0.0)[0]
            known = flow.task.linear
            found = find_artifacts(
                samples,
                y if known else None,
                flow.task if known else None,
                safe,
                groups=[0] * len(samples),
            )
            truth.append(monitor.contaminated.any(dim=1))
            for kind in found.masks:
                masks.setdefault(kind, []).append(found.masks[kind])
                scores.setdefault(kind, []).append(found.scores[kind])
    reached = torch.cat([_at_size(each, masks["range"][0].shape[-2:]) for each in truth])
    judged = judge_detectors(
        {kind: torch.cat(each) for kind, each in masks.items()},
        reached,
        scores={kind: torch.cat(each) for kind, each in scores.items()},
        resamples=200,
    )
    contaminated = int(reached.flatten(1).any(dim=1).sum())
    return [
        {
            "temperature": temperature,
            "samples": len(reached),
            "contaminated": contaminated,
            "kind": kind,
            "AUROC": each.auroc.value,
            "low": each.auroc.low,
            "high": each.auroc.high,
            "IoU": each.iou.value,
            "hits": each.hit_pictures.value,
            "false alarms": each.false_pictures.value,
        }
        for kind, each in judged.items()
    ]


def _at_size(mask: Tensor, size: torch.Size) -> Tensor:
    """The mask behind the flow's last layer, at the pictures' resolution."""
    if mask.shape[-2:] == size:
        return mask
    found = torch.nn.functional.interpolate(mask[:, None].float(), size, mode="nearest")
    return found[:, 0] > 0


def figure(rows: Sequence[Row], study: Study) -> Figure:
    """Of contaminated samples, how many each kind hits, and of clean ones, how many it flags."""
    models, kinds = in_order(rows, "model"), in_order(rows, "kind")
    temperatures = in_order(rows, "temperature")
    fig = new_figure(figsize=(11, 2.6 * len(models) + 0.6))
    panels = (
        ("AUROC", "AUROC over pixels"),
        ("IoU", "IoU of mask and reached"),
        ("hits", "contaminated samples that are flagged"),
        ("false alarms", "clean samples that are flagged"),
    )
    axes = fig.subplots(len(models), len(panels), squeeze=False)
    for line, model in zip(axes, models, strict=True):
        for axis, (column, title) in zip(line, panels, strict=True):
            for place, temperature in enumerate(temperatures):
                heights = [
                    mean(values(rows, column, model=model, kind=kind, temperature=temperature))
                    for kind in kinds
                ]
                at = [k + 0.8 * (place + 0.5) / len(temperatures) - 0.4 for k in range(len(kinds))]
                axis.bar(
                    at,
                    heights,
                    width=0.8 / len(temperatures),
                    color=COLOURS[place],
                    label=f"T = {temperature:g}",
                )
            if column != "false alarms" and not values(rows, "AUROC", model=model):
                axis.text(0.5, 0.5, "no explosion", ha="center", transform=axis.transAxes)
            axis.set_xticks(range(len(kinds)), kinds, rotation=60, fontsize=7)
            axis.set_xlim(-0.6, len(kinds) - 0.4)
            axis.set_ylim(0, 1)
            tidy(axis, title)
        line[0].set_ylabel(model, fontsize=8)
    axes[0, -1].legend(fontsize=7, frameon=False)
    fig.suptitle(f"{study.title}: means over seeds", fontsize=10)
    return fig
