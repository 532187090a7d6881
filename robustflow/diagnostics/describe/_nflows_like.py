"""nflows, and the libraries that carry a copy of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from robustflow.compat.convert.methods import COUPLING, ELEMENTWISE, FORWARD, INVERSE, overrides
from robustflow.diagnostics.bounds import (
    NICE,
    ONE,
    REALNVP,
    Bounds,
    Line,
    Range,
    affine_bounds,
    monotone_bounds,
    rq_bounds,
)
from robustflow.diagnostics.describe._scales import scale_of
from robustflow.diagnostics.describe._tree import (
    Branch,
    Chain,
    Halves,
    Part,
    Tree,
    elementwise,
    joined,
    linear,
    parts_of,
    reversed_tree,
    same,
    scaling,
    type_of,
    unknown,
)
from robustflow.diagnostics.describe.layers import Describe, transformed
from robustflow.diagnostics.kinds import Kind

ADDITIVE = affine_bounds(ONE, "latents", formula="x + t", source=NICE)

_MAF = "Papamakarios et al. 2017, arXiv:1705.07057"
_GLOW = "Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039"


def describe(
    module: Any, name: str, child: Describe, transforms: ModuleType, targets: Sequence[Any]
) -> Tree | None:
    """A module of ``transforms``, nflows' or a copy's.

    Args:
        targets: what :func:`robustflow.convert_affine` makes of couplings and of autoregressive
            layers.
    """
    t: Any = transforms
    if isinstance(module, t.CompositeTransform):
        inside = joined(name, "_transforms")
        layers = enumerate(module._transforms)
        return Chain(tuple(child(layer, joined(inside, str(i))) for i, layer in layers))
    if isinstance(module, t.MultiscaleCompositeTransform):
        return _multiscale(module, name, child)
    if isinstance(module, t.InverseTransform):
        return reversed_tree(child(module._transform, joined(name, "_transform")))
    coupling, autoregressive = targets
    if isinstance(module, t.coupling.CouplingTransform):
        return _coupling(module, name, t, coupling)
    if isinstance(module, t.autoregressive.AutoregressiveTransform):
        return _autoregressive(module, name, t, autoregressive)
    if isinstance(module, t.PiecewiseRationalQuadraticCDF):
        return spline_cdf(module, name)
    return _fixed(module, name, t)


def _coupling(module: Any, name: str, t: Any, converted: Any) -> Tree:
    fraction = module.num_transform_features / module.features
    kind: Kind = "self-conditional"
    reason = overrides(module, t.coupling.CouplingTransform, FORWARD, INVERSE)
    main: Tree
    if reason is not None:
        return unknown(name, module, reason, kind=kind)
    if isinstance(module, converted):
        main = transformed(name, module, kind, module.rescaled, fraction)
    elif isinstance(module, t.AffineCouplingTransform):
        bounds, what = _affine_coupling(module, t)
        main = elementwise(name, module, kind, bounds, fraction, what=what)
    elif isinstance(module, t.coupling.PiecewiseCouplingTransform):
        main = elementwise(
            name, module, kind, _spline(module, t, COUPLING), fraction, what="spline"
        )
    else:
        return unknown(name, module, kind=kind)
    if module.unconditional_transform is None:
        return main
    rest = spline_cdf(
        module.unconditional_transform, joined(name, "unconditional_transform"), 1 - fraction
    )
    return in_parallel(main, rest)


def in_parallel(main: Tree, rest: Part) -> Tree:
    """The transforms of the two halves of a coupling's features."""
    if isinstance(main, Part):
        return Halves((main, rest))
    return Chain((*parts_of(main), rest))


def _affine_coupling(module: Any, t: Any) -> tuple[Bounds | None, str]:
    if overrides(module, t.AffineCouplingTransform, *COUPLING):
        return None, "coupling (it overrides the transform)"
    if module._transform_dim_multiplier() == 1:
        return ADDITIVE, ""

    def scale(logits: Tensor) -> Tensor:
        features = module.num_transform_features
        params = logits[:, None].repeat(1, 2 * features)
        return module._scale_and_shift(params)[0][:, 0]

    return _with_scale(scale)


def _with_scale(scale: Any) -> tuple[Bounds | None, str]:
    scale_range = scale_of(scale)
    if scale_range is None:
        return None, "scale function"
    range_, formula = scale_range
    return affine_bounds(range_, "latents", formula=f"x s + t, s = {formula}", source=REALNVP), ""


def _autoregressive(module: Any, name: str, t: Any, converted: Any) -> Tree:
    kind: Kind = "autoregressive"
    reason = overrides(module, t.autoregressive.AutoregressiveTransform, FORWARD, INVERSE)
    if reason is not None:
        return unknown(name, module, reason, kind=kind)
    if isinstance(module, converted):
        return transformed(name, module, kind, module.rescaled)
    if isinstance(module, t.MaskedAffineAutoregressiveTransform):
        bounds, what = _with_scale(lambda logits: autoregressive_scale(module, logits))
        return elementwise(name, module, kind, bounds, what=what)
    bounds = _spline(module, t, ELEMENTWISE)
    return elementwise(name, module, kind, bounds, what="spline")


def autoregressive_scale(module: Any, logits: Tensor) -> Tensor:
    """The scale of a masked affine layer: its output for 1 at shift 0."""
    params = torch.stack([logits, torch.zeros_like(logits)], dim=-1)
    params = params[:, None].repeat(1, module.features, 1).flatten(1)
    ones = logits.new_ones(len(logits), module.features)
    return module._elementwise_forward(ones, params)[0][:, 0]


def _spline(module: Any, t: Any, methods: tuple[str, str]) -> Bounds | None:
    """Bounds of a piecewise transform, if its class has the library's own methods."""
    rational = (
        t.PiecewiseRationalQuadraticCouplingTransform,
        t.MaskedPiecewiseRationalQuadraticAutoregressiveTransform,
    )
    others = (
        t.PiecewiseLinearCouplingTransform,
        t.PiecewiseQuadraticCouplingTransform,
        t.PiecewiseCubicCouplingTransform,
    )
    for known in (*rational, *others):
        if isinstance(module, known):
            own = "_piecewise_cdf" if methods is COUPLING else "_elementwise"
            if overrides(module, known, *methods, own):
                return None
            if known in rational:
                return rational_quadratic(module)
            formula = f"an increasing spline of {module.num_bins} bins"
            return monotone_bounds(module.tails, _box(module), formula)
    return None


def rational_quadratic(module: Any) -> Bounds | None:
    """Bounds of a rational-quadratic spline from the attributes of a library's layer."""
    if getattr(module, "enable_identity_init", False):
        return None  # other derivatives
    tails, note = module.tails, ""
    if isinstance(tails, (list, tuple)):
        tails = "circular"
        note = (
            "Outside the box a list of tails gives 0 in normflows, and the identity where "
            "robustflow.compat.patch is in force."
        )
    return rq_bounds(
        _bins(module),
        tails,
        _box(module),
        (module.min_bin_width, module.min_bin_height),
        module.min_derivative,
        "softmax",
        note=note,
    )


def _box(module: Any) -> tuple[float, float, float, float]:
    """The unit square without tails; a bound may be one for each feature."""
    if module.tails is None:
        return (0.0, 1.0, 0.0, 1.0)
    edge = float(torch.as_tensor(module.tail_bound).abs().max())
    return (-edge, edge, -edge, edge)


def _bins(module: Any) -> int:
    widths = getattr(module, "unnormalized_widths", None)
    return module.num_bins if widths is None else widths.shape[-1]


def spline_cdf(module: Any, name: str, fraction: float = 1.0) -> Part:
    """A spline with parameters of its own; its bounds are those over all parameters."""
    known = type_of(module) == "PiecewiseRationalQuadraticCDF"
    bounds = rational_quadratic(module) if known else None
    return elementwise(name, module, "elementwise", bounds, fraction, what="spline")


def _multiscale(module: Any, name: str, child: Describe) -> Tree:
    """After every transform but the last, part of the features leave."""
    inside = joined(name, "_transforms")
    sizes = [math.prod(shape) for shape in module._output_shapes]
    tree: Tree = Chain()
    left = 0
    for i in reversed(range(len(sizes))):
        layer = child(module._transforms[i], joined(inside, str(i)))
        if left:
            kept = left / (left + sizes[i])
            tree = Chain((layer, Branch(Chain(), tree, kept)))
        else:
            tree = layer
        left += sizes[i]
    return tree


def _fixed(module: Any, name: str, t: Any) -> Tree | None:
    """Layers that no condition changes."""
    if isinstance(module, (t.NaiveLinear, t.LULinear, t.QRLinear, t.SVDLinear)):
        return linear(name, module, module.weight(), module.bias)
    if isinstance(module, t.ActNorm):
        return scaling(name, module, module.scale, module.shift, source=_GLOW)
    if isinstance(module, t.BatchNorm):
        scale = module.weight / torch.sqrt(module.running_var + module.eps)
        return scaling(name, module, scale, module.bias - module.running_mean * scale)
    if isinstance(module, t.PointwiseAffineTransform):
        scale, shift = torch.broadcast_tensors(module._scale, module._shift)
        return scaling(name, module, scale, shift, kind="elementwise")
    if isinstance(module, t.LeakyReLU):
        return leaky(name, module, float(module.negative_slope))
    known = (t.HouseholderSequence, t.Permutation, t.IdentityTransform, t.SqueezeTransform)
    return same(name, module) if isinstance(module, known) else None


def leaky(name: str, module: nn.Module, slope: float) -> Part:
    """x, or slope x below 0."""
    slopes = Range(min(1.0, slope), max(1.0, slope))
    inverse, forward = Line(slopes.reciprocal.high), Line(slopes.high)
    formula = "max 1/slope over both sides"
    return Part(name, type_of(module), "elementwise", inverse, forward, formula=formula)
