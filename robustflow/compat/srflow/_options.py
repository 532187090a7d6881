"""Options, as the published networks keep them: nested dictionaries in which anything may lack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FLOW = ("network_G", "flow")  # where a network's options say what its flow is like


def option(opt: Mapping[str, Any] | None, *path: str, default: Any = None) -> Any:
    """``opt[path[0]][path[1]]...``, or the default where that is missing or None.

    Example:
        >>> option({"network_G": {"flow": None}}, "network_G", "flow", "eps", default=1e-4)
        0.0001
    """
    value: Any = opt
    for key in path:
        if not isinstance(value, Mapping):
            return default
        value = value.get(key)
    return default if value is None else value
