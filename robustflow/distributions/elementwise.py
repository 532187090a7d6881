"""What the transforms of this package share: shapes, the two directions, and what a call keeps."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import Transform, constraints
from torch.distributions.transforms import _InverseTransform

from robustflow._call_state import in_torch_func
from robustflow._checks import check_tensor
from robustflow.distributions.kept import Kept, Traced


class ElementwiseTransform(Transform, ABC):
    """A monotone increasing function of each element, with parameters of its own.

    A parameter's last dimension holds what one element needs; the others broadcast against x.

    A call computes the value and the log-determinant together. The latter is kept until the caller
    lets go of x or y, so that ``log_abs_det_jacobian`` of that pair, in either direction, costs no
    further call; ``cache_size=1`` holds the pair itself too, as in torch. What is kept is not used
    after a write to x, y or a parameter, nor where it was computed without a gradient that is
    wanted now.
    """

    domain: Any = constraints.real  # a property in subclasses, which torch's annotation forbids
    codomain: Any = constraints.real
    bijective = True
    sign = +1

    parameter_names: ClassVar[tuple[str, ...]]

    def __init__(self, settings: dict[str, Any], cache_size: int) -> None:
        super().__init__(cache_size=cache_size)
        self.settings = settings
        self._kept: Kept | None = None
        self._traced: Traced | None = None

    @abstractmethod
    def _transform(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """x of the full shape -> y and the log-determinant, element by element."""

    @property
    def _parameters(self) -> tuple[Tensor, ...]:
        parameters = (getattr(self, name) for name in self.parameter_names)
        return tuple(parameter for parameter in parameters if parameter is not None)

    def _leading_shapes(self) -> list[Size]:
        """What x broadcasts against."""
        return [parameter.shape[:-1] for parameter in self._parameters]

    @property
    def batch_shape(self) -> Size:
        """The shape to which the parameters broadcast."""
        return self.forward_shape(Size())

    def forward_shape(self, shape: Size) -> Size:
        """The shape of y for an x of this shape."""
        shapes = self._leading_shapes()
        if all(each == shape for each in shapes):
            return shape
        try:
            return torch.broadcast_shapes(shape, *shapes)
        except RuntimeError:
            raise ValueError(
                f"The input and the parameters of {type(self).__name__} must broadcast, got an "
                f"input of shape {tuple(shape)} and parameters of batch shape "
                f"{', '.join(str(tuple(each)) for each in shapes)}."
            ) from None

    inverse_shape = forward_shape

    @property
    def inv(self) -> Inverse:
        """The inverse, which has no state of its own: ``t.inv.inv is t``."""
        return Inverse(self)

    def __call__(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._call(x)
        self._drop_outdated()
        return super().__call__(x)

    def _inv_call(self, y: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return self._inverse(y)
        self._drop_outdated()
        return super()._inv_call(y)

    def _drop_outdated(self) -> None:
        """torch's cache asks only whether the tensor is the same object."""
        if self._cache_size and (
            self._kept is None or not self._kept.holds_for(*self._cached_x_y, self._parameters)
        ):
            self._cached_x_y = None, None

    def _call(self, x: Tensor) -> Tensor:
        y, logabsdet = self._compute("x", x, False)
        self._keep(x, y, False, logabsdet)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, logabsdet = self._compute("y", y, True)
        self._keep(x, y, True, logabsdet)
        return x

    def _keep(self, x: Tensor, y: Tensor, inverse: bool, logabsdet: Tensor) -> None:
        if torch.compiler.is_compiling():
            # A transform of torch.func ends within the graph, and its tensors with it.
            if not in_torch_func():
                self._traced = Traced(x, y, inverse, logabsdet)
        else:
            self._kept = Kept(x, y, inverse, logabsdet, self._parameters)

    def _compute(self, name: str, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        check_tensor(name, value)
        shape = self.forward_shape(value.shape)
        return self._transform(value if shape == value.shape else value.expand(shape), inverse)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log \\|dy/dx\\| of each element, like y; float32, or float64 if x or a parameter is.

        For the x and y of the latest call, in either direction, nothing is computed. The autograd
        graph is then that call's: after ``x = t.inv(y)`` it leads to y, as the graph of x does.
        """
        return self._logabsdet(x, y, False)

    def _logabsdet(self, x: Tensor, y: Tensor, inverse: bool) -> Tensor:
        kept: Kept | Traced | None = self._kept
        if torch.compiler.is_compiling():
            # Used once: a caller that kept it would keep it beyond the trace.
            kept, self._traced = self._traced, None
        if kept is not None:
            logabsdet = kept.logabsdet(x, y, inverse, self._parameters)
            if logabsdet is not None:
                return logabsdet
        return self._compute(*(("y", y) if inverse else ("x", x)), inverse)[1]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log \\|dy/dx\\|, in one call (zuko's protocol)."""
        if torch.compiler.is_compiling():
            return self._compute("x", x, False)
        y = self(x)
        return y, self._logabsdet(x, y, False)

    def with_cache(self, cache_size: int = 1) -> ElementwiseTransform:
        """The same transform with another cache size; itself, if that is its own."""
        if cache_size == self._cache_size:
            return self
        new = copy.copy(self)
        Transform.__init__(new, cache_size=cache_size)
        return new

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_kept"] = state["_traced"] = None
        if self._cache_size:
            state["_cached_x_y"] = None, None
        return state

    def __eq__(self, other: object) -> bool:
        """Same kind, settings and parameters; like torch's, a transform has no hash."""
        return (
            isinstance(other, ElementwiseTransform)
            and type(self) is type(other)
            and len(self._parameters) == len(other._parameters)
            and all(map(_same, self._parameters, other._parameters))
            and all(map(_same, self.settings.values(), other.settings.values()))
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(batch_shape={tuple(self.batch_shape)}{self._extra_repr()})"

    def _extra_repr(self) -> str:
        return ""


class Inverse(_InverseTransform):
    """torch's inverse, with the log-determinant of the inverse call itself."""

    _inv: ElementwiseTransform

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()  # torch's drops the inverted transform, so that a copy fails

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._inv._logabsdet(y, x, True)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            return self._inv._compute("y", x, True)
        y = self(x)
        return y, self.log_abs_det_jacobian(x, y)


def check_parameters(name: str, value: Tensor, num_params: int) -> None:
    check_tensor(name, value)
    if value.dim() == 0 or value.shape[-1] != num_params:
        raise ValueError(
            f"{name} must have the {num_params} parameters of an element as its last dimension, "
            f"got shape {tuple(value.shape)}."
        )


def with_dims(parameter: Tensor, dims: int) -> Tensor:
    """A view with leading dimensions of 1, which the operators read through strides."""
    return parameter[(None,) * (dims - parameter.dim())]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b
