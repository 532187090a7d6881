"""What a transform keeps of its latest call: what it saves, and what it must not do."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import ComposeTransform, IndependentTransform, Normal
from torch.distributions import TransformedDistribution as Transformed

from robustflow.distributions import (
    ConditionalAffineTransform,
    ModifiedRQSplineTransform,
    RQSplineTransform,
)
from robustflow.distributions.elementwise import ElementwiseTransform
from robustflow.ops.registry import Transform

KINDS: dict[str, tuple[Callable[..., ElementwiseTransform], tuple[tuple[int, ...], ...]]] = {
    "modified": (ModifiedRQSplineTransform, ((3, 4),)),
    "rq": (RQSplineTransform, ((3, 5), (3, 5), (3, 4))),
    "affine": (ConditionalAffineTransform, ((3, 2),)),
}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[..., ElementwiseTransform]:
    """A transform's constructor, with parameters that require grad."""
    kind, shapes = KINDS[request.param]
    parameters = [torch.randn(shape, requires_grad=True) for shape in shapes]
    return lambda **settings: kind(*parameters, **settings)


class Calls:
    """How many calls of an operator there were since it was last asked."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> int:
        number, self.number = self.number, 0
        return number


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    count = Calls()
    original = Transform.apply

    def counted(*args: Any) -> Any:
        count.number += 1
        return original(*args)

    monkeypatch.setattr(Transform, "apply", counted)
    return count


@contextmanager
def no_collection() -> Iterator[None]:
    """Only what reference counts free is freed."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def normal(shape: tuple[int, ...] = (3,)) -> Normal:
    return Normal(torch.zeros(shape), torch.ones(shape))


@pytest.mark.parametrize("cache_size", [0, 1])
def test_one_call_gives_everything(
    make: Callable[..., ElementwiseTransform], calls: Calls, cache_size: int
) -> None:
    t = make(cache_size=cache_size)
    x = torch.randn(7, 3)
    y = t(x)
    ladj = t.log_abs_det_jacobian(x, y)
    minus = t.inv.log_abs_det_jacobian(y, x)
    assert calls() == 1 and torch.equal(minus, -ladj)

    y = torch.randn(7, 3)
    x = t.inv(y)
    minus = t.inv.log_abs_det_jacobian(y, x)
    ladj = t.log_abs_det_jacobian(x, y)
    assert calls() == 1 and torch.equal(minus, -ladj)

    for each in (t, t.inv):
        x = torch.randn(7, 3)
        y, ladj = each.call_and_ladj(x)
        assert torch.equal(each.log_abs_det_jacobian(x, y), ladj)
        assert calls() == 1


def test_cache_size(make: Callable[..., ElementwiseTransform], calls: Calls) -> None:
    x = torch.randn(7, 3)
    t = make(cache_size=0)
    assert t(x) is not t(x) and t.inv(t(x)) is not x
    calls()

    t = make(cache_size=0).with_cache()
    y = t(x)
    assert t(x) is y and t.inv(y) is x and t.call_and_ladj(x)[0] is y
    back, _ = t.inv.call_and_ladj(y)
    assert back is x and calls() == 1
    other = torch.randn(7, 3)
    assert t.inv(t(other)) is other and t.inv(y) is not x  # the latest only
    assert calls() == 2

    assert t.with_cache(1) is t and t.inv.with_cache(1) == t.inv
    assert t.with_cache(0)(x) is not t.with_cache(0)(x)


def test_another_tensor_is_another_call(
    make: Callable[..., ElementwiseTransform], calls: Calls
) -> None:
    t = make()
    x = torch.randn(7, 3)
    y = t(x)
    ladj = t.log_abs_det_jacobian(x, y)
    calls()
    t(torch.randn(7, 3))
    assert torch.equal(t.log_abs_det_jacobian(x, y), ladj) and calls() == 2
    # An equal tensor is another one: a gradient has to reach it.
    y = t(x)
    leaf = x.clone().requires_grad_()
    assert t.log_abs_det_jacobian(leaf, y).requires_grad and calls() == 2


@pytest.mark.parametrize("wrap", ["plain", "list", "independent", "composed"])
def test_log_prob_costs_one_call_a_transform(
    make: Callable[..., ElementwiseTransform], calls: Calls, wrap: str
) -> None:
    parts: Any = {
        "plain": lambda: make(),
        "list": lambda: [make(), make()],
        "independent": lambda: IndependentTransform(make(), 1),
        # torch's composition computes what lies between anew unless its parts are cached.
        "composed": lambda: ComposeTransform([make(), make()], cache_size=1),
    }[wrap]()
    distribution = Transformed(normal(), parts)
    number = 2 if wrap in ("list", "composed") else 1
    value = torch.randn(7, 3)
    distribution.log_prob(value)
    assert calls() == number
    distribution.rsample((7,))
    assert calls() == number


@pytest.mark.parametrize("cache_size", [0, 1])
def test_a_write_is_noticed(
    make: Callable[..., ElementwiseTransform], calls: Calls, cache_size: int
) -> None:
    t = make(cache_size=cache_size)
    parameter: Tensor = t._parameters[0]
    x = torch.randn(7, 3)

    def write(tensor: Tensor) -> None:
        with torch.no_grad():
            tensor.add_(0.25)

    for written in (x, parameter):
        y = t(x)
        write(written)
        fresh = make()
        expected, ladj = fresh.call_and_ladj(x)
        assert torch.equal(t.log_abs_det_jacobian(x, y), ladj)
        assert torch.equal(t(x), expected)
        y = t(x)
        write(written)
        assert torch.equal(t.inv(y), make().inv(y))
    y = t(x)
    write(y)
    assert not torch.equal(t.inv(y), x)


def test_another_parameter_is_noticed(make: Callable[..., ElementwiseTransform]) -> None:
    t = make(cache_size=1)
    x = torch.randn(7, 3)
    y = t(x)
    name = t.parameter_names[0]
    setattr(t, name, (2 * getattr(t, name).detach()).requires_grad_())
    expected, ladj = t.with_cache(0).call_and_ladj(x)
    assert torch.equal(t.log_abs_det_jacobian(x, y), ladj)
    assert torch.equal(t(x), expected) and not torch.equal(expected, y)


@pytest.mark.parametrize("cache_size", [0, 1])
def test_a_gradient_is_never_lost_to_what_was_kept(
    make: Callable[..., ElementwiseTransform], cache_size: int
) -> None:
    def gradients(t: ElementwiseTransform, value: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(Transformed(normal(), t).log_prob(value).sum(), t._parameters)

    t = make(cache_size=cache_size)
    value = Transformed(normal(), t).sample((7,))  # without a graph
    torch.testing.assert_close(gradients(t, value), gradients(make(), value.clone()))

    x = torch.randn(7, 3)
    with torch.no_grad():
        y = t(x)
    assert t.log_abs_det_jacobian(x, y).requires_grad
    x.requires_grad_()
    assert t(x).requires_grad
    with torch.no_grad():  # a graph that nobody asked for does no harm, as in torch
        t(x)
    with torch.inference_mode():
        y = t(x)
        assert torch.equal(t.log_abs_det_jacobian(x, y), make().log_abs_det_jacobian(x, y))


def test_nothing_stays_in_memory(make: Callable[..., ElementwiseTransform]) -> None:
    with no_collection():
        t = make()
        x = torch.randn(7, 3)
        y = t(x)
        node = weakref.ref(t.log_abs_det_jacobian(x, y))
        assert node() is not None
        del y
        assert node() is None

        with torch.no_grad():  # y's graph would hold x
            y = t(x)
            node = weakref.ref(t.log_abs_det_jacobian(x, y))
        assert node() is not None
        del x
        assert node() is None

        t = make(cache_size=1)
        held = weakref.ref(t(torch.randn(7, 3)))
        assert held() is not None
        t(torch.randn(7, 3))
        assert held() is None

        # The transform and what it keeps go with the last reference: no cycles, in either class.
        distribution = Transformed(normal(), t)
        distribution.log_prob(torch.randn(7, 3))
        assert t._kept is not None
        gone: list[Any] = [weakref.ref(each) for each in (t, t.inv, t._kept)]
        del t, distribution
        assert [each() for each in gone] == [None] * 3


def test_threads_do_not_mix_their_calls(make: Callable[..., ElementwiseTransform]) -> None:
    t = make(cache_size=0)
    inputs = [torch.randn(7, 3) for _ in range(8)]
    with torch.no_grad():
        expected = [make().call_and_ladj(x) for x in inputs]

    def work(x: Tensor) -> list[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            return [t.call_and_ladj(x) for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(work, inputs), expected, strict=True):
            for y, ladj in found:
                assert torch.equal(y, wanted[0]) and torch.equal(ladj, wanted[1])
