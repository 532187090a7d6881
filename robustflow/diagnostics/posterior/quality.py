"""Full-reference quality of pictures with values in [0, 1], by torchmetrics."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from robustflow._extras import require

EXTRA = "evaluate"
LEAST_SIDE = 11  # of the window of SSIM
_LARGEST = 1.0  # white


def psnr(pictures: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (N,): 10 log10 (1 / mean square error).

    Args:
        pictures: (N, C, H, W).
        truth: likewise.

    Raises:
        ModuleNotFoundError: torchmetrics is missing.
    """
    found = _metrics().peak_signal_noise_ratio(
        pictures, truth, data_range=_LARGEST, reduction="none", dim=(1, 2, 3)
    )
    return cast(Tensor, found)


def ssim(pictures: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity, (N,), by a Gaussian window of 11 x 11, mean over channels.

    Args:
        pictures: (N, C, H, W), sides of at least 11.
        truth: likewise.

    Raises:
        ModuleNotFoundError: torchmetrics is missing.

    Source: Wang et al., 2004 (doi:10.1109/TIP.2003.819861).
    """
    found = _metrics().structural_similarity_index_measure(
        pictures, truth, data_range=_LARGEST, reduction="none"
    )
    return cast(Tensor, found).reshape(len(pictures))


def check_installed() -> None:
    """See that :func:`psnr` and :func:`ssim` can be had, before long work.

    Raises:
        ModuleNotFoundError: torchmetrics is missing; the text names the extra.
    """
    _metrics()


def _metrics():  # type: ignore[no-untyped-def]
    return require("torchmetrics.functional.image", "Quality against a truth", EXTRA)
