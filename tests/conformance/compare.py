"""How far a result may be from the float64 oracle, element by element.

The bound is the sum of three allowances:

1. arithmetic: a few roundings in the compute dtype, in the unit of the quantity;
2. conditioning: how far the oracle moves when x, the parameters and the knots move by their own
   rounding. This is measured: the oracle is run again on moved inputs;
3. storage: half a unit in the last place of the dtype that the result is stored in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.conformance.operations import Operation, Patterns

# Roundings that each quantity may collect (1), and how many times the measured movement (2). The
# float32 reference itself needs up to a half of each over all operations, layouts and seeds.
ARITHMETIC = {"y": 2.0, "logabsdet": 4.0, "grad_x": 8.0, "grad_params": 12.0}
CONDITIONING = 2.0


@dataclass(frozen=True)
class Results:
    """What a call gives, in canonical form: parameters' gradients (*S, P), 1 where shared."""

    y: Tensor
    logabsdet: Tensor
    grad_x: Tensor
    grad_params: Tensor

    def items(self) -> list[tuple[str, Tensor]]:
        return list(vars(self).items())


def run_oracle(
    operation: Operation,
    x: Tensor,
    params: Tensor,
    inverse: bool,
    cotangents: tuple[Tensor, Tensor],
    moved: tuple[float, Patterns] | None = None,
) -> Results:
    """Everything per element and in float64; params (*S, P) at full size.

    cotangents: of y and of the per-element logabsdet, float64, of x's shape.
    moved: how far and how to move the knots; Operation.moved_oracle says what the shapes are then.
    """
    x = x.detach().requires_grad_()
    params = params.detach().requires_grad_()
    if moved is None:
        y, logabsdet = operation.oracle(x, params, inverse)
    else:
        y, logabsdet = operation.moved_oracle(x, params, inverse, *moved)
    grad_x, grad_params = torch.autograd.grad((y, logabsdet), (x, params), cotangents)
    return Results(y.detach(), logabsdet.detach(), grad_x, grad_params)


# One column for each move: of x, of the parameters (random signs), of the knots on x (all one way,
# or in turn) and of those on y. Together they cover what rounding can do to an element's bin.
_MOVES = torch.tensor(
    [
        [1, -1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ],
    dtype=torch.float64,
)


def movement(
    operation: Operation,
    x: Tensor,
    params: Tensor,
    inverse: bool,
    cotangents: tuple[Tensor, Tensor],
    exact: Results,
    distance: float,
) -> Results:
    """How far the oracle moves when x, parameters and knots move by ``distance`` (2 above).

    Relative to their size, or to the box's edge and to 1 where they are smaller than that.
    """
    edge = max(abs(edge) for edge in operation.box)
    signs = torch.randint(0, 2, params.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    signs, moves = signs.to(params.device), _MOVES.to(params.device)

    def repeated(cotangent: Tensor) -> Tensor:
        return cotangent.unsqueeze(-1).expand(*cotangent.shape, _MOVES.shape[1])

    moved = run_oracle(
        operation,
        x.unsqueeze(-1) + distance * x.abs().clamp(min=edge).unsqueeze(-1) * moves[0],
        params.unsqueeze(-2)
        + (distance * signs * params.abs().clamp(min=1.0)).unsqueeze(-2) * moves[1].unsqueeze(-1),
        inverse,
        (repeated(cotangents[0]), repeated(cotangents[1])),
        (distance, (moves[2:4].mT, moves[4:6].mT)),
    )

    def total(after: Tensor, before: Tensor, dim: int) -> Tensor:
        each = (after - before.unsqueeze(dim)).abs().movedim(dim, 0)
        return torch.maximum(each[0], each[1]) + each[2:].sum(dim=0)

    return Results(
        total(moved.y, exact.y, -1),
        total(moved.logabsdet, exact.logabsdet, -1),
        total(moved.grad_x, exact.grad_x, -1),
        total(moved.grad_params, exact.grad_params, -2),
    )


def units(operation: Operation, exact: Results, cotangents: tuple[Tensor, Tensor]) -> Results:
    """The size in which each quantity's arithmetic errors are counted (1 above)."""
    edge = max(abs(edge) for edge in operation.box)
    grad_y, grad_logabsdet = (cotangent.abs() for cotangent in cotangents)
    # Terms of a gradient may be larger than their sum: those of one element share a unit.
    shared = exact.grad_params.abs().amax(dim=-1, keepdim=True)
    through = grad_y * torch.exp(exact.logabsdet) + grad_logabsdet
    return Results(
        exact.y.abs().clamp(min=edge),
        1.0 + exact.logabsdet.abs(),
        exact.grad_x.abs() + through,
        shared + (grad_y + grad_logabsdet).unsqueeze(-1),
    )


def storage(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Half a unit in the last place at the size of ``exact``, and below the smallest numbers."""
    info = torch.finfo(dtype)
    return exact.abs() * (0.5 * info.eps) + info.smallest_normal * info.eps


def assert_within(
    name: str, actual: Tensor, exact: Tensor, bound: Tensor, context: object = ""
) -> None:
    """Fail with the worst element's index, value, oracle and bound."""
    assert actual.shape == exact.shape, f"{name}: shape {tuple(actual.shape)}, {context}"
    error = (actual.double() - exact).abs()
    both_nan = actual.isnan() & exact.isnan()
    same = (actual.double() == exact) | both_nan  # the same infinity
    excess = torch.where(same, 0.0, error / bound)
    excess = torch.where(excess.isnan(), float("inf"), excess)
    if excess.numel() == 0 or excess.max() <= 1.0:
        return
    flat = int(excess.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), excess.shape))
    raise AssertionError(
        f"{name}{list(index)} is {actual[index].item()!r} where the oracle has "
        f"{exact[index].item()!r}: {excess[index].item():.3g} times the bound of "
        f"{bound[index].item():.3g}; {int((excess > 1).sum())} of {excess.numel()} elements are "
        f"beyond theirs. {context}"
    )
