"""FrEIA: its coupling blocks, fixed layers, and the splines of its main branch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from FrEIA import framework, modules
from FrEIA.modules import coupling_layers as blocks

from robustflow.compat.convert.freia import (
    ModifiedRQAllInOneBlock,
    ModifiedRQConditionalTransform,
    ModifiedRQCouplingOneSided,
    ModifiedRQGLOWCouplingBlock,
    ModifiedRQRNVPCouplingBlock,
)
from robustflow.compat.convert.methods import FORWARD, overrides
from robustflow.diagnostics.bounds import (
    INFINITY,
    NICE,
    ONE,
    REALNVP,
    SPLINES,
    Bounds,
    Line,
    Range,
    affine_bounds,
    exponential,
)
from robustflow.diagnostics.describe._scales import clamp_of
from robustflow.diagnostics.describe._tree import (
    Chain,
    Halves,
    Tree,
    elementwise,
    joined,
    linear,
    same,
    scaling,
    unknown,
)
from robustflow.diagnostics.describe.layers import Describe, transformed
from robustflow.diagnostics.kinds import Kind

_GIN = "Sorrenson et al. 2020, arXiv:2001.04872"
_ADDITIVE = affine_bounds(ONE, "latents", formula="x + t", source=NICE)
_HALVES = ("_coupling1", "_coupling2")
_TWO_SIDED = (
    blocks.GLOWCouplingBlock,
    blocks.RNVPCouplingBlock,
    blocks.GINCouplingBlock,
    blocks.NICECouplingBlock,
)
# Reshapes, permutations, reflections, and the ends of a graph's branches.
_SAME = (
    modules.PermuteRandom,
    modules.IRevNetDownsampling,
    modules.IRevNetUpsampling,
    modules.Flatten,
    modules.Reshape,
    modules.Split,
    modules.Concat,
    modules.HouseholderPerm,
)


def describe(module: Any, name: str, child: Describe) -> Tree | None:
    if isinstance(module, framework.SequenceINN):
        inside = joined(name, "module_list")
        layers = enumerate(module.module_list)
        return Chain(tuple(child(layer, joined(inside, str(i))) for i, layer in layers))
    if isinstance(module, (ModifiedRQGLOWCouplingBlock, ModifiedRQRNVPCouplingBlock)):
        return _converted_halves(module, name)
    if isinstance(module, _TWO_SIDED):
        return _two_sided(module, name)
    if isinstance(module, blocks.AffineCouplingOneSided):
        fraction = module.split_len2 / module.channels
        converted = ModifiedRQCouplingOneSided
        return _one(
            module, name, "self-conditional", fraction, blocks.AffineCouplingOneSided, converted
        )
    if isinstance(module, blocks.ConditionalAffineTransform):
        converted = ModifiedRQConditionalTransform
        return _one(module, name, "injector", 1.0, blocks.ConditionalAffineTransform, converted)
    if isinstance(module, modules.AllInOneBlock):
        return _all_in_one(module, name)
    if hasattr(modules, "RationalQuadraticSpline") and isinstance(
        module, (modules.RationalQuadraticSpline, modules.ElementwiseRationalQuadraticSpline)
    ):
        return _spline(module, name)
    return _fixed(module, name)


def _fractions(module: Any) -> tuple[float, float]:
    first, second = module.split_len1, module.split_len2
    return first / (first + second), second / (first + second)


def _two_sided(module: Any, name: str) -> Tree:
    """Each half is transformed in turn, given the other."""
    kind: Kind = "self-conditional"
    known: Any = next(block for block in _TWO_SIDED if isinstance(module, block))
    reason = overrides(module, known, FORWARD, *_HALVES)
    if reason is not None:
        return unknown(name, module, reason, kind=kind)
    halves = []
    for half, fraction in zip(_HALVES, _fractions(module), strict=True):
        size = round(fraction * module.channels)
        bounds = _ADDITIVE if known is blocks.NICECouplingBlock else _clamped(module, known, size)
        halves.append(elementwise(joined(name, half), module, kind, bounds, fraction, what="clamp"))
    return Halves(tuple(halves))


def _clamped(module: Any, known: Any, channels: int = 0) -> Bounds | None:
    """y = x s + t with log s = clamp g(a); less its mean over the channels in a GIN block."""
    clamp = clamp_of(module.f_clamp)
    if clamp is None:
        return None
    bound, formula = clamp
    log_scale = f"{module.clamp:g} * {formula}"
    if known is blocks.GINCouplingBlock:
        return _volume_preserving(module.clamp * bound, log_scale, channels)
    scale = exponential(module.clamp * bound)
    return affine_bounds(scale, "latents", formula=f"x s + t, s = exp({log_scale})", source=REALNVP)


def _volume_preserving(log_bound: float, log_scale: str, number: float = INFINITY) -> Bounds:
    """A log-scale less the mean of ``number``: at most 2 (1 - 1/number) times the bound."""
    formula = f"x s + t, log s = {log_scale} less its mean"
    scale = exponential(2 * log_bound * (1 - 1 / number))
    return affine_bounds(scale, "latents", formula=formula, source=_GIN)


def _converted_halves(module: Any, name: str) -> Tree:
    splines = (module.rescaled1, module.rescaled2)
    parts: list[Tree] = [
        transformed(joined(name, half), module, "self-conditional", spline, fraction)
        for half, spline, fraction in zip(_HALVES, splines, _fractions(module), strict=True)
    ]
    return Chain(tuple(parts))


def _one(module: Any, name: str, kind: Kind, fraction: float, known: Any, converted: Any) -> Tree:
    if isinstance(module, converted):
        return transformed(name, module, kind, module.rescaled, fraction)
    reason = overrides(module, known, FORWARD)
    if reason is not None:
        return unknown(name, module, reason, kind=kind, fraction=fraction)
    return elementwise(name, module, kind, _clamped(module, known), fraction, what="clamp")


def _all_in_one(module: Any, name: str) -> Tree:
    """The optional first permutation, the coupling, a constant scale, the permutation."""
    kind: Kind = "self-conditional"
    fraction = module.splits[1] / module.in_channels
    coupling: Tree
    if isinstance(module, ModifiedRQAllInOneBlock):
        coupling = transformed(name, module, kind, module.rescaled, fraction)
    else:
        reason = overrides(module, modules.AllInOneBlock, FORWARD, "_affine", "_permute")
        if reason is not None:
            return unknown(name, module, reason, kind=kind)
        log_scale = f"{module.clamp:g} * tanh(a / 10)"
        if module.GIN:
            bounds = _volume_preserving(module.clamp, log_scale)
        else:
            formula = f"x s + t, s = exp({log_scale})"
            bounds = affine_bounds(exponential(module.clamp), "latents", formula=formula)
        coupling = elementwise(name, module, kind, bounds, fraction)
    with torch.no_grad():
        scale = torch.ones_like(module.global_scale)
        if not module.GIN:
            scale = module.global_scale_activation(module.global_scale)
    constant = scaling(joined(name, "global_scale"), module, scale, module.global_offset)
    return Chain((coupling, constant))


def _spline(module: Any, name: str) -> Tree:
    """The splines of the main branch: a box that the network predicts, and tails that follow it."""
    if isinstance(module, modules.ElementwiseRationalQuadraticSpline):
        base, known, method = module, modules.ElementwiseRationalQuadraticSpline, "spline"
        methods: Sequence[str] = (FORWARD, method, "constrain_parameters")
    else:
        base, known = module.spline_base, modules.RationalQuadraticSpline
        methods = (FORWARD, "_spline1", "_spline2", "constrain_parameters")
    reason = overrides(module, known, *methods)
    if reason is not None:
        return unknown(name, module, reason, kind="self-conditional")
    bounds = binned_bounds(base)
    if base is module:
        return elementwise(name, module, "elementwise", bounds)
    halves = (
        elementwise(joined(name, half), module, "self-conditional", bounds, fraction)
        for half, fraction in zip(_HALVES, _fractions(module), strict=True)
    )
    return Halves(tuple(halves))


def binned_bounds(base: Any) -> Bounds:
    """Bounds of a spline in a box of predicted size and place, W x H from (left, bottom).

    Outside, its slope is H/W. A bin is at least ``min_bin_sizes``; sizes are bounded above only by
    ``domain_clamping``.
    """
    clamp = base.domain_clamping
    note = (
        "The box is predicted, and the slope outside it is the box's height over its width: a "
        "conditional tail slope."
    )
    if bool(base.identity_tails):
        # A square box about 0 of predicted size; the identity outside, wherever that is.
        largest = INFINITY if clamp is None else clamp
        line = Line(1.0, largest)
        return Bounds(
            derivative=Range(0.0, INFINITY),
            tail=ONE if clamp is not None else Range(0.0, INFINITY),
            radius=largest / 2 if clamp is not None else 0.0,
            displacement=largest,
            inverse=line,
            forward=line,
            formula=f"RQ(x) of {int(base.bins)} bins, the identity outside a box of predicted size",
            source=SPLINES,
            note="" if clamp is not None else "No size is the largest: every x may be in the box.",
        )
    slope = _tail_slope(base, clamp)
    largest = INFINITY if clamp is None else clamp
    gains = slope.reciprocal.high, slope.high
    # The place of the box is a shift: from the latents' side its height, from the data's its width.
    inverse, forward = (Line(gain, largest * (1 + gain), 1 + gain) for gain in gains)
    return Bounds(
        derivative=Range(0.0, INFINITY),
        tail=slope,
        radius=0.0,
        displacement=INFINITY,
        inverse=inverse,
        forward=forward,
        formula=f"RQ(x) of {int(base.bins)} bins in a predicted box, slope H/W outside it",
        source=SPLINES,
        note=note,
    )


def _tail_slope(base: Any, clamp: float | None) -> Range:
    """The range of H / W, for sizes above K bins, clamped by c tanh(size / c)."""
    if clamp is None:
        return Range(0.0, INFINITY)
    width, height = (
        math.tanh(int(base.bins) * float(smallest) / clamp) for smallest in base.min_bin_sizes
    )
    return Range(height, Range(width, 1.0).reciprocal.high)


def _fixed(module: Any, name: str) -> Tree | None:
    """Layers that no condition changes."""
    if isinstance(module, modules.ActNorm):
        return scaling(name, module, module.scale.detach().cpu().double().exp(), module.bias)
    if isinstance(module, modules.FixedLinearTransform):
        offset = module.b if isinstance(module.b, torch.Tensor) else None
        return linear(name, module, module.M.T, offset)
    if isinstance(module, modules.Fixed1x1Conv):
        return linear(name, module, module.M)
    if isinstance(module, modules.OrthogonalTransform):
        scale = module._log_e(module.scaling.detach().cpu().double()).exp()
        # Sampling multiplies by the transpose, which is the inverse after each correction.
        transpose = torch.linalg.inv(module.weights.detach().cpu().double().T)
        weight = linear(joined(name, "weights"), module, transpose)
        constant = scaling(joined(name, "scaling"), module, scale, module.bias * scale)
        return Chain((weight, constant))
    if isinstance(module, (modules.HaarDownsampling, modules.HaarUpsampling)):
        # Four signs times a factor: twice that factor times an orthogonal matrix.
        up = isinstance(module, modules.HaarUpsampling)
        factor = 2 * (module.fac_rev if up else module.fac_fwd)
        return scaling(name, module, torch.tensor([factor]), kind="reshape")
    if isinstance(module, modules.LearnedElementwiseScaling):
        return scaling(name, module, module.s.detach().cpu().double().exp(), kind="elementwise")
    if isinstance(module, modules.InvAutoActTwoSided):
        slopes = torch.stack([module.alpha_pos, module.alpha_neg]).detach().cpu().double().exp()
        return scaling(name, module, slopes, kind="elementwise")
    if isinstance(module, modules.InvAutoAct):
        slopes = torch.stack([module.alpha, -module.alpha]).detach().cpu().double().exp()
        return scaling(name, module, slopes, kind="elementwise")
    return same(name, module) if isinstance(module, _SAME) else None
