"""ONNX files and traced programs: the reference is written into them, and they run without us."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustflow
import robustflow.functional as F
import robustflow.nn as rnn
from robustflow import distributions
from robustflow.compat import srflow
from robustflow.nn.conv1x1 import InvertibleConv1x1, _iterated_inverse
from tests.support.onnx_checks import BOTH, check, onnxruntime

SCALES = ("sigmoid", "exp", "softplus", "atan_exp", "tanh_exp", "softclip_exp")
BINS = 5


class Transforms(nn.Module):
    """Every transform and parametrisation, each kind of tails and of scale, in both directions."""

    def forward(self, x: Tensor, affine: Tensor, modified: Tensor, rq: Tensor) -> list[Tensor]:
        w, h, d = rq.split([BINS, BINS, BINS + 1], -1)
        packed = rq[..., : 3 * BINS - 1]
        results = [
            *F.modified_rq_spline(x, modified),
            *F.modified_rq_spline(
                x, modified, inverse=True, interval=(-3, 3), derivative="softclip", reduce="none"
            ),
            *F.rq_spline(x, w, h, d[..., 1:-1], True, tail_bound=1.5),
            *F.rq_spline(x, w, h, d[..., :-1], tails="circular", tail_bound=[1.0, 2.0, 3.0]),
            *F.rq_spline(x, w, h, d, tails=None, tail_bound=9.0),
            *F.rq_spline_packed(x, packed, BINS, inverse=True, parametrization="softclip"),
        ]
        for i, scale in enumerate(SCALES):
            results += F.conditional_affine(
                x,
                affine,
                inverse=i % 2 == 0,
                scale=scale,  # type: ignore[arg-type]
                shift_first=i % 3 == 0,
            )
        return results


@BOTH
def test_transforms(dynamo: bool, tmp_path: Path) -> None:
    def batch(size: int) -> list[Tensor]:
        x = 2 * torch.randn(size, 3)
        x[:3, 0] = torch.tensor([0.5, -1.5, 40.0])  # at an edge of a box, and far outside
        return [x, *(torch.randn(size, 3, number) for number in (2, 4, 3 * BINS + 1))]

    check(Transforms(), [batch(6), batch(9)], tmp_path, dynamo=dynamo)


def perturbed(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


class BothWays(nn.Module):
    """The density of x, and the x of latents: the latents are an input, so the file is exact."""

    def __init__(self, flow: rnn.ConditionalFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, latent: Tensor, context: Tensor | None = None) -> list[Tensor]:
        return [self.flow.log_prob(x, context), *self.flow.inverse((latent,), context)]


@BOTH
def test_a_flow_of_pictures(dynamo: bool, tmp_path: Path) -> None:
    step = [
        *rnn.flow_step(12, 4, rnn.ModifiedRQSpline(), hidden_channels=8),
        InvertibleConv1x1(12, lu=False),
        rnn.Coupling(12, 4, rnn.Affine(), hidden_channels=8, reverse=True),
    ]
    flow = rnn.ConditionalFlow([[rnn.Squeeze(2), *step]])

    def batch(size: int) -> list[Tensor]:
        shapes = ((3, 4, 4), (12, 2, 2), (4, 2, 2))
        return [torch.randn(size, *shape) for shape in shapes]

    x, _, context = batch(8)
    flow.log_prob(x, context)  # sets the actnorms
    check(perturbed(BothWays(flow)), [batch(2), batch(3)], tmp_path, dynamo=dynamo)


@BOTH
def test_a_density_of_vectors(dynamo: bool, tmp_path: Path) -> None:
    layers = [
        rnn.RQSplineCoupling(2, num_bins=BINS, spatial_dims=0),
        rnn.RQSplineAutoregressive(2, num_bins=BINS),
    ]
    flow = perturbed(rnn.ConditionalFlow([layers]))
    assert isinstance(flow, rnn.ConditionalFlow)

    def batch(size: int) -> list[Tensor]:
        return [torch.randn(size, 2) for _ in range(2)]

    check(BothWays(flow), [batch(6), batch(9)], tmp_path, dynamo=dynamo)


class Couplings(nn.Module):
    """The published couplings, which write in place where nobody could tell."""

    def __init__(self) -> None:
        super().__init__()
        opt = {"network_G": {"flow": {"conditionInFeaDim": 4, "std_channels": 3}}}
        self.affine = srflow.CondAffineReparamSeparatedAndCond(6, opt)
        self.spline = srflow.CondRQsplineSeparatedAndCond(6, opt)

    def forward(self, z: Tensor, ft: Tensor, std: Tensor) -> list[Tensor]:
        y, logdet = self.affine(input=z, ft=ft, std=std)
        return [y, *self.spline(input=y, logdet=logdet, reverse=True, ft=ft, std=std)]


@BOTH
def test_the_published_couplings(dynamo: bool, tmp_path: Path) -> None:
    def batch(size: int) -> list[Tensor]:
        return [torch.randn(size, channels, 4, 4) for channels in (6, 4, 3)]

    check(perturbed(Couplings()), [batch(2), batch(3)], tmp_path, dynamo=dynamo)


class Distribution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.groups = nn.ParameterList(torch.randn(3, size) for size in (BINS, BINS, BINS - 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        transform = distributions.RQSplineTransform(*self.groups, tail_bound=2.0)
        y = transform(x)
        return [y, transform.log_abs_det_jacobian(x, y), transform.inv(x)]


@BOTH
def test_distributions(dynamo: bool, tmp_path: Path) -> None:
    check(Distribution(), [[torch.randn(6, 3)], [torch.randn(9, 3)]], tmp_path, dynamo=dynamo)


@pytest.mark.parametrize("condition", [1.0, 1e3, 1e7])
def test_the_inverse_by_products(condition: float) -> None:
    left, right = (torch.linalg.qr(torch.randn(96, 96).double())[0] for _ in range(2))
    matrix = left @ torch.diag(torch.linspace(1 / condition, 1, 96).double()) @ right
    expected = torch.linalg.inv(matrix)
    found = _iterated_inverse(matrix)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14 * condition * condition)


def traced(module: nn.Module, *args: Tensor) -> torch.jit.ScriptModule:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of checks of shapes, and of torch.jit itself
        program = torch.jit.trace(module.eval(), args)
    assert isinstance(program, torch.jit.ScriptModule)
    return program


def test_a_traced_program_has_no_operator_of_ours_and_takes_any_batch() -> None:
    batch = [torch.randn(6, 3), *(torch.randn(6, 3, n) for n in (2, 4, 3 * BINS + 1))]
    program = traced(Transforms(), *batch)
    assert "robustflow::" not in str(program.inlined_graph)
    larger = [torch.cat([tensor, -tensor]) for tensor in batch]
    torch.testing.assert_close(list(program(*larger)), Transforms()(*larger))


@pytest.mark.parametrize("forced", ["reference", "cpu"])
def test_a_chosen_backend_does_not_reach_a_recorded_program(forced: str) -> None:
    if robustflow.backends()[forced] is not True:
        pytest.skip(f"no backend {forced}")
    with robustflow.use_backend(forced):
        program = traced(Distribution(), torch.randn(6, 3))
    assert "robustflow::" not in str(program.inlined_graph)


def test_dynamo_sees_that_it_is_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter's second way, where the first fails; dynamo holds torch's own flag for False."""
    monkeypatch.setattr("torch.onnx._internal.exporter._flags._is_onnx_exporting", True)
    assert torch.onnx.is_in_onnx_export()
    program = torch.export.export(Distribution(), (torch.randn(6, 3),), strict=True)
    assert "robustflow" not in str(program.graph)


def test_torch_export_keeps_the_operators() -> None:
    """A program for torch is not for another runtime."""
    if robustflow.backends()["cpu"] is not True:
        pytest.skip("no native library")
    program = torch.export.export(Distribution(), (torch.randn(6, 3),))
    assert "robustflow.rq" in str(program.graph)


ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_recipe_of_a_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    export, run = RECIPES[:2]
    make, _, rest = export.partition("class ")
    exec(make, names)
    perturbed(names["flow"])  # a new flow is the identity
    exec("class " + rest, names)
    exec(run, names)
    latents, context = (torch.from_numpy(names[name]) for name in ("latents", "context"))
    expected = names["flow"].inverse((latents,), context)[0]
    assert not torch.allclose(expected, latents, atol=0.01)
    torch.testing.assert_close(
        torch.from_numpy(names["samples"]), expected.detach(), rtol=1.5e-5, atol=1.5e-5
    )


def test_the_recipe_of_vits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With noise_scale=0 it is a function; the weights of a new spline are zero: perturbed."""
    pytest.importorskip("transformers.models.vits.modeling_vits")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    before, _, after = RECIPES[2].replace("noise_scale=0.8", "noise_scale=0.0").partition("class ")
    exec(before, names)
    perturbed(names["predictor"])
    exec("class " + after, names)
    hidden, mask = torch.randn(3, 192, 14), torch.ones(3, 1, 14)
    session = onnxruntime.InferenceSession("durations.onnx")
    (found,) = session.run(None, {"hidden": hidden.numpy(), "mask": mask.numpy()})
    with torch.no_grad():
        expected = names["LogDurations"](names["predictor"])(hidden, mask)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1.5e-5, atol=1.5e-5)
