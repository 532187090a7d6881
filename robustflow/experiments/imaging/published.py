"""The published super-resolution networks, built from a checkpoint's names and shapes alone.

SRFlow (Lugmayr et al., 2020, arXiv:2006.14200) and the networks of Hong, Park and Chun (ICCV 2023,
arXiv:2212.04319) keep their weights under the same names::

    RRDB.conv_first, RRDB.RRDB_trunk.<block>.RDB<1-3>.conv<1-5>, RRDB.trunk_conv, RRDB.upconv<1-3>
    flowUpsamplerNet.layers.<n>.actnorm.{bias,logs}
    flowUpsamplerNet.layers.<n>.invconv.{weight,weight_transpose}
    flowUpsamplerNet.layers.<n>.{affine,affinereparam,rqspline}.<net>....
    flowUpsamplerNet.layers.<n>.conv.{weight,bias,logs}      a split
    flowUpsamplerNet.f.0.{weight,bias}                        of no use to the flow

A number that is missing among the layers is a squeeze, which has no weights. The couplings are
those of :mod:`robustflow.compat.srflow`, so that the transforms run on the kernels.

What the weights do not say is taken as in the published configurations: the tapped blocks, and
that the first level is not told the noise, though its couplings have a net for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow.compat import srflow
from robustflow.compat.srflow._conditioner import ActNorm, ScaledConv2d
from robustflow.compat.srflow._couplings import _SeparatedAndCond
from robustflow.experiments.encoders.rrdb import RESIDUAL, DenseBlock
from robustflow.experiments.tasks import SuperResolution

_COUPLINGS: dict[str, Callable[..., _SeparatedAndCond]] = {
    "affine": srflow.CondAffineSeparatedAndCond,
    "affinereparam": srflow.CondAffineReparamSeparatedAndCond,
    "rqspline": srflow.CondRQsplineSeparatedAndCond,
}
_LAYER = re.compile(r"flowUpsamplerNet\.layers\.(\d+)\.(.+)")
_TAPS = {23: (1, 8, 15, 22), 8: (1, 3, 5, 7)}  # by the number of blocks: of the published files
_SLOPE = 0.2
_MOST_LOG_SCALE = 40.0  # of a split, as everywhere in robustflow: beyond it nothing is left


class NotPublished(ValueError):
    """A checkpoint that is not one of these networks; the text says what was looked for."""


class _OldResidualBlock(nn.Module):
    """Three dense blocks under the older names."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for number in (1, 2, 3):
            self.add_module(f"RDB{number}", DenseBlock(features, growth))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for number in (1, 2, 3):
            out = self.get_submodule(f"RDB{number}")(out)
        return x + RESIDUAL * out


class PublishedEncoder(nn.Module):
    """RRDB with features at several sizes, each beside those of the tapped blocks.

    Args:
        features, growth, blocks: of the RRDB.
        scale: 4 or 8: how many convolutions upsample.
        tapped: whether the tapped blocks are part of the features.
    """

    def __init__(
        self, features: int, growth: int, blocks: int, scale: int, *, tapped: bool
    ) -> None:
        super().__init__()

        def convolution(out: int = features, read: int = features) -> nn.Conv2d:
            return nn.Conv2d(read, out, 3, padding=1)

        self.taps = _TAPS.get(blocks, tuple(range(blocks))[-4:]) if tapped else ()
        self.scale = scale
        self.channels = features * (len(self.taps) + 1)
        self.conv_first = convolution(read=3)
        self.RRDB_trunk = nn.Sequential(
            *(_OldResidualBlock(features, growth) for _ in range(blocks))
        )
        self.trunk_conv = convolution()
        self.upconvs = range(1, 1 + int(math.log2(scale)))
        for number in self.upconvs:
            self.add_module(f"upconv{number}", convolution())
        self.HRconv = convolution()
        self.conv_last = convolution(out=3)

    def forward(self, low: Tensor) -> dict[int, Tensor]:
        """Low-resolution pictures (N, 3, H, W) -> features by log2 of their size over H."""
        first = hidden = self.conv_first(low)
        tapped = []
        for index, block in enumerate(self.RRDB_trunk):
            hidden = block(hidden)
            if index in self.taps:
                tapped.append(hidden)
        last = first + self.trunk_conv(hidden)
        sizes = {0: last}
        growing = last
        for number in self.upconvs:
            larger = functional.interpolate(growing, scale_factor=2, mode="nearest")
            sizes[number] = self.get_submodule(f"upconv{number}")(larger)
            growing = functional.leaky_relu(sizes[number], _SLOPE)
        for number in (1, 2):
            sizes[-number] = functional.interpolate(
                last, scale_factor=0.5**number, mode="bilinear", align_corners=False
            )
        if not tapped:
            return sizes
        beside = torch.cat(tapped, dim=1)
        return {
            number: torch.cat([made, functional.interpolate(beside, made.shape[-2:])], dim=1)
            for number, made in sizes.items()
        }


class _Invconv(nn.Module):
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


class _Step(nn.Module):
    """Actnorm, 1x1 convolution, and the coupling where there is one."""

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
        self.actnorm = ActNorm(channels)
        self.invconv = _Invconv(channels, frozen=frozen)
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
            input=z, logdet=logabsdet, reverse=inverse, ft=features, std=std
        )
        return out


class _Split(nn.Module):
    """Half of the channels leave, standardised given the other half."""

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
        made = self.conv(read)
        return made[:, 0::2], made[:, 1::2].clamp(-_MOST_LOG_SCALE, _MOST_LOG_SCALE)


class _FlowUpsamplerNet(nn.Module):
    """The flow, and the convolution ``f`` that published files hold and no one calls."""

    def __init__(self, layers: Sequence[nn.Module], unused: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if unused is not None:
            self.f = unused


@dataclass(frozen=True)
class Structure:
    """What a checkpoint's names and shapes say.

    Attributes:
        scale: 4 or 8.
        coupling: "affine", "affinereparam" or "rqspline".
        steps: flow steps of each level, those without a coupling apart.
        levels: how many.
        std: whether couplings have a third net, for the noise level: then the flow models the
            residual over bicubic upsampling.
        unknown: names that are no part of these networks.
    """

    scale: int
    coupling: str
    steps: tuple[int, ...]
    levels: int
    std: bool
    unknown: tuple[str, ...]


class PublishedFlow(nn.Module):
    """A published super-resolution flow: p(x | y), with the names of its published weights.

    Args:
        weights: by name, as a checkpoint has them; with or without a leading ``module.``.

    Raises:
        NotPublished: not a network of this kind, or a shape that does not fit.

    Example:
        >>> PublishedFlow({})
        Traceback (most recent call last):
        ...
        robustflow.experiments.imaging.published.NotPublished: The file has no flow: no weight is \
named flowUpsamplerNet.layers.<n>.actnorm.bias.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
        layers = _by_layer(weights)
        if not any("actnorm.bias" in parts for parts in layers.values()):
            raise NotPublished(
                "The file has no flow: no weight is named flowUpsamplerNet.layers.<n>.actnorm.bias."
            )
        try:
            self.RRDB = _encoder_for(weights, layers)
            built = [_layer_for(layers.get(number)) for number in range(max(layers) + 1)]
        except KeyError as error:
            raise NotPublished(f"The weights of the network are not all there: {error}.") from None
        if not isinstance(built[0], nn.Identity):
            raise NotPublished("The flow's first layer has weights: it should be a squeeze.")
        self.flowUpsamplerNet = _FlowUpsamplerNet(built, _unused_for(weights))
        self.structure = _describe(weights, built, self.RRDB.scale, self)
        self.task = SuperResolution(self.structure.scale)
        self.size_multiple = 2**self.structure.levels
        known = {name: weights[name] for name in weights if name not in self.structure.unknown}
        try:
            self.load_state_dict(known)
        except RuntimeError as error:
            raise NotPublished(f"The file's weights do not fit together: {error}") from None

    def features(self, y: Tensor) -> list[Tensor]:
        """Of each level, (N, F, H, W); of low-resolution pictures (N, 3, H, W) in [0, 1]."""
        sizes = self.RRDB(y)
        top = int(math.log2(self.structure.scale))
        return [sizes[top - level] for level in range(1, self.structure.levels + 1)]

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(x | y) in nats, (N,), for pictures (N, 3, H, W) in [0, 1]."""
        z = x - self.task.first_guess(y) if self.structure.std else x
        total = z.new_zeros(z.shape[0])
        std = self._noise(x)
        level = 0
        features = self.features(y)
        latents = []
        for layer in self.flowUpsamplerNet.layers:
            if isinstance(layer, _Step):
                told = std if level > 1 else None
                z, change = layer(z, features[level - 1], told, inverse=False)
                total = total + change
            elif isinstance(layer, _Split):
                z, latent, change = layer(z, features[level - 1])
                latents.append(latent)
                total = total + change
            else:
                z = functional.pixel_unshuffle(z, 2)
                level += 1
        for latent in (*latents, z):
            normal = -0.5 * (latent.square() + math.log(2 * math.pi))
            total = total + normal.flatten(1).sum(dim=1)
        return total

    @torch.no_grad()
    def sample(
        self,
        y: Tensor,
        num_samples: int = 1,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples of each low-resolution picture, (N, num_samples, 3, H, W), not clamped.

        Args:
            y: (N, 3, H, W) in [0, 1].
            num_samples: for each.
            temperature: standard deviation of all latents, those of splits too.
            generator: of the latents, on the CPU.
        """
        return torch.stack(
            [
                self._sample_one(y[index : index + 1], num_samples, temperature, generator)
                for index in range(y.shape[0])
            ]
        )

    def _sample_one(
        self, y: Tensor, number: int, temperature: float, generator: torch.Generator | None
    ) -> Tensor:
        features = self.features(y)
        level = self.structure.levels
        shapes = self._latent_shapes(y)

        def draw() -> Tensor:
            return temperature * torch.randn(number, *shapes.pop(), generator=generator).to(y)

        z = draw()
        std = self._noise(y.new_zeros(number, 3, *self.task.picture_size(y)))
        for layer in reversed(self.flowUpsamplerNet.layers):
            if isinstance(layer, _Step):
                told = std if level > 1 else None
                z, _ = layer(z, features[level - 1], told, inverse=True)
            elif isinstance(layer, _Split):
                z, _ = layer.inverse(z, draw(), features[level - 1])
            else:
                z = functional.pixel_shuffle(z, 2)
                level -= 1
        return z + self.task.first_guess(y) if self.structure.std else z

    def _noise(self, x: Tensor) -> Tensor | None:
        """The noise map of a clean picture: zero, for networks that were told their noise."""
        return torch.zeros_like(x) if self.structure.std else None

    def _latent_shapes(self, y: Tensor) -> list[tuple[int, int, int]]:
        height, width = self.task.picture_size(y)
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(
                f"This flow needs pictures whose sides are multiples of {self.size_multiple}, and "
                f"an observation of {tuple(y.shape[-2:])} asks for {(height, width)}."
            )
        shapes = []
        channels = 3
        for layer in self.flowUpsamplerNet.layers:
            if isinstance(layer, _Split):
                shapes.append((channels - layer.kept, height, width))
                channels = layer.kept
            elif not isinstance(layer, _Step):
                channels, height, width = channels * 4, height // 2, width // 2
        return [*shapes, (channels, height, width)]


def _by_layer(weights: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if match := _LAYER.fullmatch(name):
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    return layers


def _encoder_for(
    weights: Mapping[str, Tensor], layers: Mapping[int, Mapping[str, Tensor]]
) -> PublishedEncoder:
    try:
        features = weights["RRDB.conv_first.weight"].shape[0]
        growth = weights["RRDB.RRDB_trunk.0.RDB1.conv1.weight"].shape[0]
    except KeyError as error:
        raise NotPublished(f"The file has no RRDB encoder: {error} is missing.") from None
    blocks = 1 + max(
        int(name.split(".")[2]) for name in weights if name.startswith("RRDB.RRDB_trunk.")
    )
    scale = 2 ** sum(f"RRDB.upconv{number}.weight" in weights for number in (1, 2, 3))
    read = [
        parts[name].shape[1]
        for parts in layers.values()
        for name in parts
        if name.endswith("fFeatures.0.weight")
    ]
    if not read:
        raise NotPublished("The flow has no coupling: no weight is named ....fFeatures.0.weight.")
    return PublishedEncoder(features, growth, blocks, scale, tapped=read[0] > features)


def _layer_for(parts: Mapping[str, Tensor] | None) -> nn.Module:
    if parts is None:
        return nn.Identity()  # a squeeze
    if "conv.weight" in parts:
        changed = parts["conv.weight"].shape[0] // 2
        channels = 2 * changed
        return _Split(channels, parts["conv.weight"].shape[1] - (channels - changed))
    channels = parts["actnorm.bias"].shape[1]
    frozen = "invconv.weight_transpose" in parts
    kind = next((kind for kind in _COUPLINGS if any(n.startswith(f"{kind}.") for n in parts)), None)
    if kind is None:
        return _Step(channels, None, {}, frozen=frozen, std=False)
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
    return _Step(channels, kind, options, frozen=frozen, std=std)


def _unused_for(weights: Mapping[str, Tensor]) -> nn.Module | None:
    weight = weights.get("flowUpsamplerNet.f.0.weight")
    if weight is None:
        return None
    return nn.Sequential(nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1))


def _describe(
    weights: Mapping[str, Tensor], layers: Sequence[nn.Module], scale: int, module: nn.Module
) -> Structure:
    steps: list[int] = []
    couplings = set()
    std = False
    for layer in layers:
        if isinstance(layer, nn.Identity):
            steps.append(0)
        elif isinstance(layer, _Step) and layer.coupling is not None:
            steps[-1] += 1
            couplings.add(layer.coupling)
            std = std or any("_std." in name for name, _ in layer.named_parameters())
    known = set(module.state_dict())
    return Structure(
        scale,
        "/".join(sorted(couplings)),
        tuple(steps),
        len(steps),
        std,
        tuple(sorted(name for name in weights if name not in known)),
    )
