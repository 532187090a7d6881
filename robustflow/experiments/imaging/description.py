"""What `robustflow info` says of a checkpoint."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from torch import nn

from robustflow.experiments.imaging.config import to_toml
from robustflow.experiments.imaging.loading import load_flow


def describe(path: Path) -> str:
    """The file, its step and size, the weights and layers of its parts, and its configuration.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
    """
    loaded = load_flow(path)
    flow = loaded.flow
    lines = [
        f"{loaded.file}, {loaded.file.stat().st_size / 2**20:.1f} MiB",
        f"after {loaded.step} updates",
        f"encoder: {type(flow.encoder).__name__}, {_weights(flow.encoder):,} weights",
        f"flow: {_weights(flow.flow):,} weights, pictures in multiples of {flow.size_multiple}",
    ]
    for number, level in enumerate(flow.flow.levels, start=1):
        kinds = Counter(type(layer).__name__ for layer in level.layers)  # type: ignore[union-attr]
        layers = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        lines.append(f"  level {number}: {layers}")
    return "\n".join([*lines, "", to_toml(loaded.config, explain=False).rstrip()])


def _weights(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
