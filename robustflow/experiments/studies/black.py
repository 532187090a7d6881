"""Black regions and NaN in low light: does half precision cause them?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustflow.diagnostics.artifacts import faulty_pixels
from robustflow.diagnostics.artifacts.samples import displayed
from robustflow.diagnostics.figures import new_figure
from robustflow.experiments.imaging.evaluation.subjects import subjects_of
from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.experiments.studies.figures import COLOURS, in_order, legend, mean, number, tidy
from robustflow.experiments.studies.study import Cell, Row, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PRECISIONS: dict[str, tuple[torch.dtype | None, torch.dtype | None]] = {
    # networks under autocast, or everything (weights, z and all between the layers)
    "float32": (None, None),
    "networks bfloat16": (torch.bfloat16, None),
    "networks float16": (torch.float16, None),
    "all bfloat16": (None, torch.bfloat16),
    "all float16": (None, torch.float16),
}


@torch.no_grad()
def measure(cell: Cell) -> list[Row]:
    """A row for each precision and temperature, over all pictures of all groups."""
    flow, settings = cell.flow, cell.settings
    subjects, _ = subjects_of(
        ("held_out", "ood"), flow.task, [flow], size=settings["size"], with_truth=True
    )
    rows = []
    for precision, (autocast, everything) in _PRECISIONS.items():
        chosen = flow if everything is None else copy.deepcopy(flow).to(everything)
        for temperature in settings["temperatures"]:
            per_picture = [
                _count(
                    _samples(chosen, each.observation, temperature, cell, autocast, everything),
                    each.truth,
                    settings,
                )
                for each in subjects
                if each.truth is not None
            ]
            total = {name: sum(each[name] for each in per_picture) for name in per_picture[0]}
            rows.append(
                {
                    "precision": precision,
                    "temperature": temperature,
                    "samples": total["samples"],
                    "faulty samples (%)": 100 * total["faulty"] / total["samples"],
                    "samples with NaN (%)": 100 * total["with NaN"] / total["samples"],
                    "NaN pixels (%)": 100 * total["NaN pixels"] / total["pixels"],
                    "black where bright (%)": 100 * total["black"] / max(1, total["bright"]),
                    "largest |value|": max(each["largest"] for each in per_picture),
                }
            )
    return rows


def _samples(
    flow: ImagingFlow,
    y: Tensor,
    temperature: float,
    cell: Cell,
    autocast: torch.dtype | None,
    everything: torch.dtype | None,
) -> Tensor:
    """Samples of one observation, float32, from the same latents in each precision."""
    generator = torch.Generator().manual_seed(cell.seed)
    size = flow.task.picture_size(y)
    latents = flow.draw_latents(cell.settings["number"], size, generator)
    if everything is not None:
        y, latents = y.to(everything), [latent.to(everything) for latent in latents]
    context: Any = nullcontext() if autocast is None else torch.autocast("cpu", autocast)
    with context:
        return flow.decode(latents, flow.prepare(y), temperature).float()


def _count(samples: Tensor, truth: Tensor, settings: Any) -> dict[str, float]:
    bright = truth.mean(dim=1) >= settings["bright"]
    black = displayed(samples).amax(dim=1) <= settings["black"]
    broken = ~samples.isfinite().all(dim=1)
    largest = samples.abs().nan_to_num(nan=torch.inf, posinf=torch.inf).max()
    return {
        "samples": len(samples),
        "pixels": broken.numel(),
        "faulty": int(faulty_pixels(samples).flatten(1).any(dim=1).sum()),
        "with NaN": int(broken.flatten(1).any(dim=1).sum()),
        "NaN pixels": int(broken.sum()),
        "bright": int(bright.sum()) * len(samples),
        "black": int((black & bright).sum()),
        "largest": float(largest),
    }


def figure(rows: Sequence[Row], study: Study) -> Figure:
    """At the highest temperature, by precision: samples with NaN, and black where it is bright."""
    hottest = max(row["temperature"] for row in rows)
    chosen = [row for row in rows if row["temperature"] == hottest]
    models, precisions = in_order(chosen, "model"), in_order(chosen, "precision")
    panels = ("faulty samples (%)", "samples with NaN (%)", "black where bright (%)")
    fig = new_figure(figsize=(12, 4.2))
    for axis, column in zip(fig.subplots(1, len(panels)), panels, strict=True):
        for index, model in enumerate(models):
            heights = [
                mean([number(row[column]) for row in chosen if _is(row, model, precision)])
                for precision in precisions
            ]
            at = [k + 0.8 * (index + 0.5) / len(models) - 0.4 for k in range(len(precisions))]
            axis.bar(at, heights, 0.8 / len(models), color=COLOURS[index], label=model)
        axis.set_xticks(range(len(precisions)), precisions, rotation=40, fontsize=7, ha="right")
        tidy(axis, column)
    legend(fig, fig.axes[0])
    fig.suptitle(f"{study.title}, T = {hottest:g}, means over seeds", fontsize=10)
    return fig


def _is(row: Row, model: str, precision: str) -> bool:
    return bool(row["model"] == model and row["precision"] == precision)
