"""Standing around calls of one object's method: others, copies and classes see nothing of it."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from robustflow._intercept import intercept


class Adder:
    def add(self, x: int, *, y: int = 0) -> int:
        """Sum."""
        return x + y


class Child(Adder):
    pass


class Chatty(Adder):
    def add(self, x: int, *, y: int = 0) -> int:
        return super().add(x, y=y) + 1000


def plus(number: int) -> Callable[..., int]:
    return lambda proceed, *args, **kwargs: proceed(*args, **kwargs) + number


def times(number: int) -> Callable[..., int]:
    return lambda proceed, *args, **kwargs: proceed(*args, **kwargs) * number


def test_only_the_object_that_was_asked_for_changes() -> None:
    one, other = Adder(), Adder()
    before = Adder.__dict__["add"]
    interception = intercept(one, "add", plus(10))
    assert (one.add(1, y=2), other.add(1, y=2)) == (13, 3)
    assert one.__dict__ == {} and Adder.add.__doc__ == "Sum."
    interception.remove()
    interception.remove()
    assert one.add(1, y=2) == 3 and Adder.__dict__["add"] is before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_interceptions_may_end_in_any_order(order: tuple[int, int]) -> None:
    one = Adder()
    before = Adder.__dict__["add"]
    both = [intercept(one, "add", plus(10)), intercept(one, "add", plus(100))]
    assert one.add(1) == 111
    first, last = order
    both[first].remove()
    assert one.add(1) == (11 if first == 1 else 101)
    both[last].remove()
    assert one.add(1) == 1 and Adder.__dict__["add"] is before


def test_what_changes_results_stands_inside() -> None:
    one = Adder()
    outer = intercept(one, "add", times(2))
    inner = intercept(one, "add", plus(10), inner=True)
    assert one.add(1) == 22  # (1 + 10) * 2, though the inner one came later
    outer.remove()
    inner.remove()


def test_an_inherited_method_is_inherited_again() -> None:
    one, two = Child(), Adder()
    first, second = intercept(one, "add", plus(10)), intercept(two, "add", plus(100))
    assert (one.add(1), two.add(1), Child().add(1)) == (11, 101, 1)
    second.remove()
    assert one.add(1) == 11
    first.remove()
    assert "add" not in vars(Child) and one.add(1) == 1


def test_a_method_that_calls_the_one_above_it_is_seen_once() -> None:
    one, two = Chatty(), Adder()
    both = [intercept(one, "add", plus(10)), intercept(two, "add", plus(100))]
    assert one.add(1) == 1011
    for each in both:
        each.remove()


def test_a_module_function_is_seen_by_all_who_look_it_up() -> None:
    interception = intercept(math, "floor", plus(10))
    assert math.floor(1.5) == 11
    interception.remove()
    assert math.floor(1.5) == 1


def test_a_function_that_somebody_put_around_ours_stays() -> None:
    one = Adder()
    own = Adder.__dict__["add"]
    first = intercept(one, "add", plus(10))
    ours = Adder.add
    Adder.add = lambda self, x, *, y=0: ours(self, x, y=y) * 2  # type: ignore[method-assign]
    try:
        second = intercept(one, "add", plus(100))
        assert one.add(1) == 122  # (1 + 10) * 2 + 100
        second.remove()
        first.remove()
        assert one.add(1) == 2
    finally:
        Adder.add = own  # type: ignore[method-assign]


def test_a_weak_interception_ends_with_its_object() -> None:
    one = Adder()
    before = Adder.__dict__["add"]
    interception = intercept(one, "add", plus(10), weak=True)
    assert one.add(1) == 11 and interception.active
    del one
    gc.collect()
    assert not interception.active and Adder.__dict__["add"] is before


def test_copies_and_pickles_are_plain() -> None:
    layer = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    expected = layer(x)
    interception = intercept(layer, "forward", lambda proceed, x: proceed(x) + 1)
    try:
        assert torch.equal(layer(x), expected + 1)
        copied = copy.deepcopy(layer)
        stored = io.BytesIO()
        pickle.dump(layer, stored)
        stored.seek(0)
        loaded = pickle.load(stored)
        for each in (copied, loaded):
            assert torch.equal(each(x), expected)
            assert each.__dict__.keys() == layer.__dict__.keys()
            assert type(each) is nn.Linear
    finally:
        interception.remove()
    assert torch.equal(layer(x), expected) and "forward" in vars(nn.Linear)


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_compiled_code_runs_the_method_as_it_is() -> None:
    layer = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    expected = layer(x)
    interception = intercept(layer, "forward", lambda proceed, x: proceed(x) + 1)
    try:
        compiled = torch.compile(lambda x: layer(x), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        traced: Any = torch.jit.trace(layer, x, check_trace=False)
        torch.testing.assert_close(traced(x), expected)
    finally:
        interception.remove()
        torch.compiler.reset()


def test_threads_may_come_and_go() -> None:
    objects = [Adder() for _ in range(8)]
    before = Adder.__dict__["add"]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(200):
            interception = intercept(objects[number], "add", plus(number))
            wrong.extend(filter(None, [objects[number].add(1) - 1 - number]))
            interception.remove()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and Adder.__dict__["add"] is before
