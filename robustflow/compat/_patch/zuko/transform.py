"""The methods of zuko's ``MonotonicRQSTransform`` while it is patched.

zuko computes the knots of a transform when it is made. These methods keep the parameters instead,
which are all that the kernels need: see :mod:`robustflow.compat._patch.zuko.knots`.
"""

from __future__ import annotations

import weakref
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from robustflow._call_state import in_torch_func
from robustflow._checks import static
from robustflow._versions import versions
from robustflow.compat._patch.code import Function
from robustflow.compat._patch.counts import fell_back, served_rq
from robustflow.compat._patch.obstacles import number_obstacle, tensor_obstacle
from robustflow.compat._patch.zuko.kept import KNOTS, Kept, as_it_is_now
from robustflow.compat._patch.zuko.kernels import spline, split
from robustflow.compat._patch.zuko.knots import Knots
from robustflow.compat._patch.zuko.packed import Placeholder, packed_of

# A subclass that defines one of these depends on how zuko computes: it keeps zuko's code.
_INNER = (
    *KNOTS,
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


def new_init(original: FunctionType, knots: Knots) -> Function:
    """The replacement of ``__init__``."""
    owner: Any = knots.owner
    obstacles = _Obstacles(owner)

    def init(
        self: Any,
        widths: Any,
        heights: Any,
        derivatives: Any,
        bound: Any,
        slope: Any,
        **kwargs: Any,
    ) -> None:
        packed = packed_of(widths, heights, derivatives)
        if packed is not None and isinstance(widths, Placeholder):
            # Where a kernel cannot read the tensor, the methods say so.
            num_bins = (static(packed.shape[-1]) + 1) // 3
            reason = obstacles.of_settings(type(self), packed.dim(), bound, slope)
            if reason is not None:
                widths, heights, derivatives = split((packed,), num_bins)
        else:
            num_bins, reason = obstacles.of(type(self), widths, heights, derivatives, bound, slope)
        if reason is not None:
            # Counted where the transform is used.
            original(self, widths, heights, derivatives, bound, slope, **kwargs)
            return
        parameters = (widths, heights, derivatives) if packed is None else (packed,)
        traced = _is_traced()
        if traced:
            original(self, *split(parameters, num_bins), bound, slope, **kwargs)
        if isinstance(bound, Tensor) and bound.dim():
            bound = bound.squeeze(-1)  # zuko lets it broadcast against the knots
        if traced:
            now = tuple(getattr(self, name) for name in KNOTS)
            kept = Kept(parameters, num_bins, bound, slope, knots=now)
            knots.keep_traced(self, kept, compiling=torch.compiler.is_compiling())
            return
        super(owner, self).__init__(**kwargs)
        parameters = tuple([as_it_is_now(parameter) for parameter in parameters])
        knots.keep(self, Kept(parameters, num_bins, bound, slope, versions(parameters)))

    return init


def new_bins(original: FunctionType, knots: Knots) -> Function:
    """The replacement of the property ``bins``."""

    def bins(self: Any) -> int:
        kept = knots.kept(self)
        return original(self) if kept is None else kept.num_bins

    return bins


def new_method(
    library: str, original: FunctionType, knots: Knots, *, inverse: bool, with_ladj: bool
) -> Function:
    """The replacement of a method that transforms, with or without the log-determinant."""
    name = f"{knots.owner.__name__}.{original.__name__}"

    def method(self: Any, x: Tensor) -> Any:
        kept = knots.kept(self)
        if kept is None:
            reason: str | None = (
                "its knots were assigned or read, or its parameters are not supported"
            )
        else:
            reason = tensor_obstacle(x, kept.parameters[0])
        if kept is None or reason is not None:
            fell_back(library, name, str(reason))
            return original(self, x)
        by = served_rq(library, x, kept.num_bins)
        y, ladj = spline(kept.parameters, kept.num_bins, kept.bound, kept.slope, x, inverse, by)
        return (y, ladj) if with_ladj else y

    return method


def _is_traced() -> bool:
    """Whether knots are computed with the transform, and not when someone reads them.

    In a graph those that nobody reads cost nothing. In a transform of torch.func they are tensors
    of its level, of which nothing can be computed when it has ended, and the object may live on.
    """
    return torch.compiler.is_compiling() or in_torch_func()


class _Obstacles:
    """Why the kernels cannot serve a transform of these arguments."""

    def __init__(self, owner: type) -> None:
        self._owner = owner
        self._plain: weakref.WeakKeyDictionary[type, bool] = weakref.WeakKeyDictionary()

    def of(
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
        return num_bins, self.of_settings(kind, widths.dim(), bound, slope)

    def of_settings(self, kind: type, dims: int, bound: Any, slope: Any) -> str | None:
        if kind is not self._owner and not self._is_plain(kind):
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
        """Whether a subclass leaves to zuko how it computes."""
        plain = self._plain.get(kind)
        if plain is None:
            below = kind.__mro__[: kind.__mro__.index(self._owner)]
            plain = not any(name in vars(each) for each in below for name in _INNER)
            self._plain[kind] = plain
        return plain
