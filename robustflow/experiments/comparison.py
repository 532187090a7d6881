"""Train one model, sample every picture and count faults: a worker's job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow import nn as rnn
from robustflow.experiments import photographs
from robustflow.experiments.data.builtin import Picture
from robustflow.experiments.faults import Faults, count_faults
from robustflow.experiments.photographs import crop, load
from robustflow.experiments.super_resolution import (
    COUPLINGS,
    CropSampler,
    Pair,
    Settings,
    build_flow,
    degrade,
    evaluate,
    super_resolve,
    train,
)

NUM_SAMPLES = 5
TEMPERATURES = (0.8, 0.9, 1.0)
SHOWN_TEMPERATURE = 0.9
PICTURES: tuple[Picture, ...] = (
    photographs.CONTROL,
    photographs.HELD_OUT,
    *photographs.OUT_OF_DISTRIBUTION,
)


@dataclass(frozen=True)
class TransformInputs:
    """Tensors that one of the trained model's transforms was given.

    Attributes:
        training: x and packed parameters of a training batch.
        sampling: the same while sampling a picture; the parameters' batch size is 1.
    """

    training: tuple[Tensor, Tensor]
    sampling: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ModelResult:
    """The results of one model.

    Attributes:
        bits_training, bits_held_out: bits per dimension on crops of the training pictures and of
            the held-out one.
        train_seconds, sample_seconds: by the clock.
        faults: by picture and temperature.
        worst: by picture, the sample with the largest absolute value at
            ``SHOWN_TEMPERATURE``, (3, H, W), not clamped.
        inputs: tensors to time the transform on.
    """

    bits_training: float
    bits_held_out: float
    train_seconds: float
    sample_seconds: float
    faults: dict[str, dict[float, Faults]]
    worst: dict[str, Tensor]
    inputs: TransformInputs


def square(picture: Picture, size: int) -> Pair:
    """The square of a picture that is sampled, at both resolutions."""
    return degrade(crop(load(picture), picture.corner, size))


def train_and_sample(
    coupling: str, settings: Settings, report: Callable[[int, str], None]
) -> ModelResult:
    """Fit the model with this coupling and sample every picture.

    Args:
        coupling: a key of ``COUPLINGS``.
        settings: of network, training and sampling.
        report: called as ``report(iterations done, a word)``.
    """
    torch.manual_seed(settings.seed)
    pairs = [degrade(load(picture)) for picture in photographs.TRAINING]
    flow = build_flow(COUPLINGS[coupling], settings)
    recent: list[float] = []

    def after_update(iteration: int, bits: float) -> None:
        recent.append(bits)
        if iteration % 10 == 0 or iteration == settings.iterations:
            report(iteration, f"{sum(recent) / len(recent):.2f} bits/dim")
            recent.clear()

    started = time.perf_counter()
    train(flow, pairs, settings, after_update)
    trained = time.perf_counter()
    report(settings.iterations, "sampling")
    bits_training = evaluate(flow, pairs, settings)
    bits_held_out = evaluate(flow, [degrade(load(photographs.HELD_OUT))], settings)

    sampling = time.perf_counter()
    faults, worst = sample_pictures(flow, settings)
    finished = time.perf_counter()
    report(settings.iterations, f"{bits_training:.2f} bits/dim")
    return ModelResult(
        bits_training,
        bits_held_out,
        trained - started,
        finished - sampling,
        faults,
        worst,
        _record_inputs(flow, pairs, settings),
    )


def sample_pictures(
    flow: rnn.ConditionalFlow, settings: Settings
) -> tuple[dict[str, dict[float, Faults]], dict[str, Tensor]]:
    """Sample every picture: ``ModelResult``'s faults and worst."""
    faults: dict[str, dict[float, Faults]] = {}
    worst: dict[str, Tensor] = {}
    for picture in PICTURES:
        pair = square(picture, settings.sample_size)
        by_temperature = faults[picture.title] = {}
        for temperature in TEMPERATURES:
            samples = super_resolve(flow, pair, NUM_SAMPLES, temperature, settings.seed)
            by_temperature[temperature] = count_faults(samples)
            if temperature == SHOWN_TEMPERATURE:
                worst[picture.title] = _worst(samples)
    return faults, worst


def _worst(samples: Tensor) -> Tensor:
    sizes = samples.abs().nan_to_num(nan=float("inf"), posinf=float("inf")).flatten(1)
    return samples[int(sizes.amax(dim=1).argmax())].clone()


@torch.no_grad()
def _record_inputs(
    flow: rnn.ConditionalFlow, pairs: list[Pair], settings: Settings
) -> TransformInputs:
    """The inputs of the last injector's transform, in training and in sampling."""
    injector = [layer for layer in flow.modules() if isinstance(layer, rnn.Injector)][-1]
    calls: list[tuple[Tensor, Tensor]] = []

    class Recorder:
        num_params = injector.transform.num_params
        identity_params = injector.transform.identity_params

        def __call__(
            self, x: Tensor, params: Tensor, *, inverse: bool = False
        ) -> tuple[Tensor, Tensor]:
            calls.append((x.clone(), params.clone()))
            return transform(x, params, inverse=inverse)

    transform, injector.transform = injector.transform, Recorder()
    try:
        flow.log_prob(*CropSampler(pairs, settings, settings.seed)())
        super_resolve(flow, square(photographs.CONTROL, settings.sample_size), NUM_SAMPLES, 0.8, 0)
    finally:
        injector.transform = transform
    return TransformInputs(training=calls[0], sampling=calls[1])
