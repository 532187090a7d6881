"""robustflow.nn, and what :func:`robustflow.convert_affine` makes of other libraries' layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow.compat.convert import RescaledModifiedRQSpline
from robustflow.diagnostics.bounds import ROBUST, TORI, Bounds, Line, bounds_of
from robustflow.diagnostics.describe._tree import (
    CONVERTED,
    Branch,
    Chain,
    Part,
    Tree,
    elementwise,
    joined,
    linear,
    same,
    scaling,
    unknown,
)
from robustflow.diagnostics.kinds import Kind
from robustflow.nn.level import FlowLevel

Describe = Callable[[nn.Module, str], Tree]

_DEQUANTIZED = "Theis et al., A note on the evaluation of generative models, 2016, arXiv:1511.01844"
_GLOW = "Kingma and Dhariwal, Glow, 2018, arXiv:1807.03039"
_KINDS: tuple[tuple[type[rnn.ConditionalLayer], Kind], ...] = (
    (rnn.Split, "split"),
    (rnn.Injector, "injector"),
    (rnn.Autoregressive, "autoregressive"),
    (rnn.Coupling, "self-conditional"),
)


def describe(module: nn.Module, name: str, child: Describe) -> Tree | None:
    if isinstance(module, rnn.ConditionalFlow):
        return _levels(list(module.levels), joined(name, "levels"), child)
    if isinstance(module, FlowLevel):
        return _level(module, name, Chain(), child)
    if isinstance(module, rnn.ActNorm):
        return actnorm(name, module, module.bias, module.log_scale)
    if isinstance(module, rnn.InvertibleConv1x1):
        return linear(name, module, module.weight(), source=_GLOW)
    if isinstance(module, rnn.Squeeze):
        return same(name, module)
    if isinstance(module, rnn.PhaseShift):
        # A circle's values are wrapped, which never makes one larger.
        phase = module.phase.cpu().double()
        return scaling(name, module, torch.ones_like(phase), phase, kind="elementwise", source=TORI)
    if isinstance(module, rnn.Dequantize):
        low, high = module.interval
        step = (high - low) / (module.levels - 1)
        scale = torch.tensor([1 / (step * module.levels)], dtype=torch.float64)
        # The noise is at most a level; take the end that is further from 0.
        offset = max(abs(low), abs(low - step)) * scale
        return scaling(name, module, scale, offset, kind="elementwise", source=_DEQUANTIZED)
    for layer, kind in _KINDS:
        if isinstance(module, layer):
            return _conditional(module, name, layer, kind)
    if isinstance(module, RescaledModifiedRQSpline):
        return transformed(name, module, "elementwise", module)
    return None


def actnorm(name: str, module: nn.Module, bias: Tensor, log_scale: Tensor) -> Part:
    """y = (x + bias) exp(log_scale)."""
    scale = log_scale.cpu().double().exp()
    return scaling(name, module, scale, bias.cpu().double() * scale, source=_GLOW)


def _levels(levels: Sequence[nn.Module], name: str, child: Describe) -> Tree:
    tree: Tree = Chain()
    for index in reversed(range(len(levels))):
        level: Any = levels[index]
        tree = _level(level, joined(name, str(index)), tree, child)
    return tree


def _level(level: FlowLevel, name: str, rest: Tree, child: Describe) -> Tree:
    """A level's layers, and ``rest``, what stays after them."""
    name = joined(name, "layers")
    children = [child(layer, joined(name, str(i))) for i, layer in enumerate(level.layers)]
    split = level.split
    if split is None:
        return Chain((*children, rest))
    kept = split.kept_channels / split.channels
    # The split transforms every element that leaves.
    leaving = _conditional(split, joined(name, str(len(children) - 1)), rnn.Split, "split", 1.0)
    return Chain((*children[:-1], Branch(leaving, rest, kept)))


def _conditional(
    layer: rnn.ConditionalLayer,
    name: str,
    known: type[rnn.ConditionalLayer],
    kind: Kind,
    fraction: float | None = None,
) -> Tree:
    if type(layer).transform_with is not known.transform_with:
        reason = f"a class of its own, which overrides {known.__name__}.transform_with"
        return unknown(name, layer, reason, kind=kind)
    if fraction is None:
        kept = layer.kept_channels if isinstance(layer, rnn.Coupling) else 0
        fraction = (layer.channels - kept) / layer.channels
    return transformed(name, layer, kind, layer.transform, fraction)


def transformed(
    name: str, module: nn.Module, kind: Kind, transform: object, fraction: float | None = 1.0
) -> Tree:
    """A layer with an elementwise transform of robustflow's, or one that was converted to it."""
    if not isinstance(transform, RescaledModifiedRQSpline):
        what = f"transform {type(transform).__name__}"
        return elementwise(name, module, kind, bounds_of(transform), fraction, what=what)
    scale = transform.log_scale.cpu().double().exp()
    source = "robustflow.convert_affine"
    constant_name, spline_name = (joined(name, suffix) for suffix in CONVERTED)
    constant = scaling(
        constant_name, module, scale, transform.shift, source=source, fraction=fraction
    )
    bounds = _boxed(transform.half_width, transform.centre)
    return Chain((constant, elementwise(spline_name, module, kind, bounds, fraction)))


def _boxed(half_width: Tensor, centre: Tensor) -> Bounds:
    """Bounds of the modified RQ spline of [-1, 1] between constant maps, one a channel.

    A shift t of that one moves the result by t times the half width.
    """
    unit = bounds_of(rnn.ModifiedRQSpline(interval=RescaledModifiedRQSpline.interval))
    assert unit is not None
    widths = half_width.detach().cpu().double()
    moved = unit.displacement * widths
    line = Line(1.0, float(moved.square().mean().sqrt()), float(widths.abs().max()))
    return Bounds(
        derivative=unit.derivative,
        tail=unit.tail,
        radius=float((centre.detach().cpu().double().abs() + widths).max()),
        displacement=float(moved.max()),
        inverse=line,
        forward=line,
        formula="RQ(x) + t, RQ the identity outside a box a channel",
        source=ROBUST,
    )
