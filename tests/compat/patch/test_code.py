"""Every reference to a changed function runs the change, and looks as before."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from robustflow import compat
from tests.compat.served import counts

splines = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
FUNCTION = splines.unconstrained_rational_quadratic_spline


def with_default(*args: Any, spline: Callable[..., Any] = FUNCTION, **kwargs: Any) -> Any:
    return spline(*args, **kwargs)


class Holder:
    attribute = staticmethod(FUNCTION)
    bound = functools.partialmethod(lambda self, *args, **kwargs: FUNCTION(*args, **kwargs))


def references() -> Iterator[tuple[str, Callable[..., Any]]]:
    from nflows.transforms import autoregressive
    from nflows.transforms import splines as package

    yield "from-import", FUNCTION
    yield "re-export", package.unconstrained_rational_quadratic_spline
    yield "from-import within nflows", autoregressive.unconstrained_rational_quadratic_spline
    yield "partial", functools.partial(FUNCTION, tails="linear")
    yield "default", with_default
    yield "class attribute", Holder.attribute
    yield "method", Holder().bound
    yield "dictionary", {"spline": FUNCTION}["spline"]
    yield "closure", SimpleNamespace(call=lambda *a, **k: FUNCTION(*a, **k)).call


REFERENCES = dict(references())


def call(function: Callable[..., Any]) -> tuple[torch.Tensor, torch.Tensor]:
    x, w, h, d = (torch.randn(7, *size) for size in ((), (5,), (5,), (4,)))
    result: tuple[torch.Tensor, torch.Tensor] = function(x, w, h, d, tail_bound=3.0)
    return result


@pytest.mark.parametrize("kind", REFERENCES)
def test_reference(kind: str) -> None:
    with compat.patch("nflows"):
        call(REFERENCES[kind])
        assert compat.patched() == {"nflows": counts(kernel=1)}
    call(REFERENCES[kind])
    assert compat.patched() == {}


def test_a_module_imported_later() -> None:
    package, name = sys.modules["nflows.transforms"], "autoregressive"
    kept = sys.modules.pop(f"{package.__name__}.{name}")
    try:
        with compat.patch("nflows"):
            later = importlib.import_module(kept.__name__)
            assert later is not kept
            call(later.unconstrained_rational_quadratic_spline)
            assert compat.patched()["nflows"]["kernel"] == 1
    finally:
        sys.modules[kept.__name__] = kept
        setattr(package, name, kept)  # an import sets it too


def test_signature_docstring_and_source_stay() -> None:
    from zuko.transforms import MonotonicRQSTransform as transform

    def looks() -> list[Any]:
        functions = [FUNCTION, splines.rational_quadratic_spline, transform.__init__]
        return [
            (
                inspect.signature(function),
                function.__doc__,
                function.__name__,
                function.__qualname__,
                function.__module__,
                function.__defaults__,
                inspect.getsource(function),
                function.__code__.co_freevars,
            )
            for function in functions
        ]

    before, code = looks(), FUNCTION.__code__
    names = set(vars(splines))
    with compat.patch("nflows"), compat.patch("zuko"):
        assert FUNCTION.__code__ is not code
        assert looks() == before
        assert set(vars(splines)) == names
    assert FUNCTION.__code__ is code
    assert looks() == before
    assert {"__getattr__", "__getstate__"}.isdisjoint(vars(transform))
