"""Registration, once for all transforms: schema, fake kernel, autograd formula, vmap rule.

A transform has one or more *implementations*. Each is a pair of operators, forward and backward.
All pairs have the same two schemas:

- ``native``: ``robustflow::name`` and ``robustflow::name_backward``. The native libraries register
  kernels for them, each library for its device; this module does not know for which;
- ``triton``: ``robustflow::name_triton`` and ``robustflow::name_triton_backward``, around the
  functions of :mod:`robustflow.kernels`.

torch.compile, vmap and exported programs use the operators' own autograd, a kernel under the
dispatch key Autograd. In reverse mode it calls the backward operator. In forward mode, and inside a
torch.func transform that differentiates, it calls the reference, whose operations are then in the
graph. An eager call does not go through the dispatcher to that Python kernel, because for a small
batch that takes longer than the transform. It goes through a plain ``autograd.Function`` around the
operator, which computes the same gradients: in C++ if `robustflow._autograd` is loaded and the
implementation was given as a pair of operators, else in Python.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from robustflow import _call_state, _native
from robustflow._backend import implementation
from robustflow._call_state import (
    below_autograd,
    is_plain_eager,
    is_plain_tensor,
    kind_of_call,
)
from robustflow._spec import Spec

LIBRARY = torch.library.Library("robustflow", "DEF")

Function = Callable[..., Any]
Transformed = Callable[..., tuple[Tensor, Tensor]]  # returns what a user gets, (y, logabsdet)


@dataclass(frozen=True)
class Implementation:
    """One implementation. ``eager`` and ``operator`` take the same positional arguments."""

    eager: Transformed  # through a plain autograd.Function
    operator: OpOverload  # as registered: what torch.compile and vmap see
    backward: OpOverload  # of the operator


class Transform:
    """One transform, and its implementations.

    Args:
        spec: its parameters and settings.
        reference: the transform in plain PyTorch. It takes the operator's positional arguments, but
            the value of a ``Choice`` as a name instead of a number.

    Attributes:
        reference: the same function, with the operator's arguments: a choice is a number.

    The backward operator returns a gradient for ``x`` and for each tensor of parameters. Bit i of
    ``needed`` asks for gradient i; a gradient that is not asked for is an empty tensor.
    """

    def __init__(self, spec: Spec, reference: Transformed) -> None:
        self.name = spec.name
        self.spec = spec
        self.implementations: dict[str, Implementation] = {}
        tensors = ("Tensor x", *spec.tensors)
        self._num_tensors = len(tensors)
        self._num_gradients = 1 + len(spec.groups)
        # Number of tensor arguments after x.
        self._num_others = len(spec.tensors)
        self._has_size = bool(spec.size)
        # If no kernel can be called, every size counts as too large, so the reference serves.
        self._max_size = spec.max_size if _call_state.KERNELS_CAN_BE_CALLED else -1
        self._has_options = self._num_others > 1

        @functools.wraps(reference)
        def with_names(*arguments: Any) -> tuple[Tensor, Tensor]:
            inputs, config = arguments[: len(tensors)], arguments[len(tensors) :]
            return reference(*inputs, *spec.with_choice_names(config))

        self.reference: Transformed = with_names
        arguments = (*tensors, *spec.config_schema)
        backward = ("Tensor? grad_y", "Tensor? grad_logabsdet", *arguments, "int needed")
        # Arguments and number of results, of the operator and of its backward.
        self._schemas = ((arguments, 2), (backward, self._num_gradients))
        self.add_implementation("native", *self.define(LIBRARY, self.name))

    def apply(
        self, x: Tensor, *arguments: Any, by: Transformed | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute (y, logabsdet) by a kernel, or by the reference if no kernel serves the call.

        Args:
            x: of any shape.
            arguments: first the tensors of parameters and constants, each of which may be None if
                it is optional. Their last dimension has the numbers of one element; the others
                broadcast to x. Then the configuration.
            by: the result of :meth:`route` for this call, if it is known already.
        """
        if by is None:
            by = self.route(x, arguments[self._num_others] if self._has_size else 0)
        if (
            self._has_options  # optional tensors, which nearly all calls leave out
            and (arguments[1] is not None or arguments[self._num_others - 1] is not None)
            and by is not self.reference
        ):
            arguments = self._aligned(x, arguments)
        return by(x, *arguments)

    def route(self, x: Tensor, size: int = 0) -> Transformed:
        """The function that serves a call: an implementation's eager or operator, or the reference.

        Args:
            x: of the call.
            size: the size in the call's configuration, if the transform has one.

        The operators support reverse mode and vmap. In forward mode, and inside a torch.func
        transform that differentiates, the reference serves the call, because PyTorch would take the
        derivative of an operator to be zero, without an error.
        """
        if size > self._max_size:
            return self.reference
        kind = kind_of_call()
        name = implementation(x, kind)
        if name == "reference":
            return self.reference
        if kind == "plain":
            return self.implementations[name].eager
        return self.reference if kind == "differentiated" else self.implementations[name].operator

    def _aligned(self, x: Tensor, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, with all groups of parameters expanded to one leading shape."""
        count, dims = self._num_gradients - 1, x.dim() + 1
        if arguments[count - 1] is not None:
            groups = arguments[:count]
            leading = [group.shape[:-1] for group in groups]
            for shape in leading:
                if shape != leading[0] or len(shape) + 1 < dims:
                    arguments = (*_same_leading_shape(dims, groups), *arguments[count:])
                    break
        for at in range(count, self._num_others):
            if arguments[at] is not None:
                constant = _with_dims(arguments[at], dims)
                arguments = (*arguments[:at], constant, *arguments[at + 1 :])
        return arguments

    def define(self, library: torch.library.Library, name: str) -> tuple[OpOverload, OpOverload]:
        """Define ``name`` and ``name_backward`` in a library: the operators, without a kernel."""
        for operator, (arguments, results) in zip(_pair(name), self._schemas, strict=True):
            returned = ", ".join(["Tensor"] * results)
            library.define(f"{operator}({', '.join(arguments)}) -> ({returned})")
        return _operators(library.ns, name)

    def add_implementation(
        self, name: str, forward: Function, backward: Function, *, traced: bool = False
    ) -> None:
        """Add an implementation, which :func:`robustflow._backend.add_backend` can then choose.

        Args:
            name: a new name.
            forward, backward: two operators that :meth:`define` made, whose kernels are registered
                elsewhere; or two Python functions with the schemas' positional arguments. These
                become the operators ``robustflow::<transform>_<name>`` and ``..._backward``, and
                eager calls reach them without the dispatcher.
            traced: whether they are Python functions that launch Triton kernels (on traced tensors
                by ``torch.library.wrap_triton``) and that torch.compile may trace into.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.implementations:
            raise ValueError(
                f"The transform {self.name!r} has an implementation {name!r} already: choose "
                "another name."
            )
        calls = (forward, backward)
        if isinstance(forward, OpOverload) and isinstance(backward, OpOverload):
            operators = (forward, backward)
        else:
            if traced:  # x is the first argument, after the cotangents
                forward, backward = _on_its_device(forward, 0), _on_its_device(backward, 2)
            operators = self._wrap(f"{self.name}_{name}", (forward, backward), traced)
            calls = (_direct(forward, operators[0]), _direct(backward, operators[1]))
        self._register(*operators, traced)
        self.implementations[name] = Implementation(self._eager(*calls), *operators)

    def _wrap(
        self, name: str, functions: tuple[Function, Function], traced: bool
    ) -> tuple[OpOverload, OpOverload]:
        """The operators ``robustflow::name`` and ``..._backward`` around Python functions."""
        if not traced:
            operators = self.define(LIBRARY, name)
            for operator, function in zip(operators, functions, strict=True):
                LIBRARY.impl(operator, function, "CompositeExplicitAutograd")
            return operators
        for each, function, schema in zip(_pair(name), functions, self._schemas, strict=True):
            torch.library.triton_op(
                f"{LIBRARY.ns}::{each}", _annotated(function, *schema), mutates_args=()
            )
        return _operators(LIBRARY.ns, name)

    def _register(self, forward: OpOverload, backward: OpOverload, traced: bool) -> None:
        """Register the fake kernels, autograd and vmap rules of two operators."""
        num_tensors, num_gradients = self._num_tensors, self._num_gradients

        def fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
            dtype = compute_dtype(x, rest[: num_tensors - 1])
            if rest[-1] == x.dim():
                return torch.empty_like(x), torch.empty_like(x, dtype=dtype)
            return torch.empty_like(x), x.new_empty(x.shape[: rest[-1]], dtype=dtype)

        def fake_backward(
            grad_y: Tensor | None, grad_logabsdet: Tensor | None, x: Tensor, *rest: Any
        ) -> tuple[Tensor, ...]:
            inputs = (x, *rest[: num_gradients - 1])
            return tuple(
                torch.empty_like(tensor)
                if rest[-1] >> i & 1 and tensor is not None
                else x.new_empty(0)
                for i, tensor in enumerate(inputs)
            )

        def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
            batched = _batch_first(info.batch_size, in_dims, args[:num_tensors], expand=False)
            x = batched[0].expand(info.batch_size, *batched[0].shape[1:])  # type: ignore[union-attr]
            out = forward(x, *batched[1:], *args[num_tensors:-1], args[-1] + 1)
            return out, (0, 0)

        def vmap_backward(
            info: Any, in_dims: tuple[int | None, ...], *args: Any
        ) -> tuple[Any, Any]:
            # Each example needs its own gradient, so shared tensors are expanded, not broadcast.
            batched = _batch_first(info.batch_size, in_dims, args[: num_tensors + 2], expand=True)
            *config, batch_dims, needed = args[num_tensors + 2 :]
            grads = backward(*batched, *config, batch_dims + 1, needed)
            grads = tuple(
                grad
                if needed >> i & 1 and tensor is not None
                else grad.new_empty(info.batch_size, 0)
                for i, (grad, tensor) in enumerate(zip(grads, batched[2:], strict=False))
            )
            return grads, (0,) * num_gradients

        library = LIBRARY
        if forward.namespace != LIBRARY.ns:
            library = torch.library.Library(forward.namespace, "FRAGMENT")
            _FRAGMENTS.append(library)
        names = (forward._schema.name, backward._schema.name)
        rules: tuple[tuple[str, Function, Function], ...] = (
            (names[0], fake, vmap),
            (names[1], fake_backward, vmap_backward),
        )
        for name, fake_kernel, rule in rules:
            torch.library.register_fake(name, fake_kernel, lib=library)
            torch.library.register_vmap(name, rule, lib=library)
        reverse_mode = self._python_function(forward, backward)

        def autograd(*args: Any) -> tuple[Tensor, Tensor]:
            if _in_torch_func_or_forward_mode(args[:num_tensors]):
                return self.reference(*args)
            return reverse_mode(*args)

        # triton_op has registered an autograd kernel of its own, for every device. A kernel for one
        # device takes precedence over it.
        for key in ("AutogradCPU", "AutogradCUDA") if traced else ("Autograd",):
            library.impl(forward, autograd, key)

    def _gradients(
        self,
        call_backward: Function,
        ctx: Any,
        needed: Sequence[bool],
        cotangents: Sequence[Tensor | None],
    ) -> Sequence[Tensor | None]:
        """Gradients with respect to x and the parameters; None where not needed."""
        if torch.is_grad_enabled():  # create_graph=True: they are to be differentiated again
            return reference_gradients(
                self.reference, ctx.saved_tensors, ctx.config, needed, cotangents
            )
        mask = 0
        for i, need in enumerate(needed):
            mask |= need << i
        saved = ctx.saved_tensors  # may compute them anew, which autograd has to see
        with below_autograd():
            grads: list[Tensor | None] = list(call_backward(*cotangents, *saved, *ctx.config, mask))
        for i, need in enumerate(needed):
            if not need:
                grads[i] = None
        return grads

    def _eager(self, call: Function, call_backward: Function) -> Transformed:
        """The function for eager calls: an autograd.Function, skipped if no gradient is needed."""
        python_function = self._python_function(call, call_backward)
        library = _native.autograd()
        if library is None or not isinstance(call, OpOverload):
            return python_function
        operator: Transformed = library.Operator(
            call._schema.name,
            call_backward._schema.name,  # type: ignore[attr-defined]
            self._num_tensors,
            self._num_gradients,
            functools.partial(reference_gradients, self.reference),
            python_function,
        )
        return operator

    def _python_function(self, call: Function, call_backward: Function) -> Transformed:
        num_tensors, num_gradients = self._num_tensors, self._num_gradients
        num_constants = num_tensors - num_gradients
        gradients = self._gradients

        class Eager(torch.autograd.Function):
            # The configuration is one argument, because autograd spends time on each argument.
            @staticmethod
            def forward(ctx: Any, config: tuple[Any, ...], *tensors: Any) -> tuple[Tensor, Tensor]:
                ctx.set_materialize_grads(False)
                ctx.save_for_backward(*tensors)
                ctx.config = config
                with below_autograd():
                    return call(*tensors, *config)

            @staticmethod
            def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
                needed = ctx.needs_input_grad[1 : 1 + num_gradients]
                grads = gradients(call_backward, ctx, needed, cotangents)
                return None, *grads, *(None,) * num_constants

        apply = Eager.apply

        def eager(*args: Any) -> tuple[Tensor, Tensor]:
            if torch.is_grad_enabled():
                for tensor in args[:num_gradients]:
                    if tensor is not None and tensor.requires_grad:
                        return apply(args[num_tensors:], *args[:num_tensors])
            with below_autograd():
                return call(*args)

        return eager


def _in_torch_func_or_forward_mode(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a call under the key Autograd needs more than reverse mode.

    A torch.func transform that is active there differentiates: vmap's key comes before Autograd,
    and the operator's own rule handles it.
    """
    return _call_state.innermost_transform() is not None or _has_tangent(*tensors)


# In C++ if it is loaded: in Python, asking a tensor for a tangent takes some microseconds.
_has_tangent = getattr(_native.autograd(), "any_dual", _call_state.has_tangent)


def _pair(name: str) -> tuple[str, str]:
    """The names of a transform's two operators."""
    return name, f"{name}_backward"


def _operators(namespace: str, name: str) -> tuple[OpOverload, OpOverload]:
    forward, backward = (getattr(getattr(torch.ops, namespace), each) for each in _pair(name))
    return forward.default, backward.default


_FRAGMENTS: list[torch.library.Library] = []  # a registration lives as long as its library


def _direct(function: Function, operator: Function) -> Function:
    """The function itself for plain eager calls, else its operator."""

    def call(*args: Any) -> Any:
        if is_plain_eager() and all(map(is_plain_tensor, _tensors_of(args))):
            return function(*args)
        return operator(*args)

    return call


def _tensors_of(args: Sequence[Any]) -> list[Tensor]:
    return [arg for arg in args if isinstance(arg, Tensor)]


def _on_its_device(function: Function, position: int) -> Function:
    """The function, with the device of its tensor at ``position`` made current."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        tensor = args[position]
        if type(tensor) in _call_state.PLAIN_TYPES and tensor.is_cuda:
            index = tensor.get_device()
            if index != torch.cuda.current_device():
                with torch.cuda.device(index):
                    return function(*args)
        return function(*args)

    return call


_ANNOTATIONS = {
    "Tensor": Tensor,
    "Tensor?": Tensor | None,
    "int": int,
    "float": float,
    "bool": bool,
}


def _annotated(function: Function, arguments: Sequence[str], results: int) -> Function:
    """The function with the signature of a schema, which torch.library.triton_op reads."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(name, kind, annotation=_ANNOTATIONS[annotation])
        for annotation, name in (argument.split() for argument in arguments)
    ]
    returned: Any = tuple[(Tensor,) * results]  # type: ignore[misc]
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        parameters, return_annotation=returned
    )
    return call


def compute_dtype(x: Tensor, others: Sequence[Tensor | None]) -> torch.dtype:
    """The dtype in which the kernels compute: float64 if any tensor is, else float32."""
    tensors = (each for each in (x, *others) if each is not None)
    has_float64 = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if has_float64 else torch.float32


def reference_gradients(
    reference: Transformed,
    tensors: Sequence[Tensor | None],
    config: Sequence[Any],
    needed: Sequence[bool],
    cotangents: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients that can be differentiated again. They need as much memory as the reference."""
    outputs = reference(*tensors, *config)
    # An output may depend on none of the tensors that require grad: the log-determinant of the
    # affine transform does not depend on x.
    pairs = [
        (output, cotangent)
        for output, cotangent in zip(outputs, cotangents, strict=True)
        if cotangent is not None and output.requires_grad
    ]
    inputs = [t for t, need in zip(tensors, needed, strict=False) if need and t is not None]
    if not pairs:
        grads = iter([torch.zeros_like(tensor) for tensor in inputs])
    else:
        grads = iter(
            torch.autograd.grad(
                [output for output, _ in pairs],
                inputs,
                [cotangent for _, cotangent in pairs],
                create_graph=True,
                materialize_grads=True,
            )
        )
    return [next(grads) if need else None for need in needed]


def _batch_first(
    batch_size: int,
    in_dims: Sequence[int | None],
    tensors: Sequence[Tensor | None],
    *,
    expand: bool,
) -> list[Tensor | None]:
    """Move each tensor's batch dimension to the front.

    A tensor without one gets a dimension of size 1, or of ``batch_size`` with ``expand``.
    """
    out: list[Tensor | None] = []
    for tensor, dim in zip(tensors, in_dims, strict=False):
        if tensor is None:
            out.append(None)
        elif dim is not None:
            out.append(tensor.movedim(dim, 0))
        else:
            tensor = tensor.unsqueeze(0)
            out.append(tensor.expand(batch_size, *tensor.shape[1:]) if expand else tensor)
    return out


def _with_dims(tensor: Tensor, dims: int) -> Tensor:
    return tensor[(None,) * (dims - tensor.dim())] if tensor.dim() < dims else tensor


def _same_leading_shape(dims: int, groups: Sequence[Tensor]) -> list[Tensor]:
    """The groups, expanded to one leading shape.

    The kernels sum the gradients of all groups over the same dimensions.
    """
    views = [_with_dims(group, dims) for group in groups]
    shape = torch.broadcast_shapes(*(view.shape[:-1] for view in views))
    return [view.expand(*shape, view.shape[-1]) for view in views]
