"""The report as one HTML page that needs no other file and no network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

import robustflow
from robustflow.diagnostics.intervals import Estimate
from robustflow.diagnostics.report import figures
from robustflow.diagnostics.report.evidence import Evidence
from robustflow.diagnostics.report.result import RobustnessReport

_HERE = "robustflow.diagnostics.report"
_MOST_PANELS = 3
_LABELS = {"onsets": "points with an onset", "contaminated": "contaminated points"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what is shown, what it is sorted by, and how it is marked."""

    text: str
    key: str
    mark: str = ""
    title: str = ""


def check_installed() -> None:
    """Raise if pages cannot be written, before long work.

    Raises:
        ModuleNotFoundError: jinja2 is missing.
    """
    if find_spec("jinja2") is None:
        raise ModuleNotFoundError(
            "Pages need jinja2: pip install 'robustflow[report]'.", name="jinja2"
        )


def render(report: RobustnessReport) -> str:
    """The page of a report.

    Raises:
        ModuleNotFoundError: jinja2 is missing.
    """
    return fill("page.html.jinja", _contents(report))


def fill(template: str, contents: dict[str, Any], package: str | None = None) -> str:
    """A page from its template, which extends ``base.html.jinja`` here: styles, dialog, sorting.

    Args:
        template: its file's name.
        contents: by the names that it uses.
        package: where the template lies, if not here.

    Raises:
        ModuleNotFoundError: jinja2 is missing.
    """
    check_installed()
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    packages = [_HERE] if package is None else [package, _HERE]
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(each, ".") for each in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**contents)


def _contents(report: RobustnessReport) -> dict[str, Any]:
    evidence, temperature = report.evidence, report.temperature
    assert report.watched is not None and report.control is not None
    worst = max(evidence, key=lambda each: len(each.sampled[temperature].onsets))
    map_score = _best_map(report)
    return {
        "report": report,
        "summary": str(report).splitlines(),
        "versions": {"robustflow": robustflow.__version__, "torch": torch.__version__},
        "contexts": _contexts(report),
        "layers": [
            [words(layer), words(kind), number_cell(number, "d")]
            for (layer, kind), number in report.onset_layers.items()
        ],
        "figures": {
            "variance": figures.as_svg(report.watched.figure(report.control)),
            "causes": figures.as_svg(
                figures.causes_figure(report.onset_counts, [each.title for each in evidence])
            ),
        },
        "watched_title": worst.title,
        "control_title": evidence[0].title,
        "panels": _panels(report),
        "scores": _scores(report),
        "rates": _rates(report),
        "scatters": _scatters(report),
        "causes_text": _causes_text(report),
        "pictures": _pictures(report, map_score),
        "map_score": map_score,
        "certificate": str(report.certificate),
        "limits": report.watched.limits,
    }


def words(text: str) -> Cell:
    """A cell of text."""
    return Cell(text, text)


def number_cell(value: float, form: str = ".3g", mark: str = "") -> Cell:
    """A cell of a number; empty where it is NaN."""
    if math.isnan(value):
        return Cell("", "")
    return Cell(format(value, form), repr(float(value)), mark)


def estimate_cell(value: Estimate) -> Cell:
    """A cell of a figure and its interval."""
    if math.isnan(value.value):
        return Cell("not defined", "")
    return Cell(str(value), repr(value.value))


def _contexts(report: RobustnessReport) -> dict[str, Any]:
    columns = ["context", "group"]
    temperatures = list(report.evidence[0].sampled)
    pictures = all(each.faulty is not None for each in report.evidence[0].sampled.values())
    for temperature in temperatures:
        names = [f"faulty of {report.number}"] * pictures
        names += ["onsets", "contaminated, %", "largest |value|"]
        columns += [f"T = {temperature:g}: {names[0]}", *names[1:]]
    rows = []
    for each in report.evidence:
        row = [words(each.title), words(each.group)]
        for temperature in temperatures:
            sampled = each.sampled[temperature]
            if sampled.faulty is not None:
                row.append(number_cell(sampled.faulty, "d", "bad" if sampled.faulty else ""))
            row += [
                number_cell(len(sampled.onsets), "d"),
                number_cell(100 * sampled.rate, ".2f"),
                number_cell(sampled.largest),
            ]
        rows.append(row)
    return {"columns": columns, "rows": rows}


def _scores(report: RobustnessReport) -> dict[str, Any]:
    columns = ["score"]
    for failure in _LABELS:
        columns += [f"{failure}: between", "AUROC", "within"]
    by_score: dict[str, list[Cell]] = {}
    for result in report.results:
        row = by_score.setdefault(result.score, [words(result.score)])
        row += [
            estimate_cell(result.between),
            estimate_cell(result.auroc),
            estimate_cell(result.within),
        ]
    return {"columns": columns, "rows": list(by_score.values())}


def _rates(report: RobustnessReport) -> list[dict[str, str]]:
    drawn = []
    for failure, label in _LABELS.items():
        bins = {
            result.score: result.bins
            for result in report.results
            if result.failure == failure and any(each.rate for each in result.bins)
        }
        if bins:
            address = figures.as_svg(figures.rates_figure(bins, label))
            drawn.append({"address": address, "caption": f"Rate of {label} by score."})
    return drawn


def _scatters(report: RobustnessReport) -> list[dict[str, str]]:
    drawn = []
    evidence = report.evidence
    names = list(evidence[0].scores)
    for failure, label in _LABELS.items():
        rates = [float(each.failed(report.temperature, failure).mean()) for each in evidence]
        if not any(rates):
            continue
        scores = {name: [each.scores[name] for each in evidence] for name in names}
        figure = figures.scatter_figure(
            {name: values for name, values in scores.items() if np.isfinite(values).all()},
            rates,
            [each.title for each in evidence],
            [each.familiar for each in evidence],
            label,
        )
        caption = f"Each context's score and its rate of {label} (blue: training)."
        drawn.append({"address": figures.as_svg(figure), "caption": caption})
    return drawn


def _causes_text(report: RobustnessReport) -> str:
    if math.isnan(report.latent_share):
        return "No onset, or as many in each sample: nothing to divide between latent and context."
    return (
        "The same latents meet each context. Of the variance of log(1 + onsets) over contexts and "
        f"latents, {100 * report.context_share:.0f} % follows from the context alone (latent "
        f"varied, context fixed) and {100 * report.latent_share:.0f} % from the latent alone; the "
        "rest needs both."
    )


def _panels(report: RobustnessReport) -> list[dict[str, str]]:
    assert report.watched is not None
    strongest = sorted(report.watched.onsets, key=lambda onset: onset.growth, reverse=True)
    drawn = []
    for onset in strongest[:_MOST_PANELS]:
        figure = report.watched.panel(onset)
        drawn.append({"address": figures.as_png(figure), "caption": f"Around an onset: {onset}."})
    return drawn


def _best_map(report: RobustnessReport) -> str:
    """The score with a map whose AUROC of onsets is highest."""
    with_maps = [
        result
        for result in report.results
        if result.failure == "onsets" and result.score in report.evidence[0].maps
    ]
    defined = [each for each in with_maps if not math.isnan(each.auroc.value)]
    chosen = max(defined, key=lambda each: each.auroc.value) if defined else with_maps[0]
    return chosen.score


def _pictures(report: RobustnessReport, score: str) -> list[dict[str, Any]]:
    """The worst sample of each context, where samples are pictures."""
    evidence = report.evidence
    if any(each.sampled[report.temperature].worst.dim() != 3 for each in evidence):
        return []
    maps = {each.title: _map_of(each, score, report.temperature) for each in evidence}
    finite = np.concatenate([values[np.isfinite(values)] for values in maps.values()])
    low, high = np.quantile(finite, [0.02, 0.98]) if finite.size else (0.0, 1.0)
    shown = []
    for each in sorted(evidence, key=_onsets_of(report), reverse=True):
        sampled = each.sampled[report.temperature]
        mask = sampled.contaminated[sampled.worst_index]
        images = [
            (figures.to_pixels(sampled.worst), "sample"),
            (figures.masked(sampled.worst, mask), "what onsets reached"),
            (figures.heat(maps[each.title], low, high), "score"),
        ]
        if each.context.dim() == 4 and each.context.shape[1] in (1, 3):
            images.insert(0, (figures.to_pixels(each.context[0]), "context"))
        shown.append(
            {
                "title": each.title,
                "group": each.group,
                "text": f"onsets: {len(sampled.onsets)}; {100 * sampled.rate:.1f} % contaminated",
                "images": [
                    {"address": figures.picture(pixels), "caption": caption}
                    for pixels, caption in images
                ],
            }
        )
    return shown


def _onsets_of(report: RobustnessReport) -> Any:
    return lambda each: len(each.sampled[report.temperature].onsets)


def _map_of(evidence: Evidence, score: str, temperature: float) -> Any:
    values = evidence.maps[score]
    if values.ndim > len(evidence.grid):
        values = values[evidence.sampled[temperature].worst_index]
    return values
