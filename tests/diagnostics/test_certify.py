"""Certificates of robustflow.nn: verdicts, names, and the growth of whole models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustflow
from robustflow import nn as rnn
from robustflow.diagnostics import Bounds, Certificate, Range, bounds_of, certify
from robustflow.diagnostics.bounds import affine_bounds


def steps_of(number: int, context: int, transform: Any) -> rnn.ConditionalFlow:
    """A flow over two numbers."""
    steps = [rnn.flow_step(2, context, transform, spatial_dims=0) for _ in range(number)]
    return rnn.ConditionalFlow([[layer for step in steps for layer in step]])


def verdicts(certificate: Certificate) -> dict[str, bool | None]:
    return {row.quantity: row.passed for row in certificate.rows if row.kind != "model"}


@pytest.mark.parametrize(
    ("transform", "inverse", "displacement", "ratio"),
    [
        (rnn.Affine(), False, None, False),
        (rnn.Affine(reciprocal=True), True, None, False),
        (rnn.Affine(scale="atan_exp"), True, None, False),
        (rnn.Affine(scale="exp"), False, None, False),
        (rnn.ModifiedRQSpline(), True, True, True),
        (rnn.ModifiedRQSpline.published(), True, True, True),
        (rnn.RQSpline(), True, True, True),
        (rnn.RQSpline(tails="circular"), True, True, True),
        (rnn.RQSpline(tails=None), True, True, None),
    ],
    ids=str,
)
def test_verdicts(
    transform: Any, inverse: bool, displacement: bool | None, ratio: bool | None
) -> None:
    certificate = certify(transform)
    assert verdicts(certificate) == {
        "inverse derivative": inverse,
        "displacement": displacement,
        "tail ratio": ratio,
    }
    assert certificate.passed == (inverse and ratio is not False)
    layer = certify(rnn.Injector(4, 3, transform))
    assert verdicts(layer) == verdicts(certificate)


def test_affine_fails_with_one_over_eps() -> None:
    (row,) = [row for row in certify(rnn.Affine(eps=1e-3)).failures if "inverse" in row.quantity]
    assert isinstance(row.value, Range) and row.value.high == pytest.approx(1e3)
    assert "sigmoid(a + 2) + 0.001" in row.formula


def test_an_unbounded_scale_says_both() -> None:
    certificate = certify(rnn.Affine(scale="exp"))
    assert math.isinf(certificate.growth.A)
    assert any("saturate, reach 2.354e+17" in row.note for row in certificate.rows)


def test_depth_multiplies_gains() -> None:
    """FrEIA's scale over eight couplings: e^16, which no single one shows."""
    certificate = certify(steps_of(8, 0, rnn.Affine(scale="atan_exp")))
    (row,) = [row for row in certificate.rows if row.quantity == "gain over the depth"]
    assert row.value == pytest.approx(math.exp(8 * 2 * 0.636 * math.pi / 2))
    assert row.passed is False
    assert "over 8 transforms of at most 7.3747 each" in row.formula
    assert all(r.passed for r in certificate.rows if r.quantity == "inverse derivative")


def two_levels(transform: Any) -> rnn.ConditionalFlow:
    options: dict[str, Any] = {"hidden_channels": 8}
    first = [
        rnn.Squeeze(2),
        *rnn.flow_step(4, 3, transform, **options),
        rnn.Split(4, 3, **options),
    ]
    second = [rnn.Squeeze(2), *rnn.flow_step(8, 3, transform, **options)]
    flow = rnn.ConditionalFlow([first, second], Encoder())
    disturb(flow)
    return flow


class Encoder(nn.Module):
    def forward(self, context: Tensor) -> list[Tensor]:
        return [context, nn.functional.avg_pool2d(context, 2)]


def disturb(model: nn.Module, by: float = 0.3) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))


@contextmanager
def shifts_of(flow: rnn.ConditionalFlow) -> Iterator[dict[str, float]]:
    """By layer, the largest shift that its conditioner makes."""
    found: dict[str, float] = {}
    watched = []
    for name, layer in flow.named_modules():
        if isinstance(layer, rnn.ConditionalLayer) and not isinstance(layer.transform, nn.Module):
            transform: Any = layer.transform
            index = 0 if isinstance(transform, rnn.Affine) else 3

            def call(
                x: Tensor,
                params: Tensor,
                *,
                inverse: bool = False,
                name: str = name,
                transform: Any = transform,
                index: int = index,
            ) -> tuple[Tensor, Tensor]:
                found[name] = float(params[:, index :: transform.num_params].abs().max())
                return transform(x, params, inverse=inverse)

            layer.__dict__["transform"] = call
            watched.append((layer, transform))
    yield found
    for layer, transform in watched:
        layer.__dict__["transform"] = transform


def block_rms(x: Tensor, positions: int) -> Tensor:
    """Root mean square over the blocks of a picture, (N, positions, positions)."""
    blocks = nn.functional.pixel_unshuffle(x, x.shape[-1] // positions)
    return blocks.square().mean(dim=1).sqrt()


@pytest.mark.parametrize(
    "transform",
    [
        rnn.ModifiedRQSpline(),
        rnn.Affine(),
        rnn.Affine(reciprocal=True),
        rnn.Affine(scale="tanh_exp", shift_first=False),
    ],
    ids=str,
)
def test_no_sample_beats_the_growth_bound(transform: Any) -> None:
    """At every block, for familiar and absurd conditions and latents, given the shifts."""
    flow = two_levels(transform).double().eval()
    growth = certify(flow).growth
    tightest = 0.0
    for size in (1.0, 30.0, 1e4):
        context = size * torch.randn(8, 3, 4, 4).double()
        for temperature in (0.0, 1.0, 1e4):
            latents = (
                temperature * torch.randn(8, 2, 4, 4).double(),
                temperature * torch.randn(8, 8, 2, 2).double(),
            )
            with shifts_of(flow) as shifts, torch.no_grad():
                x, _ = flow.inverse(latents, context)
            assert set(shifts) == set(growth.shifts)
            given = growth.given(shifts)
            assert not given.shifts
            first = block_rms(latents[0], 2).square() / 2  # half of the block's elements each
            second = latents[1].square().sum(dim=1) / 16
            limit = given.A * (first + second).sqrt() + given.B
            found = block_rms(x, 2)
            assert bool((found <= limit).all())
            tightest = max(tightest, float((found / limit).max()))
    assert tightest > 1e-3 if isinstance(transform, rnn.Affine) else tightest > 0.1


def test_growth_by_hand() -> None:
    """Two layers of known gain, one after the other."""
    flow = rnn.ConditionalFlow(
        [[rnn.ActNorm(2), rnn.Coupling(2, 0, rnn.ModifiedRQSpline(), spatial_dims=0)]]
    )
    norm = flow.get_submodule("levels.0.layers.0")
    with torch.no_grad():
        norm.get_parameter("log_scale").copy_(torch.tensor([-1.0, 2.0]))
        norm.get_parameter("bias").copy_(torch.tensor([3.0, 4.0]))
    certificate = certify(flow)
    A, B = certificate.growth
    coupling = 6 * (1 - 1e-3) * math.sqrt(1 / 2)
    assert pytest.approx(math.e) == A
    assert pytest.approx(math.e * coupling + math.sqrt(25 / 2)) == B
    weight = certificate.growth.shifts["levels.0.layers.1"]
    assert weight == pytest.approx(math.e * math.sqrt(1 / 2))
    assert certificate.growth.conditional == 1
    assert [each.name for each in certificate.contributions] == [
        "levels.0.layers.1",
        "levels.0.layers.0",
    ]


def test_the_mixing_s_inverse_is_measured_on_its_weights() -> None:
    for lu in (True, False):
        mixing = rnn.InvertibleConv1x1(5, lu=lu)
        disturb(mixing)
        (row, _) = certify(mixing).rows
        weight = mixing.weight().detach().double()
        expected = float(torch.linalg.matrix_norm(torch.linalg.inv(weight), 2))
        assert row.value == pytest.approx(expected)
        assert row.kind == "1x1" and row.passed


def test_a_singular_mixing_fails() -> None:
    mixing = rnn.InvertibleConv1x1(3, lu=False)
    with torch.no_grad():
        mixing.matrix[0].copy_(mixing.matrix[1])
    certificate = certify(mixing)
    assert not certificate.passed and math.isinf(certificate.growth.A)


def test_a_split_counts_once() -> None:
    """Its latents are multiplied by e^3 at most, and the layers before it multiply nothing."""
    certificate = certify(two_levels(rnn.ModifiedRQSpline()))
    split = {row.quantity: row for row in certificate.rows if row.kind == "split"}
    assert split["inverse derivative"].passed
    assert split["inverse derivative"].layer == "levels.0.layers.5"
    assert split["tail ratio"].passed is None
    assert certificate.growth.conditional == pytest.approx(math.exp(3))
    assert certificate.passed


def test_converted_scales_are_counted() -> None:
    flow = steps_of(2, 1, rnn.Affine())
    assert not certify(flow).passed
    robustflow.convert_affine(flow, (3 * torch.randn(256, 2), torch.randn(256, 1)))
    certificate = certify(flow)
    assert certificate.passed
    spline: Any = flow.get_submodule("levels.0.layers.3.transform")
    name = "levels.0.layers.3"
    rows = {(row.layer, row.quantity): row for row in certificate.rows}
    expected = float(torch.exp(-spline.log_scale.detach()).max())
    assert rows[f"{name}.scale", "inverse scale"].value == pytest.approx(expected)
    box = 2 * float(spline.half_width.max())
    assert rows[f"{name}.spline", "displacement"].value == pytest.approx(0.999 * box)


class Doubling(nn.Module):
    """A layer that certify cannot know."""

    context_channels = 0

    def forward(
        self, z: Tensor, context: Tensor | None = None, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        return z / 2 if inverse else 2 * z, z.new_zeros(len(z))


def test_an_unknown_layer_is_named_and_fails() -> None:
    flow = rnn.ConditionalFlow([[rnn.ActNorm(2), Doubling()]])
    certificate = certify(flow)
    assert not certificate.passed
    (row,) = [row for row in certificate.failures if row.kind != "model"]
    assert row.layer == "levels.0.layers.1"
    assert "not bounded: unknown layer levels.0.layers.1 (Doubling)" in str(certificate)
    assert math.isinf(certificate.growth.A)


class Network(nn.Module):
    """A user's own network: an encoder, and layers in a list."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.layers = nn.ModuleList(layers)


def test_a_model_of_one_s_own() -> None:
    coupling = rnn.Coupling(4, 3, rnn.Affine(reciprocal=True), spatial_dims=0)
    spline = rnn.Coupling(4, 3, spatial_dims=0)
    model = Network(rnn.ActNorm(4), coupling, spline)
    unknown = [row for row in certify(model).failures if row.quantity == "not bounded"]
    assert [row.layer for row in unknown] == ["encoder"]
    certificate = certify(model, ignore=["encoder"])
    # In whatever order the layers run: what one adds may pass through every other.
    A, B = certificate.growth
    assert pytest.approx(1.0001) == A
    assert pytest.approx(1.0001 * 5.994 * math.sqrt(0.5)) == B


def test_a_conditioner_in_a_subclass_is_not_trusted() -> None:
    class Mine(rnn.Coupling):
        def transform_with(self, z: Tensor, state: Any, *, inverse: bool = False) -> Any:
            return super().transform_with(100 * z, state, inverse=inverse)

    row = certify(Mine(4, 0, spatial_dims=0)).rows[0]
    assert row.passed is False and "overrides Coupling.transform_with" in row.note


def test_a_transform_of_one_s_own_declares_its_bounds() -> None:
    class Steep:
        num_params = 1
        identity_params = (0.0,)

        def __call__(self, x: Tensor, params: Tensor, *, inverse: bool = False) -> Any:
            return (x / 3 if inverse else 3 * x) + params, x.new_zeros(len(x))

    layer = rnn.Coupling(4, 0, Steep(), spatial_dims=0)
    assert "unknown transform Steep" in str(certify(layer))

    def declared(transform: Steep) -> Bounds:
        return affine_bounds(Range(3, 3), "latents", formula="3 x + t")

    bounds_of.register(Steep, declared)
    assert certify(layer).passed


def test_the_table_and_the_dictionary() -> None:
    certificate = certify(two_levels(rnn.Affine()))
    text = str(certificate)
    assert "failed (inverse derivative: 4, tail ratio: 4" in text
    assert "levels.0.layers.3 and 1 more  injector" in text
    found = json.loads(json.dumps(certificate.to_dict()))
    assert found["passed"] is False
    assert len(found["rows"]) == len(certificate.rows)
    assert found["growth"]["A"] == certificate.growth.A
    assert {row["kind"] for row in found["rows"]} == {
        "actnorm", "1x1", "injector", "self-conditional", "split", "model"
    }  # fmt: skip


TWO: Any = "2"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: certify(nn.Linear(2, 2)), ValueError, "No flow layer was found in this Linear"),
        (lambda: certify(3), TypeError, "got int"),
        (lambda: certify(rnn.ActNorm(2), ignore=["net"]), ValueError, "ignore names 'net'"),
        (lambda: certify(rnn.ActNorm(2), max_gain=0.5), ValueError, "max_gain must be at least 1"),
        (lambda: certify(rnn.ActNorm(2), max_ratio=TWO), TypeError, "max_ratio must be a number"),
        (lambda: certify(rnn.Injector(2, 1)).growth.given({"a": 1}), ValueError, "no layer with"),
        (lambda: certify(rnn.Injector(2, 1)).growth.given({"": -1}), ValueError, "at least 0"),
    ],
)
def test_bad_calls(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
