"""Flows with and without context, over (N, D) and pictures: shapes, projections, errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow.nn import (
    ActNorm,
    Affine,
    ConditionalFlow,
    ConditionalLayer,
    Conditioner,
    Coupling,
    ElementwiseTransform,
    InvertibleConv1x1,
    ModifiedRQSpline,
    RQSpline,
    RQSplineAutoregressive,
    RQSplineCoupling,
    RQSplineInjector,
    Split,
    Squeeze,
    flow_step,
)
from tests.nn.checks import TRANSFORMS, assert_logabsdet, normal, perturbed
from tests.nn.two_level_flow import two_level_flow


def vector_flow(context: int) -> ConditionalFlow:
    """Over (N, 5); 3 of the 5 leave after the first level."""
    first = [*flow_step(5, context, RQSpline(), hidden_channels=8, spatial_dims=0)]
    first.append(Split(5, context, spatial_dims=0))
    second = [RQSplineCoupling(2, context, spatial_dims=0, reverse=turn) for turn in (False, True)]
    last = RQSplineAutoregressive(2, context)
    flow = perturbed(ConditionalFlow([first, [*second, last]], Twice() if context else None), 0.1)
    return flow.eval()


class Twice(nn.Module):
    """The same features for both levels."""

    def forward(self, context: Tensor) -> list[Tensor]:
        return [context, context]


def picture_flow() -> ConditionalFlow:
    """Without context, over (N, 1, 4a, 4b)."""
    levels = [
        [Squeeze(), *flow_step(4, 0, ModifiedRQSpline(), hidden_channels=8), Split(4)],
        [Squeeze(), *flow_step(8, 0, ModifiedRQSpline(), hidden_channels=8)],
    ]
    return perturbed(ConditionalFlow(levels), 0.1).eval()


@pytest.mark.parametrize("context_features", [0, 3])
def test_vectors(context_features: int) -> None:
    flow = vector_flow(context_features)
    x = normal(4, 5)
    context = normal(4, context_features) if context_features else None
    latents, logabsdet = flow(x, context)
    assert [latent.shape for latent in latents] == [(4, 3), (4, 2)]
    back, minus = flow.inverse(latents, context)
    torch.testing.assert_close((back, minus), (x, -logabsdet), atol=1e-9, rtol=1e-9)

    def flat_latents(one: Tensor) -> Tensor:
        return torch.cat(flow(one, None if context is None else context[:1])[0], dim=1)

    assert_logabsdet(flat_latents, x, logabsdet)
    density = torch.distributions.Normal(0.0, 1.0).log_prob(torch.cat(latents, dim=1)).sum(dim=1)
    torch.testing.assert_close(flow.log_prob(x, context), density + logabsdet)


def test_pictures_without_context() -> None:
    flow = picture_flow()
    x = flow.sample(3, size=(8, 4))
    assert x.shape == (3, 1, 8, 4)
    latents, logabsdet = flow(x)
    assert [latent.shape[1:] for latent in latents] == [(2, 4, 2), (8, 2, 1)]
    back, minus = flow.inverse(latents)
    torch.testing.assert_close((back, minus), (x, -logabsdet), atol=1e-9, rtol=1e-9)


def test_samples_without_context_are_the_latents_taken_back() -> None:
    flow = vector_flow(0)
    samples = flow.sample(6, temperature=0.5, generator=torch.Generator().manual_seed(3))
    source = torch.Generator().manual_seed(3)
    drawn = [torch.randn(6, n, generator=source, dtype=torch.float64) for n in (3, 2)]
    torch.testing.assert_close(flow(samples)[0], tuple(0.5 * latent for latent in drawn))


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7])
def test_each_sample_is_of_its_own_context(num_samples: int) -> None:
    """Fewer samples than contexts or more: x and its context give back standard latents."""
    flow, context = vector_flow(3), normal(3, 3)
    generator = torch.Generator().manual_seed(0)
    samples = flow.sample(num_samples, context, temperature=0.0, generator=generator)
    assert samples.shape == (3, num_samples, 5)
    for index in range(3):
        latents, _ = flow(samples[index], context[index : index + 1])
        for latent in latents:
            torch.testing.assert_close(latent, torch.zeros_like(latent), atol=1e-9, rtol=0)
    assert not torch.allclose(samples[0], samples[1])


def test_a_flow_of_one_context_and_many_points() -> None:
    flow, context, x = vector_flow(3), normal(1, 3), normal(6, 5)
    once = flow.log_prob(x, context)
    torch.testing.assert_close(once, flow.log_prob(x, context.repeat(6, 1)))
    torch.testing.assert_close(once, flow.log_prob(x, condition=flow.condition(context)))


def test_features_of_size_1_serve_every_position() -> None:
    layers = [
        RQSplineInjector(2, 3, hidden_channels=4, kernel_size=1),
        RQSplineCoupling(2, 3, hidden_channels=4, kernel_size=1),
    ]
    flow = perturbed(ConditionalFlow([layers]))
    context = normal(2, 3, 1, 1)
    x = flow.sample(3, context, size=(4, 5))
    assert x.shape == (2, 3, 2, 4, 5)
    full = context.expand(2, 3, 4, 5)
    torch.testing.assert_close(flow.log_prob(x[:, 0], context), flow.log_prob(x[:, 0], full))


def by_hand(flow: ConditionalFlow, x: Tensor, context: Tensor) -> Tensor:
    """log_prob, each layer projecting for itself."""
    z, total, latents = x, torch.zeros(()), []
    for level in flow.levels:
        for layer in level.get_submodule("layers").children():
            z, change = layer(z, context)
            total = total + change
            if isinstance(layer, Split):
                z, latent = layer.divide(z)
                latents.append(latent)
    return total + flow.latent_log_prob([*latents, z])


def test_gradients_of_projecting_together_are_those_of_projecting_apart() -> None:
    flow, x, context = vector_flow(3), normal(4, 5), normal(4, 3)
    inputs = [x.requires_grad_(), context.requires_grad_()]
    leaves = {"x": x, "context": context, **dict(flow.named_parameters())}
    together, apart = flow.log_prob(*inputs), by_hand(flow, x, context)
    torch.testing.assert_close(together, apart, atol=1e-10, rtol=1e-10)
    gradients = [torch.autograd.grad(way.sum(), list(leaves.values())) for way in (together, apart)]
    for name, one, other in zip(leaves, *gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
        assert bool(one.any()), name


def adapt_by_hook(conditioner: Conditioner) -> None:
    assert conditioner.context_layer is not None
    conditioner.context_layer.register_forward_hook(lambda module, inputs, output: 2 * output)


def adapt_by_parametrization(conditioner: Conditioner) -> None:
    assert conditioner.context_layer is not None
    nn.utils.parametrizations.weight_norm(conditioner.context_layer)
    perturbed(conditioner)


def adapt_by_padding(conditioner: Conditioner) -> None:
    circular = nn.Conv2d(3, 64, 3, padding=1, padding_mode="circular")
    conditioner.context_layer = circular.double()


@pytest.mark.parametrize("adapt", [adapt_by_hook, adapt_by_parametrization, adapt_by_padding])
def test_a_users_change_to_the_contexts_layer_counts(adapt: Any) -> None:
    layers = [perturbed(RQSplineCoupling(2, 3, reverse=turn)) for turn in (False, True)]
    before = by_hand(
        flow := ConditionalFlow([layers]), x := normal(2, 2, 4, 4), c := normal(2, 3, 4, 4)
    )
    adapt(layers[1].conditioner)
    expected = by_hand(flow, x, c)
    assert not torch.allclose(before, expected)
    torch.testing.assert_close(flow.log_prob(x, c), expected)


class Doubled(RQSplineInjector):
    """A user's change to the layer's own projection."""

    def project(self, context: Tensor | None) -> Any:
        return 2 * super().project(context)


def test_a_layers_own_projection_counts() -> None:
    layer = perturbed(Doubled(2, 3, spatial_dims=0))
    x, context = normal(2, 2), normal(2, 3)
    flow = ConditionalFlow([[layer]])
    torch.testing.assert_close(flow.log_prob(x, context), by_hand(flow, x, context))
    plain = RQSplineInjector(2, 3, spatial_dims=0).double()
    plain.load_state_dict(layer.state_dict())
    assert not torch.allclose(
        flow.log_prob(x, context), by_hand(ConditionalFlow([[plain]]), x, context)
    )


class OwnLayer(nn.Module):
    """A layer of a user's: it shifts by the context's mean."""

    channels = 2

    def forward(
        self, z: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        assert context is not None
        shift = context.mean(dim=1, keepdim=True)
        return z - shift if inverse else z + shift, z.new_zeros(len(z))


def test_a_users_own_layer_gets_the_context() -> None:
    flow = ConditionalFlow([[ActNorm(2).double().eval(), OwnLayer()]])
    x, context = normal(3, 2), normal(3, 3)
    (latent,), _ = flow(x, context)
    torch.testing.assert_close(latent, x + context.mean(dim=1, keepdim=True))
    samples = flow.sample(5, context, temperature=0.0)
    torch.testing.assert_close(samples, -context.mean(dim=1)[:, None, None].expand(3, 5, 2))


def test_under_autocast_only_the_conditioners_are_in_half_precision() -> None:
    torch.manual_seed(1)
    flow = ConditionalFlow([[*flow_step(6, 3, ModifiedRQSpline(), spatial_dims=0)]])
    flow = perturbed(flow, 0.1).float().eval()
    x, context = torch.randn(64, 6), torch.randn(64, 3)
    expected = flow.log_prob(x, context)
    with torch.autocast("cpu", torch.bfloat16):
        latents, logabsdet = flow(x, context)
        density = flow.log_prob(x, context)
        back, _ = flow.inverse(latents, context)
    assert {latents[0].dtype, logabsdet.dtype, density.dtype, back.dtype} == {torch.float32}
    torch.testing.assert_close(density, expected, atol=0.2, rtol=0)
    assert not torch.equal(density, expected)
    # Of two steps the coupling's conditioner sees the very same half: x comes back to float32's.
    torch.testing.assert_close(back, x, atol=1e-4, rtol=0)


def test_errors_are_sentences() -> None:
    flow, x, context = vector_flow(3), normal(2, 5), normal(2, 3)
    condition = flow.condition(context)
    with pytest.raises(ValueError, match="needs a context, or a condition"):
        flow.log_prob(x)
    with pytest.raises(ValueError, match="not both"):
        flow.log_prob(x, context, condition=condition)
    with pytest.raises(ValueError, match="x must have 5 channels"):
        flow.log_prob(normal(2, 4), context)
    with pytest.raises(ValueError, match="context must have 3 channels"):
        flow.log_prob(x, normal(2, 4))
    with pytest.raises(ValueError, match="batch size of z, or 1"):
        flow.log_prob(normal(3, 5), context)
    with pytest.raises(ValueError, match="one for each level that ends with a Split"):
        flow.inverse(flow(x, context)[0][:1], context)
    for number in (0, -1, 2.0):
        with pytest.raises(ValueError, match="num_samples must be a whole number"):
            flow.sample(number, context)  # type: ignore[arg-type]
    for temperature in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be a number of at least 0"):
            flow.sample(2, context, temperature=temperature)
    pictures = ConditionalFlow([[RQSplineCoupling(4, 3, hidden_channels=4)]])
    with pytest.raises(ValueError, match=r"has 2 and \(4, 4\), z has 2 and \(8, 8\)"):
        pictures.log_prob(torch.zeros(2, 4, 8, 8), torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"pictures .* got a spatial size of \(\)"):
        picture_flow().sample(2)
    with pytest.raises(ValueError, match="multiples of 4"):
        picture_flow().log_prob(normal(2, 1, 7, 8))
    with pytest.raises(ValueError, match="factor"):
        Squeeze(0)
    for layer in (ActNorm(3), InvertibleConv1x1(3)):
        with pytest.raises(ValueError, match="z must have 3 channels"):
            layer(torch.zeros(2, 4))


def test_conditional_layers_say_whether_they_take_a_context() -> None:
    for flow, expected in ((vector_flow(3), 3), (vector_flow(0), 0)):
        layers = [layer for layer in flow.modules() if isinstance(layer, ConditionalLayer)]
        assert {layer.context_channels for layer in layers} == {expected}
        assert flow.needs_context == (expected > 0)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_flow_inverts_and_its_density_is_the_change_of_variables(
    transform: ElementwiseTransform,
) -> None:
    flow = two_level_flow(transform)
    x, low = normal(2, 3, 8, 4), normal(2, 3, 4, 2)
    latents, logabsdet = flow(x, low)
    assert [latent.shape[1:] for latent in latents] == [(6, 4, 2), (24, 2, 1)]
    back, minus = flow.inverse(latents, low)
    torch.testing.assert_close(back, x, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(minus, -logabsdet, atol=1e-8, rtol=1e-8)

    def flat_latents(one: Tensor) -> Tensor:
        return torch.cat([latent.flatten() for latent in flow(one, low[:1])[0]])

    assert_logabsdet(flat_latents, x, logabsdet)
    density = torch.distributions.Normal(0.0, 1.0).log_prob(flat_latents(x[:1])).sum()
    torch.testing.assert_close(flow.log_prob(x, low)[0], density + logabsdet[0])


@pytest.mark.parametrize("copy_of", ["state_dict", "deepcopy", "pickle"])
def test_a_copied_flow_is_the_same_flow(copy_of: str) -> None:
    flow = two_level_flow(Affine())
    if copy_of == "state_dict":
        other = two_level_flow(Affine())
        other.load_state_dict(flow.state_dict())
    else:
        other = copy.deepcopy(flow) if copy_of == "deepcopy" else pickle.loads(pickle.dumps(flow))
    x, low = normal(2, 3, 8, 4), normal(2, 3, 4, 2)
    assert torch.equal(other.log_prob(x, low), flow.log_prob(x, low))


def test_wrong_uses_are_told_apart() -> None:
    flow = two_level_flow(Affine())
    with pytest.raises(ValueError, match="needs a context"):
        flow.sample(2)
    with pytest.raises(ValueError, match="2 level"):
        ConditionalFlow([[Coupling(4, 4)], [Coupling(4, 4)]]).condition(normal(1, 4, 4, 2))
    with pytest.raises(ValueError, match="must not end with a Split"):
        ConditionalFlow([[Split(4, 2)]])
    with pytest.raises(ValueError, match=r"levels\[0\] must have at least one layer"):
        ConditionalFlow([[]])
    with pytest.raises(ValueError, match="levels must have at least one level"):
        ConditionalFlow([])
