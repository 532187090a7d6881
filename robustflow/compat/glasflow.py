"""glasflow: it carries nflows, or uses the installed one under GLASFLOW_USE_NFLOWS."""

from __future__ import annotations

from robustflow.compat import nflows
from robustflow.compat._code import Change
from robustflow.compat._probe import import_library


def changes() -> list[Change]:
    """What to change in glasflow's nflows."""
    import_library("glasflow", "glasflow")
    return nflows.changes("glasflow", "glasflow.nflows")
