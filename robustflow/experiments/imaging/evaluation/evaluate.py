"""Evaluate trained flows: sample every picture at every temperature, and measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustflow.diagnostics.artifacts import faulty_pixels
from robustflow.diagnostics.report.figures import to_pixels
from robustflow.experiments.data.builtin import Split
from robustflow.experiments.imaging.evaluation.case import Case, Colour
from robustflow.experiments.imaging.evaluation.drawing import (
    COLUMNS,
    Column,
    draw,
    missing_column,
)
from robustflow.experiments.imaging.evaluation.fixed import find_latent
from robustflow.experiments.imaging.evaluation.metrics import metrics_of
from robustflow.experiments.imaging.evaluation.perceptual import NoPerceptual, Perceptual
from robustflow.experiments.imaging.evaluation.results import (
    Evaluation,
    Fault,
    Key,
    Shown,
    Trained,
    labels_of,
)
from robustflow.experiments.imaging.evaluation.subjects import Subject, subjects_of
from robustflow.experiments.imaging.loading import Loaded, load_flow
from robustflow.experiments.imaging.model import ImagingFlow
from robustflow.experiments.imaging.sampling_flow import SamplingFlow
from robustflow.experiments.report import machine
from robustflow.experiments.tasks import Task

TEMPERATURES = (0.0, 0.8, 0.9)
SIZE = 192  # of the squares: MS-SSIM needs 176
NUMBER = 5


class BadRequest(ValueError):
    """The request cannot be fulfilled; the text says why."""


def evaluate(
    checkpoints: Sequence[Path],
    sources: Sequence[Split | Path] = ("held_out", "ood"),
    *,
    number: int = NUMBER,
    temperatures: Sequence[float] = TEMPERATURES,
    columns: Sequence[Column] = COLUMNS,
    size: int = SIZE,
    with_truth: bool = True,
    colour: Colour = "rgb",
    border: int = 0,
    lpips: Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], Any] = lambda done, total, what: None,
) -> Evaluation:
    """Sample flows of one task on the same pictures and latents, and measure the samples.

    Args:
        checkpoints: as for :func:`load_flow`.
        sources: built-in sets, folders or files; each is a group of the table.
        number: of samples of each picture.
        temperatures: of the latents.
        columns: "raw", "projected", "fixed", "guarded".
        size: of the squares, in pixels of x; 0: whole pictures.
        with_truth: False: the pictures are observations.
        colour: "rgb" or "y", in which pictures are compared with the truth.
        border: pixels at each side that are left out of that.
        lpips: AlexNet's weights; None: LPIPS is left out.
        seed: of the latents and the observations' noise.
        progress: called with the picture's number, the number of pictures, and a sentence.

    Raises:
        BadRequest: flows of several tasks, no picture, or a number that cannot be used.
        CheckpointError: no checkpoint.
    """
    _check(number, temperatures, border, size)
    loaded = [load_flow(path) for path in checkpoints]
    flows = [each.flow for each in loaded]
    task = flows[0].task
    for path, flow in zip(checkpoints, flows, strict=True):
        if not _alike(flow.task, task):
            raise BadRequest(
                f"{checkpoints[0]} and {path} are of other tasks, {task} and {flow.task}: "
                "evaluate them apart."
            )
    try:
        subjects, skipped = subjects_of(
            list(dict.fromkeys(sources)), task, flows, size=size, with_truth=with_truth, seed=seed
        )
    except (OSError, ValueError) as error:
        raise BadRequest(str(error)) from None
    labels = labels_of([str(path.resolve()) for path in checkpoints])
    result = Evaluation(
        [_described(*pair) for pair in zip(labels, loaded, strict=True)],
        task.name,
        {
            "samples of a picture": number,
            "temperatures": list(temperatures),
            "columns": list(columns),
            "size": size,
            "truth": with_truth,
            "colour space": colour.upper(),
            "border": border,
            "seed": seed,
            "machine": machine(),
        },
        metrics_of(colour, border, _perceptual(lpips)),
        skipped=skipped,
    )
    for subject in subjects:
        result.titles.setdefault(subject.group, []).append(subject.title)
        place = (subject.group, subject.title)
        result.observations[place] = to_pixels(subject.observation[0])
        if subject.truth is not None:
            result.truths[place] = to_pixels(subject.truth[0])
    total = len(flows) * len(subjects)
    for index, (label, flow) in enumerate(zip(labels, flows, strict=True)):
        if torch.cuda.is_available():
            flow.to("cuda")
        usable = _usable(columns, flow, subjects[0].observation, result)
        fixed = find_latent(flow) if "fixed" in usable else []
        for number_done, subject in enumerate(subjects):
            progress(index * len(subjects) + number_done, total, f"{label}: {subject.title}")
            _add(result, label, flow, subject, usable, fixed)
        flow.cpu()
    progress(total, total, "")
    return result


def _add(
    result: Evaluation,
    label: str,
    flow: SamplingFlow,
    subject: Subject,
    columns: Sequence[Column],
    fixed: Sequence[Tensor],
) -> None:
    """Sample and measure one picture at all temperatures."""
    settings, y = result.settings, subject.observation
    seed, temperatures = settings["seed"], settings["temperatures"]
    safe = draw(flow, y, ["raw"], number=1, temperature=0.0, seed=seed)["raw"].samples
    for temperature in temperatures:
        drawn = draw(
            flow,
            y,
            columns,
            number=settings["samples of a picture"],
            temperature=temperature,
            seed=seed,
            fixed=fixed,
        )
        for column, drawing in drawn.items():
            case = Case(
                drawing.samples,
                y,
                subject.truth,
                safe,
                flow.task,
                settings["colour space"].lower(),
                settings["border"],
                drawing.seconds,
                drawing.bytes,
            )
            _measure(result, Key(label, subject.group, temperature, column), subject.title, case)
        if temperature == max(temperatures) and "raw" in drawn:
            _show(result, subject, label, drawn["raw"].samples)


def _check(number: int, temperatures: Sequence[float], border: int, size: int) -> None:
    if number < 1:
        raise BadRequest(f"The number of samples must be at least 1, got {number}.")
    if not temperatures or not all(temperature >= 0 for temperature in temperatures):
        raise BadRequest(f"Temperatures must be at least 0, got {list(temperatures)}.")
    if border < 0 or size < 0:
        raise BadRequest(f"Size and border must be at least 0, got {size} and {border}.")
    if size and 2 * border >= size:
        raise BadRequest(f"A border of {border} pixels leaves nothing of squares of {size}.")


def _alike(one: Task, other: Task) -> bool:
    """Whether two tasks are the same; those without fields to compare, by their class."""
    if type(one) is type(other) and not is_dataclass(one):
        return True
    return one == other


def _described(label: str, loaded: Loaded) -> Trained:
    flow = loaded.flow
    if isinstance(flow, ImagingFlow):
        assert loaded.config is not None
        coupling = loaded.config.model.coupling
    else:
        coupling = flow.structure.coupling
    return Trained(label, str(loaded.file), coupling, loaded.step)


def _perceptual(path: Path | None) -> Perceptual | str:
    if path is None:
        return "its weights are not at hand (--lpips FILE names AlexNet's)"
    try:
        return Perceptual(path)
    except NoPerceptual as error:
        return str(error)


def _usable(
    columns: Sequence[Column], flow: SamplingFlow, y: Tensor, result: Evaluation
) -> list[Column]:
    usable = []
    for column in columns:
        reason = missing_column(column, flow, y)
        if reason is None:
            usable.append(column)
        else:
            result.leave_out(f"column {column!r}", reason)
    return usable


@torch.no_grad()
def _measure(result: Evaluation, key: Key, title: str, case: Case) -> None:
    figures = result.figures.setdefault((key, title), {})
    for metric in result.metrics:
        reason = metric.missing(case)
        if reason is None:
            figures[metric.name] = metric.of(case)
        elif key.column != "fixed" or len(result.settings["columns"]) == 1:
            result.leave_out(metric.name, reason)  # one picture lacks more than the other columns
    number = result.titles[key.group].index(title)
    for index, sample in enumerate(case.samples):
        not_finite = not bool(sample.isfinite().all())
        beyond = bool(faulty_pixels(sample.nan_to_num(nan=0.0)).any())
        if not_finite or beyond:
            result.faults.setdefault(key, []).append(Fault(number, index, beyond, not_finite))


def _show(result: Evaluation, subject: Subject, label: str, samples: Tensor) -> None:
    sizes = samples.abs().nan_to_num(nan=torch.inf, posinf=torch.inf).flatten(1).amax(dim=1)
    faulty = int(faulty_pixels(samples).flatten(1).any(dim=1).sum())
    shown = Shown(to_pixels(samples[int(sizes.argmax())]), faulty)
    result.shown.setdefault((subject.group, subject.title), {})[label] = shown
