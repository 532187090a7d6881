"""glasflow: it carries nflows, or uses the installed one under GLASFLOW_USE_NFLOWS."""

from __future__ import annotations

from types import ModuleType

from robustflow.compat._patch import nflows
from robustflow.compat._patch.code import Change
from robustflow.compat._patch.recognise import import_library


def modules() -> list[ModuleType]:
    """Import those that define what is changed."""
    return [
        *import_library("glasflow", "glasflow"),
        *nflows.modules("glasflow", "glasflow.nflows"),
    ]


def changes() -> list[Change]:
    """What to change in glasflow's nflows."""
    return nflows.changes("glasflow", "glasflow.nflows")
