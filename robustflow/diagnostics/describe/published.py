"""The published code of SRFlow, LLFlow and robustNF: by the names of its classes.

Those repositories are not packages, so their modules are recognised by class name and attributes. A
class of another project with the same name and other attributes is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from robustflow.diagnostics.bounds import (
    INFINITY,
    SRFLOW,
    Bounds,
    Range,
    affine_bounds,
    bounds_of,
    cubic_bspline_bounds,
    modified_rq_bounds,
)
from robustflow.diagnostics.describe._tree import (
    Chain,
    Tree,
    elementwise,
    joined,
    linear,
    same,
    type_of,
    unknown,
)
from robustflow.diagnostics.describe.layers import Describe, actnorm
from robustflow.diagnostics.kinds import Kind
from robustflow.nn.elementwise import Affine

_EDGES = ("_left", "_right", "_bottom", "_top")


def describe(module: nn.Module, name: str, child: Describe) -> Tree | None:
    kind = type_of(module).removesuffix("2dToy")
    needed = _NEEDED.get(kind)
    if needed is None or not all(hasattr(module, each) for each in needed):
        return None
    return _KNOWN[kind](module, name)


def _affine(module: Any, name: str) -> Tree:
    if getattr(module, "fCurve", None) is not None:
        return unknown(
            name, module, "a coupling with the option le_curve,", kind="self-conditional"
        )
    reparam = "Reparam" in type_of(module) or bool(getattr(module, "affine_reparam", False))
    bounds = bounds_of(Affine(eps=float(module.affine_eps), reciprocal=reparam))
    return _steps(module, name, "fAffine", bounds)


def _rq_spline(module: Any, name: str) -> Tree:
    edges = [float(getattr(module, edge)) for edge in _EDGES]
    if edges[:2] != edges[2:]:  # the identity outside would not continue it
        return _steps(module, name, "fRQspline", None)
    bounds = modified_rq_bounds((edges[0], edges[1]), 1e-3, 1e-3, "exp")
    return _steps(module, name, "fRQspline", replace(bounds, computed=None))


def _bspline(module: Any, name: str) -> Tree:
    edges = [float(getattr(module, edge)) for edge in _EDGES]
    if edges[:2] != edges[2:]:
        return _steps(module, name, "fBspline", None)
    return _steps(module, name, "fBspline", cubic_bspline_bounds((edges[0], edges[1]), 1e-2))


def _steps(module: Any, name: str, net: str, bounds: Bounds | None) -> Tree:
    """Injector, std-conditional and self-conditional step, those that the coupling has."""
    kept = module.in_channels // 2
    changed = (module.in_channels - kept) / module.in_channels
    kinds: tuple[tuple[str, Kind, float], ...] = (
        ("fFeatures", "injector", 1.0),
        (f"{net}_std", "std-conditional", changed),
        (net, "self-conditional", changed),
    )
    parts = [
        elementwise(joined(name, its), module, kind, bounds, fraction)
        for its, kind, fraction in kinds
        if hasattr(module, its)
    ]
    return Chain(tuple(parts))


def _split(module: Any, name: str) -> Tree:
    """z2 = mean + (exp(logs) + eps) latent: its scale has no bound."""
    eps = float(module.logs_eps)
    formula = "(x - t) / s, s = exp(a)" + (f" + {eps:g}" if eps else "")
    scale = Range(eps, INFINITY).reciprocal
    bounds = affine_bounds(scale, "data", formula=formula, source=SRFLOW)
    consumed, passed = module.num_channels_consume, module.num_channels_pass
    return elementwise(name, module, "split", bounds, consumed / (consumed + passed))


_KNOWN: Mapping[str, Callable[[Any, str], Tree]] = {
    "CondAffineSeparatedAndCond": _affine,
    "CondAffineReparamSeparatedAndCond": _affine,
    "CondRQsplineSeparatedAndCond": _rq_spline,
    "CondBsplineSeparatedAndCond": _bspline,
    "ActNorm2d": lambda module, name: actnorm(name, module, module.bias, module.logs),
    "InvertibleConv1x1": lambda module, name: linear(name, module, module.weight),
    "Split2d": _split,
    "SqueezeLayer": lambda module, name: same(name, module),
}
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "CondAffineSeparatedAndCond": ("in_channels", "affine_eps", "fAffine"),
    "CondAffineReparamSeparatedAndCond": ("in_channels", "affine_eps", "fAffine"),
    "CondRQsplineSeparatedAndCond": ("in_channels", "fRQspline", *_EDGES),
    "CondBsplineSeparatedAndCond": ("in_channels", "fBspline", *_EDGES),
    "ActNorm2d": ("bias", "logs"),
    "InvertibleConv1x1": ("weight",),
    "Split2d": ("logs_eps", "num_channels_consume", "num_channels_pass"),
    "SqueezeLayer": ("factor",),
}
