"""The conditional flow of an inverse problem: encoder, levels, residual, noise as a condition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow import nn as rnn
from robustflow.experiments.encoders import RRDB, RRDBEncoder, TinyEncoder
from robustflow.experiments.encoders.weights import WeightsError, load_rrdb
from robustflow.experiments.imaging.config import Config, ConfigError, ModelTable
from robustflow.experiments.imaging.couplings import COUPLINGS
from robustflow.experiments.imaging.sampling_flow import Conditioned, SamplingFlow
from robustflow.experiments.tasks import Task
from robustflow.experiments.tasks.base import WHITE
from robustflow.nn.level import Activations


class ImagingFlow(SamplingFlow):
    """p(x | y) of a configuration: the density of pictures given an observation, and samples.

    x is (N, C, H, W) in [0, 1], y (N, C', H', W') as the task makes it. With ``noise > 0`` the
    flow is trained on noisy pictures and is told the noise, as a further condition of each level
    (SoftFlow, Kim et al., 2020, arXiv:2006.04604); to sample, it is told zero.

    Args:
        config: as :func:`~robustflow.experiments.imaging.config.preset` gives it; checked.
        task: in place of the configuration's own.
        encoder: from y to features (N, ``encoder.channels``, H', W'); by default the
            configuration's, with new weights.

    Raises:
        ConfigError: the configuration cannot be built.

    Example:
        >>> from robustflow.experiments.imaging.config import override, preset
        >>> flow = ImagingFlow(override(preset("sr", "tiny"), "model.steps", 1))
        >>> x, y = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 8, 8)
        >>> flow.log_prob(x, y).shape
        torch.Size([2])
        >>> flow.sample(y, 3, temperature=0.8).shape
        torch.Size([2, 3, 3, 32, 32])
    """

    def __init__(
        self, config: Config, task: Task | None = None, encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        model = config.check(task).model
        self.task = task or config.make_task()
        self.encoder = encoder or build_encoder(config, self.task)
        self.encoder_is_frozen = config.encoder_is_frozen
        self.noise_channels = self.task.channels if model.noise > 0 else 0
        self.residual = model.residual
        feature_channels: int = self.encoder.channels  # type: ignore[assignment]
        self.flow = rnn.ConditionalFlow(
            build_levels(model, self.task.channels, feature_channels + self.noise_channels),
            activations=cast("Activations", config.training.activations),
        )
        self._latents = latent_channels(model, self.task.channels)
        self.size_multiple = config.size_multiple(self.task)
        probe = torch.zeros(1, self.task.observation_channels, 8, 8)
        self.mean_head: nn.Conv2d | None = None
        if self.task.prior_mean(probe) is not None:
            if model.split_levels:
                raise ConfigError(
                    f"The task {self.task.name!r} gives the latents a mean, for which all of them "
                    "must have one size: set [model] split_levels = []."
                )
            self.mean_head = nn.Conv2d(feature_channels, self._latents[-1], 3, padding=1)
            nn.init.zeros_(self.mean_head.weight)
            assert self.mean_head.bias is not None
            nn.init.zeros_(self.mean_head.bias)

    def features(self, y: Tensor) -> Tensor:
        """The encoder's features of observations, (N, F, H', W')."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_is_frozen):
            features: Tensor = self.encoder(y)
        return features

    def prepare(
        self, y: Tensor, *, features: Tensor | None = None, noise: Tensor | None = None
    ) -> Conditioned:
        """Everything computed from observations, for :meth:`log_prob` and :meth:`sample`.

        Args:
            y: (N, C', H', W').
            features: of :meth:`features`, where they are at hand.
            noise: that was added to x, (N, C, H, W); None for zero.

        Raises:
            ValueError: a size that the flow's levels do not divide.
        """
        size = self.checked_size(y)
        features = self.features(y) if features is None else features
        if noise is None:
            noise = y.new_zeros(y.shape[0], self.noise_channels, *size)
        per_level: list[Tensor | rnn.Upsampled] = []
        for level in range(len(self._latents)):
            smaller = (size[0] // 2 ** (level + 1), size[1] // 2 ** (level + 1))
            beside = _resize(noise, smaller) if self.noise_channels else None
            if _is_larger(smaller, features.shape[2:]):
                per_level.append(rnn.Upsampled(features, smaller, beside))
            else:
                resized = _resize(features, smaller)
                per_level.append(resized if beside is None else torch.cat([resized, beside], dim=1))
        return Conditioned(
            self.flow.condition(per_level),
            self.task.first_guess(y) if self.residual else None,
            self._mean(y, features),
            size,
        )

    def log_prob(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        features: Tensor | None = None,
        noise: Tensor | None = None,
        prepared: Conditioned | None = None,
    ) -> Tensor:
        """log p(x | y) in nats, (N,); the noise must be in x already.

        Args:
            x: (N, C, H, W).
            y, features, noise: as for :meth:`prepare`.
            prepared: its result in their place.
        """
        prepared = self._prepared(y, features, noise, prepared)
        latents, logabsdet = self.flow(
            x if prepared.guess is None else x - prepared.guess, condition=prepared.condition
        )
        if prepared.mean is not None:
            latents = (*latents[:-1], latents[-1] - prepared.mean)
        return logabsdet + self.flow.latent_log_prob(latents)

    def forward(self, x: Tensor, y: Tensor, **conditions: Tensor | None) -> Tensor:
        """:meth:`log_prob`, so that DistributedDataParallel can wrap the flow."""
        return self.log_prob(x, y, **conditions)  # type: ignore[arg-type]

    def bits_per_dimension(self, log_prob: Tensor, x: Tensor) -> Tensor:
        """Bits per value of an 8-bit picture, (N,), from log-densities of pictures (N, C, H, W)."""
        nats = -log_prob / math.prod(x.shape[1:])
        return nats / math.log(2) + math.log2(WHITE)

    def latent_shapes(self, size: Sequence[int]) -> list[tuple[int, int, int]]:
        """(C, H, W) of each latent, for pictures of this height and width; 0 channels: none."""
        return [
            (channels, size[0] // 2 ** (level + 1), size[1] // 2 ** (level + 1))
            for level, channels in enumerate(self._latents)
            if channels
        ]

    def invert(self, latents: Sequence[Tensor], condition: rnn.Condition) -> Tensor:
        return self.flow.inverse(latents, condition=condition)[0]

    def _prepared(
        self,
        y: Tensor | None,
        features: Tensor | None,
        noise: Tensor | None,
        prepared: Conditioned | None,
    ) -> Conditioned:
        if prepared is not None:
            return prepared
        if y is None:
            raise ValueError("Give observations y, or what prepare(y) returned as prepared=.")
        return self.prepare(y, features=features, noise=noise)

    def _mean(self, y: Tensor, features: Tensor) -> Tensor | None:
        """Mean of the last latent, from the task's picture and a learned correction."""
        picture = self.task.prior_mean(y)
        if picture is None:
            return None
        assert self.mean_head is not None
        for _ in self._latents:
            picture = functional.pixel_unshuffle(picture, 2)
        return picture + self.mean_head(_resize(features, picture.shape[2:]))


def build_encoder(config: Config, task: Task) -> nn.Module:
    """The encoder of a configuration: with new weights, or those of the file that it names.

    Raises:
        ConfigError: the file has no weights for it, or they read other channels.
    """
    encoder = config.encoder
    channels = task.observation_channels
    if encoder.name == "tiny":
        network: nn.Module = TinyEncoder(encoder.channels, encoder.blocks, channels)
    elif encoder.name == "rrdb":
        network = RRDBEncoder(RRDB(channels))
    else:
        try:
            rrdb = load_rrdb(encoder.name)
        except WeightsError as error:
            raise ConfigError(f"[encoder] name: {error}") from None
        if rrdb.conv_first.in_channels != channels:
            raise ConfigError(
                f"[encoder] name: the network reads {rrdb.conv_first.in_channels} channels, and "
                f"the task {task.name!r} observes {channels}."
            )
        network = RRDBEncoder(rrdb)
    if config.encoder_is_frozen:
        network.requires_grad_(False)
    return network


def build_levels(model: ModelTable, channels: int, context_channels: int) -> list[list[nn.Module]]:
    """The layers of each level: squeeze, transition steps, flow steps, and perhaps a split."""
    transform = COUPLINGS[model.coupling](**model.coupling_options)
    options: dict[str, Any] = {
        "hidden_channels": model.hidden_channels,
        "head_kernel_size": model.head_kernel_size,
    }
    levels = []
    for level in range(1, model.levels + 1):
        channels *= 4
        layers: list[nn.Module] = [rnn.Squeeze(2)]
        for _ in range(model.transition_steps):
            layers += [rnn.ActNorm(channels), rnn.InvertibleConv1x1(channels)]
        for _ in range(model.steps):
            step = rnn.flow_step(channels, context_channels, transform, **options)
            if not model.injectors:
                step = [layer for layer in step if not isinstance(layer, rnn.Injector)]
            layers += step
        if level in model.split_levels:
            split = rnn.Split(channels, context_channels, hidden_channels=model.hidden_channels)
            layers.append(split)
            channels = split.kept_channels
        levels.append(layers)
    return levels


def latent_channels(model: ModelTable, channels: int) -> list[int]:
    """Channels of the latent that leaves each level; 0 where none does."""
    out = []
    for level in range(1, model.levels + 1):
        channels *= 4
        kept = channels // 2 if level in model.split_levels else channels
        last = level == model.levels
        out.append(channels if last else channels - kept)
        channels = kept
    return out


def _resize(features: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear; averages where a picture becomes smaller."""
    if list(features.shape[-2:]) == list(size):
        return features
    smaller = size[0] < features.shape[-2]
    # On CPUs PyTorch has no antialiased resizing of half types.
    precise = features.float() if smaller and features.dtype.itemsize < 4 else features
    resized = functional.interpolate(precise, list(size), mode="bilinear", antialias=smaller)
    return resized.to(features.dtype)


def _is_larger(size: Sequence[int], than: Sequence[int]) -> bool:
    """Larger on one side at least, and smaller on none."""
    return list(size) != list(than) and all(a >= b for a, b in zip(size, than, strict=True))
