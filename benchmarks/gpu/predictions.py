"""What was foretold: the fraction of the floor that each kernel should reach, and what binds it.

:mod:`benchmarks.aot` makes the file without a GPU, from the disassembly of the compiled kernels; it
is only read here, and set beside the measured fraction. Of its keys these matter::

    {
      "predictions": [
        {
          "backend": "cuda",              cuda or triton
          "transform": "modified_rq",     modified_rq, rq or affine
          "num_bins": 0,                  K of rq
          "direction": "forward",         forward, inverse, backward or inverse-backward
          "layout": "planar",             planar or rows
          "dtype": "float32",             of x
          "parameter_dtype": "float32",
          "card": "H100",                 which the name of the measured one has to contain
          "fraction": 1.0,                of the speed of a copy
          "bound": "memory"               or what binds before memory does
        }
      ]
    }
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cases import Case, dtype_name

FILE = Path(__file__).parents[1] / "results" / "predictions-sm90.json"

MEMORY = "memory"  # the bound of a kernel that its bytes bind, not its instructions

_Key = tuple[Any, ...]
_KEYS = (
    "backend",
    "transform",
    "num_bins",
    "direction",
    "layout",
    "dtype",
    "parameter_dtype",
)


@dataclass(frozen=True)
class Prediction:
    """``fraction`` of the floor; ``bound``: ``memory``, or the unit that is busy longer."""

    fraction: float
    bound: str


class Predictions:
    """The predictions of a file for a card, by what they are about.

    ``missing`` says why there are none: no file, or none for this card, whose bandwidth is another.

    Raises:
        ValueError: the file is not as stands above; the message says what is missing.
    """

    def __init__(self, card: str, file: Path = FILE) -> None:
        self._found: dict[_Key, Prediction] = {}
        self.missing = "" if file.exists() else f"There are no predictions: {file.name} is missing."
        if self.missing:
            return
        cards = set()
        try:
            for record in json.loads(file.read_text())["predictions"]:
                cards.add(record["card"])
                key = tuple(record[name] for name in _KEYS)
                prediction = Prediction(float(record["fraction"]), str(record["bound"]))
                if record["card"] in card:
                    self._found[key] = prediction
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{file.name} holds no predictions as {__name__} describes them ({error!r}): "
                "make it again with `python -m benchmarks.aot`."
            ) from error
        if not self._found:
            self.missing = f"There are no predictions for {card}, only for {', '.join(cards)}."

    def __len__(self) -> int:
        return len(self._found)

    def find(self, case: Case, backend: str) -> Prediction | None:
        """Of a case's kernel; a call with its backward pass is two kernels, and has none."""
        family = case.family
        key = (backend, family.transform, family.num_bins, case.direction, family.layout)
        dtypes = (dtype_name(case.dtype), dtype_name(case.parameter_dtype))
        if family.options.get("parametrization", "softmax") != "softmax":
            return None
        return self._found.get((*key, *dtypes))
