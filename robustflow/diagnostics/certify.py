"""The certificate: bounds on a flow's inverse that hold for every condition."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from robustflow._checks import check_number
from robustflow._modes import evaluating
from robustflow.diagnostics._find import find_layers
from robustflow.diagnostics._sampling import Contexts, Run, check_contexts, sample_mean
from robustflow.diagnostics._shifts import ShiftWatcher
from robustflow.diagnostics.bounds import INFINITY, ROBUST, Bounds, Range, bounds_of
from robustflow.diagnostics.describe import CONVERTED, Part, Tree, describe, joined, parts_of
from robustflow.diagnostics.growth import Contribution, Growth, compose
from robustflow.diagnostics.kinds import Kind
from robustflow.diagnostics.search import SearchResult, search

MAX_GAIN = 100.0
MAX_RATIO = 2.0

_OURS = "docs/robustness-bounds.md"
_MODEL = "(model)"


@dataclass(frozen=True)
class Row:
    """One bound.

    Attributes:
        layer: qualified name, as of ``named_modules()``, and of the part where a layer has
            several; "" for a layer or transform that was given itself, and for the whole model.
        type: what the layer is.
        kind: its kind; ``"model"`` of a row about the composition.
        quantity: what is bounded.
        value: the bound; a range, if both ends are asked for.
        limit: what the value is compared with; None if it only has to be finite.
        passed: None if the criterion does not apply; ``note`` says why.
        formula: of the value.
        source: of the layer and the criterion.
        note: what else a reader must know.
    """

    layer: str
    type: str
    kind: Kind | str
    quantity: str
    value: Range | float
    limit: float | None
    passed: bool | None
    formula: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class Certificate:
    """What :func:`certify` returns; ``str()`` of it is a table.

    Attributes:
        rows: every bound, layer by layer from data to latents, then those of the composition.
        growth: the bound on the whole inverse; ``A, B = certificate.growth``.
        contributions: what each layer adds to it, in the order of sampling.
    """

    rows: tuple[Row, ...]
    growth: Growth
    contributions: tuple[Contribution, ...]
    _model: nn.Module | None = field(default=None, repr=False, compare=False)
    _parts: tuple[Part, ...] = field(default=(), repr=False, compare=False)

    @property
    def passed(self) -> bool:
        """Whether no row failed. A layer that is not known fails."""
        return not self.failures

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if row.passed is False)

    def search(
        self,
        contexts: Contexts,
        steps: int = 100,
        *,
        step_size: float | None = None,
        within: tuple[float, float] | None = None,
        run: Run | None = None,
    ) -> SearchResult:
        """Search conditions for the largest inverse derivative of the model, by gradient.

        Adam moves each context so that a soft maximum of the layers' largest log inverse
        derivatives grows, while the latents' mean is inverted. The result is attained by some
        condition, so it is a lower bound on the worst; the certificate's is an upper one, which no
        condition passes. The model runs in evaluation mode and is not changed.

        Args:
            contexts: where to start, N of them: a tensor, or what the model takes for N contexts
                (a sequence of tensors).
            steps: of the ascent, at least 1; each is a sampling pass and its backward pass.
            step_size: how far a value of a context moves in a step, about. None: a twentieth of
                the contexts' root mean square.
            within: lowest and highest value of a context (``(0, 1)`` for pictures).
            run: how to sample once for each context, ``run(model, contexts)``, with gradients and
                with the latents at their mean (or at any that stay the same). By default known
                for :mod:`robustflow.nn`, nflows, glasflow, normflows, zuko and FrEIA's
                ``SequenceINN``.

        Raises:
            ValueError, TypeError: contexts that are none, steps below 1, a model that is not known
                how to sample from, or gains that do not depend on the contexts.

        Example:
            >>> import torch
            >>> from robustflow import nn as rnn
            >>> flow = rnn.ConditionalFlow([rnn.flow_step(2, 3, rnn.Affine(), spatial_dims=0)])
            >>> with torch.no_grad():
            ...     for parameter in flow.parameters():
            ...         _ = parameter.add_(0.3 * torch.randn_like(parameter))
            >>> result = certify(flow).search(torch.randn(4, 3), steps=20)
            >>> bool(result.worst.start <= result.worst.found <= 1e4), result.beaten
            (True, ())
        """
        return search(
            self._watchable(),
            self._bound_of,
            contexts,
            steps,
            step_size=step_size,
            within=within,
            run=run,
        )

    def shifts(self, contexts: Contexts, *, run: Run | None = None) -> dict[str, float]:
        """The largest shift that each conditioner makes while the model samples.

        ``certificate.growth.given(certificate.shifts(contexts))`` is then a bound without open
        terms, for calls whose shifts stay within the observed ones, and for no others.

        Args:
            contexts: N of them, as for :meth:`search`.
            run: how to sample, ``run(model, contexts)``. By default, once for each context with
                the latents at their mean, as for :meth:`search`.

        Returns:
            By the names of ``growth.shifts``. If a layer's shift cannot be read, an upper bound
            from the displacement; if that is infinite, the layer is left out and its term stays.

        Raises:
            ValueError, TypeError: contexts that are none, or a model that is not known how to
                sample from.

        Example:
            >>> import torch
            >>> from robustflow import nn as rnn
            >>> flow = rnn.ConditionalFlow([rnn.flow_step(2, 3, rnn.Affine(), spatial_dims=0)])
            >>> certificate = certify(flow)
            >>> certificate.growth.given(certificate.shifts(torch.randn(4, 3))).shifts
            {}
        """
        model = self._watchable()
        check_contexts("contexts", contexts)
        watcher = ShiftWatcher(lambda name: self._bounds.get(self._shift_name(name)))
        with evaluating(model), torch.no_grad():
            watcher.start(find_layers(model))
            try:
                (run or sample_mean)(model, contexts)
            finally:
                watcher.stop()
        named = {self._shift_name(name): size for name, size in watcher.shifts.items()}
        return {name: size for name, size in named.items() if name in self.growth.shifts}

    @property
    def _bounds(self) -> dict[str, Bounds]:
        return {part.name: part.bounds for part in self._parts if part.bounds is not None}

    def _shift_name(self, layer: str) -> str:
        """The part of a layer that has its shift."""
        converted = joined(layer, CONVERTED[-1])
        return converted if converted in self.growth.shifts else layer

    def _watchable(self) -> nn.Module:
        if self._model is None:
            raise ValueError(
                "A transform alone has no condition to sample for: certify a layer or a model."
            )
        return self._model

    def _bound_of(self, layer: str) -> float:
        """The largest inverse derivative of a layer by its name, whatever its parts are called.

        The two parts that a conversion made of one transform multiply; halves of a block do not.
        """
        inside: list[Part] = []
        while not inside:
            prefix = f"{layer}." if layer else ""
            inside = [p for p in self._parts if p.name == layer or p.name.startswith(prefix)]
            layer = layer.rpartition(".")[0]
        together: dict[str, float] = {}
        for part in inside:
            name, _, suffix = part.name.rpartition(".")
            key = name if suffix in CONVERTED else part.name
            together[key] = together.get(key, 1.0) * _largest_derivative(part)
        return max(together.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything, in plain types; infinity as ``float("inf")``."""
        return {
            "passed": self.passed,
            "growth": {
                "A": self.growth.A,
                "B": self.growth.B,
                "shifts": dict(self.growth.shifts),
                "conditional": self.growth.conditional,
                "statement": str(self.growth),
            },
            "rows": [{**asdict(row), "value": _plain(row.value)} for row in self.rows],
            "contributions": [asdict(each) for each in self.contributions],
        }

    def __str__(self) -> str:
        verdict = "passed" if self.passed else f"failed ({_failed(self.failures)})"
        lines = [f"Certificate: {verdict}.", f"For every condition: {self.growth}."]
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            alike = (row.type, row.kind, row.quantity, str(_shown(row.value)), row.passed, row.note)
            groups.setdefault((*alike, row.formula), []).append(row)
        head = ("layer", "kind", "bound", "value", "limit", "", "formula")
        table = [head, *(_cells(rows) for rows in groups.values())]
        widths = [max(len(line[column]) for line in table) for column in range(len(head))]
        for line in table:
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            lines.append("  ".join(padded).rstrip())
        notes = dict.fromkeys(row.note for row in self.rows if row.note)
        lines += [f"- {note}" for note in notes]
        return "\n".join(lines)


def certify(
    layer_or_model: Any,
    *,
    max_gain: float = MAX_GAIN,
    max_ratio: float = MAX_RATIO,
    ignore: Collection[str] = (),
) -> Certificate:
    r"""Bound the inverse of a layer or a model, for every condition and every latent.

    For each elementwise transform y = T(x) whose parameters the condition (or the rest of z)
    decides, over all values of its parameters and of x:

    - ``inverse derivative``: infimum and supremum of 1 / T'(x). It passes if the supremum is at
      most ``max_gain``, or if the displacement is bounded: then the derivative may be large inside
      the box, but moves no value further than that.
    - ``displacement``: how far the inverse moves a value, beyond its shift, at most.
    - ``tail ratio``: supremum over infimum of T'(x) for \|x\| beyond the box, over all parameters.
      It passes if it is at most ``max_ratio``: this is the published criterion, that for a large
      input the derivative's bounds coincide whatever the condition.

    For layers that are the same for every condition, the gain of their inverse, from their weights.
    For the whole model ``gain over the depth``, the product of the conditional layers' gains; and
    ``growth``, the bound ``|z_0| <= A |z_K| + B + ...`` of :class:`Growth`, with its terms in the
    shifts. Both pass if the conditional layers' gain is at most ``max_gain``: A has the constant
    scales too, which are those of the data.

    Bounds hold in exact arithmetic; rounding adds a few units in the last place to each layer.

    Args:
        layer_or_model: a model or a layer of :mod:`robustflow.nn`,
            :mod:`robustflow.compat.srflow`, nflows, glasflow, normflows, FrEIA or zuko, or a module
            that contains such layers; or an elementwise transform such as
            :class:`robustflow.nn.Affine`. On any device; it is not run.
        max_gain: the largest gain that passes. The default lies between scales that are bounded on
            purpose (FrEIA's e^2, e^3 of :class:`robustflow.nn.Split`) and those that can collapse
            (1e3 of nflows and zuko, 1e4 of SRFlow).
        max_ratio: the largest tail ratio that passes.
        ignore: qualified names of modules in a model of your own that transform no z (encoders
            and the like); otherwise they count as layers that are not known.

    Raises:
        ValueError: no flow layer in it, a name to ignore that it does not have, or a limit below 1.
        TypeError: neither a module nor a known transform.

    Source: the criterion of Hong, Park and Chun, ICCV 2023 (arXiv:2212.04319); the bounds' proofs
    are in docs/robustness-bounds.md.

    Example:
        >>> from robustflow import nn as rnn
        >>> certify(rnn.ModifiedRQSpline.published()).passed
        True
        >>> [row.quantity for row in certify(rnn.Affine()).failures]
        ['inverse derivative', 'tail ratio', 'growth']
        >>> steps = [rnn.flow_step(2, 1, rnn.ModifiedRQSpline(), spatial_dims=0) for _ in range(4)]
        >>> A, B = certify(rnn.ConditionalFlow([sum(steps, [])])).growth
        >>> round(A, 4)
        1.0
    """
    for name, limit in (("max_gain", max_gain), ("max_ratio", max_ratio)):
        check_number(name, limit)
        if not limit >= 1:
            raise ValueError(f"{name} must be at least 1, got {limit!r}.")
    if isinstance(layer_or_model, nn.Module):
        tree: Tree = describe(layer_or_model, ignore)
    else:
        bounds = bounds_of(layer_or_model)
        if bounds is None:
            raise TypeError(
                "certify takes a torch.nn.Module, or an elementwise transform such as "
                f"robustflow.nn.Affine(), got {type(layer_or_model).__name__}."
            )
        kind = type(layer_or_model).__name__
        tree = Part("", kind, "elementwise", bounds.inverse, bounds.forward, bounds)
    growth, contributions = compose(tree)
    parts = list(parts_of(tree))
    rows = [row for part in parts for row in _rows(part, max_gain, max_ratio)]
    rows += _model_rows(parts, growth, max_gain)
    model = layer_or_model if isinstance(layer_or_model, nn.Module) else None
    return Certificate(tuple(rows), growth, contributions, model, tuple(parts))


def _largest_derivative(part: Part) -> float:
    """Of the part's inverse, as the kernels compute it."""
    if part.bounds is None:
        return part.inverse.gain
    return (part.bounds.computed or part.bounds.derivative).reciprocal.high


def _rows(part: Part, max_gain: float, max_ratio: float) -> Iterator[Row]:
    where = (part.name, part.type, part.kind)
    if part.unknown:
        note = f"not bounded: {part.unknown} {part.name or _MODEL} ({part.type})"
        yield Row(*where, "not bounded", INFINITY, None, False, "", _OURS, note)
    elif part.bounds is not None:
        yield from _conditional_rows(where, part.bounds, max_gain, max_ratio)
    elif part.formula:
        gain = part.inverse.gain
        yield Row(
            *where,
            "inverse norm" if part.kind == "1x1" else "inverse scale",
            gain,
            None,
            math.isfinite(gain),
            part.formula,
            part.source or _OURS,
            "" if math.isfinite(gain) else f"{part.name or _MODEL} cannot be inverted",
        )


def _conditional_rows(
    where: tuple[str, str, Kind], bounds: Bounds, max_gain: float, max_ratio: float
) -> Iterator[Row]:
    inverse = bounds.derivative.reciprocal
    confined = math.isfinite(bounds.displacement)
    yield Row(
        *where,
        "inverse derivative",
        inverse,
        max_gain,
        inverse.high <= max_gain or confined,
        f"1 / T'(x), T(x) = {bounds.formula}",
        bounds.source,
        " ".join(filter(None, _inverse_notes(bounds, inverse, max_gain))),
    )
    yield Row(
        *where,
        "displacement",
        bounds.displacement,
        None,
        True if confined else None,
        "sup |T^-1(y) - (y - t)|",
        _OURS,
        "" if confined else "A transform that scales moves a value in proportion to it.",
    )
    latents = where[2] == "split"
    ratio = INFINITY if bounds.tail is None else bounds.tail.ratio
    if bounds.tail is None:
        passed, note = None, bounds.note
    elif latents:
        passed = None
        note = (
            "A split transforms latents where they enter: they are drawn, not grown, so the "
            "criterion for large inputs is not asked of it."
        )
    else:
        passed, note = ratio <= max_ratio, ""
    yield Row(
        *where,
        "tail ratio",
        ratio,
        max_ratio,
        passed,
        f"sup T'(x) / inf T'(x) for |x| > {bounds.radius:g}",
        ROBUST,
        note,
    )


def _inverse_notes(bounds: Bounds, inverse: Range, max_gain: float) -> Iterator[str]:
    if math.isfinite(bounds.displacement) and inverse.high > max_gain:
        yield (
            "A large inverse derivative inside the box moves no value further than the "
            "displacement."
        )
    if bounds.computed is not None:
        computed = bounds.computed.reciprocal
        if not math.isclose(computed.high, inverse.high):
            yield (
                f"Unbounded as a formula; robustflow's kernels, whose logits saturate, reach "
                f"{computed.high:.4g}."
            )
    if bounds.tail is not None and bounds.note:
        yield bounds.note


def _model_rows(parts: Sequence[Part], growth: Growth, max_gain: float) -> Iterator[Row]:
    where = ("", _MODEL, "model")
    depth = [part for part in parts if part.bounds is not None or part.unknown]
    if len(depth) > 1:
        largest = max(part.inverse.gain for part in depth)
        yield Row(
            *where,
            "gain over the depth",
            growth.conditional,
            max_gain,
            growth.conditional <= max_gain,
            f"composed over {len(depth)} transforms of at most {largest:.5g} each",
            _OURS,
        )
    yield Row(
        *where,
        "growth",
        growth.A,
        None,
        math.isfinite(growth.B) and growth.A < INFINITY and growth.conditional <= max_gain,
        str(growth),
        _OURS,
        _shift_note(growth) if growth.shifts else "",
    )


def _shift_note(growth: Growth) -> str:
    return (
        f"t_k are the shifts that the conditioners of {len(growth.shifts)} transforms make: "
        "functions of the condition that no setting bounds. growth.given(...) takes bounds on them."
    )


def _failed(rows: Sequence[Row]) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.quantity] = counts.get(row.quantity, 0) + 1
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _cells(rows: Sequence[Row]) -> tuple[str, ...]:
    row = rows[0]
    name = row.layer or (_MODEL if row.kind == "model" else row.type)
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    verdict = {True: "pass", False: "FAIL", None: "-"}[row.passed]
    limit = "" if row.limit is None else f"{row.limit:g}"
    return name + more, row.kind, row.quantity, _shown(row.value), limit, verdict, row.formula


def _shown(value: Range | float) -> str:
    return str(value) if isinstance(value, Range) else f"{value:.5g}"


def _plain(value: Range | float) -> list[float] | float:
    return [value.low, value.high] if isinstance(value, Range) else value
