"""Adaptation to an unlabelled observation of another kind: correct the latents, or fine-tune.

**Latents corrected** (Siahkoohi et al., 2023, doi:10.1190/geo2022-0472.1): the weights stay, and
the latents of one observation y become z = mu + s e, e standard normal. mu and s, a number for
each element, minimise the divergence of the samples x = f^-1(z; y) from the physics' posterior:

    E_e [ |A(x) - y|^2 / (2 sigma^2) + |z|^2 / 2 ] - sum log s

**Plain, as large**, the control: plain samples whose latents are as large as the corrected ones.

**Fine-tuned on y alone**: y is a picture, too. A copy of the flow learns p(y | A(y)) by maximum
likelihood with a few updates of all weights, y mirrored; nothing but y is needed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustflow.diagnostics import InverseMonitor
from robustflow.diagnostics.artifacts import faulty_pixels
from robustflow.diagnostics.figures import new_figure
from robustflow.diagnostics.posterior import crps
from robustflow.diagnostics.posterior.quality import psnr
from robustflow.experiments.imaging.evaluation.subjects import Subject, subjects_of
from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.experiments.imaging.sampling_flow import Conditioned
from robustflow.experiments.studies.figures import COLOURS, in_order, legend, mean, tidy, values
from robustflow.experiments.studies.study import Cell, Row, Study
from robustflow.experiments.tasks import to_8_bits
from robustflow.experiments.tasks.base import WHITE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Sampler = Callable[[], Tensor]


@dataclass(frozen=True)
class Adapted:
    """A flow that was adapted to one observation.

    Attributes:
        flow: to be watched.
        sample: draws ``number`` samples.
        size: root mean square of the latents.
    """

    flow: ImagingFlow
    sample: Sampler
    size: float


def measure(cell: Cell) -> list[Row]:
    """A row for each out-of-distribution picture and way."""
    settings, flow = cell.settings, cell.flow
    subjects, _ = subjects_of(("ood",), flow.task, [flow], size=settings["size"], with_truth=True)
    temperature: float = settings["temperature"]
    rows = []
    for subject in subjects:
        y = subject.observation
        torch.manual_seed(cell.seed)
        add = partial(_row, subject, cell)
        rows.append(add("plain", partial(_plain, flow, y, cell, temperature)))
        rows.append(add("latents corrected", partial(_corrected, flow, y, cell)))
        size: float = rows[-1]["size of latents"]
        rows.append(add("plain, as large", partial(_plain, flow, y, cell, size)))
        rows.append(add("fine-tuned on y", partial(_fine_tuned, flow, y, cell)))
    return rows


def _row(subject: Subject, cell: Cell, way: str, adapt: Callable[[], Adapted]) -> Row:
    started = time.perf_counter()
    adapted = adapt()
    seconds = time.perf_counter() - started
    with torch.no_grad(), InverseMonitor(adapted.flow) as monitor:
        samples = adapted.sample()
    return {
        "picture": subject.title,
        "way": way,
        **_figures(samples, subject, cell.flow),
        "onsets of a sample": len(monitor.onsets) / len(samples),
        "size of latents": adapted.size,
        "adapting (s)": round(seconds, 2),
    }


def _plain(flow: ImagingFlow, y: Tensor, cell: Cell, temperature: float) -> Adapted:
    def sample() -> Tensor:
        generator = torch.Generator().manual_seed(cell.seed)
        number = cell.settings["number"]
        return flow.sample(y, number, temperature=temperature, generator=generator)[0]

    return Adapted(flow, sample, temperature)


def _corrected(flow: ImagingFlow, y: Tensor, cell: Cell) -> Adapted:
    """The flow itself, sampled from corrected latents."""
    settings = cell.settings
    with torch.no_grad():
        prepared = flow.prepare(y)
    shapes = flow.latent_shapes(prepared.size)
    means = [torch.zeros(1, *shape, requires_grad=True) for shape in shapes]
    # They start at the temperature of sampling: from 1 on, the first samples may explode.
    start = torch.tensor(float(settings["temperature"])).log()
    logs = [start.repeat(1, *shape).requires_grad_() for shape in shapes]
    parts = [*means, *logs]
    optimiser = torch.optim.Adam(parts, lr=settings["latent rate"])
    number = settings["draws"]
    for _ in range(settings["latent updates"]):
        drawn = [torch.randn(number, *shape) for shape in shapes]
        latents = _moved(means, logs, drawn)
        x = _decode(flow, latents, prepared)
        misfit = (flow.task.forward(x) - y).flatten(1).square().sum(dim=1)
        each = misfit / (2 * settings["sigma"] ** 2) + _half_squares(latents)
        kept = each.isfinite()  # a sample that exploded has no gradient to follow
        if not bool(kept.any()):
            continue
        loss = each[kept].mean() - torch.stack([log.sum() for log in logs]).sum()
        optimiser.zero_grad()
        loss.backward()
        if bool(torch.nn.utils.clip_grad_norm_(parts, settings["clip"]).isfinite()):
            optimiser.step()

    def sample() -> Tensor:
        generator = torch.Generator().manual_seed(cell.seed)
        drawn = flow.draw_latents(settings["number"], prepared.size, generator)
        return _decode(flow, _moved(means, logs, drawn), prepared)

    with torch.no_grad():
        squares = [
            (mu.square() + (2 * log).exp()).flatten() for mu, log in zip(means, logs, strict=True)
        ]
        return Adapted(flow, sample, float(torch.cat(squares).mean().sqrt()))


def _moved(
    means: Sequence[Tensor], logs: Sequence[Tensor], drawn: Sequence[Tensor]
) -> list[Tensor]:
    return [mu + log.exp() * z for mu, log, z in zip(means, logs, drawn, strict=True)]


def _half_squares(latents: Sequence[Tensor]) -> Tensor:
    """|z|^2 / 2 of each sample, (N,)."""
    return torch.stack([z.flatten(1).square().sum(dim=1) for z in latents]).sum(dim=0) / 2


def _fine_tuned(flow: ImagingFlow, y: Tensor, cell: Cell) -> Adapted:
    """A copy of the flow, trained on the observation as a picture."""
    settings = cell.settings
    tuned = copy.deepcopy(flow).train()
    step = flow.size_multiple
    height, width = (side - side % step for side in y.shape[-2:])
    picture = y[..., :height, :width]
    turned = torch.cat([picture, picture.flip(-1), picture.flip(-2), picture.flip(-2, -1)])
    pairs = flow.task.observe(turned, torch.Generator().manual_seed(cell.seed))
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(weights, lr=settings["weight rate"])
    for _ in range(settings["weight updates"]):
        optimiser.zero_grad()
        noisy = turned + (torch.rand_like(turned) - 0.5) / WHITE
        loss = tuned.bits_per_dimension(tuned.log_prob(noisy, pairs), noisy).mean()
        loss.backward()
        if bool(torch.nn.utils.clip_grad_norm_(weights, settings["clip"]).isfinite()):
            optimiser.step()
    return _plain(tuned.eval(), y, cell, settings["temperature"])


def _decode(flow: ImagingFlow, latents: Sequence[Tensor], prepared: Conditioned) -> Tensor:
    """As :meth:`ImagingFlow.decode`, with gradients."""
    shifted_latents = list(latents)
    if prepared.mean is not None:
        shifted_latents[-1] = shifted_latents[-1] + prepared.mean
    residual = flow.invert(shifted_latents, prepared.condition)
    return residual if prepared.guess is None else residual + prepared.guess


@torch.no_grad()
def _figures(samples: Tensor, subject: Subject, flow: ImagingFlow) -> Row:
    assert subject.truth is not None
    saved = to_8_bits(samples.nan_to_num(nan=0.0))
    seen = flow.task.forward(saved)
    largest = samples.abs().nan_to_num(nan=torch.inf, posinf=torch.inf).max()
    return {
        "faulty (%)": 100 * float(faulty_pixels(samples).flatten(1).any(dim=1).float().mean()),
        "largest |value|": float(largest),
        "PSNR (dB)": float(psnr(saved, subject.truth.expand_as(saved)).mean()),
        "LR-PSNR (dB)": float(psnr(seen, subject.observation.expand_as(seen)).mean()),
        "CRPS": float(crps(saved, subject.truth[0]).mean()),
    }


def figure(rows: Sequence[Row], study: Study) -> Figure:
    """By way and model: means over pictures and seeds."""
    models, ways = in_order(rows, "model"), in_order(rows, "way")
    panels = (
        ("faulty (%)", "faulty samples, %"),
        ("onsets of a sample", "onsets of a sample"),
        ("PSNR (dB)", "PSNR, dB"),
        ("LR-PSNR (dB)", "LR-PSNR, dB"),
        ("CRPS", "CRPS"),
    )
    fig = new_figure(figsize=(13, 3.8))
    for axis, (column, title) in zip(fig.subplots(1, len(panels)), panels, strict=True):
        for index, model in enumerate(models):
            heights = [mean(values(rows, column, model=model, way=way)) for way in ways]
            at = [k + 0.8 * (index + 0.5) / len(models) - 0.4 for k in range(len(ways))]
            axis.bar(at, heights, 0.8 / len(models), color=COLOURS[index], label=model)
        axis.set_xticks(range(len(ways)), ways, rotation=40, fontsize=7, ha="right")
        tidy(axis, title)
    legend(fig, fig.axes[0])
    fig.suptitle(f"{study.title}, T = {study.settings['temperature']:g}", fontsize=10)
    return fig
