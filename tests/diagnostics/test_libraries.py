"""The monitor on the layers of every library, as their users call them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustflow
from robustflow import nn as rnn
from robustflow._intercept import _sites
from robustflow.diagnostics._find import find_layers
from robustflow.diagnostics._layers import Layer, Watcher, layers_of
from robustflow.diagnostics.describe import describe, parts_of
from robustflow.diagnostics.guards import clamp_inverse
from robustflow.diagnostics.monitor import InverseMonitor
from tests.compat.affine_flows import KINDS, Kind

CONTEXT, LAYERS = 3, 3


@pytest.fixture(autouse=True)
def _no_method_stays_replaced() -> Iterator[None]:
    yield
    assert not _sites


def variants(*names: str) -> list[Any]:
    return [
        pytest.param(kind, context, id=f"{name}{', conditional' if context else ''}")
        for name, kind in KINDS.items()
        for context in ((0, CONTEXT) if kind.conditional else (0,))
        if not names or name in names
    ]


def made(kind: Kind, context: int) -> Any:
    torch.manual_seed(0)
    model = kind.make(LAYERS, context).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch(context: int, count: int = 20) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    c = torch.randn(count, max(1, context), generator=generator, dtype=torch.float64)
    return z, c if context else None


class Recorder(Watcher):
    """What each call returned beside its values: log-determinants, of the whole sample."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[Layer, Any] = {}

    def call(
        self, layer: Layer, density: bool, inputs: Sequence[Tensor], run: Any, **others: Any
    ) -> Any:
        result = run()
        if not density:
            log = torch.as_tensor(result if isinstance(result, Tensor) else result[1])
            self.results[layer] = log.clone()  # FrEIA adds to it
        return result


@torch.no_grad()
@pytest.mark.parametrize(("kind", "context"), variants())
def test_samples_are_the_same_and_every_layer_is_seen(kind: Kind, context: int) -> None:
    model = made(kind, context)
    z, c = batch(context)
    expected = kind.inverse(model, z, c)
    with InverseMonitor(model) as monitor:
        x = kind.inverse(model, z, c)
    torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)
    report = monitor.report()
    names = [each.name for each in report.layers]
    modules = {name for name, _ in model.named_modules()}
    for name in names:  # or a method, or a parameter, of FrEIA's blocks
        assert name in modules or name.rpartition(".")[0] in modules
    assert set(names) <= {part.name for part in parts_of(describe(model))}
    watched = [layer for layer in layers_of(find_layers(model)) if layer.kind != "reshape"]
    assert set(names) == {layer.name for layer in watched}
    assert {each.calls for each in report.layers} == {1} and report.samples == len(z)
    assert monitor.contaminated.shape[:2] == x.shape
    first, last = report.layers[0], report.layers[-1]
    assert last.output_magnitude <= float(x.abs().max()) + 1e-12
    assert first.input_magnitude <= float(z.abs().max()) + 1e-12


# Kinds whose layers change one element of the two, so that its log-derivative is the sample's.
ONE_ELEMENT = [name for name in KINDS if "autoregressive" not in name and "zuko" not in name]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "context"), variants(*ONE_ELEMENT))
def test_derivatives_are_the_librarys_own(kind: Kind, context: int) -> None:
    model = made(kind, context)
    z, c = batch(context)
    recorder = Recorder()
    recorder.start(find_layers(model))
    try:
        with InverseMonitor(model) as monitor:
            kind.inverse(model, z, c)
    finally:
        recorder.stop()
    results = {layer.name: result for layer, result in recorder.results.items() if layer.affine}
    checked = 0
    for record in monitor.report().layers:
        if record.kind == "self-conditional":
            gains = results[record.name].exp()
            assert record.smallest_derivative == pytest.approx(float(gains.min()), rel=1e-5)
            assert record.largest_derivative == pytest.approx(float(gains.max()), rel=1e-5)
            checked += 1
    assert checked >= LAYERS


@pytest.mark.parametrize(
    ("kind", "context"),
    variants(*(name for name in KINDS if name not in ONE_ELEMENT)),
)
def test_derivatives_are_the_jacobians(kind: Kind, context: int) -> None:
    """Of autoregressive layers and zuko's: the diagonal of each layer's Jacobian."""
    model = made(kind, context)
    z, c = batch(context)
    with torch.no_grad(), InverseMonitor(model, layers=_last(model)) as monitor:
        kind.inverse(model, z, c)
    (record,) = monitor.report().layers
    # The first layer of sampling alone: its input is z.
    slopes = []
    for index in range(len(z)):
        each = None if c is None else c[index : index + 1]

        def one(x: Tensor, each: Tensor | None = each) -> Tensor:
            values: list[Tensor] = []
            keeper = Keeper(values)
            keeper.start(_last_found(model))
            try:
                kind.inverse(model, x[None], each)
            finally:
                keeper.stop()
            return values[0][0]

        slopes.append(torch.autograd.functional.jacobian(one, z[index]).diagonal())
    diagonal = torch.stack(slopes)
    changed = diagonal[:, (diagonal != 1).any(dim=0)]
    assert record.smallest_derivative == pytest.approx(float(changed.min()), rel=1e-4)
    assert record.largest_derivative == pytest.approx(float(changed.max()), rel=1e-4)


class Keeper(Watcher):
    """Keeps what a layer returns."""

    def __init__(self, values: list[Tensor]) -> None:
        super().__init__()
        self.values = values

    def call(
        self, layer: Layer, density: bool, inputs: Sequence[Tensor], run: Any, **others: Any
    ) -> Any:
        result = run()
        self.values += layer.outputs(result)
        return result


def _last_found(model: nn.Module) -> list[Any]:
    layers = [each for each in find_layers(model) if getattr(each, "kind", "") != "reshape"]
    with_kinds = [each for each in layers if getattr(each, "kind", "1x1") not in ("1x1", "actnorm")]
    first = with_kinds[0] if type(model).__module__.startswith("normflows") else with_kinds[-1]
    return [first]


def _last(model: nn.Module) -> list[str]:
    """The name of the layer that sampling calls first."""
    return [each.name for each in _last_found(model)]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "context"), variants())
def test_an_explosion_is_found_in_the_layer_where_it_is(kind: Kind, context: int) -> None:
    """One layer's last network layer puts out -20 for shift and raw scale, all others 0."""
    model = made(kind, context)
    conditionals = [layer for layer in layers_of(find_layers(model)) if layer.conditional]
    chosen = conditionals[len(conditionals) // 2]
    for layer in conditionals:
        for head in _heads(model, layer):
            for parameter in head.parameters():
                parameter.zero_()
    for head in _heads(model, chosen):
        head.get_parameter("bias").fill_(-20.0)
    z, c = batch(context)
    with InverseMonitor(model) as monitor:
        kind.inverse(model, z, c)
    assert {onset.layer for onset in monitor.onsets} == {chosen.name}
    samples = {onset.sample for onset in monitor.onsets}
    assert len(samples) > len(z) / 2  # of some, shift and scale cancel
    reached = monitor.contaminated.flatten(1).any(1).nonzero()[:, 0]
    assert set(reached.tolist()) == samples


def _heads(model: nn.Module, layer: Layer) -> list[nn.Module]:
    """The last layers of a flow layer's networks."""
    block, _, method = layer.name.rpartition(".")
    names = [layer.name]
    if method in ("_coupling1", "_coupling2"):
        number = {"_coupling1": 2, "_coupling2": 1}[method]
        nets = (f"{block}.{net}{number}" for net in ("subnet", "subnet_s", "subnet_t"))
        names = [name for name in nets if name in dict(model.named_modules())]
    heads = []
    for name in names:
        inside = model.get_submodule(name).modules()
        weights = [(each, dict(each.named_parameters(recurse=False))) for each in inside]
        heads.append([each for each, own in weights if own.keys() >= {"weight", "bias"}][-1])
    return heads


AFFINE = [name for name in KINDS if name != "normflows autoregressive"]  # whose forward samples


@torch.no_grad()
@pytest.mark.parametrize("guard_first", [True, False], ids=["guard first", "monitor first"])
@pytest.mark.parametrize(("kind", "context"), variants(*AFFINE))
def test_a_monitor_sees_what_a_guard_makes_of_the_scales(
    kind: Kind, context: int, guard_first: bool
) -> None:
    model = made(kind, context)
    z, c = batch(context)
    with InverseMonitor(model) as plain:
        kind.inverse(model, z, c)
    largest = max(each.largest_derivative or 0.0 for each in plain.report().layers)
    most = max(1.0, largest**0.5)
    expected = kind.inverse(model, z, c)
    guard = clamp_inverse(model, max_gain=most) if guard_first else None
    with InverseMonitor(model) as monitor:
        guard = guard or clamp_inverse(model, max_gain=most)
        try:
            x = kind.inverse(model, z, c)
        finally:
            guard.restore()
    gains = [each.largest_derivative for each in monitor.report().layers if each.largest_derivative]
    assert max(gains) == pytest.approx(most, rel=1e-4)
    assert not torch.equal(x, expected)
    torch.testing.assert_close(kind.inverse(model, z, c), expected)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "context"), variants())
def test_a_report_in_the_middle_records_nothing(kind: Kind, context: int) -> None:
    model = made(kind, context)
    z, c = batch(context)
    with InverseMonitor(model) as monitor:
        kind.inverse(model, z, c)
        first = monitor.report()
        assert monitor.report() == first
    assert monitor.report() == first and len(monitor.runs) == 1


# ---- pictures: what an onset reaches, against NaN that the library itself carries ----------------


class PlantedNet(nn.Module):
    """nflows' order of parameters, shifts and then scales; a collapsed scale at one place."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.place: tuple[int, ...] | None = None
        nn.init.normal_(self.net.weight, std=0.02)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        params = self.net(x).clone()
        if self.place is not None:
            params[self.place] = -20.0
        return params


def nan_through(transforms: Sequence[Any], call: Callable[[Any, Tensor], Tensor], z: Tensor) -> Any:
    for each in transforms:
        z = call(each, z)
    return z.isnan()


@torch.no_grad()
@pytest.mark.parametrize("package", ["nflows", "glasflow.nflows"])
def test_nflows_on_pictures(package: str) -> None:
    t = pytest.importorskip(f"{package}.transforms")
    masks = [torch.tensor([1, 0, 1, 0]), torch.tensor([0, 1, 0, 1])]
    couplings = [t.AffineCouplingTransform(masks[i % 2], PlantedNet) for i in range(4)]
    chain = [
        t.ActNorm(4),
        couplings[0],
        t.RandomPermutation(4),
        couplings[1],
        t.InverseTransform(t.OneByOneConvolution(4)),
        couplings[2],
        couplings[3],
        t.SqueezeTransform(2),
    ]
    model = t.CompositeTransform(chain[::1]).eval()
    # The squeeze comes first in sampling: from (16, 6, 6) to (4, 12, 12).
    z = torch.randn(2, 16, 6, 6)
    couplings[3].transform_net.place = (1, 3, 5, 7)  # the second scale, of channel 3
    with InverseMonitor(model) as monitor:
        model.inverse(z)
    (onset,) = monitor.onsets
    assert (onset.layer, onset.kind) == ("_transforms.6", "self-conditional")
    assert (onset.sample, onset.position) == (1, (3, 5, 7)) and onset.shape == (4, 12, 12)
    couplings[3].transform_net.place = None
    marked = torch.zeros(2, 4, 12, 12)
    marked[1, 3, 5, 7] = math.nan
    expected = nan_through(chain[5::-1], lambda each, z: each.inverse(z)[0], marked)
    assert torch.equal(monitor.contaminated, expected) and not bool(expected.all())
    kinds = {each.name: each.kind for each in monitor.report().layers}
    assert kinds["_transforms.4._transform"] == "1x1" and kinds["_transforms.0"] == "actnorm"
    assert "_transforms.7" not in kinds and "_transforms.2" not in kinds  # nothing changes there


@torch.no_grad()
def test_nflows_in_several_scales() -> None:
    t = pytest.importorskip("nflows.transforms")
    model = t.MultiscaleCompositeTransform(2)
    coupling = t.AffineCouplingTransform([1, 0, 1, 0], PlantedNet)
    hidden = model.add_transform(coupling, (4, 4, 4))
    model.add_transform(t.ActNorm(2), hidden)
    coupling.transform_net.place = (0, 2, 2, 2)  # the first scale
    with InverseMonitor(model.eval()) as monitor:
        x, _ = model.inverse(torch.randn(3, 64))
    assert len(monitor.runs) == 1 and monitor.contaminated.shape == x.shape == (3, 4, 4, 4)
    (onset,) = monitor.onsets
    assert (onset.layer, onset.position) == ("_transforms.0", (0, 2, 2))
    assert int(monitor.contaminated.sum()) == 1 and bool(monitor.contaminated[0, 0, 2, 2])


def spline_flow(library: str) -> Any:
    if library == "nflows":
        t = pytest.importorskip("nflows.transforms")
        nets = pytest.importorskip("nflows.nn.nets")
        chain = [
            t.PiecewiseRationalQuadraticCouplingTransform(
                [0, 1, 1], lambda i, o: nets.ResidualNet(i, o, 8), tails="linear", tail_bound=3.0
            ),
            t.ReversePermutation(3),
            t.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                3, 8, tails="linear", tail_bound=3.0
            ),
            t.LULinear(3),
        ]
        return t.CompositeTransform(chain)
    if library == "normflows":
        nf = pytest.importorskip("normflows")
        layers = [
            nf.flows.CoupledRationalQuadraticSpline(3, 1, 8),
            nf.flows.LULinearPermute(3),
            nf.flows.AutoregressiveRationalQuadraticSpline(3, 1, 8),
        ]
        return nf.NormalizingFlow(nf.distributions.DiagGaussian(3, trainable=False), layers)
    flows = pytest.importorskip("zuko.flows")
    return flows.NSF(3, transforms=2, hidden_features=(8,))


SAMPLE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "nflows": lambda model, z: model.inverse(z)[0],
    "normflows": lambda model, z: model(z),
    "zuko": lambda model, z: model().transform.inv(z),
}


@torch.no_grad()
@pytest.mark.parametrize("patched", [False, True], ids=["plain", "patched"])
@pytest.mark.parametrize("library", SAMPLE)
def test_splines_patched_or_not(library: str, patched: bool) -> None:
    torch.manual_seed(1)
    model, sample = spline_flow(library).eval(), SAMPLE[library]
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    z = torch.randn(30, 3)
    plain = InverseMonitor(model)
    with plain:
        sample(model, z)
    patch = robustflow.compat.patch(library) if patched else None
    try:
        expected = sample(model, z)
        with InverseMonitor(model) as monitor:
            x = sample(model, z)
    finally:
        if patch is not None:
            patch.restore()
    if patched:  # unwatched, a layer is fused; watched, it is not
        torch.testing.assert_close(x, expected)
    else:
        assert torch.equal(x, expected)
    assert not monitor.onsets
    for here, there in zip(monitor.report().layers, plain.report().layers, strict=True):
        assert (here.name, here.kind) == (there.name, there.kind)
        assert here.output_variance == pytest.approx(there.output_variance, rel=1e-3)
        if here.kind == "self-conditional" or library == "zuko":
            assert here.largest_derivative == pytest.approx(there.largest_derivative, rel=1e-3)
            assert here.smallest_derivative == pytest.approx(there.smallest_derivative, rel=1e-3)


@torch.no_grad()
def test_normflows_in_blocks_and_scales() -> None:
    nf = pytest.importorskip("normflows")
    torch.manual_seed(0)
    flows = [
        [nf.flows.GlowBlock(4, 8), nf.flows.Squeeze()],
        [nf.flows.GlowBlock(2, 8, split_mode="channel_inv")],
    ]
    merges = [nf.flows.Merge()]
    base = [nf.distributions.DiagGaussian((4, 4, 4)), nf.distributions.DiagGaussian((1, 8, 8))]
    model = nf.MultiscaleFlow(base, flows, merges, class_cond=False).eval()
    z = [torch.randn(2, 4, 4, 4), torch.randn(2, 1, 8, 8)]
    model.forward_and_log_det(z)  # initialises the actnorms
    net = flows[0][0].flows[0].flows[1].param_map
    real = net.net[-1].forward

    def planted(x: Tensor) -> Tensor:
        params = real(x)
        params[1, 3, 2, 1] = -20.0  # the scale of the second changed channel
        return params

    net.net[-1].forward = planted
    with InverseMonitor(model) as monitor:
        x, _ = model.forward_and_log_det(z)
    assert len(monitor.runs) == 1 and monitor.contaminated.shape == x.shape
    (onset,) = monitor.onsets
    assert (onset.layer, onset.kind) == ("flows.0.0.flows.0.flows.1", "self-conditional")
    assert (onset.sample, onset.position) == (1, (3, 2, 1))
    marked = torch.zeros(2, 4, 4, 4)
    marked[1, 3, 2, 1] = math.nan
    merge = merges[0]
    here = nan_through([*flows[0][0].flows[1:], flows[0][1]], lambda each, z: each(z)[0], marked)
    joined = merge([torch.zeros(2, 1, 8, 8).masked_fill(here, math.nan), torch.zeros(2, 1, 8, 8)])[
        0
    ]
    expected = nan_through(flows[1][0].flows, lambda each, z: each(z)[0], joined)
    assert torch.equal(monitor.contaminated, expected)


@torch.no_grad()
def test_freia_graphs_on_pictures() -> None:
    pytest.importorskip("FrEIA")
    from FrEIA import framework as ff
    from FrEIA import modules as fm

    torch.manual_seed(0)

    def subnet(inputs: int, outputs: int) -> nn.Module:
        net = nn.Sequential(nn.Conv2d(inputs, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, outputs, 1))
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.05)
        return net

    condition = ff.ConditionNode(3, 6, 6)
    start_node = ff.InputNode(1, 12, 12)
    nodes = [start_node, ff.Node(start_node, fm.IRevNetDownsampling, {})]
    for _ in range(2):
        options = {"subnet_constructor": subnet, "clamp": 3.0}
        nodes.append(ff.Node(nodes[-1], fm.GLOWCouplingBlock, options, conditions=condition))
        nodes.append(ff.Node(nodes[-1], fm.PermuteRandom, {"seed": 1}))
    split = ff.Node(nodes[-1], fm.Split, {})
    block = ff.Node(split.out0, fm.RNVPCouplingBlock, {"subnet_constructor": subnet})
    joined = ff.Node([block.out0, split.out1], fm.Concat, {})
    nodes += [split, block, joined, condition, ff.OutputNode(joined)]
    model = ff.GraphINN(nodes).eval()
    z, c = torch.randn(2, 4, 6, 6), torch.randn(2, 3, 6, 6)
    name = next(
        name
        for name, each in reversed(list(model.named_modules()))
        if isinstance(each, fm.GLOWCouplingBlock)
    )
    net = model.get_submodule(f"{name}.subnet1")
    real = net[-1].forward

    def planted(x: Tensor) -> Tensor:
        params = real(x)
        params[0, 3, 2, 2] = -40.0  # the shift of its second channel
        return params

    net[-1].forward = planted
    with InverseMonitor(model) as monitor:
        x, _ = model(z, c=[c], rev=True)
    net[-1].forward = real
    assert len(monitor.runs) == 1 and monitor.contaminated.shape == x.shape
    (onset,) = monitor.onsets
    assert (onset.layer, onset.sample) == (f"{name}._coupling2", 0)
    assert onset.position == (3, 2, 2) and onset.shape == (4, 6, 6)
    block = model.get_submodule(name)
    marked = torch.zeros(2, 4, 6, 6)
    marked[0, 3, 2, 2] = math.nan
    first, second = marked.split(2, dim=1)
    first = block._coupling1(first, torch.cat([second, c], dim=1), rev=True)[0]
    value = (torch.cat([first, second], dim=1),)
    names = list(model.module_list)
    for module in reversed(names[: names.index(block)]):
        takes = isinstance(module, fm.GLOWCouplingBlock)
        value = module(value, c=[c], rev=True)[0] if takes else module(value, rev=True)[0]
    assert torch.equal(monitor.contaminated, value[0].isnan())
    kinds = [each.kind for each in monitor.report().layers]
    assert set(kinds) == {"self-conditional"} and len(kinds) == 6


# ---- SRFlow's published code, whose licence keeps it out of here: stand-ins of its interface -----


class CondAffineSeparatedAndCond(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        half = in_channels // 2
        self.fAffine = nn.Sequential(
            nn.Conv2d(half, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, in_channels, 3, padding=1),
        )
        for parameter in self.fAffine.parameters():
            nn.init.normal_(parameter, std=0.05)

    def forward(
        self, input: Tensor, logdet: Any = None, reverse: bool = False, ft: Tensor | None = None
    ) -> Any:
        z1, z2 = input.chunk(2, dim=1)
        shift, raw = self.fAffine(z1)[:, 0::2], self.fAffine(z1)[:, 1::2]
        scale = torch.sigmoid(raw + 2) + 1e-4
        z2 = z2 / scale - shift if reverse else (z2 + shift) * scale
        return torch.cat([z1, z2], dim=1), logdet


class Split2d(nn.Module):
    """exp(logs) without a bound, in the published way."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels // 2, channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(
        self, input: Tensor, logdet: Any = 0.0, reverse: bool = False, eps: Tensor | None = None
    ) -> Any:
        assert reverse and eps is not None
        mean, logs = self.conv(input).chunk(2, dim=1)
        return torch.cat([input, mean + logs.exp() * eps], dim=1), logdet


class SqueezeLayer(nn.Module):
    def forward(self, input: Tensor, logdet: Any = None, reverse: bool = False) -> Any:
        shuffle = nn.functional.pixel_shuffle if reverse else nn.functional.pixel_unshuffle
        return shuffle(input, 2), logdet


class PublishedNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                SqueezeLayer(),
                CondAffineSeparatedAndCond(4),
                Split2d(4),
                CondAffineSeparatedAndCond(2),
            ]
        )

    def forward(self, z: Tensor, eps: Tensor) -> Tensor:
        logdet = z.new_zeros(len(z))
        for layer in reversed(self.layers):
            options = {"eps": eps} if isinstance(layer, Split2d) else {}
            z, logdet = layer(input=z, logdet=logdet, reverse=True, **options)
        return z


@torch.no_grad()
def test_the_published_network() -> None:
    torch.manual_seed(0)
    model = PublishedNetwork().eval()
    z, eps = 0.5 * torch.randn(2, 2, 8, 8), 0.5 * torch.randn(2, 2, 8, 8)
    with InverseMonitor(model) as monitor:
        x = model(z, eps)
    assert not monitor.onsets and monitor.contaminated.shape == x.shape == (2, 1, 16, 16)
    kinds = [(each.name, each.kind) for each in monitor.report().layers]
    assert kinds == [
        ("layers.3", "self-conditional"),
        ("layers.2", "split"),
        ("layers.1", "self-conditional"),
    ]
    split = model.layers[2]
    assert isinstance(split, Split2d) and split.conv.bias is not None
    split.conv.bias[2:] = 6.0  # logs
    eps[:] = 0.01
    eps[1, 1, 4, 4] = 1.0
    with InverseMonitor(model) as monitor:
        model(z, eps)
    (onset,) = monitor.onsets
    assert (onset.layer, onset.kind, onset.sample) == ("layers.2", "split", 1)
    assert onset.position == (3, 4, 4)
    # Channel 3 decides over none in the coupling behind it.
    assert monitor.contaminated[1, 0, 8:10, 8:10].tolist() == [[False, False], [False, True]]
    assert int(monitor.contaminated.sum()) == 1


# ---- signals: the same on one dimension ----------------------------------------------------------


def test_a_signal_flow() -> None:
    """A flow over audio-like (N, C, L), conditional on features of its length."""
    layers: list[nn.Module] = []
    torch.manual_seed(0)
    for _ in range(3):
        layers += rnn.flow_step(4, 5, rnn.Affine(), spatial_dims=1, hidden_channels=8)
    flow: Any = rnn.ConditionalFlow([layers]).eval()
    context = torch.zeros(2, 5, 40)
    with torch.no_grad():
        coupling: Any = flow.get_submodule("levels.0.layers.7")
        # A scale that collapses where the first feature is large, as out of distribution.
        coupling.conditioner.context_layer.weight.zero_()
        coupling.conditioner.context_layer.weight[0, 0, 1] = 1.0
        coupling.conditioner.trunk[1].weight.zero_()
        coupling.conditioner.trunk[1].weight[0, 0] = 1.0
        coupling.conditioner.trunk[3].weight[1, 0, 1] = -1.0
        context[1, 0, 17] = 20.0
        with InverseMonitor(flow) as calm:
            flow.sample(6, context[:1], temperature=0.5, generator=torch.Generator().manual_seed(0))
        with InverseMonitor(flow) as monitor:
            x = flow.sample(6, context, temperature=0.5, generator=torch.Generator().manual_seed(0))
    assert not calm.onsets
    assert {onset.layer for onset in monitor.onsets} == {"levels.0.layers.7"}
    assert {onset.sample for onset in monitor.onsets} == set(range(6, 12))  # of the second context
    assert {onset.position for onset in monitor.onsets} == {(2, 17)}
    mask = monitor.contaminated.view(x.shape)
    assert not bool(mask[0].any()) and bool((x.abs() > 50)[1].any())
    assert not bool((x.abs() > 50)[~mask].any())
    # One more coupling of two convolutions of 3 follows: two positions on each side.
    assert mask[1].flatten(0, 1).any(0).nonzero()[:, 0].tolist() == [15, 16, 17, 18, 19]
