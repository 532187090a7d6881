"""Sampling: in pieces, with and without gradients, with densities, at a temperature for each."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow.nn import (
    ActNorm,
    ConditionalFlow,
    Coupling,
    Injector,
    InvertibleConv1x1,
    ModifiedRQSpline,
    RQSplineAutoregressive,
    RQSplineCoupling,
    Split,
    Squeeze,
    flow_step,
    sampling,
)
from tests.nn.checks import normal, perturbed
from tests.nn.two_level_flow import two_level_flow
from tests.support.allocations import peak

D, CONTEXT = 5, 3


def vectors(context: int) -> ConditionalFlow:
    layers: list[nn.Module] = [
        ActNorm(D),
        InvertibleConv1x1(D),
        RQSplineCoupling(D, context, spatial_dims=0, hidden_channels=16),
        RQSplineAutoregressive(D, context, hidden_features=16),
    ]
    return perturbed(ConditionalFlow([layers]), 0.2).float().eval()


class TwoSizes(nn.Module):
    def forward(self, low: Tensor) -> list[Tensor]:
        return [low, nn.functional.avg_pool2d(low, 2)]


def pictures() -> ConditionalFlow:
    options: Any = {"hidden_channels": 8}
    levels = [
        [Squeeze(2), *flow_step(4, CONTEXT, ModifiedRQSpline(), **options), Split(4, CONTEXT)],
        [Squeeze(2), *flow_step(8, CONTEXT, ModifiedRQSpline(), lu=False, **options)],
    ]
    return perturbed(ConditionalFlow(levels, TwoSizes()), 0.1).float().eval()


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# How to make a flow, the shape of the contexts, samples of each.
CASES: dict[str, tuple[Any, Any, int]] = {
    "vectors": (lambda: vectors(0), None, 23),
    "of contexts": (lambda: vectors(CONTEXT), (3, CONTEXT), 23),
    "of more contexts than samples": (lambda: vectors(CONTEXT), (23, CONTEXT), 3),
    "pictures": (pictures, (2, CONTEXT, 8, 8), 7),
    "pictures by turns": (pictures, (7, CONTEXT, 8, 8), 2),
}
each_case = pytest.mark.parametrize("case", CASES)


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pieces_have_the_bits_of_the_whole(
    case: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, shape, number = CASES[case]
    flow = make().to(dtype)
    context = None if shape is None else torch.randn(shape, dtype=dtype)
    for block in (2**18, 1000, 20, 1):  # one block, two, several with a remainder, one a sample
        monkeypatch.setattr(sampling, "CPU_BLOCK", block)
        whole = flow.sample(number, context, generator=seeded())
        leading = (number,) if shape is None else (shape[0], number)
        assert whole.shape[: len(leading)] == leading
        for batch_size in (1, 2, 3, 7, 16, 1000):
            pieces = flow.sample(number, context, generator=seeded(), batch_size=batch_size)
            assert torch.equal(pieces, whole), batch_size


@each_case
def test_blocks_give_what_one_pass_gives(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample by sample, latents and context belong together; to float64's rounding."""
    make, shape, number = CASES[case]
    flow = make().double()
    context = None if shape is None else normal(*shape)
    monkeypatch.setattr(sampling, "CPU_BLOCK", 20)
    samples = flow.sample(number, context, temperature=0.7, generator=seeded())
    condition = None if context is None else flow.condition(context)
    shapes = flow.latent_shapes(() if samples.dim() < 4 else samples.shape[-2:])
    block = sampling.block_size(shapes, torch.device("cpu"))
    order, source = sampling.Order(number, condition, block), seeded()
    seen = 0
    for each in order.blocks():
        size, part = each.stop - each.start, slice(each.start, each.stop)
        drawn = [torch.randn(size, *one, generator=source, dtype=samples.dtype) for one in shapes]
        if context is None:
            x, given = samples[part], None
        elif order.by_turns:
            x, given = samples[part, each.group], context[part]
        else:
            x, given = samples[each.group, part], context[each.group : each.group + 1]
        expected = [0.7 * latent for latent in drawn]
        torch.testing.assert_close(list(flow(x, given)[0]), expected, atol=1e-7, rtol=1e-7)
        seen += size
    assert seen == samples.shape[: 1 if context is None else 2].numel()


def test_the_peak_of_memory_is_the_stated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CPU_BLOCK", 2**13)
    flow, number = ConditionalFlow([[RQSplineCoupling(8, spatial_dims=0)]]).eval(), 100_000
    block = sampling.block_size([(8,)], torch.device("cpu"))
    assert block == 1024
    with torch.no_grad():
        work = peak(lambda: flow.inverse((torch.randn(block, 8),)))
    result = number * 8 * 4
    whole = peak(lambda: flow.sample(number))
    pieces = peak(lambda: flow.sample(number, batch_size=10_000))
    slack = 2**17
    assert result <= pieces < result + 10 * block * 8 * 4 + work + slack
    assert 2 * result <= whole < 2 * result + work + slack
    assert work + slack < result / 2  # or the above would say nothing


def test_a_block_holds_as_many_samples_as_fit() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert sampling.block_size([(8,)], cpu) == 2**15
    assert sampling.block_size([(6, 80, 80), (96, 20, 20)], cpu) == 2  # 3 would fit
    assert sampling.block_size([(3, 1000, 1000)], cpu) == 1
    assert sampling.block_size([(8,)], gpu) == 2**18


def test_sample_is_without_gradients_and_rsample_with() -> None:
    flow = vectors(CONTEXT).double()
    context = normal(2, CONTEXT).requires_grad_()
    samples = flow.sample(4, context, generator=seeded())
    assert not samples.requires_grad
    reparametrised = flow.rsample(4, context, generator=seeded())
    torch.testing.assert_close(reparametrised.detach(), samples, atol=1e-9, rtol=1e-9)
    # Of the first context's samples, the gradient is that of the inverse.
    latents = torch.randn(4, D, generator=seeded(), dtype=torch.float64)
    inverse = flow.inverse((latents,), context[:1])[0]
    leaves = [context, *flow.parameters()]
    expected = torch.autograd.grad(inverse.square().sum(), leaves, allow_unused=True)
    found = torch.autograd.grad(reparametrised[0].square().sum(), leaves, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@each_case
def test_densities_come_with_the_samples(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CPU_BLOCK", 40)
    make, shape, number = CASES[case]
    flow = make().double()
    context = None if shape is None else normal(*shape)
    samples, density = flow.sample_and_log_prob(
        number, context, temperature=0.5, generator=seeded(), batch_size=2
    )
    assert torch.equal(samples, flow.sample(number, context, temperature=0.5, generator=seeded()))
    expected = (
        flow.log_prob(samples)
        if context is None
        else torch.stack([flow.log_prob(samples[:, i], context) for i in range(number)], dim=1)
    )
    torch.testing.assert_close(density, expected.detach(), atol=1e-7, rtol=1e-7)
    again = flow.rsample_and_log_prob(number, context, temperature=0.5, generator=seeded())
    torch.testing.assert_close(
        [each.detach() for each in again], [samples, density], atol=1e-9, rtol=1e-9
    )
    assert all(each.requires_grad for each in again) and not density.requires_grad


def test_a_reverse_divergence_trains() -> None:
    """KL(flow || N(1, 1)) of an identity flow in one dimension: 0.5, with its gradient."""
    norm = ActNorm(1).double().eval()
    flow = ConditionalFlow([[norm]])
    x, density = flow.rsample_and_log_prob(200_000, generator=seeded())
    target = torch.distributions.Normal(1.0, 1.0).log_prob(x).sum(1)
    divergence = (density - target).mean()
    torch.testing.assert_close(divergence.detach(), torch.tensor(0.5).double(), atol=0.01, rtol=0)
    divergence.backward()
    # x = z - bias: the divergence is (1 + bias)^2 / 2.
    assert norm.bias.grad is not None
    torch.testing.assert_close(norm.bias.grad, torch.ones(1).double(), atol=0.01, rtol=0)


def test_a_temperature_for_each_latent() -> None:
    flow = pictures().double()
    context = normal(1, CONTEXT, 8, 8)
    flat = flow.sample(2000, context, temperature=[0.0, 0.5], generator=seeded())[0]
    first, last = flow(flat, context)[0]
    assert bool((first.abs() < 1e-9).all())
    torch.testing.assert_close(last.std(), torch.tensor(0.5).to(last), atol=0.01, rtol=0)
    same = flow.sample(2, context, temperature=(0.7, 0.7), generator=seeded())
    assert torch.equal(same, flow.sample(2, context, temperature=0.7, generator=seeded()))
    with pytest.raises(ValueError, match="2 of them, one for each latent of this flow, got 3"):
        flow.sample(2, context, temperature=[1.0, 1.0, 1.0])
    with pytest.raises(TypeError, match=r"temperature\[1\] must be a number, got '1'"):
        flow.sample(2, context, temperature=[1.0, "1"])  # type: ignore[list-item]
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match="batch_size must be a whole number"):
            flow.sample(2, context, batch_size=wrong)  # type: ignore[arg-type]


def test_no_contexts_have_no_samples() -> None:
    flow = pictures()
    nothing = torch.zeros(0, CONTEXT, 8, 8)
    assert flow.sample(4, nothing).shape == (0, 4, 1, 16, 16)
    assert flow.rsample(4, nothing).shape == (0, 4, 1, 16, 16)
    samples, density = flow.sample_and_log_prob(4, nothing)
    assert samples.shape[:2] == density.shape == (0, 4)


def test_what_x_must_be_is_known() -> None:
    flow = pictures()
    assert (flow.channels, flow.size_multiple) == (1, 4)
    assert flow.latent_shapes((8, 12)) == [(2, 4, 6), (8, 2, 3)]
    assert (vectors(0).channels, vectors(0).size_multiple) == (D, 1)
    assert vectors(0).latent_shapes() == [(D,)]


def test_a_step_takes_a_plain_convolution() -> None:
    mixing = [flow_step(4, 0, ModifiedRQSpline(), lu=lu)[1] for lu in (True, False)]
    assert [isinstance(mix, InvertibleConv1x1) and mix.lu for mix in mixing] == [True, False]


def test_conditions_are_sliced() -> None:
    layers = [Injector(D, CONTEXT, spatial_dims=0), Coupling(D, CONTEXT, spatial_dims=0)]
    flow, context = perturbed(ConditionalFlow([layers])), normal(6, CONTEXT)
    condition, x = flow.condition(context), normal(3, D)
    assert len(condition[2:5]) == 3 and condition[:] is condition
    torch.testing.assert_close(
        flow.log_prob(x, condition=condition[2:5]), flow.log_prob(x, context[2:5])
    )
    with pytest.raises(IndexError, match="steps of 1"):
        condition[::2]
    with pytest.raises(IndexError, match="out of range for 6 contexts"):
        condition[6]


def test_bits_per_dimension() -> None:
    flow, x = vectors(0), torch.randn(4, D)
    torch.testing.assert_close(flow.bits_per_dim(x), -flow.log_prob(x) / (D * math.log(2)))


def test_sampling_from_a_reused_condition() -> None:
    flow = two_level_flow(ModifiedRQSpline())
    low = normal(3, 3, 4, 2)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    samples = flow.sample(4, low, temperature=0.7, generator=generator())
    assert samples.shape == (3, 4, 3, 8, 4)
    condition = flow.condition(low)
    again = flow.sample(4, condition=condition, temperature=0.7, generator=generator())
    assert torch.equal(samples, again)
    # Back through the flow, with a copied context: the very latents, at that temperature.
    latents, _ = flow(samples[1], low[1:2].repeat(4, 1, 1, 1))
    source = generator()
    drawn: list[list[Tensor]] = []
    for _ in range(3):
        shapes = ((4, 6, 4, 2), (4, 24, 2, 1))
        drawn.append([torch.randn(s, generator=source, dtype=torch.float64) for s in shapes])
    expected = [0.7 * latent for latent in drawn[1]]
    torch.testing.assert_close(list(latents), expected, atol=1e-8, rtol=1e-8)


def test_one_sample_of_each_context_is_its_own() -> None:
    flow = two_level_flow(ModifiedRQSpline())
    low = normal(3, 3, 4, 2)
    samples = flow.sample(1, low, temperature=0.0)
    assert samples.shape == (3, 1, 3, 8, 4)
    many = flow.sample(2, low, temperature=0.0)
    torch.testing.assert_close(many, samples.expand(3, 2, 3, 8, 4), atol=1e-9, rtol=1e-9)
    assert not torch.allclose(samples[0], samples[1])
