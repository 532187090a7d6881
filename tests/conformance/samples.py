"""Small ready-made calls for tests of one property."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.conformance import layouts
from tests.conformance.layouts import Layout
from tests.conformance.operations import Operation
from tests.conformance.targets import Target


@dataclass
class Sample:
    """Tensors of one call, as a user holds them."""

    operation: Operation
    layout: Layout
    x: Tensor
    groups: tuple[Tensor, ...]

    def call(self, inverse: bool = False, reduce: str = "none") -> tuple[Tensor, Tensor]:
        options = {} if self.layout.param_order == "channel" else {"param_order": "parameter"}
        return self.operation.call(self.x, self.groups, inverse, reduce, **options)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.x, *self.groups)

    def requires_grad_(self) -> Sample:
        for tensor in self.tensors:
            tensor.requires_grad_()
        return self

    def clone(self) -> Sample:
        """The same values in the same layout, detached."""
        return Sample(
            self.operation,
            self.layout,
            self.x.detach().clone(),
            tuple(group.detach().clone() for group in self.groups),
        )

    def canonical(self) -> Tensor:
        """The parameters as (*S, P), 1 where shared."""
        return self.layout.canonical(self.groups, self.operation.parts)

    def gradients(
        self, inverse: bool = False, reduce: str = "none", seed: int = 1
    ) -> tuple[Tensor, ...]:
        """(y, logabsdet, grad_x, *gradients of the parameters) for seeded random cotangents."""
        self.requires_grad_()
        y, logabsdet = self.call(inverse, reduce)
        generator = torch.Generator().manual_seed(seed)
        cotangents = [
            torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
            for t in (y, logabsdet)
        ]
        grads = torch.autograd.grad((y, logabsdet), self.tensors, cotangents)
        return (y.detach(), logabsdet.detach(), *grads)


def sample(
    operation: Operation,
    target: Target | str = "cpu",
    *,
    layout: Layout | None = None,
    dtype: torch.dtype = torch.float32,
    params_dtype: torch.dtype | None = None,
    inverse: bool = False,
    seed: int = 0,
) -> Sample:
    """A seeded call of ``operation`` in its usual layout, on the target's device."""
    if layout is None:
        layout = layouts.PLANAR if len(operation.parts) == 1 else layouts.SEPARATE_ROWS
    device = target if isinstance(target, str) else target.device
    generator = torch.Generator().manual_seed(operation.seed(layout.name, seed))
    params = operation.sample_params(layout.shape, generator)
    x = operation.sample_x(params, generator, inverse)
    x, params = layout.data(x, params)
    params = params.to(device, params_dtype or dtype)
    groups = tuple(group.detach() for group in layout.lay_params(params, operation.parts))
    return Sample(operation, layout, layout.lay_x(x.to(device, dtype)).detach(), groups)
