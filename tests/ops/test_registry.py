"""Further implementations of a transform take every way of a call, as the native one does."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap
from torch.utils.checkpoint import checkpoint

import robustflow
import robustflow.functional as F
from robustflow import _backend, _native
from robustflow.ops import TRANSFORMS
from robustflow.ops.registry import Transform
from tests.conformance.operations import RQ, Affine, ModifiedRQ, Operation
from tests.conformance.samples import Sample, sample

OPERATIONS: tuple[Operation, ...] = (
    ModifiedRQ("exp"),
    RQ(8, "linear", "softmax"),
    RQ(5, "circular", "softclip", separate=True),
    Affine("sigmoid"),
)
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: op.name)
_names = (f"added{number}" for number in itertools.count())  # a name cannot be taken twice
needs_native = pytest.mark.skipif(not _native.load(), reason="the native library is not built")


class Added:
    """The native CPU kernels under another name, counting how often Python reaches them."""

    def __init__(self, form: str) -> None:
        self.name = next(_names)
        self.calls = 0
        self.library = torch.library.Library(f"robustflow_{self.name}", "DEF")
        for transform in TRANSFORMS.values():
            functions = [
                self._counted(getattr(torch.ops.robustflow, name).default)
                for name in (transform.name, f"{transform.name}_backward")
            ]
            if form == "operators":
                operators = transform.define(self.library, transform.name)
                for operator, function in zip(operators, functions, strict=True):
                    self.library.impl(operator, function, "CPU")
                transform.add_implementation(self.name, *operators)
            else:
                transform.add_implementation(self.name, *functions, traced=form == "traced")
        _backend.add_backend(self.name, self.name, ("cpu",))

    def _counted(self, operator: Callable[..., Any]) -> Callable[..., Any]:
        def function(*args: Any) -> Any:
            self.calls += 1
            return operator(*args)

        return function


FORMS = ["operators", "functions", "traced"]
_added: dict[str, Added] = {}


@pytest.fixture(params=FORMS)
def added(request: pytest.FixtureRequest) -> Iterator[Added]:
    """An implementation of each form, chosen for the length of the test."""
    if not _native.load():
        pytest.skip("the native library is not built")
    if request.param == "traced" and importlib.util.find_spec("triton") is None:
        pytest.skip("torch.library.triton_op needs triton: pip install triton")
    one = _added.get(request.param) or _added.setdefault(request.param, Added(request.param))
    one.calls = 0
    with robustflow.use_backend(one.name):
        yield one


def _both(call: Callable[[], Any]) -> tuple[Any, Any]:
    """What a call gives here, and what the native kernels give."""
    actual = call()
    with robustflow.use_backend("cpu"):
        return actual, call()


@each_operation
def test_eager_gradients_are_its_own(added: Added, operation: Operation) -> None:
    call = sample(operation)
    actual, expected = _both(call.gradients)
    assert all(torch.equal(a, w) for a, w in zip(actual, expected, strict=True))
    assert added.calls == 2  # forward and backward, each once


@each_operation
def test_vmap_and_batched_gradients(added: Added, operation: Operation) -> None:
    call = sample(operation, dtype=torch.float64).requires_grad_()

    def batched() -> list[Tensor]:
        stacked = [torch.stack([t, t + 0.25]) for t in call.tensors]
        y, logabsdet = vmap(lambda x, *groups: operation.call(x, groups, False, "none"))(*stacked)
        rows = torch.stack([torch.ones_like(call.x), torch.zeros_like(call.x)])
        out, _ = call.call()
        grads = torch.autograd.grad(out, call.tensors, rows, is_grads_batched=True)
        return [y, logabsdet, *grads]

    actual, expected = _both(batched)
    torch.testing.assert_close(actual, expected)
    assert added.calls == 4  # vmap, the call, and backward for each of two rows


@each_operation
def test_gradients_of_gradients_are_the_references(added: Added, operation: Operation) -> None:
    call = sample(operation, dtype=torch.float64).requires_grad_()

    def twice() -> tuple[Tensor, ...]:
        y, _ = call.call()
        (first,) = torch.autograd.grad(y.sin().sum(), call.x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), call.tensors)

    torch.testing.assert_close(*_both(twice))


@each_operation
def test_activation_checkpointing(added: Added, operation: Operation) -> None:
    """The backward pass computes what it reads anew: a graph is recorded meanwhile."""
    call = sample(operation, dtype=torch.float64).requires_grad_()

    def chain(x: Tensor, *groups: Tensor) -> Tensor:
        for _ in range(2):
            x, _ = operation.call(x.sin(), groups, False, "none")
        return x

    def gradients(checkpointed: bool) -> tuple[Tensor, ...]:
        if checkpointed:
            y = checkpoint(chain, *call.tensors, use_reentrant=False)
        else:
            y = chain(*call.tensors)
        return torch.autograd.grad(y.sum(), call.tensors)

    torch.testing.assert_close(gradients(True), gradients(False))
    assert added.calls == 10  # two of either kind without, and two more forward with


@each_operation
def test_compiles_in_one_graph(added: Added, operation: Operation) -> None:
    torch._dynamo.reset()
    call = sample(operation)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        y, logabsdet = operation.call(tensors[0], tensors[1:], True, "sum")
        return y, logabsdet

    graphs: list[str] = []

    def recording(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(str(module.graph))
        return module

    compiled = torch.compile(function, fullgraph=True, backend=recording)
    actual, expected = compiled(*call.tensors), function(*call.tensors)
    torch.testing.assert_close(actual, expected)
    assert len(graphs) == 1 and added.name in graphs[0]

    torch._dynamo.reset()
    trained = torch.compile(function, fullgraph=True, backend="aot_eager")
    found = []
    for each in (trained, function):
        tensors = [tensor.detach().requires_grad_() for tensor in call.tensors]
        y, logabsdet = each(*tensors)
        found.append(torch.autograd.grad(y.square().sum() + logabsdet.sum(), tensors))
    torch.testing.assert_close(*found)


@needs_native
def test_what_is_traced_is_seen_into(added: Added) -> None:
    """Of a traced implementation AOT autograd sees the inside; the others stay what they are."""
    torch._dynamo.reset()
    graphs: list[str] = []

    def recording(module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(str(module.graph))
        return module

    from torch._dynamo.backends.common import aot_autograd

    call = sample(ModifiedRQ("exp"))
    function = lambda x, params: F.modified_rq_spline(x, params)  # noqa: E731
    torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=recording))(
        *call.tensors
    )
    traced = added is _added.get("traced")
    assert (added.name in graphs[0]) is not traced
    assert ("robustflow.modified_rq.default" in graphs[0]) is traced


def test_fake_tensors_and_modes_see_the_operator(added: Added) -> None:
    """What watches the dispatcher finds the operator there: fake tensors never reach a kernel."""
    with FakeTensorMode():
        x, params = torch.empty(2, 3), torch.empty(2, 12, requires_grad=True)
        y, logabsdet = F.modified_rq_spline(x, params)
        assert y.shape == (2, 3) and logabsdet.shape == (2,)
        (grad,) = torch.autograd.grad(y.sum() + logabsdet.sum(), params)
        assert grad.shape == (2, 12)
    assert added.calls == 0


def test_opcheck(added: Added) -> None:
    x, params = torch.randn(5, 3), torch.randn(5, 3, 4, requires_grad=True)
    operator: Any = TRANSFORMS["modified_rq"].implementations[added.name].operator
    torch.library.opcheck(operator, (x, params, False, -0.5, 0.5, 1e-3, 1e-3, False, 1))


def test_a_name_is_taken_once(added: Added) -> None:
    with pytest.raises(ValueError, match=f"'modified_rq' has an implementation '{added.name}'"):
        TRANSFORMS["modified_rq"].add_implementation(added.name, len, len)
    with pytest.raises(ValueError, match="There is a backend 'cpu' already"):
        _backend.add_backend("cpu", added.name, ("cpu",))


def test_it_serves_its_devices_only(added: Added) -> None:
    x, params = torch.zeros(2, 3, device="meta"), torch.zeros(2, 12, device="meta")
    with pytest.raises(RuntimeError, match=rf"'{added.name}' serves CPU tensors, got one on meta"):
        F.modified_rq_spline(x, params)


def test_every_transform_has_a_native_implementation() -> None:
    for transform in TRANSFORMS.values():
        assert isinstance(transform, Transform)
        assert "native" in transform.implementations
        reference: Any = transform.reference
        assert reference.__wrapped__ is getattr(robustflow.reference, transform.name)


def test_parameters_count_as_plain_tensors(added: Added) -> None:
    """A module's parameters go the short way too."""
    call = sample(ModifiedRQ("exp"))
    held = Sample(call.operation, call.layout, call.x, (torch.nn.Parameter(call.groups[0]),))
    y, logabsdet = held.call()
    (y.sum() + logabsdet.sum()).backward()
    assert held.groups[0].grad is not None and added.calls == 2
