"""MRI as a smoke test of another problem: 4x Cartesian undersampling of a brain template.

The slices are of one averaged brain, the ICBM 2009a template (Fonov et al., 2011,
doi:10.1016/j.neuroimage.2010.07.033), which nilearn ships. Nothing clinical follows from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from deepinv.physics import MRI, LinearPhysics
from PIL import Image
from torch import Tensor

from robustflow._extras import require
from robustflow._files import replacing
from robustflow.diagnostics.figures import new_figure
from robustflow.experiments.imaging.evaluation.subjects import subjects_of
from robustflow.experiments.studies.evaluated import evaluation_of, rows_of
from robustflow.experiments.studies.figures import legend, lines, tidy
from robustflow.experiments.studies.study import Cell, Row, Study
from robustflow.experiments.tasks.physics import PhysicsTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
_SIDE = 160  # of the slices' middle that is kept, in pixels of 1 mm
_ACCELERATION, _CENTRE = 4, 0.08  # one line in four, with the lowest 8 % of frequencies
_METRICS = ("PSNR", "PSNR of the mean", "SSIM", "CRPS", "consistency", "faulty", "largest |value|")
_GROUPS = {  # axis of the template, and which slices
    "train": (2, range(60, 101, 4)),
    "held-out": (2, range(112, 137, 8)),
    "other-planes": (0, range(70, 131, 20)),
}


class CartesianMRI(LinearPhysics):
    """Real pictures (N, 1, H, W) to the frequencies that are measured, (N, 2, H, W).

    Whole lines of frequencies along the height are measured, those of k and -k alike. The
    zero-filled picture is then real, and the adjoint is the pseudo-inverse.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mri = MRI(mask=None)

    def A(self, x: Tensor, **_: Any) -> Tensor:
        measured: Tensor = self.mri.A(torch.cat([x, torch.zeros_like(x)], dim=1), mask=mask(x))
        return measured

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        filled: Tensor = self.mri.A_adjoint(y, mask=mask(y))
        return filled[:, :1]

    def A_dagger(self, y: Tensor, **_: Any) -> Tensor:
        return self.A_adjoint(y)


def mask(x: Tensor) -> Tensor:
    """(1, 1, H, W): which frequencies are measured, the lowest in the middle."""
    height, width = x.shape[-2:]
    frequency = torch.arange(width) - width // 2
    num_columns = width // _ACCELERATION
    chosen = set(range(round(_CENTRE * width / 2) + 1))
    order = torch.randperm(width // 2, generator=torch.Generator().manual_seed(0)).tolist()
    for each in order:
        if 2 * len(chosen) - 1 >= num_columns:
            break
        chosen.add(each)
    kept = torch.tensor([int(each) in chosen for each in frequency.abs()])
    return kept.to(x).expand(1, 1, height, width)


class BrainMRI(PhysicsTask):
    """The task of the study: reconstruct a slice from a quarter of its frequencies."""

    name = "mri"

    def __init__(self) -> None:
        super().__init__(CartesianMRI(), channels=1)


def prepare(folder: Path) -> None:
    """Write the slices as 8-bit pictures.

    Raises:
        ModuleNotFoundError: nilearn, which ships the template, or nibabel is missing.
    """
    missing = [
        (file, axis, place)
        for name, (axis, places) in _GROUPS.items()
        for place in places
        if not (file := folder / name / f"{place:03d}.png").exists()
    ]
    if not missing:
        return
    nibabel = require("nibabel", "The study 'mri'", "mri")
    spec = find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("The study 'mri' needs nilearn's template.", name="nilearn")
    template = nibabel.load(Path(next(iter(spec.submodule_search_locations)), _TEMPLATE))
    volume = torch.from_numpy(template.get_fdata()).float()
    for file, axis, place in missing:
        pixels = volume.select(axis, place).byte()
        top, left = ((side - _SIDE) // 2 for side in pixels.shape)
        square = pixels[top : top + _SIDE, left : left + _SIDE].contiguous()
        with replacing(file) as opened:
            Image.fromarray(square.numpy()).save(opened, "PNG")


def measure(cell: Cell) -> list[Row]:
    """A row for each group of slices and temperature; the zero-filled pictures beside them."""
    sources = [cell.data / name for name in _GROUPS if name != "train"]
    zero_filled = {}
    for source in sources:
        subjects, _ = subjects_of(
            (source,), cell.flow.task, [cell.flow], size=cell.settings["size"], with_truth=True
        )
        errors = [
            (each.observation - each.truth).square().mean()
            for each in subjects
            if each.truth is not None
        ]
        zero_filled[source.name] = float((-10 * torch.stack(errors).log10()).mean())
    rows = rows_of(evaluation_of(cell, sources), _METRICS)
    for row in rows:
        row["pictures"] = Path(row["pictures"]).name
        row["PSNR of zero-filled (dB)"] = zero_filled[row["pictures"]]
    return rows


def figure(rows: Sequence[Row], study: Study) -> Figure:
    """By temperature: PSNR of samples and of their mean, faults; a line of panels for a group."""
    panels = (
        ("PSNR (dB)", "PSNR, dB"),
        ("PSNR of the mean (dB)", "PSNR of the mean, dB"),
        ("CRPS", "CRPS"),
        ("faulty (%)", "faulty, %"),
    )
    groups = list(dict.fromkeys(row["pictures"] for row in rows))
    fig = new_figure(figsize=(11, 2.4 * len(groups) + 0.8))
    axes = fig.subplots(len(groups), len(panels), squeeze=False)
    for line, group in zip(axes, groups, strict=True):
        group_rows = [row for row in rows if row["pictures"] == group]
        for axis, (column, title) in zip(line, panels, strict=True):
            lines(axis, group_rows, "temperature", column)
            tidy(axis, title)
        line[1].axhline(group_rows[0]["PSNR of zero-filled (dB)"], color="0.6", linewidth=0.8)
        line[0].set_ylabel(group, fontsize=8)
    legend(fig, axes[0, 0])
    fig.suptitle(f"{study.title} (grey: zero filling)", fontsize=10)
    return fig
