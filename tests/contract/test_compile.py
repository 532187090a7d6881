"""Contract: torch.compile(fullgraph=True), torch.export and torch.library.opcheck."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import robustflow
import robustflow.functional as F
from tests.conformance.layouts import ROWS, Layout
from tests.conformance.operations import RQ, Affine, ModifiedRQ, Operation
from tests.conformance.samples import Sample, sample
from tests.conformance.targets import Target

OPERATIONS: tuple[Operation, ...] = (
    ModifiedRQ("exp"),
    RQ(8, "linear", "softmax"),
    RQ(5, "circular", "softclip", separate=True),
    RQ(4, None, "knots", separate=True),
    Affine("sigmoid"),
)
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: op.name)
both_directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _function(
    operation: Operation, inverse: bool, reduce: str
) -> Callable[..., tuple[Tensor, Tensor]]:
    def function(x: Tensor, *groups: Tensor) -> tuple[Tensor, Tensor]:
        return operation.call(x, groups, inverse, reduce)

    return function


def _outputs_and_gradients(
    function: Callable[..., tuple[Tensor, Tensor]], call: Sample
) -> tuple[Tensor, ...]:
    tensors = [tensor.detach().requires_grad_() for tensor in call.tensors]
    y, logabsdet = function(*tensors)
    grads = torch.autograd.grad((y * y).sum() + logabsdet.sin().sum(), tensors)
    return (y.detach(), logabsdet.detach(), *grads)


def _assert_close(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype and one.stride() == other.stride()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@both_directions
@each_operation
def test_compile_fullgraph(native_device: Target, operation: Operation, inverse: bool) -> None:
    """One graph with no break, forward and backward, in both reductions and a half type."""
    for reduce, dtype in (("sum", torch.float32), ("none", torch.bfloat16)):
        call = sample(operation, native_device, dtype=dtype, inverse=inverse)
        function = _function(operation, inverse, reduce)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        _assert_close(
            _outputs_and_gradients(compiled, call), _outputs_and_gradients(function, call)
        )


@pytest.mark.parametrize("operation", OPERATIONS[::2], ids=lambda op: op.name)
def test_reference_compiles_fullgraph(operation: Operation) -> None:
    """The fallback too, with dynamic sizes, forward and backward."""
    call = sample(operation)
    function = _function(operation, False, "sum")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    with robustflow.use_backend("reference"):
        _assert_close(
            _outputs_and_gradients(compiled, call), _outputs_and_gradients(function, call)
        )


@each_operation
def test_compile_dynamic(native_device: Target, operation: Operation) -> None:
    """One compilation serves every size of batch and space (13: no other size is it too)."""
    graphs = 0

    def counting(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        nonlocal graphs
        graphs += 1
        return module

    function = _function(operation, False, "sum")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counting)
    for shape in ((9, 3, 13), (6, 3, 17), (2, 3, 19), (11, 3, 2)):
        layout = Layout("dynamic", shape)
        call = sample(operation, native_device, layout=layout)
        actual = compiled(*call.tensors)
        expected = function(*call.tensors)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert graphs == 1


@each_operation
def test_compile_dynamic_training(native_device: Target, operation: Operation) -> None:
    function = _function(operation, True, "none")
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((9, 3, 13), (6, 3, 17)):
        call = sample(operation, native_device, layout=Layout("dynamic", shape), inverse=True)
        _assert_close(
            _outputs_and_gradients(compiled, call), _outputs_and_gradients(function, call)
        )


@pytest.mark.parametrize("operation", [ModifiedRQ("exp")], ids=lambda op: op.name)
def test_compile_with_inductor(native_device: Target, operation: Operation) -> None:
    """The default backend, inside a larger function: what a user's training step is."""

    def step(x: Tensor, params: Tensor) -> Tensor:
        y, logabsdet = operation.call(2.0 * x, (params.tanh(),), False, "sum")
        return (y * y).sum() - logabsdet.sum()

    call = sample(operation, native_device, layout=ROWS)
    found = []
    for function in (torch.compile(step, fullgraph=True), step):
        tensors = [tensor.detach().requires_grad_() for tensor in call.tensors]
        loss = function(*tensors)
        found.append((loss.detach(), *torch.autograd.grad(loss, tensors)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_reference_compiles_with_inductor() -> None:
    """Gradients by bin sizes that a fused backward pass of softmax and cumsum would get wrong."""
    operation = RQ(8, "linear", "softclip", separate=True)
    call = sample(operation, layout=Layout("rows", (16, 8)))

    def function(x: Tensor, *groups: Tensor) -> tuple[Tensor, Tensor]:
        return operation.call(x, tuple(2.0 * group.tanh() for group in groups), False, "none")

    with robustflow.use_backend("reference"):
        found = [
            _outputs_and_gradients(each, call)
            for each in (torch.compile(function, fullgraph=True), function)
        ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_compile_with_a_box_per_dimension(native_device: Target) -> None:
    operation = RQ(8, "linear", "softmax", per_dimension=True)
    call = sample(operation, native_device)
    function = _function(operation, False, "none")
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    _assert_close(_outputs_and_gradients(compiled, call), _outputs_and_gradients(function, call))


def test_a_change_of_backend_is_noticed(native_device: Target) -> None:
    """A compiled function follows use_backend, as an eager one does."""
    operation = ModifiedRQ("exp")
    call = sample(operation, native_device)
    graphs: list[str] = []

    def recording(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(str(module.graph))
        return module

    compiled = torch.compile(_function(operation, False, "sum"), fullgraph=True, backend=recording)
    compiled(*call.tensors)
    with robustflow.use_backend("reference"):
        compiled(*call.tensors)
    assert len(graphs) == 2
    assert "robustflow.modified_rq" in graphs[0] and "robustflow" not in graphs[1]


class _Module(torch.nn.Module):
    def __init__(self, operation: Operation, inverse: bool) -> None:
        super().__init__()
        self.function = _function(operation, inverse, "sum")

    def forward(self, x: Tensor, groups: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.function(x, *groups)


@both_directions
@each_operation
def test_export(native_device: Target, operation: Operation, inverse: bool) -> None:
    """Exported with a batch of any size, the program gives what the function gives."""
    module = _Module(operation, inverse)
    call = sample(operation, native_device, layout=Layout("four", (4, 3, 5)), inverse=inverse)
    batch = torch.export.Dim("batch", min=2, max=64)
    dynamic = {"x": {0: batch}, "groups": [{0: batch} for _ in call.groups]}
    program = torch.export.export(module, (call.x, list(call.groups)), dynamic_shapes=dynamic)
    for size in (4, 7):
        other = sample(operation, native_device, layout=Layout("n", (size, 3, 5)), inverse=inverse)
        actual = program.module()(other.x, list(other.groups))
        expected = module(other.x, list(other.groups))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def _raw_calls(
    dtype: torch.dtype, batch_dims: int, shared: bool, device: str
) -> dict[str, tuple[Any, ...]]:
    """Positional arguments of the raw operators for x of shape (5, 3)."""
    generator = torch.Generator().manual_seed(0)

    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    lead = (1, 3) if shared else (5, 3)
    x = made(5, 3)
    box = torch.tensor([-2.0, 2.0, -2.0, 2.0], device=device).reshape(1, 1, 4)
    rq_config = (8, False, 1, 0, -2.0, 2.0, -2.0, 2.0, 1e-3, 1e-3, 1e-3, 1.0, batch_dims)
    return {
        "modified_rq": (x, made(*lead, 4), False, -0.5, 0.5, 1e-3, 1e-3, False, batch_dims),
        "rq": (x, made(*lead, 23), None, None, None, *rq_config),
        "rq separate": (x, made(*lead, 8), made(*lead, 8), made(*lead, 7), box, *rq_config),
        "affine": (x, made(*lead, 2), None, True, 0, 1e-4, 2.0, True, False, batch_dims),
        "affine apart": (
            *(x, made(*lead, 1), made(*lead, 1), False, 3, 1e-4, 2.0, False, True, batch_dims),
        ),
    }


RAW = ("modified_rq", "rq", "rq separate", "affine", "affine apart")


@pytest.mark.parametrize("shared", [False, True], ids=["dense", "shared"])
@pytest.mark.parametrize("batch_dims", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", RAW)
def test_opcheck(
    native_device: Target, name: str, dtype: torch.dtype, batch_dims: int, shared: bool
) -> None:
    """Schema, fake kernel, autograd registration and dispatch of the forward operators."""
    tensors = _raw_calls(dtype, batch_dims, shared, native_device.device)[name]
    operator = native_device.implementation(name.split()[0]).operator
    torch.library.opcheck(operator, tensors)
    differentiable = tuple(
        a.detach().requires_grad_() if isinstance(a, Tensor) and a.shape[-1] != 4 else a
        for a in tensors
    )
    torch.library.opcheck(operator, differentiable)


@pytest.mark.parametrize("shared", [False, True], ids=["dense", "shared"])
@pytest.mark.parametrize("cotangents", ["both", "y", "logabsdet"])
@pytest.mark.parametrize("name", RAW)
def test_opcheck_backward(native_device: Target, name: str, cotangents: str, shared: bool) -> None:
    """And of the backward operators, with either cotangent missing and each gradient unasked."""
    arguments = _raw_calls(torch.float32, 1, shared, native_device.device)[name]
    short = name.split()[0]
    implementation = native_device.implementation(short)
    operator = implementation.backward
    y, logabsdet = implementation.operator(*arguments)
    grad_y = None if cotangents == "logabsdet" else torch.ones_like(y)
    grad_logabsdet = None if cotangents == "y" else torch.ones_like(logabsdet)
    num_tensors = {"modified_rq": 2, "rq": 4, "affine": 3}[short]
    present = [isinstance(a, Tensor) for a in arguments[:num_tensors]]
    for unasked in (None, 0, 1):
        needed = sum(
            1 << index for index, there in enumerate(present) if there and index != unasked
        )
        torch.library.opcheck(operator, (grad_y, grad_logabsdet, *arguments, needed))


def test_no_graph_break_from_checks(device_target: Target) -> None:
    """Errors are raised while tracing too, as what they are."""

    def bad(x: Tensor, params: Tensor) -> Tensor:
        return F.modified_rq_spline(x, params)[0]

    compiled = torch.compile(bad, backend="aot_eager")
    with pytest.raises(Exception, match=r"params must have shape|\(2, 12\)"):
        compiled(torch.zeros(2, 3), torch.zeros(2, 11))
