"""Checkpoints of the published networks: names, shapes and computation as published.

The network below is written from the published structure alone, as functions of a dictionary of
weights, and shares no module with the package.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as tf

from robustflow import _resizing
from robustflow.cli import main
from robustflow.experiments.imaging.loading import load_flow
from robustflow.experiments.imaging.published import LowLightFlow, NotPublished, published_flow
from robustflow.experiments.imaging.published.encoders import equalise
from robustflow.experiments.imaging.published.layers import Step

FEATURES, GROWTH, BLOCKS, HIDDEN, STEPS, LEVELS = 8, 4, 8, 6, 2, 3
TAPS = (1, 3, 5, 7)
CONDITION = FEATURES * 5
Weights = dict[str, Tensor]


def draw(*shape: int, size: float = 0.1) -> Tensor:
    return size * torch.randn(*shape)


def convolution(
    weights: Weights, name: str, read: int, out: int, side: int = 3, *, bias: bool = True
) -> None:
    weights[f"{name}.weight"] = draw(out, read, side, side)
    if bias:
        weights[f"{name}.bias"] = draw(out)


def encoder_weights(read: int, blocks: int, names: tuple[str, ...]) -> Weights:
    weights: Weights = {}
    convolution(weights, "RRDB.conv_first", read, FEATURES)
    for block in range(blocks):
        for dense in (1, 2, 3):
            for number in range(5):
                out = FEATURES if number == 4 else GROWTH
                name = f"RRDB.RRDB_trunk.{block}.RDB{dense}.conv{number + 1}"
                convolution(weights, name, FEATURES + number * GROWTH, out)
    for name in ("trunk_conv", "HRconv", *names):
        convolution(weights, f"RRDB.{name}", FEATURES, FEATURES)
    convolution(weights, "RRDB.conv_last", FEATURES, 3)
    return weights


def published_weights(coupling: str, *, std: bool, frozen: bool) -> Weights:
    """A super-resolution checkpoint's names and shapes, with random values."""
    return {
        **encoder_weights(3, BLOCKS, ("upconv1", "upconv2")),
        **flow_weights(coupling, CONDITION, std=std, frozen=frozen, split=True),
    }


def low_light_weights(taps: int) -> Weights:
    """LLFlow's names and shapes: blocks 1, 3, 5, 7, or the first of these, are tapped."""
    names = ("conv_second", "downconv1", "downconv2", "downconv3")
    weights = encoder_weights(12, 2 * taps, names)
    convolution(weights, "RRDB.fine_tune_color_map.0", FEATURES, 3, 1)
    weights["RRDB.awb_para.weight"], weights["RRDB.awb_para.bias"] = draw(3, FEATURES), draw(3)
    condition = FEATURES * (taps + 1)
    return weights | flow_weights("affine", condition, std=False, frozen=False, split=False)


def flow_weights(
    coupling: str,
    condition: int,
    *,
    std: bool,
    frozen: bool,
    split: bool,
    levels: int = LEVELS,
    steps: int = STEPS,
) -> Weights:
    weights: Weights = {}

    def actnorm(name: str, channels: int) -> None:
        weights[f"{name}.bias"] = draw(1, channels, 1, 1)
        weights[f"{name}.logs"] = draw(1, channels, 1, 1)

    parameters = 4 if coupling == "rqspline" else 2
    net = "fRQspline" if coupling == "rqspline" else "fAffine"
    number, channels = 0, 3
    for level in range(1, levels + 1):
        channels *= 4
        number += 1  # the squeeze
        for step in range(steps + 1):  # the first without a coupling
            prefix = f"flowUpsamplerNet.layers.{number}"
            actnorm(f"{prefix}.actnorm", channels)
            rotation = torch.linalg.qr(torch.randn(channels, channels)).Q.contiguous()
            if frozen and step:
                weights[f"{prefix}.invconv.weight"] = rotation[..., None, None]
                weights[f"{prefix}.invconv.weight_transpose"] = rotation.T[..., None, None].clone()
            else:
                weights[f"{prefix}.invconv.weight"] = rotation
            changed, kept = (channels - channels // 2) * parameters, channels // 2
            nets = {
                net: (kept + condition, changed),
                "fFeatures": (condition, channels * parameters),
            }
            if std:
                nets[f"{net}_std"] = (kept + 3, changed)
            for name, (read, out) in nets.items() if step else ():
                path = f"{prefix}.{coupling}.{name}"
                convolution(weights, f"{path}.0", read, HIDDEN, bias=False)
                actnorm(f"{path}.0.actnorm", HIDDEN)
                convolution(weights, f"{path}.2", HIDDEN, HIDDEN, 1, bias=False)
                actnorm(f"{path}.2.actnorm", HIDDEN)
                convolution(weights, f"{path}.4", HIDDEN, out)
                weights[f"{path}.4.logs"] = draw(out, 1, 1)
            number += 1
        if split and level == 1:
            convolution(weights, f"flowUpsamplerNet.layers.{number}.conv", channels // 2, channels)
            weights[f"flowUpsamplerNet.layers.{number}.conv.logs"] = draw(channels, 1, 1)
            channels //= 2
            number += 1
    convolution(weights, "flowUpsamplerNet.f.0", condition, 10)
    return weights


def blocks_of(weights: Weights, hidden: Tensor, taps: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The output of the last block, and those of the tapped ones."""
    tapped = []
    for block in range(max(taps) + 1):
        entering = hidden
        for dense in (1, 2, 3):
            seen = [hidden]
            for number in range(1, 5):
                name = f"RRDB_trunk.{block}.RDB{dense}.conv{number}"
                seen.append(tf.leaky_relu(conv_of(weights, name, torch.cat(seen, 1)), 0.2))
            last = conv_of(weights, f"RRDB_trunk.{block}.RDB{dense}.conv5", torch.cat(seen, 1))
            hidden = hidden + 0.2 * last
        hidden = entering + 0.2 * hidden
        if block in taps:
            tapped.append(hidden)
    return hidden, torch.cat(tapped, 1)


def conv_of(weights: Weights, name: str, x: Tensor) -> Tensor:
    return tf.conv2d(x, weights[f"RRDB.{name}.weight"], weights[f"RRDB.{name}.bias"], padding=1)


def with_taps(features: list[Tensor], taps: Tensor) -> list[Tensor]:
    return [torch.cat([each, tf.interpolate(taps, each.shape[-2:])], 1) for each in features]


def half_of(x: Tensor) -> Tensor:
    return tf.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)


def rrdb(weights: Weights, low: Tensor) -> list[Tensor]:
    """Features of each level, the largest first."""
    hidden, taps = blocks_of(weights, conv_of(weights, "conv_first", low), TAPS)
    last = hidden + conv_of(weights, "trunk_conv", hidden)
    # The published leaky ReLU works in place, so the feature is what comes out of it.
    up2 = tf.leaky_relu(conv_of(weights, "upconv1", tf.interpolate(last, scale_factor=2)), 0.2)
    return with_taps([up2, last, half_of(last)], taps)


def low_light_encoder(
    weights: Weights, dark: Tensor, taps: tuple[int, ...]
) -> tuple[list[Tensor], Tensor]:
    """Features of each level, and the colour map."""
    logs = (dark + 1e-3).log()
    colours = logs.exp() / (logs.exp().sum(1, keepdim=True) + 1e-4)
    steps = [torch.zeros_like(colours), torch.zeros_like(colours)]
    for axis, step in zip((2, 3), steps, strict=True):
        length = colours.shape[axis]
        for place in range(length):
            after = colours.select(axis, place + 1) if place + 1 < length else 0
            before = colours.select(axis, place - 1) if place else 0
            step.select(axis, place).add_(0.5 * (after - before))
    noise = torch.stack(steps).abs().amax(0)
    read = torch.cat([logs, equalised(dark), colours, noise], 1)
    hidden = tf.leaky_relu(conv_of(weights, "conv_first", read), 0.2)
    first = tf.max_pool2d(conv_of(weights, "conv_second", hidden), 2)
    last, tapped = blocks_of(weights, first, taps)
    half = first + conv_of(weights, "trunk_conv", last)
    quarter = tf.leaky_relu(conv_of(weights, "downconv1", half_of(half)), 0.2)
    eighth = conv_of(weights, "downconv2", half_of(quarter))
    name = "RRDB.fine_tune_color_map.0"
    larger = tf.interpolate(half, scale_factor=2)
    colour_map = tf.conv2d(larger, weights[f"{name}.weight"], weights[f"{name}.bias"]).sigmoid()
    return with_taps([half, quarter, eighth], tapped), colour_map


def equalised(dark: Tensor) -> Tensor:
    """Histogram equalisation of 8-bit planes, value by value."""
    out = torch.zeros_like(dark)
    for index in torch.cartesian_prod(torch.arange(len(dark)), torch.arange(3)).tolist():
        plane = (dark[tuple(index)] * 255).round()
        others = int((plane > plane.min()).sum())
        for value in plane.unique():
            above = int(((plane <= value) & (plane > plane.min())).sum())
            out[tuple(index)][plane == value] = round(above * 255 / others) / 255
    return out


def net_of(weights: Weights, path: str, x: Tensor) -> Tensor:
    for layer, padding in (("0", 1), ("2", 0)):
        x = tf.conv2d(x, weights[f"{path}.{layer}.weight"], padding=padding)
        x = (x + weights[f"{path}.{layer}.actnorm.bias"]) * weights[
            f"{path}.{layer}.actnorm.logs"
        ].exp()
        x = x.relu()
    x = tf.conv2d(x, weights[f"{path}.4.weight"], weights[f"{path}.4.bias"], padding=1)
    return x * (3 * weights[f"{path}.4.logs"]).exp()


def transform(coupling: str, z: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The published elementwise transforms, forward."""
    if coupling != "rqspline":
        shift, logit = h[:, 0::2], h[:, 1::2]
        scale = torch.sigmoid(logit + 2) + 1e-4
        scale = 1 / scale if coupling == "affinereparam" else scale
        return (z + shift) * scale, scale.log().flatten(1).sum(1)
    w, v, d, shift = (h[:, index::4] for index in range(4))
    width = 0.998 * torch.sigmoid(w) + 0.001
    height = 0.998 * torch.sigmoid(v) + 0.001
    slope = 0.999 * d.exp() + 0.001
    right = z >= width - 0.5
    x0 = torch.where(right, width - 0.5, -0.5)
    y0 = torch.where(right, height - 0.5, -0.5)
    bin_w = torch.where(right, 1 - width, width)
    bin_h = torch.where(right, 1 - height, height)
    d0, d1 = torch.where(right, slope, 1.0), torch.where(right, 1.0, slope)
    t, s = (z - x0) / bin_w, bin_h / bin_w
    below = s + (d0 + d1 - 2 * s) * t * (1 - t)
    inside = (z > -0.5) & (z < 0.5)
    y = y0 + bin_h * (s * t**2 + d0 * t * (1 - t)) / below
    change = s**2 * (d1 * t**2 + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2) / below**2
    logs = torch.where(inside, change, 1.0).log()
    return torch.where(inside, y, z) + shift, logs.flatten(1).sum(1)


def published_encode(
    weights: Weights, coupling: str, x: Tensor, low: Tensor, std: bool
) -> tuple[list[Tensor], Tensor]:
    z = x - _resizing.upsample(low, 4) if std else x
    return through_layers(weights, coupling, z, rrdb(weights, low), std)


def through_layers(
    weights: Weights, coupling: str, z: Tensor, features: list[Tensor], std: bool
) -> tuple[list[Tensor], Tensor]:
    """Latents, the last level's last, and the log-determinant."""
    total = torch.zeros(len(z))
    net = "fRQspline" if coupling == "rqspline" else "fAffine"
    number, level = 0, 0
    latents = []
    while True:
        prefix = f"flowUpsamplerNet.layers.{number}"
        names = [name for name in weights if name.startswith(f"{prefix}.")]
        if not any(
            name.startswith("flowUpsamplerNet.layers.") and int(name.split(".")[2]) >= number
            for name in weights
        ):
            break
        number += 1
        if not names:
            z, level = tf.pixel_unshuffle(z, 2), level + 1
            continue
        if f"{prefix}.conv.weight" in weights:
            z1, z2 = z.chunk(2, 1)
            h = tf.conv2d(
                z1, weights[f"{prefix}.conv.weight"], weights[f"{prefix}.conv.bias"], padding=1
            )
            h = h * (3 * weights[f"{prefix}.conv.logs"]).exp()
            mean, logs = h[:, 0::2], h[:, 1::2]
            latents.append((z2 - mean) * (-logs).exp())
            total = total - logs.flatten(1).sum(1)
            z = z1
            continue
        pixels = math.prod(z.shape[2:])
        logs = weights[f"{prefix}.actnorm.logs"]
        z = (z + weights[f"{prefix}.actnorm.bias"]) * logs.exp()
        total = total + logs.sum() * pixels
        matrix = weights[f"{prefix}.invconv.weight"].flatten(1)
        z = tf.conv2d(z, matrix[..., None, None])
        total = total + torch.linalg.slogdet(matrix).logabsdet * pixels
        if f"{prefix}.{coupling}.fFeatures.0.weight" not in weights:
            continue
        ft = features[level - 1]
        z, change = transform(coupling, z, net_of(weights, f"{prefix}.{coupling}.fFeatures", ft))
        total = total + change
        kept = z.shape[1] // 2
        noise = torch.zeros(len(z), 3, *z.shape[2:])
        seconds = [(f"{net}_std", noise)] if std and level > 1 else []
        for name, condition in [*seconds, (net, ft)]:
            z1, z2 = z[:, :kept], z[:, kept:]
            h = net_of(weights, f"{prefix}.{coupling}.{name}", torch.cat([z1, condition], 1))
            z2, change = transform(coupling, z2, h)
            z, total = torch.cat([z1, z2], 1), total + change
    return [*latents, z], total


def normal_log_prob(latents: list[Tensor]) -> Tensor:
    terms = [-0.5 * (z**2 + math.log(2 * math.pi)).flatten(1).sum(1) for z in latents]
    return torch.stack(terms).sum(0)


@pytest.mark.parametrize("coupling", ["affine", "affinereparam", "rqspline"])
@pytest.mark.parametrize("std", [False, True])
def test_a_published_checkpoint_computes_what_the_published_network_does(
    coupling: str, std: bool
) -> None:
    torch.manual_seed(0)
    weights = published_weights(coupling, std=std, frozen=coupling == "rqspline")
    flow = published_flow(weights).eval()
    assert flow.structure.unknown == ()
    assert (flow.structure.scale, flow.structure.steps) == (4, (2, 2, 2))
    assert flow.structure.coupling == coupling
    saved = flow.state_dict()
    assert set(saved) == set(weights)
    assert all(torch.equal(saved[name], tensor) for name, tensor in weights.items())
    x, low = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        made = flow.log_prob(x, low)
        latents, logdet = published_encode(weights, coupling, x, low, std)
    expected = logdet + normal_log_prob(latents)
    # Sums over all elements and layers, rounded in float32 in another order.
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-2)


def test_8x_is_told_the_noise_in_the_last_16_steps_of_its_last_levels() -> None:
    weights = encoder_weights(3, BLOCKS, ("upconv1", "upconv2", "upconv3")) | flow_weights(
        "affine", CONDITION, std=True, frozen=False, split=True, levels=3, steps=17
    )
    flow = published_flow(weights)
    assert (flow.structure.scale, flow.structure.steps) == (8, (17, 17, 17))
    told = [
        layer.told
        for layer in flow.flowUpsamplerNet.layers
        if isinstance(layer, Step) and layer.coupling
    ]
    assert told == [False] * 17 + [False] * 17 + [False] + [True] * 16


@pytest.mark.parametrize("coupling", ["affine", "rqspline"])
def test_the_published_network_encodes_samples_to_their_latents(coupling: str) -> None:
    torch.manual_seed(0)
    weights = published_weights(coupling, std=True, frozen=False)
    flow = published_flow(weights).eval()
    low = torch.rand(1, 3, 8, 8)
    generator = torch.Generator().manual_seed(1)
    samples = flow.sample(low, 2, temperature=0.5, generator=generator)[0]
    again = torch.Generator().manual_seed(1)
    drawn = [0.5 * torch.randn(2, *shape, generator=again) for shape in [(6, 16, 16), (96, 4, 4)]]
    latents, _ = published_encode(weights, coupling, samples, low.expand(2, -1, -1, -1), std=True)
    for mine, theirs in zip(latents, drawn, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=0)


@pytest.mark.parametrize("taps", [1, 4])
def test_llflow_computes_what_the_published_network_does(taps: int) -> None:
    """Of LLFlow's two sizes: one tapped block, or four."""
    torch.manual_seed(0)
    weights = low_light_weights(taps)
    flow = published_flow(weights).eval()
    assert isinstance(flow, LowLightFlow)
    assert flow.structure.unknown == ()
    assert (flow.structure.scale, flow.structure.steps) == (1, (2, 2, 2))
    assert set(flow.state_dict()) == set(weights)
    dark = (60 * torch.rand(2, 3, 16, 24)).round() / 255
    x = torch.rand(2, 3, 16, 24)
    features, colour_map = low_light_encoder(weights, dark, TAPS[:taps])
    with torch.no_grad():
        made = flow.log_prob(x, dark)
        latents, logdet = through_layers(weights, "affine", x, features, std=False)
    mean = tf.pixel_unshuffle(colour_map, 8)
    expected = logdet + normal_log_prob([latents[0] - mean])
    # Sums over all elements and layers, rounded in float32 in another order.
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-2)

    cold = flow.sample(dark, temperature=0.0)[:, 0]
    latents, _ = through_layers(weights, "affine", cold, features, std=False)
    torch.testing.assert_close(latents[0], mean, atol=2e-3, rtol=0)


def test_a_dark_plane_of_one_value_stays() -> None:
    dark = torch.cat([torch.full((1, 1, 2, 2), 0.2), torch.tensor([[[[0.0, 1.0], [1.0, 1.0]]]])], 1)
    assert torch.equal(equalise(dark), dark)


def test_commands_read_llflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = low_light_weights(1)
    weights["A_rgb2yuv"] = torch.zeros(3, 3)
    torch.save(weights, tmp_path / "LOL_smallNet.pth")
    assert main(["info", str(tmp_path / "LOL_smallNet.pth")]) == 0
    said = capsys.readouterr().out
    assert "published network, low light, affine" in said
    assert "not recognised: A_rgb2yuv" in said
    Image.new("RGB", (21, 16), (9, 12, 4)).save(tmp_path / "dark.png")
    command = ["sample", str(tmp_path / "LOL_smallNet.pth"), str(tmp_path / "dark.png"), "-n", "2"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "Not recognised" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "dark-01.png").size == (16, 16)


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("RRDB.conv_first.weight", (FEATURES, 6, 3, 3), "reads 12 channels, or 9 .* this one 6"),
        ("flowUpsamplerNet.layers.4.conv.weight", (12, 6, 3, 3), "has 3 levels and 1 splits"),
    ],
)
def test_what_is_not_llflow_is_named(name: str, shape: tuple[int, ...], sentence: str) -> None:
    weights = low_light_weights(1)
    if "conv_first" not in name:  # a split, and all after it of half as many channels
        encoder = {key: each for key, each in weights.items() if key.startswith("RRDB.")}
        split = flow_weights("affine", 2 * FEATURES, std=False, frozen=False, split=True)
        weights = encoder | split
    weights[name] = torch.zeros(shape)
    with pytest.raises(NotPublished, match=sentence):
        published_flow(weights)


def test_commands_read_a_published_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    weights = published_weights("affine", std=False, frozen=False)
    weights["flowUpsamplerNet.extra.weight"] = torch.zeros(1)
    torch.save(weights, tmp_path / "latest_G.pth")
    assert main(["info", str(tmp_path / "latest_G.pth")]) == 0
    said = capsys.readouterr().out
    assert "published network, 4x, affine" in said
    assert "not recognised: flowUpsamplerNet.extra.weight" in said
    del weights["flowUpsamplerNet.extra.weight"]
    save_file(weights, tmp_path / "flow.safetensors")
    torch.save({"params": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    Image.new("RGB", (8, 8), (90, 120, 40)).save(tmp_path / "low.png")
    out = tmp_path / "out"
    command = ["sample", str(tmp_path / "flow.safetensors"), str(tmp_path / "low.png"), "-n", "1"]
    assert main([*command, "--out", str(out)]) == 0
    assert Image.open(out / "low-00.png").size == (32, 32)
    assert main(["info", str(tmp_path / "other.pth")]) == 2
    assert "no weight is named flowUpsamplerNet" in capsys.readouterr().err
    assert load_flow(tmp_path / "flow.safetensors").step is None


def test_weights_of_the_wrong_shape_are_named() -> None:
    weights = published_weights("affine", std=False, frozen=False)
    weights["flowUpsamplerNet.layers.2.actnorm.logs"] = torch.zeros(1, 5, 1, 1)
    with pytest.raises(NotPublished, match=r"layers\.2\.actnorm\.logs"):
        published_flow(weights)


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        (r".*\.affine\..*", r"no weight is named \.\.\.\.fFeatures\.0\.weight"),
        (r".*layers\.2\.actnorm\.bias", r"not all there: 'actnorm\.bias'"),
        (r"RRDB\.conv_first\.weight", r"no RRDB encoder: 'RRDB\.conv_first\.weight'"),
    ],
)
def test_weights_that_are_missing_are_named(lost: str, sentence: str) -> None:
    weights = published_weights("affine", std=False, frozen=False)
    left = {name: each for name, each in weights.items() if not re.fullmatch(lost, name)}
    assert len(left) < len(weights)
    with pytest.raises(NotPublished, match=sentence):
        published_flow(left)


def test_a_flow_that_does_not_begin_with_a_squeeze_is_named() -> None:
    weights = published_weights("affine", std=False, frozen=False)
    layer = re.compile(r"(flowUpsamplerNet\.layers\.)(\d+)(.*)")
    moved = {layer.sub(lambda m: f"{m[1]}{int(m[2]) - 1}{m[3]}", n): t for n, t in weights.items()}
    with pytest.raises(NotPublished, match="it should be a squeeze"):
        published_flow(moved)
