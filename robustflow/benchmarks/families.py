"""The transforms and the named shapes that benchmark cases combine, for CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import pi, prod
from typing import Any

from robustflow import _transforms
from robustflow._spec import Spec

TAIL_BOUND = 3.0
# With fewer elements than this, a case measures the overhead of a call, not the kernel.
SMALL = 1 << 16

# The transform that a function of robustflow.functional computes.
SPECS = {
    "modified_rq_spline": _transforms.MODIFIED_RQ,
    "rq_spline": _transforms.RQ,
    "rq_spline_packed": _transforms.RQ,
    "conditional_affine": _transforms.AFFINE,
    "cubic_bspline": _transforms.CUBIC_BSPLINE,
}


@dataclass(frozen=True)
class Family:
    """A transform with its settings.

    Attributes:
        name: its part of a case's name.
        operation: a function of ``robustflow.functional``.
        competitors: those of :data:`robustflow.benchmarks.cases.COMPETITORS` that compute the same
            function on a CPU.
        num_bins: K of the K-bin spline, else 0.
        options: further arguments of the operation.
        layout: the layout of the parameters. ``planar``: (N, C*P, *S) for x (N, C, *S); ``rows``:
            the parameters of an element are adjacent.
    """

    name: str
    operation: str
    competitors: tuple[str, ...] = ()
    num_bins: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    layout: str = "planar"

    @property
    def spec(self) -> Spec:
        return SPECS[self.operation]

    @property
    def groups(self) -> tuple[int, ...]:
        """The number of parameters of an element in each group (widths, heights, ...)."""
        return self.spec.counts({**self.spec.defaults, **self.options, "num_bins": self.num_bins})

    @property
    def parameters(self) -> int:
        """The number of parameters of an element."""
        return sum(self.groups)


_PLAIN = ("eager", "compiled")


def _rq(
    name: str,
    num_bins: int,
    *peers: str,
    tails: str = "linear",
    tail_bound: float = TAIL_BOUND,
    parametrization: str = "softmax",
) -> Family:
    options = {"tails": tails, "tail_bound": tail_bound, "parametrization": parametrization}
    return Family(name, "rq_spline", (*_PLAIN, *peers), num_bins, options, "rows")


MODIFIED_RQ = Family("modified_rq", "modified_rq_spline", _PLAIN)
AFFINE = Family("affine", "conditional_affine", _PLAIN)
CUBIC_BSPLINE = Family("cubic_bspline", "cubic_bspline", _PLAIN)
# The parametrisation of nflows and normflows, with K = 8, and with sbi's default, K = 10.
RQ8 = _rq("rq8", 8, "nflows", "normflows")
RQ10 = _rq("rq10", 10, "nflows", "normflows")
# normflows alone has circular tails; angles lie in (-pi, pi).
RQ8_CIRCULAR = _rq("rq8-circular", 8, "normflows", tails="circular", tail_bound=pi)
# zuko's parametrisations: soft-clipped logits.
RQ8_ZUKO = _rq("rq8-softclip", 8, "zuko", parametrization="softclip")
AFFINE_ZUKO = Family(
    "affine-softclip",
    "conditional_affine",
    ("zuko",),
    options={"scale": "softclip_exp", "shift_first": False},
)


def _rq_packed(name: str, layout: str, **options: Any) -> Family:
    """K = 8, parameters in one tensor, log-determinants summed over each sample."""
    options = {"tail_bound": TAIL_BOUND, "reduce": "sum", **options}
    return Family(name, "rq_spline_packed", num_bins=8, options=options, layout=layout)


RQ8_PACKED_ROWS = _rq_packed("rq8_rows", "rows")
RQ8_PACKED_PLANAR = _rq_packed("rq8_planar", "planar")
RQ8_PACKED_SOFTCLIP = _rq_packed("rq8_softclip_rows", "rows", parametrization="softclip")


@dataclass(frozen=True)
class Workload:
    """A shape of x with a name.

    Attributes:
        name: the application that the shape comes from; the first part of a case's name.
        shape: samples first.
        quick_shape: a smaller one for quick runs; None: the same.
    """

    name: str
    shape: tuple[int, ...]
    quick_shape: tuple[int, ...] | None = None

    @property
    def is_small(self) -> bool:
        """Whether a case of this shape measures the overhead of a call, not the kernel."""
        return prod(self.shape) < SMALL


# The levels of the published 4x super-resolution network, and low-light enhancement's 192 channels
# at an eighth of 400 x 600, in batches of 16.
SR = (
    Workload("sr1", (16, 12, 80, 80), (2, 12, 80, 80)),
    Workload("sr2", (16, 24, 40, 40), (4, 24, 40, 40)),
    Workload("sr3", (16, 96, 20, 20), (4, 96, 20, 20)),
)
LOW_LIGHT = Workload("low-light", (16, 192, 50, 75), (1, 192, 50, 75))
