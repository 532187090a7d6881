"""LPIPS, from local weights: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustflow.experiments.torch_files import UnreadableFile, load_torch_file

_LEAST_SIDE = 32  # below it AlexNet's last maps are empty
_FEATURES = "features."


class NoPerceptual(Exception):
    """LPIPS is not available; the text says why and what to do."""


class Perceptual:
    """LPIPS by AlexNet, pixel by pixel.

    The heads' weights come with the package ``lpips``; AlexNet's are those of torchvision
    (``alexnet-owt-7be5be79.pth``), from a path.

    Args:
        path: of AlexNet's weights.

    Raises:
        NoPerceptual: the package or torchvision is missing or broken, or the file is no AlexNet.
    """

    def __init__(self, path: Path) -> None:
        try:
            import lpips
        except ModuleNotFoundError as error:
            raise NoPerceptual(
                f"it needs the package {error.name}: pip install 'robustflow[lpips]'"
            ) from None
        except (ImportError, RuntimeError) as error:  # torchvision of another PyTorch
            raise NoPerceptual(f"the package lpips cannot be imported ({error})") from None
        weights = _weights(path)
        network = lpips.LPIPS(net="alex", spatial=True, pnet_rand=True, verbose=False).eval()
        _load(network.net, weights, path)
        self._network: Callable[..., Tensor] = network.requires_grad_(False)
        self.version = version("lpips")

    @torch.no_grad()
    def __call__(self, samples: Tensor, truth: Tensor) -> Tensor:
        """Distances (K, H, W) of samples (K, 3, H, W) in [0, 1] from the truth (1, 3, H, W)."""
        pairs = [self._network(each[None], truth, normalize=True)[0, 0] for each in samples]
        return torch.stack(pairs)

    @staticmethod
    def missing(samples: Tensor) -> str | None:
        """Why these samples have no LPIPS, or None."""
        if samples.shape[1] != 3:
            return "it needs pictures of 3 channels"
        if min(samples.shape[2:]) < _LEAST_SIDE:
            return f"it needs sides of at least {_LEAST_SIDE} pixels"
        return None


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        weights = load_torch_file(path)
    except FileNotFoundError:
        raise NoPerceptual(f"there is no file {path}") from None
    except UnreadableFile as error:
        raise NoPerceptual(f"{path} holds no weights ({error})") from None
    if not isinstance(weights, dict):
        raise NoPerceptual(f"{path} holds no weights by name")
    return weights


def _load(network: Any, weights: dict[str, Tensor], path: Path) -> None:
    """Load AlexNet's convolutions into LPIPS' slices, whose layers have the same numbers."""
    for name, parameter in network.named_parameters():
        part = _FEATURES + name.partition(".")[2]  # slice2.3.weight: features.3.weight
        if part not in weights or weights[part].shape != parameter.shape:
            raise NoPerceptual(f"{path} holds no weights of AlexNet: {part} is missing or differs")
        parameter.data.copy_(weights[part])
