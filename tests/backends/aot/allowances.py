"""What a kernel may do although it should not, each with the reason.

Names are patterns (``fnmatch``) of ``backend:kernel``; the first that fits decides. An entry that
no kernel needs any more fails the tests, so that the lists stay short: `make test` asks sm_90, and
`make aot-all` the others for what is theirs alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Allowance:
    """``limit``: bytes of a thread's stack, in which spills and indexed arrays lie; ``archs``: the
    architectures on which it holds, none for all."""

    pattern: str
    limit: int
    reason: str
    archs: tuple[int, ...] = ()


STACK = (
    Allowance(
        "triton:modified_rq-*-planar-fp64:gradient_kernel",
        64,
        "A number takes two registers and two elements a thread fill all 255; the arithmetic of "
        "float64 hides a few accesses to the first-level cache.",
    ),
    Allowance(
        "cuda:planar_gradient<CubicBsplineOp FastFloat *float16 true>",
        8,
        "Eight elements with 11 parameters each fill all 255 registers; one number is stored once "
        "and loaded once.",
    ),
    Allowance(
        "triton:modified_rq-inverse-rows-fp32:gradient_kernel",
        8,
        "One number is stored once and loaded once.",
        archs=(80,),
    ),
)


def stack_allowance(name: str, arch: int) -> Allowance | None:
    """The entry of ``STACK`` for a kernel, named ``backend:kernel``."""
    fitting = (e for e in STACK if fnmatchcase(name, e.pattern) and arch in (e.archs or (arch,)))
    return next(fitting, None)
