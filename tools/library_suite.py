"""A pytest plugin that runs a library's own tests with the patch on.

    ROBUSTFLOW_PATCH=nflows python -m pytest -p tools.library_suite <its tests>

prints who served the calls at the end.
"""

from __future__ import annotations

import json
import os
from typing import Any

from robustflow import compat

MARK = "robustflow served: "


def pytest_configure(config: Any) -> None:
    compat.patch(os.environ["ROBUSTFLOW_PATCH"])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(MARK + json.dumps(compat.patched()))
