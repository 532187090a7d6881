"""zuko: ``MonotonicRQSTransform``, and the layers that make one from packed parameters.

zuko makes a transform a call and computes its knots at once. While patched it keeps the parameters
instead and computes ``horizontal``, ``vertical`` and ``derivatives`` when someone reads them; the
kernels need none of them. What a transform keeps is plain tensors in a tuple under one attribute,
and it is gone from pickles and from all living transforms once the library is restored.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from robustflow import functional as F
from robustflow import ops
from robustflow._call_state import in_torch_func
from robustflow._checks import static
from robustflow._rq_arguments import box_of
from robustflow._transforms import RQ
from robustflow._versions import versions
from robustflow.compat._patch.code import (
    AttributeChange,
    Change,
    CodeChange,
    Function,
    original_of,
)
from robustflow.compat._patch.counts import fell_back, served_rq
from robustflow.compat._patch.errors import PatchError
from robustflow.compat._patch.obstacles import (
    in_dtype,
    number_obstacle,
    promoted_dtype,
    tensor_obstacle,
)
from robustflow.compat._patch.recognise import (
    COUNT,
    compare,
    import_library,
    normal,
    require_function,
    require_parameters,
    uniform,
)
from robustflow.compat._patch.zuko.inverse import inverse_change

_LIBRARY = "zuko"
_KNOTS = ("horizontal", "vertical", "derivatives")
_KNOT_SET = frozenset(_KNOTS)
_SMALLEST_BIN = (1e-3, 1e-3)  # width and height
_RAW = "_robustflow_parameters"
_MODIFIED = (
    "The parameters of this MonotonicRQSTransform were modified in place after it was made, so "
    "that its knots cannot be had any more: make it again, or clone the parameters before it is "
    "made."
)
# A subclass that defines one of these depends on how zuko computes: it keeps zuko's code.
_INNER = (
    *_KNOTS,
    "bin",
    "bins",
    "searchsorted",
    "__getattr__",
    "__getattribute__",
    "__getstate__",
    "__setstate__",
    "__reduce__",
    "__reduce_ex__",
    "__copy__",
    "__deepcopy__",
)


class _Running:
    """A layer that is running."""

    __slots__ = ("direct", "packed", "pieces")

    def __init__(self, direct: bool) -> None:
        self.direct = direct  # see _is_direct
        self.packed: Any = None  # its parameters
        self.pieces: Sequence[Any] = ()  # cut out of them


class _Thread(threading.local):
    layer: _Running | None = None  # the innermost that is running in this thread


_THREAD = _Thread()


def modules() -> list[ModuleType]:
    """Import those that define what is changed."""
    return import_library(
        _LIBRARY,
        "zuko.utils",
        "zuko.transforms",
        "zuko.nn",
        "zuko.flows.autoregressive",
        "zuko.flows.coupling",
        "zuko.flows.gaussianization",
    )


def changes() -> list[Change]:
    """What to change in zuko."""
    utils, transforms, networks, autoregressive, coupling, gaussianization = modules()
    owner = getattr(transforms, "MonotonicRQSTransform", None)
    if not isinstance(owner, type):
        raise PatchError("zuko cannot be patched: it has no transforms.MonotonicRQSTransform.")
    methods = {
        "__init__": (("self", "widths", "heights", "derivatives", "bound", "slope", "kwargs"),),
        "bins": (("self",),),
        "_call": (("self", "x"),),
        "_inverse": (("self", "y"),),
        "call_and_ladj": (("self", "x"),),
    }
    functions = {name: require_function(_LIBRARY, owner, name) for name in methods}
    for name, known in methods.items():
        require_parameters(_LIBRARY, functions[name], *known)
    spline = _Spline(owner, {name: original_of(f) for name, f in functions.items()})
    direct = _Direct(owner)
    _probe(owner)
    return [
        AttributeChange(owner, "__getattr__", spline.attribute),
        AttributeChange(owner, "__getstate__", spline.state),
        _Settle(spline),
        *(CodeChange(functions[name], spline.replacement(name)) for name in methods),
        _unpack_change(utils),
        _layer_change(
            autoregressive.MaskedAutoregressiveTransform, "meta", ("self", "c", "x"), direct
        ),
        _layer_change(coupling.GeneralCouplingTransform, "meta", ("self", "c", "x"), direct),
        _layer_change(gaussianization.ElementWiseTransform, "forward", ("self", "c"), direct),
        inverse_change(_LIBRARY, transforms, autoregressive, networks, direct, _invert_pieces),
    ]


def _probe(owner: type) -> None:
    groups = [normal(COUNT, 2, size, seed=i) for i, size in enumerate((5, 5, 4))]
    x = uniform(COUNT, 2, low=-4.0, high=4.0)

    def forward(x: Tensor, *groups: Tensor) -> tuple[Tensor, Tensor]:
        return owner(*groups, bound=2.5, slope=1e-2).call_and_ladj(x)

    def inverse(y: Tensor, *groups: Tensor) -> tuple[Tensor, ...]:
        return (owner(*groups, bound=2.5, slope=1e-2)._inverse(y),)

    def ours(inverse: bool, x: Tensor, *groups: Tensor) -> tuple[Tensor, ...]:
        return _spline(groups, 5, 2.5, 1e-2, x, inverse)[: 1 if inverse else 2]

    for inverted, theirs in ((False, forward), (True, inverse)):
        what = f"{owner.__name__}, {theirs.__name__}"
        compare(_LIBRARY, what, theirs, partial(ours, inverted), x, *groups)


def _spline(
    parameters: Sequence[Tensor],
    num_bins: int,
    bound: Any,
    slope: float,
    x: Tensor,
    inverse: bool,
    by: Any = None,
) -> tuple[Tensor, Tensor]:
    """The kernels, on widths, heights and derivatives or on the tensor that holds them."""
    if len(parameters) == 1 and x.shape == parameters[0].shape[:-1]:
        packed = parameters[0]
        dtype = promoted_dtype(x, packed)
        box, edges = box_of(x, bound)
        config = RQ.config(
            num_bins,
            inverse,
            "linear",
            "softclip",
            edges,
            *_SMALLEST_BIN,
            slope,
            1.0,
            "none",
            x.dim(),
        )
        y, ladj = ops.of(RQ).apply(in_dtype(x, dtype), packed, None, None, box, *config, by=by)
        return y, in_dtype(ladj, dtype)
    widths, heights, derivatives = _groups(parameters, num_bins)
    dtype = promoted_dtype(x, widths, heights, derivatives)
    y, ladj = F.rq_spline(
        in_dtype(x, dtype),
        widths,
        heights,
        derivatives,
        inverse,
        tail_bound=bound,
        min_bin_width=_SMALLEST_BIN[0],
        min_bin_height=_SMALLEST_BIN[1],
        min_derivative=slope,
        parametrization="softclip",
    )
    return y, in_dtype(ladj, dtype)


def _groups(parameters: Sequence[Tensor], num_bins: int) -> Sequence[Tensor]:
    """Widths, heights and derivatives."""
    if len(parameters) == 3:
        return parameters
    return parameters[0].split((num_bins, num_bins, num_bins - 1), -1)


class _Spline:
    """The methods of MonotonicRQSTransform while patched."""

    def __init__(self, owner: type, originals: dict[str, FunctionType]) -> None:
        self.owner = owner
        self.originals = originals
        self.active = False
        self.made = _Made()
        self.plain: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()

    def replacement(self, name: str) -> Function:
        made: dict[str, Function] = {
            "__init__": self._make_init(),
            "bins": self._make_bins(),
            "_call": self._make_method("_call", False, True),
            "_inverse": self._make_method("_inverse", True, True),
            "call_and_ladj": self._make_method("call_and_ladj", False, False),
        }
        return made[name]

    def _make_init(self) -> Function:
        owner: Any = self.owner
        original = self.originals["__init__"]

        def init(
            self_: Any,
            widths: Any,
            heights: Any,
            derivatives: Any,
            bound: Any,
            slope: Any,
            **kwargs: Any,
        ) -> None:
            packed = _packed_of(widths, heights, derivatives)
            if packed is not None and isinstance(widths, _Piece):
                # Where a kernel cannot read the tensor, the methods say so.
                num_bins = (static(packed.shape[-1]) + 1) // 3
                reason = self._setting_obstacle(type(self_), packed.dim(), bound, slope)
                if reason is not None:
                    widths, heights, derivatives = _groups((packed,), num_bins)
            else:
                num_bins, reason = self._obstacle(
                    type(self_), widths, heights, derivatives, bound, slope
                )
            if reason is not None:
                # Counted where the transform is used.
                original(self_, widths, heights, derivatives, bound, slope, **kwargs)
                return
            parameters: tuple[Tensor, ...] = (widths, heights, derivatives)
            if packed is not None:
                parameters = (packed,)
            traced = _is_traced()
            if traced:
                original(self_, *_groups(parameters, num_bins), bound, slope, **kwargs)
            if isinstance(bound, Tensor) and bound.dim():
                bound = bound.squeeze(-1)  # zuko lets it broadcast against the knots
            if traced:
                knots = tuple(getattr(self_, name) for name in _KNOTS)
                setattr(self_, _RAW, (knots, None, parameters, num_bins, bound, slope))
                if not torch.compiler.is_compiling():
                    self.made.add(self_)
                return
            super(owner, self_).__init__(**kwargs)
            parameters = tuple([_kept(parameter) for parameter in parameters])
            # zuko's knots would be those of now: note the versions, to see a later change.
            self_.__dict__[_RAW] = (
                None,
                versions(parameters),
                parameters,
                num_bins,
                bound,
                slope,
            )
            self.made.add(self_)
            if not self.active:  # the library was restored meanwhile
                self.settle(self_)

        return init

    def _make_bins(self) -> Function:
        original = self.originals["bins"]

        def bins(self_: Any) -> int:
            raw = self._raw(self_)
            return original(self_) if raw is None else raw[1]

        return bins

    def _make_method(self, name: str, inverse: bool, only_value: bool) -> Function:
        original = self.originals[name]

        def method(self_: Any, x: Tensor) -> Any:
            raw = self._raw(self_)
            if raw is None:
                reason: str | None = (
                    "its knots were assigned or read, or its parameters are not supported"
                )
            else:
                reason = tensor_obstacle(x, raw[0][0])
            if raw is None or reason is not None:
                fell_back(_LIBRARY, f"{self.owner.__name__}.{name}", str(reason))
                return original(self_, x)
            parameters, num_bins, bound, slope = raw
            by = served_rq(_LIBRARY, x, parameters[0], num_bins, inverse)
            y, ladj = _spline(parameters, num_bins, bound, slope, x, inverse, by)
            return y if only_value else (y, ladj)

        return method

    def _obstacle(
        self,
        kind: type,
        widths: Any,
        heights: Any,
        derivatives: Any,
        bound: Any,
        slope: Any,
    ) -> tuple[int, str | None]:
        """The number of bins, and why the kernels cannot serve these arguments, or None."""
        if reason := tensor_obstacle(widths, heights, derivatives):
            return 0, reason
        num_bins = static(widths.shape[-1]) if widths.dim() else 0
        if not num_bins or heights.shape[-1:] != (num_bins,):
            return 0, "widths and heights differ in number"
        if derivatives.shape[-1:] != (num_bins - 1,):
            return 0, "there are not K - 1 derivatives"
        return num_bins, self._setting_obstacle(kind, widths.dim(), bound, slope)

    def _setting_obstacle(self, kind: type, dims: int, bound: Any, slope: Any) -> str | None:
        if kind is not self.owner and not self._is_plain(kind):
            return "a subclass computes otherwise"
        if not (isinstance(slope, (int, float)) and 0 < slope < 1):
            return "slope is not a number in (0, 1)"
        if isinstance(bound, Tensor):
            if bound.dim() and bound.shape[-1] != 1:
                return "the bound varies along a spline"
            if bound.dim() > dims or bound.requires_grad:
                return "the bound requires grad or has too many dimensions"
            return None
        return number_obstacle(bound)

    def _is_plain(self, kind: type) -> bool:
        plain = self.plain.get(kind)
        if plain is None:
            below = kind.__mro__[: kind.__mro__.index(self.owner)]
            plain = not any(name in vars(each) for each in below for name in _INNER)
            self.plain[kind] = plain
        return plain

    def _raw(self, transform: Any) -> tuple[Any, ...] | None:
        """Parameters, K, bound and slope for the kernels, or None if the knots are what counts."""
        state = transform.__dict__
        noted = state.get(_RAW)
        if noted is None:
            return None
        knots, then = noted[:2]
        raw = noted[2:]
        if knots is None:
            if not _KNOT_SET.isdisjoint(state):  # assigned by the user: they win
                self.settle(transform)
                return None
            if versions(raw[0]) != then:
                raise RuntimeError(_MODIFIED)
        elif any(getattr(transform, name) is not k for name, k in zip(_KNOTS, knots, strict=True)):
            return None
        return raw

    def settle(self, transform: Any) -> None:
        """Give a transform its knots, as zuko computes them, and forget its parameters."""
        state = transform.__dict__
        raw = state.pop(_RAW, None)
        if raw is None or raw[0] is not None:
            return
        parameters, num_bins, bound, slope = raw[2:]
        if versions(parameters) != raw[1]:
            for name in _KNOTS:
                state.setdefault(name, _Lost())
            return
        if isinstance(bound, Tensor) and bound.dim():
            bound = bound.unsqueeze(-1)
        # Knots of an object of zuko's own, so that this one's other attributes stay.
        twin: Any = object.__new__(self.owner)
        self.originals["__init__"](twin, *_groups(parameters, num_bins), bound, slope)
        for name in _KNOTS:
            state.setdefault(name, twin.__dict__[name])

    @property
    def attribute(self) -> Function:
        def __getattr__(self_: Any, name: str) -> Any:
            if name in _KNOTS and _RAW in self_.__dict__:
                self.settle(self_)
                return self_.__dict__[name]
            raise AttributeError(f"{type(self_).__name__!r} object has no attribute {name!r}")

        return __getattr__

    @property
    def state(self) -> Function:
        owner: Any = self.owner

        def __getstate__(self_: Any) -> Any:
            self.settle(self_)
            parent: Any = super(owner, self_)
            return parent.__getstate__()

        return __getstate__


class _Lost:
    """In place of knots that cannot be had any more; what uses them raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(_MODIFIED)

    def __reduce__(self) -> Any:
        raise RuntimeError(_MODIFIED)

    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(_MODIFIED)


class _Made:
    """The transforms that were made, as long as they live: torch's have no hash, for a WeakSet.

    No lock, which a process that is forked could find held: each step is one of the dictionary's.
    """

    def __init__(self) -> None:
        self._references: dict[int, weakref.ref[Any]] = {}

    def add(self, transform: Any) -> None:
        key = id(transform)
        self._references[key] = weakref.ref(transform, partial(self._references.pop, key))

    def alive(self) -> list[Any]:
        found = [reference() for reference in list(self._references.values())]
        return [transform for transform in found if transform is not None]


@dataclass
class _Settle:
    """On restore, every transform that was made while patched gets its knots."""

    spline: _Spline

    def apply(self) -> None:
        self.spline.active = True

    def undo(self) -> None:
        self.spline.active = False
        with ExitStack() as each:  # whichever fails
            for transform in self.spline.made.alive():
                each.callback(self.spline.settle, transform)


def _is_traced() -> bool:
    """Whether knots are computed with the transform, and not when someone reads them.

    In a graph those that nobody reads cost nothing. In a transform of torch.func they are tensors
    of its level, of which nothing can be computed when it has ended, and the object may live on.
    """
    return torch.compiler.is_compiling() or in_torch_func()


def _kept(parameter: Any) -> Any:
    """A parameter as it is now: without a gradient if none is recorded now."""
    if not isinstance(parameter, Tensor) or not parameter.requires_grad:
        return parameter
    if not torch.is_grad_enabled():
        return parameter.detach()
    return parameter.clone() if parameter.is_leaf else parameter  # an optimizer writes on leaves


def _unpack_change(utils: ModuleType) -> Change:
    """``unpack`` notes what it cuts, for a transform that is made of all its pieces.

    Where the layer hands the pieces to nothing but MonotonicRQSTransform, they are not cut at all:
    ``_Piece`` stands for each.
    """
    function = require_function(_LIBRARY, utils, "unpack")
    require_parameters(_LIBRARY, function, ("x", "shapes"))
    original = original_of(function)

    def unpack(x: Tensor, shapes: Any) -> Any:
        layer = None if torch.compiler.is_compiling() else _THREAD.layer
        if layer is None:
            return original(x, shapes)
        layer.packed = x
        layer.pieces = _PIECES if layer.direct else original(x, shapes)
        return layer.pieces

    return CodeChange(function, unpack)


class _Piece:
    """Widths, heights or derivatives that nobody has cut out of the packed parameters."""


_PIECES = (_Piece(), _Piece(), _Piece())


def _layer_change(owner: type, name: str, parameters: Sequence[str], direct: _Direct) -> Change:
    """A layer's method, within which the note of ``unpack`` lives."""
    method = require_function(_LIBRARY, owner, name)
    require_parameters(_LIBRARY, method, parameters)
    original = original_of(method)

    def layer(self: Any, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return original(self, *args)
        before = _THREAD.layer
        _THREAD.layer = _Running(direct(self))
        try:
            return original(self, *args)
        finally:
            _THREAD.layer = before

    return CodeChange(method, layer)


class _Direct:
    """Whether a layer's univariate transform is the spline itself, or a partial of it."""

    def __init__(self, spline: type) -> None:
        self._spline = spline
        # By the layer's id, since a lookup by a weak reference is slow: the layer, what it was
        # asked about, and the answer.
        self._answers: dict[int, tuple[weakref.ref[Any], Any, Any, bool]] = {}

    def __call__(self, layer: Any) -> bool:
        key, univariate, shapes = id(layer), layer.univariate, layer.shapes
        known = self._answers.get(key)
        if known is not None:
            reference, asked, asked_shapes, answer = known
            if asked is univariate and asked_shapes is shapes and reference() is layer:
                return answer
        answer = self._find(univariate, shapes)
        gone = weakref.ref(layer, lambda _: self._answers.pop(key, None))
        self._answers[key] = gone, univariate, shapes, answer
        return answer

    def _find(self, univariate: Any, shapes: Any) -> bool:
        while type(univariate) is partial and not univariate.args:
            univariate = univariate.func
        if univariate is not self._spline or len(shapes) != 3:
            return False
        sizes = [math.prod(shape) for shape in shapes]
        return all(len(shape) == 1 for shape in shapes) and sizes[0] == sizes[1] == sizes[2] + 1


def _invert_pieces(univariate: Any, y: Tensor, packed: Tensor) -> Tensor:
    """The inverse of a direct layer's univariate transform, with these parameters."""
    before = _THREAD.layer
    layer = _THREAD.layer = _Running(True)
    layer.packed, layer.pieces = packed, _PIECES
    try:
        x: Tensor = univariate(*_PIECES)._inverse(y)
    finally:
        _THREAD.layer = before
    return x


def _packed_of(*parameters: Any) -> Tensor | None:
    """What :mod:`zuko` has just cut into these parameters, if it has."""
    layer = None if torch.compiler.is_compiling() else _THREAD.layer
    if layer is None or len(layer.pieces) != len(parameters):
        return None
    for piece, parameter in zip(layer.pieces, parameters, strict=True):
        if piece is not parameter:
            return None
    packed: Tensor = layer.packed
    return packed
