"""Results as JSON can hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def plain(value: Any) -> Any:
    """Mappings, sequences and numbers (numpy's too) as JSON holds them.

    A number that is not finite becomes a string, since JSON has none.

    Example:
        >>> plain({"largest": (1.5, math.inf)})
        {'largest': [1.5, 'inf']}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each) for each in value]
    if type(value).__module__ == "numpy":  # a number of its own types
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
