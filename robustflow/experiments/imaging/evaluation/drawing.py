"""Samples of one picture in every column of the table: raw, projected, fixed, guarded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from robustflow.diagnostics.guards import cool_latents, project_onto_observation
from robustflow.diagnostics.monitor import InverseMonitor
from robustflow.experiments.data.crops import generator_of
from robustflow.experiments.imaging.evaluation.fixed import decode_fixed
from robustflow.experiments.imaging.evaluation.memory import peak_bytes
from robustflow.experiments.imaging.sampling import latents_of
from robustflow.experiments.imaging.sampling_flow import Conditioned, SamplingFlow

Column = Literal["raw", "projected", "fixed", "guarded"]
COLUMNS: tuple[Column, ...] = get_args(Column)
COOLING = 0.5  # factor on the latents whose positions an onset reached


@dataclass(frozen=True)
class Drawn:
    """Samples of one picture.

    Attributes:
        samples: (K, C, H, W) on the CPU, not clamped.
        seconds: for one of them.
        bytes: peak memory beyond what was in use before; None if not known.
    """

    samples: Tensor
    seconds: float
    bytes: int | None


def missing_column(column: Column, flow: SamplingFlow, y: Tensor) -> str | None:
    """Why a column is not available, or None."""
    if column == "projected":
        if not flow.task.linear:
            return f"the task {flow.task.name!r} is not linear"
        if flow.task.pseudo_inverse(y) is None:
            return f"the task {flow.task.name!r} has no pseudo-inverse"
    if column == "fixed" and flow.task.channels not in (1, 3):
        return f"pictures of {flow.task.channels} channels to find a latent with are not at hand"
    return None


@torch.no_grad()
def draw(
    flow: SamplingFlow,
    y: Tensor,
    columns: Sequence[Column],
    *,
    number: int,
    temperature: float,
    seed: int,
    fixed: Sequence[Tensor] = (),
) -> dict[Column, Drawn]:
    """Samples of an observation from the same latents in each column.

    Args:
        flow: in evaluation mode.
        y: (1, C', H', W').
        columns: ``raw`` as the flow gives them; ``projected`` onto the observation; ``fixed``: the
            one picture of the latent that ``fixed`` holds, whatever number and temperature;
            ``guarded``: watched, and where an explosion reached the latents' temperature is
            halved and all is decoded again (:func:`robustflow.diagnostics.cool_latents`).
        number: of samples.
        temperature: of the latents.
        seed: each sample has a generator of its own from this.
        fixed: of :func:`find_latent`, for that column.
    """
    device = next(flow.parameters()).device
    y = y.to(device)
    drawn: dict[Column, Drawn] = {}
    raw, measured = _timed(
        device, lambda: _decoded(flow, y, number, temperature, seed, guarded=False)
    )
    if "raw" in columns:
        drawn["raw"] = Drawn(raw, measured[0] / number, measured[1])
    if "projected" in columns:
        projected, own = _timed(device, lambda: _projected(flow, y, raw))
        drawn["projected"] = Drawn(projected, (measured[0] + own[0]) / number, measured[1])
    if "fixed" in columns:
        fixed_samples, measured = _timed(
            device, lambda: decode_fixed(flow, flow.prepare(y), fixed).cpu()
        )
        drawn["fixed"] = Drawn(fixed_samples, *measured)
    if "guarded" in columns:
        guarded, measured = _timed(
            device, lambda: _decoded(flow, y, number, temperature, seed, guarded=True)
        )
        drawn["guarded"] = Drawn(guarded, measured[0] / number, measured[1])
    return {column: drawn[column] for column in columns}


def _timed(
    device: torch.device, function: Callable[[], Tensor]
) -> tuple[Tensor, tuple[float, int | None]]:
    """A call's result, and its seconds and peak bytes."""
    started = time.perf_counter()
    result, used = peak_bytes(function, device)
    return result, (time.perf_counter() - started, used)


def _projected(flow: SamplingFlow, y: Tensor, raw: Tensor) -> Tensor:
    def back(residual: Tensor) -> Tensor:
        correction = flow.task.pseudo_inverse(residual)
        assert correction is not None  # see missing_column
        return correction

    return project_onto_observation(raw.to(y.device), y, flow.task.forward, back).cpu()


def _decoded(
    flow: SamplingFlow, y: Tensor, number: int, temperature: float, seed: int, *, guarded: bool
) -> Tensor:
    prepared = flow.prepare(y)
    generators = [generator_of(seed, index) for index in range(number)]
    block = flow.block_size(prepared.size)
    parts = []
    for start in range(0, number, block):
        latents = latents_of(flow, prepared.size, generators[start : start + block])
        decode = _guarded if guarded else SamplingFlow.decode
        parts.append(decode(flow, latents, prepared, temperature).cpu())
    return torch.cat(parts)


def _guarded(
    flow: SamplingFlow, latents: Sequence[Tensor], prepared: Conditioned, temperature: float
) -> Tensor:
    with InverseMonitor(flow) as monitor:
        samples = flow.decode(latents, prepared, temperature)
    if not monitor.onsets:
        return samples
    cooled = cool_latents(latents, monitor.contaminated.any(dim=1), COOLING)
    return flow.decode(cooled, prepared, temperature)
