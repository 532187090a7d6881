"""The transforms inside torch.distributions, zuko, torch.compile and torch.func."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    ComposeTransform,
    Distribution,
    Independent,
    IndependentTransform,
    Normal,
    Transform,
    TransformedDistribution,
    Uniform,
)

import robustflow
from robustflow.distributions import (
    ConditionalAffineTransform,
    ModifiedRQSplineTransform,
    RQSplineTransform,
)
from robustflow.distributions.elementwise import ElementwiseTransform

DOUBLE = torch.float64


def normal(*shape: int, dtype: torch.dtype = DOUBLE) -> Normal:
    return Normal(torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype))


def modified(*batch: int, dtype: torch.dtype = DOUBLE, **settings: Any) -> ElementwiseTransform:
    params = torch.randn(*batch, 4, dtype=dtype, requires_grad=True)
    return ModifiedRQSplineTransform(params, interval=(-3, 3), derivative="softclip", **settings)


def spline(*batch: int, dtype: torch.dtype = DOUBLE, **settings: Any) -> ElementwiseTransform:
    extra = {"linear": -1, "circular": 0, None: 1}[settings.get("tails", "linear")]
    widths, heights, derivatives = (
        torch.randn(*batch, size, dtype=dtype, requires_grad=True) for size in (5, 5, 5 + extra)
    )
    return RQSplineTransform(widths, heights, derivatives, **{"tail_bound": 3.0, **settings})


def affine(*batch: int, dtype: torch.dtype = DOUBLE, **settings: Any) -> ElementwiseTransform:
    params = torch.randn(*batch, 2, dtype=dtype, requires_grad=True)
    return ConditionalAffineTransform(params, scale="softclip_exp", **settings)


TRANSFORMS = {"modified": modified, "rq": spline, "affine": affine}
each_transform = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_densities_integrate_to_one() -> None:
    tolerance = 1e-4  # that of circular tails jumps at the box, between two points of the grid
    grid = torch.linspace(-30, 30, 200_001, dtype=DOUBLE)
    flows: list[Any] = [
        modified(),
        modified().inv,
        spline(tails="linear"),
        spline(tails="circular").inv,
        affine(),
        [affine(), modified(), spline()],
    ]
    for transforms in flows:
        distribution = TransformedDistribution(normal(), transforms)
        mass = torch.trapezoid(distribution.log_prob(grid).exp(), grid)
        assert abs(mass.item() - 1) < tolerance

    box = spline(tails=None, left=0.0, right=1.0, bottom=-1.0, top=3.0)
    base = Uniform(torch.zeros((), dtype=DOUBLE), torch.ones((), dtype=DOUBLE))
    midpoints = 4 * (torch.arange(200_000, dtype=DOUBLE) + 0.5) / 200_000 - 1
    mass = 4 * TransformedDistribution(base, box).log_prob(midpoints).exp().mean()
    assert abs(mass.item() - 1) < tolerance


@each_transform
def test_samples_follow_the_density(make: Callable[..., ElementwiseTransform]) -> None:
    distribution = TransformedDistribution(normal(), make())
    samples = distribution.sample((20_000,)).sort().values
    # Kolmogorov and Smirnov: above 1.95 / sqrt(n) once in a thousand, and the seed is fixed.
    expected = torch.linspace(0, 1, len(samples), dtype=DOUBLE)
    assert (distribution.cdf(samples) - expected).abs().max() < 1.95 / math.sqrt(len(samples))
    torch.testing.assert_close(distribution.icdf(distribution.cdf(samples)), samples)


@each_transform
def test_shapes_of_distributions(make: Callable[..., ElementwiseTransform]) -> None:
    wide = TransformedDistribution(normal(3), make(4, 1))  # the transform widens the base
    assert wide.batch_shape == (4, 3) and wide.rsample((7,)).shape == (7, 4, 3)
    assert wide.log_prob(torch.zeros(2, 1, 3, dtype=DOUBLE)).shape == (2, 4, 3)

    event = TransformedDistribution(Independent(normal(3), 1), make(3))
    assert (event.batch_shape, event.event_shape) == ((), (3,))
    more = event.expand((5, 2))
    assert more.batch_shape == (5, 2) and more.sample((7,)).shape == (7, 5, 2, 3)
    value = torch.randn(7, 5, 2, 3, dtype=DOUBLE)
    torch.testing.assert_close(more.log_prob(value), event.log_prob(value))

    transform = make(3)
    coupled = TransformedDistribution(normal(3), IndependentTransform(transform, 1))
    assert coupled.event_shape == (3,)
    single = TransformedDistribution(Independent(normal(3), 1), transform)
    torch.testing.assert_close(coupled.log_prob(value), single.log_prob(value))


def test_compositions_agree() -> None:
    parts: list[Transform] = [affine(3), modified(3), spline(3).inv]
    value = torch.randn(7, 3, dtype=DOUBLE)
    one_by_one = TransformedDistribution(normal(3), parts).log_prob(value)
    for cache_size in (0, 1):
        composed = ComposeTransform(parts, cache_size=cache_size)
        together = TransformedDistribution(normal(3), composed)
        torch.testing.assert_close(together.log_prob(value), one_by_one)
        backward = TransformedDistribution(normal(3), composed.inv.inv)
        torch.testing.assert_close(backward.log_prob(value), one_by_one)
        twin = copy.deepcopy(together)
        torch.testing.assert_close(twin.log_prob(value), one_by_one)


@each_transform
def test_gradients_of_both_estimators(make: Callable[..., ElementwiseTransform]) -> None:
    transform = make(3)
    parameters: Any = transform._parameters
    names = transform.parameter_names

    def log_prob(value: Tensor, *parameters: Tensor) -> Tensor:
        return TransformedDistribution(normal(3), rebuilt(*parameters)).log_prob(value)

    def rebuilt(*parameters: Tensor) -> ElementwiseTransform:
        fresh = copy.copy(transform)
        for name, parameter in zip(names, parameters, strict=False):
            setattr(fresh, name, parameter)
        return fresh

    noise, value = torch.randn(2, 4, 3, dtype=DOUBLE)
    assert torch.autograd.gradcheck(log_prob, (value.requires_grad_(), *parameters))
    assert torch.autograd.gradcheck(lambda *p: rebuilt(*p)(noise), parameters)


def test_validation_is_torchs() -> None:
    box = spline(3, tails=None, left=0.0, right=1.0, bottom=-1.0, top=3.0)
    base = Uniform(torch.zeros(3, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE))
    outside = torch.tensor([0.5, 3.01, 0.5], dtype=DOUBLE)
    validating = TransformedDistribution(base, box, validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        validating.log_prob(outside)
    assert validating.log_prob(validating.sample((100,))).isfinite().all()
    assert str(validating.support) == "Interval(lower_bound=-1.0, upper_bound=3.0)"
    lax = TransformedDistribution(Normal(0.0, 1.0, validate_args=False), box, validate_args=False)
    assert lax.log_prob(outside).isnan().tolist() == [False, True, False]

    real = TransformedDistribution(normal(3), spline(3), validate_args=True)
    assert real.log_prob(100 + outside).isfinite().all()
    with pytest.raises(ValueError, match="within the support"):
        real.log_prob(outside * math.nan)


def test_fitting_a_density() -> None:
    """Maximum likelihood through a transform that is cached and lives on."""
    params = nn.Parameter(torch.zeros(4, dtype=DOUBLE))
    transform = ModifiedRQSplineTransform(
        params, interval=(-3, 3), derivative="softclip", cache_size=1
    )
    distribution = TransformedDistribution(normal(), transform)
    data = 0.5 * torch.randn(2000, dtype=DOUBLE) + 1
    truth = Normal(1.0, 0.5).log_prob(data).mean()
    optimizer = torch.optim.Adam([params], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss = -distribution.log_prob(data).mean()
        loss.backward()
        optimizer.step()
    assert loss < -truth + 0.02


# torch.compile and torch.func


def assert_compiles(
    function: Callable[[Tensor], Tensor], parameters: tuple[Tensor, ...], calls: int
) -> None:
    """In one graph with so many calls of an operator, to the same values and gradients."""
    found = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        targets = [str(node.target) for node in module.graph.nodes]
        found.append(sum(target.startswith("robustflow") for target in targets))
        return module

    torch._dynamo.reset()
    value = torch.randn(7, 3)
    actual = torch.compile(function, fullgraph=True, backend=backend)(value)
    expected = function(value)
    assert found == [calls]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
    )


def unchecked(transform: Transform) -> TransformedDistribution:
    """Validation asks for values, which no graph can hold."""
    base = Normal(torch.zeros(3), torch.ones(3), validate_args=False)
    return TransformedDistribution(base, transform, validate_args=False)


@each_transform
def test_log_prob_compiles_whole(make: Callable[..., ElementwiseTransform]) -> None:
    transform = make(3, dtype=torch.float32)
    assert_compiles(unchecked(transform).log_prob, transform._parameters, 1)


def test_the_rest_compiles_too() -> None:
    transform = modified(3, dtype=torch.float32, cache_size=1)
    parameters = transform._parameters

    def both(value: Tensor) -> Tensor:
        y, ladj = transform.call_and_ladj(value)
        x, minus = transform.inv.call_and_ladj(y)
        return ladj + x + 2 * minus

    def rebuilt(value: Tensor) -> Tensor:  # as flow libraries do: a transform a call
        fresh = ModifiedRQSplineTransform(*parameters, interval=(-1, 1))
        return unchecked(fresh).log_prob(value)

    assert_compiles(transform, parameters, 1)
    assert_compiles(both, parameters, 2)
    assert_compiles(rebuilt, parameters, 1)


def test_what_is_traced_ends_with_the_trace() -> None:
    transform = modified(3, dtype=torch.float32)
    x = torch.randn(7, 3)
    y = torch.compile(transform, fullgraph=True, backend="aot_eager")(x)
    with torch.no_grad():
        x.add_(1)
    question = torch.compile(transform.log_abs_det_jacobian, fullgraph=True, backend="aot_eager")
    expected = transform(x), transform.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(question(x, y), expected[1])
    torch.testing.assert_close(transform(x), expected[0])


@each_transform
def test_torch_func(make: Callable[..., ElementwiseTransform]) -> None:
    transform = make(3)
    distribution = TransformedDistribution(normal(3), transform, validate_args=False)

    def log_prob(value: Tensor) -> Tensor:
        return distribution.log_prob(value).sum()

    values = torch.randn(5, 3, dtype=DOUBLE)
    leaf = values.clone().requires_grad_()
    (expected,) = torch.autograd.grad(log_prob(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(log_prob)(values), expected)
    each = torch.func.vmap(torch.func.grad(log_prob))(values)
    torch.testing.assert_close(each, expected)
    torch.testing.assert_close(
        torch.func.vmap(distribution.log_prob)(values), distribution.log_prob(values)
    )
    _, tangent = torch.func.jvp(  # type: ignore[misc]
        log_prob, (values,), (torch.ones_like(values),)
    )
    torch.testing.assert_close(tangent, expected.sum())


@pytest.mark.parametrize(
    ("name", "transform"),
    [("affine", "grad"), ("affine", "jvp"), ("inverse", "jvp"), ("rq", "grad")],
)
def test_torch_func_within_torch_compile(name: str, transform: str) -> None:
    """In one graph: what is kept of a call ends with the transform of torch.func."""
    one_way = affine(3).inv if name == "inverse" else TRANSFORMS[name](3)
    base = Normal(torch.zeros(3, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE), validate_args=False)
    distribution = TransformedDistribution(base, one_way, validate_args=False)

    def loss(value: Tensor) -> Tensor:
        y, ladj = one_way.call_and_ladj(value)
        again = one_way.log_abs_det_jacobian(value, one_way(value))
        return distribution.log_prob(value).sum() + (y.sin() + ladj * again).sum()

    def apply(value: Tensor) -> Any:
        if transform == "grad":
            return torch.func.grad(loss)(value)
        return torch.func.jvp(loss, (value,), (value.cos(),))

    torch._dynamo.reset()
    values = torch.randn(5, 3, dtype=DOUBLE)
    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(values), apply(values))


def test_torch_func_over_parameters() -> None:
    def log_prob(params: Tensor, value: Tensor) -> Tensor:
        transform = ModifiedRQSplineTransform(params, interval=(-3, 3), cache_size=1)
        distribution = TransformedDistribution(normal(), transform, validate_args=False)
        return distribution.log_prob(value)

    params, values = torch.randn(5, 4, dtype=DOUBLE), torch.randn(5, dtype=DOUBLE)
    found = torch.func.vmap(log_prob)(params, values)
    torch.testing.assert_close(found, log_prob(params, values))
    hessian = torch.func.hessian(log_prob)(params[0], values[0])
    expected = torch.autograd.functional.hessian(lambda p: log_prob(p, values[0]), params[0])
    torch.testing.assert_close(hessian, expected)


# Half types


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_validation_counts_an_edge_as_its_rounding(dtype: torch.dtype, sequences: bool) -> None:
    """0.7, 0.3 and 1.1: each is rounded upwards by a half type, and so beyond float32's."""
    tops = [0.7, 0.3, 1.1] if sequences else [1.1] * 3
    box: dict[str, Any] = {"left": [0.0] * 3, "right": tops, "bottom": [0.0] * 3, "top": tops}
    if not sequences:
        box = {"left": 0.0, "right": 1.1, "bottom": 0.0, "top": 1.1}
    transform = spline(3, tails=None, dtype=dtype, **box)
    upper = torch.tensor(tops).to(dtype)
    base = Uniform(torch.zeros(3, dtype=dtype), 2 * upper)
    distribution = TransformedDistribution(base, transform, validate_args=True)
    assert bool(transform.domain.check(upper).all())
    assert not bool(transform.domain.check(1.02 * upper).any())
    assert torch.equal(transform(upper), upper)
    assert bool(distribution.log_prob(upper).isfinite().all())
    for constraint in (transform.domain, transform.codomain):
        inner = torch.distributions.biject_to(constraint)(torch.zeros(3))
        torch.testing.assert_close(inner, torch.tensor(tops) / 2)
        assert torch.equal(torch.distributions.transform_to(constraint)(torch.zeros(3)), inner)


# zuko


@pytest.mark.parametrize("patched", [False, True])
def test_zukos_own_flow_with_our_spline(patched: bool) -> None:
    zuko = pytest.importorskip("zuko")
    theirs = zuko.flows.NSF(3, context=2, bins=5, hidden_features=(16,))
    ours = zuko.flows.MAF(
        3,
        context=2,
        hidden_features=(16,),
        univariate=partial(RQSplineTransform, tail_bound=5.0, parametrization="softclip"),
        shapes=[(5,), (5,), (4,)],
    )
    ours.load_state_dict(theirs.state_dict())
    x, context = 3 * torch.randn(64, 3), torch.randn(64, 2)
    results = []
    with robustflow.compat.patch("zuko") if patched else nullcontext():
        for flow in (theirs, ours):
            loss = -flow(context).log_prob(x)
            gradients = torch.autograd.grad(loss.mean(), list(flow.parameters()))
            torch.manual_seed(1)
            sample, log_prob = flow(context).rsample_and_log_prob((2,))
            results.append((loss, gradients, sample, log_prob))
    torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("univariate", "shapes"),
    [
        (ModifiedRQSplineTransform, [(4,)]),
        (ConditionalAffineTransform, [(2,)]),
        (ConditionalAffineTransform, [(), ()]),
    ],
)
@pytest.mark.parametrize("passes", [None, 2], ids=["autoregressive", "coupling"])
def test_zukos_flows_take_the_others(
    univariate: Callable[..., Transform], shapes: list[tuple[int, ...]], passes: int | None
) -> None:
    zuko = pytest.importorskip("zuko")
    flow = zuko.flows.MAF(
        4,
        context=2,
        hidden_features=(16,),
        passes=passes,
        univariate=univariate,
        shapes=shapes,
    ).double()
    context = torch.randn(6, 2, dtype=DOUBLE)
    distribution: Distribution = flow(context)
    sample, log_prob = flow(context).rsample_and_log_prob((5,))
    assert sample.shape == (5, 6, 4) and log_prob.shape == (5, 6)
    torch.testing.assert_close(distribution.log_prob(sample), log_prob)
    log_prob.mean().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_zukos_lazy_and_composed_transforms() -> None:
    zuko = pytest.importorskip("zuko")
    lazy = zuko.lazy.UnconditionalTransform(
        ModifiedRQSplineTransform, torch.randn(3, 4), interval=(-3, 3)
    )
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(3), torch.ones(3), buffer=True
    )
    flow = zuko.lazy.Flow([lazy, zuko.flows.MAF(3).transform], base)
    assert [p.shape for p in lazy.parameters()] == [(3, 4)]
    assert flow().log_prob(flow().sample((5,))).shape == (5,)

    t = zuko.transforms.ComposedTransform(
        affine(3), zuko.transforms.DependentTransform(spline(3), 1)
    )
    x = torch.randn(5, 3, dtype=DOUBLE)
    y, ladj = t.call_and_ladj(x)
    back, minus = t.inv.call_and_ladj(y)
    assert ladj.shape == (5,)
    torch.testing.assert_close((back, minus), (x, -ladj))
    expected = ComposeTransform([t.transforms[0], IndependentTransform(t.transforms[1].base, 1)])
    torch.testing.assert_close(y, expected(x))
    torch.testing.assert_close(ladj, expected.log_abs_det_jacobian(x, y))


def test_the_package_has_it() -> None:
    assert robustflow.distributions.RQSplineTransform is RQSplineTransform
