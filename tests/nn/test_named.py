"""Layers by name: their options reach the transform, they start at the identity, they invert."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow import functional as F
from robustflow.nn import (
    Affine,
    ConditionalAffineCoupling,
    ConditionalAffineInjector,
    ConditionalLayer,
    Coupling,
    CubicBSpline,
    CubicBSplineCoupling,
    CubicBSplineInjector,
    ElementwiseTransform,
    Injector,
    ModifiedRQSpline,
    ModifiedRQSplineCoupling,
    ModifiedRQSplineInjector,
    RQSpline,
    RQSplineAutoregressive,
    RQSplineCoupling,
    RQSplineInjector,
)
from robustflow.nn.named import TransformOptions
from tests.nn.checks import assert_is_a_flow_layer, normal, perturbed

CHANNELS, CONTEXT_CHANNELS = 5, 3
IDENTITIES: list[ElementwiseTransform] = [
    *(Affine(scale=s) for s in ("exp", "softplus", "atan_exp", "tanh_exp", "softclip_exp")),
    Affine(scale="softplus", eps=0.3, reciprocal=True, shift_first=False),
    ModifiedRQSpline(),
    ModifiedRQSpline.published(),
    CubicBSpline(),
    CubicBSpline(min_bin=0.1),
    RQSpline(),
    RQSpline(num_bins=1),
    RQSpline(num_bins=5, tails="circular", tail_bound=math.pi, min_derivative=0.25),
    RQSpline(num_bins=5, tails=None, tail_bound=6.0),
    RQSpline(num_bins=5, parametrization="softclip"),
]
COUPLINGS = [
    ConditionalAffineCoupling,
    ModifiedRQSplineCoupling,
    CubicBSplineCoupling,
    RQSplineCoupling,
]
INJECTORS = [
    ConditionalAffineInjector,
    ModifiedRQSplineInjector,
    CubicBSplineInjector,
    RQSplineInjector,
]


@pytest.mark.parametrize("transform", IDENTITIES, ids=repr)
@pytest.mark.parametrize("kind", [Injector, Coupling])
def test_a_new_layer_is_the_identity(
    kind: type[Injector] | type[Coupling], transform: ElementwiseTransform
) -> None:
    assert len(transform.identity_params) == transform.num_params
    z, context = torch.randn(3, CHANNELS), torch.randn(3, CONTEXT_CHANNELS)
    y, logabsdet = kind(CHANNELS, CONTEXT_CHANNELS, transform, spatial_dims=0)(z, context)
    torch.testing.assert_close(y, z, atol=2e-6, rtol=0)
    torch.testing.assert_close(logabsdet, torch.zeros(3), atol=5e-6, rtol=0)


def test_the_published_affine_starts_as_published() -> None:
    coupling = ConditionalAffineCoupling(4, scale="sigmoid", spatial_dims=0)
    z = torch.randn(3, 4)
    s = 1 / (1 + math.exp(-2)) + 1e-4
    y, logabsdet = coupling(z)
    torch.testing.assert_close(y[:, 2:], z[:, 2:] * s)
    torch.testing.assert_close(logabsdet, torch.full((3,), 2 * math.log(s)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Coupling(4, 0, Affine(scale="softplus", eps=1.0)),
        lambda: RQSplineCoupling(4, min_derivative=1.0),
    ],
)
def test_no_identity_to_start_at_is_an_error(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match="must be below 1"):
        make()


@pytest.mark.parametrize(
    "options",
    [
        {"num_bins": 3},
        {"tails": "circular", "tail_bound": 2.0},
        {"tails": None, "tail_bound": 9.0},
        {"min_bin_width": 0.05, "min_bin_height": 0.02, "min_derivative": 0.1},
        {"parametrization": "softclip", "min_derivative": 0.2},
    ],
    ids=str,
)
def test_the_options_of_a_spline_are_the_functions(options: dict[str, Any]) -> None:
    transform = RQSpline(**options)
    x = 3 * normal(4, 5)
    w, h = normal(4, 5, transform.num_bins), normal(4, 5, transform.num_bins)
    d = normal(4, 5, transform.num_derivatives)
    others = {name: value for name, value in options.items() if name != "num_bins"}
    y, per_element = F.rq_spline(x, w, h, d, **{"tail_bound": 3.0, **others})
    got = transform(x, torch.cat([w, h, d], dim=-1))
    torch.testing.assert_close(got, (y, per_element.sum(dim=1)), atol=1e-12, rtol=1e-12)


def context_weight(layer: ConditionalLayer) -> Tensor:
    """The weight of the default conditioner's layer for the context."""
    return layer.get_parameter("conditioner.context_layer.weight")


def test_options_go_to_the_transform_and_to_the_conditioner() -> None:
    for affine in (
        ConditionalAffineCoupling(6, 3, scale="sigmoid", eps=0.1, hidden_channels=8),
        ConditionalAffineInjector(6, 3, scale="sigmoid", eps=0.1, hidden_channels=8),
    ):
        assert affine.transform == Affine(eps=0.1)
        assert context_weight(affine).shape == (8, 3, 3, 3)
    for kind in (ConditionalAffineCoupling, ConditionalAffineInjector):
        assert kind(6, 3).transform == Affine(scale="softclip_exp")
    for spline in (
        RQSplineCoupling(6, 3, num_bins=4, tail_bound=2.0, kernel_size=1),
        RQSplineInjector(6, 3, num_bins=4, tail_bound=2.0, kernel_size=1),
    ):
        assert spline.transform == RQSpline(num_bins=4, tail_bound=2.0)
        assert context_weight(spline).shape == (64, 3, 1, 1)
    for modified in (ModifiedRQSplineCoupling, ModifiedRQSplineInjector):
        layer = modified(6, 3, interval=(-1.0, 2.0), derivative="exp", spatial_dims=1)
        assert layer.transform == ModifiedRQSpline(interval=(-1.0, 2.0), derivative="exp")
        assert context_weight(layer).shape == (64, 3, 3)
    masked = RQSplineAutoregressive(6, 3, num_bins=4, hidden_features=16)
    assert masked.transform == RQSpline(num_bins=4)
    assert context_weight(masked).shape == (16, 3)


def test_the_types_of_options_name_the_fields_of_all_transforms() -> None:
    transforms = (Affine, ModifiedRQSpline, CubicBSpline, RQSpline)
    names = {field.name for transform in transforms for field in dataclasses.fields(transform)}
    assert set(TransformOptions.__annotations__) == names


@pytest.mark.parametrize("kind", [*COUPLINGS, *INJECTORS, RQSplineAutoregressive])
def test_named_layers_survive_pickling(kind: Any) -> None:
    layer = perturbed(kind(4, 2))
    assert type(layer) is kind
    copy = pickle.loads(pickle.dumps(layer))
    assert type(copy) is kind and copy.transform == layer.transform
    assert "default_transform" not in layer.__dict__
    torch.testing.assert_close(copy.state_dict(), layer.state_dict(), atol=0, rtol=0)


def test_an_option_that_would_do_nothing_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"^num_bin: no such option"):
        RQSplineCoupling(6, 3, num_bin=4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^num_bins: no such option. There are interval, min_bin,"):
        ModifiedRQSplineCoupling(6, 3, num_bins=4)
    own = nn.Linear(3, 3 * 4)
    for make in (
        lambda: ModifiedRQSplineCoupling(6, 3, own, hidden_channels=8),
        lambda: ModifiedRQSplineInjector(6, 3, own, hidden_channels=8),
        lambda: RQSplineAutoregressive(6, 3, own, hidden_features=8),
        lambda: RQSplineAutoregressive(6, 3, own, reverse=True),
    ):
        with pytest.raises(TypeError, match="a conditioner was given"):
            make()


@pytest.mark.parametrize("spatial", [(), (4,), (3, 2), (2, 1, 2)], ids=str)
@pytest.mark.parametrize("context_channels", [0, CONTEXT_CHANNELS])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", COUPLINGS)
def test_couplings(
    kind: Any, reverse: bool, context_channels: int, spatial: tuple[int, ...]
) -> None:
    options = {"reverse": reverse, "hidden_channels": 8, "spatial_dims": len(spatial)}
    coupling = perturbed(kind(CHANNELS, context_channels, **options))
    z = 2 * normal(2, CHANNELS, *spatial)
    context = normal(2, context_channels, *spatial) if context_channels else None
    assert_is_a_flow_layer(coupling, z, context)
    y, _ = coupling(z, context)
    changed = (y != z).transpose(0, 1).flatten(1).any(dim=1).tolist()
    assert changed == ([True] * 3 + [False] * 2 if reverse else [False] * 2 + [True] * 3)


@pytest.mark.parametrize("spatial", [(), (3, 2)], ids=str)
@pytest.mark.parametrize("kind", INJECTORS)
def test_injectors(kind: Any, spatial: tuple[int, ...]) -> None:
    injector = kind(CHANNELS, CONTEXT_CHANNELS, hidden_channels=8, spatial_dims=len(spatial))
    z, context = 2 * normal(2, CHANNELS, *spatial), normal(2, CONTEXT_CHANNELS, *spatial)
    assert_is_a_flow_layer(perturbed(injector), z, context)


def test_two_couplings_in_turn_change_every_channel() -> None:
    z = normal(3, CHANNELS)
    y = z
    for reverse in (False, True):
        y, _ = perturbed(RQSplineCoupling(CHANNELS, spatial_dims=0, reverse=reverse))(y)
    assert bool((y != z).all())


def test_the_affines_default_scale_is_bounded() -> None:
    coupling = perturbed(ConditionalAffineCoupling(4, 2, clamp=2.0, spatial_dims=0), 1.0)
    _, logabsdet = coupling(normal(3, 4), 1e8 * normal(3, 2))
    assert bool((logabsdet.abs() <= 2 * 2.0).all()) and bool((logabsdet.abs() > 1).all())


class OneArgument(nn.Module):
    """A conditioner without context: it is called with z1 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3 * 23))

    def forward(self, z1: Tensor) -> Tensor:
        return self.net(z1)


def test_any_module_conditions_without_context() -> None:
    coupling = perturbed(RQSplineCoupling(CHANNELS, conditioner=OneArgument()))
    assert_is_a_flow_layer(coupling, normal(3, CHANNELS), None)


class TwoPartsOfAUser(nn.Module):
    """Projects by one layer, whatever the context's shape."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(CONTEXT_CHANNELS, 4), nn.Linear(4, out_features)

    def project(self, context: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(context)))


def test_an_injector_calls_a_users_project() -> None:
    own = TwoPartsOfAUser(CHANNELS * 23)
    injector = perturbed(RQSplineInjector(CHANNELS, CONTEXT_CHANNELS, own))
    assert_is_a_flow_layer(injector, normal(3, CHANNELS), normal(3, CONTEXT_CHANNELS))


@pytest.mark.parametrize(
    ("z", "context", "message"),
    [
        ((2, 4, 6, 6), (2, 3, 6, 6), "z must have 5 channels"),
        ((2, 5), (2, 3), "2 spatial dimension"),
        ((2, 5, 6, 6), None, "needs a context of 3 channels"),
        ((2, 5, 6, 6), (2, 4, 6, 6), "context must have 3 channels"),
        ((2, 5, 6, 6), (2, 3, 3, 3), r"projected from it has 2 and \(3, 3\), z has 2 and \(6, 6\)"),
        ((2, 5, 6, 6), (3, 3, 6, 6), "the batch size of z, or 1"),
    ],
)
@pytest.mark.parametrize("kind", [RQSplineCoupling, RQSplineInjector])
def test_errors_are_sentences(
    kind: Any, z: tuple[int, ...], context: tuple[int, ...] | None, message: str
) -> None:
    layer = kind(CHANNELS, CONTEXT_CHANNELS, hidden_channels=4)
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(z), None if context is None else torch.zeros(context))


def test_constructors_tell_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="context_channels must be at least 1"):
        RQSplineInjector(4, 0)
    with pytest.raises(ValueError, match="num_bins must be a whole number"):
        RQSplineCoupling(4, num_bins=0)
    with pytest.raises(ValueError, match="tails must be one of"):
        RQSpline(tails="quadratic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="parametrization must be one of"):
        RQSpline(parametrization="knots")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tail_bound"):
        RQSpline(tail_bound=-1.0)


@pytest.mark.parametrize(
    ("kind", "of_conditioner"),
    [
        (ConditionalAffineCoupling, "hidden_channels"),
        (ModifiedRQSplineInjector, "hidden_channels"),
        (RQSplineAutoregressive, "hidden_features"),
    ],
)
def test_an_unknown_option_is_named_with_those_that_there_are(
    kind: Any, of_conditioner: str
) -> None:
    with pytest.raises(TypeError, match=rf"^hiden: no such option.*\b{of_conditioner}\b"):
        kind(4, 2, hiden=8)


def test_repr_names_the_options() -> None:
    text = repr(RQSplineCoupling(6, 3, num_bins=4, reverse=True))
    for part in (
        "RQSplineCoupling",
        "channels=6",
        "context_channels=3",
        "num_bins=4",
        "reverse=True",
    ):
        assert part in text
