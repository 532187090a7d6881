"""The text of `robustflow info` about a checkpoint."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from torch import nn

from robustflow.experiments.imaging.config import to_toml
from robustflow.experiments.imaging.loading import load_flow
from robustflow.experiments.imaging.published import PublishedFlow


def describe(path: Path) -> str:
    """The file, its step and size, the weights and layers of its parts, and its configuration.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
    """
    loaded = load_flow(path)
    flow = loaded.flow
    head = f"{loaded.file}, {loaded.file.stat().st_size / 2**20:.1f} MiB"
    if isinstance(flow, PublishedFlow) or loaded.config is None:
        assert isinstance(flow, PublishedFlow)
        return "\n".join([head, *_of_published(flow)])
    lines = [
        head,
        f"after {loaded.step} updates",
        f"encoder: {type(flow.encoder).__name__}, {_weights(flow.encoder):,} weights",
        f"flow: {_weights(flow.flow):,} weights, pictures in multiples of {flow.size_multiple}",
    ]
    for number, level in enumerate(flow.flow.levels, start=1):
        kinds = Counter(type(layer).__name__ for layer in level.layers)  # type: ignore[union-attr]
        layers = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        lines.append(f"  level {number}: {layers}")
    return "\n".join([*lines, "", to_toml(loaded.config, explain=False).rstrip()])


def _of_published(flow: PublishedFlow) -> list[str]:
    structure = flow.structure
    steps = ", ".join(map(str, structure.steps))
    kind = f"{structure.scale}x" if structure.scale > 1 else "low light"
    lines = [
        f"a published network, {kind}, {structure.coupling}; flow steps by level: {steps}",
        f"encoder: RRDB, {_weights(flow.RRDB):,} weights",
        f"flow: {_weights(flow.flowUpsamplerNet):,} weights, pictures in multiples of "
        f"{flow.size_multiple}",
    ]
    if structure.std:
        lines.append("it is told the noise level, and models the residual over bicubic upsampling")
    if structure.unknown:
        lines.append(f"not recognised: {', '.join(structure.unknown)}")
    return lines


def _weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
