"""Layers of flows: they invert, their log-determinants are right, and projecting once is exact."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustflow.nn import (
    ActNorm,
    Affine,
    ConditionalFlow,
    Conditioner,
    Coupling,
    ElementwiseTransform,
    Injector,
    InvertibleConv1x1,
    ModifiedRQSpline,
    Split,
    Squeeze,
    flow_step,
)
from robustflow.nn.conditioner import project_together
from tests.nn.checks import assert_is_a_flow_layer, assert_logabsdet, normal, perturbed

TRANSFORMS = [
    Affine(),
    Affine(reciprocal=True),
    ModifiedRQSpline(),
    ModifiedRQSpline.published(),
]
CHANNELS, CONTEXT_CHANNELS = 5, 3


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
@pytest.mark.parametrize("spatial", [(), (4,), (4, 3), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("kind", [Injector, Coupling])
def test_conditional_layers(
    kind: type[Injector] | type[Coupling],
    transform: ElementwiseTransform,
    spatial: tuple[int, ...],
) -> None:
    layer = kind(
        CHANNELS, CONTEXT_CHANNELS, transform, hidden_channels=8, spatial_dims=len(spatial)
    )
    z, context = normal(2, CHANNELS, *spatial), normal(2, CONTEXT_CHANNELS, *spatial)
    assert_is_a_flow_layer(perturbed(layer), z, context)


@pytest.mark.parametrize("transform", [ModifiedRQSpline(), ModifiedRQSpline.published()], ids=repr)
@pytest.mark.parametrize("kind", [Injector, Coupling])
def test_a_new_spline_layer_is_the_identity(
    kind: type[Injector] | type[Coupling], transform: ElementwiseTransform
) -> None:
    z, context = torch.randn(2, CHANNELS, 4, 4), torch.randn(2, CONTEXT_CHANNELS, 4, 4)
    y, logabsdet = kind(CHANNELS, CONTEXT_CHANNELS, transform)(z, context)
    torch.testing.assert_close(y, z, atol=1e-6, rtol=0)
    torch.testing.assert_close(logabsdet, torch.zeros(2), atol=1e-4, rtol=0)


def test_coupling_keeps_the_first_half_and_reads_no_other() -> None:
    coupling = perturbed(Coupling(CHANNELS, CONTEXT_CHANNELS))
    z, context = normal(2, CHANNELS, 4, 4), normal(2, CONTEXT_CHANNELS, 4, 4)
    y, _ = coupling(z, context)
    assert torch.equal(y[:, :2], z[:, :2])
    changed = z.clone()
    changed[:, 3] += 1
    assert torch.equal(coupling(changed, context)[0][:, 2], y[:, 2])


def test_layers_of_one_context_serve_a_batch_as_copies_of_it_would() -> None:
    z, context = normal(4, CHANNELS, 4, 4), normal(1, CONTEXT_CHANNELS, 4, 4)
    for kind in (Injector, Coupling):
        layer = perturbed(kind(CHANNELS, CONTEXT_CHANNELS))
        one = layer(z, context, inverse=True)
        copies = layer(z, context.repeat(4, 1, 1, 1), inverse=True)
        torch.testing.assert_close(one, copies, atol=1e-12, rtol=1e-12)


class OwnConditioner(nn.Module):
    """What a user might write: one part, no project."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2 + CONTEXT_CHANNELS, out_channels, 3, padding=1)

    def forward(self, z1: Tensor, context: Tensor) -> Tensor:
        return self.layer(torch.cat([z1, context], dim=1))


def test_any_module_can_be_the_conditioner() -> None:
    own_coupling = OwnConditioner(3 * 4)
    own_injector = nn.Conv2d(CONTEXT_CHANNELS, CHANNELS * 4, 1)
    z, context = normal(2, CHANNELS, 4, 4), normal(2, CONTEXT_CHANNELS, 4, 4)
    injector = perturbed(Injector(CHANNELS, CONTEXT_CHANNELS, conditioner=own_injector))
    coupling = perturbed(Coupling(CHANNELS, CONTEXT_CHANNELS, conditioner=own_coupling))
    assert_is_a_flow_layer(injector, z, context)
    assert_is_a_flow_layer(coupling, z, context)
    flow = ConditionalFlow([[injector, coupling]])
    expected = coupling(injector(z, context)[0], context)[0]
    torch.testing.assert_close(flow(z, context)[0][0], expected)
    assert flow.sample(3, context).shape == (2, 3, CHANNELS, 4, 4)


def test_actnorm_takes_its_state_from_the_first_batch_only() -> None:
    norm = ActNorm(3)
    batch = 5 * torch.randn(16, 3, 4, 4) + torch.tensor([-2.0, 0.0, 7.0]).view(1, 3, 1, 1)
    norm.eval()
    assert torch.equal(norm(batch)[0], batch)  # evaluation does not set anything
    norm.train()
    y, _ = norm(batch)
    torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(norm(2 * batch)[0], norm(2 * batch)[0])
    scale = norm.log_scale.detach().clone()
    norm(3 * batch)
    assert torch.equal(norm.log_scale, scale)


@pytest.mark.parametrize("copy_of", ["state_dict", "deepcopy", "pickle"])
def test_a_copied_actnorm_stays_initialised(copy_of: str) -> None:
    norm = ActNorm(3)
    norm(5 * torch.randn(16, 3))
    if copy_of == "state_dict":
        other = ActNorm(3)
        other.load_state_dict(norm.state_dict())
    else:
        other = copy.deepcopy(norm) if copy_of == "deepcopy" else pickle.loads(pickle.dumps(norm))
    other(torch.randn(16, 3))
    assert torch.equal(other.log_scale, norm.log_scale)


def test_an_uninitialised_state_initialises_after_loading() -> None:
    norm, fresh = ActNorm(3), ActNorm(3).state_dict()
    norm(5 * torch.randn(16, 3))
    norm.load_state_dict(fresh)
    y, _ = norm(9 * torch.randn(64, 3))
    torch.testing.assert_close(y.std(dim=0, correction=0), torch.ones(3), atol=1e-5, rtol=0)


def plain_mixing(channels: int) -> InvertibleConv1x1:
    return InvertibleConv1x1(channels, lu=False)


@pytest.mark.parametrize("spatial", [(), (3,), (4, 2)], ids=str)
@pytest.mark.parametrize("kind", [ActNorm, InvertibleConv1x1, plain_mixing])
def test_unconditional_layers(kind: Callable[[int], nn.Module], spatial: tuple[int, ...]) -> None:
    layer = perturbed(kind(CHANNELS), 0.1).eval()
    assert_is_a_flow_layer(layer, normal(2, CHANNELS, *spatial), None)


@pytest.mark.parametrize("kind", [InvertibleConv1x1, plain_mixing])
def test_a_new_mixing_is_a_rotation_and_knows_its_determinant(
    kind: Callable[[int], InvertibleConv1x1],
) -> None:
    mix = kind(12).double()
    torch.testing.assert_close(
        mix.weight() @ mix.weight().T, torch.eye(12, dtype=torch.float64), atol=1e-6, rtol=0
    )
    perturbed(mix, 0.1)
    _, logabsdet = mix(normal(2, 12, 4, 5))
    expected = 20 * torch.linalg.slogdet(mix.weight()).logabsdet
    torch.testing.assert_close(logabsdet, expected.expand(2), atol=1e-9, rtol=1e-9)


def test_squeeze_moves_blocks_into_channels() -> None:
    z = torch.arange(16.0).view(1, 1, 4, 4)
    y, logabsdet = Squeeze(2)(z)
    assert y.shape == (1, 4, 2, 2) and y[0, :, 0, 0].tolist() == [0, 1, 4, 5]
    assert torch.equal(Squeeze(2)(y, inverse=True)[0], z) and logabsdet.tolist() == [0]


def test_split_is_a_bounded_layer_and_divides() -> None:
    split = perturbed(Split(CHANNELS, CONTEXT_CHANNELS, log_scale_bound=2.0), 0.3)
    z, context = normal(2, CHANNELS, 4, 4), normal(2, CONTEXT_CHANNELS, 4, 4)
    assert_is_a_flow_layer(split, z, context)
    kept, latent = split.divide(split(z, context)[0])
    assert torch.equal(kept, z[:, :2]) and latent.shape == (2, 3, 4, 4)
    _, logabsdet = split(z, 1e6 * context)  # absurd contexts: the bound, 3 * 16 values, holds
    assert bool((logabsdet.abs() <= 2 * 48).all())


def test_projecting_together_equals_projecting_one_by_one() -> None:
    conditioners = [
        perturbed(Conditioner(z_channels, 4, 6, hidden_channels=hidden))
        for z_channels, hidden in ((0, 8), (3, 8), (3, 16))
    ]
    context = normal(2, 4, 5, 5).requires_grad_()
    names = ("context_layer.weight", "context_layer.bias")
    leaves = [context, *(c.get_parameter(name) for c in conditioners for name in names)]
    together = project_together(conditioners, context)
    one_by_one = [conditioner.project(context) for conditioner in conditioners]
    torch.testing.assert_close(together, one_by_one, atol=1e-12, rtol=1e-12)
    gradients = [
        torch.autograd.grad(
            torch.cat([p.square().flatten() for p in way]).sum(), leaves, allow_unused=True
        )
        for way in (together, one_by_one)
    ]
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=1e-10)


class ScaledConditioner(Conditioner):
    """A user's change to what is projected."""

    def project(self, context: Tensor) -> Tensor:
        return super().project(3 * context)


def test_a_replaced_project_is_called_by_the_flow() -> None:
    own = ScaledConditioner(0, CONTEXT_CHANNELS, CHANNELS * 4)
    layers = [
        perturbed(Injector(CHANNELS, CONTEXT_CHANNELS, conditioner=own)),
        perturbed(Injector(CHANNELS, CONTEXT_CHANNELS)),
    ]
    z, context = normal(2, CHANNELS, 4, 4), normal(2, CONTEXT_CHANNELS, 4, 4)
    latents, _ = ConditionalFlow([layers])(z, context)
    torch.testing.assert_close(latents[0], layers[1](layers[0](z, context)[0], context)[0])


def test_conditioner_in_two_parts_is_a_convolution_of_the_concatenation() -> None:
    conditioner = perturbed(Conditioner(3, 4, 6, hidden_channels=8))
    z1, context = normal(2, 3, 5, 5), normal(2, 4, 5, 5)
    z_layer, context_layer = conditioner.z_layer, conditioner.context_layer
    assert isinstance(z_layer, nn.Conv2d) and isinstance(context_layer, nn.Conv2d)
    weight = torch.cat([z_layer.weight, context_layer.weight], dim=1)
    hidden = nn.functional.conv2d(
        torch.cat([z1, context], dim=1), weight, context_layer.bias, padding=1
    )
    torch.testing.assert_close(
        conditioner(z1, conditioner.project(context)), conditioner.trunk(hidden)
    )


class TwoLevelEncoder(nn.Module):
    """Features at the size of the low-resolution picture, and at half of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, low: Tensor) -> list[Tensor]:
        features = self.layer(low)
        return [features, nn.functional.avg_pool2d(features, 2)]


def two_level_flow(transform: ElementwiseTransform) -> ConditionalFlow:
    """3 channels at 8x4, then 12 at 4x2 of which 6 leave, then 24 at 2x1."""
    levels = [
        [Squeeze(), *flow_step(12, 4, transform, hidden_channels=8), Split(12, 4)],
        [Squeeze(), *flow_step(24, 4, transform, hidden_channels=8)],
    ]
    flow = perturbed(ConditionalFlow(levels, TwoLevelEncoder()), 0.1).eval()
    return flow


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


def test_flow_compiles_without_graph_breaks() -> None:
    flow = two_level_flow(ModifiedRQSpline())
    x, low = normal(2, 3, 8, 4), normal(2, 3, 4, 2)
    log_prob = torch.compile(flow.log_prob, fullgraph=True, backend="eager")
    torch.testing.assert_close(log_prob(x, low), flow.log_prob(x, low))
    inverse = torch.compile(flow.inverse, fullgraph=True, backend="eager")
    latents, _ = flow(x, low)
    torch.testing.assert_close(inverse(latents, low), flow.inverse(latents, low))


def test_torch_func_of_a_flow_compiles_without_graph_breaks() -> None:
    """A directional derivative and a gradient of the log-density."""
    flow = two_level_flow(Affine())
    x, low = normal(2, 3, 8, 4), normal(2, 3, 4, 2)

    def apply(x: Tensor) -> tuple[Tensor, ...]:
        def log_prob(x: Tensor) -> Tensor:
            return flow.log_prob(x, low).sum()

        return (*torch.func.jvp(log_prob, (x,), (x.cos(),)), torch.func.grad(log_prob)(x))

    torch._dynamo.reset()
    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), apply(x))


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
    with pytest.raises(ValueError, match="channels must be at least 2"):
        Coupling(1, 2)
    with pytest.raises(ValueError, match="odd"):
        Conditioner(2, 2, 2, kernel_size=2)
    with pytest.raises(ValueError, match="spatial_dims"):
        Conditioner(2, 2, 2, spatial_dims=4)
    with pytest.raises(ValueError, match="context"):
        Injector(4, 2)(torch.randn(2, 4))
