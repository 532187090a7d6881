"""zuko: its lazy flows and transforms."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributions import Transform
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.flows.gaussianization import ElementWiseTransform
from zuko.flows.spline import CircularRQSTransform
from zuko.lazy import Flow, LazyComposedTransform, LazyInverse, UnconditionalTransform
from zuko.transforms import (
    AdditiveTransform,
    IdentityTransform,
    LULinearTransform,
    MonotonicAffineTransform,
    MonotonicRQSTransform,
    PermutationTransform,
    RotationTransform,
)

from robustflow import nn as rnn
from robustflow.compat.convert.methods import FORWARD, overrides
from robustflow.diagnostics.bounds import (
    NICE,
    ONE,
    Bounds,
    Line,
    affine_bounds,
    bounds_of,
    exponential,
    rq_bounds,
)
from robustflow.diagnostics.describe._tree import (
    Chain,
    Tree,
    elementwise,
    joined,
    linear,
    reversed_tree,
    same,
    scaling,
    unknown,
)
from robustflow.diagnostics.describe.layers import Describe, transformed
from robustflow.diagnostics.kinds import Kind
from robustflow.distributions import (
    ConditionalAffineTransform,
    ModifiedRQSplineTransform,
    RQSplineTransform,
)

_LAYERS = (MaskedAutoregressiveTransform, GeneralCouplingTransform, ElementWiseTransform)


def describe(module: Any, name: str, child: Describe) -> Tree | None:
    if isinstance(module, Flow):
        return child(module.transform, joined(name, "transform"))
    if isinstance(module, LazyComposedTransform):
        inside = joined(name, "transforms")
        layers = enumerate(module.transforms)
        return Chain(tuple(child(layer, joined(inside, str(i))) for i, layer in layers))
    if isinstance(module, LazyInverse):
        return reversed_tree(child(module.transform, joined(name, "transform")))
    if isinstance(module, _LAYERS):
        return _layer(module, name)
    if isinstance(module, UnconditionalTransform):
        return _constant(module, name)
    return None


def _layer(module: Any, name: str) -> Tree:
    kind: Kind
    fraction = 1.0
    if isinstance(module, MaskedAutoregressiveTransform):
        kind, known = "autoregressive", MaskedAutoregressiveTransform
    elif isinstance(module, GeneralCouplingTransform):
        kind, known = "self-conditional", GeneralCouplingTransform
        fraction = float((~module.mask).cpu().double().mean())
    else:
        kind, known = (
            ("injector" if hasattr(module, "hyper") else "elementwise"),
            ElementWiseTransform,
        )
    methods = (FORWARD,) if known is ElementWiseTransform else (FORWARD, "meta")
    reason = overrides(module, known, *methods)
    if reason is not None:
        return unknown(name, module, reason, kind=kind, fraction=fraction)
    if hasattr(module, "rescaled"):
        return transformed(name, module, kind, module.rescaled, fraction)
    bounds, what = _univariate(module)
    return elementwise(name, module, kind, bounds, fraction, what=what)


def _univariate(module: Any) -> tuple[Bounds | None, str]:
    """Bounds of the transform that a layer builds from its network's outputs."""
    function, options = _unwrapped(module.univariate)
    what = f"univariate transform {getattr(function, '__name__', type(function).__name__)}"
    known = _KNOWN.get(function)
    if known is None:
        return None, what
    return known(options, module.shapes), what


def _unwrapped(univariate: Any) -> tuple[Any, dict[str, Any]]:
    """A function without its functools.partial, and all its options, defaults included."""
    arguments: dict[str, Any] = {}
    while isinstance(univariate, functools.partial):
        arguments = {**univariate.keywords, **arguments}
        univariate = univariate.func
    try:
        parameters = inspect.signature(univariate).parameters.values()
    except (TypeError, ValueError):  # a callable that has none
        return univariate, arguments
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return univariate, {**defaults, **arguments}


def _affine(options: dict[str, Any], shapes: Any) -> Bounds:
    slope = options["slope"]
    scale = exponential(abs(math.log(slope)))
    formula = f"x s + t, s = exp(a / (1 + |a / log {slope:g}|))"
    return affine_bounds(scale, "latents", formula=formula)


def _rq(options: dict[str, Any], shapes: Any, bound: float | None = None) -> Bounds:
    edge = float(torch.as_tensor(options["bound"] if bound is None else bound).abs().max())
    bins = shapes[0][0]
    return rq_bounds(
        bins, "linear", (-edge, edge, -edge, edge), (0.0, 0.0), options["slope"], "softclip"
    )


def _circular(options: dict[str, Any], shapes: Any) -> Bounds:
    """x is turned by pi and wrapped into [-pi, pi), then goes through the spline of that box."""
    spline = _rq(options, shapes, math.pi)
    line = Line(0.0, math.pi)
    return Bounds(
        derivative=spline.derivative,
        tail=None,
        radius=math.pi,
        displacement=2 * math.pi,
        inverse=line,
        forward=line,
        formula=f"{spline.formula}, after a shift by pi of the circle",
        source=spline.source,
        note="Values live on a circle: outside [-pi, pi] they wrap round.",
    )


def _ours(kind: Any) -> Callable[[dict[str, Any], Any], Bounds | None]:
    """Bounds of a transform of robustflow.distributions, by its settings of the same name."""

    def known(options: dict[str, Any], shapes: Any) -> Bounds | None:
        names = kind.__dataclass_fields__
        settings = {name: value for name, value in options.items() if name in names}
        if kind is rnn.RQSpline:
            if any(options[edge] is not None for edge in ("left", "right", "bottom", "top")):
                return None
            settings["num_bins"] = shapes[0][0]
            settings["tail_bound"] = float(torch.as_tensor(settings["tail_bound"]).abs().max())
            if settings["parametrization"] == "knots":
                return None
        return bounds_of(kind(**settings))

    return known


_KNOWN: dict[Any, Callable[[dict[str, Any], Any], Bounds | None]] = {
    MonotonicAffineTransform: _affine,
    MonotonicRQSTransform: _rq,
    CircularRQSTransform: _circular,
    AdditiveTransform: lambda *_: affine_bounds(ONE, "latents", formula="x + t", source=NICE),
    IdentityTransform: lambda *_: affine_bounds(ONE, None, formula="x", source=NICE),
    ConditionalAffineTransform: _ours(rnn.Affine),
    ModifiedRQSplineTransform: _ours(rnn.ModifiedRQSpline),
    RQSplineTransform: _ours(rnn.RQSpline),
}


def _constant(module: nn.Module, name: str) -> Tree:
    """A transform whose parameters are the module's own."""
    with torch.no_grad():
        transform: Transform = module()
        if isinstance(transform, (PermutationTransform, RotationTransform, IdentityTransform)):
            return same(name, module)
        if isinstance(transform, LULinearTransform):
            return linear(name, module, transform.L @ transform.U)
        if isinstance(transform, MonotonicAffineTransform):
            scale, shift = torch.broadcast_tensors(transform.scale, transform.shift)
            return scaling(name, module, scale, shift, kind="elementwise")
    return unknown(name, module, f"unknown transform {type(transform).__name__}")
