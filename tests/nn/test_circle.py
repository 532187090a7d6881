"""Flows on circles: turns, features without a jump, splines by channel, bases, whole tori."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, distributions, nn

from robustflow import functional as F
from robustflow.diagnostics import certify
from robustflow.nn import (
    Autoregressive,
    CircularBase,
    CircularShift,
    ConditionalFlow,
    Conditioner,
    Coupling,
    Injector,
    MaskedConditioner,
    PeriodicFeatures,
    PhaseShift,
    RQSpline,
    RQSplineAutoregressive,
    RQSplineCoupling,
    Split,
    Squeeze,
)
from robustflow.nn.circle import wrap
from tests.nn.checks import assert_is_a_flow_layer, normal, perturbed

PI = math.pi
MIXED: dict[str, Any] = {
    "tails": ("circular", "linear", "circular", "linear", "linear"),
    "tail_bound": (PI, 2.0, 1.0, 3.0, 2.5),
    "num_bins": 4,
}
D, CONTEXT = 5, 2


def angles(*shape: int) -> Tensor:
    return PI * (2 * torch.rand(shape, dtype=torch.float64) - 1)


def points(number: int) -> Tensor:
    """Where :data:`MIXED` has circles, on them."""
    circles = torch.tensor([PI, 0.0, 1.0, 0.0, 0.0]).double()
    return torch.where(circles > 0, circles / PI * angles(number, D), 2 * normal(number, D))


# wrapping


def test_wrapping_changes_no_angle_and_leaves_none_outside() -> None:
    for dtype in (torch.float32, torch.float64):
        k = torch.arange(-2001, 2002, dtype=dtype)
        z = torch.cat([k * PI, torch.nextafter(k * PI, k + 1e9), 30 * torch.randn(4000).to(dtype)])
        y = wrap(z[:, None], (PI,))[:, 0]
        assert bool((y.abs() <= torch.tensor(PI, dtype=dtype)).all())
        error = 8 * torch.finfo(dtype).eps * (1 + z.abs().double())
        for function in (torch.cos, torch.sin):
            difference = (function(y.double()) - function(z.double())).abs()
            assert bool((difference <= error).all())
        inside = z[z.abs() <= 3.14]
        assert torch.equal(wrap(inside[:, None], (PI,))[:, 0], inside)


def test_wrapping_has_the_gradient_of_the_identity() -> None:
    z = torch.tensor([[PI, -PI, 3 * PI, 0.3, 100.0, 5e3]]).T.requires_grad_()
    wrap(z, (PI,)).sum().backward()
    assert z.grad is not None and bool((z.grad == 1).all())


def test_wrapping_is_by_channel() -> None:
    z = torch.tensor([[4.0, 4.0, 4.0], [math.nan, math.nan, math.inf]])
    y = wrap(z, (PI, 1.5, None))
    torch.testing.assert_close(y[0], torch.tensor([4 - 2 * PI, 1.0, 4.0]))
    assert y.isnan().tolist() == [[False] * 3, [True, True, False]] and y[1, 2] == math.inf


# the layer


@pytest.mark.parametrize("spatial", [(), (3,), (2, 3)])
def test_a_phase_shift_turns(spatial: tuple[int, ...]) -> None:
    layer = PhaseShift(3, bound=[PI, 1.0, None]).double()
    phase = torch.tensor([2.0, 0.3, 5.0]).double()
    with torch.no_grad():
        layer.phase.copy_(phase)
    z = 0.9 * (2 * torch.rand(4, 3, *spatial, dtype=torch.float64) - 1)
    y, logabsdet = layer(z)
    moved = z + phase.view(-1, *[1] * len(spatial))
    assert bool((y[:, 0].abs() <= PI).all()) and bool((y[:, 1].abs() <= 1).all())
    torch.testing.assert_close(torch.cos(y[:, 0]), torch.cos(moved[:, 0]))
    torch.testing.assert_close(torch.sin(PI * y[:, 1]), torch.sin(PI * moved[:, 1]))
    torch.testing.assert_close(y[:, 2], moved[:, 2])
    assert logabsdet.tolist() == [0.0] * 4
    back, _ = layer(y, inverse=True)
    torch.testing.assert_close(back, z, atol=1e-12, rtol=0)
    y.sum().backward()
    count = torch.full((3,), 4.0 * math.prod(spatial)).double()
    torch.testing.assert_close(layer.phase.grad, count)


def test_a_new_phase_shift_wraps_data_and_is_then_the_identity() -> None:
    x = torch.tensor([[7.0, 0.1]])
    torch.testing.assert_close(PhaseShift(2)(x)[0], torch.tensor([[7 - 2 * PI, 0.1]]))


# features


def test_features_have_no_jump_and_keep_what_is_no_circle() -> None:
    features = PeriodicFeatures(3, bound=(2.0, None, PI), num_frequencies=2)
    assert features.sources == (1, 0, 2, 0, 2, 0, 2, 0, 2) and features.out_channels == 9
    z = torch.tensor([[2.0, 0.7, -PI], [-2.0, 0.7, PI], [0.5, -3.0, 1.0]]).double()
    y = features(z)
    torch.testing.assert_close(y[0], y[1], atol=1e-6, rtol=0)
    a, b = PI * 0.5 / 2.0, 1.0
    expected = [-3.0]
    for k in (1, 2):
        expected += [math.cos(k * a), math.cos(k * b), math.sin(k * a), math.sin(k * b)]
    torch.testing.assert_close(y[2], torch.tensor(expected).double())
    pictures = normal(2, 3, 4, 5)
    at_once = features(pictures)[:, :, 1, 2]
    torch.testing.assert_close(at_once, features(pictures[:, :, 1, 2]))


# splines by channel


def one_by_one(
    transform: RQSpline, x: Tensor, params: Tensor, inverse: bool
) -> tuple[Tensor, Tensor]:
    """Each channel by a call of its own."""
    tails: Any = transform.tails if isinstance(transform.tails, tuple) else (transform.tails,) * D
    bounds: Any = transform.tail_bound
    bounds = bounds if isinstance(bounds, tuple) else (bounds,) * D
    packed = params.unflatten(1, (D, -1))
    found = []
    for i in range(D):
        sizes = 3 * transform.num_bins - (tails[i] == "linear")
        found.append(
            F.rq_spline_packed(
                x[:, i : i + 1],
                packed[:, i, :sizes],
                transform.num_bins,
                inverse=inverse,
                tails=tails[i],
                tail_bound=bounds[i],
                parametrization=transform.parametrization,
            )
        )
    return tuple(torch.cat(parts, dim=1) for parts in zip(*found, strict=True))  # type: ignore


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("parametrization", ["softmax", "softclip"])
@pytest.mark.parametrize("spatial", [(), (3, 2)])
@pytest.mark.parametrize("which", ["both", "bounds", "tails"])
def test_every_channel_has_its_own_spline(
    which: str, spatial: tuple[int, ...], parametrization: Any, inverse: bool
) -> None:
    settings: dict[str, Any] = {**MIXED, "parametrization": parametrization}
    if which == "bounds":
        settings["tails"] = "circular"
    if which == "tails":
        settings["tail_bound"] = 2.0
    transform = RQSpline(**settings)
    assert transform.channels == D and transform.num_params == 12
    x = 2 * normal(3, D, *spatial)
    params = normal(3, D * 12, *spatial).requires_grad_()
    y, each = transform(x, params, inverse=inverse, reduce="none")
    wanted, wanted_each = one_by_one(transform, x, params, inverse)
    assert torch.equal(y, wanted) and torch.equal(each, wanted_each)
    same, logabsdet = transform(x, params, inverse=inverse)
    assert torch.equal(same, y)
    torch.testing.assert_close(logabsdet, each.flatten(1).sum(1))
    found = torch.autograd.grad((y.sin().sum() + each.cos().sum()), params)[0]
    expected = torch.autograd.grad((wanted.sin().sum() + wanted_each.cos().sum()), params)[0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_a_spline_by_channel_starts_at_the_identity_and_is_compared_by_value() -> None:
    transform = RQSpline(**MIXED)
    params = torch.tensor(transform.identity_params).repeat(D)[None]
    x = torch.randn(4, D)
    y, logabsdet = transform(x, params)
    torch.testing.assert_close(y, x, atol=1e-6, rtol=0)
    torch.testing.assert_close(logabsdet, torch.zeros(4), atol=1e-5, rtol=0)
    listed: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in MIXED.items()
    }
    assert RQSpline(**listed) == transform and hash(RQSpline(**listed)) == hash(transform)
    bounds: Any = torch.tensor([1.0, 2.0])
    assert RQSpline(tail_bound=bounds).tail_bound == (1.0, 2.0)
    assert transform.select([1, 3]).num_params == 11  # only linear ones are left
    assert RQSpline().select([0]) == RQSpline()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tails": ("linear", "circular"), "tail_bound": (1.0, 2.0, 3.0)},
            "one for each, got 2 and 3",
        ),
        ({"tails": ("linear", None)}, 'tails must be "linear" or "circular" where they differ'),
        ({"tails": ("linear", "cubic")}, "tails must be one of"),
        ({"tail_bound": (1.0, -1.0)}, "tail_bound must be a positive number, got -1.0"),
        ({"tail_bound": ()}, "for all channels, or one for each, got 0"),
    ],
)
def test_wrong_settings_by_channel(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RQSpline(**settings)


@pytest.mark.parametrize("kind", [Coupling, Injector, Autoregressive])
def test_settings_of_another_number_of_channels(kind: Any) -> None:
    with pytest.raises(ValueError, match=f"are for {D} channels, and there are 4"):
        kind(4, CONTEXT, RQSpline(**MIXED))


# layers


@pytest.mark.parametrize("reverse", [False, True])
def test_a_coupling_gives_each_half_its_own(reverse: bool) -> None:
    layer = RQSplineCoupling(
        D, CONTEXT, spatial_dims=0, reverse=reverse, num_frequencies=2, **MIXED
    )
    transform = layer.transform
    assert isinstance(transform, RQSpline) and isinstance(layer.conditioner, Conditioner)
    changed, kept = ((0, 1, 2), (3, 4)) if reverse else ((2, 3, 4), (0, 1))
    assert transform.tails == tuple(MIXED["tails"][i] for i in changed)
    features = layer.conditioner.z_features
    if reverse:
        assert features is None or kept == (0, 1)
    else:
        assert features is not None and features.bounds == (PI, None)
    assert_is_a_flow_layer(perturbed(layer), points(6), normal(6, CONTEXT))


@pytest.mark.parametrize("kind", ["injector", "autoregressive", "reversed"])
def test_other_layers_by_channel(kind: str) -> None:
    layer: nn.Module
    if kind == "injector":
        layer = Injector(D, CONTEXT, RQSpline(**MIXED), spatial_dims=0)
    else:
        layer = RQSplineAutoregressive(
            D, CONTEXT, hidden_features=16, reverse=kind == "reversed", **MIXED
        )
    assert_is_a_flow_layer(perturbed(layer), points(6), normal(6, CONTEXT))


TRANSFORMS: dict[str, Any] = {
    "mixed": RQSpline(**MIXED),
    "circular": RQSpline(tails="circular", tail_bound=PI, num_bins=4),
    "turns": CircularShift(bound=(PI, None, 1.0, None, None)),
    "linear": RQSpline(num_bins=4),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("frequencies", [1, 3])
@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.usefixtures("without_fused_layers")
def test_the_incremental_inverse_equals_the_passes(
    name: str, frequencies: int, reverse: bool
) -> None:
    if name == "linear" and frequencies > 1:
        with pytest.raises(ValueError, match="num_frequencies is of channels on circles, got 3"):
            Autoregressive(D, 0, TRANSFORMS[name], num_frequencies=frequencies)
        return
    layer = Autoregressive(
        D,
        CONTEXT,
        TRANSFORMS[name],
        reverse=reverse,
        hidden_features=16,
        num_frequencies=frequencies,
    )
    layer, y, context = perturbed(layer), points(7), normal(7, CONTEXT)
    expected = layer(y, context, inverse=True)
    conditioner = layer.conditioner
    assert isinstance(conditioner, MaskedConditioner)
    with torch.no_grad():
        found = layer._inverse_incrementally(y, layer.project(context))  # and not by passes
        assert not isinstance(found, str)
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
        assert torch.equal(layer(y, context, inverse=True)[0], found[0])
    jacobian = torch.autograd.functional.jacobian(
        lambda one: layer(one[None], context[:1])[0][0], y[0]
    )
    below = jacobian.triu(1) if not reverse else jacobian.tril(-1)
    assert not below.any() and bool((jacobian.tril(-1) if not reverse else jacobian.triu(1)).any())


def test_circles_of_channels_that_the_transform_does_not_know() -> None:
    """A coupling of lines by angles, and a split, read the angles without a jump if told."""
    circles = (PI, PI, None, None)
    for layer in (
        Coupling(4, spatial_dims=0, circles=circles),
        Split(4, spatial_dims=0, circles=circles),
        Autoregressive(4, circles=circles),
    ):
        perturbed(layer)
        z = torch.cat([angles(3, 2), normal(3, 2)], dim=1)
        for channel in (0, 1):
            ends = z.repeat(2, 1)
            ends[:3, channel], ends[3:, channel] = -PI, PI
            y, _ = layer(ends)
            rest = [i for i in range(4) if i != channel]
            torch.testing.assert_close(y[:3, rest], y[3:, rest], atol=1e-9, rtol=0)
    with pytest.raises(TypeError, match="circles: options of the default conditioner"):
        Coupling(4, conditioner=nn.Linear(2, 8), circles=circles)
    with pytest.raises(ValueError, match="one for each of the 4 channels"):
        Coupling(4, spatial_dims=0, circles=(PI,))
    # And a step with an injector, which reads no z, takes them too.
    Injector(4, CONTEXT, spatial_dims=0, circles=circles)


@pytest.mark.parametrize("inverse", [False, True])
def test_a_turn_as_a_transform(inverse: bool) -> None:
    transform = CircularShift(bound=(PI, None))
    x, params = torch.tensor([[3.0, 3.0]]).double(), torch.tensor([[1.0, 1.0]]).double()
    sign = -1 if inverse else 1
    y, each = transform(x, sign * params, inverse=inverse, reduce="none")
    torch.testing.assert_close(y, torch.tensor([[4 - 2 * PI, 4.0]]).double())
    assert each.tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match="params must have x's shape"):
        transform(x, params[:, :1])
    with pytest.raises(ValueError, match="bound must be a positive number"):
        CircularShift(bound=-1.0)


# bases


def flow_with(base: Any, *levels: Sequence[nn.Module]) -> ConditionalFlow:
    layers = levels or ([PhaseShift(2, bound=[None, None])],)
    return ConditionalFlow(list(layers), base=base).double()


BASES: dict[str, Any] = {
    "a number's": distributions.Laplace(torch.tensor(0.5).double(), 2.0),
    "features'": distributions.Normal(
        torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 3.0]).double()
    ),
    "an event": distributions.Independent(
        distributions.Laplace(torch.zeros(2).double(), torch.ones(2).double()), 1
    ),
    "a multivariate": distributions.MultivariateNormal(
        torch.zeros(2).double(), torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    ),
    "a circle": CircularBase(2, bound=[PI, None]),
}


@pytest.mark.parametrize("name", BASES)
def test_a_base_is_sampled_and_has_its_density(name: str) -> None:
    base = BASES[name]
    flow = flow_with(base)
    generator = torch.Generator().manual_seed(4)
    state = torch.get_rng_state()
    x, density = flow.sample_and_log_prob(20_000, generator=generator)
    assert torch.equal(torch.get_rng_state(), state)
    again = flow.sample(20_000, generator=torch.Generator().manual_seed(4))
    assert torch.equal(x, again) and x.dtype == torch.float64
    assert not torch.equal(x, flow.sample(20_000, generator=torch.Generator().manual_seed(5)))
    torch.testing.assert_close(flow.log_prob(x), density)
    if isinstance(base, distributions.Distribution):
        value = base.log_prob(x)
        torch.testing.assert_close(density, value if value.dim() == 1 else value.sum(1))
        mean, deviation = base.mean.expand(2), base.stddev.expand(2)
    else:
        lines = distributions.Normal(0.0, 1.0).log_prob(x[:, 1])
        torch.testing.assert_close(density, lines - math.log(2 * PI))
        mean, deviation = torch.zeros(2).double(), torch.tensor([PI / 3**0.5, 1.0]).double()
    torch.testing.assert_close(x.mean(0), mean, atol=0.1, rtol=0)
    torch.testing.assert_close(x.std(0), deviation, atol=0, rtol=0.05)


class Scaled(nn.Module):
    """A base of a user's, with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(2))

    def sample(self, number: int) -> Tensor:
        return torch.randn(number, 2) * self.log_scale.exp()

    def log_prob(self, z: Tensor) -> Tensor:
        return distributions.Normal(0.0, self.log_scale.exp()).log_prob(z).sum(1)


def test_bases_of_ones_own() -> None:
    module = Scaled()
    flow = flow_with(module)
    assert "bases.0.source.log_scale" in flow.state_dict()
    assert module.log_scale.dtype == torch.float64  # moved with the flow
    flow.log_prob(normal(4, 2)).sum().backward()
    assert module.log_scale.grad is not None and bool(module.log_scale.grad.any())
    pair = flow_with((module.sample, module.log_prob))
    x = normal(4, 2)
    torch.testing.assert_close(pair.log_prob(x), flow.log_prob(x))
    a, b = (each.sample(5, generator=torch.Generator().manual_seed(1)) for each in (pair, flow))
    assert torch.equal(a, b)
    elementwise = flow_with((module.sample, distributions.Normal(0.0, 1.0).log_prob))
    torch.testing.assert_close(elementwise.log_prob(x), flow.log_prob(x))


def test_a_base_for_each_latent() -> None:
    uniform = CircularBase(2)
    split = Split(4, spatial_dims=0)
    flow = flow_with([None, uniform], [split], [PhaseShift(2)])
    x = torch.cat([angles(6, 2), normal(6, 2)], dim=1)
    latents, logabsdet = flow(x)
    normal_part = distributions.Normal(0.0, 1.0).log_prob(latents[0]).sum(1)
    torch.testing.assert_close(flow.log_prob(x), normal_part - 2 * math.log(2 * PI) + logabsdet)
    cooled = flow.sample(50, temperature=[0.0, 1.0])
    assert bool((flow(cooled)[0][0].abs() < 1e-9).all())
    with pytest.raises(
        ValueError, match="temperature must be 1 unless every base is a standard normal"
    ):
        flow.sample(2, temperature=0.5)
    pictures = ConditionalFlow(
        [[Squeeze(2), PhaseShift(4)]], base=distributions.Uniform(-PI, PI, validate_args=False)
    )
    assert pictures.sample(3, size=(4, 6)).shape == (3, 1, 4, 6)
    expected = torch.full((2,), -24 * math.log(2 * PI))
    torch.testing.assert_close(pictures.log_prob(torch.zeros(2, 1, 4, 6)), expected)


def test_wrong_bases() -> None:
    cases: list[tuple[Any, str]] = [
        ("normal", "base must be a torch.distributions Distribution.*got 'normal'"),
        (distributions.Normal, "got the class Normal"),
        ((len, 3), "base must be a torch.distributions Distribution"),
        ([None, None], "a list of 1, one for each latent, got 2"),
        (CircularBase(3), "base has 3 channels, but its latent has 2"),
    ]
    for base, message in cases:
        with pytest.raises((TypeError, ValueError), match=message):
            flow_with(base)
    x = normal(4, 2)
    for wrong, message in (
        (distributions.Normal(torch.zeros(3), 1.0), r"latent, \(2,\): it has batch shape \(3,\)"),
        ((torch.zeros, lambda z: z.sum()), r"log_prob\(z\) must return a tensor of shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            flow_with(wrong).log_prob(x)
    with pytest.raises(ValueError, match=r"sample\(4\) must return a tensor of shape \(4, 2\)"):
        flow_with((torch.zeros, torch.sum)).sample(4)


# whole flows


def torus(context: int = 0) -> ConditionalFlow:
    layers: list[nn.Module] = [PhaseShift(2)]
    for turn in (False, True):
        settings: Any = {"tails": "circular", "tail_bound": PI, "num_bins": 5}
        options: Any = {"spatial_dims": 0, "hidden_channels": 8}
        layers += [
            RQSplineCoupling(2, context, reverse=turn, num_frequencies=2, **settings, **options),
            Coupling(2, context, CircularShift(), reverse=turn, **options),
        ]
        if context:
            layers.append(Injector(2, context, RQSpline(**settings), **options))
        layers.append(PhaseShift(2))
    layers.append(RQSplineAutoregressive(2, context, hidden_features=8, **settings))
    return perturbed(ConditionalFlow([layers], base=CircularBase(2)), 0.3)


def grid(number: int, low: float, high: float) -> Tensor:
    """Midpoints, whose sum converges fast for what is smooth and periodic."""
    step = (high - low) / number
    return low + step * (torch.arange(number, dtype=torch.float64) + 0.5)


@pytest.mark.parametrize("context", [0, 1])
def test_the_mass_on_a_torus_is_one(context: int) -> None:
    flow, number = torus(context), 400
    x = torch.cartesian_prod(grid(number, -PI, PI), grid(number, -PI, PI))
    given = torch.full((1, 1), 0.5).double() if context else None
    with torch.no_grad():
        density = flow.log_prob(x, given).exp()
    assert float(density.max() / density.min()) > 10  # far from uniform
    mass = density.sum() * (2 * PI / number) ** 2
    torch.testing.assert_close(mass, torch.ones(()).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("context", [0, 1])
def test_the_density_has_no_jump_at_the_seam(context: int) -> None:
    flow, x = torus(context), angles(50, 2)
    given = normal(1, context) if context else None
    with torch.no_grad():
        for channel in (0, 1):
            ends = x.repeat(4, 1)
            near = torch.tensor([-PI, 1e-12 - PI, PI - 1e-12, PI], dtype=torch.float64)
            ends[:, channel] = near.repeat_interleave(50)
            density = flow.log_prob(ends, given)
            for others in density.view(4, 50)[1:]:
                torch.testing.assert_close(others, density[:50], atol=1e-6, rtol=0)
            assert float(density.std()) > 0.1
        turned = flow.log_prob(x + 2 * PI, given)  # the first layer wraps
        torch.testing.assert_close(turned, flow.log_prob(x, given), atol=1e-6, rtol=0)


def test_samples_of_a_torus_follow_its_density() -> None:
    flow = torus()
    samples = flow.sample(100_000)
    assert bool((samples.abs() <= PI).all())
    with torch.no_grad():
        x = torch.cartesian_prod(grid(200, -PI, PI), grid(200, -PI, PI))
        density = flow.log_prob(x).exp()
    quarter = (x[:, 0] > 0) & (x[:, 1] > 0)
    expected = density[quarter].sum() * (2 * PI / 200) ** 2
    found = ((samples[:, 0] > 0) & (samples[:, 1] > 0)).double().mean()
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_a_circle_and_a_line() -> None:
    layers: list[nn.Module] = []
    settings: Any = {"tails": ("circular", "linear"), "tail_bound": (PI, 4.0), "num_bins": 4}
    for turn in (False, True):
        layers += [
            RQSplineCoupling(2, spatial_dims=0, hidden_channels=8, reverse=turn, **settings),
            PhaseShift(2, bound=[PI, None]),
        ]
    flow = perturbed(ConditionalFlow([layers], base=CircularBase(2, bound=[PI, None])), 0.3)
    x = torch.cartesian_prod(grid(300, -PI, PI), grid(600, -12.0, 12.0))
    with torch.no_grad():
        mass = flow.log_prob(x).exp().sum() * (2 * PI / 300) * (24 / 600)
        torch.testing.assert_close(mass, torch.ones(()).double(), atol=2e-3, rtol=0)
        ends = torch.stack([torch.tensor([1e-10 - PI, 0.3]), torch.tensor([PI - 1e-10, 0.3])])
        density = flow.log_prob(ends.double())
        torch.testing.assert_close(density[0], density[1], atol=1e-5, rtol=0)


def test_a_torus_trains_and_is_copied_and_compiled() -> None:
    flow = torus().float()
    x = angles(64, 2).float()
    loss = -flow.log_prob(x).mean()
    loss.backward()
    missing = [name for name, weight in flow.named_parameters() if weight.grad is None]
    assert not missing
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), flow.log_prob(x))
    other = torus().float()
    other.load_state_dict(flow.state_dict(), strict=True)
    assert torch.equal(other.log_prob(x), flow.log_prob(x))
    mapped = torch.func.vmap(lambda one: flow.log_prob(one[None])[0])(x)
    torch.testing.assert_close(mapped, flow.log_prob(x), atol=1e-5, rtol=1e-5)


def test_a_torus_is_certified() -> None:
    certificate = certify(torus())
    assert certificate.passed
    assert {row.kind for row in certificate.rows} >= {"elementwise", "self-conditional"}
