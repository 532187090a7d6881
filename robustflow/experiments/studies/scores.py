"""Which score predicts where explosions begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robustflow.diagnostics import InverseMonitor, tap
from robustflow.diagnostics.figures import new_figure
from robustflow.diagnostics.report import scoring
from robustflow.diagnostics.report.evidence import (
    Evidence,
    FeatureFunction,
    choose_temperature,
    default_sampler,
    sample_and_watch,
)
from robustflow.diagnostics.report.report import judge_scores
from robustflow.experiments.data.builtin import Split
from robustflow.experiments.imaging.robustness import observations
from robustflow.experiments.studies.figures import COLOURS, in_order, mean, tidy, values
from robustflow.experiments.studies.study import Cell, Row, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GROUPS: dict[Split, str] = {"train": "training", "held_out": "held out", "ood": "other kinds"}


def measure(cell: Cell) -> list[Row]:
    """A row for each score and kind of failure."""
    settings, flow = cell.settings, cell.flow
    sampler = default_sampler(flow)
    evidence = [
        Evidence(title, group, split == "train", y, tuple(y.shape[2:]))
        for split, group in _GROUPS.items()
        for title, y in observations(flow, split, None, settings["size"]).items()
    ]
    temperatures: list[float] = settings["temperatures"]
    how: dict[str, Any] = {"number": settings["number"], "seed": cell.seed}
    for each in evidence:
        for temperature in temperatures:
            each.sampled[temperature], _ = sample_and_watch(
                sampler,
                each.context,
                temperature=temperature,
                monitor=InverseMonitor(flow),
                **how,
            )
    chosen = choose_temperature(evidence, temperatures)
    for name, features in _levels(flow.encoder).items():
        scoring.score_contexts(evidence, name, features)
    scoring.score_contexts(evidence, "observation", lambda y: y)
    layer = scoring.hidden_layer_of(flow)
    assert layer is not None  # imaging flows have couplings
    scoring.score_hidden(flow, sampler, evidence, layer=layer, temperature=chosen, **how)
    scoring.score_gains(flow, sampler, evidence)
    onsets = sum(len(each.sampled[chosen].onsets) for each in evidence)
    faulty = sum(each.sampled[chosen].faulty or 0 for each in evidence)
    return [
        {
            "temperature": chosen,
            "onsets": onsets,
            "faulty samples": faulty,
            "failure": result.failure,
            "score": result.score,
            "AUROC": result.auroc.value,
            "low": result.auroc.low,
            "high": result.auroc.high,
            "AUROC within pictures": result.within.value,
            "rank correlation of pictures": result.between.value,
        }
        for result in judge_scores(evidence, chosen)
    ]


def _levels(encoder: nn.Module) -> dict[str, FeatureFunction]:
    """Features at several depths of an encoder, the last its output."""
    names = [name for name, _ in encoder.named_children() if name == "first"]
    blocks = dict(encoder.named_children()).get("blocks")
    if blocks is not None:
        names += [f"blocks.{index}" for index in range(len(list(blocks.children())) - 1)]
    functions: dict[str, FeatureFunction] = {
        f"encoder, {name}": _tapped(encoder, name) for name in names
    }

    def output(y: Tensor) -> Tensor:
        encoded: Tensor = encoder(y)
        return encoded

    return {**functions, "encoder, output": output}


def _tapped(encoder: nn.Module, name: str) -> FeatureFunction:
    @torch.no_grad()
    def features(y: Tensor) -> Any:
        with tap(encoder, name) as tapped:
            encoder(y)
        return tapped.take()

    return features


def figure(rows: Sequence[Row], study: Study) -> Figure:
    """AUROC on onsets: a bar a seed, with its interval over pictures."""
    chosen = [row for row in rows if row["failure"] == "onsets"]
    models = in_order(chosen, "model")
    names = sorted(
        in_order(chosen, "score"), key=lambda name: mean(values(chosen, "AUROC", score=name)) or 0.0
    )
    fig = new_figure(figsize=(5 + 3.5 * len(models), 0.28 * len(names) + 1.4))
    for axis, model in zip(fig.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        for place, seed in enumerate(study.seeds):
            for line, name in enumerate(names):
                matching = [
                    row
                    for row in chosen
                    if (row["model"], row["seed"], row["score"]) == (model, seed, name)
                ]
                auroc, low, high = (values(matching, part) for part in ("AUROC", "low", "high"))
                if auroc and low and high:
                    at = line + 0.22 * (place - (len(study.seeds) - 1) / 2)
                    axis.errorbar(
                        auroc[0],
                        at,
                        xerr=[[auroc[0] - low[0]], [high[0] - auroc[0]]],
                        fmt="o",
                        markersize=3,
                        linewidth=1,
                        color=COLOURS[place % len(COLOURS)],
                        label=f"seed {seed}" if line == 0 else None,
                    )
        axis.axvline(0.5, color="0.7", linewidth=0.8)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlim(0, 1)
        tidy(axis, model, "AUROC on pixels where an onset lies, 95 % over pictures")
        if axis.get_legend_handles_labels()[0]:  # none, where nothing exploded
            axis.legend(fontsize=7, frameon=False, loc="lower left")
    fig.suptitle(study.title, fontsize=10)
    return fig
