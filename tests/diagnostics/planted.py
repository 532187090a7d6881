"""Photographs with artifacts planted in them, and the mask of where."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from robustflow._resizing import downsample
from robustflow.diagnostics import find_artifacts, judge_detectors
from robustflow.experiments.data.builtin import Picture
from robustflow.experiments.photographs import crop, load

SIDE, SCALE, OTHERS = 160, 4, 4
# Photographs that scikit-image and scikit-learn ship, colour and grey, smooth and rough.
PHOTOGRAPHS = [
    Picture(path.partition(".")[0], path, corner)
    for path, corner in [
        ("skimage/data/astronaut.png", (0, 140)),
        ("skimage/data/chelsea.png", (60, 110)),
        ("skimage/data/coffee.png", (100, 200)),
        ("skimage/data/rocket.jpg", (150, 250)),
        ("skimage/data/motorcycle_left.png", (200, 300)),
        ("skimage/data/ihc.png", (180, 180)),
        ("skimage/data/hubble_deep_field.jpg", (300, 400)),
        ("skimage/data/retina.jpg", (0, 600)),
        ("skimage/data/camera.png", (50, 150)),
        ("skimage/data/moon.png", (200, 200)),
        ("skimage/data/gravel.png", (0, 0)),
        ("skimage/data/brick.png", (0, 0)),
        ("sklearn/datasets/images/china.jpg", (100, 300)),
        ("sklearn/datasets/images/flower.jpg", (100, 200)),
    ]
]


@dataclass(frozen=True)
class Case:
    """A model's samples with something planted.

    Attributes:
        samples: (N, 3, H, W), of which ``truth`` (N, H, W) is wrong.
        observation: (N, 3, H/4, W/4), of the photographs.
        reference: (N, 3, H, W), smoother than the photographs and without the artifacts.
    """

    samples: Tensor
    truth: Tensor
    observation: Tensor
    reference: Tensor

    def among_others(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each sample with ``OTHERS`` clean, noisy ones of its observation.

        Returns:
            Samples, truth, and which are of one observation.
        """
        count = len(samples)
        generator = torch.Generator().manual_seed(100)
        clean = photographs().repeat(OTHERS, 1, 1, 1)
        others = clean + 0.02 * torch.randn(clean.shape, generator=generator)
        truth = torch.cat([self.truth, torch.zeros(OTHERS * count, SIDE, SIDE, dtype=torch.bool)])
        return torch.cat([samples, others]), truth, torch.arange(count).repeat(1 + OTHERS)


def photographs() -> Tensor:
    """(N, 3, H, W), values in [0, 1]."""
    return torch.stack([crop(load(p), p.corner, SIDE) for p in PHOTOGRAPHS]).float() / 255


def _blobs(number: int, generator: torch.Generator) -> Tensor:
    """One disc or two in a picture, of radius 5 to 14 pixels, (number, H, W)."""
    rows, columns = torch.arange(SIDE)[:, None], torch.arange(SIDE)[None]
    masks = torch.zeros(number, SIDE, SIDE, dtype=torch.bool)
    for mask in masks:
        for _ in range(int(torch.randint(1, 3, (), generator=generator))):
            top, left = torch.randint(20, SIDE - 20, (2,), generator=generator).tolist()
            radius = int(torch.randint(5, 15, (), generator=generator))
            mask |= (rows - top) ** 2 + (columns - left) ** 2 <= radius**2
    return masks


def huge(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Values from 10 to 10^30 of one sign a channel and 8 x 8 block, never all negative."""
    sign = torch.randint(2, (len(clean), 3, SIDE // 8, SIDE // 8), generator=generator) * 2 - 1
    sign[:, 0] = torch.where((sign < 0).all(dim=1), 1, sign[:, 0])
    sign = sign.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return sign * 10 ** (1 + 29 * torch.rand(clean.shape, generator=generator))


def not_a_number(clean: Tensor, generator: torch.Generator) -> Tensor:
    return torch.full_like(clean, math.inf) - math.inf


def brighter(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Another colour, in range: nothing that a file would show as broken."""
    shift = 0.3 * torch.randn((len(clean), 3, 1, 1), generator=generator).sign()
    return torch.where((clean + shift - 0.5).abs() < 0.5, clean + shift, clean - shift)


def rough(clean: Tensor, generator: torch.Generator) -> Tensor:
    """Noise that fits the observation on average."""
    return clean + 0.25 * torch.randn(clean.shape, generator=generator)


def squares(clean: Tensor, generator: torch.Generator) -> Tensor:
    """One of the 16 places of a 4 x 4 squeeze is too bright."""
    pattern = torch.zeros(SIDE, SIDE)
    pattern[1::4, 2::4] = 0.25
    return clean + pattern


PLANTED: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "huge values": huge,
    "not a number": not_a_number,
    "another colour": brighter,
    "noise": rough,
    "squares": squares,
}


def plant(name: str, seed: int = 0) -> Case:
    """Artifacts of a name of ``PLANTED`` in every photograph."""
    generator = torch.Generator().manual_seed(seed)
    clean = photographs()
    # Squares fill larger parts, in their nature and so that their period shows.
    if name == "squares":
        truth = torch.zeros(len(clean), SIDE, SIDE, dtype=torch.bool)
        truth[:, 48:112, 32:96] = True
    else:
        truth = _blobs(len(clean), generator)
    changed = PLANTED[name](clean, generator)
    samples = torch.where(truth[:, None], changed, clean)
    observation = (downsample(clean, SCALE).clamp(0, 1) * 255).round() / 255
    smooth = functional.avg_pool2d(clean, 3, 1, 1, count_include_pad=False)
    return Case(samples, truth, observation, smooth)


def in_8_bits(samples: Tensor) -> Tensor:
    """As a picture file has them: NaN is black."""
    return (samples.nan_to_num(nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1) * 255).round() / 255


def main() -> None:
    """Print how each detector does on each artifact, in 8 bits, as a Markdown table."""
    print("| planted | detector | AUROC | IoU | false alarms, pixels | pictures hit |")
    print("|---|---|---|---|---|---|")
    for name in PLANTED:
        case = plant(name)
        samples = in_8_bits(case.samples)
        judged = judge_detectors(
            find_artifacts(samples, case.observation, "sr4", case.reference), case.truth
        )
        together, truth, groups = case.among_others(samples)
        found = find_artifacts(in_8_bits(together), groups=groups, kinds=["ensemble"])
        judged |= judge_detectors(found, truth)
        for kind, of in judged.items():
            cells = [name, kind, of.auroc, of.iou, f"{100 * of.false_alarms.value:.2g} %"]
            print("|", " | ".join(map(str, [*cells, of.hit_pictures])), "|")


if __name__ == "__main__":
    main()
