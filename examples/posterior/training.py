"""sbi's neural-spline posterior estimator, trained and sampled with the patch off or on."""

from __future__ import annotations

import contextlib
import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from examples.posterior.simulator import TwistedSimulator
from robustflow import compat

# sbi's names of its estimators with rational-quadratic splines, and whose splines they are.
LIBRARIES = {"nsf": "nflows", "maf_rqs": "nflows", "zuko_nsf": "zuko"}
UNPATCHED, PATCHED = "unpatched", "patched"
MODES = (UNPATCHED, PATCHED)


@dataclass(frozen=True)
class Settings:
    """Settings of the estimator, which is sbi's default, and its training.

    Attributes:
        estimator: a key of ``LIBRARIES``.
        simulations: drawn from the prior; sbi keeps a tenth for validation.
        epochs: of every training. Fixed, without early stopping, so that all do the same work.
        batch_size: sbi's default.
        learning_rate: Adam's; several times sbi's default, to get far in few epochs.
        samples: drawn from the posterior of the one observation.
        seed: decides simulations, initial weights, batches and base noise.
    """

    estimator: str = "nsf"
    simulations: int = 20_000
    epochs: int = 8
    batch_size: int = 200
    learning_rate: float = 3e-3
    samples: int = 10_000
    seed: int = 0

    @property
    def library(self) -> str:
        """The flow library to patch."""
        return LIBRARIES[self.estimator]

    @property
    def meaningful(self) -> bool:
        """Whether the estimators saw as much data, as often, as the example's own."""
        standard = Settings()
        return self.simulations >= standard.simulations and self.epochs >= standard.epochs


@dataclass
class Training:
    """One training, and the resulting posterior.

    Attributes:
        mode: of ``MODES``.
        nudged: whether it started from weights one ulp above sbi's.
        initial, trained: sbi's posteriors of the estimator as it was, and as it became.
        training_loss, validation_loss: an epoch's mean negative log-probability, in nats.
        seconds: of sbi's ``train``, by the clock.
        calls: ``robustflow.compat.patched()`` of the library; empty without a patch.
    """

    mode: str
    nudged: bool
    initial: Any
    trained: Any
    training_loss: list[float]
    validation_loss: list[float]
    seconds: float
    calls: dict[str, int]

    @property
    def name(self) -> str:
        """The mode, and whether it was nudged."""
        return name_of(self.mode, self.nudged)

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights sbi kept, the one of the lowest validation loss; from 1."""
        return 1 + min(range(len(self.validation_loss)), key=self.validation_loss.__getitem__)


def name_of(mode: str, nudged: bool) -> str:
    """A training's name in tables."""
    return f"{mode}, nudged" if nudged else mode


@contextlib.contextmanager
def mode_of(mode: str, library: str) -> Iterator[None]:
    """Within it the library is patched, or as it is."""
    with compat.patch(library) if mode == PATCHED else contextlib.nullcontext():
        yield


def calls_of(library: str) -> dict[str, int]:
    """Who served the library's calls since it was patched; empty where it is not."""
    return compat.patched().get(library, {})


def simulate(settings: Settings, simulator: TwistedSimulator) -> tuple[Tensor, Tensor]:
    """Parameters and measurements to train on, (simulations, 5) each."""
    return _draw(settings.simulations, simulator, settings.seed)


def simulate_anew(
    count: int, settings: Settings, simulator: TwistedSimulator
) -> tuple[Tensor, Tensor]:
    """Parameters and measurements that no estimator was trained on, (count, 5) each."""
    return _draw(count, simulator, settings.seed + 2**20)


def _draw(count: int, simulator: TwistedSimulator, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(count, simulator.dimensions, generator=generator)
    return theta, simulator(theta, generator)


def train(
    settings: Settings,
    simulator: TwistedSimulator,
    data: tuple[Tensor, Tensor],
    mode: str,
    on_epoch: Callable[[int], None],
    *,
    nudged: bool = False,
) -> Training:
    """Train sbi's NPE once; the same seed gives the same weights at the start and the same batches.

    Args:
        settings: of the estimator and its training.
        simulator: whose prior it is.
        data: what :func:`simulate` returned.
        mode: of ``MODES``.
        on_epoch: called with the number of epochs done.
        nudged: start with every weight one ulp higher.
    """
    from sbi.inference import NPE
    from sbi.neural_nets import posterior_nn

    build = posterior_nn(model=settings.estimator)
    initial: list[Any] = []

    def build_and_copy(theta: Tensor, x: Tensor) -> Any:
        estimator = build(theta, x)
        if nudged:
            nudge(estimator)
        initial.append(copy.deepcopy(estimator))
        return estimator

    with (
        mode_of(mode, settings.library),
        torch.random.fork_rng(devices=[]),
        _every_epoch(settings, on_epoch),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=".*max_num_epochs")  # all of them do reach it
        torch.manual_seed(settings.seed)
        trainer = NPE(
            prior=simulator.prior(),
            density_estimator=build_and_copy,
            show_progress_bars=False,
            tracker=_NoTracker(),
        ).append_simulations(*data)
        started = time.perf_counter()
        estimator = trainer.train(
            training_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            max_num_epochs=settings.epochs - 1,  # sbi stops after one more
            stop_after_epochs=settings.epochs,
        )
        seconds = time.perf_counter() - started
        calls = calls_of(settings.library)
        return Training(
            mode=mode,
            nudged=nudged,
            initial=trainer.build_posterior(initial[0]),
            trained=trainer.build_posterior(estimator),
            training_loss=trainer.summary["training_loss"],
            validation_loss=trainer.summary["validation_loss"],
            seconds=seconds,
            calls=calls,
        )


@torch.no_grad()
def nudge(module: torch.nn.Module) -> None:
    """Every parameter to the next larger number: the smallest change there is."""
    for parameter in module.parameters():
        parameter.copy_(parameter.nextafter(torch.tensor(torch.inf)))


@torch.no_grad()
def log_prob(posterior: Any, theta: Tensor, x: Tensor) -> Tensor:
    """log q(theta | x), each row with its own measurement: (N, 5) and (N, 5) to (N,)."""
    values: Tensor = posterior.posterior_estimator.log_prob(theta.unsqueeze(0), x)[0]
    return values


def sample(posterior: Any, num_samples: int, x: Tensor, seed: int) -> Tensor:
    """Samples (num_samples, 5) for one measurement (5,); a seed decides the base noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        samples: Tensor = posterior.sample((num_samples,), x=x, show_progress_bars=False)
    return samples


@contextlib.contextmanager
def _every_epoch(settings: Settings, on_epoch: Callable[[int], None]) -> Iterator[None]:
    """sbi has no callback for epochs: count the optimizer's steps."""
    per_epoch = int(0.9 * settings.simulations) // settings.batch_size or 1
    steps = 0

    def after_step(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps % per_epoch == 0:
            on_epoch(steps // per_epoch)

    handle = register_optimizer_step_post_hook(after_step)
    try:
        yield
    finally:
        handle.remove()


class _NoTracker:
    """In place of sbi's own, which would write TensorBoard logs into the working folder."""

    log_dir = None

    def log_metric(self, name: str, value: float, step: int | None = None) -> None:
        pass

    def flush(self) -> None:
        pass
