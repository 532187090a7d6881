"""normflows, whose forward direction is the one of sampling: everything here is its inverse."""

from __future__ import annotations

from typing import Any

import normflows as nf
import torch
from normflows.flows.affine.autoregressive import Autoregressive, MaskedAffineAutoregressive
from normflows.flows.affine.coupling import AffineCoupling, CCAffineConst
from normflows.flows.base import Composite, Reverse
from normflows.flows.neural_spline import coupling as splines
from normflows.flows.neural_spline.autoregressive import (
    MaskedPiecewiseRationalQuadraticAutoregressive,
)
from normflows.flows.reshape import Merge, Split, Squeeze
from torch import nn

from robustflow.compat.convert.methods import ELEMENTWISE, FORWARD, INVERSE, overrides
from robustflow.compat.convert.normflows import (
    ModifiedRQAutoregressive,
    ModifiedRQCoupling,
    ModifiedRQMaskedFlow,
)
from robustflow.diagnostics.bounds import (
    INFINITY,
    NICE,
    ONE,
    REALNVP,
    Bounds,
    Line,
    Range,
    affine_bounds,
)
from robustflow.diagnostics.describe._nflows_like import (
    autoregressive_scale,
    in_parallel,
    rational_quadratic,
    spline_cdf,
)
from robustflow.diagnostics.describe._scales import scale_of
from robustflow.diagnostics.describe._tree import (
    Branch,
    Chain,
    Part,
    Tree,
    elementwise,
    joined,
    linear,
    reversed_tree,
    same,
    scaling,
    type_of,
    unknown,
)
from robustflow.diagnostics.describe.layers import Describe, transformed
from robustflow.diagnostics.kinds import Kind

_ADDITIVE = affine_bounds(ONE, "data", formula="x - t", source=NICE)
_EXP = affine_bounds(
    Range(0.0, INFINITY), "data", formula="(x - t) / s, s = exp(a)", source=REALNVP
)
_UNIT = Range(0.0, 1.0)
# By scale_map: of 1 / s, where x = y s + t is what sampling computes.
_SCALES = {
    "exp": _EXP,
    "sigmoid": affine_bounds(_UNIT, "data", formula="(x - t) s, s = sigmoid(a + 2)"),
    "sigmoid_inv": affine_bounds(
        _UNIT.reciprocal, "data", formula="(x - t) / s, s = sigmoid(a + 2)"
    ),
}
_RESHAPES = (nf.flows.Permute, Split, Merge, Squeeze, nf.flows.PeriodicWrap)
_SPLINES = (
    nf.flows.CoupledRationalQuadraticSpline,
    nf.flows.CircularCoupledRationalQuadraticSpline,
    nf.flows.AutoregressiveRationalQuadraticSpline,
    nf.flows.CircularAutoregressiveRationalQuadraticSpline,
)


def describe(module: Any, name: str, child: Describe) -> Tree | None:
    if isinstance(module, nf.MultiscaleFlow):
        return _multiscale(module, name, child)
    if isinstance(module, (nf.NormalizingFlow, nf.flows.AffineCouplingBlock, nf.flows.GlowBlock)):
        return _backwards(module.flows, joined(name, "flows"), child)
    if isinstance(module, Composite):
        return _backwards(module._flows, joined(name, "_flows"), child)
    if isinstance(module, Reverse):
        return reversed_tree(child(module.flow, joined(name, "flow")))
    if isinstance(module, _SPLINES):
        inside = "prqct" if hasattr(module, "prqct") else "mprqat"
        return _spline(getattr(module, inside), joined(name, inside))
    if isinstance(module, (AffineCoupling, ModifiedRQCoupling)):
        return _coupling(module, name)
    if isinstance(module, (nf.flows.MaskedAffineFlow, ModifiedRQMaskedFlow)):
        return _masked(module, name)
    if isinstance(module, (MaskedAffineAutoregressive, ModifiedRQAutoregressive)):
        return _autoregressive(module, name)
    return _fixed(module, name)


def _backwards(flows: Any, name: str, child: Describe) -> Tree:
    named = [(flow, joined(name, str(i))) for i, flow in enumerate(flows)]
    return Chain(tuple(child(flow, its_name) for flow, its_name in reversed(named)))


def _multiscale(module: Any, name: str, child: Describe) -> Tree:
    """Level 0 starts from its latents; each later one merges its own with the result so far."""
    inside = joined(name, "flows")
    tree = _backwards(module.flows[0], joined(inside, "0"), child)
    for i in range(1, module.num_levels):
        level = _backwards(module.flows[i], joined(inside, str(i)), child)
        tree = Chain((level, Branch(Chain(), tree)))
    if module.transform is None:
        return tree
    return Chain((child(module.transform, joined(name, "transform")), tree))


def _spline(module: Any, name: str) -> Tree:
    """What the wrappers hold: their inverse is its forward."""
    if isinstance(module, splines.PiecewiseRationalQuadraticCoupling):
        known: Any = splines.PiecewiseRationalQuadraticCoupling
        reason = overrides(module, known, FORWARD, INVERSE, "_piecewise_cdf")
        bounds = rational_quadratic(module) if reason is None else None
        fraction = module.num_transform_features / module.features
        main = elementwise(name, module, "self-conditional", bounds, fraction, what="spline")
        if module.unconditional_transform is None:
            return main
        its_name = joined(name, "unconditional_transform")
        return in_parallel(main, spline_cdf(module.unconditional_transform, its_name, 1 - fraction))
    known = MaskedPiecewiseRationalQuadraticAutoregressive
    reason = overrides(module, known, FORWARD, INVERSE, "_elementwise")
    bounds = rational_quadratic(module) if reason is None else None
    return elementwise(name, module, "autoregressive", bounds, what="spline")


def _coupling(module: Any, name: str) -> Tree:
    kind: Kind = "self-conditional"
    if isinstance(module, ModifiedRQCoupling):
        return transformed(name, module, kind, module.rescaled, None)
    reason = overrides(module, AffineCoupling, FORWARD, INVERSE)
    if reason is not None:
        return unknown(name, module, reason, kind=kind, fraction=None)
    bounds = _SCALES.get(module.scale_map) if module.scale else _ADDITIVE
    return elementwise(name, module, kind, bounds, None, what="scale function")


def _masked(module: Any, name: str) -> Tree:
    kind: Kind = "self-conditional"
    fraction = float((module.b == 0).cpu().double().mean())
    if isinstance(module, ModifiedRQMaskedFlow):
        return transformed(name, module, kind, module.rescaled, fraction)
    reason = overrides(module, nf.flows.MaskedAffineFlow, FORWARD, INVERSE)
    if reason is not None:
        return unknown(name, module, reason, kind=kind, fraction=fraction)
    bounds = _EXP if isinstance(module.s, nn.Module) else _ADDITIVE
    return elementwise(name, module, kind, bounds, fraction)


def _autoregressive(module: Any, name: str) -> Tree:
    kind: Kind = "autoregressive"
    if isinstance(module, ModifiedRQAutoregressive):
        return transformed(name, module, kind, module.rescaled)
    reason = overrides(module, Autoregressive, FORWARD, INVERSE)
    reason = reason or overrides(module, MaskedAffineAutoregressive, *ELEMENTWISE)
    if reason is not None:
        return unknown(name, module, reason, kind=kind)
    scale_range = scale_of(lambda logits: autoregressive_scale(module, logits))
    bounds: Bounds | None = None
    if scale_range is not None:
        scale, formula = scale_range
        bounds = affine_bounds(scale.reciprocal, "data", formula=f"(x - t) / s, s = {formula}")
    return elementwise(name, module, kind, bounds, what="scale function")


def _fixed(module: Any, name: str) -> Tree | None:
    """Layers that no condition changes, but for the class-conditional constants."""
    if isinstance(module, nf.flows.AffineConstFlow):  # ActNorm too
        s, t = torch.broadcast_tensors(
            module.s.detach().cpu().double(), module.t.detach().cpu().double()
        )
        return scaling(name, module, torch.exp(-s), -t * torch.exp(-s))
    if isinstance(module, CCAffineConst):
        return elementwise(name, module, "injector", _EXP)
    if isinstance(module, (nf.flows.Invertible1x1Conv, nf.flows.InvertibleAffine)):
        return linear(name, module, module._assemble_W() if module.use_lu else module.W)
    if isinstance(module, nf.flows.LULinearPermute):
        return linear(joined(name, "linear"), module, module.linear.weight(), module.linear.bias)
    if isinstance(module, nf.flows.PeriodicShift):
        # Sampling shifts and wraps some coordinates into [-bound, bound].
        edge = float(torch.as_tensor(module.bound).abs().max())
        line = Line(1.0, edge)
        return Part(name, type_of(module), "elementwise", line, line)
    return same(name, module) if isinstance(module, _RESHAPES) else None
