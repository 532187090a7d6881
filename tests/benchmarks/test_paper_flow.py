"""benchmarks.paper_flow: the published design computes what compat.srflow does; all is reported."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import paper_flow
from benchmarks.paper_flow import KINDS, PublishedDesign, Shape
from robustflow.benchmarks import allocator

TINY = Shape(pixels=16, preset_pixels=32, steps=1, features=4, blocks=2, seconds=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_design_computes_what_the_layers_do(kind: str) -> None:
    """Masks, and the std-conditional third in levels 2 and 3, included."""
    torch.manual_seed(0)
    config = paper_flow.paper_config(kind, replace(TINY, steps=2))
    plain, fused = (PublishedDesign(kind, config, 4, plain=each) for each in (True, False))
    for each in (plain, fused):
        each.eval()  # actnorms stay as they are
    with torch.no_grad():
        for weight in fused.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    named = {
        name.replace(".rqspline.coupling.", ".rqspline.").replace(
            ".affine.coupling.", ".affine."
        ): (weight)
        for name, weight in plain.named_parameters()
    }
    for name, weight in fused.named_parameters():
        named.pop(name).data.copy_(weight)
    assert not named
    x, noise = torch.rand(1, 3, 16, 16), 0.1 * torch.randn(1, 3, 16, 16)
    features = [torch.randn(1, 4, side, side) for side in (8, 4, 2)]
    with torch.no_grad():
        made = [each.log_prob(x, features, noise) for each in (plain, fused)]
    # Sums over all elements and layers, rounded in float32 in another order.
    torch.testing.assert_close(made[0], made[1], rtol=1e-5, atol=1e-2)
    with torch.no_grad():
        quiet = plain.log_prob(x, features, torch.zeros_like(noise))
        assert abs(float(quiet - made[0])) > 1e-2  # the noise is told
        latents, _ = fused.layers.encode(x, features, torch.zeros_like(noise))
        torch.testing.assert_close(plain.sample(latents, features), x, rtol=0, atol=2e-3)


def test_both_designs_take_steps_and_samples() -> None:
    made = paper_flow.comparison("modified_rq", TINY)
    assert set(made.functions) == {"training step", "one sample", "ten samples"}
    for functions in made.functions.values():
        assert list(functions) == ["robustflow", "published"]
    made.functions["training step"]["robustflow"]()
    for number, group in ((1, "one sample"), (10, "ten samples")):
        for samples in (made.functions[group][who]() for who in made.weights):
            assert isinstance(samples, torch.Tensor)
            assert samples.numel() == number * 3 * 16 * 16


def test_the_preset_has_the_published_sizes() -> None:
    config = paper_flow.paper_config("affine", Shape())
    network = PublishedDesign("affine", override_steps(config), 320)
    assert network.layers.latent_shapes((160, 160)) == [(6, 80, 80), (96, 20, 20)]
    assert config.model.steps == 16


def override_steps(config: Any) -> Any:
    return replace(config, model=replace(config.model, steps=1))


@pytest.mark.parametrize(("preset", "encoder"), [("8x", "trained"), ("low light", "frozen")])
def test_a_preset_takes_a_step(preset: str, encoder: str) -> None:
    for activations in ("store", "reversible"):
        paper_flow.preset_step(preset, activations, encoder, TINY)()


def test_reports_have_every_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes of the measurements are left out, the work of one is done here."""

    def run(policy: str, module: str, arguments: list[str]) -> Any:
        if json.loads(arguments[1])["what"].endswith("peak"):
            return 3 << 30 if "robustflow" in arguments[1] else 6 << 30
        paper_flow.worker(arguments[1], str(tmp_path / "result.json"))
        return json.loads((tmp_path / "result.json").read_text())

    monkeypatch.setattr(allocator, "run", run)
    result = paper_flow.run_comparison("affine", TINY)
    said = paper_flow.report_comparison(result)
    assert "training step, published" in said and "6.00 GiB" in said
    assert sum(result["shares"]["ten samples"].values()) == pytest.approx(1)
    ratio = result["seconds"]["ten samples"]
    wanted = ratio["published"]["median_s"] / ratio["robustflow"]["median_s"]
    assert f"{wanted:.2f}  2.00" in said
    presets = [paper_flow.run_preset("low light", "frozen", TINY)]
    said = paper_flow.report_presets(presets)
    for activations in ("store", "recompute", "reversible"):
        assert f"low light, encoder frozen, {activations}" in said
