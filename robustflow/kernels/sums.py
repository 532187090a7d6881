# mypy: allow-untyped-defs, allow-incomplete-defs
"""The second pass of sums: adds partial sums in order."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from robustflow.kernels.launch import launch
from robustflow.kernels.plan import power_of_two_from

# A tile holds this many partial sums: some of each of several sums, or many of a few. Few enough
# registers for full occupancy with 4 warps; by reasoning, not by measurement.
_BLOCK, _NUM_WARPS = 1024, 4


@triton.jit
def partial_sums_kernel(
    partial,  # [parts, sums]
    out,  # [sums]
    parts,
    sums,
    PARTS: tl.constexpr,
    SUMS: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    j = tl.program_id(0).to(tl.int64) * SUMS + tl.arange(0, SUMS)
    total = tl.zeros([PARTS, SUMS], partial.dtype.element_ty)
    for round in range(ROUNDS):
        i = (round * PARTS + tl.arange(0, PARTS)).to(tl.int64)
        mask = (i < parts)[:, None] & (j < sums)[None, :]
        total += tl.load(partial + (i[:, None] * sums + j[None, :]), mask=mask, other=0.0)
    tl.store(out + j, tl.sum(total, axis=0).to(out.dtype.element_ty), mask=j < sums)


def add_partial_sums(partial: Tensor, out: Tensor) -> None:
    """out = partial.sum(0), in a fixed order.

    Args:
        partial: (parts, *out.shape) in the compute dtype, each part in the memory order of ``out``.
        out: dense, any floating dtype.
    """
    parts, sums = partial.shape[0], out.numel()
    width = min(_BLOCK // 32, power_of_two_from(sums))
    height = min(_BLOCK // width, power_of_two_from(parts))
    # A power of two: a kernel for each number of rounds would be one for each size of a batch.
    rounds = power_of_two_from(-(-parts // height))
    launch(
        partial_sums_kernel,
        -(-sums // width),
        (partial, out, parts, sums),
        {"PARTS": height, "SUMS": width, "ROUNDS": rounds},
        _NUM_WARPS,
    )
