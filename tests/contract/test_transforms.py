"""Contract: gradients of every kind, to any order and under torch.func, equal the reference's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import robustflow
import robustflow.functional as F
from tests.conformance.layouts import Layout
from tests.conformance.operations import RQ, Affine, ModifiedRQ, Operation
from tests.conformance.samples import Sample, sample
from tests.conformance.targets import Target

OPERATIONS: tuple[Operation, ...] = (
    ModifiedRQ("exp"),
    ModifiedRQ("softclip", interval=(-3.0, 3.0)),
    RQ(4, "linear", "softmax"),
    RQ(3, "circular", "softclip"),
    RQ(4, "linear", "softmax", separate=True),
    RQ(3, None, "softmax", separate=True),
    Affine("sigmoid"),
    Affine("tanh_exp", shift_first=False, reciprocal=True),
)
KNOTS = (RQ(3, "linear", "knots"), RQ(3, "circular", "knots", separate=True))
AFFINES = tuple(
    Affine(scale, shift_first)
    for scale in ("exp", "softplus", "atan_exp", "softclip_exp")
    for shift_first in (True, False)
)
SMALL = Layout("small", (2, 2))
both_directions = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: op.name)


def _small(operation: Operation, target: Target, inverse: bool, layout: Layout = SMALL) -> Sample:
    """Float64, every element well inside the box, no knot in a difference quotient's way."""
    call = sample(operation, target, layout=layout, dtype=torch.float64, inverse=inverse)
    low, high = operation.box
    x = low + (high - low) * torch.linspace(0.12, 0.87, call.x.numel(), dtype=torch.float64)
    x = x.reshape(call.x.shape).to(call.x.device)
    if isinstance(operation, ModifiedRQ) and inverse:
        x = x + call.canonical()[..., 3]
    return Sample(operation, layout, x, call.groups)


def _function(
    call: Sample, inverse: bool, reduce: str = "sum"
) -> Callable[..., tuple[Tensor, Tensor]]:
    """(x, *groups) to (y, logabsdet) by the public function."""

    def function(x: Tensor, *groups: Tensor) -> tuple[Tensor, Tensor]:
        return call.operation.call(x, groups, inverse, reduce)

    return function


def _reference(
    call: Sample, inverse: bool, reduce: str = "sum"
) -> Callable[..., tuple[Tensor, Tensor]]:
    """The same by the oracle."""

    def function(x: Tensor, *groups: Tensor) -> tuple[Tensor, Tensor]:
        params = call.layout.canonical(groups, call.operation.parts)
        return call.operation.oracle(
            x, params, inverse, min(1, x.dim()) if reduce == "sum" else None
        )

    return function


def _scalar(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """A loss with a gradient of its own for each output and element."""

    def loss(x: Tensor, *groups: Tensor) -> Tensor:
        y, logabsdet = function(x, *groups)
        weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device)
        return (y.reshape(-1).sin() * weights).sum() + (logabsdet * logabsdet).sum()

    return loss


def _assert_close(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@both_directions
@pytest.mark.parametrize("operation", OPERATIONS + KNOTS + AFFINES, ids=lambda op: op.name)
def test_gradcheck(device_target: Target, operation: Operation, inverse: bool) -> None:
    for reduce in ("none", "sum"):
        call = _small(operation, device_target, inverse).requires_grad_()
        assert torch.autograd.gradcheck(
            _function(call, inverse, reduce), call.tensors, eps=1e-6, atol=1e-5, rtol=1e-5
        )


@both_directions
@each_operation
def test_gradgradcheck(device_target: Target, operation: Operation, inverse: bool) -> None:
    call = _small(operation, device_target, inverse).requires_grad_()
    assert torch.autograd.gradgradcheck(
        _function(call, inverse), call.tensors, eps=1e-6, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("shared", [(0,), (2,)], ids=str)
@pytest.mark.parametrize(
    "operation", [op for op in OPERATIONS if len(op.parts) == 1], ids=lambda op: op.name
)
def test_gradcheck_of_shared_parameters(
    device_target: Target, operation: Operation, shared: tuple[int, ...]
) -> None:
    layout = Layout("shared", (2, 2, 3), shared=shared)
    call = _small(operation, device_target, False, layout).requires_grad_()
    assert torch.autograd.gradcheck(_function(call, False), call.tensors, atol=1e-5, rtol=1e-5)


@both_directions
@each_operation
def test_double_backward_equals_the_reference(
    device_target: Target, operation: Operation, inverse: bool
) -> None:
    found = []
    for make in (_function, _reference):
        call = _small(operation, device_target, inverse).clone().requires_grad_()
        loss = _scalar(make(call, inverse))(*call.tensors)
        first = torch.autograd.grad(loss, call.tensors, create_graph=True)
        penalty = torch.stack([(g * g).sum() for g in first]).sum()
        found.append((first, torch.autograd.grad(penalty, call.tensors)))
    _assert_close(*found)


# A gradient of a gradient, under every choice of the tensors that require one. Three losses each:
# an output may depend on none of them, as the affine transform's log-determinant on x.
FROZEN: tuple[Operation, ...] = (
    ModifiedRQ("softclip", interval=(-3.0, 3.0)),
    RQ(3, "linear", "softmax", separate=True),
    RQ(3, None, "knots"),
    Affine("sigmoid"),
    Affine("exp", shift_first=False, reciprocal=True),
)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "y": lambda y, logabsdet: y.sin().sum(),
    "logabsdet": lambda y, logabsdet: logabsdet.sin().sum(),
    "both": lambda y, logabsdet: y.sin().sum() + logabsdet.sin().sum(),
}


def _penalty_gradients(
    function: Callable[..., tuple[Tensor, Tensor]],
    tensors: tuple[Tensor, ...],
    learned: tuple[bool, ...],
    loss: str,
) -> list[Tensor]:
    """The gradient of the gradient's square, and zeros where there is none."""
    leaves = [t.detach().requires_grad_(want) for t, want in zip(tensors, learned, strict=True)]
    expected = [leaf for leaf in leaves if leaf.requires_grad]
    zeros = [torch.zeros_like(leaf) for leaf in expected]
    value = LOSSES[loss](*function(*leaves))
    if not value.requires_grad:
        return zeros
    options: Any = {"allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad(value, expected, create_graph=True, **options)
    penalty = torch.stack([(each * each).sum() for each in first]).sum()
    if not penalty.requires_grad:
        return zeros
    return list(torch.autograd.grad(penalty, expected, **options))


@pytest.mark.parametrize("way", ["eager", "python", "operator"])
@both_directions
@pytest.mark.parametrize("operation", FROZEN, ids=lambda op: op.name)
def test_double_backward_of_frozen_tensors(
    native_device: Target, operation: Operation, inverse: bool, way: str
) -> None:
    """By each of a call's ways through autograd: C++, Python, and the operator's own kernel."""
    call = _small(operation, native_device, inverse)
    function = _function(call, inverse)
    if way == "python":  # what a function mode watches
        watched = function

        def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            with torch.overrides.BaseTorchFunctionMode():
                return watched(*tensors)

    elif way == "operator":  # what vmap calls
        single = function

        def function(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            y, logabsdet = vmap(single)(*(t.unsqueeze(0) for t in tensors))
            return y[0], logabsdet[0]

    reference = _reference(call, inverse)
    for learned in itertools.product((False, True), repeat=len(call.tensors)):
        for loss in LOSSES if any(learned) else ():
            actual = _penalty_gradients(function, call.tensors, learned, loss)
            _assert_close(actual, _penalty_gradients(reference, call.tensors, learned, loss))


@both_directions
def test_double_backward_of_an_affine_shift_and_scale_apart(
    native_device: Target, inverse: bool
) -> None:
    def function(x: Tensor, shift: Tensor, logit: Tensor) -> tuple[Tensor, Tensor]:
        return F.conditional_affine(x, shift, logit, inverse=inverse, scale="tanh_exp")

    tensors = tuple(torch.randn(3, 2, 2, dtype=torch.float64, device=native_device.device))
    for learned in itertools.product((False, True), repeat=3):
        for loss in LOSSES if any(learned) else ():
            actual = _penalty_gradients(function, tensors, learned, loss)
            with robustflow.use_backend("reference"):
                expected = _penalty_gradients(function, tensors, learned, loss)
            _assert_close(actual, expected)


@both_directions
@each_operation
def test_func_grad(device_target: Target, operation: Operation, inverse: bool) -> None:
    call = _small(operation, device_target, inverse)
    argnums = tuple(range(len(call.tensors)))
    actual = grad(_scalar(_function(call, inverse)), argnums)(*call.tensors)
    _assert_close(actual, grad(_scalar(_reference(call, inverse)), argnums)(*call.tensors))
    assert all(bool((g != 0).any()) for g in actual)


@both_directions
@each_operation
def test_func_jacrev_and_jacfwd(device_target: Target, operation: Operation, inverse: bool) -> None:
    call = _small(operation, device_target, inverse)
    argnums = tuple(range(len(call.tensors)))
    expected = jacrev(_reference(call, inverse), argnums)(*call.tensors)
    for jacobian in (jacrev, jacfwd):
        _assert_close(jacobian(_function(call, inverse), argnums)(*call.tensors), expected)


@both_directions
@each_operation
def test_func_jvp_and_vjp(device_target: Target, operation: Operation, inverse: bool) -> None:
    call = _small(operation, device_target, inverse)
    tangents = tuple(torch.ones_like(t) * (i + 1) for i, t in enumerate(call.tensors))
    actual = jvp(_function(call, inverse), call.tensors, tangents)
    expected = jvp(_reference(call, inverse), call.tensors, tangents)
    _assert_close(actual, expected)
    assert all(bool((t != 0).any()) for t in actual[1])
    outputs, pull = vjp(_function(call, inverse), *call.tensors)[:2]
    wanted_pull = vjp(_reference(call, inverse), *call.tensors)[1]
    cotangents = tuple(torch.full_like(o, 0.75) for o in outputs)
    _assert_close(pull(cotangents), wanted_pull(cotangents))


@both_directions
@each_operation
def test_forward_mode_ad(device_target: Target, operation: Operation, inverse: bool) -> None:
    """Dual numbers without torch.func: never a silent zero."""
    call = _small(operation, device_target, inverse)
    found = []
    with torch.autograd.forward_ad.dual_level():
        for make in (_function, _reference):
            duals = [
                torch.autograd.forward_ad.make_dual(t, torch.ones_like(t)) for t in call.tensors
            ]
            out = make(call, inverse)(*duals)
            found.append([torch.autograd.forward_ad.unpack_dual(t).tangent for t in out])
    assert found[0][0] is not None and found[0][1] is not None
    _assert_close(*found)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: op.name)
def test_func_hessian(device_target: Target, operation: Operation) -> None:
    call = _small(operation, device_target, False, Layout("tiny", (1, 2)))
    actual = hessian(_scalar(_function(call, False)), 1)(*call.tensors)
    expected = hessian(_scalar(_reference(call, False)), 1)(*call.tensors)
    _assert_close(actual, expected)
    assert bool((actual != 0).any())


def _stack(calls: list[Sample], index: int, dim: int) -> Tensor:
    return torch.stack([call.tensors[index] for call in calls], dim=dim)


@pytest.mark.parametrize("reduce", ["none", "sum"])
@pytest.mark.parametrize("shape", [(), (3,), (3, 2), (2, 2, 3)], ids=str)
@each_operation
def test_vmap(
    device_target: Target, operation: Operation, shape: tuple[int, ...], reduce: str
) -> None:
    """Batched x and parameters, either alone, and batch dimensions that are not the first."""
    layout = Layout("batched", shape, params_last=True)
    calls = [
        sample(operation, device_target, layout=layout, dtype=torch.float64, seed=seed)
        for seed in range(4)
    ]
    function = _function(calls[0], False, reduce)
    count = len(calls[0].tensors)
    batched = [_stack(calls, index, 0) for index in range(count)]
    both = [function(*call.tensors) for call in calls]
    _assert_close(vmap(function)(*batched), tuple(map(torch.stack, zip(*both, strict=True))))

    last = [_stack(calls, index, -1) for index in range(count)]
    moved = vmap(function, in_dims=-1, out_dims=-1)(*last)
    _assert_close(moved, tuple(torch.stack(o, dim=-1) for o in zip(*both, strict=True)))

    x_only = vmap(function, in_dims=(0, *(None for _ in range(count - 1))))
    expected = [function(call.x, *calls[0].groups) for call in calls]
    _assert_close(
        x_only(batched[0], *calls[0].groups), tuple(map(torch.stack, zip(*expected, strict=True)))
    )
    params_only = vmap(function, in_dims=(None, *(0 for _ in range(count - 1))))
    expected = [function(calls[0].x, *call.groups) for call in calls]
    _assert_close(
        params_only(calls[0].x, *batched[1:]), tuple(map(torch.stack, zip(*expected, strict=True)))
    )


@each_operation
def test_vmap_of_packed_images(device_target: Target, operation: Operation) -> None:
    """The packed layout (N, C*P, *S) under a batch, and vmap inside vmap."""
    layout = Layout("batched", (2, 2, 3))
    calls = [
        sample(operation, device_target, layout=layout, dtype=torch.float64, seed=seed)
        for seed in range(4)
    ]
    function = _function(calls[0], True)
    batched = [_stack(calls, index, 0) for index in range(len(calls[0].tensors))]
    expected = tuple(map(torch.stack, zip(*[function(*c.tensors) for c in calls], strict=True)))
    _assert_close(vmap(function)(*batched), expected)
    nested = [t.reshape(2, 2, *t.shape[1:]) for t in batched]
    doubled = tuple(t.reshape(2, 2, *t.shape[1:]) for t in expected)
    _assert_close(vmap(vmap(function))(*nested), doubled)


@both_directions
@each_operation
def test_vmap_of_grad(device_target: Target, operation: Operation, inverse: bool) -> None:
    """Per-sample gradients, of shared parameters too: each sample has its own, not the sum."""
    layout = Layout("one", (1, 2, 3))
    calls = [
        sample(
            operation, device_target, layout=layout, dtype=torch.float64, seed=seed, inverse=inverse
        )
        for seed in range(3)
    ]
    loss = _scalar(_function(calls[0], inverse))
    wanted_loss = _scalar(_reference(calls[0], inverse))
    count = len(calls[0].tensors)
    argnums = tuple(range(count))
    batched = [_stack(calls, index, 0) for index in range(count)]
    expected = [grad(wanted_loss, argnums)(*call.tensors) for call in calls]
    actual = vmap(grad(loss, argnums))(*batched)
    _assert_close(actual, tuple(map(torch.stack, zip(*expected, strict=True))))

    in_dims = (0, *(None for _ in range(count - 1)))
    actual = vmap(grad(loss, argnums), in_dims=in_dims)(batched[0], *calls[0].groups)
    expected = [grad(wanted_loss, argnums)(call.x, *calls[0].groups) for call in calls]
    _assert_close(actual, tuple(map(torch.stack, zip(*expected, strict=True))))


@each_operation
def test_grad_of_vmap(device_target: Target, operation: Operation) -> None:
    """Plain autograd through vmap, and torch.func.grad through it."""
    layout = Layout("one", (1, 2, 3))
    calls = [
        sample(operation, device_target, layout=layout, dtype=torch.float64, seed=seed)
        for seed in range(3)
    ]
    batched = [_stack(calls, index, 0).requires_grad_() for index in range(len(calls[0].tensors))]
    total = vmap(_scalar(_function(calls[0], False)))
    wanted_total = vmap(_scalar(_reference(calls[0], False)))
    expected = torch.autograd.grad(wanted_total(*batched).sum(), batched)
    _assert_close(torch.autograd.grad(total(*batched).sum(), batched), expected)
    plain = [t.detach() for t in batched]
    functional = grad(lambda *t: total(*t).sum(), tuple(range(len(plain))))(*plain)
    _assert_close(functional, expected)


@each_operation
def test_batched_grad(device_target: Target, operation: Operation) -> None:
    """is_grads_batched: what torch.autograd.functional.jacobian(vectorize=True) relies on."""
    call = _small(operation, device_target, False).requires_grad_()
    y, _ = call.call(reduce="sum")
    rows = torch.eye(y.numel(), dtype=y.dtype, device=y.device).reshape(-1, *y.shape)
    batched = torch.autograd.grad(y, call.tensors, rows, is_grads_batched=True, retain_graph=True)
    for number, row in enumerate(rows):
        single = torch.autograd.grad(y, call.tensors, row, retain_graph=True)
        _assert_close(tuple(b[number] for b in batched), single)


@each_operation
def test_checkpoint_and_hooks(device_target: Target, operation: Operation) -> None:
    """Activation checkpointing recomputes the same bits."""
    call = sample(operation, device_target, dtype=torch.float32).requires_grad_()
    outputs = call.call(reduce="sum")
    expected = torch.autograd.grad([o.sum() for o in outputs], call.tensors)
    again = torch.utils.checkpoint.checkpoint(
        _function(call, False), *call.tensors, use_reentrant=False
    )
    actual = torch.autograd.grad([o.sum() for o in again], call.tensors)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def _every(call: Sample) -> tuple[int, ...]:
    return tuple(range(len(call.tensors)))


# Of a loss and its tensors.
FUNC: dict[str, Callable[[Callable[..., Tensor], Sample], Any]] = {
    "grad": lambda f, call: grad(f, _every(call))(*call.tensors),
    "vjp": lambda f, call: vjp(f, *call.tensors)[1](torch.ones_like(call.x.sum())),
    "jvp": lambda f, call: jvp(f, call.tensors, tuple(t.cos() for t in call.tensors)),
    "jacrev": lambda f, call: jacrev(f, 1)(*call.tensors),
    "jacfwd": lambda f, call: jacfwd(f, 1)(*call.tensors),
    "hessian": lambda f, call: hessian(f)(*call.tensors),
    "grad of grad": lambda f, call: grad(
        lambda *t: sum(g.square().sum() for g in grad(f, _every(call))(*t)), _every(call)
    )(*call.tensors),
    "vmap of grad": lambda f, call: vmap(grad(f, _every(call)))(
        *(torch.stack([t, t * 0.5]) for t in call.tensors)
    ),
}
COMPILED: tuple[Operation, ...] = (
    ModifiedRQ("softclip", interval=(-3.0, 3.0)),
    RQ(4, "linear", "softmax", separate=True),
    RQ(3, "circular", "softclip"),
    Affine("tanh_exp", shift_first=False, reciprocal=True),
)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    ("operation", "transform"),
    [
        *((operation, name) for operation in COMPILED[:-1] for name in ("grad", "jvp")),
        *((COMPILED[-1], name) for name in FUNC),  # whose reference is quickly traced
    ],
    ids=lambda each: each if isinstance(each, str) else each.name,
)
def test_compiled_func(native_device: Target, operation: Operation, transform: str) -> None:
    """torch.compile around torch.func, in one graph: what it is without torch.compile."""
    inverse = transform in ("jvp", "vjp")
    call = _small(operation, native_device, inverse, Layout("tiny", (1, 2)))

    def apply() -> Any:
        return FUNC[transform](_scalar(_function(call, inverse)), call)

    actual = torch.compile(apply, fullgraph=True, backend="aot_eager")()
    expected = FUNC[transform](_scalar(_reference(call, inverse)), call)
    _assert_close(actual, expected)
    assert all(bool((t != 0).any()) for t in torch.utils._pytree.tree_leaves(actual))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_func_with_inductor(native_device: Target) -> None:
    """The default backend: a density's score and a directional derivative, in one function."""
    call = _small(Affine("tanh_exp"), native_device, False, Layout("tiny", (1, 2)))

    def apply() -> Any:
        loss = _scalar(_function(call, False))
        return FUNC["grad"](loss, call), FUNC["jvp"](loss, call)

    loss = _scalar(_reference(call, False))
    expected = FUNC["grad"](loss, call), FUNC["jvp"](loss, call)
    _assert_close(torch.compile(apply, fullgraph=True)(), expected)


def _tangents(function: Callable[..., tuple[Tensor, ...]], call: Sample) -> list[Tensor | None]:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, t.cos()) for t in call.tensors]
        return [forward_ad.unpack_dual(t).tangent for t in function(*duals)]


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("operation", COMPILED, ids=lambda op: op.name)
def test_forward_mode_around_a_compiled_call(native_device: Target, operation: Operation) -> None:
    """Whatever it was compiled for first; the numbers themselves still come from the kernels."""
    call = _small(operation, native_device, False)
    function = _function(call, False)
    expected = _tangents(_reference(call, False), call)
    for dual_first in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        if not dual_first:
            compiled(*call.tensors)
        _assert_close(_tangents(compiled, call), expected)
        actual = compiled(*call.tensors)
        assert all(torch.equal(a, b) for a, b in zip(actual, function(*call.tensors), strict=True))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("operation", COMPILED, ids=lambda op: op.name)
def test_compiled_forward_mode(native_device: Target, operation: Operation) -> None:
    """Dual numbers that are made and taken apart within the compiled function."""
    call = _small(operation, native_device, False)

    def apply() -> list[Tensor | None]:
        return _tangents(_function(call, False), call)

    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    _assert_close(compiled(), _tangents(_reference(call, False), call))


class _Module(torch.nn.Module):
    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor, groups: list[Tensor]) -> tuple[Tensor, Tensor]:
        return self.operation.call(x, tuple(groups), False, "sum")


@pytest.mark.parametrize("operation", COMPILED, ids=lambda op: op.name)
def test_func_of_an_exported_program(native_device: Target, operation: Operation) -> None:
    """It calls the operators as they are."""
    call = _small(operation, native_device, False)
    program = torch.export.export(_Module(operation), (call.x, list(call.groups))).module()

    def exported(x: Tensor, *groups: Tensor) -> tuple[Tensor, Tensor]:
        return program(x, list(groups))

    for transform in ("grad", "jvp", "hessian"):
        actual = FUNC[transform](_scalar(exported), call)
        _assert_close(actual, FUNC[transform](_scalar(_reference(call, False)), call))
    _assert_close(_tangents(exported, call), _tangents(_reference(call, False), call))
