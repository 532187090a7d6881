"""zuko's transform: lazy knots, broadcasting, subclasses, objects that outlive the patch."""

from __future__ import annotations

import copy
import pickle
import threading
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from robustflow import compat
from robustflow.compat._patch.zuko import packed
from robustflow.compat._patch.zuko.knots import SettleOnRestore
from tests.compat.served import calls, counts

zuko = pytest.importorskip("zuko")
RQS = zuko.transforms.MonotonicRQSTransform
KNOTS = ("horizontal", "vertical", "derivatives")


def double(*shape: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, dtype=torch.float64)).requires_grad_()


def groups(*shape: int, bins: int = 5) -> list[Tensor]:
    return [double(*shape, size, scale=2.0) for size in (bins, bins, bins - 1)]


def outcome(make: Any, phi: list[Tensor], x: Tensor) -> tuple[Tensor, ...]:
    transform = make(*phi)
    y, ladj = transform.call_and_ladj(x)
    back = transform.inv(y.detach())
    ladj_too = transform.log_abs_det_jacobian(x, y)
    total = (y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum() + ladj.sum() + back.sum()
    gradients = torch.autograd.grad(total, [x, *phi])
    return y, ladj, ladj_too, transform(x), back, *gradients


def same(make: Any, phi: list[Tensor], x: Tensor, kernel: int = 4) -> None:
    expected = outcome(make, phi, x)
    with compat.patch("zuko"):
        found = outcome(make, phi, x)
        assert compat.patched()["zuko"] == counts(kernel=kernel, fallback=4 - kernel)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "params"), [((7, 3), (7, 3)), ((7, 3), (3,)), ((3,), (7, 3)), ((7, 3), ()), ((), ())]
)
def test_broadcasting(shape: tuple[int, ...], params: tuple[int, ...]) -> None:
    same(partial(RQS, slope=1e-2, bound=3.0), groups(*params), double(*shape, scale=3.0))


@pytest.mark.parametrize("bound", [torch.tensor(2.5), torch.tensor([[1.0], [2.0], [4.0]])])
def test_a_tensor_bound(bound: Tensor) -> None:
    same(partial(RQS, bound=bound.double()), groups(7, 3), double(7, 3, scale=3.0))


def test_edges_and_beyond() -> None:
    x = torch.tensor([-1e20, -5.0, 5.0, 6.0, 1e20]).requires_grad_()
    phi = [(100 * torch.randn(5, size)).requires_grad_() for size in (8, 8, 7)]
    with compat.patch("zuko"):
        y, ladj = RQS(*phi).call_and_ladj(x)
        gradients = torch.autograd.grad(y.sum() + ladj.sum(), [x, *phi])
    assert y.tolist() == x.tolist() and ladj.tolist() == [0.0] * 5
    assert gradients[0].tolist() == [1.0] * 5
    assert not any(gradient.any() for gradient in gradients[1:])


def test_knots_are_computed_when_read_and_only_then() -> None:
    phi = groups(7, 3)
    expected = RQS(*phi)
    with compat.patch("zuko"):
        transform = RQS(*phi)
        assert transform.bins == 5 and repr(transform) == repr(expected)
        transform(double(7, 3))
        assert not set(KNOTS) & set(vars(transform))
        for name in KNOTS:
            torch.testing.assert_close(getattr(transform, name), getattr(expected, name))
            assert getattr(transform, name).requires_grad
        with pytest.raises(AttributeError, match="no attribute 'knots'"):
            transform.knots  # noqa: B018
        assert not hasattr(transform, "_robustflow_parameters")


@pytest.mark.parametrize("name", KNOTS)
def test_assigned_knots_win(name: str) -> None:
    phi, other, x = groups(7, 3), groups(7, 3), double(7, 3)
    expected = RQS(*phi)
    value = getattr(RQS(*other), name)
    setattr(expected, name, value)
    with compat.patch("zuko"):
        transform = RQS(*phi)
        setattr(transform, name, value)
        torch.testing.assert_close(transform.call_and_ladj(x), expected.call_and_ladj(x))


def test_knots_changed_in_place_win() -> None:
    phi, x = groups(7, 3), double(7, 3)
    expected = RQS(*phi)
    with compat.patch("zuko"):
        transform = RQS(*phi)
        for each in (expected, transform):
            with torch.no_grad():
                each.derivatives.mul_(2)
        torch.testing.assert_close(transform(x), expected(x))


@pytest.mark.parametrize("when", ["read", "unread"])
def test_a_transform_outlives_the_patch(when: str) -> None:
    phi, x = groups(7, 3), double(7, 3)
    expected = RQS(*phi)
    with compat.patch("zuko"):
        transform = RQS(*phi)
        transform(x)
        if when == "read":
            transform.horizontal  # noqa: B018
    torch.testing.assert_close(transform.call_and_ladj(x), expected.call_and_ladj(x))
    assert set(vars(transform)) == set(vars(expected))
    assert transform.horizontal.grad_fn is not None


@pytest.mark.parametrize("kind", ["vmap", "grad", "jvp"])
def test_a_transform_of_a_torch_func_transform_that_has_ended(kind: str) -> None:
    """Its knots are what zuko's would be: tensors of a level that is no more."""
    alive: list[Any] = []

    def loss(w: Tensor, h: Tensor, d: Tensor, x: Tensor) -> Tensor:
        alive.append(RQS(w, h, d))
        value: Tensor = alive[-1](x).sum()
        return value

    def call() -> Tensor:
        args = tuple(t.detach() for t in (*groups(7, 3), double(7, 3)))
        if kind == "vmap":
            return torch.func.vmap(loss)(*args)
        if kind == "grad":
            return torch.func.grad(loss)(*args)
        return torch.func.jvp(loss, args, args)[1]

    torch.manual_seed(5)
    expected = call()
    torch.manual_seed(5)
    phi, x = groups(7, 3), double(7, 3)
    for _ in range(2):
        torch.manual_seed(5)
        with compat.patch("zuko"):
            torch.testing.assert_close(call(), expected, rtol=1e-7, atol=1e-8)
        assert compat.patched() == {}
        with compat.patch("zuko"):
            RQS(*phi)(x)
            assert compat.patched()["zuko"] == counts(kernel=1)
    assert set(vars(alive[-1])) == set(vars(alive[0]))
    assert type(alive[-1].horizontal) is type(alive[0].horizontal)


def test_one_that_cannot_be_settled_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    phi, x = groups(7, 3), double(7, 3)
    expected = RQS(*phi)(x)
    with pytest.raises(ZeroDivisionError), compat.patch("zuko"):
        transforms = [RQS(*phi) for _ in range(3)]
        knots = next(
            change.knots
            for change in compat._patch.session._sessions["zuko"].changes
            if isinstance(change, SettleOnRestore)
        )
        settle = knots.settle

        def failing(transform: Any) -> None:
            if transform is transforms[1]:
                raise ZeroDivisionError
            settle(transform)

        monkeypatch.setattr(knots, "settle", failing)
    for transform in (transforms[0], transforms[2]):
        torch.testing.assert_close(transform(x), expected)
    monkeypatch.undo()
    compat.unpatch("zuko")
    torch.testing.assert_close(transforms[1](x), expected)
    assert compat.patched() == {} and "__getattr__" not in vars(RQS)


def test_parameters_modified_in_place_are_told_after_the_patch_too() -> None:
    """The knots that zuko would have computed are gone; those of the new values are others."""
    phi, x = [group.detach() for group in groups(7, 3)], double(7, 3)
    with compat.patch("zuko"):
        transform = RQS(*phi)
        phi[0].add_(1)
        with pytest.raises(RuntimeError, match="modified in place"):
            transform(x)
    for use in (transform, transform.inv, lambda x: transform.horizontal.sum()):
        with pytest.raises(RuntimeError, match="modified in place"):
            use(x)
    with pytest.raises(RuntimeError, match="modified in place"):
        copy.deepcopy(transform)


def test_a_bound_for_each_feature_compiles() -> None:
    phi, x = groups(7, 3), 2 * double(7, 3).detach()
    bound = torch.tensor([[1.0], [2.0], [3.0]]).double()

    def call(x: Tensor, *phi: Tensor) -> Tensor:
        value: Tensor = RQS(*phi, bound=bound)(x)
        return value

    expected = call(x, *phi)
    with compat.patch("zuko"):
        found = torch.compile(call, backend="aot_eager")(x, *phi)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


def test_a_transform_made_before_the_patch() -> None:
    phi, x = groups(7, 3), double(7, 3)
    transform = RQS(*phi)
    expected = transform(x)
    with compat.patch("zuko"):
        torch.testing.assert_close(transform(x), expected, rtol=0, atol=0)
        assert compat.patched()["zuko"] == counts(fallback=1)


def test_copies_hold_what_zukos_hold() -> None:
    phi = [group.detach() for group in groups(7, 3)]
    x = torch.randn(7, 3, dtype=torch.float64)
    expected = RQS(*phi)
    with compat.patch("zuko"):
        made = [copy.copy(RQS(*phi)), copy.deepcopy(RQS(*phi))]
        pickled = pickle.dumps(RQS(*phi))
    assert b"robustflow" not in pickled
    for transform in (*made, pickle.loads(pickled)):
        assert set(vars(transform)) == set(vars(expected))
        torch.testing.assert_close(transform(x), expected(x), rtol=0, atol=0)


class Sorted(RQS):  # type: ignore[misc, valid-type]
    """A subclass that computes otherwise."""

    @staticmethod
    def searchsorted(seq: Tensor, value: Tensor) -> Tensor:
        return torch.searchsorted(seq, value[..., None]).squeeze(-1)


class Named(RQS):  # type: ignore[misc, valid-type]
    """A subclass that adds to it."""

    def __init__(self, *phi: Tensor) -> None:
        super().__init__(*phi, bound=3.0)
        self.name = "named"


def test_subclasses() -> None:
    same(Sorted, groups(7, 3), double(7, 3), kernel=0)
    same(Named, groups(7, 3), double(7, 3))
    with compat.patch("zuko"):
        assert Named(*groups(7, 3)).name == "named"


def test_no_gradients_where_none_were_recorded() -> None:
    phi, x = groups(7, 3), double(7, 3).detach()
    with compat.patch("zuko"):
        with torch.no_grad():
            transform = RQS(*phi)
        assert not transform(x).requires_grad
        with torch.inference_mode():
            RQS(*groups(7, 3))(torch.randn(7, 3))


def test_an_optimizer_step_after_it_was_made() -> None:
    """zuko's knots are those of the parameters at the time."""
    phi = [torch.nn.Parameter(group.detach()) for group in groups(3)]
    x = double(3)
    expected = RQS(*phi)
    with compat.patch("zuko"):
        transform = RQS(*phi)
        with torch.no_grad():
            for parameter in phi:
                parameter.add_(1.0)
        torch.testing.assert_close(transform(x), expected(x))


def test_other_parameters_changed_in_place_are_an_error() -> None:
    phi = [group.detach() for group in groups(3)]
    with compat.patch("zuko"):
        transform = RQS(*phi)
        phi[0].add_(1.0)
        with pytest.raises(RuntimeError, match="make it again"):
            transform(double(3))


@pytest.mark.parametrize("change", [{"slope": 2.0}, {"bound": torch.full((6,), 3.0).double()}])
def test_what_the_kernels_do_not_support(change: dict[str, Any]) -> None:
    same(partial(RQS, **change), groups(7, 3), double(7, 3), kernel=0)


def layers() -> dict[str, Any]:
    options = {"univariate": RQS, "shapes": [(5,), (5,), (4,)], "hidden_features": (8,)}
    flows = zuko.flows
    from zuko.flows.gaussianization import ElementWiseTransform

    return {
        "autoregressive": flows.MaskedAutoregressiveTransform(4, 2, **options),
        "coupling": flows.coupling.GeneralCouplingTransform(4, 2, **options),
        "elementwise": ElementWiseTransform(4, 2, **options),
        "circular": flows.NCSF(4, 2, transforms=1, bins=5, hidden_features=(8,)).transform,
    }


@pytest.mark.parametrize("name", ["autoregressive", "coupling", "elementwise", "circular"])
def test_layers_keep_their_parameters_packed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layers()[name]
    for module in layer.modules():
        if next(module.parameters(recurse=False), None) is not None:  # a hook: it is not fused
            module.register_forward_hook(lambda module, inputs, output: None)
    x, context = torch.randn(7, 4), torch.randn(7, 2)
    with compat.patch("zuko"), calls(monkeypatch) as found:
        layer(context).call_and_ladj(x)
    (_, packed, heights, *_) = found[0]
    assert packed.shape[-1] == 14 and heights is None and len(found) == 1


def test_another_transforms_parameters_are_not_kept() -> None:
    """What a layer has cut is forgotten with the layer's call."""
    layer = zuko.flows.MaskedAutoregressiveTransform(4, 2, hidden_features=(8,))
    with compat.patch("zuko"):
        layer(torch.randn(7, 2))(torch.randn(7, 4))
        zuko.utils.unpack(torch.randn(7, 14), [(5,), (5,), (4,)])
        assert packed._thread.layer is None


def test_threads_patch_and_call() -> None:
    layer = layers()["autoregressive"]
    x, context = torch.randn(64, 4), torch.randn(64, 2)
    expected = layer(context).call_and_ladj(x)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                with compat.patch("zuko"):
                    found = layer(context).call_and_ladj(x)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and compat.patched() == {}


IN_ORDER: dict[str, dict[str, Any]] = {
    "plain": {"features": 5},
    "context": {"features": 4, "context": 3},
    "residual": {"features": 4, "context": 2, "residual": True, "hidden_features": (16, 16)},
    "two passes": {"features": 6, "passes": 2},
    "an order": {"features": 4, "order": torch.tensor([2, 0, 3, 1])},
    "a graph": {"features": 3, "adjacency": torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool()},
    "one pass": {"features": 2, "passes": 1, "context": 3},
    "another activation": {"features": 3, "activation": torch.nn.ELU},
}
SPLINE: dict[str, Any] = {"univariate": RQS, "shapes": [(5,), (5,), (4,)]}


def autoregressive(**options: Any) -> Any:
    torch.manual_seed(0)
    return zuko.flows.MaskedAutoregressiveTransform(**{**SPLINE, **options}).double()


@pytest.mark.parametrize("name", IN_ORDER)
def test_an_autoregressive_inverse_runs_the_network_once(name: str) -> None:
    options = IN_ORDER[name]
    layer = autoregressive(**options)
    y = double(7, 2, options["features"], scale=2.0).detach()
    context = double(2, options["context"]).detach() if "context" in options else None
    with compat.patch("zuko"):
        by_passes = layer(context).inv(y)
        assert by_passes.requires_grad and compat.patched()["zuko"]["fallback"] == 1
        with torch.no_grad():
            made = linear_outputs(lambda: layer(context).inv(y))
            found = layer(context).inv(y)
    rows = [each.out_features for each in layer.hyper.modules() if hasattr(each, "mask")]
    assert made == 14 * sum(rows)
    with torch.no_grad():
        expected = layer(context).inv(y)
        assert linear_outputs(lambda: layer(context).inv(y)) == layer.passes * made
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(by_passes.detach(), expected, rtol=1e-7, atol=1e-7)


def linear_outputs(call: Any) -> int:
    """How many numbers torch's linear layers make in a call."""
    made = 0

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal made
            out = function(*args, **(kwargs or {}))
            if function is torch.nn.functional.linear:
                made += out.numel()
            return out

    with Mode():
        call()
    return made


def test_what_keeps_zukos_passes() -> None:
    """Another univariate transform, a watched network, a subclass."""

    class Own(zuko.flows.MaskedAutoregressiveTransform):  # type: ignore[name-defined]
        def meta(self, c: Any, x: Tensor) -> Any:
            return super().meta(c, x)

    watched = autoregressive(features=3)
    calls: list[int] = []
    watched.hyper.register_forward_hook(lambda *_: calls.append(1))
    layers = {
        "affine": zuko.flows.MaskedAutoregressiveTransform(3).double(),
        "own": Own(3, **SPLINE).double(),
        "watched": watched,
    }
    y = double(7, 3).detach()
    for name, layer in layers.items():
        with torch.no_grad():
            expected = layer().inv(y)
            full = linear_outputs(lambda layer=layer: layer().inv(y))
            with compat.patch("zuko"):
                assert linear_outputs(lambda layer=layer: layer().inv(y)) == full, name
                affine = name == "affine"  # has no spline: nothing of it is counted
                assert compat.patched()["zuko"] == (counts() if affine else counts(3, 0, 1))
                torch.testing.assert_close(layer().inv(y), expected, rtol=1e-7, atol=1e-7)
    assert len(calls) == 4 * 3


def test_a_loaded_order_and_an_activation_that_is_used_twice() -> None:
    y = double(7, 4).detach()
    layer, other = autoregressive(features=4), autoregressive(features=4, order=[3, 1, 0, 2])
    shared = torch.nn.ELU()
    twice = autoregressive(features=4, activation=lambda: shared, hidden_features=(16, 16))
    bound = partial(RQS, bound=torch.tensor([[1.0], [2.0], [3.0], [2.0]]).double())
    bounded = autoregressive(features=4, univariate=bound)
    with compat.patch("zuko"), torch.no_grad():
        layer().inv(y)
        layer.load_state_dict(other.state_dict())
        for each in (layer, twice, bounded):
            torch.testing.assert_close(each()(each().inv(y)), y, rtol=1e-7, atol=1e-7)
