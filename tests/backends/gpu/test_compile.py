"""What torch.compile's Inductor makes of a call on a GPU; aot_eager is in test_contract_compile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.conformance.layouts import Layout
from tests.conformance.operations import RQ, Affine, ModifiedRQ, Operation
from tests.conformance.samples import sample
from tests.conformance.targets import GPU, Target, as_params

OPERATIONS: tuple[Operation, ...] = (
    ModifiedRQ("exp"),
    RQ(8, "linear", "softmax"),
    RQ(8, "linear", "softmax", separate=True),
    Affine("sigmoid"),
)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: op.name)
@pytest.mark.parametrize("gpu", as_params(GPU))
def test_a_training_step(gpu: Target, operation: Operation, inverse: bool) -> None:
    """One graph; values and gradients as in eager mode, amid other work that Inductor fuses."""
    call = sample(operation, gpu, layout=Layout("rows", (67, 3)), inverse=inverse)

    def step(x: Tensor, *groups: Tensor) -> Tensor:
        y, logabsdet = operation.call(1.5 * x, tuple(g.tanh() for g in groups), inverse, "sum")
        return (y * y).sum() - logabsdet.sum()

    results = []
    with gpu.chosen():
        for function in (torch.compile(step, fullgraph=True), step):
            tensors = [tensor.detach().requires_grad_() for tensor in call.tensors]
            loss = function(*tensors)
            results.append((loss.detach(), *torch.autograd.grad(loss, tensors)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gpu", as_params(GPU))
def test_inductor_sees_into_triton_alone(gpu: Target) -> None:
    """The Triton operator is gone from the code and its kernel is there; CUDA's is called."""
    from torch._inductor.utils import run_and_get_code

    operation = ModifiedRQ("exp")
    call = sample(operation, gpu)

    def function(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return operation.call(x, (params,), False, "sum")

    with gpu.chosen():
        _, (code, *_) = run_and_get_code(torch.compile(function, fullgraph=True), *call.tensors)
    name = str(gpu.implementation("modified_rq").operator)
    called = f"torch.ops.{name}" in code
    assert called is (gpu.backend == "cuda")
