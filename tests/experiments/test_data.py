"""Pictures from files, and crops that depend on (seed, step, index) alone."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustflow.experiments.data import crops
from robustflow.experiments.data.builtin import Split, manifest, split_of
from robustflow.experiments.data.crops import (
    CropDataset,
    Source,
    StepSampler,
    find_sources,
    orient,
)
from robustflow.experiments.data.features import FeatureCache
from robustflow.experiments.data.reading import UnreadablePicture, picture_files, read_picture
from robustflow.experiments.data.squares import squares_of
from robustflow.experiments.imaging.config import Config, ConfigError, DataTable
from robustflow.experiments.imaging.evaluation.evaluate import SIZE
from robustflow.experiments.imaging.sources import sources_of
from robustflow.experiments.tasks import make_task
from robustflow.experiments.tasks.base import to_8_bits


def gradient(height: int, width: int) -> np.ndarray:
    """A picture in which every pixel tells where it is."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows, columns, rows + columns], axis=-1).astype(np.uint8)


def test_odd_files_become_pictures(tmp_path: Path) -> None:
    colours = Image.fromarray(gradient(6, 8))
    grey = colours.convert("L")
    sixteen = Image.fromarray(np.asarray(grey, dtype=np.uint16) * 257)
    transparent = colours.convert("RGBA")
    transparent.putalpha(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees
    cases: dict[str, tuple[Image.Image, dict[str, Any], np.ndarray]] = {
        "rgb.png": (colours, {}, gradient(6, 8)),
        "grey.png": (grey, {}, np.repeat(np.asarray(grey)[..., None], 3, axis=-1)),
        "sixteen.png": (sixteen, {}, np.repeat(np.asarray(grey)[..., None], 3, axis=-1)),
        "transparent.png": (transparent, {}, np.full((6, 8, 3), 255, np.uint8)),
        "animated.webp": (
            colours,
            {"save_all": True, "append_images": [colours.rotate(180)], "lossless": True},
            gradient(6, 8),
        ),
        "turned.png": (colours, {"exif": exif}, np.rot90(gradient(6, 8), -1)),
        "cmyk.tif": (
            colours.convert("CMYK"),
            {},
            np.asarray(colours.convert("CMYK").convert("RGB")),
        ),
    }
    for name, (image, options, expected) in cases.items():
        image.save(tmp_path / name, **options)
        made = read_picture(tmp_path / name).permute(1, 2, 0).numpy()
        assert np.array_equal(made, expected), name
    assert [path.name for path in picture_files(tmp_path)] == sorted(cases)


def test_broken_files_are_named_and_left_out(tmp_path: Path) -> None:
    good = io.BytesIO()
    Image.fromarray(gradient(40, 40)).save(good, "PNG")
    (tmp_path / "good.png").write_bytes(good.getvalue())
    (tmp_path / "cut.png").write_bytes(good.getvalue()[: len(good.getvalue()) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(gradient(8, 8)).save(tmp_path / "small.png")
    said: list[str] = []
    found = find_sources(picture_files(tmp_path), None, make_task("denoise"), 32, said.append)
    assert [source.path.name for source in found] == ["good.png"]
    assert len(said) == 4
    for name, reason in {
        "cut.png": "damaged",
        "empty.jpg": "the file is empty",
        "text.png": "not a picture",
        "small.png": "8 x 8 is smaller than a crop of 32",
    }.items():
        assert any(name in sentence and reason in sentence for sentence in said), name


def test_the_manifest_is_what_is_installed() -> None:
    assert {picture.split for picture in manifest()} == {"train", "held_out", "ood"}
    assert len(split_of("train")) == 6
    for picture in manifest():
        assert picture.licence
        assert min(read_picture(picture.file).shape[1:]) >= 160
        assert picture.unchanged, picture.title


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    made = []
    for index, (height, width) in enumerate([(64, 96), (80, 70)]):
        path = tmp_path / f"{index}.png"
        Image.fromarray(gradient(height, width)).save(path)
        made.append(Source(path, (height, width)))
    return made


@pytest.mark.parametrize("split", ["train", "held_out", "ood"])
def test_the_default_squares_of_an_evaluation_fit_every_picture(split: Split) -> None:
    """One is 191 pixels high: its largest square is taken."""
    squares, skipped = squares_of(split, SIZE)
    assert len(squares) == len(split_of(split)) and not skipped
    assert all(176 <= each.shape[1] == each.shape[2] <= SIZE for each in squares.values())


def test_a_batch_is_the_same_for_any_number_of_ranks(sources: list[Source]) -> None:
    dataset = CropDataset(sources, make_task("sr"), 32, seed=3, noise=0.05)
    whole = [key for keys in StepSampler(5, 7, 4) for key in keys]
    shared = [
        key
        for step in (5, 6)
        for rank in (0, 1)
        for keys in StepSampler(step, step + 1, 4, rank=rank, ranks=2)
        for key in keys
    ]
    assert whole == shared
    again = CropDataset(sources, make_task("sr"), 32, seed=3, noise=0.05)
    again[0, 0]  # whatever was read before
    for key in whole:
        for name, tensor in dataset[key].items():
            assert torch.equal(tensor, again[key][name]), name
    assert not torch.equal(dataset[5, 0]["x"], dataset[5, 1]["x"])


def test_observations_of_crops_are_crops_of_observations(sources: list[Source]) -> None:
    task = make_task("sr", {"scale": 4})
    dataset = CropDataset(sources, task, 32, dequantise=False)
    orientations = set()
    for index in range(40):
        item = dataset[0, index]
        picture, orientation, top, left = item["crop"].tolist()
        orientations.add(orientation)
        whole = orient(read_picture(sources[picture].path), orientation).float()[None] / 255
        height, width = (side - side % 4 for side in whole.shape[-2:])
        assert torch.equal(item["x"], whole[0, :, top : top + 32, left : left + 32])
        y = task(whole[..., :height, :width])[
            0, :, top // 4 : top // 4 + 8, left // 4 : left // 4 + 8
        ]
        # Rounding to 8 bits can fall the other way where float32 sums differ.
        assert float((item["y"] - to_8_bits(y)).abs().max()) <= 1.001 / 255
    assert len(orientations) == 8


def test_noise_is_told_and_reaches_the_observation(sources: list[Source]) -> None:
    task = make_task("sr", {"scale": 4})
    clean = CropDataset(sources, task, 32, dequantise=False)[1, 1]
    noisy = CropDataset(sources, task, 32, dequantise=False, noise=0.05)[1, 1]
    torch.testing.assert_close(noisy["x"] - clean["x"], noisy["noise"])
    torch.testing.assert_close(noisy["y"] - clean["y"], task(noisy["noise"][None])[0])
    assert 0 < float(noisy["noise"].std()) < 0.05


def test_a_file_that_breaks_later_gives_way(
    sources: list[Source], caplog: pytest.LogCaptureFixture
) -> None:
    dataset = CropDataset(sources, make_task("denoise"), 32)
    sources[0].path.write_bytes(b"")
    chosen = [int(dataset[0, index]["crop"][0]) for index in range(10)]
    assert set(chosen) == {1}
    assert "the file is empty" in caplog.text
    sources[1].path.write_bytes(b"")
    with pytest.raises(UnreadablePicture, match="10 files"):
        CropDataset(sources, make_task("denoise"), 32)[0, 0]


def test_cached_features_are_crops_of_whole_features(tmp_path: Path, sources: list[Source]) -> None:
    task = make_task("sr", {"scale": 4})
    calls = []

    def encode(y: torch.Tensor) -> torch.Tensor:
        calls.append(y.shape)
        return torch.cat([y, 2 * y], dim=1)

    cache = FeatureCache(tmp_path / "cache", sources, task, encode, "key", limit_gib=1)
    dataset = CropDataset(sources, task, 32)
    items = [dataset[0, index] for index in range(8)]
    places = torch.stack([item["crop"] for item in items])
    features = cache.crops(places, 32)
    y = torch.stack([item["y"] for item in items])
    assert float((features[:, :3] - y).abs().max()) <= 1.001 / 255
    made = len(calls)
    assert torch.equal(
        FeatureCache(tmp_path / "cache", sources, task, encode, "key", limit_gib=1).crops(
            places, 32
        ),
        features,
    )
    assert len(calls) == made  # read from disk
    small = FeatureCache(tmp_path / "none", sources, task, encode, "key", limit_gib=0)
    assert torch.equal(small.crops(places, 32), features)
    assert not list((tmp_path / "none").iterdir())


def test_a_picture_with_too_many_pixels_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(gradient(20, 20)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadablePicture, match="it has more than twice"):
        read_picture(tmp_path / "large.png")


def test_decoded_pictures_are_kept_while_there_is_room(
    sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def read(path: Path) -> torch.Tensor:
        reads.append(path.name)
        return read_picture(path)

    monkeypatch.setattr(crops, "read_picture", read)
    for room, expected in ((3 * 64 * 96 + 3 * 80 * 70, 2), (3 * 64 * 96, 3)):
        reads.clear()
        monkeypatch.setattr(crops, "CACHE_BYTES", room)
        dataset = CropDataset(sources, make_task("denoise"), 32)
        for index in (0, 1, 1, 0):
            dataset._decode(sources[index].path)
        assert len(reads) == expected


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_cached_features_hold_no_file_open(tmp_path: Path, sources: list[Source]) -> None:
    """A training set has thousands of pictures and orientations, a process 1024 files."""
    cache = FeatureCache(tmp_path / "c", sources, make_task("sr"), lambda y: y, "k", limit_gib=1)
    places = torch.tensor([[0, orientation, 0, 0] for orientation in range(8)])
    before = len(list(Path("/proc/self/fd").iterdir()))
    first = cache.crops(places, 32)
    assert torch.equal(cache.crops(places, 32), first)  # from the files
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_folders_of_pictures_and_what_is_left_for_validation(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        Image.fromarray(gradient(40, 40)).save(tmp_path / f"{name}.png")
    said: list[str] = []

    def found(folder: Path, validation: str = "") -> tuple[list[str], list[str]]:
        data = DataTable(train=str(folder), validation=validation, crop=32)
        config = replace(Config(), data=data)
        made = sources_of(config, make_task("sr"), said.append)
        return ([s.path.name for s in made.training], [s.path.name for s in made.validation])

    assert found(tmp_path) == (["a.png", "b.png"], ["c.png"])
    assert not said
    alone = tmp_path / "alone"
    alone.mkdir()
    Image.fromarray(gradient(40, 40)).save(alone / "one.png")
    assert found(alone) == (["one.png"], ["one.png"])
    assert "the training pictures serve for that, too" in said.pop()
    assert found(alone, str(alone)) == (["one.png"], ["one.png"])
    assert not said


def test_observations_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    low = tmp_path / "low"
    (low / "more").mkdir(parents=True)
    for folder, side in ((tmp_path, 64), (low, 16), (low / "more", 16)):
        Image.fromarray(gradient(side, side)).save(folder / "a.png")
    data = DataTable(train=str(tmp_path), observations=str(low), crop=32)
    with pytest.raises(ConfigError, match="have the same name"):
        sources_of(replace(Config(), data=data), make_task("sr"), print)
    with pytest.raises(ConfigError, match="'inpaint' observes 4 channels"):
        sources_of(replace(Config(), data=data), make_task("inpaint"), print)
