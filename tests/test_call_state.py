"""What surrounds a call, and the answers if PyTorch lacks a private interface."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from robustflow import _call_state, ops
from robustflow import functional as F
from robustflow._call_state import is_plain_eager, is_plain_tensor, kind_of_call
from robustflow._transforms import MODIFIED_RQ

SOURCE = Path(_call_state.__file__)
X = torch.ones(3)


def _seen(around: Callable[[Callable[[Tensor], Tensor]], Any]) -> tuple[str, bool]:
    """(kind_of_call(), is_plain_eager()) inside a function that a transform of torch.func calls."""
    found = []

    def function(x: Tensor) -> Tensor:
        found.append((kind_of_call(), is_plain_eager()))
        return x.sum()

    around(function)
    return found[0]


def test_plain() -> None:
    assert _seen(lambda f: f(X)) == ("plain", True)


@pytest.mark.parametrize(
    ("around", "kind"),
    [
        (lambda f: torch.func.vmap(f)(X), "batched"),
        (lambda f: torch.func.vmap(torch.func.vmap(f))(torch.ones(2, 3)), "batched"),
        (lambda f: torch.func.grad(f)(X), "differentiated"),
        (lambda f: torch.func.vmap(torch.func.grad(f))(X), "differentiated"),
        (lambda f: torch.func.jvp(f, (X,), (X,)), "differentiated"),
    ],
    ids=["vmap", "vmap of vmap", "grad", "vmap of grad", "jvp"],
)
def test_transforms_of_torch_func(around: Any, kind: str) -> None:
    assert _seen(around) == (kind, False)


def test_forward_mode() -> None:
    with forward_ad.dual_level():
        assert _seen(lambda f: f(X)) == ("differentiated", False)
        assert _call_state.has_tangent(None, X, forward_ad.make_dual(X, X))
        assert not _call_state.has_tangent(None, X)


def test_modes_and_tracing() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert _seen(lambda f: f(X)) == ("plain", False)
    assert _seen(lambda f: torch.jit.trace(f, X)) == ("plain", False)


def test_compiled() -> None:
    kinds = ["plain", "compiled", "batched", "differentiated"]

    def function(x: Tensor) -> Tensor:
        return x + kinds.index(kind_of_call())

    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), X + 1)


def test_plain_tensors() -> None:
    class Own(Tensor):
        pass

    assert is_plain_tensor(X) and is_plain_tensor(torch.nn.Parameter(X))
    assert not is_plain_tensor(X.as_subclass(Own))


def _interfaces() -> list[str]:
    return re.findall(r'_find\(\s*"([^"]+)"', SOURCE.read_text())


def test_this_pytorch_has_every_interface() -> None:
    """One that a later version lacks is a change to look at, though calls stay right."""
    assert len(_interfaces()) == 7
    for path in _interfaces():
        assert functools.reduce(getattr, path.split("."), torch) is not None
    assert hasattr(forward_ad, "_current_level") and _call_state.KERNELS_CAN_BE_CALLED


def test_without_any_interface_no_call_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(function: Any, path: Any, start: Any) -> Any:
        raise AttributeError(path)

    monkeypatch.setattr(functools, "reduce", missing)
    monkeypatch.delattr(forward_ad, "_current_level")
    spec = importlib.util.spec_from_file_location("call_state_without", SOURCE)
    assert spec is not None and spec.loader is not None
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    assert without.kind_of_call() == "differentiated"
    assert not without.is_plain_eager() and not without.is_plain_tensor(X)
    assert without.in_torch_func() and not without.is_tracing()
    assert not without.KERNELS_CAN_BE_CALLED


@pytest.mark.parametrize("lacking", ["innermost_transform", "_forward_mode"])
def test_without_an_answer_the_reference_serves(
    lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, params = torch.randn(4, 3), torch.randn(4, 12)
    expected = F.modified_rq_spline(x, params)
    otherwise: Any = _call_state._unknown
    if lacking == "_forward_mode":
        otherwise = type("Module", (), {"_current_level": 0})
    monkeypatch.setattr(_call_state, lacking, otherwise)
    transform = ops.of(MODIFIED_RQ)
    assert transform.route(x) is transform.reference
    for found, wanted in zip(F.modified_rq_spline(x, params), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
