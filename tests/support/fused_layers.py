"""What the tests of fused layers share: results and gradients, and their comparison."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

Results = list[Tensor | None]


def results_and_gradients(
    layer: nn.Module, outputs: Sequence[Tensor], leaves: Sequence[Tensor | None]
) -> Results:
    """After a backward pass: outputs, the leaves' gradients and those of all parameters."""
    results: Results = [*outputs, *(None if leaf is None else leaf.grad for leaf in leaves)]
    results += [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    return [None if each is None else each.detach() for each in results]


def assert_same(results: Results, expected: Results, tolerance: float = 1e-11) -> None:
    """Relative to the largest number of each tensor, or to 1."""
    for ours, theirs in zip(results, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            scale = max(1.0, float(theirs.detach().abs().max()))
            assert float((ours - theirs).detach().abs().max()) <= tolerance * scale
