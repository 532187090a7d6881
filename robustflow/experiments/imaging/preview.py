"""Previews during training: samples, and what the monitor recorded while they were drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from robustflow.diagnostics.monitor import InverseMonitor
from robustflow.experiments.imaging.model import ImagingFlow

TEMPERATURES = (0.0, 0.8, 1.0)  # of a grid's columns, after the observation and the truth


@dataclass(frozen=True)
class Preview:
    """Samples, and what :class:`~robustflow.diagnostics.InverseMonitor` saw of them.

    Attributes:
        grid: (3, H, W) in [0, 1]: a row for each picture: observation, truth, a sample at each
            temperature. Values that are not finite are black.
        magnitude: largest absolute value that left a layer; infinity where one was not finite.
        derivative: largest inverse derivative.
        onsets: places where the inverse began to explode.
    """

    grid: Tensor
    magnitude: float
    derivative: float
    onsets: int


def preview(flow: ImagingFlow, y: Tensor, x: Tensor, seed: int = 0) -> Preview:
    """Sample a flow for some observations.

    Args:
        flow: in evaluation mode.
        y: observations (N, C', H', W'), on the flow's device.
        x: the truth (N, C, H, W).
        seed: of the latents.
    """
    size = flow.task.picture_size(y)
    columns = [functional.interpolate(rgb(y.cpu()), size, mode="nearest"), rgb(x.cpu())]
    with InverseMonitor(flow.flow) as monitor:
        for temperature in TEMPERATURES:
            generator = torch.Generator().manual_seed(seed)
            samples = flow.sample(y, temperature=temperature, generator=generator)
            columns.append(rgb(samples[:, 0].cpu()))
    rows = torch.cat(columns, dim=-1)
    layers = monitor.report().layers
    return Preview(
        torch.cat(list(rows), dim=-2).nan_to_num(nan=0.0).clamp(0, 1),
        max(layer.output_magnitude for layer in layers),
        max(layer.largest_derivative or 0.0 for layer in layers),
        len(monitor.onsets),
    )


def rgb(pictures: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 3, H, W): of two channels (a complex picture) the magnitude."""
    if pictures.shape[1] == 2:
        pictures = pictures.norm(dim=1, keepdim=True)
    colours = pictures.shape[1] >= 3
    return pictures[:, :3] if colours else pictures[:, :1].expand(-1, 3, -1, -1)
