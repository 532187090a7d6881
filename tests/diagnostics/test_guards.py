"""Guards: what they bound, what they leave alone, and that nothing of them stays."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow._resizing import downsample
from robustflow.diagnostics import InverseMonitor
from robustflow.diagnostics.guards import (
    clamp_inverse,
    cool_latents,
    hold_scale,
    measure_guards,
    project_onto_observation,
    resample_onsets,
)
from robustflow.experiments.tasks import SuperResolution
from tests.diagnostics.exploding_flows import planted_flow


class Collapsing(nn.Module):
    """Makes an affine coupling's scale collapse where the kept half of z is large."""

    def forward(self, z1: Tensor, context: Tensor) -> Tensor:
        raw = torch.where(z1.abs().amax(dim=1, keepdim=True) > 3.2, -12.0, 0.0)
        raw = raw.expand(-1, 6, *z1.shape[2:])
        return torch.stack([torch.zeros_like(raw), raw], dim=2).flatten(1, 2)


def flow(scale: rnn.Affine | None = None) -> rnn.ConditionalFlow:
    torch.manual_seed(0)
    layers: list[nn.Module] = [rnn.Squeeze(2), *rnn.flow_step(12, 3, rnn.ModifiedRQSpline())]
    layers.append(rnn.Coupling(12, 3, scale or rnn.Affine(), Collapsing()))
    return rnn.ConditionalFlow([layers]).eval()


CONTEXT = torch.rand(1, 3, 8, 8)


def sample(model: rnn.ConditionalFlow, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return model.sample(6, CONTEXT, generator=generator)[0]


@pytest.mark.parametrize(
    "scale",
    [
        rnn.Affine(),
        rnn.Affine(scale="exp"),
        rnn.Affine(scale="exp", reciprocal=True),
        rnn.Affine(scale="softplus"),
        rnn.Affine(scale="tanh_exp", clamp=6.0),
    ],
    ids=lambda scale: f"{scale.scale}{'-reciprocal' * scale.reciprocal}",
)
@pytest.mark.parametrize("max_gain", [1.5, 10.0])
def test_no_inverse_multiplies_by_more(scale: rnn.Affine, max_gain: float) -> None:
    model = flow(scale)
    with clamp_inverse(model, max_gain=max_gain), InverseMonitor(model) as monitor:
        sample(model)
    rows = {row.name: row for row in monitor.report().layers}
    largest = rows["levels.0.layers.5"].largest_derivative
    assert largest is not None
    assert largest <= max_gain * (1 + 1e-5)
    with InverseMonitor(model) as free:
        sample(model)
    unguarded = {row.name: row for row in free.report().layers}["levels.0.layers.5"]
    assert unguarded.largest_derivative is not None
    if unguarded.largest_derivative > max_gain:
        assert largest == pytest.approx(max_gain, rel=1e-4)


def test_density_weights_and_healthy_samples_are_as_before() -> None:
    model = flow()
    before = copy.deepcopy(model.state_dict())
    x = torch.rand(2, 3, 16, 16)
    context = CONTEXT.expand(2, -1, -1, -1)
    expected, plain = model.log_prob(x, context), sample(model)
    with InverseMonitor(model) as monitor:
        sample(model)
    clean = [index for index in range(6) if all(each.sample != index for each in monitor.onsets)]
    guard = clamp_inverse(model, max_gain=10.0)
    assert torch.equal(model.log_prob(x, context), expected)
    guarded = sample(model)
    assert 0 < len(clean) < 6
    assert torch.equal(guarded[clean], plain[clean])
    assert float(guarded.abs().max()) < float(plain.abs().max()) / 100
    guard.restore()
    guard.restore()
    assert torch.equal(sample(model), plain)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_holding_the_scale_at_its_median_removes_what_began_there() -> None:
    model = flow()
    with InverseMonitor(model) as monitor:
        sample(model)
    first = monitor.first_explosion
    assert first is not None
    with hold_scale(model, first.layer), InverseMonitor(model) as held:
        sample(model)
    assert not held.onsets


def test_latents_are_drawn_anew_only_around_onsets() -> None:
    model = flow()
    condition = model.condition(CONTEXT)
    latents = [torch.randn(6, 12, 8, 8, generator=torch.Generator().manual_seed(0))]

    def decode(given: Sequence[Tensor]) -> Tensor:
        return model.inverse(tuple(given), condition=condition)[0]

    with InverseMonitor(model) as monitor:
        decode(latents)
    generator = torch.Generator().manual_seed(1)
    samples, new, left = resample_onsets(
        model, decode, latents, radius=1, tries=12, generator=generator
    )
    assert left == 0
    with InverseMonitor(model) as after:
        torch.testing.assert_close(decode(new), samples)
    assert not after.onsets
    touched = {onset.sample for onset in monitor.onsets}
    changed = [index for index in range(6) if not torch.equal(new[0][index], latents[0][index])]
    assert set(changed) == touched
    share = float((new[0] != latents[0]).float().mean())
    assert 0 < share < 0.7


def test_cooling_where_a_mask_says() -> None:
    where = torch.zeros(1, 8, 8, dtype=torch.bool)
    where[0, 5, 2] = True
    fine, coarse = cool_latents([torch.ones(2, 3, 8, 8), torch.ones(2, 4, 2, 2)], where, 0.25)
    assert (fine == 0.25).sum() == 2 * 3
    assert (coarse == 0.25).sum() == 2 * 4
    assert float(coarse[0, 0, 1, 0]) == 0.25
    with pytest.raises(ValueError, match="factor must lie in"):
        cool_latents([], where, 2.0)


def test_projection_is_consistent_and_keeps_what_is() -> None:
    task = SuperResolution(4)
    truth, other = torch.rand(1, 3, 32, 32).double(), torch.rand(2, 3, 32, 32).double()
    y = downsample(truth, 4)
    projected = project_onto_observation(other, y, task.forward, task.pseudo_inverse)
    torch.testing.assert_close(downsample(projected, 4), y.expand(2, -1, -1, -1), atol=1e-6, rtol=0)
    again = project_onto_observation(projected, y, task.forward, task.pseudo_inverse)
    torch.testing.assert_close(again, projected, atol=1e-6, rtol=0)


def test_the_measure_compares_with_the_plain_way() -> None:
    model = flow()

    def clamped() -> Tensor:
        with clamp_inverse(model, max_gain=10.0):
            return sample(model)

    rows = measure_guards(
        model, {"none": lambda: sample(model), "gain at most 10": clamped}, plain="none"
    )
    none, clamp = rows
    assert none.change == 0
    assert none.onsets > 0
    assert none.faulty is not None and none.faulty > 0
    assert clamp.onsets == 0
    assert clamp.largest < none.largest / 100
    assert clamp.change < 1e-6  # elsewhere nothing changes
    assert math.isfinite(clamp.seconds)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="max_gain must be at least 1"):
        clamp_inverse(flow(), max_gain=0.5)
    splines = rnn.ConditionalFlow([rnn.flow_step(4, 2, rnn.ModifiedRQSpline(), spatial_dims=0)])
    with pytest.raises(ValueError, match="no affine layer"):
        clamp_inverse(splines, max_gain=5.0)
    with pytest.raises(ValueError, match="no name in model"):
        hold_scale(flow(), "levels.9")


def test_samples_that_no_monitor_saw_are_not_called_healthy() -> None:
    model, latents = planted_flow(2), [torch.ones(3, 4, 12, 12)]
    with pytest.raises(ValueError, match="decode called no layer of the model"):
        resample_onsets(model, lambda given: given[0], latents)
    with pytest.raises(ValueError, match=r"decode must sample all 6 in one call .* made 3"):
        resample_onsets(model, lambda z: torch.cat([model.inverse(z)[0]] * 2), latents)
    with pytest.raises(TypeError, match=r"latents must be a sequence of tensors"):
        resample_onsets(model, lambda z: model.inverse(z)[0], latents[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"guarded\['none'\] called no layer"):
        measure_guards(model, {"none": lambda: latents[0]}, plain="none")


def test_where_to_cool_is_a_mask_of_positions() -> None:
    latents = [torch.ones(2, 3, 4, 4)]
    with pytest.raises(TypeError, match=r"where must be of torch.bool, got torch.float32"):
        cool_latents(latents, torch.randn(2, 4, 4), 0.5)
    with pytest.raises(ValueError, match=r"where must have shape .* by \.any\(dim=1\)"):
        cool_latents(latents, torch.ones(2, 3, 4, 4, dtype=torch.bool), 0.5)
    with pytest.raises(ValueError, match=r"where must have shape"):
        cool_latents(latents, torch.ones(3, 4, 4, dtype=torch.bool), 0.5)


def test_an_observation_of_another_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"observation must have the shape of forward\(samples\)"):
        project_onto_observation(
            torch.rand(1, 3, 8, 8), torch.rand(1, 3, 3, 3), lambda x: x, lambda y: y
        )
