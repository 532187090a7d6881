"""The robustness report: its statistics, what it finds of a planted explosion, its page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from robustflow import nn as rnn
from robustflow._files import UnwritablePath
from robustflow.diagnostics import RobustnessReport, robustness_report
from robustflow.diagnostics.report import page
from robustflow.diagnostics.report.evidence import to_grid
from robustflow.diagnostics.report.statistics import (
    over_pictures,
    pixel_auroc,
    rates_by_score,
    spearman,
)
from tests.support.browser import needs_browser, opened


def test_statistics_are_those_of_the_libraries() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=400).round(1)  # with ties
    failed = scores + generator.normal(size=400) > 0.7
    assert pixel_auroc([scores[:150], scores[150:]], [failed[:150], failed[150:]]).value == (
        pytest.approx(roc_auc_score(failed, scores))
    )
    other = scores + generator.normal(size=400)
    assert spearman(scores, other) == pytest.approx(spearmanr(scores, other).statistic)
    assert math.isnan(pixel_auroc([scores], [np.zeros(400, dtype=bool)]).value)
    bins = rates_by_score(scores, failed, bins=4)
    assert [each.pixels for each in bins] == [100] * 4
    assert np.mean([each.rate for each in bins]) == pytest.approx(failed.mean())


def test_the_interval_covers_what_it_should() -> None:
    """A mean over pictures: the 95 % interval holds the truth in about 95 % of repetitions."""
    generator = np.random.default_rng(0)
    held = 0
    for repetition in range(200):
        values = generator.normal(size=40)

        def mean(chosen: Sequence[int], values: NDArray[np.float64] = values) -> float:
            return float(values[list(chosen)].mean())

        found = over_pictures(mean, 40, resamples=200, seed=repetition)
        held += found.low <= 0 <= found.high
    assert 180 <= held <= 198


def test_places_and_masks_on_the_grid() -> None:
    mask = np.zeros((1, 8, 8), dtype=bool)
    mask[0, 5, 2] = True
    cells = to_grid(mask, (4, 4))
    assert cells.sum() == 1
    assert cells[0, 2, 1]
    assert to_grid(mask, ()).tolist() == [True]


class Planted(nn.Module):
    """A conditioner whose scale collapses where the context is bright."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, z1: Tensor, context: Tensor) -> Tensor:
        bright = (context[:, :1] > 0.9).to(z1)
        logits = torch.where(bright > 0, -12.0, 2.0)
        params = torch.stack([torch.zeros_like(logits), logits], dim=2)
        made = params.expand(-1, self.channels, -1, *logits.shape[2:]).flatten(1, 2)
        return made.expand(z1.shape[0], -1, *z1.shape[2:])


def planted_flow() -> rnn.ConditionalFlow:
    torch.manual_seed(0)
    layers: list[nn.Module] = [rnn.Squeeze(2)]
    for _ in range(2):
        layers += rnn.flow_step(12, 3, rnn.ModifiedRQSpline(), hidden_channels=8)
    layers.append(rnn.Coupling(12, 3, rnn.Affine(), Planted(6)))
    return rnn.ConditionalFlow([layers]).eval()


def contexts(*titles: str, bright: bool = False) -> dict[str, Tensor]:
    made = {}
    for title in titles:
        generator = torch.Generator().manual_seed(ord(title))
        made[title] = 0.8 * torch.rand(1, 3, 12, 12, generator=generator)
        if bright:
            made[title][..., 3:6, 4:8] = 1.0
    return made


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> RobustnessReport:
    return robustness_report(
        planted_flow(),
        contexts("a", "b", "c"),
        contexts("d", "e", bright=True),
        held_out=contexts("f"),
        num_samples=3,
        temperatures=(0.5, 1.0),
        out=tmp_path_factory.mktemp("report"),
    )


def test_the_planted_layer_is_found_where_it_was_planted(report: RobustnessReport) -> None:
    assert {layer for layer, _ in report.onset_layers} == {"levels.0.layers.9"}
    for each in report.evidence:
        failed = each.failed(report.temperature, "onsets")
        assert failed.any() == (each.group == "out of distribution")
        if failed.any():
            rows, columns = np.nonzero(failed.any(axis=0))
            assert set(rows) <= set(range(3, 6))
            assert set(columns) <= set(range(4, 8))


def test_a_score_that_sees_the_cause_foretells_it(report: RobustnessReport) -> None:
    results = {(each.score, each.failure): each for each in report.results}
    raw = results["Mahalanobis, raw observation", "onsets"]
    assert raw.auroc.value > 0.97
    assert raw.within.value > 0.95
    assert results["gain", "onsets"].between.value > 0.7
    # Everything follows from the context here: the collapsed scale is the same for each latent.
    assert report.context_share > 0.9
    assert not report.certificate.passed


def test_the_files_stand_alone(report: RobustnessReport) -> None:
    assert report.path is not None
    page = report.path.read_text(encoding="utf-8")
    for heading in ("contexts", "layers", "scores", "causes", "pictures", "certificate"):
        assert f'id="{heading}"' in page
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(each.startswith(("data:", "#")) for each in addresses)
    numbers = json.loads((report.path.parent / "report.json").read_text())
    assert numbers["temperature"] == report.temperature
    assert len(numbers["contexts"]) == 6
    assert "onsets in 18 samples of 6 contexts" in str(report)


@pytest.mark.browser
@needs_browser
def test_the_page_in_a_browser(report: RobustnessReport) -> None:
    from selenium.webdriver.common.by import By

    assert report.path is not None
    with opened(report.path) as driver:
        table = driver.find_element(By.CSS_SELECTOR, "#contexts ~ .wide table")

        def column(index: int) -> list[str]:
            cells = table.find_elements(By.CSS_SELECTOR, f"tbody td:nth-child({index})")
            return [cell.text for cell in cells]

        heads = table.find_elements(By.CSS_SELECTOR, "thead button")
        before = column(1)
        heads[3].click()
        heads[3].click()  # onsets, most first
        onsets = [int(text) for text in column(4)]
        assert onsets == sorted(onsets, reverse=True)
        assert onsets[0] > 0
        assert sorted(column(1)) == sorted(before)
        images = driver.find_elements(By.CSS_SELECTOR, "figure img")
        assert len(images) > 10
        widths = [driver.execute_script("return arguments[0].naturalWidth", i) for i in images]
        assert min(widths) > 0
        images[0].click()
        dialog = driver.find_element(By.TAG_NAME, "dialog")
        assert dialog.get_attribute("open") is not None


def test_mistakes_are_named(tmp_path: Path) -> None:
    flow = planted_flow()
    with pytest.raises(ValueError, match="in_distribution needs at least 2 contexts"):
        robustness_report(flow, contexts("a"), {})
    with pytest.raises(ValueError, match="'a' must have a batch size of 1"):
        robustness_report(flow, {"a": torch.rand(2, 3, 8, 8), "b": torch.rand(1, 3, 8, 8)}, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritablePath, match="cannot be written"):
        robustness_report(flow, contexts("a", "b"), {}, out=tmp_path / "file" / "out")

    class NoSample(nn.Module):
        pass

    with pytest.raises(TypeError, match="NoSample has no method sample"):
        robustness_report(NoSample(), contexts("a", "b"), {})


def test_vectors_have_no_pictures_and_still_a_report() -> None:
    torch.manual_seed(0)
    steps = [layer for _ in range(2) for layer in rnn.flow_step(4, 2, rnn.Affine(), spatial_dims=0)]
    flow = rnn.ConditionalFlow([steps]).eval()
    points = {str(index): torch.randn(1, 2) for index in range(6)}
    found = robustness_report(flow, points, {"far": torch.full((1, 2), 9.0)}, num_samples=4)
    assert len(found.evidence) == 7
    assert found.evidence[0].grid == ()


def test_a_missing_package_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    sampled: list[str] = []

    def sample(
        context: Tensor, number: int, temperature: float, generator: torch.Generator
    ) -> Tensor:
        sampled.append("sampled")
        raise AssertionError

    with pytest.raises(ModuleNotFoundError, match=r"pip install 'robustflow\[report\]'"):
        robustness_report(planted_flow(), contexts("a", "b"), {}, sample=sample, out=tmp_path)
    assert not sampled


def test_vectors_are_no_pictures_and_not_judged_by_their_rule(tmp_path: Path) -> None:
    torch.manual_seed(0)
    step = rnn.flow_step(4, 3, rnn.Affine(), spatial_dims=0)
    flow = rnn.ConditionalFlow([step]).eval()

    def sample(
        context: Tensor, number: int, temperature: float, generator: torch.Generator
    ) -> Tensor:
        z = temperature * torch.randn(number, 4, generator=generator)
        return flow.inverse((z,), context.expand(number, -1))[0]

    contexts = {str(index): torch.randn(1, 3) for index in range(6)}
    report = robustness_report(
        flow,
        contexts,
        {"far": torch.full((1, 3), 9.0)},
        sample=sample,
        num_samples=2,
        temperatures=[1.0, 0.5],
        out=tmp_path,
    )
    assert "published rule" not in str(report)
    text = (tmp_path / "report.html").read_text()
    assert "faulty of" not in text and "T = 0.5: onsets" in text
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["contexts"][0]["temperatures"]["1.0"]["faulty"] is None
