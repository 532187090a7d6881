"""Tensors beyond 2^31 elements: offsets of 64 bits."""

from __future__ import annotations

import pytest
import torch

from tests.backends.gpu import properties
from tests.conformance.operations import RQ, Affine, ModifiedRQ, Operation
from tests.conformance.targets import GPU, Target, as_params

FAR = 1 << 31
GIB = 1 << 30


# Of the 8-bin spline x alone would need 215 GB.
CALLS: tuple[tuple[Operation, str], ...] = (
    (ModifiedRQ("exp"), "x"),
    (ModifiedRQ("exp"), "params"),
    (RQ(8, "linear", "softmax"), "params"),
    (Affine("sigmoid"), "x"),
    (Affine("sigmoid"), "params"),
)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("operation", "wide"), CALLS, ids=[f"{operation.name}-{wide}" for operation, wide in CALLS]
)
@pytest.mark.parametrize("gpu", as_params(GPU))
def test_more_elements_than_32_bits_count(gpu: Target, operation: Operation, wide: str) -> None:
    """x itself, or its parameters only; forward and backward have the bits of their pieces."""
    count = 1 if wide == "x" else operation.num_params
    shape = (2, 1, (FAR // count + 4096) // 2 + 1)
    # x, y, their cotangent and gradient; the parameters and their gradient; a piece's own.
    tensors = 4 + 2 * operation.num_params
    needed = 2 * tensors * 2 * shape[2] + 8 * GIB
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if needed > free:
        pytest.skip(f"needs {needed / GIB:.0f} GiB of GPU memory, {free / GIB:.0f} are free")
    with gpu.chosen():
        properties.check_pieces(gpu, operation, shape, torch.bfloat16, 1 << 24)
    torch.cuda.empty_cache()
