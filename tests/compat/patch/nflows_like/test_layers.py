"""nflows' and normflows' spline layers: the parameters stay packed, and the details stay theirs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow import compat
from tests.compat.served import calls, counts

FEATURES, BINS = 3, 5
LINEAR = 3 * BINS - 1

LAYERS = {
    "nflows": ("nflows.transforms.coupling", "PiecewiseRationalQuadraticCouplingTransform"),
    "glasflow": (
        "glasflow.nflows.transforms.coupling",
        "PiecewiseRationalQuadraticCouplingTransform",
    ),
    "normflows": (
        "normflows.flows.neural_spline.coupling",
        "PiecewiseRationalQuadraticCoupling",
    ),
}
CDFS = {
    "nflows": "nflows.transforms.nonlinearities",
    "glasflow": "glasflow.nflows.transforms.nonlinearities",
    "normflows": "normflows.flows.neural_spline.coupling",
}


@pytest.fixture(params=LAYERS)
def library(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    pytest.importorskip(name)
    return name


class Net(nn.Module):
    """A conditioner that may tell its hidden units, and nflows' ResidualNet does."""

    def __init__(self, inputs: int, outputs: int, **told: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        nn.init.normal_(self.linear.weight)
        for name, value in told.items():
            setattr(self, name, value)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        result: Tensor = self.linear(inputs.flatten(1)) if inputs.dim() == 2 else self.conv(inputs)
        return result

    def conv(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(inputs.movedim(1, -1)).movedim(-1, 1)
        return result


def coupling(library: str, net: Callable[[int, int], nn.Module], **options: Any) -> Any:
    module: ModuleType = pytest.importorskip(LAYERS[library][0])
    mask = torch.tensor([0, 1, 0, 1, 0, 1])
    settings = {"num_bins": BINS, "tails": "linear", "tail_bound": 3.0, **options}
    return getattr(module, LAYERS[library][1])(mask, net, **settings).double()


def outcome(layer: Any, x: Tensor, inverse: bool = False) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    y, logabsdet = (layer.inverse if inverse else layer.forward)(x)
    parameters = list(layer.parameters())
    cotangents = (torch.linspace(-1, 1, y.numel()).double().view_as(y), torch.ones_like(logabsdet))
    return y, logabsdet, *torch.autograd.grad((y, logabsdet), [x, *parameters], cotangents)


def same(library: str, layer: Any, x: Tensor, served: int = 1) -> None:
    for inverse in (False, True):
        expected = outcome(layer, x, inverse)
        with compat.patch(library):
            found = outcome(layer, x, inverse)
            assert compat.patched()[library] == counts(kernel=served)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("told", [{"hidden_features": 9}, {"hidden_channels": 5}])
def test_coupling(
    library: str, told: dict[str, int], image: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = coupling(library, lambda i, o: Net(i, o, **told))
    x = 2 * torch.randn(4, 6, *((2, 3) if image else ())).double()
    same(library, layer, x)
    with compat.patch(library), calls(monkeypatch) as found:
        layer(x)
    (_, packed, heights, *_), *others = found
    assert packed.shape[-1] == LINEAR and heights is None and not others


def test_coupling_without_tails(library: str) -> None:
    layer = coupling(library, lambda i, o: Net(i, o, hidden_features=4), tails=None)
    same(library, layer, torch.rand(5, 6).double())
    with compat.patch(library), pytest.raises(Exception) as error:
        layer(1 + torch.rand(5, 6).double())
    assert error.type.__name__ in ("InputOutsideDomain", "RuntimeError", "IndexError")


def test_hidden_units_are_asked_for_at_call_time(library: str) -> None:
    layer = coupling(library, lambda i, o: Net(i, o, hidden_features=4))
    x = torch.randn(5, 6).double()
    layer(x)
    layer.transform_net.hidden_features = 400
    same(library, layer, x)
    del layer.transform_net.hidden_features
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(library, layer, x)


def test_a_wrapper_that_hides_the_hidden_units(library: str) -> None:
    """It changes the outputs of the library too, which warns."""
    layer = coupling(library, lambda i, o: Net(i, o, hidden_features=400))
    x = torch.randn(5, 6).double()
    plain, _ = layer(x)
    layer.transform_net = nn.Sequential(layer.transform_net)
    layer.transform_net.forward = lambda inputs, context: layer.transform_net[0](inputs)
    with pytest.warns(UserWarning, match="not scaled down") as own:
        expected, _ = layer(x)
    with compat.patch(library), pytest.warns(UserWarning, match="not scaled down") as patched:
        found, _ = layer(x)
    assert str(patched[0].message) == str(own[0].message)
    assert patched[0].filename == own[0].filename
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
    assert (found - plain).abs().max() > 0.01


def test_a_hidden_size_that_is_no_number(library: str) -> None:
    layer = coupling(library, lambda i, o: Net(i, o, hidden_features=torch.tensor(9)))
    same(library, layer, torch.randn(5, 6).double())


def test_the_conditioners_output_is_left_as_it_was(library: str) -> None:
    """The library divides it in place."""
    kept: list[Tensor] = []
    layer = coupling(library, lambda i, o: Net(i, o, hidden_features=4))
    layer.transform_net.register_forward_hook(lambda *args: kept.append(args[2]))
    with compat.patch(library):
        layer(torch.randn(5, 6).double())
    assert kept[0]._version == 0


def test_a_subclass_runs_its_own_method(library: str) -> None:
    layer = coupling(library, lambda i, o: Net(i, o, hidden_features=4))

    class Halved(type(layer)):  # type: ignore[misc]
        def _piecewise_cdf(self, inputs: Tensor, params: Tensor, inverse: bool = False) -> Any:
            return super()._piecewise_cdf(inputs, params / 2, inverse)

    layer.__class__ = Halved
    same(library, layer, torch.randn(5, 6).double())


@pytest.mark.parametrize("image", [False, True])
def test_an_unconditional_layer_sums_its_gradient_in_the_kernel(
    library: str, image: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip(CDFS[library])
    shape = (FEATURES, 2, 2) if image else (FEATURES,)
    layer = module.PiecewiseRationalQuadraticCDF(
        shape, num_bins=BINS, tails="linear", tail_bound=3.0, identity_init=False
    ).double()
    x = 2 * torch.randn(7, *shape).double()
    same(library, layer, x)
    with compat.patch(library), calls(monkeypatch) as found:
        layer(x)
    assert found[0][1].shape == (1, *shape, LINEAR)


def test_an_unconditional_layer_without_tails(library: str) -> None:
    module = pytest.importorskip(CDFS[library])
    layer = module.PiecewiseRationalQuadraticCDF(
        (FEATURES,), num_bins=BINS, identity_init=False
    ).double()
    same(library, layer, torch.rand(7, FEATURES).double())


@pytest.mark.parametrize("tails", ["circular", ["linear", "circular", "circular"] * 2])
def test_normflows_other_tails(tails: Any) -> None:
    layer = coupling(
        "normflows",
        lambda i, o: Net(i, o, hidden_features=4),
        tails=tails,
        apply_unconditional_transform=True,
    )
    same("normflows", layer, 4 * torch.rand(7, 6).double() - 2, served=2)


def test_normflows_bound_for_each_dimension() -> None:
    bound = torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0, 3.0]).double()
    layer = coupling("normflows", lambda i, o: Net(i, o, hidden_features=4), tail_bound=bound)
    same("normflows", layer, 3 * torch.randn(7, 6).double())
