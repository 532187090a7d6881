"""The example with sbi: its simulator's exact posterior, its judge, and a tiny run of all of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from examples.posterior import __main__ as command
from examples.posterior.comparison import Judge, difference, energy_distance
from examples.posterior.simulator import TwistedSimulator
from examples.posterior.training import (
    LIBRARIES,
    MODES,
    PATCHED,
    UNPATCHED,
    Settings,
    Training,
    nudge,
    simulate,
    train,
)

SIMULATOR = TwistedSimulator()
TINY = Settings(simulations=200, epochs=2, batch_size=60, samples=500)


def twist(theta: Tensor) -> Tensor:
    """The simulator without noise and offset."""
    return replace(SIMULATOR, offset=0.0, noise=0.0)(theta, torch.Generator())


def log_normal(values: Tensor, deviation: float) -> Tensor:
    """Of independent values (..., 5), each with this deviation."""
    return torch.distributions.Normal(0.0, deviation).log_prob(values).sum(-1)


def log_mixture(first: Tensor, second: Tensor) -> Tensor:
    """Of two densities with equal odds."""
    return torch.logaddexp(first, second) - math.log(2)


def log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    residual = x - twist(theta)
    offset, noise = SIMULATOR.offset, SIMULATOR.noise
    return log_mixture(log_normal(residual - offset, noise), log_normal(residual + offset, noise))


def test_the_exact_posterior_is_prior_times_likelihood_over_evidence() -> None:
    theta = 2 * torch.randn(500, 5, dtype=torch.float64)
    x = 2 * torch.randn(500, 5, dtype=torch.float64)
    deviation = math.sqrt(1 + SIMULATOR.noise**2)
    evidence = log_mixture(
        *(log_normal(x + sign * SIMULATOR.offset, deviation) for sign in (1, -1))
    )
    expected = log_normal(theta, 1.0) + log_likelihood(theta, x) - evidence
    torch.testing.assert_close(SIMULATOR.log_posterior(theta, x), expected)


def test_the_twist_bends_and_keeps_radii() -> None:
    theta = torch.randn(100, 5, dtype=torch.float64)
    torch.testing.assert_close(twist(theta).norm(dim=1), theta.norm(dim=1))
    torch.testing.assert_close(twist(-theta), -twist(theta))
    assert (twist(2 * theta) - 2 * twist(theta)).abs().max() > 0.5  # no linear map


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_exact_samples_are_those_of_the_exact_density(shift: float) -> None:
    x = torch.full((5,), shift)
    exact = SIMULATOR.sample_posterior(2000, x, torch.Generator().manual_seed(1))
    prior = SIMULATOR.prior().sample((400_000,))
    weights = log_likelihood(prior, x).softmax(0)
    resampled = prior[torch.multinomial(weights, 2000)]
    other = SIMULATOR.sample_posterior(2000, x + 0.3, torch.Generator().manual_seed(2))
    assert energy_distance(exact, resampled) < 0.01
    assert energy_distance(other, resampled) > 0.02


def test_the_energy_distance_of_known_distributions() -> None:
    first, second = torch.randn(2000, 1), torch.randn(2000, 1)
    assert abs(energy_distance(first, second)) < 0.01
    # E|X - Y| = 10 where they hardly overlap, E|X - X'| = 2 / sqrt(pi).
    expected = 20 - 4 / math.sqrt(math.pi)
    assert energy_distance(first, second + 10) == pytest.approx(expected, rel=0.02)


def test_differences_are_absolute() -> None:
    found = difference([1.0, 2.0, 3.0], [1.0, 4.0, 2.0])
    assert (found.largest, found.mean) == (2.0, 1.0)


@dataclass
class ExactPosterior:
    """In place of sbi's: the exact one, moved and widened."""

    move: float = 0.0
    scale: float = 1.0

    @property
    def posterior_estimator(self) -> ExactPosterior:
        return self

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        density = SIMULATOR.log_posterior((theta - self.move) / self.scale, x)
        return density - 5 * math.log(self.scale)

    def sample(self, shape: tuple[int], x: Tensor, show_progress_bars: bool) -> Tensor:
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        return self.move + self.scale * SIMULATOR.sample_posterior(shape[0], x, generator)


def trained(result: Any) -> Training:
    return Training(UNPATCHED, False, result, result, [3.0, 2.0], [2.0, 2.5], 1.0, {})


def test_the_judge_acquits_the_exact_posterior_and_convicts_others() -> None:
    judge = Judge(replace(TINY, samples=4000), SIMULATOR)
    exact = judge.rightness(trained(ExactPosterior()))
    assert exact.divergence == pytest.approx(0.0, abs=1e-6)
    for right in (exact, judge.floor()):
        assert max(right.mean_error, right.deviation_error) < 0.06 and abs(right.energy) < 0.01
    moved = judge.rightness(trained(ExactPosterior(move=0.5)))
    assert moved.divergence is not None and moved.divergence_error is not None
    assert moved.divergence > 10 * moved.divergence_error
    assert moved.mean_error > 0.5 and moved.deviation_error < 0.06 and moved.energy > 0.1
    wide = judge.rightness(trained(ExactPosterior(scale=1.5)))
    assert wide.deviation_error == pytest.approx(0.5, abs=0.1) and wide.mean_error < 0.1


def test_trainings_are_compared_by_losses_densities_and_samples() -> None:
    judge = Judge(TINY, SIMULATOR)
    first, second = trained(ExactPosterior()), trained(ExactPosterior(move=0.25))
    second.validation_loss = [2.0, 1.0]
    assert (first.kept_epoch, second.kept_epoch) == (1, 2)
    comparison = judge.trainings("both", first, second)
    found = comparison.differences
    assert found["training_loss"].largest == 0.0
    assert (found["validation_loss"].largest, found["validation_loss"].mean) == (1.5, 0.75)
    assert found["samples"].mean == pytest.approx(0.25)  # the base noise is the same
    assert found["log_prob"].largest > 0.1
    assert comparison.shift < -5 * comparison.shift_error  # the second is further from the truth


def test_a_nudge_is_one_rounding() -> None:
    layer = torch.nn.Linear(7, 5)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    nudge(layer)
    for old, new in zip(before, layer.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=1.2e-7, atol=0.0)
        assert (new > old).all()


@pytest.mark.parametrize("estimator", LIBRARIES)
def test_the_kernels_serve_all_of_sbis_estimators(estimator: str) -> None:
    pytest.importorskip("sbi")
    settings = replace(TINY, estimator=estimator)
    data = simulate(settings, SIMULATOR)
    epochs: list[int] = []
    results = {mode: train(settings, SIMULATOR, data, mode, epochs.append) for mode in MODES}
    assert epochs == [1, 2, 1, 2]
    unpatched, patched = results[UNPATCHED], results[PATCHED]
    assert not unpatched.calls
    assert patched.calls["kernel"] > 0 and patched.calls["fallback"] == 0

    weights = [each.initial.posterior_estimator.state_dict() for each in results.values()]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())

    judge = Judge(settings, SIMULATOR)
    comparisons = [
        judge.patch_alone(unpatched, before=True),
        judge.patch_alone(unpatched),
        judge.trainings("both", unpatched, patched),
    ]
    # To rounding with the same weights; apart, rounding has had two epochs to grow.
    for comparison, tolerance in zip(comparisons, (1e-4, 1e-4, 1e-2), strict=True):
        for name, found in comparison.differences.items():
            assert found.mean < tolerance and found.largest < 30 * tolerance, (comparison, name)
    sampling = judge.time_sampling(patched, lambda _: None)
    assert set(sampling.seconds) == set(MODES)
    assert sampling.calls["kernel"] > 0 and sampling.calls["fallback"] == 0


def test_a_seed_decides_everything_and_leaves_torchs_own_alone() -> None:
    pytest.importorskip("sbi")
    state = torch.get_rng_state()
    first, second, other, nudged = (
        train(
            settings, SIMULATOR, simulate(settings, SIMULATOR), PATCHED, lambda _: None, nudged=up
        )
        for settings, up in (
            (TINY, False),
            (TINY, False),
            (replace(TINY, seed=1), False),
            (TINY, True),
        )
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert first.training_loss == second.training_loss != other.training_loss
    assert first.validation_loss == second.validation_loss
    judge = Judge(TINY, SIMULATOR)
    assert torch.equal(judge.samples(first), judge.samples(second))
    assert difference(judge.samples(first), judge.samples(nudged)).largest > 0.0


def test_the_command_writes_its_files_and_prints_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sbi")
    monkeypatch.chdir(tmp_path)  # sbi's own tracker would write there
    sizes = ["--simulations", "300", "--epochs", "2", "--samples", "500"]
    command.main([*sizes, "--json", "a.json", "--figure", "a.png"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "a.png"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((tmp_path / "a.json").read_text())
    assert not content["meaningful"] and content["settings"]["simulations"] == 300
    names = [(each["mode"], each["nudged"]) for each in content["trainings"]]
    assert names == [(mode, nudged) for nudged in (False, True) for mode in MODES]
    for each in content["trainings"]:
        assert len(each["training_loss"]) == len(each["validation_loss"]) == 2
        assert bool(each["calls"]) == (each["mode"] == PATCHED)
    assert len(content["comparisons"]) == 5 and len(content["rightness"]) == 5
    assert set(content["versions"]) == {"sbi", "nflows"}
    printed = capsys.readouterr().out
    assert "the numbers mean nothing" in printed and " 0 by nflows" in printed
    for title in ("Seconds", "Differences", "Distance from the exact posterior"):
        assert title in printed
    assert "…" not in printed and "from the same base noise" in " ".join(printed.split())
    assert max(len(line.rstrip()) for line in printed.splitlines()) <= 80


@pytest.mark.parametrize(
    "arguments", [["--epochs", "1"], ["--simulations", "99"], ["--samples", "99"], ["--seed", "-1"]]
)
def test_too_little_to_train_on_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    least = int(arguments[1]) + 1
    assert f"{arguments[0]} must be at least {least}, got" in capsys.readouterr().err


def test_every_estimator_has_a_library_that_can_be_patched() -> None:
    from robustflow._patchable import LIBRARIES as patchable

    assert set(LIBRARIES.values()) <= set(patchable)
