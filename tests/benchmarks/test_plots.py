"""Pictures are drawn from JSON alone, say what made them, and are legible on white and on dark."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

import numpy as np
from matplotlib import image, rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from benchmarks import plot_bars, plot_lines, plot_style, plots, scaling
from benchmarks.scaling_points import ScalingRow
from robustflow.benchmarks.rows import Row

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {
    "cpu": "A Processor",
    "cores": 2,
    "threads": 2,
    "torch": "2.13.0",
    "platform": "Linux x86_64",
    "robustflow": {"isa": "avx2"},
}
DIRECTIONS = ("forward", "inverse", "forward+backward")


def _row(name: str, direction: str, allocator: str, **ratio: float) -> dict[str, Any]:
    row = Row(
        name=name,
        operation="rq_spline",
        direction=direction,
        shape=(100, 10),
        dtype="float32",
        allocator=allocator,
        median_s=1e-3,
        spread=0.1,
        elements_per_s=1e6,
        bytes=104_000,
        floor_fraction=0.5,
        ratio=ratio,
        ratio_spread=dict.fromkeys(ratio, 0.1),
    )
    return asdict(row)


SUITE: dict[str, Any] = {
    "machine": MACHINE,
    "command": "robustflow bench",
    "rows": [
        _row("nsf-1e3.rq8.forward", "forward", "keeping", nflows=21.0, eager=12.0),
        _row("nsf-1e3.rq8.forward", "forward", "default", nflows=33.0, eager=16.0),
        _row("nsf-1e3.rq8.train", "forward+backward", "keeping", nflows=11.0, forward=0.5),
        _row("end-to-end.nsf.train", "training step", "keeping", unpatched=2.5),
    ],
}


def _scaled(
    sweep: str, operation: str, num_bins: int, count: int, direction: str, threads: int
) -> ScalingRow:
    seconds = 2e-5 + count * max(1, num_bins) * 1e-9 / threads
    num_bytes = 104 * count
    return ScalingRow(
        name=f"scaling-{sweep}.{operation}{num_bins}.{direction}.n{count}.t{threads}",
        operation=operation,
        direction=direction,
        shape=(count,),
        dtype="float32",
        allocator="keeping",
        median_s=seconds,
        spread=0.1,
        elements_per_s=count / seconds,
        bytes=num_bytes,
        floor_fraction=0.4,
        ratio={"nflows": 20.0} if count <= 10**4 and threads == 2 else {},
        sweep=sweep,
        threads=threads,
        num_bins=num_bins,
        seconds_per_element=seconds / count,
        bytes_per_element=104.0,
        copy_bytes_per_s=num_bytes / (0.4 * seconds),
    )


@pytest.fixture(scope="module")
def scaled() -> dict[str, Any]:
    kinds = [(direction, threads) for direction in DIRECTIONS for threads in (1, 2)]
    found = [
        _scaled("n", operation, num_bins, count, *kind)
        for operation, num_bins in (("conditional_affine", 0), ("rq_spline", 8))
        for count in (10**2, 10**4, 10**6, 10**8)
        if (operation, count) != ("rq_spline", 10**8)
        for kind in kinds
    ]
    found += [
        _scaled("k", "rq_spline", bins, 10**4, *kind) for bins in (2, 8, 64) for kind in kinds
    ]
    return {
        "machine": MACHINE,
        "command": "python -m benchmarks.scaling",
        "rows": [asdict(row) for row in found],
        "beyond_cache": scaling.steadiness(found, cache=1 << 20),
        "last_cache_bytes": 1 << 20,
    }


def _dropin(**seconds: float) -> dict[str, Any]:
    return {
        "library": "nflows",
        "size": "wide",
        "what": "sampling",
        "allocator": "default",
        "seconds": seconds,
    }


DROPIN: dict[str, Any] = {
    "machine": MACHINE,
    "rows": [],
    "dropin": [_dropin(off=0.4, on=0.2, free=0.16)],
}


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with rc_context(plot_style.RC):
        yield


def _texts(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def _widths(figure: Figure) -> list[float]:
    return [
        bar.get_width()
        for axis in figure.axes
        for bar in axis.patches
        if isinstance(bar, Rectangle)
    ]


def test_files_of_every_kind(tmp_path: Path, scaled: dict[str, Any]) -> None:
    expected = {
        "suite": (SUITE, ["end-to-end", "speedups"]),
        "scaled": (
            scaled,
            ["bins-keeping", "elements-keeping", "floor-keeping"],
        ),
        "dropin": (DROPIN, ["dropin-default"]),
    }
    files = []
    for name, (record, _) in expected.items():
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(record))
    out = tmp_path / "new" / "folder"
    assert plots.main([*map(str, files), "--out", str(out)]) == 0
    names = {f"{name}-{picture}" for name, (_, found) in expected.items() for picture in found}
    assert {path.name for path in out.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "png")
    }
    for name in names:
        assert ElementTree.parse(out / f"{name}.svg").getroot().tag.endswith("svg")
        pixels = image.imread(out / f"{name}.png")
        assert pixels.shape[2] == 4 and (pixels[[0, -1]][:, [0, -1], 3] == 0).all()
        assert pixels[..., 3].max() == 1


def test_the_same_file_gives_the_same_picture(tmp_path: Path) -> None:
    file = tmp_path / "suite.json"
    file.write_text(json.dumps(SUITE))
    first, again = plots.draw(file, tmp_path / "a"), plots.draw(file, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_speedups_say_the_numbers_and_what_is_missing() -> None:
    (_, figure), (_, flows) = plots.pictures(SUITE)
    texts = _texts(figure)
    assert "21× (33)" in texts and "12× (16)" in texts and "11×" in texts
    # Bars begin at 1: as fast as the competitor.
    assert sorted(_widths(figure)) == [10.0, 11.0, 20.0]
    assert "competitor's time over ours" in texts and "nsf-1e3.rq8   100×10" in texts
    # Its own forward is no competitor.
    assert not any("0.5×" in text for text in texts)
    assert "2.5×" in _texts(flows) and "nflows without the patch" in _texts(flows)


def test_a_direction_without_a_row_is_not_measured() -> None:
    rows = [*SUITE["rows"], _row("tiny.rq8.forward", "forward", "keeping", eager=3.0)]
    figure = plot_bars.speedups([row for row in rows if "end" not in row["name"]], "title")
    assert _texts(figure).count("not measured") == 1


def test_of_two_backends_the_faster_is_drawn() -> None:
    slow = {**_row("x.rq8.forward", "forward", "cuda", eager=4.0), "median_s": 2e-3}
    fast = _row("x.rq8.forward", "forward", "cuda", eager=8.0)
    for rows in ([slow, fast], [fast, slow]):
        assert _widths(plot_bars.speedups(rows, "title")) == [7.0]


def test_lines_have_the_floor_and_say_what_is_missing(scaled: dict[str, Any]) -> None:
    found = dict(plots.pictures(scaled))
    figure = found["elements-keeping"]
    assert len(figure.axes) == 6  # two operations, three directions
    texts = _texts(figure)
    for name in ("1 thread", "2 threads", "floor, 1", "floor, 2", "nflows, 2"):
        assert texts.count(name) == 6, name
    assert texts.count("not measured: 10⁸") == 3  # K = 8, in each direction
    assert texts.count("ns an element") == 3 and texts.count("elements, N") == 2
    assert texts.count("last cache") == 6
    # Ours, then the floor: 0.4 of the time.
    ours, floor = (np.asarray(line.get_ydata()) for line in figure.axes[0].get_lines()[:2])
    assert len(ours) == 3 and floor == pytest.approx(0.4 * ours)
    assert _texts(found["bins-keeping"]).count("bins, K") == 3


def test_the_steadiness_of_the_floor_is_written_beside_it(scaled: dict[str, Any]) -> None:
    texts = _texts(dict(plots.pictures(scaled))["floor-keeping"])
    assert any("largest over smallest" in text and "inverse 1.00×" in text for text in texts)
    assert "fraction of a copy's speed" in texts


def test_an_empty_panel_says_so(scaled: dict[str, Any]) -> None:
    rows = [
        row
        for row in scaled["rows"]
        if (row["operation"], row["direction"]) != ("rq_spline", "inverse")
    ]
    assert "not measured" in _texts(plot_lines.against_elements(rows, "title", None))


def test_dropin_bars_are_shares_of_the_library() -> None:
    ((name, figure),) = plots.pictures(DROPIN)
    assert name == "dropin-default"
    assert _widths(figure) == pytest.approx([1.0, 0.5, 0.4])
    assert {"off: 400 ms", "on: 200 ms, 2× faster", "free: 160 ms, 2.5× faster"} <= set(
        _texts(figure)
    )


def test_captions_say_the_command_and_the_machine(scaled: dict[str, Any]) -> None:
    assert plots.caption_of(SUITE) == (
        "Made by: robustflow bench\n"
        "On: A Processor, 2 cores, 2 threads, kernels avx2, PyTorch 2.13.0, Linux x86_64"
    )
    assert "python -m benchmarks.dropin" in plots.caption_of(DROPIN)
    assert "a quick run" in plots.caption_of({**SUITE, "quick": True})
    # A scaling run goes through numbers of threads itself.
    assert " threads" not in plots.caption_of(scaled)
    unknown = plots.caption_of({"machine": {}, "rows": []})
    assert unknown.startswith("The command that made this is not recorded.")


def test_what_cannot_be_drawn_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "empty.json"
    for record, sentence in (
        ({"machine": MACHINE, "rows": []}, "has nothing to draw"),
        ([1, 2], "has no rows and machine"),
    ):
        file.write_text(json.dumps(record))
        with pytest.raises(SystemExit):
            plots.main([str(file), "--out", str(tmp_path)])
        assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


def test_the_results_of_the_repository_can_be_drawn(tmp_path: Path) -> None:
    files = sorted((ROOT / "benchmarks" / "results").glob("foundation*.json"))
    assert files
    for file in files:
        assert len(plots.draw(file, tmp_path)) == 2


def _luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * part for w, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117", "#1e1e1e"])
def test_colours_stand_out_from_white_and_dark_pages(page: str) -> None:
    for colour in plot_style.COLOURS:
        light, dark = sorted((_luminance(colour), _luminance(page)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3.5, colour


def test_nothing_is_told_by_colour_alone() -> None:
    every: Sequence[plot_style.Look] = list(
        plot_style.looks(["eager", "compiled", "nflows", "normflows", "zuko", "a", "b"]).values()
    )
    assert len({look.hatch for look in every}) == len(every)
    assert len({look.marker for look in every}) == len(every)
