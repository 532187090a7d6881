"""The metrics of samples, each with its library, colours and border."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Literal

import torch
from torch import Tensor

import robustflow
from robustflow.diagnostics.artifacts import HIGHEST, KINDS, LOWEST, faulty_pixels
from robustflow.diagnostics.posterior.proper import crps, energy_score
from robustflow.diagnostics.posterior.quality import (
    LEAST_MS_SSIM_SIDE,
    LEAST_SIDE,
    ms_ssim,
    psnr,
    ssim,
)
from robustflow.experiments.imaging.evaluation.case import Case, Colour, luma
from robustflow.experiments.imaging.evaluation.diversity import diversity, pixel_distances
from robustflow.experiments.imaging.evaluation.gmsd import gmsd
from robustflow.experiments.imaging.evaluation.perceptual import Perceptual

Needs = Callable[[Case], "str | None"]


@dataclass(frozen=True)
class Metric:
    """One figure of a case.

    Attributes:
        name: in the table.
        unit: of the figure.
        better: "higher", "lower", or "" where neither is.
        library: whose formula, with its version.
        what: it is, in words.
        of: the case -> the figure.
        needs: each says why a case has none, or None.
        colours: "RGB" or "Y"; "" where it is not about colours.
        border: left out at each side, in pixels; None where it is not about that.
        pooled: over pictures, by the "mean" or the "max".
    """

    name: str
    unit: str
    better: str
    library: str
    what: str
    of: Callable[[Case], float]
    needs: tuple[Needs, ...] = ()
    colours: str = ""
    border: int | None = None
    pooled: Literal["mean", "max"] = "mean"

    def missing(self, case: Case) -> str | None:
        """Why this case has no value, or None."""
        return next((reason for need in self.needs if (reason := need(case))), None)


def metrics_of(colour: Colour, border: int, perceptual: Perceptual | str) -> list[Metric]:
    """All metrics, in the table's order.

    Args:
        colour, border: of the metrics against a truth.
        perceptual: LPIPS, or why there is none.
    """
    return [
        *_against_truth(colour, border),
        *_of_perceptual(perceptual),
        *_of_distributions(colour, border),
        *_of_observations(),
        *_of_artifacts(),
        *_of_costs(),
    ]


def _against_truth(colour: Colour, border: int) -> list[Metric]:
    metric = partial(Metric, colours=colour.upper(), border=border)
    theirs, better = f"torchmetrics {version('torchmetrics')}", "higher"
    what = "of samples as saved (8 bits), mean over samples"
    return [
        metric("PSNR", "dB", better, theirs, what, _mean_of(psnr), (_truth,)),
        metric(
            "PSNR of the mean",
            "dB",
            better,
            theirs,
            "of the mean of samples as saved",
            lambda case: float(psnr(*case.mean)),
            (_truth,),
        ),
        metric("SSIM", "", better, theirs, what, _mean_of(ssim), (_truth, _sides(LEAST_SIDE))),
        metric(
            "MS-SSIM",
            "",
            better,
            theirs,
            what,
            _mean_of(ms_ssim),
            (_truth, _sides(LEAST_MS_SSIM_SIDE)),
        ),
        Metric(
            "GMSD",
            "",
            "lower",
            _own(),
            what,
            _gmsd,
            (_truth, _sides(LEAST_SIDE)),
            colours="Y",
            border=border,
        ),
    ]


def _of_perceptual(perceptual: Perceptual | str) -> list[Metric]:
    if isinstance(perceptual, str):
        reason, library = perceptual, "lpips"

        def needs(case: Case) -> str | None:
            return reason

        def distances(case: Case) -> Tensor:
            raise AssertionError  # see needs
    else:
        network, library = perceptual, f"lpips {perceptual.version} (alex)"

        def needs(case: Case) -> str | None:
            return network.missing(case.saved)

        def distances(case: Case) -> Tensor:
            assert case.truth is not None
            return network(case.saved, case.truth)

    metric = partial(Metric, colours="RGB", border=0)
    return [
        metric(
            "LPIPS",
            "",
            "lower",
            library,
            "of samples as saved, mean over samples",
            lambda case: float(distances(case).mean()),
            (_truth, needs),
        ),
        metric(
            "diversity (LPIPS)",
            "%",
            "higher",
            library,
            "100 (G - L) / G: G the best sample's LPIPS, L that of each pixel's best",
            lambda case: diversity(distances(case)),
            (_truth, _several, needs),
        ),
    ]


def _of_distributions(colour: Colour, border: int) -> list[Metric]:
    metric = partial(Metric, colours=colour.upper(), border=border)
    needs = (_truth, _several)
    return [
        metric(
            "diversity (pixels)",
            "%",
            "higher",
            _own(),
            "the same with |x - truth|, mean over channels, in place of LPIPS",
            lambda case: diversity(pixel_distances(case.compared[0], case.compared[1][:1])),
            needs,
        ),
        metric(
            "CRPS",
            "",
            "lower",
            _own(),
            "of every value of samples as saved, mean",
            lambda case: float(crps(case.compared[0], case.compared[1][0]).mean()),
            needs,
        ),
        metric(
            "energy score",
            "",
            "lower",
            _own(),
            "of samples as saved, over the root of the number of values",
            lambda case: float(energy_score(case.compared[0], case.compared[1][0])),
            needs,
        ),
    ]


def _of_observations() -> list[Metric]:
    metric = partial(Metric, needs=(lambda case: case.unseen,), colours="RGB", border=0)
    theirs = f"torchmetrics {version('torchmetrics')}"
    return [
        metric(
            "LR-PSNR",
            "dB",
            "higher",
            theirs,
            "of A(x) of samples as saved against y, mean over samples",
            lambda case: float(_lr_psnr(case).mean()),
        ),
        metric(
            "LR-PSNR, worst",
            "dB",
            "higher",
            theirs,
            "the same of the worst sample",
            lambda case: float(_lr_psnr(case).min()),
        ),
        metric(
            "consistency",
            "",
            "lower",
            _own(),
            "root mean square of A(x) - y before clamping, mean over samples",
            _consistency,
        ),
    ]


def _of_artifacts() -> list[Metric]:
    metric = partial(Metric, unit="%", better="lower", library=_own())
    return [
        metric(
            "faulty",
            what=f"samples with a value above {HIGHEST}, below {LOWEST} or not finite, unclamped",
            of=lambda case: (
                100 * float(faulty_pixels(case.samples).flatten(1).any(1).float().mean())
            ),
        ),
        *(
            metric(
                f"artifacts: {kind}",
                what=f"samples in which find_artifacts sees the kind {kind!r}",
                of=partial(_share_of, kind),
                needs=(partial(_not_looked_for, kind),),
            )
            for kind in KINDS
        ),
        metric(
            "largest |value|",
            unit="",
            what="before clamping, over all pictures",
            of=lambda case: float(_magnitudes(case.samples).max()),
            pooled="max",
        ),
    ]


def _of_costs() -> list[Metric]:
    return [
        Metric("time", "s", "lower", _own(), "of a sample", lambda case: case.seconds),
        Metric(
            "memory",
            "MB",
            "lower",
            _own(),
            "the most that sampling adds to what the process held, over all pictures",
            lambda case: (case.bytes or 0) / 1e6,
            (lambda case: None if case.bytes is not None else "the system does not say",),
            pooled="max",
        ),
    ]


def _own() -> str:
    return f"robustflow {robustflow.__version__}"


def _truth(case: Case) -> str | None:
    return "there is no truth" if case.truth is None else None


def _several(case: Case) -> str | None:
    return None if len(case.samples) > 1 else "it needs at least 2 samples of a picture"


def _sides(minimum: int) -> Needs:
    def needs(case: Case) -> str | None:
        side = min(case.samples.shape[-2:]) - 2 * case.border
        return None if side >= minimum else f"it needs sides of at least {minimum} pixels"

    return needs


def _mean_of(quality: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Case], float]:
    return lambda case: float(quality(*case.compared).mean())


def _gmsd(case: Case) -> float:
    """GMSD of luma, whatever the colour space of the other metrics."""
    ours, theirs = case.compared
    return float(
        gmsd(*(each if each.shape[1] == 1 else luma(each) for each in (ours, theirs))).mean()
    )


def _lr_psnr(case: Case) -> Tensor:
    return psnr(case.observed, case.observation.expand_as(case.observed))


def _consistency(case: Case) -> float:
    residual = case.task.forward(case.samples) - case.observation
    sizes = residual.flatten(1).square().mean(dim=1).sqrt()
    return float(torch.where(sizes.isfinite(), sizes, torch.inf).mean())


def _magnitudes(samples: Tensor) -> Tensor:
    return samples.abs().nan_to_num(nan=torch.inf, posinf=torch.inf)


def _share_of(kind: str, case: Case) -> float:
    return 100 * float(case.artifacts.flagged[kind].float().mean())


def _not_looked_for(kind: str, case: Case) -> str | None:
    if kind in case.artifacts.masks:
        return None
    if kind == "consistency" and case.unseen:
        return case.unseen
    return "it needs more samples or larger pictures"
