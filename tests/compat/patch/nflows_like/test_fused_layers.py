"""Coupling layers of nflows, normflows, glasflow, fused: the same results, or the library's way."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow import _native, compat
from robustflow.diagnostics import InverseMonitor
from robustflow.fused import is_available
from tests.support.fused_layers import Results, assert_same, counts, results_and_gradients

pytestmark = [
    pytest.mark.skipif(not is_available(), reason="robustflow._autograd is not built"),
    pytest.mark.usefixtures("float64_by_default"),
]

LIBRARIES = ("nflows", "normflows", "glasflow")
FEATURES, CONTEXT = 5, 3


def classes(library: str) -> tuple[type, type]:
    """A library's coupling layer and its residual network."""
    if library == "normflows":
        module = pytest.importorskip("normflows.flows.neural_spline.coupling")
        networks = pytest.importorskip("normflows.nets")
        return module.PiecewiseRationalQuadraticCoupling, networks.ResidualNet
    package = "nflows" if library == "nflows" else "glasflow.nflows"
    pytest.importorskip(library)
    module = pytest.importorskip(f"{package}.transforms.coupling")
    networks = pytest.importorskip(f"{package}.nn.nets")
    return module.PiecewiseRationalQuadraticCouplingTransform, networks.ResidualNet


def make_layer(
    library: str = "nflows",
    *,
    context: bool = False,
    own: bool = False,
    wrap: Callable[[nn.Module], nn.Module] = lambda net: net,
    tails: str = "linear",
    network_class: Any = None,
    layer_class: Any = None,
    **network: Any,
) -> Any:
    coupling, residual = classes(library)
    options = {"hidden_features": 12, "context_features": CONTEXT if context else None, **network}
    layer = (layer_class or coupling)(
        torch.tensor([1, 0, 1, 1, 0]),
        lambda inputs, outputs: wrap((network_class or residual)(inputs, outputs, **options)),
        num_bins=6,
        tails=tails,
        tail_bound=2.0,
        apply_unconditional_transform=own,
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def run(layer: Any, x: Tensor, context: Tensor | None, inverse: bool) -> Results:
    """Outputs, and the gradients by the inputs and all parameters."""
    x = x.clone().requires_grad_()
    context = None if context is None else context.clone().requires_grad_()
    y, logabsdet = (layer.inverse if inverse else layer)(x, context)
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    (y * weights).sum().add(logabsdet.sin().sum()).backward()
    return results_and_gradients(layer, [y, logabsdet], [x, context])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("samples", [1, 7, 300])
def test_results_and_gradients_are_the_librarys(
    library: str,
    dtype: torch.dtype,
    inverse: bool,
    context: bool,
    own: bool,
    samples: int,
) -> None:
    layer = make_layer(library, context=context, own=own).to(dtype)
    x = 1.5 * torch.randn(samples, FEATURES, dtype=dtype)
    given = torch.randn(samples, CONTEXT, dtype=dtype) if context else None
    expected = run(layer, x, given, inverse)
    exact = run(
        copy.deepcopy(layer).double(),
        x.double(),
        None if given is None else given.double(),
        inverse,
    )
    with compat.patch(library):
        found = run(layer, x, given, inverse)
        assert counts(library) == (1, 0)
        assert compat.patched()[library]["kernel"] == 1 + own
        with torch.no_grad():
            y, logabsdet = (layer.inverse if inverse else layer)(x, given)
        assert counts(library) == (2, 0)
    for ours, theirs, truth in zip(found, expected, exact, strict=True):
        assert (ours is None) == (truth is None)
        if ours is not None and theirs is not None and truth is not None:
            assert ours.dtype == theirs.dtype == dtype
            # The library's own rounding errors, against itself in float64, are the measure.
            rounding = 1e-11 if dtype == torch.float64 else 1e-5
            allowed = rounding * max(1.0, float(truth.abs().max()))
            allowed += 4 * float((theirs - truth).abs().max())
            assert float((ours - truth).abs().max()) <= allowed
    assert_same([y, logabsdet], found[:2], 0.0)


@pytest.mark.parametrize(
    "activation",
    [
        functional.relu,
        torch.tanh,
        functional.elu,
        nn.ELU(0.5),
        nn.LeakyReLU(0.2),
        functional.leaky_relu,
        nn.Sigmoid(),
        functional.silu,
    ],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_activations(activation: Any) -> None:
    layer = make_layer(context=True, activation=activation)
    x, context = torch.randn(20, FEATURES), torch.randn(20, CONTEXT)
    expected = run(layer, x, context, False)
    with compat.patch("nflows"):
        found = run(layer, x, context, False)
        assert counts() == (1, 0)
    assert_same(found, expected, 1e-11)


def test_circular_tails() -> None:
    layer = make_layer("normflows", tails="circular", own=True)
    x = torch.randn(20, FEATURES).clamp(-1.9, 1.9)
    expected = run(layer, x, None, False)
    with compat.patch("normflows"):
        found = run(layer, x, None, False)
        assert counts("normflows") == (1, 0)
    assert_same(found, expected, 1e-11)


class Scaled(nn.Module):
    """A network of the user's own around the library's."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.hidden_features = network.hidden_features

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        result: Tensor = 2 * self.network(inputs, context)
        return result


def hooked(layer: Any) -> None:
    layer.transform_net.final_layer.register_forward_hook(lambda _m, _i, output: 2 * output)


def watched_backward(layer: Any) -> None:
    layer.transform_net.blocks[0].register_full_backward_hook(lambda _m, _gi, _go: None)


def weight_normed(layer: Any) -> None:
    nn.utils.parametrizations.weight_norm(layer.transform_net.final_layer)


def old_weight_normed(layer: Any) -> None:
    nn.utils.weight_norm(layer.transform_net.initial_layer)


def own_forward(layer: Any) -> None:
    network = layer.transform_net
    before = network.forward
    network.forward = lambda inputs, context=None: 2 * before(inputs, context)


def other_block(layer: Any) -> None:
    layer.transform_net.blocks[0] = nn.Identity()
    layer.transform_net.blocks[0].forward = lambda inputs, context=None: inputs.sin()


def own_activation(layer: Any) -> None:
    layer.transform_net.blocks[1].activation = torch.sin


def own_method(layer: Any) -> None:
    before = layer._coupling_transform_forward

    def doubled(inputs: Tensor, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        outputs, logabsdet = before(inputs, transform_params)
        return 2 * outputs, logabsdet

    layer._coupling_transform_forward = doubled


CHANGES = [
    hooked,
    watched_backward,
    weight_normed,
    old_weight_normed,
    own_forward,
    other_block,
    own_activation,
    own_method,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
@pytest.mark.parametrize("first", [False, True], ids=["from the start", "after a call"])
def test_what_is_not_served_takes_the_librarys_way(
    change: Callable[[Any], None], first: bool
) -> None:
    layer = make_layer()
    x = torch.randn(20, FEATURES)
    with compat.patch("nflows"):
        if first:
            run(layer, x, None, False)
        change(layer)
        found = run(layer, x, None, False)
        assert counts() == (int(first), 1)
    assert_same(found, run(layer, x, None, False), 1e-11)


def test_other_networks_and_layers_take_the_librarys_way() -> None:
    coupling, residual = classes("nflows")

    class OwnNetwork(residual):  # type: ignore[misc, valid-type]
        def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
            result: Tensor = super().forward(inputs, context).sin()
            return result

    class OwnLayer(coupling):  # type: ignore[misc, valid-type]
        def _coupling_transform_forward(self, inputs: Tensor, transform_params: Tensor) -> Any:
            y, logabsdet = super()._coupling_transform_forward(inputs, transform_params)
            return 2 * y, logabsdet

    x = torch.randn(20, FEATURES)
    for layer, parts in (
        (make_layer(network_class=OwnNetwork), 1),
        (make_layer(wrap=Scaled), 1),
        (make_layer(layer_class=OwnLayer), 0),  # not the layer that is known, and not counted
        (make_layer(hidden_features=300), 1),
        (make_layer(use_batch_norm=True), 1),
        (make_layer(dropout_probability=0.5), 1),
    ):
        with compat.patch("nflows"):
            torch.manual_seed(1)
            found = run(layer, x, None, False)
            assert counts() == (0, parts)
        torch.manual_seed(1)
        assert_same(found, run(layer, x, None, False), 1e-11)


def test_dropout_that_is_off_is_served() -> None:
    layer = make_layer(dropout_probability=0.5).eval()
    x = torch.randn(20, FEATURES)
    expected = run(layer, x, None, False)
    with compat.patch("nflows"):
        assert_same(run(layer, x, None, False), expected, 1e-11)
        assert counts() == (1, 0)
        run(layer.train(), x, None, False)
        assert counts() == (1, 1)


def test_autocast_and_other_dtypes_take_the_librarys_way() -> None:
    layer = make_layer().float()
    x = torch.randn(20, FEATURES, dtype=torch.float32)
    with compat.patch("nflows"), torch.autocast("cpu", torch.bfloat16):
        layer(x)
        assert counts() == (0, 1)
    with compat.patch("nflows"):
        layer.bfloat16()(x.bfloat16())
        assert counts() == (0, 1)
        with pytest.raises(RuntimeError):
            layer.double()(x)  # the library's own error


def test_modes_subclasses_and_functional_transforms_take_the_librarys_way() -> None:
    layer = make_layer()
    x = torch.randn(6, FEATURES)
    expected = layer(x)[0]

    class Tagged(Tensor):
        pass

    with compat.patch("nflows"):
        found = layer(x.as_subclass(Tagged))[0]
        assert isinstance(found, Tagged) and counts() == (0, 1)
        with torch.device("cpu"):
            layer(x)
        assert counts() == (0, 2)
        batched = torch.func.vmap(lambda row: layer(row.unsqueeze(0))[0].squeeze(0))(x)
        assert counts()[0] == 0
        jacobian = torch.func.jacfwd(lambda x: layer(x)[1].sum())(x)
        assert counts()[0] == 0
        with compat_backend("reference"):
            layer(x)
        assert counts()[0] == 0
        layer(x)
        assert counts()[0] == 1
    assert torch.allclose(batched, expected)
    assert torch.allclose(jacobian, gradient_of_logabsdet(layer, x))


def test_a_batch_made_in_inference_mode_can_be_trained_on() -> None:
    layer = make_layer()
    with torch.inference_mode():
        x = torch.randn(6, FEATURES)
    expected = gradients_of_a_step(layer, x)
    with compat.patch("nflows"):
        actual = gradients_of_a_step(layer, x)
        assert counts() == (0, 1)
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.allclose(ours, theirs)


def gradients_of_a_step(layer: Any, x: Tensor) -> list[Tensor]:
    y, logabsdet = layer(x)
    return list(torch.autograd.grad(y.sin().sum() + logabsdet.sum(), list(layer.parameters())))


def compat_backend(name: str) -> Any:
    from robustflow import use_backend

    return use_backend(name)


def gradient_of_logabsdet(layer: Any, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(layer(x)[1].sum(), x)[0]


def test_frozen_parameters_and_inputs_without_gradient() -> None:
    layer = make_layer(context=True, own=True)
    layer.transform_net.initial_layer.weight.requires_grad_(False)
    layer.transform_net.blocks[0].context_layer.bias.requires_grad_(False)
    layer.unconditional_transform.unnormalized_heights.requires_grad_(False)
    x, context = torch.randn(20, FEATURES), torch.randn(20, CONTEXT)
    for inverse in (False, True):
        method = layer.inverse if inverse else layer
        for y_only, one_input in ((False, None), (True, x), (False, context)):
            grads = []
            for patched in (False, True):
                for tensor in (x, context):
                    tensor.requires_grad_(tensor is one_input)
                    tensor.grad = None
                layer.zero_grad()
                handle = compat.patch("nflows") if patched else None
                y, logabsdet = method(x, context)
                (y if y_only else logabsdet).sum().backward()
                if handle is not None:
                    assert counts() == (1, 0)
                    handle.restore()
                grads.append([each.grad for each in (x, context, *layer.parameters())])
            # Where the library's graph leaves a parameter out, ours gives zeros or nothing.
            for ours, theirs, tensor in zip(
                grads[1], grads[0], (x, context, *layer.parameters()), strict=True
            ):
                assert tensor.requires_grad or ours is None
                if theirs is not None:
                    assert torch.allclose(ours, theirs)
                elif ours is not None:
                    assert not ours.any()


def test_gradients_of_gradients() -> None:
    layer = make_layer(context=True, activation=torch.tanh, hidden_features=4, num_blocks=1)
    parameters = list(layer.parameters())
    x = (0.8 * torch.randn(2, FEATURES)).requires_grad_()
    context = torch.randn(2, CONTEXT, requires_grad=True)

    def function(x: Tensor, context: Tensor, *_: Tensor) -> Any:
        return layer(x, context)

    with compat.patch("nflows"):
        assert torch.autograd.gradgradcheck(function, (x, context, *parameters[-2:]))
        assert counts()[1] == 0


def test_vectorised_jacobian() -> None:
    layer = make_layer()
    x = torch.randn(3, FEATURES)

    def jacobian() -> Any:
        return torch.autograd.functional.jacobian(lambda x: layer(x)[0], x, vectorize=True)

    expected = jacobian()
    with compat.patch("nflows"):
        found = jacobian()
        assert counts() == (1, 0)
    assert torch.allclose(found, expected)


def test_the_graph_can_be_used_twice_and_sees_writes() -> None:
    layer = make_layer()
    x = torch.randn(5, FEATURES, requires_grad=True)
    with compat.patch("nflows"):
        y, logabsdet = layer(x)
        (first,) = torch.autograd.grad(logabsdet.sum(), x, retain_graph=True)
        (second,) = torch.autograd.grad(logabsdet.sum(), x, retain_graph=True)
        assert torch.equal(first, second)
        with torch.no_grad():
            layer.transform_net.final_layer.weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_parameters_are_read_at_every_call() -> None:
    layer = make_layer()
    other = make_layer()
    x = torch.randn(5, FEATURES)
    with compat.patch("nflows"):
        layer(x)
        layer.load_state_dict(other.state_dict())
        layer.transform_net.final_layer.weight = nn.Parameter(
            other.transform_net.final_layer.weight * 2
        )
        layer.tail_bound = 1.5
        found = run(layer, x, None, True)
        swapped = torch.func.functional_call(
            layer,
            {
                "transform_net.final_layer.bias": torch.zeros(
                    layer.transform_net.final_layer.out_features
                )
            },
            (x,),
        )
        assert counts() == (3, 0)
    assert_same(found, run(layer, x, None, True), 1e-11)
    with torch.no_grad():
        layer.transform_net.final_layer.bias.zero_()
    assert_same(list(swapped), list(layer(x)), 1e-11)


def test_modules_are_untouched() -> None:
    layer = make_layer(own=True)
    before = pickle.dumps(layer)
    with compat.patch("nflows"):
        run(layer, torch.randn(5, FEATURES), None, False)
        layer.zero_grad()
        assert pickle.dumps(layer) == before
        twin = copy.deepcopy(layer)
        twin(torch.randn(5, FEATURES))
        assert counts() == (2, 0)


def test_a_row_has_the_same_bits_anywhere() -> None:
    layer = make_layer(context=True).float()
    x = torch.randn(1000, FEATURES, dtype=torch.float32)
    context = torch.randn(1000, CONTEXT, dtype=torch.float32)
    with compat.patch("nflows"), torch.no_grad():
        y, logabsdet = layer(x, context)
        for rows in (slice(0, 1), slice(205, 212), slice(500, 900)):
            some, logs = layer(x[rows], context[rows])
            assert torch.equal(some, y[rows]) and torch.equal(logs, logabsdet[rows])
        apart = layer(x.t().contiguous().t(), context)
    assert torch.equal(apart[0], y)


def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    layer = make_layer(context=True).float()
    x, context = torch.randn(2000, FEATURES).float(), torch.randn(2000, CONTEXT).float()
    before = torch.get_num_threads()
    found = []
    try:
        with compat.patch("nflows"):
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(run(layer, x, context, False))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert one is not None and two is not None and torch.equal(one, two)


def test_what_is_not_finite_stays_in_its_row() -> None:
    layer = make_layer().float()
    x = torch.randn(40, FEATURES, dtype=torch.float32)
    x[3, 0], x[5, 1], x[7, 2] = float("nan"), float("inf"), float("-inf")
    with compat.patch("nflows"), torch.no_grad():
        y, logabsdet = layer(x)
        clean = [i for i in range(40) if i not in (3, 5, 7)]
        expected = layer(x[clean])
    assert torch.equal(y[clean], expected[0]) and torch.equal(logabsdet[clean], expected[1])
    assert y[3, 0].isnan() and logabsdet[3].isnan()
    assert y[7, 2] == float("-inf")


@pytest.mark.parametrize("isa", _native.build_info().get("isa_supported", []))
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_every_instruction_set(isa: str, dtype: torch.dtype, tolerance: float) -> None:
    layer = make_layer(context=True, hidden_features=13, activation=torch.tanh).to(dtype)
    x, context = torch.randn(30, FEATURES).to(dtype), torch.randn(30, CONTEXT).to(dtype)
    expected = run(layer, x, context, False)
    before = _native.build_info()["isa"]
    try:
        _native.set_isa(isa)
        with compat.patch("nflows"):
            found = run(layer, x, context, False)
            assert counts() == (1, 0)
    finally:
        _native.set_isa(before)
    assert_same(found, expected, tolerance)


def test_a_monitor_sees_the_parts_and_a_layer_is_fused_again_after_it() -> None:
    layer = make_layer().eval()
    x = torch.randn(20, FEATURES)
    with compat.patch("nflows"), torch.no_grad():
        with InverseMonitor(layer) as monitor:
            layer.inverse(x)
        assert counts() == (0, 1)
        assert monitor.report().layers[0].largest_derivative is not None
        layer.inverse(x)
        assert counts() == (1, 1)
