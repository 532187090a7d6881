"""Certificates of the flow libraries' models: what their own code does never beats them."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow import distributions
from robustflow.compat.adapters import adapters
from robustflow.diagnostics import Certificate, Range, certify
from robustflow.diagnostics.describe import Part, describe, parts_of
from tests.compat import affine_flows, flows, freia_standin
from tests.compat.affine_flows import KINDS

ATAN = math.exp(2 * 0.636 * math.pi / 2)

# What the inverse of one affine transform multiplies by at most, as its library has it.
GAINS = {
    "SRFlow": 1e4,
    "robustflow": 1e4,
    "robustflow named": 1e3,
    "robustflow autoregressive": math.inf,
    "nflows coupling": 1e3,
    "nflows autoregressive": 1e3,
    "glasflow": 1e3,
    "normflows coupling": math.inf,
    "normflows masked": math.inf,
    "normflows autoregressive": 1.001,  # it multiplies by the scale when it samples
    "FrEIA GLOW": ATAN,
    "FrEIA RNVP": ATAN,
    "FrEIA one-sided": ATAN,
    "FrEIA all in one": math.exp(2),
    "zuko autoregressive": 1e3,
    "zuko coupling": 1e3,
    "zuko masked coupling": 1e3,
}
EVERY = pytest.mark.parametrize("name", KINDS)


def made(name: str, layers: int = 2) -> Any:
    torch.manual_seed(0)
    kind = KINDS[name]
    model: Any = kind.make(layers, int(kind.conditional))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def inverse_rows(certificate: Certificate) -> list[Any]:
    return [row for row in certificate.rows if row.quantity == "inverse derivative"]


@EVERY
def test_every_affine_transform_is_bounded_by_its_library_s_scale(name: str) -> None:
    certificate = certify(made(name))
    rows = inverse_rows(certificate)
    assert len(rows) == (4 if name in ("SRFlow", "FrEIA GLOW", "FrEIA RNVP") else 2)
    for row in rows:
        assert isinstance(row.value, Range)
        assert row.value.high == pytest.approx(GAINS[name])
        assert row.passed == (GAINS[name] < 100)
    ratios = [row for row in certificate.rows if row.quantity == "tail ratio"]
    assert len(ratios) == len(rows) and not any(row.passed for row in ratios)
    assert all(row.layer for row in rows)
    assert not [row for row in certificate.rows if row.quantity == "not bounded"]


@contextmanager
def largest_params(model: nn.Module) -> Iterator[dict[str, float]]:
    """By transform, the largest number that its conditioner makes: no shift is larger."""
    found: dict[str, float] = {}
    layers = []
    for name, module in model.named_modules():
        for adapter in adapters("robustflow.compat.convert"):
            layer = adapter.find(module)
            if layer is None or isinstance(layer, str):
                continue

            def observe(
                part: str,
                x: Tensor,
                params: tuple[Tensor, ...],
                *_: Any,
                name: str = name,
                **__: Any,
            ) -> None:
                key = ".".join(filter(None, (name, part)))
                found[key] = max(float(each.abs().max()) for each in params)

            layer.observe = observe
            layer.watch()
            layers.append(layer)
    yield found
    for layer in layers:
        layer.end()


@pytest.mark.parametrize("name", [name for name in KINDS if math.isfinite(GAINS[name])])
def test_no_sample_of_a_library_beats_the_growth_bound(name: str) -> None:
    """Through the library's own code, far from anything familiar, given the shifts."""
    kind, model = KINDS[name], made(name).double()
    growth = certify(model).growth
    closest = 0.0
    for size in (1.0, 10.0, 1e3):
        context = size * torch.randn(64, 1).double() if kind.conditional else None
        z = size * torch.randn(64, 2).double()
        with largest_params(model) as shifts, torch.no_grad():
            x = kind.inverse(model, z, context)
        assert set(shifts) == set(growth.shifts)
        given = growth.given(shifts)
        limit = given.A * z.square().mean(dim=1).sqrt() + given.B
        found = x.square().mean(dim=1).sqrt()
        assert bool((found <= limit).all())
        closest = max(closest, float((found / limit).max()))
    assert closest > 1e-8  # of a product of worst cases


@EVERY
def test_converted_models_pass(name: str) -> None:
    kind, model = KINDS[name], made(name)
    x = 2 * torch.randn(128, 2)
    context = torch.randn(128, 1) if kind.conditional else None
    kind.convert(model, x, context)
    certificate = certify(model)
    assert certificate.passed, str(certificate)
    assert all(row.passed is not False for row in inverse_rows(certificate))
    scales = [row for row in certificate.rows if row.layer.endswith(".scale")]
    assert len(scales) == len(inverse_rows(certificate))
    A, B = certificate.growth
    assert math.isfinite(A) and math.isfinite(B)


@pytest.mark.parametrize("name", flows.FLOWS)
def test_spline_flows_pass_and_no_sample_beats_their_bound(name: str) -> None:
    """Their shiftless splines leave nothing out of B: it holds for any latent."""
    _, flow = flows.make(name)
    certificate = certify(flow)
    assert certificate.passed and not certificate.growth.shifts, str(certificate)
    A, B = certificate.growth
    for size in (0.5, 3.0, 50.0):
        z = size * torch.randn(64, flows.FEATURES, dtype=torch.float64)
        with torch.no_grad():
            x = sampled(flow, z)
        found, norm = (each.square().mean(dim=1).sqrt() for each in (x, z))
        assert bool((found <= A * norm + B).all())


def sampled(flow: Any, z: Tensor) -> Tensor:
    if hasattr(flow, "flow"):  # zuko
        result: Tensor = flow.flow().transform.inv(z)
    elif hasattr(flow, "_transform"):
        result = flow._transform.inverse(z)[0]
    else:
        result = flow.forward(z)
    return result


def nflows() -> Any:
    return pytest.importorskip("nflows.transforms")


def freia() -> Any:
    return pytest.importorskip("FrEIA.modules")


def normflows() -> Any:
    return pytest.importorskip("normflows")


def zuko_constant(kind: str, *args: Tensor, **options: Any) -> Any:
    lazy = pytest.importorskip("zuko.lazy")
    transforms = pytest.importorskip("zuko.transforms")
    return lazy.UnconditionalTransform(getattr(transforms, kind), *args, **options)


def matrix(size: int = 4) -> Tensor:
    return torch.randn(size, size) + 2 * torch.eye(size)


FIXED: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "nflows LU": (lambda: nflows().LULinear(4, identity_init=False), (4,)),
    "nflows QR": (lambda: nflows().QRLinear(4, num_householder=2), (4,)),
    "nflows SVD": (lambda: nflows().SVDLinear(4, num_householder=2), (4,)),
    "nflows 1x1": (lambda: nflows().OneByOneConvolution(4), (4, 2, 2)),
    "nflows actnorm": (lambda: nflows().ActNorm(4), (4,)),
    "nflows batch norm": (lambda: nflows().BatchNorm(4), (4,)),
    "nflows standardising": (
        lambda: nflows().PointwiseAffineTransform(torch.randn(4), torch.rand(4) + 0.1),
        (4,),
    ),
    "nflows Householder": (lambda: nflows().HouseholderSequence(4, 3), (4,)),
    "nflows permutation": (lambda: nflows().ReversePermutation(4), (4,)),
    "nflows inverted": (lambda: nflows().InverseTransform(nflows().LULinear(4)), (4,)),
    "FrEIA actnorm": (lambda: freia().ActNorm([(4,)]), (4,)),
    "FrEIA matrix": (
        lambda: freia().FixedLinearTransform([(4,)], M=matrix(), b=torch.randn(4)),
        (4,),
    ),
    "FrEIA 1x1": (lambda: freia().Fixed1x1Conv([(4, 2, 2)], M=matrix()), (4, 2, 2)),
    "FrEIA rotation": (lambda: freia().OrthogonalTransform([(4,)]), (4,)),
    "FrEIA Householder": (lambda: freia().HouseholderPerm([(4,)], n_reflections=2), (4,)),
    "FrEIA Haar": (lambda: freia().HaarDownsampling([(1, 4, 4)], rebalance=0.3), (4, 2, 2)),
    "FrEIA Haar up": (lambda: freia().HaarUpsampling([(4, 2, 2)], rebalance=0.3), (1, 4, 4)),
    "FrEIA squeeze": (lambda: freia().IRevNetDownsampling([(1, 4, 4)]), (4, 2, 2)),
    "FrEIA scaling": (lambda: freia().LearnedElementwiseScaling([(4,)]), (4,)),
    "FrEIA permutation": (lambda: freia().PermuteRandom([(4,)]), (4,)),
    "normflows 1x1": (lambda: normflows().flows.Invertible1x1Conv(4), (4, 2, 2)),
    "normflows 1x1 LU": (lambda: normflows().flows.Invertible1x1Conv(4, True), (4, 2, 2)),
    "normflows affine": (lambda: normflows().flows.InvertibleAffine(4), (4,)),
    "normflows LU": (lambda: normflows().flows.LULinearPermute(4, identity_init=False), (4,)),
    "normflows constant": (lambda: normflows().flows.AffineConstFlow((4,)), (4,)),
    "normflows permutation": (lambda: normflows().flows.Permute(4), (4,)),
    "normflows reversed": (
        lambda: pytest.importorskip("normflows.flows.base").Reverse(
            normflows().flows.AffineConstFlow((4,))
        ),
        (4,),
    ),
    "zuko permutation": (
        lambda: zuko_constant("PermutationTransform", torch.tensor([2, 0, 3, 1]), buffer=True),
        (4,),
    ),
    "zuko rotation": (lambda: zuko_constant("RotationTransform", torch.randn(4, 4)), (4,)),
    "zuko LU": (lambda: zuko_constant("LULinearTransform", matrix()), (4,)),
    "zuko affine": (
        lambda: zuko_constant("MonotonicAffineTransform", torch.randn(4), torch.randn(4)),
        (4,),
    ),
}


def sampling(layer: Any, z: Tensor) -> Tensor:
    """A layer's map from latents to data, by the library's own code; z is one vector."""
    module = type(layer).__module__
    if module.startswith("FrEIA"):
        result: Tensor = layer((z[None].clone(),), rev=True, jac=False)[0][0][0]
    elif module.startswith("normflows"):
        result = layer(z[None])[0][0]
    elif module.startswith("zuko"):
        result = layer().inv(z)
    else:
        result = layer.inverse(z[None])[0][0]
    return result


@pytest.mark.parametrize("name", FIXED)
def test_constant_layers_are_measured_on_their_values(name: str) -> None:
    """Gain and offset: those of the Jacobian of the library's own inverse."""
    torch.manual_seed(3)
    make, shape = FIXED[name]
    layer = make().double().eval()
    if hasattr(layer, "running_var"):
        layer.running_var.uniform_(0.5, 2)
    if hasattr(layer, "init_on_next_batch"):
        layer.init_on_next_batch = False
    if "rotation" not in name and "matrix" not in name and "1x1" not in name[:9]:
        with torch.no_grad():
            for parameter in layer.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    part = parts(layer)
    z = torch.randn(*shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda z: sampling(layer, z), z)
    jacobian = jacobian.reshape(z.numel(), z.numel())
    gain = float(torch.linalg.matrix_norm(jacobian, 2))
    offset = float(sampling(layer, torch.zeros_like(z)).detach().square().mean().sqrt())
    gains = [each.inverse.gain for each in part]
    assert math.prod(gains) == pytest.approx(gain, rel=1e-6)
    if len(part) == 1:
        assert part[0].inverse.constant == pytest.approx(offset, rel=1e-6, abs=1e-12)
    assert certify(layer).passed


def parts(layer: nn.Module) -> list[Part]:
    return list(parts_of(describe(layer)))


def glasflow_coupling(activation: Any) -> nn.Module:
    realnvp = pytest.importorskip("glasflow.flows").RealNVP
    flow: nn.Module = realnvp(2, 1, n_neurons=4, scale_activation=activation)
    return flow


@pytest.mark.parametrize(
    ("activation", "high", "words"),
    [
        ("nflows", 1e3, "sigmoid(a + 2) + 0.001"),
        ("nflows_general", 1e3, "min(softplus(a) + 0.001, 3)"),
        ("log2", math.exp(2), "exp(2 (2 sigmoid(a) - 1))"),
        (torch.exp, math.inf, "exp(a)"),
    ],
)
def test_scale_functions_are_told_from_their_values(
    activation: Any, high: float, words: str
) -> None:
    (row,) = inverse_rows(certify(glasflow_coupling(activation)))
    assert row.value.high == pytest.approx(high)
    assert words in row.formula


def test_a_scale_function_that_is_not_known_fails_by_name() -> None:
    certificate = certify(glasflow_coupling(lambda x: 1 + x**2))
    assert not certificate.passed
    assert "not bounded: unknown scale function _transform._transforms.0" in str(certificate)


def subnet(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs)


@pytest.mark.parametrize(
    ("block", "options", "high", "ratio"),
    [
        ("GLOWCouplingBlock", {"clamp_activation": "TANH"}, math.exp(2), math.exp(4)),
        ("GLOWCouplingBlock", {"clamp_activation": "SIGMOID"}, math.exp(2), math.exp(4)),
        ("RNVPCouplingBlock", {"clamp": 1.0}, ATAN**0.5, ATAN),
        ("GINCouplingBlock", {}, ATAN, ATAN**2),  # of two channels: twice, less half of it
        ("NICECouplingBlock", {}, 1.0, 1.0),
    ],
)
def test_freia_s_clamps(block: str, options: Any, high: float, ratio: float) -> None:
    layer = getattr(freia(), block)([(4,)], subnet_constructor=subnet, **options)
    certificate = certify(layer)
    for row in inverse_rows(certificate):
        assert row.value.high == pytest.approx(high)
    ratios = [row for row in certificate.rows if row.quantity == "tail ratio"]
    assert len(ratios) == 2
    assert all(row.value == pytest.approx(ratio) for row in ratios)
    # Both halves of a block are transformed, each once.
    A, _ = certificate.growth
    assert pytest.approx(high) == A


def test_a_clamp_of_one_s_own_is_not_bounded() -> None:
    layer = freia().GLOWCouplingBlock(
        [(4,)], subnet_constructor=subnet, clamp_activation=lambda u: u
    )
    assert "not bounded: unknown clamp _coupling1 (GLOWCouplingBlock)" in str(certify(layer))


def test_no_logits_beat_freia_s_gin_block() -> None:
    """Its documentation says exp(clamp); less its mean, a log-scale reaches nearly twice that."""
    size = 16
    layer = freia().GINCouplingBlock([(size,)], subnet_constructor=subnet).double()
    (half, _) = parts(layer)
    x = torch.randn(1, size // 2, dtype=torch.float64)
    shift = torch.zeros_like(x)
    logits = torch.full_like(x, 1e9)
    logits[0, 0] = -1e9

    class Always(nn.Module):
        def forward(self, u: Tensor) -> Tensor:
            return torch.cat([logits, shift], dim=1)

    layer.subnet2 = Always()
    found = layer._coupling1(x, x, rev=True)[0] / x
    assert math.exp(3) < float(found.max()) <= half.inverse.gain * (1 + 1e-9)
    assert float(found.max()) == pytest.approx(half.inverse.gain)


def test_freia_over_its_depth() -> None:
    model = affine_flows.freia_flow("GLOWCouplingBlock")(8, 1)
    certificate = certify(model)
    (row,) = [row for row in certificate.rows if row.quantity == "gain over the depth"]
    assert row.value == pytest.approx(ATAN**8) and row.passed is False
    assert "over 16 transforms of at most 7.3747 each" in row.formula


@pytest.fixture
def freia_splines(monkeypatch: pytest.MonkeyPatch) -> Any:
    """FrEIA's main branch where it is installed, and a stand-in for it elsewhere."""
    modules = freia()
    if not hasattr(modules, "RationalQuadraticSpline"):
        for name in ("RationalQuadraticSpline", "ElementwiseRationalQuadraticSpline"):
            monkeypatch.setattr(modules, name, getattr(freia_standin, name), raising=False)
    return modules


def test_freia_s_conditional_tail_slope_fails(freia_splines: Any) -> None:
    layer = freia_splines.RationalQuadraticSpline([(4,)], subnet_constructor=subnet)
    certificate = certify(layer)
    assert {row.quantity for row in certificate.failures} >= {"inverse derivative", "tail ratio"}
    assert "a conditional tail slope" in str(certificate)
    identity = certify(
        freia_splines.RationalQuadraticSpline(
            [(4,)], subnet_constructor=subnet, identity_tails=True
        )
    )
    assert not identity.passed  # of any size, the box may hold any value
    assert certify(
        freia_splines.RationalQuadraticSpline(
            [(4,)], subnet_constructor=subnet, identity_tails=True, domain_clamping=6.0
        )
    ).passed


@pytest.mark.parametrize("identity_tails", [False, True])
def test_no_parameters_beat_freia_s_clamped_box(freia_splines: Any, identity_tails: bool) -> None:
    layer = freia_splines.ElementwiseRationalQuadraticSpline(
        [(500,)], bins=4, identity_tails=identity_tails, domain_clamping=6.0
    ).double()
    (part,) = parts(layer)
    proven = part.bounds
    assert proven is not None and proven.tail is not None
    raw = layer.spline_parameters
    y = torch.randn(1, 500, dtype=torch.float64) * 10
    for size in (1.0, 10.0, 100.0):
        with torch.no_grad():
            raw.copy_(size * torch.randn_like(raw))
        counts = raw.expand(1, *raw.shape)
        constrained = layer.constrain_parameters(layer.split_parameters(counts, 500))
        left, bottom = (constrained[edge][0, :, 0].abs() for edge in ("left", "bottom"))
        x = layer((y,), rev=True)[0][0][0].detach().abs()
        line = proven.inverse
        shift = torch.maximum(left, bottom) if line.shift else torch.zeros_like(left)
        limit = line.gain * y[0].abs() + line.constant + line.shift * shift + 1e-9
        # The textbook formula gives NaN where bins are narrower than rounding.
        assert bool((x <= limit)[x.isfinite()].all()) and float(x.isfinite().double().mean()) > 0.9
        slopes = constrained["deltas"][0, :, 0] if not identity_tails else torch.ones(1)
        assert float(slopes.min()) >= proven.tail.low * (1 - 1e-12)
        assert float(slopes.max()) <= proven.tail.high * (1 + 1e-12)


@pytest.mark.parametrize(
    ("univariate", "shapes", "passed"),
    [
        (distributions.ModifiedRQSplineTransform, [(4,)], True),
        (distributions.RQSplineTransform, [(5,), (5,), (4,)], True),
        (distributions.ConditionalAffineTransform, [(2,)], False),
    ],
)
def test_zuko_with_our_transforms(univariate: Any, shapes: Any, passed: bool) -> None:
    zuko = pytest.importorskip("zuko.flows")
    flow = zuko.MAF(3, context=2, transforms=2, univariate=univariate, shapes=shapes)
    certificate = certify(flow)
    assert certificate.passed == passed
    assert len(inverse_rows(certificate)) == 2


def test_transforms_that_are_not_known() -> None:
    transforms = nflows()
    certificate = certify(transforms.CompositeTransform([transforms.Tanh(), transforms.ActNorm(2)]))
    assert "not bounded: unknown layer _transforms.0 (Tanh)" in str(certificate)
    zuko = pytest.importorskip("zuko.flows")
    certificate = certify(zuko.SOSPF(2, transforms=1))
    assert "unknown univariate transform" in str(certificate) and not certificate.passed


def test_multiscale_flows() -> None:
    """A level's latents pass through the layers nearer the data, and no others."""
    transforms = nflows()
    flow = transforms.MultiscaleCompositeTransform(2)
    shape = flow.add_transform(transforms.ActNorm(4), (4, 2, 2))
    flow.add_transform(transforms.ActNorm(2), shape)
    with torch.no_grad():
        flow._transforms[0].log_scale.fill_(-1.0)
        flow._transforms[1].log_scale.fill_(3.0)
        flow._transforms[1].shift.fill_(2.0)
    # The deeper half shrinks by e^-3; the latents that left grow by e alone.
    A, B = certify(flow).growth
    assert pytest.approx(math.e) == A
    assert pytest.approx(math.e * math.sqrt(0.5) * 2 * math.exp(-3)) == B

    nf = normflows()
    blocks = [[nf.flows.GlowBlock(4, 4), nf.flows.Squeeze()], [nf.flows.GlowBlock(2, 4)]]
    model = nf.MultiscaleFlow(
        [nf.distributions.DiagGaussian((4, 2, 2)), nf.distributions.DiagGaussian((1, 4, 4))],
        blocks,
        [nf.flows.Merge()],
    )
    certificate = certify(model)
    kinds = {row.kind for row in certificate.rows}
    assert kinds == {"self-conditional", "actnorm", "1x1", "model"}
    assert not [row for row in certificate.rows if row.quantity == "not bounded"]
    assert certificate.rows[0].layer == "flows.1.0.flows.2"


def test_libraries_that_are_not_imported_are_not_asked_for() -> None:
    assert "robustflow.compat.srflow" in sys.modules
    known = [
        module.__name__.rpartition(".")[2] for module in adapters("robustflow.diagnostics.describe")
    ]
    assert known[:2] == ["layers", "srflow"]
    assert importlib.import_module("robustflow.diagnostics.describe.layers") is not None
