"""What "auto" and "reference" do with CUDA tensors."""

from __future__ import annotations

import pytest
import torch

import robustflow
from robustflow import _backend, _native, _triton
from tests.conformance import operations
from tests.conformance.operations import ModifiedRQ, Operation
from tests.conformance.samples import sample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("operation", operations.REPRESENTATIVES, ids=lambda op: op.name)
def test_the_reference_is_the_same_on_a_gpu(operation: Operation, inverse: bool) -> None:
    """The fallback, and the oracle of the properties here, against itself on the CPU."""
    with robustflow.use_backend("reference"):
        found = [
            sample(operation, device, dtype=torch.float64, inverse=inverse).gradients(inverse)
            for device in ("cuda", "cpu")
        ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-10, atol=1e-10)


def test_auto_takes_kernels_where_there_are_some() -> None:
    call = sample(ModifiedRQ("exp"), "cuda")
    chosen = _backend.implementation(call.x, "plain")
    if _native.cuda_loaded() or _triton.load():
        assert chosen in ("native", "triton")
    else:
        assert chosen == "reference"
    results = call.gradients()
    assert all(result.device.type == "cuda" for result in results)


def test_the_cpu_backend_refuses_cuda_tensors() -> None:
    if robustflow.backends()["cpu"] is not True:
        pytest.skip("the CPU kernels are not built")
    call = sample(ModifiedRQ("exp"), "cuda")
    with (
        robustflow.use_backend("cpu"),
        pytest.raises(RuntimeError, match="'cpu' serves CPU tensors, got one on cuda:0"),
    ):
        call.call()
