"""Full-reference quality of pictures with values in [0, 1], by torchmetrics."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from robustflow._extras import require

EXTRA = "evaluate"
LEAST_SIDE = 11  # of the window of SSIM
LEAST_MS_SSIM_SIDE = LEAST_SIDE * 2**4  # five scales of it
_LARGEST = 1.0  # white


def psnr(pictures: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (N,): 10 log10 (1 / mean square error).

    Args:
        pictures: (N, C, H, W).
        truth: likewise.

    Raises:
        ModuleNotFoundError: torchmetrics is missing.
    """
    values = _metrics().peak_signal_noise_ratio(
        pictures, truth, data_range=_LARGEST, reduction="none", dim=(1, 2, 3)
    )
    return cast(Tensor, values)


def ssim(pictures: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity, (N,), by a Gaussian window of 11 x 11, mean over channels and pixels.

    Pictures are mirrored at their edges. Implementations that leave out the 5 pixels next to them,
    such as scikit-image's, give somewhat other numbers.

    Args:
        pictures: (N, C, H, W), sides of at least 11.
        truth: likewise.

    Raises:
        ModuleNotFoundError: torchmetrics is missing.

    Source: Wang et al., 2004 (doi:10.1109/TIP.2003.819861).
    """
    values = _metrics().structural_similarity_index_measure(
        pictures, truth, data_range=_LARGEST, reduction="none"
    )
    return cast(Tensor, values).reshape(len(pictures))


def ms_ssim(pictures: Tensor, truth: Tensor) -> Tensor:
    """Multi-scale structural similarity, (N,), of five scales.

    Args:
        pictures: (N, C, H, W), sides of at least 176.
        truth: likewise.

    Raises:
        ModuleNotFoundError: torchmetrics is missing.

    Source: Wang, Simoncelli and Bovik, 2003 (doi:10.1109/ACSSC.2003.1292216).
    """
    values = _metrics().multiscale_structural_similarity_index_measure(
        pictures, truth, data_range=_LARGEST, reduction="none"
    )
    return cast(Tensor, values).reshape(len(pictures))


def check_installed() -> None:
    """See that :func:`psnr` and :func:`ssim` can be had, before long work.

    Raises:
        ModuleNotFoundError: torchmetrics is missing; the text names the extra.
    """
    _metrics()


def _metrics() -> Any:
    return require("torchmetrics.functional.image", "Quality against a truth", EXTRA)
