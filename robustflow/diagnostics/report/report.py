"""A model's robustness, on contexts that are like its training's and on others, in one report."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustflow._files import check_writable, write_atomically
from robustflow.diagnostics.certify import certify
from robustflow.diagnostics.intervals import NOTHING
from robustflow.diagnostics.monitor import GROWTH, InverseMonitor
from robustflow.diagnostics.report import scoring
from robustflow.diagnostics.report.evidence import (
    Evidence,
    FeatureFunction,
    Group,
    Sampler,
    choose_temperature,
    default_features,
    default_sampler,
    sample_and_watch,
)
from robustflow.diagnostics.report.page import check_installed, render
from robustflow.diagnostics.report.result import (
    FAILURES,
    RobustnessReport,
    ScoreResult,
    onset_counts,
)
from robustflow.diagnostics.report.statistics import (
    auroc_within,
    pixel_auroc,
    rank_correlation,
    rates_by_score,
)

TEMPERATURES = (0.7, 0.8, 0.9, 1.0)


def robustness_report(
    model: nn.Module,
    in_distribution: Mapping[str, Tensor],
    out_of_distribution: Mapping[str, Tensor],
    *,
    held_out: Mapping[str, Tensor] | None = None,
    sample: Sampler | None = None,
    features: FeatureFunction | None = None,
    hidden: str | None = None,
    certified: nn.Module | None = None,
    num_samples: int = 5,
    temperatures: Sequence[float] = TEMPERATURES,
    growth: float = GROWTH,
    seed: int = 0,
    out: str | Path | None = None,
    title: str | None = None,
) -> RobustnessReport:
    """Sample a model under a monitor, score every context, and judge the scores.

    All contexts of one size get the same latents, to separate the effect of the latent from that of
    the context.

    Args:
        model: as for :class:`InverseMonitor`, in evaluation mode.
        in_distribution: by title, contexts (1, C, \\*S) of the training, at least two; scores are
            fitted on them.
        out_of_distribution: likewise, contexts that are not.
        held_out: likewise, contexts of the training's kind that it did not see: a control.
        sample: ``sample(context, number, temperature, generator)`` -> (number, C, \\*S), values
            in [0, 1] for pictures. By default the model's own method.
        features: from a context to the conditioning features (1, F, \\*S), or several levels. By
            default the model's encoder, or else the context itself.
        hidden: name of a module whose output is a conditioner's hidden layer. By default, for flows
            of :mod:`robustflow.nn`, that of the coupling that is sampled first.
        certified: the part of the model that maps latents to data, which is what is certified. By
            default the whole model.
        num_samples: of each context and temperature.
        temperatures: scores are judged at the highest at which under 5 % of pixels are
            contaminated.
        growth: in one layer, which is an explosion: that of :class:`InverseMonitor`.
        seed: of the latents.
        out: a folder for ``report.html``, which needs no other file and no network, and
            ``report.json``. None: nothing is written.
        title: of the page; by default the model's class.

    Returns:
        Everything as numbers.

    Raises:
        ValueError: too few contexts, no temperature, or a model without layers to watch.
        TypeError: the model has no method ``sample`` that is known and none was given; contexts
            that are no dict.
        UnwritablePath: nothing can be written to ``out``; raised before any work.
        ModuleNotFoundError: the extra ``report`` is not installed.

    Source: the question, Hong, Park and Chun, ICCV 2023 (arXiv:2212.04319); the scores' sources
    stand in their own documentation.

    Example:
        >>> from robustflow import nn as rnn
        >>> from robustflow.diagnostics import robustness_report
        >>> steps = [layer for _ in range(2) for layer in rnn.flow_step(4, 3, rnn.Affine())]
        >>> flow = rnn.ConditionalFlow([steps]).eval()
        >>> pictures = lambda *names: {name: torch.rand(1, 3, 8, 8) for name in names}
        >>> report = robustness_report(
        ...     flow, pictures("a", "b"), pictures("c"), num_samples=2, temperatures=[1.0])
        >>> report.certificate.passed
        False
    """
    for name, contexts in (
        ("in_distribution", in_distribution),
        ("out_of_distribution", out_of_distribution),
        ("held_out", held_out or {}),
    ):
        if not isinstance(contexts, Mapping):
            raise TypeError(
                f"{name} must be a dict of contexts (1, C, *S) by title, got "
                f"{type(contexts).__name__}."
            )
    if isinstance(temperatures, float | int):
        raise TypeError(f"temperatures must be a sequence, such as [{temperatures}].")
    if len(in_distribution) < 2:
        raise ValueError(
            f"in_distribution needs at least 2 contexts to fit scores on, got "
            f"{len(in_distribution)}."
        )
    if not temperatures or num_samples < 1:
        raise ValueError("Give at least one temperature, and num_samples of at least 1.")
    if out is not None:
        check_installed()
        check_writable(Path(out) / "report.html", Path(out) / "report.json")
    sampler = sample or default_sampler(model)
    groups = [
        Group("training", in_distribution, familiar=True),
        Group("held out", held_out or {}, familiar=False),
        Group("out of distribution", out_of_distribution, familiar=False),
    ]
    chosen_features = features or default_features(model) or (lambda context: context)
    evidence = _evidence(groups, chosen_features)
    for each in evidence:
        for temperature in temperatures:
            each.sampled[temperature] = sample_and_watch(
                sampler,
                each.context,
                number=num_samples,
                temperature=temperature,
                seed=seed,
                monitor=InverseMonitor(model, growth=growth),
            )[0]
    temperature = choose_temperature(evidence, temperatures)
    how: dict[str, Any] = {"number": num_samples, "temperature": temperature, "seed": seed}
    scoring.score_contexts(evidence, scoring.FEATURES, chosen_features)
    scoring.score_contexts(evidence, scoring.RAW, lambda context: context)
    layer = hidden or scoring.hidden_layer_of(model)
    if layer is not None:
        scoring.score_hidden(model, sampler, evidence, layer=layer, **how)
    scoring.score_gains(model, sampler, evidence)
    latent, context = _shares(onset_counts(evidence, temperature, num_samples))
    watched, control = InverseMonitor(model, growth=growth), InverseMonitor(model, growth=growth)
    worst = max(evidence, key=lambda each: len(each.sampled[temperature].onsets))
    sample_and_watch(sampler, worst.context, monitor=watched, **how)
    sample_and_watch(sampler, evidence[0].context, monitor=control, **how)
    report = RobustnessReport(
        title or type(model).__name__,
        temperature,
        num_samples,
        evidence,
        judge_scores(evidence, temperature),
        certify(certified or model),
        _by_layer(evidence, temperature),
        latent,
        context,
        watched=watched,
        control=control,
    )
    if out is not None:
        folder = Path(out)
        text = json.dumps(report.to_dict(), indent=2, allow_nan=False)
        write_atomically(folder / "report.json", text)
        write_atomically(folder / "report.html", render(report))
        report.path = folder / "report.html"
    return report


def _evidence(groups: Sequence[Group], features: FeatureFunction) -> list[Evidence]:
    evidence = []
    for group in groups:
        for title, context in group.contexts.items():
            if context.shape[0] != 1:
                raise ValueError(
                    f"The context {title!r} must have a batch size of 1, got shape "
                    f"{tuple(context.shape)}."
                )
            with torch.no_grad():
                extracted = scoring.detached(features(context))
            levels = extracted.values() if isinstance(extracted, dict) else [extracted]
            finest = max(levels, key=lambda level: math.prod(level.shape[2:]))
            grid = tuple(finest.shape[2:])
            evidence.append(Evidence(title, group.name, group.familiar, context, grid))
    return evidence


def judge_scores(evidence: Sequence[Evidence], temperature: float) -> list[ScoreResult]:
    """Every score against every kind of failure."""
    results = []
    names = list(dict.fromkeys(name for each in evidence for name in each.scores))
    for failure in FAILURES:
        failed = [each.failed(temperature, failure) for each in evidence]
        rates = np.array([float(each.mean()) for each in failed])
        for name in names:
            scores = np.array([each.scores[name] for each in evidence])
            maps = [
                _for_each_sample(each, name, mask)
                for each, mask in zip(evidence, failed, strict=True)
            ]
            flat = [mask.ravel() for mask in failed]
            alone = name not in evidence[0].maps
            results.append(
                ScoreResult(
                    name,
                    failure,
                    rank_correlation(scores, rates),
                    pixel_auroc(maps, flat),
                    NOTHING if alone else auroc_within(maps, flat),
                    rates_by_score(np.concatenate(maps), np.concatenate(flat)),
                )
            )
    return results


def _for_each_sample(
    evidence: Evidence, name: str, failed: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """A score at each sample's grid points, flat; without a map the picture's own, everywhere."""
    values = evidence.maps.get(name)
    if values is None:
        return np.full(failed.size, evidence.scores[name])
    return np.broadcast_to(values, failed.shape).ravel()


def _by_layer(evidence: Sequence[Evidence], temperature: float) -> dict[tuple[str, str], int]:
    counts = Counter(
        (onset.layer, str(onset.kind))
        for each in evidence
        for onset in each.sampled[temperature].onsets
    )
    return dict(counts.most_common())


def _shares(counts: NDArray[np.float64]) -> tuple[float, float]:
    """Shares of the variance explained by the latent alone and by the context alone."""
    values = np.log1p(counts)
    total = values.var()
    if total == 0:
        return math.nan, math.nan
    return float(values.mean(axis=0).var() / total), float(values.mean(axis=1).var() / total)
