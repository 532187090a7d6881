"""The structure of a model, for bounds: a tree of its layers' parts.

Every tree maps data to latents; sampling goes the other way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustflow.diagnostics.bounds import INFINITY, UNCHANGED, Bounds, Line
from robustflow.diagnostics.kinds import Kind

# The two parts, one after the other, of a transform that robustflow.convert_affine made.
CONVERTED = ("scale", "spline")


@dataclass(frozen=True)
class Part:
    """One map that a layer applies: elementwise, or linear over the channels.

    Attributes:
        name: qualified name of the layer, and of the part where it has several.
        type: what the layer is.
        kind: its kind.
        inverse: bound on magnitudes from latents to data, as root mean squares over the elements
            that the map changes.
        forward: the same on the way from data to latents.
        bounds: of a map whose parameters depend on the condition or the rest of z.
        fraction: share of the layer's elements that the part changes; None if unknown.
        formula, source, note: of a map that is the same for every condition.
        unknown: why nothing is known of it.
    """

    name: str
    type: str
    kind: Kind
    inverse: Line = UNCHANGED
    forward: Line = UNCHANGED
    bounds: Bounds | None = None
    fraction: float | None = 1.0
    formula: str = ""
    source: str = ""
    note: str = ""
    unknown: str = ""

    @property
    def reversed(self) -> Part:
        bounds = None if self.bounds is None else self.bounds.reversed
        return replace(self, inverse=self.forward, forward=self.inverse, bounds=bounds)


@dataclass(frozen=True)
class Chain:
    """Parts applied in turn, from data to latents; if not ``ordered``, in an unknown order."""

    children: tuple[Tree, ...] = ()
    ordered: bool = True


@dataclass(frozen=True)
class Halves:
    """Parts of one layer that change different elements."""

    children: tuple[Part, ...]


@dataclass(frozen=True)
class Branch:
    """Where latents leave: ``leaving`` transforms them, ``staying`` the rest.

    Attributes:
        kept: the fraction of the elements that stays.
    """

    leaving: Tree
    staying: Tree
    kept: float = 0.5


Tree = Part | Chain | Halves | Branch


def parts_of(tree: Tree) -> Iterator[Part]:
    """Every part, from data to latents."""
    if isinstance(tree, Part):
        yield tree
    elif isinstance(tree, Branch):
        yield from parts_of(tree.leaving)
        yield from parts_of(tree.staying)
    else:
        for child in tree.children:
            yield from parts_of(child)


def reversed_tree(tree: Tree) -> Tree:
    """The tree of the inverse map; not possible with a :class:`Branch`."""
    if isinstance(tree, Part):
        return tree.reversed
    if isinstance(tree, Halves):
        return Halves(tuple(child.reversed for child in tree.children))
    if isinstance(tree, Chain):
        children = tuple(reversed_tree(child) for child in reversed(tree.children))
        return Chain(children, tree.ordered)
    raise ValueError("A map that lets latents leave cannot be one from latents to data.")


def joined(name: str, child: str) -> str:
    """A qualified name, as of ``named_modules``."""
    return f"{name}.{child}" if name else child


def elementwise(
    name: str,
    module: nn.Module,
    kind: Kind,
    bounds: Bounds | None,
    fraction: float | None = 1.0,
    *,
    what: str = "transform",
) -> Part:
    """A part with parameters from a conditioner; unknown, named ``what``, if bounds are None."""
    if bounds is None:
        return unknown(name, module, f"unknown {what}", kind=kind, fraction=fraction)
    return Part(
        name, type_of(module), kind, bounds.inverse, bounds.forward, bounds, fraction=fraction
    )


def unknown(
    name: str,
    module: nn.Module,
    reason: str = "unknown layer",
    *,
    kind: Kind = "other",
    fraction: float | None = 1.0,
) -> Part:
    nothing = Line(INFINITY, INFINITY, 0.0)
    return Part(name, type_of(module), kind, nothing, nothing, fraction=fraction, unknown=reason)


def same(name: str, module: nn.Module, kind: Kind = "reshape", note: str = "") -> Part:
    """A part that keeps magnitudes: a squeeze, a permutation, a rotation."""
    return Part(name, type_of(module), kind, note=note)


def scaling(
    name: str,
    module: nn.Module,
    scale: Tensor,
    offset: Tensor | None = None,
    *,
    kind: Kind = "actnorm",
    source: str = "",
    fraction: float | None = 1.0,
) -> Part:
    """y = s x + o, with an s and an o for each channel, the same for every condition.

    Args:
        scale: s, of any shape, not zero.
        offset: o, which broadcasts with it; None: 0.
    """
    s = _numbers(scale)
    o = torch.zeros_like(s) if offset is None else _numbers(offset)
    inverse = Line(_largest(1 / s), _rms(o / s))
    forward = Line(_largest(s), _rms(o))
    formula = "max 1/|s| over the channels of y = s x + o"
    return Part(name, type_of(module), kind, inverse, forward, None, fraction, formula, source)


def linear(
    name: str,
    module: nn.Module,
    weight: Tensor,
    offset: Tensor | None = None,
    *,
    kind: Kind = "1x1",
    source: str = "",
) -> Part:
    """y = W x + o over the channels, with weights that no condition changes."""
    w = _numbers(weight).reshape(weight.shape[0], weight.shape[1])
    o = w.new_zeros(len(w)) if offset is None else _numbers(offset).flatten()
    if not bool(w.isfinite().all()):
        return unknown(name, module, "weights that are not finite", kind=kind)
    values = torch.linalg.svdvals(w)
    largest, smallest = float(values.max()), float(values.min())
    # Below this, W is singular up to rounding, and the model's own inverse is meaningless.
    if smallest <= largest * torch.finfo(weight.dtype).eps * 1e-3:
        inverse = Line(INFINITY, INFINITY)
        condition = INFINITY
    else:
        inverse = Line(1 / smallest, _rms(torch.linalg.solve(w, o)))
        condition = largest / smallest
    return Part(
        name,
        type_of(module),
        kind,
        inverse,
        Line(largest, _rms(o)),
        formula="spectral norm of W^-1: 1 / (smallest singular value of W)",
        source=source,
        note=f"condition number {condition:.4g}",
    )


def type_of(module: nn.Module) -> str:
    return nn.utils.parametrize.type_before_parametrizations(module).__name__


def _numbers(tensor: Any) -> Tensor:
    return torch.as_tensor(tensor).detach().cpu().double()


def _largest(values: Tensor) -> float:
    largest = float(values.abs().max())
    return INFINITY if math.isnan(largest) else largest


def _rms(values: Tensor) -> float:
    mean = float(values.square().mean().sqrt())
    return INFINITY if math.isnan(mean) else mean
