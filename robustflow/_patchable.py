"""The libraries that ``robustflow.compat.patch`` knows, named without importing any of them."""

from __future__ import annotations

from typing import NamedTuple


class Library(NamedTuple):
    """A library that ``robustflow.compat.patch`` knows."""

    module: str  # of robustflow, with `modules()` and `changes()`
    imported: str  # the library's module without which none of it is in use


LIBRARIES = {
    "nflows": Library("robustflow.compat._patch.nflows", "nflows"),
    "normflows": Library("robustflow.compat._patch.normflows", "normflows"),
    "zuko": Library("robustflow.compat._patch.zuko", "zuko"),
    "FrEIA": Library("robustflow.compat._patch.freia", "FrEIA"),
    "glasflow": Library("robustflow.compat._patch.glasflow", "glasflow"),
    "transformers": Library(
        "robustflow.compat._patch.transformers", "transformers.models.vits.modeling_vits"
    ),
}
