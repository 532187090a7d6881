"""`robustflow evaluate`: its figures against other libraries' and by hand, and odd requests."""

from __future__ import annotations

import argparse
import csv
import doctest
import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor, nn

from robustflow.cli import main
from robustflow.cli.evaluate import add_parser
from robustflow.diagnostics.artifacts import find_artifacts
from robustflow.diagnostics.intervals import mean_interval
from robustflow.diagnostics.posterior import crps
from robustflow.experiments.data.reading import read_picture
from robustflow.experiments.data.squares import squares_of
from robustflow.experiments.imaging.evaluation import perceptual
from robustflow.experiments.imaging.evaluation.case import luma
from robustflow.experiments.imaging.evaluation.diversity import diversity
from robustflow.experiments.imaging.evaluation.drawing import COLUMNS, COOLING, draw
from robustflow.experiments.imaging.evaluation.fixed import find_latent
from robustflow.experiments.imaging.evaluation.gmsd import gmsd
from robustflow.experiments.imaging.evaluation.perceptual import NoPerceptual, Perceptual
from robustflow.experiments.imaging.loading import load_flow
from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.experiments.imaging.training import Trainer
from robustflow.experiments.tasks import to_8_bits
from tests.experiments.imaging.test_published import published_weights
from tests.experiments.imaging.test_training import small
from tests.support.browser import needs_browser, opened

SIZE, NUMBER = 48, 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Barely trained flows: affine of two seeds, modified RQ, and one of another task."""
    folder = tmp_path_factory.mktemp("runs")
    every: dict[str, dict[str, object]] = {
        "affine-0": {"model.coupling": "affine"},
        "affine-1": {"model.coupling": "affine", "training.seed": 1},
        "spline": {},
        "grey": {"task.scale": 2},
    }
    for name, changes in every.items():
        Trainer(small({"training.iterations": 1, **changes}), folder / name).run()
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        smooth = ndimage.gaussian_filter(generator.random((64, 70, 3)), (3, 3, 0))
        scaled = (smooth - smooth.min()) / (smooth.max() - smooth.min())
        Image.fromarray((255 * scaled).astype(np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def found(
    runs: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """An evaluation of three flows, and its JSON file."""
    out = tmp_path_factory.mktemp("evaluation")
    flows = [str(runs / name) for name in ("affine-0", "affine-1", "spline")]
    options = ["--data", str(pictures), "--size", "50", "-n", str(NUMBER), "--seed", "3"]
    assert main(["evaluate", *flows, *options, "--temperatures", "0,0.9", "--out", str(out)]) == 0
    return out, json.loads((out / "evaluation.json").read_text())


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def middle(path: Path) -> Tensor:
    """The square that is evaluated: 48 pixels, of which the flow's levels are a divisor."""
    pixels = read_picture(path).float() / 255
    top, left = ((side - SIZE) // 2 for side in pixels.shape[1:])
    return pixels[None, :, top : top + SIZE, left : left + SIZE]


def similarity(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM by scipy: a Gaussian window of 11 x 11, pictures mirrored at their edges."""

    def blurred(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image, (1.5, 1.5, 0), mode="mirror", truncate=3.5)

    x, y = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = blurred(x), blurred(y)
    spread = blurred(x * x) - mean_x**2 + blurred(y * y) - mean_y**2
    both = blurred(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + 0.01**2) * (2 * both + 0.03**2)
    return float((above / ((mean_x**2 + mean_y**2 + 0.01**2) * (spread + 0.03**2))).mean())


def test_figures_are_those_of_other_libraries(
    found: tuple[Path, dict[str, Any]], runs: Path, pictures: Path
) -> None:
    flow = load_flow(runs / "spline").flow
    truth = middle(pictures / "b.png")
    y = flow.task.observe(truth)
    raw = draw(flow, y, ["raw"], number=NUMBER, temperature=0.9, seed=3)["raw"].samples
    saved = to_8_bits(raw.clamp(0, 1))
    rows = lines(found[0] / "pictures.csv")
    (row,) = (
        row
        for row in rows
        if (row["checkpoint"], row["temperature"], row["column"], row["picture"])
        == ("spline", "0.9", "raw", "b.png")
    )
    images = [each.permute(1, 2, 0).numpy() for each in saved]
    target = truth[0].permute(1, 2, 0).numpy()
    psnr = [peak_signal_noise_ratio(target, image, data_range=1) for image in images]
    assert float(row["PSNR"]) == pytest.approx(np.mean(psnr), rel=1e-5)
    ssim = np.mean([similarity(image, target) for image in images])
    assert float(row["SSIM"]) == pytest.approx(ssim, abs=2e-5)
    low = flow.task.forward(saved)
    errors = (low - y).flatten(1).square().mean(dim=1)
    assert float(row["LR-PSNR"]) == pytest.approx(float((-10 * errors.log10()).mean()), rel=1e-5)
    assert float(row["LR-PSNR, worst"]) == pytest.approx(
        float(-10 * errors.max().log10()), rel=1e-5
    )
    assert float(row["CRPS"]) == pytest.approx(float(crps(saved, truth[0]).mean()), rel=1e-5)
    distance = np.abs(saved.numpy() - truth.numpy()).mean(axis=1)
    best = distance.mean(axis=(1, 2)).min()
    expected = 100 * (best - distance.min(axis=0).mean()) / best
    assert float(row["diversity (pixels)"]) == pytest.approx(expected, rel=1e-4)
    safe = draw(flow, y, ["raw"], number=1, temperature=0.0, seed=3)["raw"].samples
    artifacts = find_artifacts(raw, y, "sr4", safe)
    for kind, flagged in artifacts.flagged.items():
        assert float(row[f"artifacts: {kind}"]) == pytest.approx(
            100 * float(flagged.float().mean())
        )
    assert float(row["largest |value|"]) == pytest.approx(float(raw.abs().max()))


def test_the_table_has_means_intervals_and_what_each_metric_is(
    found: tuple[Path, dict[str, Any]],
) -> None:
    out, saved = found
    values = [
        float(row["PSNR"])
        for row in lines(out / "pictures.csv")
        if (row["checkpoint"], row["temperature"], row["column"]) == ("affine-0", "0.9", "raw")
    ]
    assert len(values) == 3
    row, *more = (
        row
        for row in lines(out / "table.csv")
        if (row["checkpoint"], row["temperature"], row["column"], row["metric"])
        == ("affine-0", "0.9", "raw", "PSNR")
    )
    assert not more
    expected = mean_interval(values)
    assert float(row["value"]) == pytest.approx(expected.value)
    assert float(row["low"]) == pytest.approx(expected.low)
    assert (row["coupling"], row["number"], row["better"]) == ("affine", "3", "higher")
    assert (row["colour space"], row["border"]) == ("RGB", "0")
    assert row["library"].startswith("torchmetrics ")
    names = {metric["metric"] for metric in saved["metrics"]}
    assert {"SSIM", "GMSD", "energy score", "consistency", "faulty", "time"} <= names
    assert "MS-SSIM" not in names
    assert "Left out: MS-SSIM: it needs sides of at least 176 pixels." in saved["left out"]
    assert any("LPIPS" in notice and "--lpips" in notice for notice in saved["left out"])
    page = (out / "evaluation.html").read_text()
    assert "affine-0" in page and "torchmetrics" in page and "<script src" not in page
    assert Image.open(out / "evaluation.png").width > 500


def test_checkpoints_of_one_coupling_have_a_row_in_common(
    found: tuple[Path, dict[str, Any]],
) -> None:
    rows = {
        (row["checkpoint"], row["temperature"], row["column"]): row["metrics"]["SSIM"]["value"]
        for row in found[1]["rows"]
    }
    pooled = rows["affine, mean of 2", 0.9, "raw"]
    assert pooled == pytest.approx(
        (rows["affine-0", 0.9, "raw"] + rows["affine-1", 0.9, "raw"]) / 2
    )
    assert not any(key[0].startswith("modified_rq, mean") for key in rows)


def test_projected_samples_fit_the_observation(found: tuple[Path, dict[str, Any]]) -> None:
    for row in found[1]["rows"]:
        if row["column"] == "projected":
            assert row["metrics"]["consistency"]["value"] < 1e-5
        elif row["temperature"] == 0.9:
            assert row["metrics"]["consistency"]["value"] > 1e-4
        if row["temperature"] == 0 and row["column"] != "fixed":
            assert row["metrics"]["diversity (pixels)"]["value"] == 0


def exploding(runs: Path) -> ImagingFlow:
    """An affine flow whose last scale to be inverted has collapsed everywhere."""
    flow = load_flow(runs / "affine-0").flow
    assert isinstance(flow, ImagingFlow)
    name, bias = list(flow.flow.named_parameters())[-1]
    assert name.endswith("trunk.3.bias")  # of the conditioner's head: shift, scale, shift, ...
    with torch.no_grad():
        bias.view(-1, 2)[:, 1] -= 14.0
    return flow


def test_the_guard_cools_what_exploded_and_lists_say_which_samples(runs: Path) -> None:
    flow, y = exploding(runs), torch.rand(1, 3, 8, 8)
    drawn = draw(flow, y, ["raw", "projected", "guarded"], number=3, temperature=1.0, seed=0)
    raw, guarded = drawn["raw"].samples, drawn["guarded"].samples
    assert float(raw.abs().max()) > 100
    cooled = draw(flow, y, ["raw"], number=3, temperature=COOLING, seed=0)["raw"].samples
    torch.testing.assert_close(guarded, cooled)
    calm = load_flow(runs / "spline").flow
    both = draw(calm, y, ["raw", "guarded"], number=3, temperature=0.5, seed=0)
    assert torch.equal(both["raw"].samples, both["guarded"].samples)


def test_a_fixed_latent_is_nearer_to_the_training_pictures_than_zero(runs: Path) -> None:
    flow = load_flow(runs / "spline").flow
    found = find_latent(flow)
    squares, _ = squares_of("train", 32)
    distances = {"zero": 0.0, "found": 0.0}
    for square in squares.values():
        truth = square[None].float() / 255
        y = flow.task.observe(truth)
        at_zero = draw(flow, y, ["raw"], number=1, temperature=0.0, seed=0)["raw"].samples
        made = [
            draw(flow, y, ["fixed"], number=3, temperature=t, seed=0, fixed=found)
            for t in (0.0, 1.0)
        ]
        assert torch.equal(made[0]["fixed"].samples, made[1]["fixed"].samples)
        assert made[0]["fixed"].samples.shape == truth.shape
        distances["zero"] += float((at_zero - truth).abs().mean())
        distances["found"] += float((made[0]["fixed"].samples - truth).abs().mean())
    assert distances["found"] < distances["zero"]


def test_faulty_samples_are_listed_as_in_the_published_file(
    runs: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustflow.experiments.imaging.evaluation import drawing

    decoded = drawing._decoded

    def broken(*arguments: Any, guarded: bool) -> Tensor:
        samples = decoded(*arguments, guarded=guarded).clamp(0, 1)
        if len(samples) > 1:
            samples[0, 0, 0, 0], samples[2, 1, 2, 3] = 1.6, math.nan
            samples[3, 0, 0, 0] = math.inf
        return samples

    monkeypatch.setattr(drawing, "_decoded", broken)
    picture, out = str(pictures / "a.png"), tmp_path / "out"
    command = ["evaluate", str(runs / "spline"), "--data", picture, "--size", "32", "-n", "4"]
    command += ["--temperatures", "0.9", "--columns", "raw", "--out", str(out)]
    assert main(command) == 0
    (file,) = (out / "errorpixels").iterdir()
    assert file.read_text() == 'i,ii,"errpixel (1.5,-0.5)",nanpixel\n0,0,1,0\n0,2,0,1\n0,3,1,1\n'
    saved = json.loads((out / "evaluation.json").read_text())
    metrics = saved["rows"][0]["metrics"]
    assert metrics["faulty"]["value"] == 75
    assert metrics["largest |value|"]["value"] == "inf"
    assert metrics["PSNR"]["value"] > 0 and metrics["PSNR"]["low"] == "nan"  # one picture
    assert saved["settings"]["columns"] == ["raw"]


def test_observations_without_truth_broken_files_and_small_ones(
    runs: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low = tmp_path / "low"
    low.mkdir()
    for name in ("a", "b"):
        Image.open(pictures / f"{name}.png").resize((17, 16)).save(low / f"{name}.png")
    (low / "empty.png").write_bytes(b"")
    (low / "broken.png").write_bytes((low / "a.png").read_bytes()[:200])
    Image.new("RGB", (4, 4)).save(low / "small.png")
    out = tmp_path / "out"
    command = ["evaluate", str(runs / "spline"), "--data", str(low), "--no-truth", "--size", "64"]
    assert main([*command, "-n", "2", "--temperatures", "0.5", "--out", str(out)]) == 1
    printed = capsys.readouterr().out
    assert "empty.png is left out: the file is empty." in printed
    assert "broken.png is left out: it is damaged" in printed
    assert "small.png is left out: 4 x 4 is smaller than a crop" in printed
    assert "Left out: PSNR, PSNR of the mean, SSIM" in printed and ": there is no truth." in printed
    saved = json.loads((out / "evaluation.json").read_text())
    names = {metric["metric"] for metric in saved["metrics"]}
    assert "LR-PSNR" in names and "PSNR" not in names and "CRPS" not in names
    assert len(saved["pictures"]) == 8  # 2 pictures, 4 columns
    assert len(saved["skipped"]) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data", "no-such-folder"], "There is no folder no-such-folder"),
        (["--temperatures", "-1"], "Temperatures must be at least 0"),
        (["--size", "2"], "The squares must have at least 4 pixels, got 2"),
        (["--border", "24", "--size", "48"], "A border of 24 pixels leaves nothing"),
    ],
)
def test_bad_requests_are_named(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    command = ["evaluate", str(runs / "spline"), "--out", str(tmp_path)]
    assert main([*command, *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize(
    ("option", "word", "sentence"),
    [
        ("--temperatures", "hot", "must be numbers joined by commas, got 'hot'"),
        (
            "--columns",
            "raw,cooked",
            "must be of raw, projected, fixed, guarded, joined by commas",
        ),
        ("--size", "-1", "must be a whole number of at least 0"),
    ],
)
def test_options_are_checked_when_they_are_read(
    capsys: pytest.CaptureFixture[str], option: str, word: str, sentence: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", "flow", f"{option}={word}"])
    assert exit_.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_columns_of_the_command_line_are_those_that_can_be_drawn() -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    assert parser.parse_args(["evaluate", "flow"]).columns == list(COLUMNS)


def test_flows_of_several_tasks_are_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flows = [str(runs / "spline"), str(runs / "grey")]
    assert main(["evaluate", *flows, "--out", str(tmp_path)]) == 2
    assert "are of other tasks" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "There is no checkpoint at" in capsys.readouterr().err


@pytest.mark.parametrize("coupling", ["affine", "rqspline"])
def test_published_weights_are_evaluated_beside_others(
    runs: Path, pictures: Path, tmp_path: Path, coupling: str
) -> None:
    torch.manual_seed(0)
    weights = published_weights(coupling, std=True, frozen=False)
    torch.save(weights, tmp_path / "published.pth")
    command = ["evaluate", str(tmp_path / "published.pth"), str(runs / "spline"), "--data"]
    command += [str(pictures / "a.png"), "--size", "32", "-n", "2", "--temperatures", "0.5"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [each["coupling"] for each in saved["checkpoints"]] == [coupling, "modified_rq"]
    assert [row["column"] for row in saved["rows"]] == 2 * list(COLUMNS)


def test_gmsd_is_that_of_its_formula() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.random((2, 20, 26))
    sizes = []
    for image in (x, y):
        small_one = image.reshape(10, 2, 13, 2).mean(axis=(1, 3))
        parts = [
            ndimage.correlate(small_one, np.array(kernel) / 3, mode="constant")
            for kernel in ([[1, 0, -1]] * 3, [[1] * 3, [0] * 3, [-1] * 3])
        ]
        sizes.append(np.hypot(*parts))
    above = 2 * sizes[0] * sizes[1] + 170 / 255**2
    similarity = above / (sizes[0] ** 2 + sizes[1] ** 2 + 170 / 255**2)
    ours = gmsd(*(torch.from_numpy(image)[None, None] for image in (x, y)))
    assert float(ours) == pytest.approx(similarity.std())


def test_luma_is_matlabs() -> None:
    pixels = np.random.default_rng(0).random((5, 6, 3))
    ours = luma(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    np.testing.assert_allclose(ours[0, 0].numpy(), rgb2ycbcr(pixels)[..., 0] / 255, atol=1e-6)


def test_diversity_of_equal_samples_is_nothing() -> None:
    distances = torch.rand(1, 4, 5).expand(3, -1, -1)
    assert diversity(distances) == pytest.approx(0, abs=1e-5)
    assert math.isnan(diversity(torch.zeros(2, 3, 3)))


class Sliced(nn.Module):
    """As the package's AlexNet: slices whose parts keep their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.slice1 = nn.Sequential()
        self.slice1.add_module("0", nn.Conv2d(3, 2, 3))
        self.slice2 = nn.Sequential()
        self.slice2.add_module("3", nn.Conv2d(2, 2, 3))


class StandIn(nn.Module):
    """As the package's LPIPS; its distance is the squared difference's mean."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        assert options["pnet_rand"] and options["spatial"]  # nothing is downloaded
        self.net = Sliced()

    def forward(self, x: Tensor, y: Tensor, normalize: bool) -> Tensor:
        assert normalize
        return (x - y).square().mean(dim=1, keepdim=True)


def test_lpips_takes_weights_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("lpips")
    module.LPIPS = StandIn
    monkeypatch.setitem(sys.modules, "lpips", module)
    monkeypatch.setattr(perceptual, "version", lambda name: "0.1.4")
    weights = {
        f"features.{part}": parameter
        for part, parameter in nn.Sequential(
            nn.Conv2d(3, 2, 3), nn.ReLU(), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Linear(2, 2)
        )
        .state_dict()
        .items()
    }
    torch.save(weights, tmp_path / "alexnet.pth")
    network = Perceptual(tmp_path / "alexnet.pth")
    loaded: Any = network._network
    assert torch.equal(loaded.net.slice2[0].weight, weights["features.3.weight"])
    x, y = torch.rand(2, 3, 40, 40), torch.rand(1, 3, 40, 40)
    torch.testing.assert_close(network(x, y), (x - y).square().mean(dim=1))
    assert network.missing(x) is None
    assert "at least 32 pixels" in str(network.missing(x[..., :20]))
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name, sentence in {
        "none.pth": "there is no file",
        "other.pth": "holds no weights of AlexNet: features.0.weight is missing",
        "text.pth": "holds no weights",
    }.items():
        with pytest.raises(NoPerceptual, match=sentence):
            Perceptual(tmp_path / name)
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(NoPerceptual, match=r"pip install 'robustflow\[lpips\]'"):
        Perceptual(tmp_path / "alexnet.pth")


@pytest.mark.parametrize("module", ["gmsd", "diversity", "results"])
def test_examples_run(module: str) -> None:
    path = f"robustflow.experiments.imaging.evaluation.{module}"
    found = doctest.testmod(importlib.import_module(path), extraglobs={"torch": torch})
    assert found.failed == 0


@pytest.mark.browser
@needs_browser
def test_the_page_in_a_browser(found: tuple[Path, dict[str, Any]]) -> None:
    from selenium.webdriver.common.by import By

    with opened(found[0] / "evaluation.html") as driver:
        table = driver.find_element(By.CSS_SELECTOR, "#group-1 ~ .wide table")
        heads = table.find_elements(By.CSS_SELECTOR, "thead button")
        place = [head.text.partition(",")[0] for head in heads].index("PSNR")
        heads[place].click()
        cells = table.find_elements(By.CSS_SELECTOR, f"tbody td:nth-child({place + 1})")
        values = [float(cell.text.split(" ")[0]) for cell in cells]
        assert len(values) == 32 and values == sorted(values)
        images = driver.find_elements(By.CSS_SELECTOR, "figure img")
        widths = [driver.execute_script("return arguments[0].naturalWidth", i) for i in images]
        assert len(images) == 1 + 3 * 5 and min(widths) > 0  # 3 pictures, 3 flows
