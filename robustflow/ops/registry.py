"""Registration, once for all transforms: schema, fake kernel, autograd formula, vmap rule.

A transform ``name`` is two operators, ``name`` and ``name_backward``. Kernels for a device
register themselves under these schemas; nothing here knows which there are.

The operators' own autograd (``torch.library.register_autograd``) is what torch.compile traces, but
costs 100 us a call, as long as a small batch takes. An eager call therefore goes through a plain
``torch.autograd.Function`` around the operator, with the same formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("robustflow", "DEF")

Reference = Callable[..., tuple[Tensor, Tensor]]
Transform = Callable[..., tuple[Tensor, Tensor]]


def register_transform(
    name: str,
    reference: Reference,
    parameters: Sequence[str],
    constants: Sequence[str],
    config: Sequence[str],
) -> Transform:
    """Define ``robustflow::name`` and ``robustflow::name_backward``.

    Args:
        reference: the same function in plain PyTorch, with the same positional arguments.
        parameters: schema arguments of the differentiable parameter tensors, in order.
        constants: schema arguments of tensors without a gradient.
        config: schema arguments of the rest; the last is ``int batch_dims``.

    The backward operator returns a gradient for ``x`` and for each parameter; bit i of ``needed``
    says that gradient i is wanted, and one that is not is an empty tensor.

    Returns:
        The transform for eager calls: positional arguments as in the schema.
    """
    tensors = ("Tensor x", *parameters, *constants)
    num_gradients = 1 + len(parameters)
    num_tensors = len(tensors)
    transform, backward = f"robustflow::{name}", f"robustflow::{name}_backward"

    LIBRARY.define(f"{name}({', '.join((*tensors, *config))}) -> (Tensor, Tensor)")
    gradients = ", ".join(["Tensor"] * num_gradients)
    LIBRARY.define(
        f"{name}_backward(Tensor? grad_y, Tensor? grad_logabsdet, "
        f"{', '.join((*tensors, *config))}, int needed) -> ({gradients})"
    )

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
            torch.empty_like(tensor) if rest[-1] >> i & 1 and tensor is not None else x.new_empty(0)
            for i, tensor in enumerate(inputs)
        )

    torch.library.register_fake(transform, fake, lib=LIBRARY)
    torch.library.register_fake(backward, fake_backward, lib=LIBRARY)

    call = getattr(torch.ops.robustflow, name).default
    call_backward = getattr(torch.ops.robustflow, f"{name}_backward").default

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:num_tensors])
        ctx.config = inputs[num_tensors:]

    def backward_formula(
        ctx: Any, grad_y: Tensor | None, grad_logabsdet: Tensor | None
    ) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:num_gradients])
        if torch.is_grad_enabled():  # a gradient of this gradient will be asked for
            found = _reference_gradients(
                reference, tensors, ctx.config, needed, (grad_y, grad_logabsdet)
            )
        else:
            mask = sum(need << i for i, need in enumerate(needed))
            with torch._C._AutoDispatchBelowAutograd():
                made = call_backward(grad_y, grad_logabsdet, *tensors, *ctx.config, mask)
            found = [grad if need else None for grad, need in zip(made, needed, strict=True)]
        return *found, *(None,) * (num_tensors - num_gradients + len(ctx.config))

    torch.library.register_autograd(
        transform, backward_formula, setup_context=setup_context, lib=LIBRARY
    )

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        batched = _batch_first(info.batch_size, in_dims, args[:num_tensors], expand=False)
        x = batched[0].expand(info.batch_size, *batched[0].shape[1:])  # type: ignore[union-attr]
        out = call(x, *batched[1:], *args[num_tensors:-1], args[-1] + 1)
        return out, (0, 0)

    def vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        # Every example wants a gradient of its own, so shared tensors are expanded, not broadcast.
        batched = _batch_first(info.batch_size, in_dims, args[: num_tensors + 2], expand=True)
        *config, batch_dims, needed = args[num_tensors + 2 :]
        made = call_backward(*batched, *config, batch_dims + 1, needed)
        made = tuple(
            grad if needed >> i & 1 and tensor is not None else grad.new_empty(info.batch_size, 0)
            for i, (grad, tensor) in enumerate(zip(made, batched[2:], strict=False))
        )
        return made, (0,) * num_gradients

    torch.library.register_vmap(transform, vmap, lib=LIBRARY)
    torch.library.register_vmap(backward, vmap_backward, lib=LIBRARY)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
            with torch._C._AutoDispatchBelowAutograd():
                output = call(*args)
            setup_context(ctx, args, output)
            return output

        backward = staticmethod(backward_formula)

    def eager(*args: Any) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in args[:num_gradients]
        ):
            return Eager.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return call(*args)

    return eager


def compute_dtype(x: Tensor, others: Sequence[Tensor | None]) -> torch.dtype:
    """float64 if any tensor is, else float32: what the kernels compute in."""
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in (x, *others))
    return torch.float64 if wide else torch.float32


def _reference_gradients(
    reference: Reference,
    tensors: Sequence[Tensor | None],
    config: Sequence[Any],
    needed: Sequence[bool],
    cotangents: tuple[Tensor | None, Tensor | None],
) -> list[Tensor | None]:
    """Gradients that can be differentiated again, at the price of the reference's memory."""
    outputs = reference(*tensors, *config)
    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if c is not None]
    wanted = [t for t, need in zip(tensors, needed, strict=False) if need and t is not None]
    made = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            wanted,
            [cotangent for _, cotangent in pairs],
            create_graph=True,
            materialize_grads=True,
        )
    )
    return [next(made) if need else None for need in needed]


def _batch_first(
    batch_size: int,
    in_dims: Sequence[int | None],
    tensors: Sequence[Tensor | None],
    *,
    expand: bool,
) -> list[Tensor | None]:
    """Move each tensor's batch dimension to the front; one without gets a dimension of 1."""
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
