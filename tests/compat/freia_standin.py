"""A stand-in for the part of FrEIA's main branch that the drop-in touches, from its documented API.

PyPI's FrEIA has no splines, and tests install nothing from elsewhere. Names, signatures and the
parametrisation are FrEIA's; the code is our own. Where the main branch is installed, the tests run
on it instead.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

_ONE = math.log(math.e - 1)  # softplus of it is 1


class BinnedSplineBase(nn.Module):
    def __init__(
        self,
        dims_in: Any,
        dims_c: Any = None,
        bins: int = 10,
        parameter_counts: dict[str, int] | None = None,
        min_bin_sizes: tuple[float, float] = (0.1, 0.1),
        default_domain: tuple[float, float, float, float] = (-3.0, 3.0, -3.0, 3.0),
        identity_tails: bool = False,
        domain_clamping: float | None = None,
    ) -> None:
        super().__init__()
        self.bins, self.min_bin_sizes, self.domain = bins, min_bin_sizes, default_domain
        self.identity_tails, self.domain_clamping = identity_tails, domain_clamping
        position = {"total_width": 1} if identity_tails else {"bottom": 1, "left": 1}
        self.parameter_counts = {
            "widths": bins,
            "heights": bins,
            **position,
            **(parameter_counts or {}),
        }

    def split_parameters(self, parameters: Tensor, split_len: int) -> dict[str, Tensor]:
        parameters = parameters.movedim(1, -1).unflatten(-1, (split_len, -1))
        parts = parameters.split(list(self.parameter_counts.values()), -1)
        return dict(zip(self.parameter_counts, parts, strict=True))

    def clamp_domain(self, size: Tensor) -> Tensor:
        return (
            size
            if self.domain_clamping is None
            else self.domain_clamping * torch.tanh(size / self.domain_clamping)
        )

    def constrain_parameters(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        left, right, bottom, top = self.domain
        if self.identity_tails:
            size = self.clamp_domain((right - left) * softplus(parameters["total_width"] + _ONE))
            for name in ("widths", "heights"):
                parameters[name] = size * parameters[name].softmax(-1)
            parameters["left"] = parameters["bottom"] = -size / 2
            return parameters
        for sizes, edge, low, high, least in (
            ("widths", "left", left, right, self.min_bin_sizes[0]),
            ("heights", "bottom", bottom, top, self.min_bin_sizes[1]),
        ):
            shift = math.log(math.expm1((high - low) / self.bins - least))
            raw = least + softplus(parameters[sizes] + shift)
            total = raw.sum(-1, keepdim=True)
            resize = self.clamp_domain(total) / total
            parameters[sizes] = raw * resize
            parameters[edge] = (parameters[edge] + low) * resize
        return parameters

    def binned_spline(
        self, x: Tensor, parameters: dict[str, Tensor], spline: Any, rev: bool = False
    ) -> tuple[Tensor, Tensor]:
        x = x.movedim(1, -1)
        knots = [
            torch.cat([parameters[edge], parameters[edge] + parameters[sizes].cumsum(-1)], -1)
            for edge, sizes in (("left", "widths"), ("bottom", "heights"))
        ]
        low, high = (knots[rev][..., 0], knots[rev][..., -1])
        inside = (low < x) & (x <= high)
        k = (x.unsqueeze(-1) > knots[rev][..., 1:-1]).sum(-1, keepdim=True)

        def at(values: Tensor, index: Tensor) -> Tensor:
            return values.gather(-1, index).squeeze(-1)

        edges = {
            "left": at(knots[0], k),
            "right": at(knots[0], k + 1),
            "bottom": at(knots[1], k),
            "top": at(knots[1], k + 1),
            "deltas_left": at(parameters["deltas"], k),
            "deltas_right": at(parameters["deltas"], k + 1),
        }
        middle = (edges["bottom"] + edges["top"] if rev else edges["left"] + edges["right"]) / 2
        y, log_jac = spline(torch.where(inside, x, middle), edges, rev=rev)
        scale = (knots[1][..., -1] - knots[1][..., 0]) / (knots[0][..., -1] - knots[0][..., 0])
        shift = knots[1][..., 0] - scale * knots[0][..., 0]
        outer = (x - shift) / scale if rev else scale * x + shift
        y = torch.where(inside, y, outer)
        log_jac = torch.where(inside, log_jac, torch.log(scale)).flatten(1).sum(1)
        return y.movedim(-1, 1), -log_jac if rev else log_jac


def _with_derivatives(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    scale = parameters["heights"].sum(-1, keepdim=True) / parameters["widths"].sum(-1, keepdim=True)
    inner = softplus(parameters["deltas"] + _ONE)
    parameters["deltas"] = torch.cat([scale, inner, scale], -1)
    return parameters


def _bin(x: Tensor, p: dict[str, Tensor], rev: bool) -> tuple[Tensor, Tensor]:
    """The textbook formula in one bin; returns log dy/dx in both directions, as FrEIA's does."""
    width, height = p["right"] - p["left"], p["top"] - p["bottom"]
    s, d0, d1 = height / width, p["deltas_left"], p["deltas_right"]
    if rev:
        u = x - p["bottom"]
        a = height * (s - d0) + u * (d0 + d1 - 2 * s)
        b = height * d0 - u * (d0 + d1 - 2 * s)
        t = 2 * s * u / (b + torch.sqrt(b**2 + 4 * a * s * u))
        out = p["left"] + width * t
    else:
        t = (x - p["left"]) / width
    bottom = s + (d0 + d1 - 2 * s) * t * (1 - t)
    if not rev:
        out = p["bottom"] + height * (s * t**2 + d0 * t * (1 - t)) / bottom
    top = s**2 * (d1 * t**2 + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2)
    return out, torch.log(top) - 2 * torch.log(bottom)


class RationalQuadraticSpline(nn.Module):
    def __init__(
        self,
        dims_in: Any,
        dims_c: Any = None,
        subnet_constructor: Any = None,
        split_len: float = 0.5,
        bins: int = 10,
        **options: Any,
    ) -> None:
        super().__init__()
        self.split_len1 = round(dims_in[0][0] * split_len)
        self.split_len2 = dims_in[0][0] - self.split_len1
        self.spline_base = BinnedSplineBase(
            dims_in, bins=bins, parameter_counts={"deltas": bins - 1}, **options
        )
        count = sum(self.spline_base.parameter_counts.values())
        self.subnet1 = subnet_constructor(self.split_len2, self.split_len1 * count)
        self.subnet2 = subnet_constructor(self.split_len1, self.split_len2 * count)

    def constrain_parameters(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return _with_derivatives(self.spline_base.constrain_parameters(parameters))

    def _spline1(self, x: Tensor, parameters: dict[str, Tensor], rev: bool = False) -> Any:
        return _bin(x, parameters, rev)

    def _spline2(self, x: Tensor, parameters: dict[str, Tensor], rev: bool = False) -> Any:
        return _bin(x, parameters, rev)

    def _coupling(self, x: Tensor, raw: Tensor, spline: Any, rev: bool) -> Any:
        parameters = self.constrain_parameters(self.spline_base.split_parameters(raw, x.shape[1]))
        return self.spline_base.binned_spline(x=x, parameters=parameters, spline=spline, rev=rev)

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        first, second = x[0].split([self.split_len1, self.split_len2], 1)
        if rev:
            second, j2 = self._coupling(second, self.subnet2(first), self._spline2, rev)
            first, j1 = self._coupling(first, self.subnet1(second), self._spline1, rev)
        else:
            first, j1 = self._coupling(first, self.subnet1(second), self._spline1, rev)
            second, j2 = self._coupling(second, self.subnet2(first), self._spline2, rev)
        return (torch.cat([first, second], 1),), j1 + j2


class ElementwiseRationalQuadraticSpline(BinnedSplineBase):
    def __init__(self, dims_in: Any, dims_c: Any = (), bins: int = 10, **options: Any) -> None:
        super().__init__(dims_in, bins=bins, parameter_counts={"deltas": bins - 1}, **options)
        self.channels = dims_in[0][0]
        count = self.channels * sum(self.parameter_counts.values())
        self.spline_parameters = nn.Parameter(torch.zeros(count, *dims_in[0][1:]))

    def constrain_parameters(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        return _with_derivatives(super().constrain_parameters(parameters))

    def spline(self, x: Tensor, parameters: dict[str, Tensor], rev: bool = False) -> Any:
        return _bin(x, parameters, rev)

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        raw = self.spline_parameters.expand(x[0].shape[0], *self.spline_parameters.shape)
        parameters = self.constrain_parameters(self.split_parameters(raw, self.channels))
        y, log_jac = self.binned_spline(x=x[0], parameters=parameters, spline=self.spline, rev=rev)
        return (y,), log_jac


def install(patch: Any) -> Any:
    """Put the stand-in where FrEIA would be, by ``monkeypatch``; returns ``FrEIA.modules``."""
    here = sys.modules[__name__]
    modules = ModuleType("FrEIA.modules")
    for owner in (RationalQuadraticSpline, ElementwiseRationalQuadraticSpline):
        setattr(modules, owner.__name__, owner)
    names = {
        "FrEIA": ModuleType("FrEIA"),
        "FrEIA.modules": modules,
        "FrEIA.modules.splines": ModuleType("FrEIA.modules.splines"),
        "FrEIA.modules.splines.binned": here,
    }
    for name, module in names.items():
        patch.setitem(sys.modules, name, module)
    return modules
