"""The LU layers of nflows, normflows, glasflow, fused: the same results, or the library's way."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustflow import compat, use_backend
from robustflow.diagnostics import InverseMonitor
from robustflow.fused import has_lu_linear, lu_linear, run_lu_linear
from tests.support.fused_layers import Results, assert_same, counts, results_and_gradients

pytestmark = [
    pytest.mark.skipif(not has_lu_linear(), reason="robustflow._autograd is not built"),
    pytest.mark.usefixtures("float64_by_default"),
    pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated"),
]

KINDS = ("nflows", "glasflow", "normflows", "normflows permuted")


def layer_class(kind: str) -> Any:
    library, *permuted = kind.split()
    pytest.importorskip(library)
    if library == "normflows":
        mixing = pytest.importorskip("normflows.flows.mixing")
        return mixing.LULinearPermute if permuted else mixing._LULinear
    package = "nflows" if library == "nflows" else "glasflow.nflows"
    return pytest.importorskip(f"{package}.transforms.lu").LULinear


def make_layer(kind: str = "nflows", features: int = 5, base: Any = None, **options: Any) -> Any:
    layer = (base or layer_class(kind))(features, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter) / features**0.5)
    return layer


def run(layer: Any, x: Tensor, inverse: bool = False) -> Results:
    """Outputs, and the gradients by the input and all parameters."""
    x = x.clone().requires_grad_()
    y, logabsdet = (layer.inverse if inverse else layer)(x)
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    (y * weights).sum().add(logabsdet.sin().sum()).backward()
    return results_and_gradients(layer, [y, logabsdet], [x])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("features", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("samples", [1, 7, 200])
def test_results_and_gradients_are_the_librarys(
    kind: str, dtype: torch.dtype, inverse: bool, features: int, samples: int
) -> None:
    library = kind.split()[0]
    layer = make_layer(kind, features).to(dtype)
    x = torch.randn(samples, features, dtype=dtype)
    expected = run(layer, x, inverse)
    exact = run(copy.deepcopy(layer).double(), x.double(), inverse)
    with compat.patch(library):
        found = run(layer, x, inverse)
        assert counts(library) == (1, 0)
        with torch.no_grad():
            y, logabsdet = (layer.inverse if inverse else layer)(x)
        assert counts(library) == (2, 0)
    for ours, theirs, truth in zip(found, expected, exact, strict=True):
        assert ours is not None and theirs is not None and truth is not None
        assert ours.dtype == theirs.dtype == dtype and ours.shape == theirs.shape
        if ours.numel():
            # The library's own rounding errors, against itself in float64, are the measure.
            rounding = 1e-12 if dtype == torch.float64 else 2e-6
            allowed = rounding * max(1.0, float(truth.abs().max()))
            allowed += 4 * float((theirs - truth).abs().max())
            assert float((ours - truth).abs().max()) <= allowed
    assert_same([y, logabsdet], found[:2], 0.0)


def test_strides_and_a_large_diagonal() -> None:
    layer = make_layer()
    with torch.no_grad():
        layer.unconstrained_upper_diag.copy_(torch.tensor([-40.0, -1.0, 0.5, 19.0, 700.0]))
    x = torch.randn(5, 300).t()
    for inverse in (False, True):
        expected = run(layer, x, inverse)
        with compat.patch("nflows"):
            assert_same(run(layer, x, inverse), expected)
            assert counts() == (1, 0)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("kind", ["nflows", "normflows permuted"])
def test_gradients_of_gradients(kind: str, inverse: bool) -> None:
    layer = make_layer(kind, 3)
    x = torch.randn(2, 3, requires_grad=True)

    def function(x: Tensor, *_: Tensor) -> Any:
        return (layer.inverse if inverse else layer)(x)

    leaves = (x, *layer.parameters())
    with compat.patch(kind.split()[0]):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)
        y, _ = function(x)
        rows = torch.eye(y.numel()).view(-1, *y.shape)
        (batched,) = torch.autograd.grad(y, x, rows, is_grads_batched=True, retain_graph=True)
        for row, gradient in zip(rows, batched, strict=True):
            (single,) = torch.autograd.grad(y, x, row, retain_graph=True)
            assert torch.allclose(gradient, single)
        assert counts(kind.split()[0])[1] == 0


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_go_where_the_librarys_go(inverse: bool) -> None:
    layer = make_layer()
    method = layer.inverse if inverse else layer
    names = dict(layer.named_parameters())
    for trained, output, input_grad in itertools.product(
        (*itertools.combinations(names, 1), *itertools.combinations(names, 3)),
        (0, 1),
        (False, True),
    ):
        x = torch.randn(9, 5, requires_grad=input_grad)
        found: list[Results] = []
        for name, parameter in names.items():
            parameter.requires_grad_(name in trained)
        for patched in (False, True):
            layer.zero_grad()
            x.grad = None
            with compat.patch("nflows") if patched else contextlib.nullcontext():
                result = method(x)[output]
                if result.requires_grad:
                    result.sum().backward()
                assert not patched or counts() == (1, 0)
            found.append([x.grad, *(each.grad for each in names.values())])
        assert_same(found[1], found[0])


def with_method(layer: Any) -> None:
    before = layer._create_lower_upper
    layer._create_lower_upper = lambda: tuple(2 * each for each in before())


def with_logabsdet(layer: Any) -> None:
    layer.logabsdet = lambda: torch.tensor(3.0)


def with_other_indices(layer: Any) -> None:
    rows, columns = layer.lower_indices
    layer.lower_indices = (rows[::-1].copy(), columns[::-1].copy())


def with_tensor_eps(layer: Any) -> None:
    layer.eps = torch.full((5,), 0.3)


def with_parametrization(layer: Any) -> None:
    nn.utils.parametrize.register_parametrization(layer, "upper_entries", nn.Tanh())


def with_computed_entries(layer: Any) -> None:
    entries = layer.upper_entries
    del layer.upper_entries
    layer.own = entries
    layer.upper_entries = entries.sin()


def with_hook(layer: Any) -> None:
    layer.register_forward_hook(lambda _m, _i, output: (2 * output[0], output[1]))


CHANGES: dict[Callable[[Any], None], int] = {
    with_method: 1,
    with_logabsdet: 1,
    with_other_indices: 1,
    with_tensor_eps: 1,
    with_parametrization: 0,  # of another class, and not counted
    with_computed_entries: 1,
    with_hook: 1,
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("first", [False, True], ids=["from the start", "after a call"])
def test_what_is_not_served_takes_the_librarys_way(
    change: Callable[[Any], None], inverse: bool, first: bool
) -> None:
    layer = make_layer()
    x = torch.randn(20, 5)
    with compat.patch("nflows"):
        if first:
            run(layer, x, inverse)
        change(layer)
        if change is with_computed_entries:
            with torch.no_grad():
                found = list(layer.inverse(x) if inverse else layer(x))
                layer.upper_entries = layer.own.sin()
        else:
            found = run(layer, x, inverse)
        assert counts() == (int(first), CHANGES[change])
    if change is with_computed_entries:
        with torch.no_grad():
            expected = list(layer.inverse(x) if inverse else layer(x))
    else:
        expected = run(layer, x, inverse)
    assert_same(found, expected)


def test_a_layer_is_fused_again_once_its_hook_is_gone() -> None:
    layer, x = make_layer(), torch.randn(20, 5)
    with compat.patch("nflows"):
        handle = layer.register_forward_hook(lambda _m, _i, output: None)
        layer(x)
        handle.remove()
        layer(x)
        assert counts() == (1, 1)


def test_methods_replaced_on_the_class_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = make_layer(), torch.randn(20, 5)
    with compat.patch("nflows"):
        monkeypatch.setattr(type(layer), "upper_diag", property(lambda self: torch.full((5,), 2.0)))
        y, logabsdet = layer(x)
        assert counts() == (0, 1)
    assert torch.allclose(logabsdet, torch.full((20,), 5 * float(np.log(2.0))))
    assert_same([y, logabsdet], list(layer(x)))


def test_subclasses_take_the_librarys_way() -> None:
    class Doubled(layer_class("nflows")):  # type: ignore[misc]
        @property
        def upper_diag(self) -> Tensor:
            diagonal: Tensor = 2 * super().upper_diag
            return diagonal

    layer, x = make_layer(base=Doubled), torch.randn(20, 5)
    with compat.patch("nflows"):
        found = run(layer, x)
        assert counts() == (0, 0)
    assert_same(found, run(layer, x))


def test_other_tensors_take_the_librarys_way() -> None:
    layer = make_layer()

    class Tagged(Tensor):
        pass

    with compat.patch("nflows"):
        for count, x in enumerate(
            (
                torch.randn(0, 5),
                torch.randn(5),
                torch.randn(2, 4, 5),
                torch.randn(4, 5).as_subclass(Tagged),
            ),
            start=1,
        ):
            y, _ = layer(x)
            assert y.shape == x.shape and isinstance(y, type(x)) and counts() == (0, count)
        for wrong in (torch.randn(4, 6), torch.randn(4, 5, dtype=torch.float32)):
            with pytest.raises(RuntimeError):  # the library's own error
                layer(wrong)
        assert counts() == (0, 6)
        layer.bfloat16()(torch.randn(4, 5, dtype=torch.bfloat16))
        assert counts() == (0, 7)
    large, wide = make_layer(features=65), make_layer(features=64)
    with compat.patch("nflows"), torch.no_grad():
        large(torch.randn(2, 65))
        wide(torch.randn(257, 64))  # PyTorch's products are as fast, and its solver is not
        assert counts() == (0, 2)
        wide.inverse(torch.randn(257, 64))
        assert counts() == (1, 2)


def test_autocast_modes_and_functional_transforms_take_the_librarys_way() -> None:
    layer, x = make_layer().float(), torch.randn(6, 5, dtype=torch.float32)
    with compat.patch("nflows"), torch.autocast("cpu", torch.bfloat16):
        y, _ = layer(x)
        assert y.dtype == torch.bfloat16 and counts() == (0, 1)
    layer, x = layer.double(), x.double()
    expected = layer(x)[0]
    with compat.patch("nflows"):
        with torch.device("cpu"):
            layer(x)
        assert counts() == (0, 1)
        batched = torch.func.vmap(lambda row: layer(row.unsqueeze(0))[0].squeeze(0))(x)
        jacobian = torch.func.jacfwd(lambda row: layer(row.unsqueeze(0))[0].squeeze(0))(x[0])
        assert counts()[0] == 0
        with use_backend("reference"):
            layer(x)
        assert counts()[0] == 0
        layer(x)
        assert counts()[0] == 1
    assert torch.allclose(batched, expected)
    assert torch.allclose(jacobian, layer.weight())


def test_the_librarys_cache_stays_in_use() -> None:
    for kind in ("nflows", "normflows"):
        layer, x = make_layer(kind, using_cache=True).eval(), torch.randn(20, 5)
        with compat.patch(kind), torch.no_grad():
            y, logabsdet = layer(x)
            assert layer.cache.weight is not None and counts(kind) == (0, 0)
            layer.train()
            assert layer.cache.weight is None
            assert_same([y, logabsdet], list(layer(x)), 1e-11)
            assert counts(kind) == (1, 0)
    outer = make_layer("normflows permuted").eval()
    outer.linear.using_cache = True
    with compat.patch("normflows"), torch.no_grad():
        outer.inverse(x)
        assert outer.linear.cache.weight is not None and counts("normflows") == (0, 0)


def test_a_permutation_that_is_not_known_leaves_the_layer_in_it_fused() -> None:
    layer, x = make_layer("normflows permuted"), torch.randn(20, 5)
    other = make_layer("normflows permuted")
    seen = []
    with compat.patch("normflows"):
        handle = layer.permutation.register_forward_hook(lambda *_: seen.append("permutation"))
        found = run(layer, x, True)
        handle.remove()
        assert seen == ["permutation"] and counts("normflows") == (1, 0)
        assert_same(run(layer, x, True), found)
        layer.linear.register_forward_hook(lambda *_: seen.append("linear"))
        run(layer, x, True)
        assert seen == ["permutation", "linear"] and counts("normflows") == (2, 1)
        layer.permutation._permutation.copy_(torch.tensor([4, 0, 3, 1, 2]))  # read at every call
        layer.linear = other.linear
        found = run(layer, x, True)
        layer.permutation._permutation.zero_()
        not_invertible = layer.inverse(x)[0]
        assert counts("normflows") == (4, 1)
    assert_same([not_invertible], [layer.inverse(x)[0]])
    layer.permutation._permutation.copy_(torch.tensor([4, 0, 3, 1, 2]))
    assert_same(found, run(layer, x, True))


def test_parameters_and_eps_are_read_at_every_call() -> None:
    layer, x = make_layer(), torch.randn(5, 5)
    other = make_layer()
    with compat.patch("nflows"):
        layer(x)
        layer.load_state_dict(other.state_dict())
        layer.bias = nn.Parameter(torch.randn(5))
        layer.lower_entries.data = torch.randn(10)
        layer.eps = 0.25
        found = run(layer, x, True)
        swapped = torch.func.functional_call(layer, {"bias": torch.zeros(5)}, (x,))
        assert counts() == (3, 0)
    assert_same(found, run(layer, x, True))
    with torch.no_grad():
        layer.bias.zero_()
    assert_same(list(swapped), list(layer(x)), 1e-11)


def test_modules_are_untouched() -> None:
    for kind in KINDS:
        layer = make_layer(kind)
        before = pickle.dumps(layer)
        with compat.patch(kind.split()[0]):
            run(layer, torch.randn(4, 5))
            layer.zero_grad()
            assert pickle.dumps(layer) == before
            copy.deepcopy(layer)(torch.randn(4, 5))
            assert counts(kind.split()[0]) == (2, 0)


def test_nested_patches_and_what_follows_them() -> None:
    layer, x = make_layer(), torch.randn(5, 5)
    outer = compat.patch("nflows")
    with compat.patch("nflows"):
        layer(x)
    layer(x)
    assert counts() == (2, 0)
    outer.restore()
    layer(x)
    assert "nflows" not in compat.fused_layers()


def test_the_graph_sees_writes() -> None:
    layer, x = make_layer(), torch.randn(5, 5)
    with compat.patch("nflows"):
        y, _ = layer(x)
        y.add_(1)  # the backward pass does not read it
        y.sum().backward(retain_graph=True)
        with torch.no_grad():
            layer.unconstrained_upper_diag.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_a_row_has_the_same_bits_anywhere_on_any_number_of_threads() -> None:
    layer = make_layer(features=16).float()
    x = torch.randn(3000, 16, dtype=torch.float32)
    before = torch.get_num_threads()
    found: list[Results] = []
    try:
        with compat.patch("nflows"):
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(run(layer, x, True))
                with torch.no_grad():
                    for rows in (slice(0, 1), slice(205, 212), slice(500, 900)):
                        assert torch.equal(layer.inverse(x[rows])[0], found[-1][0][rows])  # type: ignore[index]
    finally:
        torch.set_num_threads(before)
    assert_same(found[1], found[0], 0.0)


def test_what_is_not_finite_stays_in_its_row() -> None:
    layer, x = make_layer(), torch.randn(70, 5)
    x[3, 0], x[65, 1] = float("nan"), float("inf")
    clean = [i for i in range(70) if i not in (3, 65)]
    with compat.patch("nflows"), torch.no_grad():
        for method in (layer.inverse, layer):
            y, logabsdet = method(x)
            assert torch.equal(y[clean], method(x[clean])[0]) and logabsdet.isfinite().all()
            assert y[3].isnan().any() and not y[65].isfinite().all()


def test_a_monitor_sees_the_library_and_a_layer_is_fused_again_after_it() -> None:
    layer, x = make_layer().eval(), torch.randn(20, 5)
    with compat.patch("nflows"), torch.no_grad():
        with InverseMonitor(layer):
            layer.inverse(x)
        assert counts() == (0, 1)
        layer.inverse(x)
        assert counts() == (1, 1)


def test_a_changed_library_takes_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = layer_class("nflows")
    monkeypatch.setattr(
        kind, "upper_diag", property(lambda self: self.unconstrained_upper_diag.exp())
    )
    layer, x = make_layer(), torch.randn(20, 5)
    with compat.patch("nflows"):
        found = run(layer, x)
        assert counts() == (0, 1)
    assert_same(found, run(layer, x))


@pytest.mark.parametrize("library", ["nflows", "normflows"])
def test_a_flow_trains_to_the_same_parameters(library: str) -> None:
    def train() -> list[Tensor]:
        torch.manual_seed(0)
        layers = [make_layer(library + " permuted" * (library == "normflows")) for _ in range(3)]
        optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters()], 0.01)
        x = torch.randn(50, 5) @ torch.randn(5, 5)
        for _ in range(5):
            z, total = x, torch.zeros(50)
            for layer in layers:
                z, logabsdet = (layer.inverse if library == "normflows" else layer)(z)
                total = total + logabsdet
            optimizer.zero_grad()
            (0.5 * z.square().sum(1) - total).mean().backward()
            optimizer.step()
        return [p.detach() for layer in layers for p in layer.parameters()]

    expected = train()
    with compat.patch(library):
        found = train()
        assert counts(library) == (15, 0)
    assert_same(list(found), list(expected), 1e-10)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_call_in_cpp_is_the_one_in_pytorch(inverse: bool) -> None:
    x, lower, upper, diagonal, bias = tensors = [torch.randn(6, 3), *torch.randn(4, 3)]
    expected = run_lu_linear(x, lower, upper, diagonal, bias, inverse, 0.1, [2, 0, 1])
    assert_same(list(lu_linear()(*tensors, inverse, 0.1, torch.tensor([2, 0, 1]))), list(expected))
    for wrong in (torch.tensor([2, 0, 2]), torch.tensor([2, 0, 3]), torch.tensor([1, 0]), 3):
        assert "permutation" in lu_linear()(*tensors, inverse, 0.1, wrong)
    with pytest.raises(TypeError):
        lu_linear()(*tensors, inverse, "eps", None)
