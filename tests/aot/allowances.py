"""What a kernel may do although it should not, each with the reason.

Names are patterns (``fnmatch``) of ``backend:kernel``; the first that fits decides. An entry that
no kernel needs any more fails the tests, so that the lists stay short.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Allowance:
    """``limit``: bytes of a thread's stack, in which spills and indexed arrays lie."""

    pattern: str
    limit: int
    reason: str


STACK = (
    Allowance(
        "triton:modified_rq-*-planar-fp64:modified_rq_gradient_kernel",
        64,
        "A number takes two registers and two elements a thread fill all 255; the arithmetic of "
        "float64 hides a few accesses to the first-level cache.",
    ),
)

# Predictions, by name, of float32 kernels that instructions bind, and why that is left so.
BOUND_BY_INSTRUCTIONS: dict[str, str] = {}


def stack_allowance(name: str) -> Allowance | None:
    """The entry of ``STACK`` for a kernel, named ``backend:kernel``."""
    return next((entry for entry in STACK if fnmatchcase(name, entry.pattern)), None)
