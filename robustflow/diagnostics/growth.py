"""How far a model's inverse can grow: the layers' bounds composed.

Magnitudes are root mean squares over a *block*: the elements, of data and of all latents, that
belong to one position of the deepest level. ``docs/robustness-bounds.md`` has the proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from robustflow.diagnostics.describe import Branch, Halves, Part, Tree


@dataclass(frozen=True)
class Growth:
    """\\|z_0\\| <= A \\|z_K\\| + B + sum over k of shifts[k] \\|t_k\\|, for every condition.

    z_K are the latents, z_0 the data that the inverse maps them to; \\|.\\| is the root mean square
    over a block, and \\|t_k\\| the largest magnitude among the shifts that layer k's conditioner
    makes in that call. A, B and the weights are constants of the model. The shifts are
    not: they depend on the condition. :meth:`given` moves bounds on them into B. ``A, B = growth``
    unpacks the two.

    Attributes:
        A: infinite where a layer has no bound.
        B: what the boxes and the constant offsets add.
        shifts: for each layer with a shift, by its name, what multiplies it.
        conditional: the factor of A from the layers whose parameters depend on the condition.
    """

    A: float = 1.0
    B: float = 0.0
    shifts: Mapping[str, float] = field(default_factory=dict)
    conditional: float = 1.0

    def __iter__(self) -> Iterator[float]:
        return iter((self.A, self.B))

    def given(self, shifts: Mapping[str, float]) -> Growth:
        """The bound for calls in which no shift of layer k is larger than ``shifts[k]``.

        Layers that ``shifts`` leaves out keep theirs as a term of its own.

        Raises:
            ValueError: a name that is none of ``self.shifts``, or a bound that is negative.
            TypeError: no dict.
        """
        if not isinstance(shifts, Mapping):
            raise TypeError(f"shifts must be a dict, {{layer: bound}}, got {shifts!r}.")
        if unknown := [name for name in shifts if name not in self.shifts]:
            raise ValueError(
                f"{', '.join(map(repr, unknown))}: no layer with a shift has this name; there are "
                f"{', '.join(map(repr, self.shifts)) or 'none'}."
            )
        if negative := [name for name, size in shifts.items() if not size >= 0]:
            raise ValueError(f"The shift of {negative[0]!r} must be at least 0.")
        added = math.fsum(_times(self.shifts[name], size) for name, size in shifts.items())
        rest = {name: weight for name, weight in self.shifts.items() if name not in shifts}
        return Growth(self.A, self.B + added, rest, self.conditional)

    def after(self, first: Growth) -> Growth:
        """The growth of two maps applied in turn."""
        return Growth(
            _times(self.A, first.A),
            _times(self.A, first.B) + self.B,
            _merged(_scaled(first.shifts, self.A), self.shifts),
            _times(self.conditional, first.conditional),
        )

    def beside(self, other: Growth) -> Growth:
        """The growth of two maps on different elements."""
        return Growth(
            max(self.A, other.A),
            math.hypot(self.B, other.B),
            _merged(self.shifts, other.shifts),
            max(self.conditional, other.conditional),
        )

    def __str__(self) -> str:
        terms = [f"{self.A:.5g} |z_K|"]
        if self.B:
            terms.append(f"{self.B:.5g}")
        if self.shifts:
            terms.append("sum of shifts[k] |t_k|")
        return f"|z_0| <= {' + '.join(terms)}"


@dataclass(frozen=True)
class Contribution:
    """What one part adds to the growth, in the order of sampling.

    Attributes:
        name: of the part.
        gain: what it multiplies magnitudes by, at most.
        conditional: whether the condition, or the rest of z, decides its parameters.
        constant: what it adds, as a root mean square over the block, before later layers.
        shift: what it multiplies its shift by, likewise.
    """

    name: str
    gain: float
    conditional: bool
    constant: float
    shift: float


def compose(tree: Tree) -> tuple[Growth, tuple[Contribution, ...]]:
    """The growth from latents to data, and what each part contributes."""
    contributions: list[Contribution] = []
    growth = _compose(tree, 1.0, contributions)
    return growth, tuple(contributions)


def _compose(tree: Tree, share: float, contributions: list[Contribution]) -> Growth:
    """
    Args:
        share: of the block's elements, how many reach this tree.
    """
    if isinstance(tree, Part):
        return _of_part(tree, share, contributions)
    if isinstance(tree, Halves):
        growths = [_of_part(part, share, contributions) for part in tree.children]
        together = growths[0]
        for growth in growths[1:]:
            together = together.beside(growth)
        return together
    if isinstance(tree, Branch):
        staying = _compose(tree.staying, share * tree.kept, contributions)
        leaving = _compose(tree.leaving, share * (1 - tree.kept), contributions)
        return staying.beside(leaving)
    growths = []
    for child in reversed(tree.children):
        growths.append(_compose(child, share, contributions))
    if not tree.ordered:
        return _in_any_order(growths)
    total = Growth()
    for growth in growths:
        total = growth.after(total)
    return total


def _of_part(part: Part, share: float, contributions: list[Contribution]) -> Growth:
    everything = part.fraction == 1
    gain = part.inverse.gain if everything else max(1.0, part.inverse.gain)
    size = math.sqrt(share * (1.0 if part.fraction is None else part.fraction))
    conditional = part.bounds is not None or bool(part.unknown)
    constant, shift = size * part.inverse.constant, size * part.inverse.shift
    if not math.isclose(gain, 1.0) or constant or shift:
        contributions.append(Contribution(part.name, gain, conditional, constant, shift))
    return Growth(gain, constant, {part.name: shift} if shift else {}, gain if conditional else 1.0)


def _in_any_order(growths: list[Growth]) -> Growth:
    """A bound for any order: everything added passes through every other layer that can grow it."""
    total = Growth()
    for index, growth in enumerate(growths):
        others = math.prod(max(1.0, g.A) for i, g in enumerate(growths) if i != index)
        total = Growth(
            _times(total.A, max(1.0, growth.A)),
            total.B + _times(growth.B, others),
            _merged(total.shifts, _scaled(growth.shifts, others)),
            _times(total.conditional, max(1.0, growth.conditional)),
        )
    return total


def _scaled(shifts: Mapping[str, float], factor: float) -> dict[str, float]:
    return {name: _times(factor, weight) for name, weight in shifts.items()}


def _merged(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    merged = dict(one)
    for name, weight in other.items():
        merged[name] = merged.get(name, 0.0) + weight
    return merged


def _times(factor: float, size: float) -> float:
    """The product, with 0 times infinity = 0."""
    return 0.0 if factor == 0 or size == 0 else factor * size
