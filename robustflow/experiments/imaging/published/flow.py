"""A published flow: encoder, layers, and the meaning of its latents and pictures."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow.experiments.imaging.published.encoders import (
    LowLightEncoder,
    SuperResolutionEncoder,
    encoder_for,
)
from robustflow.experiments.imaging.published.layers import (
    Layers,
    NotPublished,
    Step,
    by_layer,
    layers_for,
)
from robustflow.experiments.imaging.sampling_flow import Conditioned, SamplingFlow
from robustflow.experiments.tasks import LowLight, SuperResolution

# By scale: of each level, how many of its last steps are told the noise in the published networks.
_TOLD = {4: (0, 16, 16), 8: (0, 0, 16, 16)}


@dataclass(frozen=True)
class Structure:
    """The structure of a network, read from a checkpoint's names and shapes.

    Attributes:
        scale: 4 or 8; 1 for low light.
        coupling: "affine", "affinereparam", "bspline" or "rqspline".
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


class PublishedFlow(SamplingFlow):
    """A published flow p(x | y), with the names of its published weights.

    :func:`published_flow` builds one. Its latents are standard normal about :attr:`mean`.

    Args:
        encoder, flow: with new weights, for the checkpoint.
        weights: by name, without a leading ``module.``.

    Attributes:
        structure: what the checkpoint says.

    Raises:
        NotPublished: weights are missing, or a shape does not fit.
    """

    def __init__(
        self, encoder: nn.Module, flow: Layers, scale: int, weights: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.RRDB = encoder
        self.flowUpsamplerNet = flow
        self.structure = _describe(weights, flow, scale, self)
        self.size_multiple = 2**self.structure.levels
        known = {name: weights[name] for name in weights if name not in self.structure.unknown}
        try:
            self.load_state_dict(known)
        except RuntimeError as error:
            raise NotPublished(f"The file's weights do not fit together: {error}") from None

    @abstractmethod
    def known_of(self, y: Tensor) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """Of observations: the features of each level, the guess, the mean of the last latent."""

    def prepare(self, y: Tensor, *, features: Tensor | None = None) -> Conditioned:
        """Everything that the flow computes from observations (N, 3, H, W) in [0, 1].

        Raises:
            ValueError: a size that the flow's levels do not divide, or features, which only flows
                of `robustflow train` take.
        """
        if features is not None:
            raise ValueError(
                "A published network computes its features itself: leave features out."
            )
        size = self.checked_size(y)
        levels, guess, mean = self.known_of(y)
        return Conditioned(tuple(levels), guess, mean, size)

    def latent_shapes(self, size: Sequence[int]) -> list[tuple[int, int, int]]:
        return self.flowUpsamplerNet.latent_shapes(size)

    def invert(self, latents: Sequence[Tensor], condition: Sequence[Tensor]) -> Tensor:
        batch, _, height, width = latents[-1].shape
        size = (height * self.size_multiple, width * self.size_multiple)
        std = self._noise(latents[-1].new_zeros(batch, 3, *size))
        return self.flowUpsamplerNet.decode(latents, condition, std)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        """log p(x | y) in nats, (N,), for pictures (N, 3, H, W) in [0, 1]."""
        prepared = self.prepare(y)
        z = x if prepared.guess is None else x - prepared.guess
        latents, total = self.flowUpsamplerNet.encode(z, prepared.condition, self._noise(x))
        if prepared.mean is not None:
            latents[-1] = latents[-1] - prepared.mean
        for latent in latents:
            normal = -0.5 * (latent.square() + math.log(2 * math.pi))
            total = total + normal.flatten(1).sum(dim=1)
        return total

    def _noise(self, x: Tensor) -> Tensor | None:
        """The noise map of a clean picture: zero, for networks that were told their noise."""
        return torch.zeros_like(x) if self.structure.std else None


class SuperResolutionFlow(PublishedFlow):
    """SRFlow, or a network of Hong, Park and Chun.

    With a net for the noise level it models the residual over bicubic upsampling.
    """

    RRDB: SuperResolutionEncoder

    def __init__(
        self, encoder: SuperResolutionEncoder, flow: Layers, weights: Mapping[str, Tensor]
    ) -> None:
        scale = 2**encoder.upsamplings
        super().__init__(encoder, flow, scale, weights)
        self.task = SuperResolution(scale)

    def known_of(self, y: Tensor) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        guess = self.task.first_guess(y) if self.structure.std else None
        return self.RRDB(y, self.structure.levels), guess, None


class LowLightFlow(PublishedFlow):
    """LLFlow: the mean of its latents is the colour map that its encoder makes.

    The published samples are those of temperature 0, made in half precision.
    """

    RRDB: LowLightEncoder

    def __init__(
        self, encoder: LowLightEncoder, flow: Layers, weights: Mapping[str, Tensor]
    ) -> None:
        super().__init__(encoder, flow, 1, weights)
        if self.structure.levels != 3 or len(self.latent_shapes((8, 8))) != 1:
            raise NotPublished(
                "LLFlow has three levels and no split, since its latents' mean is the colour map "
                f"at an eighth of the size; this one has {self.structure.levels} levels and "
                f"{len(self.latent_shapes((8, 8))) - 1} splits."
            )
        self.task = LowLight()

    def known_of(self, y: Tensor) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        features, colour_map = self.RRDB(y)
        return features, None, functional.pixel_unshuffle(colour_map, self.size_multiple)


def published_flow(weights: Mapping[str, Tensor]) -> PublishedFlow:
    """The published network that weights are of, with these weights.

    Args:
        weights: by name, as a checkpoint has them; with or without a leading ``module.``.

    Raises:
        NotPublished: not a network of this kind, or a shape that does not fit.

    Example:
        >>> published_flow({})
        Traceback (most recent call last):
        ...
        robustflow.experiments.imaging.published.layers.NotPublished: The file has no flow: no \
weight is named flowUpsamplerNet.layers.<n>.actnorm.bias.
    """
    weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    numbered = by_layer(weights)
    if not any("actnorm.bias" in parts for parts in numbered.values()):
        raise NotPublished(
            "The file has no flow: no weight is named flowUpsamplerNet.layers.<n>.actnorm.bias."
        )
    read = [
        parts[name].shape[1]
        for parts in numbered.values()
        for name in parts
        if name.endswith("fFeatures.0.weight")
    ]
    if not read:
        raise NotPublished("The flow has no coupling: no weight is named ....fFeatures.0.weight.")
    encoder = encoder_for(weights, read[0])
    told = (
        _TOLD.get(2**encoder.upsamplings, ()) if isinstance(encoder, SuperResolutionEncoder) else ()
    )
    try:
        flow = layers_for(weights, numbered, told)
    except KeyError as error:
        raise NotPublished(f"The weights of the network are not all there: {error}.") from None
    if isinstance(encoder, LowLightEncoder):
        return LowLightFlow(encoder, flow, weights)
    assert isinstance(encoder, SuperResolutionEncoder)
    return SuperResolutionFlow(encoder, flow, weights)


def _describe(
    weights: Mapping[str, Tensor], flow: Layers, scale: int, module: nn.Module
) -> Structure:
    couplings = [
        layer for layer in flow.layers if isinstance(layer, Step) and layer.coupling is not None
    ]
    std = any("_std." in name for layer in couplings for name, _ in layer.named_parameters())
    known = set(module.state_dict())
    return Structure(
        scale,
        "/".join(sorted({str(layer.coupling) for layer in couplings})),
        flow.steps,
        flow.levels,
        std,
        tuple(sorted(name for name in weights if name not in known)),
    )
