"""The published couplings of SRFlow's family: same mathematics, same checkpoints, projected once.

The oracle is the published mathematics, stated slowly: one convolution of the concatenation,
actnorm as an affine map, the spline's bins by masks, the textbook root, de Boor's recursion.
"""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow.benchmarks import eager
from robustflow.compat import srflow
from robustflow.compat.srflow import _once, condition_once
from robustflow.nn import Affine, ModifiedRQSpline

FEATURES, CHANNELS, SIZE = 10, 5, (4, 3)
OPT: dict[str, Any] = {"network_G": {"flow": {"conditionInFeaDim": FEATURES, "std_channels": 3}}}
AFFINE, REPARAM, SPLINE, BSPLINE = (
    srflow.CondAffineSeparatedAndCond,
    srflow.CondAffineReparamSeparatedAndCond,
    srflow.CondRQsplineSeparatedAndCond,
    srflow.CondBsplineSeparatedAndCond,
)
Layer = (
    srflow.CondAffineSeparatedAndCond
    | srflow.CondRQsplineSeparatedAndCond
    | srflow.CondBsplineSeparatedAndCond
)
Kind = (
    type[srflow.CondAffineSeparatedAndCond]
    | type[srflow.CondRQsplineSeparatedAndCond]
    | type[srflow.CondBsplineSeparatedAndCond]
)
KINDS = [AFFINE, REPARAM, SPLINE, BSPLINE]
OWN_NETS = {AFFINE: "fAffine", REPARAM: "fAffine", SPLINE: "fRQspline", BSPLINE: "fBspline"}
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
both_directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


# The published mathematics ------------------------------------------------------------------


def published_net(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    for layer, padding in ((0, 1), (2, 0)):
        x = functional.conv2d(x, state[f"{name}.{layer}.weight"], padding=padding)
        norm = f"{name}.{layer}.actnorm."
        x = (x + state[norm + "bias"]) * torch.exp(state[norm + "logs"])
        x = torch.relu(x)
    x = functional.conv2d(x, state[f"{name}.4.weight"], state[f"{name}.4.bias"], padding=1)
    return x * torch.exp(3 * state[f"{name}.4.logs"])


def published_affine(
    z: Tensor, h: Tensor, reverse: bool, reciprocal: bool, eps: float = 1e-4
) -> tuple[Tensor, Tensor]:
    shift, scale = h[:, 0::2], torch.sigmoid(h[:, 1::2] + 2) + eps
    if reciprocal:
        scale = 1 / scale
    logdet = torch.log(scale).sum(dim=(1, 2, 3))
    return (z / scale - shift, -logdet) if reverse else ((z + shift) * scale, logdet)


def published_spline(
    z: Tensor, h: Tensor, reverse: bool, box: float = 0.5
) -> tuple[Tensor, Tensor]:
    batch, channels, height, width = z.shape
    packed = h.view(batch, channels, 4, height, width).permute(0, 1, 3, 4, 2)
    w, q, d, shift = packed.unbind(-1)
    w = 2 * box * (0.998 * torch.sigmoid(w) + 0.001)
    q = 2 * box * (0.998 * torch.sigmoid(q) + 0.001)
    d = 0.999 * torch.exp(d) + 0.001
    value = z - shift if reverse else z
    result, logdet = value.clone(), torch.zeros_like(z)
    inside = (value > -box) & (value < box)
    for is_upper in (False, True):
        knot = -box + (q if reverse else w)
        mask = inside & ((value >= knot) if is_upper else (value < knot))
        size_x, size_y = (2 * box - w, 2 * box - q) if is_upper else (w, q)
        x0, y0 = (w - box, q - box) if is_upper else (torch.tensor(-box),) * 2
        one = torch.ones_like(d)
        d0, d1 = (d, one) if is_upper else (one, d)
        size_x, size_y, d0, d1 = size_x[mask], size_y[mask], d0[mask], d1[mask]
        x0, y0 = x0.expand_as(z)[mask], y0.expand_as(z)[mask]
        slope = size_y / size_x
        bend = d0 + d1 - 2 * slope
        if reverse:
            u = value[mask] - y0
            a, b = u * bend + size_y * (slope - d0), size_y * d0 - u * bend
            theta = 2 * (-slope * u) / (-b - torch.sqrt(b * b + 4 * a * slope * u))
            result[mask] = x0 + theta * size_x
        else:
            theta = (value[mask] - x0) / size_x
        both = theta * (1 - theta)
        below = slope + bend * both
        if not reverse:
            result[mask] = y0 + size_y * (slope * theta**2 + d0 * both) / below
        above = d1 * theta**2 + 2 * slope * both + d0 * (1 - theta) ** 2
        change = torch.log(slope**2 * above / below**2)
        logdet[mask] = -change if reverse else change
    return result if reverse else result + shift, logdet.sum(dim=(1, 2, 3))


def published(
    layer: Layer,
    z: Tensor,
    reverse: bool,
    ft: Tensor,
    std: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """z and the change of the log-determinant, from the layer's kind and state_dict alone."""
    state = layer.state_dict() if state is None else state
    own = OWN_NETS[type(layer)]

    def transform(z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(layer, SPLINE):
            return published_spline(z, h, reverse)
        if isinstance(layer, BSPLINE):
            return eager.cubic_bspline(z, h, inverse=reverse)
        return published_affine(z, h, reverse, isinstance(layer, REPARAM))

    def on_second_half(z: Tensor, name: str, condition: Tensor) -> tuple[Tensor, Tensor]:
        z1, z2 = z[:, : CHANNELS // 2], z[:, CHANNELS // 2 :]
        z2, change = transform(z2, published_net(state, name, torch.cat([z1, condition], dim=1)))
        return torch.cat([z1, z2], dim=1), change

    steps: list[Callable[[Tensor], tuple[Tensor, Tensor]]]
    steps = [lambda z: transform(z, published_net(state, "fFeatures", ft))]
    if std is not None:
        condition = functional.interpolate(std, size=z.shape[2:], mode="bicubic")
        steps.append(lambda z: on_second_half(z, own + "_std", condition))
    steps.append(lambda z: on_second_half(z, own, ft))
    total = z.new_zeros(z.shape[0])
    for step in steps[::-1] if reverse else steps:
        z, change = step(z)
        total = total + change
    return z, total


# Helpers ------------------------------------------------------------------------------------


def trained(layer: Layer, dtype: torch.dtype = torch.float64) -> Layer:
    """As after training: nothing is at a special value, no actnorm waits for a batch."""
    layer = layer.to(dtype)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            size = 0.1 if name.endswith("logs") else parameter[0].numel() ** -0.5
            parameter.copy_(size * torch.randn_like(parameter))
    layer.load_state_dict(layer.state_dict())
    return layer.eval()


def layer_and_data(kind: Kind, batch: int = 2, **more: Any) -> tuple[Layer, Tensor, Tensor]:
    layer = trained(kind(CHANNELS, OPT, **more))
    z = 0.5 * torch.randn(batch, CHANNELS, *SIZE, dtype=torch.float64)
    return layer, z, torch.randn(batch, FEATURES, *SIZE, dtype=torch.float64)


def gradients(outputs: tuple[Tensor, Tensor], inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    loss = outputs[0].square().sum() + outputs[1].square().sum()
    return torch.autograd.grad(loss, inputs, allow_unused=True)


# The mathematics ----------------------------------------------------------------------------


@both_directions
@pytest.mark.parametrize("with_std", [False, True], ids=["", "std"])
@each_kind
def test_published_mathematics(kind: Kind, with_std: bool, reverse: bool) -> None:
    layer, z, ft = layer_and_data(kind)
    std = torch.randn(2, 3, 8, 6, dtype=torch.float64) if with_std else None
    before = torch.tensor([3.0, -2.0], dtype=torch.float64)
    given = z.clone()
    with torch.no_grad():
        out, logdet = layer(input=z, logdet=before, reverse=reverse, ft=ft, std=std)
    assert torch.equal(z, given)  # the caller's tensor is left alone
    expected, change = published(layer, z, reverse, ft, std)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(logdet, before + change, atol=1e-9, rtol=1e-9)
    assert bool(((out - z).abs() > 1e-3).all(dim=(0, 2, 3)).any())  # it does something
    with_graph = layer(z, before, reverse, ft, std)
    torch.testing.assert_close(with_graph, (out, logdet), atol=1e-12, rtol=1e-12)


@both_directions
@each_kind
def test_gradients_of_every_weight_and_input(kind: Kind, reverse: bool) -> None:
    layer, z, ft = layer_and_data(kind)
    std = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (z, ft, std)]
    outputs = layer(z, None, reverse, ft, std)
    found = gradients(outputs, leaves + list(layer.parameters()))

    names = [name for name, _ in layer.named_parameters()]
    plain = {name: value.detach().requires_grad_() for name, value in layer.named_parameters()}
    expected = gradients(
        published(layer, z, reverse, ft, std, plain), leaves + [plain[name] for name in names]
    )
    assert all(gradient is not None for gradient in found)
    for name, one, other in zip(["z", "ft", "std", *names], found, expected, strict=True):
        assert one is not None and other is not None
        assert torch.allclose(one, other, atol=1e-8, rtol=1e-7), name


@pytest.mark.parametrize("with_std", [False, True], ids=["", "std"])
@each_kind
def test_reverse_inverts_and_logdet_is_that_of_the_jacobian(kind: Kind, with_std: bool) -> None:
    layer, z, ft = layer_and_data(kind)
    std = torch.randn(2, 3, 2, 2, dtype=torch.float64) if with_std else None
    y, logdet = layer(z, ft=ft, std=std)
    back, zero = layer(y, logdet, reverse=True, ft=ft, std=std)
    torch.testing.assert_close(back, z, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(zero, torch.zeros_like(zero), atol=1e-8, rtol=0)

    def one(flat: Tensor) -> Tensor:
        noise = None if std is None else std[:1]
        return layer(flat.view(1, CHANNELS, *SIZE), ft=ft[:1], std=noise)[0].flatten()

    jacobian = torch.autograd.functional.jacobian(one, z[0].flatten())
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(logdet[0], expected, atol=1e-8, rtol=1e-8)


def test_new_layers_start_where_the_published_ones_do() -> None:
    z, ft = torch.randn(2, CHANNELS, *SIZE), torch.randn(2, FEATURES, *SIZE)
    y, logdet = SPLINE(CHANNELS, OPT)(z, ft=ft)
    torch.testing.assert_close(y, z, atol=1e-6, rtol=0)
    torch.testing.assert_close(logdet, torch.zeros(2), atol=1e-4, rtol=0)
    scale = torch.sigmoid(torch.tensor(2.0)) + 1e-4
    for kind, factor in ((AFFINE, scale), (REPARAM, 1 / scale)):
        y, _ = kind(CHANNELS, OPT)(z, ft=ft)
        torch.testing.assert_close(y[:, :2], factor * z[:, :2])
        torch.testing.assert_close(y[:, 2:], factor**2 * z[:, 2:])


def test_the_reparametrised_inverse_is_bounded_and_the_affine_one_is_not() -> None:
    for kind, largest in ((AFFINE, 1e4), (REPARAM, 1.0001)):
        layer, z, ft = layer_and_data(kind)
        with torch.no_grad():
            for name in ("fFeatures.4.weight", "fFeatures.4.logs", "fFeatures.4.bias"):
                layer.get_parameter(name).zero_()
            bias = layer.get_parameter("fFeatures.4.bias")
            bias[1::2] = -1e3 if kind is AFFINE else 1e3
        one = layer(z, reverse=True, ft=ft)[0][:, :2]
        other = layer(2 * z, reverse=True, ft=ft)[0][:, :2]
        gain = (other - one) / z[:, :2]
        torch.testing.assert_close(gain, torch.full_like(gain, largest), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 1, *SIZE), (1, 1, 1, 1)], ids=str)
@each_kind
def test_std_of_one_channel_is_expanded(kind: Kind, shape: tuple[int, ...]) -> None:
    layer, z, ft = layer_and_data(kind)
    std = torch.rand(shape, dtype=torch.float64)
    expanded = std.expand(2, 3, *SIZE)
    out, logdet = layer(z, ft=ft, std=std)
    expected, change = published(layer, z, False, ft, expanded)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(logdet, change, atol=1e-10, rtol=1e-10)


@each_kind
def test_std_is_ignored_without_std_mode(kind: Kind) -> None:
    layer, z, ft = layer_and_data(kind, std_mode=False)
    std = torch.rand(2, 3, *SIZE, dtype=torch.float64)
    assert torch.equal(layer(z, ft=ft, std=std)[0], layer(z, ft=ft)[0])


# Options and checkpoints --------------------------------------------------------------------


class NoneDict(dict):
    """The published options: whatever is missing is None."""

    def __missing__(self, key: str) -> None:
        return None


def test_options() -> None:
    default = AFFINE(12, NoneDict())
    assert default.need_features and SPLINE.need_features and REPARAM.need_features
    assert default.get_parameter("fAffine.0.weight").shape == (64, 6 + 320, 3, 3)
    assert not hasattr(default, "fAffine_std")  # as SRFlow and LLFlow have it
    wanted = AFFINE(12, None, std_mode=True)
    assert wanted.get_parameter("fAffine_std.0.weight").shape == (64, 6 + 3, 3, 3)
    for channels in (1, 3):
        for mode in (True, False):
            given = SPLINE(12, {"network_G": {"flow": {"std_channels": channels}}}, mode)
            shape = given.get_parameter("fRQspline_std.0.weight").shape
            assert shape == (64, 6 + channels, 3, 3) and given.uses_std is mode
    assert default.get_parameter("fFeatures.0.weight").shape == (64, 320, 3, 3)
    assert default.get_parameter("fFeatures.2.weight").shape == (64, 64, 1, 1)
    assert default.get_parameter("fFeatures.4.weight").shape == (2 * 12, 64, 3, 3)
    opt = NoneDict(
        network_G=NoneDict(
            flow=NoneDict(
                conditionInFeaDim=64,
                CondAffineSeparatedAndCond=NoneDict(hidden_channels=16, eps="1e-2"),
                CondRQsplineSeparatedAndCond=NoneDict(left=-2, righ=2, bottom=-2, top=2),
            )
        )
    )
    layer = REPARAM(5, opt)
    assert layer.get_parameter("fAffine.0.weight").shape == (16, 2 + 64, 3, 3)
    assert layer.transform == Affine(eps=1e-2, reciprocal=True)
    assert layer.get_parameter("fAffine.4.weight").shape == (2 * 3, 16, 3, 3)
    assert SPLINE(5, opt).transform == ModifiedRQSpline(interval=(-2, 2), derivative="exp")
    assert SPLINE(5, None).transform == ModifiedRQSpline.published()


def published_checkpoint(
    net: str, channels: int, params: int, std: bool, std_channels: int = 3
) -> dict[str, Tensor]:
    """A coupling's part of a checkpoint: exactly the published keys and shapes."""
    kept = channels // 2
    changed = (channels - kept) * params
    shapes = {net: (kept + 320, changed), "fFeatures": (320, channels * params)}
    if std:
        shapes[net + "_std"] = (kept + std_channels, changed)
    state = {}
    for name, (read, made) in shapes.items():
        for layer, shape in (("0", (64, read, 3, 3)), ("2", (64, 64, 1, 1))):
            state[f"{name}.{layer}.weight"] = 0.05 * torch.randn(shape)
            state[f"{name}.{layer}.actnorm.bias"] = torch.randn(1, 64, 1, 1)
            state[f"{name}.{layer}.actnorm.logs"] = torch.randn(1, 64, 1, 1)
        state[f"{name}.4.weight"] = torch.randn(made, 64, 3, 3)
        state[f"{name}.4.bias"] = torch.randn(made)
        state[f"{name}.4.logs"] = torch.randn(made, 1, 1)
    return state


def in_a_network(coupling: nn.Module) -> nn.Module:
    """The coupling where the published networks have it: FlowStep's attribute ``affine``."""
    step = nn.Module()
    step.affine = coupling
    upsampler = nn.Module()
    upsampler.layers = nn.ModuleList([nn.Identity(), step])
    network = nn.Module()
    network.flowUpsamplerNet = upsampler
    return network


PREFIX = "flowUpsamplerNet.layers.1.affine."
CHECKPOINTS = [
    (AFFINE, "fAffine", 2, True),
    (AFFINE, "fAffine", 2, False),
    (REPARAM, "fAffine", 2, True),
    (SPLINE, "fRQspline", 4, True),
    (BSPLINE, "fBspline", 11, True),
]


@pytest.mark.parametrize(("kind", "net", "params", "std"), CHECKPOINTS)
@pytest.mark.parametrize("channels", [12, 7])
def test_published_checkpoint_loads_strictly(
    kind: Kind, net: str, params: int, std: bool, channels: int
) -> None:
    """With std weights (robustNF) and without (SRFlow, LLFlow), from a two-argument constructor."""
    state = published_checkpoint(net, channels, params, std)
    network = in_a_network(kind(channels, NoneDict()))
    network.load_state_dict({PREFIX + key: value for key, value in state.items()}, strict=True)
    layer = network.get_submodule(PREFIX[:-1])
    loaded = layer.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    norms = [module for name, module in layer.named_modules() if name.endswith("actnorm")]
    assert len(norms) == (6 if std else 4) and all(norm.inited for norm in norms)
    # So the first batch in training does not set them anew.
    layer.train()
    layer(torch.randn(1, channels, 4, 4), ft=torch.randn(1, 320, 4, 4))
    assert all(torch.equal(layer.state_dict()[key], state[key]) for key in state)


def test_a_noise_map_of_one_channel_comes_from_the_checkpoint() -> None:
    layer = AFFINE(6, None)
    for channels in (3, 1, 3, 1):
        checkpoint = published_checkpoint("fAffine", 6, 2, True, std_channels=channels)
        layer.load_state_dict(checkpoint, strict=True)
    z, ft = torch.randn(2, 6, 4, 4), torch.randn(2, 320, 4, 4)
    y, _ = layer(z, ft=ft, std=torch.rand(2, 1, 1, 1))
    assert not torch.equal(y, layer(z, ft=ft)[0])
    with pytest.raises(ValueError, match="std must have shape"):
        layer(z, ft=ft, std=torch.rand(2, 3, 4, 4))


def test_strict_loading_still_finds_what_is_missing_or_too_much() -> None:
    state = published_checkpoint("fAffine", 6, 2, True)
    del state["fAffine_std.2.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*fAffine_std\.2\.weight"):
        AFFINE(6, None).load_state_dict(state, strict=True)
    state = published_checkpoint("fAffine", 6, 2, True)
    state["fAffine_other.2.weight"] = state.pop("fAffine_std.2.weight")
    with pytest.raises(RuntimeError, match=r"Unexpected key.*fAffine_other"):
        AFFINE(6, None).load_state_dict(state, strict=True)
    state = published_checkpoint("fAffine", 6, 2, True, std_channels=2)  # none that is in use
    with pytest.raises(RuntimeError, match=r"size mismatch for fAffine_std\.0\.weight"):
        AFFINE(6, OPT).load_state_dict(state, strict=True)


@each_kind
def test_first_batch_in_training_sets_the_actnorms(kind: Kind) -> None:
    layer = kind(CHANNELS, OPT)
    z, ft = torch.randn(8, CHANNELS, *SIZE), 3 * torch.randn(8, FEATURES, *SIZE) + 1
    fresh = copy.deepcopy(layer.state_dict())
    layer.eval()(z, ft=ft)
    assert all(torch.equal(layer.state_dict()[key], fresh[key]) for key in fresh)
    layer.train()(z, ft=ft, std=torch.rand(8, 3, *SIZE))
    own = OWN_NETS[kind]
    state = copy.deepcopy(layer.state_dict())
    injected = layer.transform(z, published_net(state, "fFeatures", ft))[0]
    for net, x in (("fFeatures", ft), (own, torch.cat([injected[:, :2], ft], dim=1))):
        hidden = functional.conv2d(x, state[f"{net}.0.weight"], padding=1)
        hidden = (hidden + state[f"{net}.0.actnorm.bias"]) * state[f"{net}.0.actnorm.logs"].exp()
        torch.testing.assert_close(hidden.mean(dim=(0, 2, 3)), torch.zeros(64), atol=1e-5, rtol=0)
        deviation = hidden.std(dim=(0, 2, 3), correction=0)
        torch.testing.assert_close(deviation, torch.ones(64), atol=1e-4, rtol=0)
    # The second batch, a copy and a pickle leave them; a never-set state loads as never set.
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        other(2 * z, ft=2 * ft)
        assert all(torch.equal(other.state_dict()[key], state[key]) for key in state)
    layer.load_state_dict(fresh)
    layer(z, ft=ft)
    logs = "fFeatures.0.actnorm.logs"
    assert torch.equal(layer.state_dict()[logs], state[logs])
    assert not torch.equal(fresh[logs], state[logs])


# Precision, compilation, errors -------------------------------------------------------------


@both_directions
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_kind
def test_half_precision(kind: Kind, dtype: torch.dtype, reverse: bool) -> None:
    layer, z, ft = layer_and_data(kind)
    expected, change = published(layer, z, reverse, ft)
    tolerance = 64 * torch.finfo(dtype).eps
    for weights in (dtype, torch.float32):  # half weights, or float32 ones under half data
        half = copy.deepcopy(layer).to(weights)
        out, logdet = half(z.to(dtype), torch.zeros(2), reverse, ft.to(dtype))
        assert out.dtype == dtype and logdet.dtype == torch.float32
        torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(logdet.double(), change, atol=60 * tolerance, rtol=tolerance)


@each_kind
def test_autocast(kind: Kind) -> None:
    layer, z, ft = layer_and_data(kind)
    expected, change = published(layer, z, False, ft)
    layer.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, logdet = layer(z.float(), ft=ft.float())
        (out.square().sum() + logdet.sum()).backward()
    assert out.dtype == logdet.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, atol=0.3, rtol=0.1)
    torch.testing.assert_close(logdet.double(), change, atol=10.0, rtol=0.1)
    assert all(p.grad is not None or "_std" in name for name, p in layer.named_parameters())


@both_directions
def test_one_graph(reverse: bool) -> None:
    layer, z, ft = layer_and_data(SPLINE)
    std = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with condition_once():
        found = compiled(z, None, reverse, ft, std)
    torch.testing.assert_close(found, layer(z, None, reverse, ft, std))


def test_torch_func_sees_the_features() -> None:
    layer, z, ft = layer_and_data(SPLINE)

    def total(ft: Tensor) -> Tensor:
        return layer(z, reverse=True, ft=ft)[0].square().sum()

    expected = torch.autograd.functional.jacobian(total, ft)
    with condition_once():
        torch.testing.assert_close(torch.func.grad(total)(ft), expected)
        tangent = torch.func.jvp(total, (ft,), (torch.ones_like(ft),))[1]
        many = torch.stack([ft, 2 * ft])
        together = torch.func.vmap(total)(many)
        maps = torch.randn(3, 2, 3, *SIZE, dtype=torch.float64)
        with torch.no_grad():  # the noise alone is batched, z is not
            noisy = torch.func.vmap(lambda std: layer(z, ft=ft, std=std)[0])(maps)
    torch.testing.assert_close(noisy, torch.stack([layer(z, ft=ft, std=one)[0] for one in maps]))
    torch.testing.assert_close(tangent, expected.sum())
    torch.testing.assert_close(together, torch.stack([total(one) for one in many]))


def test_bad_calls_say_what_is_wanted() -> None:
    layer = AFFINE(6, OPT)
    z = torch.randn(2, 6, 4, 4)
    with pytest.raises(ValueError, match="needs the features"):
        layer(z)
    with pytest.raises(ValueError, match=r"ft must have shape \(2, 10, 4, 4\)"):
        layer(z, ft=torch.randn(2, 10, 2, 2))
    with pytest.raises(ValueError, match=r"input must have shape \(B, 6, H, W\)"):
        layer(torch.randn(2, 4, 4, 4), ft=torch.randn(2, 10, 4, 4))
    with pytest.raises(ValueError, match="std must have shape"):
        layer(z, ft=torch.randn(2, 10, 4, 4), std=torch.rand(2, 2, 4, 4))
    with pytest.raises(ValueError, match="without bias"):
        SPLINE(6, OPT, bias=False)
    with pytest.raises(ValueError, match="le_curve"):
        AFFINE(6, {"le_curve": True})
    with pytest.raises(ValueError, match="at least 2"):
        AFFINE(1, OPT)
    with pytest.raises(ValueError, match=r"flow\.std_channels must be 1 or 3 in opt, got 2"):
        AFFINE(6, {"network_G": {"flow": {"std_channels": 2}}})
    box = {"network_G": {"flow": {"CondRQsplineSeparatedAndCond": {"left": -1, "bottom": -1}}}}
    with pytest.raises(ValueError, match="same on both axes"):
        SPLINE(6, {"network_G": {"flow": {"CondRQsplineSeparatedAndCond": {"top": 2}}}})
    assert SPLINE(6, box).transform == ModifiedRQSpline(interval=(-1, 0.5), derivative="exp")


# Condition once -----------------------------------------------------------------------------


class Counted:
    """Counts the convolutions of feature tensors, which is what is to be saved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.projections = 0
        convolve = functional.conv2d

        def counting(x: Tensor, weight: Tensor, *args: Any, **more: Any) -> Tensor:
            self.projections += x.shape[1] == FEATURES
            return convolve(x, weight, *args, **more)

        monkeypatch.setattr("torch.nn.functional.conv2d", counting)

    def since(self) -> int:
        projections, self.projections = self.projections, 0
        return projections


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@both_directions
@each_kind
def test_condition_once_equals_plain(kind: Kind, reverse: bool, counted: Counted) -> None:
    layer, z, ft = layer_and_data(kind)
    latents = [z, z + 1, z.flip(0)]
    with torch.no_grad():
        plain = [layer(latent, None, reverse, ft) for latent in latents]
        assert counted.since() == 6
        with condition_once():
            remembered = [layer(latent, None, reverse, ft) for latent in latents]
        assert counted.since() == 2  # once for the injector, once for the coupling
        layer(z, None, reverse, ft)
        assert counted.since() == 2  # the block is over
    torch.testing.assert_close(remembered, plain, atol=1e-13, rtol=1e-13)


@each_kind
def test_one_condition_serves_a_batch(kind: Kind) -> None:
    layer, z, ft = layer_and_data(kind, batch=3)
    one = ft[:1].contiguous().requires_grad_()
    copies = one.detach().repeat(3, 1, 1, 1).requires_grad_()
    for reverse in (False, True):
        found = layer(z, None, reverse, one)
        expected = layer(z, None, reverse, copies)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
        (gradient,), (parts,) = gradients(found, [one]), gradients(expected, [copies])
        assert isinstance(parts, Tensor)
        torch.testing.assert_close(gradient, parts.sum(0, keepdim=True), atol=1e-9, rtol=1e-9)
        with torch.no_grad(), condition_once():
            torch.testing.assert_close(layer(z, None, reverse, one), expected)


def _write_in_place(layer: Layer, ft: Tensor) -> Tensor:
    ft.add_(1)
    return ft


def _another_object(layer: Layer, ft: Tensor) -> Tensor:
    return ft + 1


def _other_storage(layer: Layer, ft: Tensor) -> Tensor:
    ft.data = ft.data + 1
    return ft


def _another_object_on_the_same_storage(layer: Layer, ft: Tensor) -> Tensor:
    ft.data.add_(1)  # not seen by ft's own count of versions, nor by that of the next alias
    return ft.data


def _optimiser_step(layer: Layer, ft: Tensor) -> Tensor:
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(layer.parameters(), lr=0.01).step()
    return ft


def _load(layer: Layer, ft: Tensor) -> Tensor:
    layer.load_state_dict({key: 0.9 * value for key, value in layer.state_dict().items()})
    return ft


def _replace_a_weight(layer: Layer, ft: Tensor) -> Tensor:
    for name in ("fFeatures.0", f"{layer._net_name}.0"):
        weight = nn.Parameter(1.1 * layer.get_parameter(f"{name}.weight"))
        setattr(layer.get_submodule(name), "weight", weight)  # noqa: B010
    return ft


def _convert_and_back(layer: Layer, ft: Tensor) -> Tensor:
    layer.to(torch.bfloat16).to(torch.float64)
    return ft


CHANGES = [
    _write_in_place,
    _another_object,
    _other_storage,
    _another_object_on_the_same_storage,
    _optimiser_step,
    _load,
    _replace_a_weight,
    _convert_and_back,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [AFFINE, SPLINE])
def test_nothing_stale(kind: Kind, change: Callable[[Layer, Tensor], Tensor]) -> None:
    layer, z, ft = layer_and_data(kind)
    with torch.no_grad(), condition_once():
        before = layer(z, reverse=True, ft=ft)[0]
        ft = change(layer, ft)
        after = layer(z, reverse=True, ft=ft)
    assert not torch.allclose(after[0], before, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(after, layer(z, reverse=True, ft=ft), atol=1e-13, rtol=1e-13)


def test_each_weight_alone_is_followed() -> None:
    layer, z, ft = layer_and_data(SPLINE, std_mode=False)
    with torch.no_grad(), condition_once():
        for name, parameter in layer.named_parameters():
            if "_std." in name:  # not used
                continue
            before = layer(z, reverse=True, ft=ft)[0]
            parameter.mul_(1.3)
            after = layer(z, reverse=True, ft=ft)[0]
            assert not torch.equal(after, before), name
            torch.testing.assert_close(after, published(layer, z, True, ft)[0])


def test_modes_are_told_apart() -> None:
    layer, z, ft = layer_and_data(AFFINE)
    weight = layer.get_parameter("fFeatures.0.weight")
    with condition_once():
        with torch.no_grad():
            layer(z, ft=ft)
        outputs = layer(z, ft=ft.requires_grad_())  # a graph is wanted now
        assert all(g is not None for g in gradients(outputs, [ft, weight]))
        for _ in range(2):  # and a second graph does not lean on the first
            layer(z, ft=ft)[0].sum().backward()


def test_a_gradient_wanted_later_is_given() -> None:
    layer, z, ft = layer_and_data(AFFINE)
    layer.requires_grad_(False)
    with condition_once():
        layer(z, ft=ft)
        ft.requires_grad_()
        (gradient,) = gradients(layer(z, ft=ft), [ft])
    (expected,) = gradients(layer(z, ft=ft), [ft])
    torch.testing.assert_close(gradient, expected)


def test_autocast_is_a_mode() -> None:
    layer, z, ft = layer_and_data(AFFINE)
    layer, z, ft = layer.float(), z.float(), ft.float()

    def full_and_half() -> tuple[Tensor, Tensor]:
        full = layer(z, ft=ft)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return full, layer(z, ft=ft)[0]

    with torch.no_grad():
        expected = full_and_half()
        with condition_once():
            for _ in range(2):
                found = full_and_half()
                assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_first_batch_in_training_is_not_skipped() -> None:
    layer = AFFINE(CHANNELS, OPT)
    z, ft = torch.randn(2, CHANNELS, *SIZE), torch.randn(2, FEATURES, *SIZE)
    with torch.no_grad(), condition_once():
        layer.eval()(z, ft=ft)
        layer.train()(z, ft=ft)
    norms = (layer.get_submodule(f"{net}.0.actnorm") for net in ("fFeatures", "fAffine"))
    assert all(norm.inited for norm in norms)


def test_inference_mode(counted: Counted) -> None:
    layer, z, ft = layer_and_data(AFFINE)
    plain = layer(z, ft=ft)[0].detach()
    counted.since()
    with torch.inference_mode(), condition_once():
        for _ in range(2):
            torch.testing.assert_close(layer(z, ft=ft)[0], plain)
        assert counted.since() == 2  # features from outside have a version: remembered
        unseen = ft.clone()
        with pytest.warns(UserWarning, match=r"torch\.no_grad"):
            layer(z, ft=unseen)
        unseen.add_(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # told once a block
            changed = layer(z, ft=unseen)[0]
    torch.testing.assert_close(changed, layer(z, ft=ft + 1)[0].detach())

    layer.requires_grad_(False)
    with condition_once():
        with torch.inference_mode():
            layer(z, ft=ft)
        outputs = layer(z.requires_grad_(), ft=ft)  # no graph can hold what inference mode made
    (gradient,) = gradients(outputs, [z])
    (expected,) = gradients(layer(z, ft=ft), [z])
    torch.testing.assert_close(gradient, expected)


def test_each_thread_has_its_own(counted: Counted) -> None:
    layer, z, ft = layer_and_data(AFFINE)
    with torch.no_grad():
        expected = layer(z, ft=ft)[0]
    counts = []

    def in_thread(enter: bool) -> None:
        with torch.no_grad():
            if enter:
                with condition_once():
                    found = [layer(z, ft=ft)[0] for _ in range(3)]
            else:
                found = [layer(z, ft=ft)[0] for _ in range(3)]
        assert all(torch.equal(one, expected) for one in found)
        counts.append(counted.since())

    with torch.no_grad(), condition_once():
        layer(z, ft=ft)
        counted.since()
        for enter in (False, True):
            thread = threading.Thread(target=in_thread, args=(enter,))
            thread.start()
            thread.join()
        layer(z, ft=ft)
        assert counted.since() == 0  # the other thread's exit did not end this block
    assert counts == [6, 2]


def test_memory_is_freed_at_exit_and_by_the_next_condition() -> None:
    layer, z, ft = layer_and_data(SPLINE)

    with torch.no_grad():
        with pytest.raises(RuntimeError, match="ends the block"), condition_once():
            with condition_once():
                layer(z, ft=ft)
            assert len(_once._memory.entries) == 2  # an inner block's end is no end
            raise RuntimeError("ends the block")
        assert not _once._memory.entries
        features = ft.clone()
        gone = weakref.ref(features)
        with condition_once():
            layer(z, ft=features)
            results = [weakref.ref(entry) for entry in _once._memory.entries.values()]
            del features
            layer(z, ft=ft)  # replaces, and lets go of, what was there
            gc.collect()
            assert gone() is None and all(result() is None for result in results)
            layers = copy.deepcopy(layer)
            layers(z, ft=ft)
            assert len(_once._memory.entries) == 4
            del layers
            gc.collect()
            assert len(_once._memory.entries) == 2  # a network that is gone keeps nothing
