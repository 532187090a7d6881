"""`robustflow check`: files in, exit status, table, JSON and masks out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from robustflow._resizing import downsample
from robustflow.cli import main
from robustflow.experiments import photographs
from robustflow.experiments.checking import match
from robustflow.experiments.photographs import crop, load

RED = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)


def write(picture: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)


def photograph(number: int) -> Tensor:
    picture = photographs.TRAINING[number]
    return crop(load(picture), picture.corner, 96).clone()


def low_of(picture: Tensor) -> Tensor:
    small = downsample(picture[None].float() / 255, 4)[0]
    return (small.clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Clean pictures, their low-resolution ones, and where to write."""
    sr, lr, out = tmp_path / "sr", tmp_path / "lr", tmp_path / "out"
    for number in range(3):
        write(photograph(number), sr / f"080{number}.png")
        write(low_of(photograph(number)), lr / f"080{number}x4.png")
    return sr, lr, out


def check(*words: object) -> int:
    return main(["check", *map(str, words)])


def test_clean_pictures_exit_with_0(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sr, lr, out = folders
    assert check(sr, "--lr", lr, "--out", out) == 0
    assert [path.name for path in out.iterdir()] == ["check.json"]
    report = json.loads((out / "check.json").read_text())
    assert report["found"] is False and not report["skipped"]
    assert list(report["pictures"]) == ["0800", "0801", "0802"]
    assert list(report["kinds"]) == ["saturated", "black", "consistency", "grid"]
    printed = capsys.readouterr().out
    assert "0 of 3" in printed and "consistency" in printed and "range" not in printed
    assert check(sr, "--out", out) == 0
    assert "consistency" not in json.loads((out / "check.json").read_text())["kinds"]


def test_artifacts_exit_with_1_and_are_shown(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sr, lr, out = folders
    picture = photograph(1)
    picture[:, 8:20, 40:52] = RED
    write(picture, sr / "0801.png")
    assert check(sr, "--lr", lr, "--out", out) == 1
    report = json.loads((out / "check.json").read_text())
    masks = report["pictures"]["0801"]["masks"]
    assert masks["saturated"] == "masks/0801.saturated.png" and "consistency" in masks
    assert not report["pictures"]["0800"]["masks"]
    assert report["pictures"]["0801"]["pixels"]["saturated"] == 144 / 96**2
    mask = np.asarray(Image.open(out / masks["saturated"]))
    expected = np.zeros((96, 96), bool)
    expected[8:20, 40:52] = True
    assert mask.dtype == bool and np.array_equal(mask, expected)
    printed = capsys.readouterr().out
    assert "1 of 3" in printed and "0801" in printed and "saturated 1.56 %" in printed

    write(photograph(1), sr / "0801.png")  # mended: the masks go
    (out / "masks" / "mine.png").write_bytes(b"another's")
    assert check(sr, "--lr", lr, "--out", out) == 0
    assert [path.name for path in (out / "masks").iterdir()] == ["mine.png"]


def test_a_block_that_the_low_resolution_picture_has_is_no_artifact(
    folders: tuple[Path, Path, Path],
) -> None:
    sr, lr, out = folders
    picture = photograph(1)
    picture[:, 8:20, 40:52] = RED
    write(picture, sr / "0801.png")
    write(low_of(picture), lr / "0801x4.png")
    assert check(sr, "--lr", lr, "--out", out) == 0
    assert check(sr, "--out", out) == 1


def test_samples_of_one_low_resolution_picture_are_compared(tmp_path: Path) -> None:
    sr, lr, out = tmp_path / "sr", tmp_path / "lr", tmp_path / "out"
    generator = torch.Generator().manual_seed(0)
    picture = photograph(0).float()
    for sample in range(5):
        noise = 4 * torch.randn(picture.shape, generator=generator)
        made = (picture + noise).clamp(0, 255).to(torch.uint8)
        if sample == 2:
            made[:, 30:40, 30:40] = made[:, 30:40, 30:40] // 4
        write(made, sr / f"astronaut-{sample:02d}.png")
    write(low_of(photograph(0)), lr / "astronaut.png")
    assert check(sr, "--lr", lr, "--out", out) == 1
    report = json.loads((out / "check.json").read_text())
    found = {name for name, of in report["pictures"].items() if "ensemble" in of["masks"]}
    assert found == {"astronaut-02"}
    assert report["kinds"]["ensemble"]["value"] == pytest.approx(0.2)


def test_files_that_cannot_be_read_are_named_and_left_out(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sr, lr, out = folders
    (sr / "broken.png").write_bytes(b"\x89PNG and no more")
    (sr / "empty [1].jpg").write_bytes(b"")
    (lr / "0802x4.png").write_bytes(b"")
    assert check(sr, "--lr", lr, "--out", out) == 0
    report = json.loads((out / "check.json").read_text())
    reasons = {Path(one["file"]).name: one["reason"] for one in report["skipped"]}
    assert reasons == {
        "broken.png": "it is not a picture that Pillow knows",
        "empty [1].jpg": "the file is empty",
        "0802x4.png": "the file is empty",
    }
    assert report["without_low_resolution"] == ["broken", "empty [1]", "0802"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "empty [1].jpg is left out: the file is empty." in printed
    assert "0802 has no low-resolution picture: checked without." in printed


def test_grey_and_transparent_pictures_are_read(tmp_path: Path) -> None:
    (tmp_path / "sr").mkdir()
    picture = photograph(1).permute(1, 2, 0).numpy()
    Image.fromarray(picture).convert("L").save(tmp_path / "sr" / "grey.png")
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "sr" / "alpha.webp", lossless=True)
    assert check(tmp_path / "sr", "--out", tmp_path / "out") == 0
    assert set(json.loads((tmp_path / "out/check.json").read_text())["pictures"]) == {
        "grey",
        "alpha",
    }


def test_earlier_masks_are_not_checked(folders: tuple[Path, Path, Path]) -> None:
    sr, lr, _ = folders
    picture = photograph(1)
    picture[:, 8:20, 40:52] = RED
    write(picture, sr / "0801.png")
    for _ in range(2):
        assert check(sr, "--lr", lr, "--out", sr / "checked") == 1
    assert len(json.loads((sr / "checked/check.json").read_text())["pictures"]) == 3


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no folder", "There is no folder"),
        ("a file", "is a file: name the folder of pictures"),
        ("no picture", "There is no picture in"),
        ("nothing readable", "No picture of .* can be read: .*the file is empty"),
        ("no low-resolution folder", "There is no folder"),
        ("other names", "No picture of .* has its low-resolution picture in .*: they must have"),
        (
            "another scale",
            r"0800.png has 96 x 96 pixels, and .*0800x4.png 24 x 24: with --scale 2 ",
        ),
        ("twice", "0800.png and .*0800.webp have the same name|0800.webp and"),
        ("unwritable", "cannot be written"),
    ],
)
def test_bad_requests_exit_with_2(
    case: str,
    message: str,
    folders: tuple[Path, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sr, lr, out = folders
    (tmp_path / "bare").mkdir()
    (tmp_path / "text").write_text("")
    write(photograph(0), tmp_path / "others" / "cat.png")
    words: dict[str, list[object]] = {
        "no folder": [tmp_path / "absent"],
        "a file": [tmp_path / "text"],
        "no picture": [tmp_path / "bare"],
        "nothing readable": [tmp_path / "empty"],
        "no low-resolution folder": [sr, "--lr", tmp_path / "absent"],
        "other names": [sr, "--lr", tmp_path / "others"],
        "another scale": [sr, "--lr", lr, "--scale", 2],
        "twice": [sr],
        "unwritable": [sr, "--out", tmp_path / "text" / "folder"],
    }
    if case == "nothing readable":
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "a.png").write_bytes(b"")
    if case == "twice":
        write(photograph(0), sr / "0800.webp")
    if case == "another scale":
        for path in lr.iterdir():  # by the names of another scale nothing is found
            path.rename(path.with_name(path.name.replace("x4", "")))
        message = message.replace("x4", "")
    options = words[case] if case == "unwritable" else [*words[case], "--out", out]
    assert check(*options) == 2
    error = capsys.readouterr().err
    assert error.startswith("robustflow check: error: ")
    assert re.search(message, error), error


def test_a_scale_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        check(tmp_path, "--scale", 0)
    assert exit_.value.code == 2
    assert "--scale: must be a whole number of at least 1, got '0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    [
        ("0801", 4, "0801x4"),
        ("0801x4", 4, "0801x4"),
        ("0801_sample_3", 4, "0801x4"),
        ("0801-00", 8, None),
        ("08011", 4, None),
        ("a/cat-01", 4, "a/cat"),
        ("cat-01", 4, None),
        ("dog-2-1", 4, "dog-2"),
        ("dog-3", 4, "dog"),
        ("x4", 4, None),
    ],
)
def test_names_that_belong_together(name: str, scale: int, expected: str | None) -> None:
    assert match(name, ["0801x4", "a/cat", "dog", "dog-2"], scale) == expected
