"""Are two posteriors the same, and are they right? The numbers of the example."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.posterior.simulator import TwistedSimulator
from examples.posterior.training import (
    MODES,
    Settings,
    Training,
    calls_of,
    log_prob,
    mode_of,
    sample,
    simulate_anew,
)

TEST_SIMULATIONS = 4000  # new ones, for log_prob and the divergence
EXACT_SAMPLES = 100_000  # what means and deviations are compared with
ENERGY_SAMPLES = 2000  # of each side; the distance takes all pairs
TURNS = 5  # of each mode, when sampling is timed


@dataclass(frozen=True)
class Difference:
    """The largest and the mean absolute difference of two arrays."""

    largest: float
    mean: float


@dataclass(frozen=True)
class Comparison:
    """Two posteriors, or one with the patch off and on.

    Attributes:
        what: is compared, in words.
        differences: of ``log_prob`` at new simulations, of ``samples`` drawn from the same base
            noise, and, of two trainings, of ``training_loss`` and ``validation_loss`` by epoch.
        shift: mean log_prob of the second minus the first at the new simulations, in nats: how much
            nearer it is to the exact posterior.
        shift_error: its standard error, of pairs.
    """

    what: str
    differences: dict[str, Difference]
    shift: float
    shift_error: float


@dataclass(frozen=True)
class Rightness:
    """How far samples and density are from the exact posterior.

    Attributes:
        what: is judged, in words.
        divergence: mean log-density of the exact posterior minus the estimator's, at new
            simulations: the Kullback-Leibler divergence from exact to estimated, in nats, a mean
            over measurements. None for exact samples, where it is 0.
        divergence_error: its standard error.
        mean_error: at the one observation, the largest error of a mean, in exact deviations.
        deviation_error: the largest relative error of a standard deviation.
        energy: energy distance from exact samples, every parameter in units of its exact
            deviation. Unbiased: it scatters around 0 where both are the same.
    """

    what: str
    divergence: float | None
    divergence_error: float | None
    mean_error: float
    deviation_error: float
    energy: float


@dataclass(frozen=True)
class Sampling:
    """Drawing samples with the patch off and on, in turns, from one trained estimator.

    Attributes:
        seconds: medians, by mode.
        calls: of the patched turns, ``robustflow.compat.patched()`` summed.
    """

    seconds: dict[str, float]
    calls: dict[str, int]


def observation(simulator: TwistedSimulator) -> Tensor:
    """The measurement whose posterior is sampled, (5,): both signs of the offset fit it."""
    return torch.zeros(simulator.dimensions)


def difference(first: Sequence[float] | Tensor, second: Sequence[float] | Tensor) -> Difference:
    """Of two arrays of one shape."""
    distances = (torch.as_tensor(first).double() - torch.as_tensor(second).double()).abs()
    return Difference(float(distances.max()), float(distances.mean()))


class Judge:
    """Compares trainings at the same new simulations, observation and base noise.

    Args:
        settings: of the trainings.
        simulator: that they learnt.
    """

    def __init__(self, settings: Settings, simulator: TwistedSimulator) -> None:
        self.settings = settings
        self.simulator = simulator
        self.theta, self.x = simulate_anew(TEST_SIMULATIONS, settings, simulator)
        self.observation = observation(simulator)
        self.exact = self.exact_samples(EXACT_SAMPLES, seed=1)

    def exact_samples(self, num_samples: int, seed: int) -> Tensor:
        """Samples of the exact posterior of the observation, (num_samples, 5)."""
        generator = torch.Generator().manual_seed(self.settings.seed + seed)
        return self.simulator.sample_posterior(num_samples, self.observation, generator)

    def samples(self, training: Training) -> Tensor:
        """Of a trained posterior of the observation, in the mode it was trained in."""
        with mode_of(training.mode, self.settings.library):
            return self._sample(training.trained)

    def patch_alone(self, training: Training, *, before: bool = False) -> Comparison:
        """One posterior, its weights the same, with the patch off and on."""
        posterior = training.initial if before else training.trained
        results = []
        for mode in MODES:
            with mode_of(mode, self.settings.library):
                results.append(
                    {
                        "log_prob": log_prob(posterior, self.theta, self.x),
                        "samples": self._sample(posterior),
                    }
                )
        words = "before" if before else "after"
        return _comparison(f"same weights, {words} training", *results)

    def trainings(self, what: str, first: Training, second: Training) -> Comparison:
        """Two trainings, each in its own mode."""
        results = []
        for training in (first, second):
            with mode_of(training.mode, self.settings.library):
                results.append(
                    {
                        "training_loss": torch.tensor(training.training_loss),
                        "validation_loss": torch.tensor(training.validation_loss),
                        "log_prob": log_prob(training.trained, self.theta, self.x),
                        "samples": self._sample(training.trained),
                    }
                )
        return _comparison(what, *results)

    def rightness(self, training: Training) -> Rightness:
        """How far one training is from the exact posterior."""
        with mode_of(training.mode, self.settings.library):
            estimated = log_prob(training.trained, self.theta, self.x)
        excess = self.simulator.log_posterior(self.theta, self.x) - estimated.double()
        return Rightness(
            training.name,
            *_mean_and_error(excess),
            *self._sample_errors(self.samples(training)),
        )

    def floor(self) -> Rightness:
        """The figures that other draws of the exact posterior itself would get."""
        other = self.exact_samples(self.settings.samples, seed=2)
        return Rightness("exact, other draws", None, None, *self._sample_errors(other))

    def time_sampling(self, training: Training, on_turn: Callable[[int], None]) -> Sampling:
        """The observation's posterior, drawn with the patch off and on by turns.

        Args:
            training: whose posterior is sampled.
            on_turn: called with the number of turns done.
        """
        times: dict[str, list[float]] = {mode: [] for mode in MODES}
        calls: dict[str, int] = {}
        for turn in range(TURNS):
            for mode in MODES:
                with mode_of(mode, self.settings.library):
                    started = time.perf_counter()
                    self._sample(training.trained)
                    times[mode].append(time.perf_counter() - started)
                    for by, count in calls_of(self.settings.library).items():
                        calls[by] = calls.get(by, 0) + count
            on_turn(turn + 1)
        return Sampling({mode: statistics.median(values) for mode, values in times.items()}, calls)

    def _sample(self, posterior: object) -> Tensor:
        return sample(posterior, self.settings.samples, self.observation, self.settings.seed)

    def _sample_errors(self, samples: Tensor) -> tuple[float, float, float]:
        mean, deviation = self.exact.mean(0), self.exact.std(0)
        return (
            float(((samples.mean(0) - mean) / deviation).abs().max()),
            float((samples.std(0) / deviation - 1).abs().max()),
            energy_distance(samples / deviation, self.exact / deviation),
        )


def energy_distance(first: Tensor, second: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of the first ``ENERGY_SAMPLES`` rows of each, unbiased.

    Székely and Rizzo, Energy statistics, J. Statist. Plann. Inference 143 (2013).
    """
    first, second = first[:ENERGY_SAMPLES].double(), second[:ENERGY_SAMPLES].double()
    within = sum(torch.pdist(each).mean() for each in (first, second))
    return float(2 * torch.cdist(first, second).mean() - within)


def _comparison(what: str, first: dict[str, Tensor], second: dict[str, Tensor]) -> Comparison:
    differences = {name: difference(values, second[name]) for name, values in first.items()}
    mean, error = _mean_and_error(second["log_prob"].double() - first["log_prob"].double())
    return Comparison(what, differences, mean, error)


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
