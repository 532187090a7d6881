"""All measures of a posterior's calibration in one report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import robustflow
from robustflow._checks import check_choice, check_tensor
from robustflow._plain import plain
from robustflow.diagnostics.intervals import Estimate
from robustflow.diagnostics.posterior.bounds import (
    METRICS,
    foretold,
    quality_bound,
)
from robustflow.diagnostics.posterior.conformal import (
    conformal_intervals,
    needed_multiplier,
    split,
)
from robustflow.diagnostics.posterior.coverage import Coverage, CoverageSums
from robustflow.diagnostics.posterior.figure import posterior_figure
from robustflow.diagnostics.posterior.functionals import linear_functionals
from robustflow.diagnostics.posterior.measures import Measures
from robustflow.diagnostics.posterior.quality import LEAST_SIDE, check_installed
from robustflow.diagnostics.posterior.ranks import Uniformity, ranks, spread_out, uniformity
from robustflow.diagnostics.posterior.spread import SpreadSums
from robustflow.diagnostics.posterior.tarp import (
    LEVELS,
    ExpectedCoverage,
    distance_rank,
    expected_coverage,
    references_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_SAMPLES = 4  # of a picture: for the expected square of a z-score
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class PosteriorReport(Measures):
    """What :func:`posterior_report` found; ``str()`` of it is a summary.

    Attributes:
        pictures, samples: how many, and how many of each.
        shape: of a picture.
        coverage: of pixels and of means of regions.
        coverage_map: share of pictures whose truth lies in the central interval of
            ``coverage_level``, pixel by pixel, (\\*S) without channels for pictures.
        coverage_level: the nominal share of that map.
        ranks: of linear functionals, by name, (N,), whole numbers from 0 to K.
        rank_values: likewise in [0, 1), made continuous; what is tested.
        rank_tests: whether they are uniform.
        tarp: expected coverage.
        spread: errors against spreads, z-scores, and their maps.
        intervals: conformal ones; None where there are too few pictures.
        bounds: conformal lower bounds of quality, by metric; none where there are too few.
    """

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the maps; what is not finite is a string."""
        spread = self.spread
        return plain(
            {
                "robustflow": robustflow.__version__,
                "pictures": self.pictures,
                "samples": self.samples,
                "shape": self.shape,
                "coverage": [asdict(each) for each in self.coverage],
                "ranks": {name: values.tolist() for name, values in self.ranks.items()},
                "rank tests": {name: asdict(each) for name, each in self.rank_tests.items()},
                "rank p-value": self.rank_p_value,
                "tarp": asdict(self.tarp),
                "spread": {
                    "ratio": asdict(spread.ratio),
                    "z_mean": asdict(spread.z_mean),
                    "z_size": asdict(spread.z_size),
                    "bins": spread.bins,
                },
                "intervals": None if self.intervals is None else asdict(self.intervals),
                "bounds": {name: asdict(each) for name, each in self.bounds.items()},
            }
        )

    def figure(self) -> Figure:
        """Eight panels: coverage, ranks, TARP, errors against spreads, and four maps.

        Raises:
            ImportError: matplotlib is missing.
        """
        return posterior_figure(self)

    def __str__(self) -> str:
        lines = [
            f"{self.pictures} pictures of {' x '.join(map(str, self.shape))}, {self.samples} "
            "samples of each; 95 % intervals over pictures."
        ]
        for each in self.coverage:
            nominal, observed = _near(each, 0.9)
            lines.append(f"Coverage of {each.region}: {observed} where {nominal:.3f} is nominal.")
        worst = min(self.rank_tests, key=lambda name: self.rank_tests[name].p_value)
        lines += [
            f"Ranks of {len(self.rank_tests)} linear functionals: p = {self.rank_p_value:.3g}; "
            + _in_words(self.rank_tests[worst], self.rank_p_value, f" by {worst!r}"),
            f"TARP: p = {self.tarp.test.p_value:.3g}; "
            + ("uniform" if self.tarp.test.p_value >= _SIGNIFICANT else "not uniform")
            + ".",
            f"Spread over error: {self.spread.ratio} (1 if calibrated); mean z-score: "
            f"{self.spread.z_mean} (0); size of z-scores: {self.spread.z_size} (1 if Gaussian).",
        ]
        if self.intervals is None:
            lines.append("Conformal intervals and bounds need more pictures.")
            return "\n".join(lines)
        intervals = self.intervals
        lines.append(
            f"With probability {1 - intervals.alpha:g}, {100 * intervals.share:g} % of a new "
            f"picture's values lie within {intervals.multiplier:.3g} standard deviations of the "
            "mean" + _checked_on(intervals.held)
        )
        for name, bound in self.bounds.items():
            lines.append(
                f"With probability {1 - bound.alpha:g}, {name} of the mean is at least what "
                f"samples foretell {'less' if bound.offset >= 0 else 'plus'} "
                f"{abs(bound.offset):.3g}, on average "
                f"{bound.mean_bound.value:.3g} where it is {bound.mean_metric.value:.3g}"
                + _checked_on(bound.held)
            )
        return "\n".join(lines)


def posterior_report(
    samples: Tensor,
    truth: Tensor,
    *,
    alpha: float = 0.1,
    functionals: Mapping[str, Tensor] | None = None,
    references: Tensor | None = None,
    quality: Sequence[str] | None = None,
    seed: int = 0,
) -> PosteriorReport:
    """Whether samples of a posterior are spread as they should be, judged by known truths.

    If every truth is a draw of its picture's posterior, as the samples are, then the truth's rank
    among K samples is uniform, whatever is ranked: pixels, means of regions, any function of the
    whole. The report tests this (coverage, ranks, TARP), compares errors with spreads, and makes
    intervals and bounds that hold even where the samples do not.

    Args:
        samples: (N, K, C, H, W), or (N, K, \\*S): K of each of N pictures, at least 4 of at least
            2; those of ``flow.sample(y, K)``. Work goes picture by picture.
        truth: (N, \\*S).
        alpha: chance that a conformal interval or bound fails; the intervals hold a share of
            1 - alpha of the values. At least 1 / alpha - 1 pictures are needed for them.
        functionals: by name, weights (\\*S) of sum(w x); by default :func:`linear_functionals`.
        references: of TARP, (N, \\*S), none of which depends on its picture's truth. By default
            uniform between the smallest and the largest truth.
        quality: metrics to bound, of "PSNR" and "SSIM", for pictures (C, H, W) in [0, 1]. By
            default both for pictures of 1 or 3 channels with sides of at least 11; else none.
        seed: of references, functionals, ties and the split of the conformal calibration.

    Returns:
        All figures, with intervals over pictures.

    Raises:
        ValueError: shapes that do not fit, too few samples or pictures, or values that are not
            finite.
        TypeError: no floating-point tensor.
        ModuleNotFoundError: torchmetrics is missing, and ``quality`` is not empty.

    Source: docs/calibration.md has every formula and its source.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> mean = torch.randn(50, 1, 8, 8)
        >>> samples = mean[:, None] + torch.randn(50, 20, 1, 8, 8)
        >>> report = posterior_report(samples, mean + torch.randn_like(mean), quality=())
        >>> report.coverage[0].region, round(report.coverage[0].nominal[-1], 3)
        ('pixels', 0.905)
        >>> report.spread.ratio.low < 1 < report.spread.ratio.high
        True
    """
    _check(samples, truth, alpha)
    number, shape = samples.shape[1], tuple(truth.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    weights = _weights(functionals, shape, seed)
    flat = torch.stack([each.flatten() for each in weights.values()]).to(truth)
    if references is None:
        references = references_of(truth, generator)
    elif references.shape != truth.shape:
        raise ValueError(
            f"references must have the shape of truth, {tuple(truth.shape)}, got "
            f"{tuple(references.shape)}."
        )
    parts = split(len(truth), alpha, generator)
    metrics = _metrics(quality, shape)

    coverage = CoverageSums(number, shape, generator)
    spread = SpreadSums(number)
    of_functionals: list[Tensor] = []
    by_distance: list[Tensor] = []
    multipliers: list[float] = []
    predicted: dict[str, list[float]] = {name: [] for name in metrics}
    reached: dict[str, list[float]] = {name: [] for name in metrics}
    for own, x, reference in zip(samples, truth, references, strict=True):
        coverage.add(own, x)
        spread.add(own, x)
        of_functionals.append(ranks(own.flatten(1) @ flat.T, x.flatten() @ flat.T, generator))
        by_distance.append(distance_rank(own, x, reference, generator))
        if parts is None:
            continue
        multipliers.append(needed_multiplier(own, x, 1 - alpha))
        for name in metrics:
            predicted[name].append(foretold(own, METRICS[name], alpha))
            mean = own.mean(dim=0, keepdim=True)
            reached[name].append(float(METRICS[name](mean, x[None])))

    by_name = dict(zip(weights, torch.stack(of_functionals).cpu().T, strict=True))
    values = {name: spread_out(each, number, generator) for name, each in by_name.items()}
    tarp = spread_out(torch.stack(by_distance), number, generator)
    intervals, bounds = None, {}
    if parts is not None:
        intervals = conformal_intervals(multipliers, parts, alpha, 1 - alpha)
        bounds = {
            name: quality_bound(name, predicted[name], reached[name], parts, alpha)
            for name in metrics
        }
    return PosteriorReport(
        pictures=len(truth),
        samples=number,
        shape=shape,
        coverage=coverage.result(),
        coverage_map=coverage.map(),
        coverage_level=coverage.map_level,
        ranks=by_name,
        rank_values=values,
        rank_tests={name: uniformity(each) for name, each in values.items()},
        tarp=ExpectedCoverage(LEVELS, expected_coverage(tarp.tolist()), uniformity(tarp)),
        spread=spread.result(),
        intervals=intervals,
        bounds=bounds,
    )


def _check(samples: Tensor, truth: Tensor, alpha: float) -> None:
    for name, tensor in (("samples", samples), ("truth", truth)):
        check_tensor(name, tensor)
    if samples.dim() < 3 or samples.shape[:1] + samples.shape[2:] != truth.shape:
        raise ValueError(
            "samples must be (N, K, *S) for a truth of (N, *S), such as (N, K, C, H, W) for "
            f"(N, C, H, W); got {tuple(samples.shape)} and {tuple(truth.shape)}."
        )
    if samples.shape[1] < LEAST_SAMPLES or len(truth) < 2 or truth.numel() == 0:
        raise ValueError(
            f"samples must be at least {LEAST_SAMPLES} of each of at least 2 pictures, got "
            f"{samples.shape[1]} of {len(truth)}."
        )
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha!r}.")
    for name, tensor in (("samples", samples), ("truth", truth)):
        broken = sum(not bool(each.isfinite().all()) for each in tensor)
        if broken:
            raise ValueError(
                f"{name} of {broken} pictures hold values that are not finite, which have no "
                "rank: leave these pictures out, or clamp them as a picture file would."
            )


def _weights(
    functionals: Mapping[str, Tensor] | None, shape: tuple[int, ...], seed: int
) -> Mapping[str, Tensor]:
    if functionals is None:
        return linear_functionals(shape, seed)
    if not functionals:
        raise ValueError("functionals must have at least one, or be None for the default ones.")
    for name, weight in functionals.items():
        if tuple(weight.shape) != shape:
            raise ValueError(
                f"The functional {name!r} must have the shape of a picture, {shape}, got "
                f"{tuple(weight.shape)}."
            )
    return functionals


def _metrics(quality: Sequence[str] | None, shape: tuple[int, ...]) -> list[str]:
    pictures = len(shape) == 3 and min(shape[1:]) >= LEAST_SIDE
    if quality is None:
        quality = list(METRICS) if pictures and shape[0] in (1, 3) else []
    for name in quality:
        check_choice("quality", name, tuple(METRICS))
    if quality and not pictures:
        raise ValueError(
            f"quality is of pictures (C, H, W) with sides of at least {LEAST_SIDE}, got {shape}: "
            "give quality=()."
        )
    if quality:
        check_installed()
    return list(quality)


def _near(coverage: Coverage, share: float) -> tuple[float, Estimate]:
    pairs = zip(coverage.nominal, coverage.observed, strict=True)
    return min(pairs, key=lambda pair: abs(pair[0] - share))


def _in_words(test: Uniformity, p_value: float, where: str) -> str:
    """What the ranks say about the samples."""
    if p_value >= _SIGNIFICANT:
        return "uniform."
    # A shift raises the width, too: so the shift is named unless it is below 2/3 of the width.
    if abs(test.shift) >= 2 / 3 * abs(test.width):
        fault = f"the truth lies {'above' if test.shift > 0 else 'below'} the samples"
    else:
        fault = f"the samples are too {'narrow' if test.width > 0 else 'wide'}"
    return f"{fault}{where}."


def _checked_on(rate: Estimate) -> str:
    return "." if math.isnan(rate.value) else f"; of other pictures {rate} are held."
