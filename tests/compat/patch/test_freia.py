"""FrEIA's rational-quadratic splines: predicted boxes, affine tails."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow import compat
from tests.compat import freia_standin
from tests.compat.served import counts


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """FrEIA.modules of the main branch where it is installed, else of the stand-in."""
    try:
        found = importlib.import_module("FrEIA.modules")
    except ImportError:
        return freia_standin.install(monkeypatch)
    if not hasattr(found, "RationalQuadraticSpline"):
        return freia_standin.install(monkeypatch)
    return found


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "identity tails": {"identity_tails": True},
    "clamped": {"domain_clamping": 2.0},
    "clamped identity tails": {"identity_tails": True, "domain_clamping": 2.0},
    "another domain": {"default_domain": (-1.0, 2.0, -4.0, 1.0), "bins": 3},
}


def subnet(inputs: int, outputs: int) -> nn.Module:
    # Moderate: with identity tails FrEIA's bins have no smallest size, and tiny ones cancel.
    net = nn.Linear(inputs, outputs)
    nn.init.normal_(net.weight, std=0.3)
    nn.init.normal_(net.bias, std=0.3)
    return net


def convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1)


def outcome(layer: Any, x: Tensor, rev: bool) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    (y,), log_jac_det = layer((x,), rev=rev)
    cotangents = (torch.linspace(-1, 2, y.numel()).double().view_as(y), 1 + log_jac_det.detach())
    leaves = [x, *layer.parameters()]
    return y, log_jac_det, *torch.autograd.grad((y, log_jac_det), leaves, cotangents)


def same(layer: Any, x: Tensor, kernel: int, fallback: int = 0) -> None:
    for rev in (False, True):
        expected = outcome(layer, x, rev)
        with compat.patch("FrEIA"):
            found = outcome(layer, x, rev)
            assert compat.patched()["FrEIA"] == counts(kernel=kernel, fallback=fallback)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", OPTIONS)
def test_coupling(modules: Any, options: str) -> None:
    layer = modules.RationalQuadraticSpline(
        [(5,)], subnet_constructor=subnet, **OPTIONS[options]
    ).double()
    same(layer, 3 * torch.randn(20, 5).double(), kernel=2)


def test_coupling_of_images(modules: Any) -> None:
    layer = modules.RationalQuadraticSpline([(4, 2, 3)], subnet_constructor=convolution).double()
    same(layer, 3 * torch.randn(6, 4, 2, 3).double(), kernel=2)


@pytest.mark.parametrize("options", OPTIONS)
def test_elementwise(modules: Any, options: str) -> None:
    layer = modules.ElementwiseRationalQuadraticSpline([(5,)], **OPTIONS[options]).double()
    nn.init.normal_(layer.spline_parameters)
    same(layer, 3 * torch.randn(20, 5).double(), kernel=1)


def test_a_subclass_with_other_constraints(modules: Any) -> None:
    class Softer(modules.RationalQuadraticSpline):
        def constrain_parameters(self, parameters: Any) -> Any:
            parameters = super().constrain_parameters(parameters)
            parameters["deltas"] = 0.5 + parameters["deltas"] / 2
            return parameters

    layer = Softer([(5,)], subnet_constructor=subnet).double()
    same(layer, 3 * torch.randn(20, 5).double(), kernel=0, fallback=2)


def test_pypi_has_no_spline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FrEIA", "FrEIA.modules"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    with pytest.raises(compat.PatchError, match=r"0\.2 of PyPI.*no rational-quadratic spline"):
        compat.patch("FrEIA")
