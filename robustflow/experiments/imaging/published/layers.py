"""The layers of the published flows, under their published names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow.compat import srflow
from robustflow.compat.srflow import ActNorm, ScaledConv2d, SeparatedAndCond

_COUPLINGS: dict[str, Callable[..., SeparatedAndCond]] = {
    "affine": srflow.CondAffineSeparatedAndCond,
    "affinereparam": srflow.CondAffineReparamSeparatedAndCond,
    "bspline": srflow.CondBsplineSeparatedAndCond,
    "rqspline": srflow.CondRQsplineSeparatedAndCond,
}
_LAYER = re.compile(r"flowUpsamplerNet\.layers\.(\d+)\.(.+)")
_MOST_LOG_SCALE = 40.0  # of a split, as everywhere in robustflow: beyond it nothing is left


class NotPublished(ValueError):
    """A checkpoint that is not one of these networks; the text says what was looked for."""


class Invconv(nn.Module):
    """The 1x1 convolution: learned, (C, C), or frozen and orthogonal, (C, C, 1, 1)."""

    def __init__(self, channels: int, *, frozen: bool) -> None:
        super().__init__()
        start = torch.eye(channels)
        self.frozen = frozen
        if frozen:
            start = start[..., None, None]
            self.weight_transpose = nn.Parameter(start.clone(), requires_grad=False)
        self.weight = nn.Parameter(start, requires_grad=not frozen)

    def forward(self, z: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        matrix = self.weight.flatten(1)
        logabsdet = torch.linalg.slogdet(matrix).logabsdet * math.prod(z.shape[2:])
        if inverse:
            matrix = self.weight_transpose.flatten(1) if self.frozen else torch.linalg.inv(matrix)
            logabsdet = -logabsdet
        return functional.conv2d(z, matrix[..., None, None]), logabsdet.expand(z.shape[0])


class Step(nn.Module):
    """Actnorm, 1x1 convolution, and the coupling where there is one.

    Args:
        channels: of z.
        coupling: its published name, a key of ``_COUPLINGS``; None for no coupling.
        options: of :mod:`robustflow.compat.srflow`'s coupling.
        frozen: whether the 1x1 convolution is a fixed rotation.
        std: whether the coupling has a net for the noise level.

    Attributes:
        told: whether that net is used.
    """

    def __init__(
        self,
        channels: int,
        coupling: str | None,
        options: Mapping[str, object],
        *,
        frozen: bool,
        std: bool,
    ) -> None:
        super().__init__()
        self.told = std
        self.actnorm = ActNorm(channels)
        self.invconv = Invconv(channels, frozen=frozen)
        self.coupling = coupling
        if coupling is not None:
            self.add_module(coupling, _COUPLINGS[coupling](channels, options, std_mode=std))

    def forward(
        self, z: Tensor, features: Tensor, std: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        if not inverse:
            self._initialise(z)
            z, logabsdet = self._normalise(z, inverse=False)
            z, change = self.invconv(z, inverse=False)
            return self._couple(z, logabsdet + change, features, std, inverse=False)
        z, logabsdet = self._couple(z, z.new_zeros(z.shape[0]), features, std, inverse=True)
        z, change = self.invconv(z, inverse=True)
        z, norm = self._normalise(z, inverse=True)
        return z, logabsdet + change + norm

    def _initialise(self, z: Tensor) -> None:
        if self.training and not self.actnorm.inited:
            self.actnorm.initialise(z)

    def _normalise(self, z: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        logs, bias = self.actnorm.logs, self.actnorm.bias
        logabsdet = (logs.sum() * math.prod(z.shape[2:])).expand(z.shape[0])
        if inverse:
            return z * torch.exp(-logs) - bias, -logabsdet
        return (z + bias) * torch.exp(logs), logabsdet

    def _couple(
        self,
        z: Tensor,
        logabsdet: Tensor,
        features: Tensor,
        std: Tensor | None,
        *,
        inverse: bool,
    ) -> tuple[Tensor, Tensor]:
        if self.coupling is None:
            return z, logabsdet
        layer = self.get_submodule(self.coupling)
        out: tuple[Tensor, Tensor] = layer(
            input=z,
            logdet=logabsdet,
            reverse=inverse,
            ft=features,
            std=std if self.told else None,
        )
        return out


class Split(nn.Module):
    """Half of the channels leave the flow, standardised given the other half."""

    def __init__(self, channels: int, condition_channels: int) -> None:
        super().__init__()
        self.kept = channels - round(channels / 2)
        self.condition_channels = condition_channels
        self.conv = ScaledConv2d(self.kept + condition_channels, 2 * (channels - self.kept))

    def forward(self, z: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z -> what stays, the latent, logabsdet."""
        kept, leaving = z[:, : self.kept], z[:, self.kept :]
        mean, logs = self._statistics(kept, features)
        return kept, (leaving - mean) * torch.exp(-logs), -logs.flatten(1).sum(dim=1)

    def inverse(self, kept: Tensor, latent: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """What stayed and the latent -> z, logabsdet."""
        mean, logs = self._statistics(kept, features)
        joined = torch.cat([kept, mean + torch.exp(logs) * latent], dim=1)
        return joined, logs.flatten(1).sum(dim=1)

    def _statistics(self, kept: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        read = kept
        if self.condition_channels:
            read = torch.cat([kept, features.expand(kept.shape[0], *features.shape[1:])], dim=1)
        output = self.conv(read)
        return output[:, 0::2], output[:, 1::2].clamp(-_MOST_LOG_SCALE, _MOST_LOG_SCALE)


class Layers(nn.Module):
    """The flow: squeezes (``nn.Identity``, as they have no weights), steps and splits.

    Args:
        layers: in order, a squeeze first.
        told: of each level, how many of its last couplings are told the noise, where they have a
            net for it; all of them in a level that is left out.
        unused: the convolution ``f`` that published files hold and no one calls.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        told: Sequence[int] = (),
        unused: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        for coupled, number in zip(self._coupled(), told, strict=False):
            for step in coupled[: max(0, len(coupled) - number)]:
                step.told = False
        if unused is not None:
            self.f = unused

    def _coupled(self) -> list[list[Step]]:
        """Of each level, the steps that have a coupling."""
        levels: list[list[Step]] = []
        for layer in self.layers:
            if isinstance(layer, nn.Identity):
                levels.append([])
            elif isinstance(layer, Step) and layer.coupling is not None:
                levels[-1].append(layer)
        return levels

    @property
    def steps(self) -> tuple[int, ...]:
        """Of each level, how many steps have a coupling."""
        return tuple(map(len, self._coupled()))

    @property
    def levels(self) -> int:
        return sum(isinstance(layer, nn.Identity) for layer in self.layers)

    def encode(
        self, z: Tensor, features: Sequence[Tensor], std: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        """x (N, 3, H, W) -> latents, the last level's last, and logabsdet (N,).

        Args:
            z: x, or its residual.
            features: of each level.
            std: the noise map, for the steps that are told; None without one.
        """
        total = z.new_zeros(z.shape[0])
        level = 0
        latents = []
        for layer in self.layers:
            if isinstance(layer, Step):
                z, change = layer(z, features[level - 1], std, inverse=False)
                total = total + change
            elif isinstance(layer, Split):
                z, latent, change = layer(z, features[level - 1])
                latents.append(latent)
                total = total + change
            else:
                z = functional.pixel_unshuffle(z, 2)
                level += 1
        return [*latents, z], total

    def decode(
        self, latents: Sequence[Tensor], features: Sequence[Tensor], std: Tensor | None
    ) -> Tensor:
        """What :meth:`encode` returned -> x; features of batch size 1 serve all latents."""
        *left, z = latents
        level = self.levels
        for layer in reversed(self.layers):
            if isinstance(layer, Step):
                z, _ = layer(z, features[level - 1], std, inverse=True)
            elif isinstance(layer, Split):
                z, _ = layer.inverse(z, left.pop(), features[level - 1])
            else:
                z = functional.pixel_shuffle(z, 2)
                level -= 1
        return z

    def latent_shapes(self, size: Sequence[int]) -> list[tuple[int, int, int]]:
        """(C, H, W) of each latent, for pictures of this height and width."""
        shapes = []
        channels, (height, width) = 3, size
        for layer in self.layers:
            if isinstance(layer, Split):
                shapes.append((channels - layer.kept, height, width))
                channels = layer.kept
            elif not isinstance(layer, Step):
                channels, height, width = channels * 4, height // 2, width // 2
        return [*shapes, (channels, height, width)]


def by_layer(weights: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """A checkpoint's weights by the number of their layer, and in it by name."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if match := _LAYER.fullmatch(name):
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    return layers


def layers_for(
    weights: Mapping[str, Tensor],
    numbered: Mapping[int, Mapping[str, Tensor]],
    told: Sequence[int] = (),
) -> Layers:
    """The flow of a checkpoint, with new weights; ``told`` as for :class:`Layers`.

    Raises:
        KeyError: a weight is missing.
        NotPublished: the first layer is no squeeze.
    """
    built = [_layer_for(numbered.get(number)) for number in range(max(numbered) + 1)]
    if not isinstance(built[0], nn.Identity):
        raise NotPublished("The flow's first layer has weights: it should be a squeeze.")
    unused = None
    if (weight := weights.get("flowUpsamplerNet.f.0.weight")) is not None:
        unused = nn.Sequential(nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1))
    return Layers(built, told, unused)


def _layer_for(parts: Mapping[str, Tensor] | None) -> nn.Module:
    if parts is None:
        return nn.Identity()  # a squeeze
    if "conv.weight" in parts:
        changed = parts["conv.weight"].shape[0] // 2
        channels = 2 * changed
        return Split(channels, parts["conv.weight"].shape[1] - (channels - changed))
    channels = parts["actnorm.bias"].shape[1]
    frozen = "invconv.weight_transpose" in parts
    kind = next((kind for kind in _COUPLINGS if any(n.startswith(f"{kind}.") for n in parts)), None)
    if kind is None:
        return Step(channels, None, {}, frozen=frozen, std=False)
    read = parts[f"{kind}.fFeatures.0.weight"]
    options = {
        "network_G": {
            "flow": {
                "conditionInFeaDim": read.shape[1],
                "CondAffineSeparatedAndCond": {"hidden_channels": read.shape[0]},
            }
        }
    }
    std = any("_std." in name for name in parts)
    return Step(channels, kind, options, frozen=frozen, std=std)
