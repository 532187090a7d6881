"""Samples for observations in files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from robustflow._files import replacing
from robustflow.experiments.console import say
from robustflow.experiments.data.crops import generator_of
from robustflow.experiments.data.reading import (
    Skipped,
    UnreadablePicture,
    picture_files,
    read_picture,
)
from robustflow.experiments.faults import count_faults, total_faults
from robustflow.experiments.imaging.loading import load_flow
from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.experiments.imaging.preview import rgb
from robustflow.experiments.imaging.published import PublishedFlow
from robustflow.experiments.imaging.sampling_flow import SamplingFlow
from robustflow.experiments.imaging.tiles import DEFAULT_HALO, sample_in_tiles
from robustflow.experiments.tasks.base import WHITE


class BadRequest(ValueError):
    """The request cannot be fulfilled; the text says why."""


def sample_files(
    checkpoint: Path,
    pictures: Sequence[Path],
    out: Path,
    *,
    number: int,
    temperature: float,
    seed: int,
    degrade: bool,
    console: Console,
    tile: int = 0,
    halo: int = DEFAULT_HALO,
) -> list[Skipped]:
    """Write ``number`` samples of each picture to ``out``, print a table, and return what failed.

    Args:
        checkpoint: as for :func:`load_flow`.
        pictures: files, or folders of them.
        out: a folder, created if missing.
        number, temperature, seed: of the samples; each has a seed of its own, from this one.
        degrade: make the observation from the picture first.
        console: where the table goes.
        tile, halo: as for :func:`sample_in_tiles`; a tile of 0: each picture whole.

    Where torchrun started several processes, each takes its share of the files.

    Raises:
        CheckpointError: no checkpoint.
        BadRequest: a number or path that cannot be used, or two pictures of one name.
    """
    if number < 1:
        raise BadRequest(f"--number must be at least 1, got {number}.")
    if not temperature >= 0:
        raise BadRequest(f"--temperature must be at least 0, got {temperature}.")
    if tile < 0 or halo < 0:
        raise BadRequest(f"--tile and --halo must be at least 0, got {tile} and {halo}.")
    try:
        files = [each for path in pictures for each in _files(path)]
        if out.resolve() in {path.resolve().parent for path in files}:
            raise BadRequest(
                f"--out {out} is a folder of the pictures: name another, or the next run would "
                "take its samples for observations."
            )
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise BadRequest(str(error)) from None
    _check_names(files)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    files = files[rank::ranks]
    flow = load_flow(checkpoint).flow
    if isinstance(flow, PublishedFlow):
        if tile:
            raise BadRequest(
                "--tile is for flows of `robustflow train`, not for published networks."
            )
        if unknown := flow.structure.unknown:
            sentence = f"Not recognised in {checkpoint}, and not used: {', '.join(unknown)}."
            say(console, sentence, style="yellow")
    if torch.cuda.is_available():  # one GPU for each of torchrun's processes
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        flow.to("cuda")
    table = Table(box=SIMPLE_HEAD)
    for title in ("picture", "size", "faulty samples", "largest |value|"):
        table.add_column(title, justify="left" if title == "picture" else "right")
    skipped, cut = [], []
    for path in files:
        try:
            picture = read_picture(path)
            y = observation(flow, picture, degrade)
        except UnreadablePicture as error:
            skipped.append(Skipped(path, str(error)))
            continue
        index = 0
        parts = []
        for samples in _samples(flow, y, number, temperature, seed, tile, halo):
            for sample in samples:
                write_picture(sample, out / f"{path.stem}-{index:02d}.png")
                index += 1
            parts.append(count_faults(samples))
        faults = total_faults(parts)
        picture_size = tuple(flow.task.picture_size(y))
        if picture_size != tuple(
            side * (1 if degrade else flow.task.scale) for side in picture.shape[-2:]
        ):
            cut.append(path.name)
        size = " x ".join(map(str, picture_size))
        table.add_row(path.name, size, f"{faults.faulty} of {number}", f"{faults.largest:.3g}")
    if table.row_count:
        console.print(table)
    if cut:
        say(
            console,
            f"Cut at the right or bottom, since the flow's pictures are multiples of "
            f"{flow.size_multiple}: {', '.join(cut)}.",
        )
    for each in skipped:
        say(console, f"{each.path} is left out: {each.reason}.", style="yellow")
    return skipped


@torch.no_grad()
def _samples(
    flow: SamplingFlow,
    y: Tensor,
    number: int,
    temperature: float,
    seed: int,
    tile: int,
    halo: int,
) -> Iterator[Tensor]:
    """(n, C, H, W) on the CPU, until there were ``number``; the same for a seed in tiles, too."""
    generators = [generator_of(seed, index) for index in range(number)]
    if tile and isinstance(flow, ImagingFlow):
        for generator in generators:
            sample = sample_in_tiles(
                flow, y, tile=tile, halo=halo, temperature=temperature, generator=generator
            )
            yield sample[None]
        return
    prepared = flow.prepare(y)
    block = flow.block_size(prepared.size)
    for start in range(0, number, block):
        latents = latents_of(flow, prepared.size, generators[start : start + block])
        yield flow.decode(latents, prepared, temperature).cpu()


def latents_of(
    flow: SamplingFlow, size: Sequence[int], generators: Sequence[torch.Generator]
) -> list[Tensor]:
    """Standard normal latents, one sample's from each generator, whatever others there are."""
    drawn = [flow.draw_latents(1, size, generator) for generator in generators]
    return [torch.cat(each) for each in zip(*drawn, strict=True)]


def observation(flow: SamplingFlow, picture: Tensor, degrade: bool) -> Tensor:
    """The observation (1, C, H, W) of a decoded picture (3, H, W), cut to what the flow divides."""
    y = picture[None].float() / WHITE
    scale = flow.task.scale
    step = flow.size_multiple if degrade else max(1, flow.size_multiple // scale)
    height, width = (side - side % step for side in y.shape[-2:])
    if min(height, width) == 0:
        raise UnreadablePicture(f"it is smaller than {step} x {step} pixels")
    y = y[..., :height, :width]
    if degrade:
        y = flow.task.observe(flow.task.from_rgb(y), torch.Generator().manual_seed(0))
    if y.shape[1] != flow.task.observation_channels:
        raise UnreadablePicture(
            f"the task {flow.task.name!r} observes {flow.task.observation_channels} channels, "
            "which a picture has not: use --degrade"
        )
    return y.to(next(flow.parameters()).device)


def write_picture(sample: Tensor, path: Path) -> None:
    """A sample (C, H, W), clamped to [0, 1] (what is not finite becomes black), as a PNG."""
    pixels = (rgb(sample[None])[0].nan_to_num(nan=0.0).clamp(0, 1) * WHITE).round().byte()
    with replacing(path) as file:
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG")


def _check_names(files: Sequence[Path]) -> None:
    """Raise if samples of two pictures would have the same file name."""
    by_stem: dict[str, Path] = {}
    for path in files:
        if by_stem.setdefault(path.stem, path) is not path:
            raise BadRequest(
                f"{by_stem[path.stem]} and {path} would both be sampled to {path.stem}-00.png: "
                "sample them apart, with another --out."
            )


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return picture_files(path)
    if not path.exists():
        raise BadRequest(f"There is no picture {path}.")
    return [path]
