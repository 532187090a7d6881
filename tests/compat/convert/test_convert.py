"""Affine couplings of every library become modified RQ splines: the parts that need no training."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustflow
from robustflow import nn as rnn
from robustflow.compat.convert import RescaledModifiedRQSpline, convert_affine
from robustflow.compat.srflow import CondAffineSeparatedAndCond, CondRQsplineSeparatedAndCond
from tests.compat.affine_flows import KINDS, Kind, SRFlow

CONTEXT = 3
LAYERS = 2


def variants() -> list[Any]:
    """Each way to make a flow, with a context where there is one."""
    return [
        pytest.param(kind, context, id=f"{name}{', conditional' if context else ''}")
        for name, kind in KINDS.items()
        for context in ((0, CONTEXT) if kind.conditional else (0,))
    ]


def made(kind: Kind, context: int, seed: int = 0) -> Any:
    """A flow in float64, away from the start, where little can be told from little."""
    torch.manual_seed(seed)
    model = kind.make(LAYERS, context).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def batch(context: int, count: int = 200, seed: int = 7) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    c = torch.randn(count, max(1, context), generator=generator, dtype=torch.float64)
    return x, c if context else None


def splines(model: nn.Module) -> list[RescaledModifiedRQSpline]:
    return [each for each in model.modules() if isinstance(each, RescaledModifiedRQSpline)]


def heads(kind: Kind, model: Any, context: int) -> list[str]:
    """Names of the last layers: what a conversion of a copy changes."""
    copied = copy.deepcopy(model)
    kind.convert(copied, *batch(context))
    before, after = dict(model.named_parameters()), dict(copied.named_parameters())
    renamed = {name.replace("fRQspline", "fAffine"): each for name, each in after.items()}
    return [
        name.removesuffix(".weight")
        for name, each in before.items()
        if name.endswith(".weight") and not torch.equal(each, renamed[name])
    ]


def randomise(model: nn.Module, converted_from: set[int]) -> None:
    """Give the zeros that a conversion made other values."""
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) not in converted_from and not parameter.any():
                parameter.copy_(0.5 * torch.randn_like(parameter))


@pytest.mark.parametrize(("kind", "context"), variants())
def test_only_last_layers_are_made_anew(kind: Kind, context: int) -> None:
    model = made(kind, context)
    last = [model.get_submodule(name) for name in heads(kind, model, context)]
    modules = list(model.modules())
    parameters = {id(each) for each in model.parameters()}
    remade = {id(each) for head in last for each in head.parameters()}
    widths = [head.weight.shape[0] for head in last]

    report = kind.convert(model, *batch(context))

    assert not report.kept and len(report.replaced) == len(splines(model)) >= LAYERS
    assert list(filter(lambda each: each in set(modules), model.modules())) == modules
    after = list(model.parameters())
    assert parameters - remade <= {id(each) for each in after}
    constants = {id(each) for spline in splines(model) for each in spline.parameters()}
    new = [each for each in after if id(each) not in parameters | constants]
    assert len(new) == len(remade) and not any(each.any() for each in new)
    made_by_all = sum(head.weight.shape[0] for head in last)
    assert made_by_all == 2 * sum(widths)
    assert all(each.requires_grad for each in new) and model.training is False


@pytest.mark.parametrize(("kind", "context"), variants())
def test_an_affine_that_is_constant_already_stays_the_same_flow(kind: Kind, context: int) -> None:
    model = made(kind, context)
    with torch.no_grad():
        for name in heads(kind, model, context):
            model.get_submodule(name).weight.zero_()
    x, c = batch(context)
    expected = kind.log_prob(model, x, c)
    kind.convert(model, x, c)
    torch.testing.assert_close(kind.log_prob(model, x, c), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("kind", "context"), variants())
def test_a_converted_flow_is_a_flow(kind: Kind, context: int) -> None:
    model = made(kind, context)
    before = {id(each) for each in model.parameters()}
    kind.convert(model, *batch(context))
    randomise(model, before)
    x, c = batch(context, count=5, seed=1)
    z = x.clone()
    back = kind.inverse(model, z, c)

    def log_prob(x: Tensor, c: Tensor | None) -> Tensor:
        return kind.log_prob(model, x[None], None if c is None else c[None])[0]

    # Of z, the density of its inverse image, by autograd: independent of the log-determinants.
    for index in range(len(z)):
        condition = None if c is None else c[index]

        def inverse(z: Tensor, condition: Tensor | None = condition) -> Tensor:
            context = None if condition is None else condition[None]
            return kind.inverse(model, z[None], context)[0]

        jacobian = torch.autograd.functional.jacobian(inverse, z[index])
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(z[index]).sum()
        expected = normal - jacobian.det().abs().log()
        found = log_prob(back[index], condition)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("kind", "context"), variants())
def test_weights_load_into_a_model_converted_alike(kind: Kind, context: int) -> None:
    model, other = made(kind, context), made(kind, context, seed=1)
    before = {id(each) for each in model.parameters()}
    kind.convert(model, *batch(context))
    kind.convert(other, *batch(context, seed=8))
    randomise(model, before)
    assert other.load_state_dict(model.state_dict(), strict=True)
    if other.__class__.__name__ == "SequenceINN":  # AllInOneBlock's permutation is in its state
        other.eval()
    x, c = batch(context, count=9, seed=2)
    torch.testing.assert_close(kind.log_prob(other, x, c), kind.log_prob(model, x, c))
    copied = copy.deepcopy(model)
    torch.testing.assert_close(kind.log_prob(copied, x, c), kind.log_prob(model, x, c))
    assert {id(each) for each in copied.modules()}.isdisjoint(id(each) for each in model.modules())


@pytest.mark.parametrize(("kind", "context"), variants())
def test_a_second_call_changes_nothing(kind: Kind, context: int) -> None:
    model = made(kind, context)
    kind.convert(model, *batch(context))
    state = copy.deepcopy(model.state_dict())
    report = kind.convert(model, *batch(context))
    assert report.replaced == () and report.kept == ()
    torch.testing.assert_close(dict(model.state_dict()), dict(state), atol=0, rtol=0)


def anatomy(model: nn.Module) -> list[Any]:
    """All that a model consists of, its tensors as the objects that they are."""
    return [
        (
            id(module),
            type(module),
            {
                name: {key: id(each) for key, each in value.items()}
                if name in ("_modules", "_parameters", "_buffers")
                else value
                for name, value in vars(module).items()
            },
        )
        for module in model.modules()
    ]


@pytest.mark.parametrize("failing_call", [1, 2])
@pytest.mark.parametrize(("kind", "context"), variants())
def test_an_error_leaves_the_model_as_it_was(kind: Kind, context: int, failing_call: int) -> None:
    model = made(kind, context).train()
    x, c = batch(context)
    expected = kind.log_prob(model, x, c)
    before = anatomy(model)
    state = dict(model.state_dict())
    calls = 0

    def run(model: Any, batch: Any) -> None:
        nonlocal calls
        calls += 1
        kind.log_prob(model, *batch)
        if calls == failing_call:
            raise ArithmeticError("planted")

    with pytest.raises(ArithmeticError, match="planted"):
        convert_affine(model, (x, c), run=run)
    assert calls == failing_call
    assert anatomy(model) == before
    assert model.state_dict().keys() == state.keys()
    assert torch.equal(kind.log_prob(model, x, c), expected)


@pytest.mark.parametrize(
    "name",
    [
        "robustflow",
        "nflows coupling",
        "glasflow",
        "normflows masked",
        "FrEIA GLOW",
        "zuko coupling",
        "SRFlow",
    ],
)
def test_converted_models_are_saved_whole(name: str) -> None:
    kind = KINDS[name]
    model = made(kind, 0)
    kind.convert(model, *batch(0))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    x, _ = batch(0, count=9)
    assert torch.equal(kind.log_prob(loaded, x, None), kind.log_prob(model, x, None))


def test_scale_shift_and_box_are_the_batch_s() -> None:
    torch.manual_seed(0)
    coupling: Any = rnn.Coupling(4, 3, rnn.Affine(), spatial_dims=0).double()
    nn.init.normal_(coupling.conditioner.trunk[-1].weight, std=0.5)
    nn.init.normal_(coupling.conditioner.trunk[-1].bias, std=0.5)
    x = 5 * torch.randn(1000, 4, dtype=torch.float64) + 2
    context = torch.randn(1000, 3, dtype=torch.float64)
    params = coupling.conditioner(x[:, :2], coupling.project(context))
    shift, logit = params.unflatten(1, (2, 2)).unbind(2)
    scale = torch.sigmoid(logit + 2) + 1e-4
    (row,) = convert_affine(coupling, (x, context)).replaced
    spline: Any = coupling.transform
    # (x + shift) * s, which is x * s + shift * s.
    torch.testing.assert_close(spline.log_scale, scale.log().mean(0))
    torch.testing.assert_close(spline.shift, (shift * scale).mean(0))
    values = x[:, 2:] * spline.log_scale.exp() + spline.shift
    low, high = values.quantile(0.005, dim=0), values.quantile(0.995, dim=0)
    torch.testing.assert_close(spline.centre, (low + high) / 2, atol=0.1, rtol=0)
    torch.testing.assert_close(spline.half_width, 0.6 * (high - low), atol=0.1, rtol=0)
    assert (row.name, row.channels, row.old) == ("", 2, "Coupling with Affine")
    edges = torch.stack([spline.centre - spline.half_width, spline.centre + spline.half_width])
    assert row.interval == pytest.approx((edges.min().item(), edges.max().item()))
    assert row.mean_log_scale == pytest.approx(spline.log_scale.mean().item())


@pytest.mark.parametrize("inverted", [False, True])
def test_the_inverse_is_bounded_whatever_the_parameters(inverted: bool) -> None:
    log_scale, shift = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([4.0, 0.0, -1.0])
    low, high = torch.tensor([-1.0, -20.0, 0.1]), torch.tensor([2.0, 30.0, 0.2])
    constants = [each.double() for each in (log_scale, shift, low, high)]
    spline = RescaledModifiedRQSpline(*constants, inverted=inverted)
    log_scale, shift, low, high = constants
    sizes = torch.tensor([1.0, 10.0, 1e3, 1e6], dtype=torch.float64).repeat_interleave(500)
    z = torch.randn(2000, 3, dtype=torch.float64) * sizes[torch.randperm(2000), None]
    params = torch.randn(2000, 12, dtype=torch.float64) * sizes[:, None]
    x, logabsdet = spline(z, params, inverse=not inverted)
    # Where the spline's own shift and the constants alone would put it:
    own = params.unflatten(1, (3, 4))[:, :, 3] * (high - low) / 2
    centre = (z - own - shift) * torch.exp(-log_scale)
    moved = (x - centre).abs()
    rounding = 1e-12 * (z.abs() + own.abs()) * torch.exp(-log_scale)
    assert bool((moved <= (high - low) * torch.exp(-log_scale) + rounding).all())
    assert bool((moved.amax(0) > 0.5 * (high - low) * torch.exp(-log_scale)).all())
    assert bool(logabsdet.isfinite().all())


def test_a_layer_that_occurs_twice_is_one_layer() -> None:
    coupling = rnn.Coupling(4, 3, rnn.Affine(), spatial_dims=0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = coupling
            self.layers = nn.ModuleList([coupling, coupling])

        def forward(self, x: Tensor, context: Tensor) -> Tensor:
            for layer in (self.first, *self.layers):
                x, _ = layer(x.flip(1), context)
            return x

    model = Twice()
    report = robustflow.convert_affine(model, (torch.randn(50, 4), torch.randn(50, 3)))
    assert [row.name for row in report.replaced] == ["first"]
    assert model.first is model.layers[0] is model.layers[1] is coupling
    assert isinstance(coupling.transform, RescaledModifiedRQSpline)


def test_networks_that_are_shared_are_made_anew_once() -> None:
    nf = pytest.importorskip("normflows")
    net = nf.nets.MLP([1, 8, 2])
    flows = [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(2, mode="swap")] * 2
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), flows)
    assert len(convert_affine(model, torch.randn(64, 2)).replaced) == 1
    assert net.net[-1].weight.shape == (4, 8)

    net = nf.nets.MLP([1, 8, 2])
    couplings = [nf.flows.AffineCouplingBlock(net) for _ in range(2)]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), couplings)
    assert len(convert_affine(model, torch.randn(64, 2)).replaced) == 2
    assert net.net[-1].weight.shape == (4, 8)


def test_a_last_layer_shared_with_a_layer_that_stays_keeps_both() -> None:
    nf = pytest.importorskip("normflows")
    net = nf.nets.MLP([1, 8, 2])
    used, unused = (nf.flows.AffineCouplingBlock(net) for _ in range(2))
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [used])
    model.spare = unused
    x = torch.randn(64, 2)
    expected = model.log_prob(x)
    report = convert_affine(model, x)
    reasons = {row.name: row.reason for row in report.kept}
    assert not report.replaced and len(reasons) == 2
    assert "did not pass through" in reasons["spare.flows.1"]
    assert "spare.flows.1" in reasons["flows.0.flows.1"]
    assert torch.equal(model.log_prob(x), expected)


def test_evaluation_leaves_running_statistics_and_modes_alone() -> None:
    transforms: Any = pytest.importorskip("nflows.transforms")
    nets = pytest.importorskip("nflows.nn.nets")
    layer = transforms.AffineCouplingTransform(
        [0, 1], lambda i, o: nets.ResidualNet(i, o, 8, use_batch_norm=True, num_blocks=1)
    )
    model = nn.Sequential(layer, nn.BatchNorm1d(2))
    model[1].eval()
    before = {name: each.clone() for name, each in model.named_buffers()}
    convert_affine(model, torch.randn(64, 2) + 3, run=lambda model, x: model[1](model[0](x)[0]))
    assert isinstance(layer.rescaled, RescaledModifiedRQSpline)
    assert layer.training and not model[1].training and model.training
    for name, each in before.items():
        assert torch.equal(each, model.get_buffer(name)), name


def test_a_flow_used_from_its_other_end_is_converted_from_there() -> None:
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(0)
    coupling = zuko.flows.GeneralCouplingTransform(2, hidden_features=(8,)).double()
    autoregressive = zuko.flows.MaskedAutoregressiveTransform(2, hidden_features=(8,)).double()
    base = zuko.flows.UnconditionalDistribution(
        zuko.distributions.DiagNormal,
        torch.zeros(2, dtype=torch.float64),
        torch.ones(2, dtype=torch.float64),
        buffer=True,
    )
    flow = zuko.flows.Flow([coupling.inv, autoregressive.inv], base)
    for layer in (coupling, autoregressive):
        nn.init.zeros_(layer.hyper[-1].weight)
        nn.init.normal_(layer.hyper[-1].bias)
    x = torch.randn(64, 2, dtype=torch.float64)
    expected = flow().log_prob(x)
    report = convert_affine(flow, x)
    assert len(report.replaced) == 2 and all(spline.inverted for spline in splines(flow))
    torch.testing.assert_close(flow().log_prob(x), expected)


def test_pictures_are_converted_by_channel() -> None:
    torch.manual_seed(0)
    steps = rnn.flow_step(6, 4, rnn.Affine(), hidden_channels=8)
    flow = rnn.ConditionalFlow([steps]).double().eval()
    injector: Any = steps[2]
    nn.init.normal_(injector.conditioner.trunk[-1].bias, std=0.3)
    x = torch.randn(3, 6, 5, 7, dtype=torch.float64)
    context = torch.randn(3, 4, 5, 7, dtype=torch.float64)
    expected = flow.log_prob(x, context)
    report = convert_affine(flow, {"x": x, "context": context})
    assert [row.channels for row in report.replaced] == [6, 3]
    torch.testing.assert_close(flow.log_prob(x, context), expected)
    assert flow.sample(2, context[:1]).shape == (1, 2, 6, 5, 7)


@pytest.mark.parametrize("noise", [False, True])
def test_srflow_s_std_conditional_net_is_kept(noise: bool) -> None:
    torch.manual_seed(0)
    model = SRFlow(2, 4, std_mode=True).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    layer: Any = model.steps[2]
    trunk = [layer.fAffine_std.get_parameter(name) for name in ("0.weight", "2.weight")]
    x, context, std = torch.randn(64, 2), torch.randn(64, 4), torch.randn(64, 3, 1, 1)
    args = (x, context, std) if noise else (x, context)
    report = convert_affine(model, args)
    nets = ("fFeatures", "fAffine", "fAffine_std")
    assert {row.name for row in report.replaced[:3]} == {f"steps.2.{net}" for net in nets}
    assert issubclass(type(layer), CondRQsplineSeparatedAndCond)
    assert [layer.fRQspline_std.get_parameter(n) for n in ("0.weight", "2.weight")] == trunk
    assert set(layer.rescaled) == {"fFeatures", "fRQspline", "fRQspline_std"}
    spline = layer.rescaled["fRQspline_std"]
    assert bool((spline.log_scale != 0).all()) is noise
    assert spline.half_width.item() > 0.1
    assert model.log_prob(x, context, std).isfinite().all()
    options = {"conditionInFeaDim": 4, "CondAffineSeparatedAndCond": {"hidden_channels": 32}}
    plain = CondRQsplineSeparatedAndCond(2, {"network_G": {"flow": options}}, std_mode=True)
    keys = {key for key in layer.state_dict() if not key.startswith("rescaled.")}
    assert keys == set(plain.state_dict())


def test_srflow_s_std_conditional_net_that_is_not_used() -> None:
    """The published network has one in its first level, too."""
    options = {"conditionInFeaDim": 4, "std_channels": 3}
    model = nn.Sequential(CondAffineSeparatedAndCond(4, {"network_G": {"flow": options}}, False))
    z, ft, std = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3), torch.rand(8, 3, 3, 3)
    convert_affine(model, (z, ft, std), run=lambda model, batch: model[0](z, ft=ft, std=std))
    layer: Any = model[0]
    assert layer.fRQspline_std.get_parameter("4.weight").shape[0] == 2 * 4
    y, logdet = layer(z, ft=ft, std=std)
    back, zero = layer(y, logdet, reverse=True, ft=ft, std=std)
    torch.testing.assert_close(back, z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(zero, torch.zeros(8), rtol=0, atol=1e-3)
    torch.testing.assert_close(layer(z, ft=ft)[0], y, rtol=0, atol=0)


def reason(model: nn.Module, *args: Any) -> str:
    report = convert_affine(model, args)
    assert not report.replaced
    (row,) = report.kept
    assert row.reason in str(report)
    return row.reason


def test_what_cannot_be_replaced_stays_and_says_why() -> None:
    x2, x4, context = torch.randn(64, 2), torch.randn(64, 4), torch.randn(64, 3)
    split = rnn.Split(4, 3, spatial_dims=0)
    assert "bounded" in reason(split, x4, context)

    coupling: Any = rnn.Coupling(4, 3, rnn.Affine(), spatial_dims=0)
    nn.init.normal_(coupling.conditioner.trunk[-1].weight)
    nn.utils.parametrizations.weight_norm(coupling.conditioner.trunk[-1])
    assert "parametrised" in reason(coupling, x4, context)
    coupling = rnn.Coupling(4, 3, rnn.Affine(), spatial_dims=0)
    assert "not finite" in reason(coupling, x4 / 0, context)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 4)

        def forward(self, z: Tensor, context: Tensor) -> Tensor:
            return self.layer(torch.cat([z, context], dim=1)).tanh()

    assert "goes straight" in reason(rnn.Coupling(4, 3, rnn.Affine(), Net()), x4, context)

    class InPlace(Net):
        def forward(self, z: Tensor, context: Tensor) -> Tensor:
            return self.layer(torch.cat([z, context], dim=1)).mul_(2)

    assert "goes straight" in reason(rnn.Coupling(4, 3, rnn.Affine(), InPlace()), x4, context)
    model = nn.ModuleDict({"unused": rnn.Coupling(4, 3, rnn.Affine()), "used": nn.Linear(2, 2)})
    report = convert_affine(model, x2, run=lambda model, x: model["used"](x))
    assert "did not pass" in report.kept[0].reason and report.kept[0].name == "unused"


def test_reasons_in_nflows() -> None:
    transforms: Any = pytest.importorskip("nflows.transforms")
    nets = pytest.importorskip("nflows.nn.nets")
    affine: Any = transforms.AffineCouplingTransform
    x = torch.randn(64, 2)

    def net(inputs: int, outputs: int) -> nn.Module:
        return nets.ResidualNet(inputs, outputs, 8, num_blocks=1)

    assert "additive" in reason(transforms.AdditiveCouplingTransform([0, 1], net), x)

    class Own(affine):
        def forward(self, inputs: Tensor, context: Any = None) -> Any:
            return super().forward(2 * inputs, context)

    assert "overrides CouplingTransform.forward" in reason(Own([0, 1], net), x)

    class Cubic(affine):
        def _coupling_transform_forward(self, inputs: Tensor, transform_params: Tensor) -> Any:
            return super()._coupling_transform_forward(inputs**3, transform_params)

    assert "not affine" in reason(Cubic([0, 1], net), x)


def test_scale_activations_of_subclasses_are_measured() -> None:
    transforms: Any = pytest.importorskip("nflows.transforms")
    nets = pytest.importorskip("nflows.nn.nets")
    affine: Any = transforms.AffineCouplingTransform

    class Exp(affine):
        def _scale_and_shift(self, transform_params: Tensor) -> tuple[Tensor, Tensor]:
            return torch.full_like(transform_params[:, :1], 7.0), transform_params[:, :1]

    layer = Exp([0, 1], lambda i, o: nets.ResidualNet(i, o, 8, num_blocks=1))
    (row,) = convert_affine(layer, torch.randn(64, 2)).replaced
    assert row.mean_log_scale == pytest.approx(torch.tensor(7.0).log().item())


def test_reasons_in_freia_and_zuko() -> None:
    modules = pytest.importorskip("FrEIA.modules")
    zuko = pytest.importorskip("zuko")
    x = (torch.randn(64, 2),)

    def net(inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs)

    options = {"subnet_constructor": net}
    assert "volume" in reason(modules.GINCouplingBlock([(2,)], **options), x)
    assert "volume" in reason(modules.AllInOneBlock([(2,)], gin_block=True, **options), x)
    assert "additive" in reason(modules.NICECouplingBlock([(2,)], **options), x)
    elementwise = zuko.flows.ElementWiseTransform(2)
    flow = zuko.flows.Flow(elementwise, zuko.flows.MAF(2).base)
    assert "every condition" in reason(flow, x[0])
    spline = zuko.flows.NSF(2, transforms=1, bins=4, hidden_features=(8,))
    report = convert_affine(spline, x[0])
    assert not report.replaced and not report.kept


def test_freia_s_conditional_transform_is_converted() -> None:
    modules = pytest.importorskip("FrEIA.modules")
    torch.manual_seed(0)
    block = modules.ConditionalAffineTransform(
        [(2,)], [(3,)], subnet_constructor=lambda i, o: nn.Linear(i, o)
    ).double()
    nn.init.zeros_(block.subnet.weight)
    x, c = torch.randn(64, 2).double(), torch.randn(64, 3).double()
    (expected,), logabsdet = block((x,), [c])
    assert len(convert_affine(block, ((x,), [c])).replaced) == 1
    (y,), found = block((x,), [c])
    torch.testing.assert_close((y, found), (expected, logabsdet))
    torch.testing.assert_close(block((y,), [c], rev=True)[0][0], x)


def test_zuko_s_conditional_elementwise_transform_is_converted() -> None:
    zuko = pytest.importorskip("zuko")
    layer = zuko.flows.ElementWiseTransform(2, 3, hidden_features=(8,))
    flow = zuko.flows.Flow(layer, zuko.flows.MAF(2).base)
    x, c = torch.randn(64, 2), torch.randn(64, 3)
    assert len(convert_affine(flow, {"x": x, "c": c}).replaced) == 1
    assert "RescaledModifiedRQTransform" in repr(flow)
    assert layer.hyper.out_features == layer.hyper[-1].out_features == 8
    z = layer(c)(x)
    torch.testing.assert_close(layer(c).inv(z), x)
    assert flow(c[0]).sample((5,)).shape == (5, 2)
    with pytest.raises(ValueError, match=r"'x' and"):
        convert_affine(zuko.flows.MAF(2), {"c": c})


def test_half_precision_and_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    model: Any = KINDS["robustflow"].make(2, 3)
    x, c = torch.randn(64, 2), torch.randn(64, 3)
    convert_affine(model, (x, c))
    randomise(model, set())
    model.log_prob(x, c).sum().backward()
    grads = {name: each.grad for name, each in model.named_parameters()}
    assert not [name for name, grad in grads.items() if grad is None or not grad.any()]
    with torch.autocast("cpu", torch.bfloat16):
        assert model.log_prob(x, c).isfinite().all()
        other: Any = KINDS["robustflow"].make(2, 3)
        convert_affine(other, (x, c))
    assert {each.dtype for each in other.parameters()} == {torch.float32}
    spline = splines(model)[0].bfloat16()
    y, logabsdet = spline(torch.randn(4, 1).bfloat16(), torch.zeros(4, 4).bfloat16())
    assert y.dtype == torch.bfloat16 and logabsdet.dtype == torch.float32


def test_inference_mode_leaves_parameters_that_train() -> None:
    model: Any = KINDS["nflows coupling"].make(2, 0)
    with torch.inference_mode():
        convert_affine(model, torch.randn(64, 2))
    model.log_prob(torch.randn(8, 2)).sum().backward()
    assert splines(model)[0].log_scale.grad is not None


def test_bad_arguments_say_what_is_wanted() -> None:
    coupling, x = rnn.Coupling(4, 3, rnn.Affine(), spatial_dims=0), torch.randn(8, 4)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got Tensor"):
        convert_affine(x, x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"to must be one of 'modified_rq_spline', got 'spline'"):
        convert_affine(coupling, x, "spline")
    with pytest.raises(TypeError, match=r"run must be called as run\(model, batch\), got int"):
        convert_affine(coupling, x, run=3)  # type: ignore[arg-type]
    for wrapper in (torch.compile, nn.DataParallel):
        with pytest.raises(ValueError, match=r"model is wrapped as \w+: convert model\.\w+"):
            convert_affine(wrapper(coupling), x)  # type: ignore[arg-type]
