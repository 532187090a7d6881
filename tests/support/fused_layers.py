"""What the tests of fused layers share: results, gradients, their comparison, and counts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robustflow import compat

Results = list[Tensor | None]


def counts(library: str = "nflows") -> tuple[int, int]:
    """How many calls of a patched library's layers were fused, and were not."""
    counted = compat.fused_layers()[library]
    return counted["fused"], counted["unfused"]


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
