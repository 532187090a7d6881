"""The K-bin rational-quadratic spline as a ``torch.distributions`` transform."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Size, Tensor
from torch.distributions import biject_to, constraints, transform_to

from robustflow import functional as F
from robustflow._rq_arguments import Bound, bound_as_tensor, box_of, check_rq_parameters
from robustflow._transforms import RQ
from robustflow.distributions.elementwise import ElementwiseTransform

_UNIT_BOX = (0.0, 1.0, 0.0, 1.0)  # stands for one that tensors hold
_EDGES = ("left", "right", "bottom", "top")


class RQSplineTransform(ElementwiseTransform):
    """The monotone rational-quadratic spline with K bins.

    Domain and codomain are the reals with linear and circular tails, and the box's intervals
    without (``tails=None``): a distribution with ``validate_args`` then refuses a value outside,
    with torch's error; without validation the result is NaN.

    Args:
        unnormalized_widths: (\\*, K), float64, float32, bfloat16 or float16.
        unnormalized_heights: (\\*, K).
        unnormalized_derivatives: (\\*, K-1) with linear tails, (\\*, K) circular, (\\*, K+1)
            without. The leading dimensions of the three broadcast to the batch shape (with those
            of bounds that are tensors), and against x, which may have more: sizes of 1 and missing
            ones are shared without a copy.
        tails, tail_bound, left, right, bottom, top: as for :func:`robustflow.functional.rq_spline`,
            with its defaults.
        min_bin_width, min_bin_height, min_derivative, parametrization, logit_scale: likewise.
            (zuko's ``MonotonicRQSTransform`` is ``tail_bound=5.0``,
            ``parametrization="softclip"``.)
        cache_size: 1 holds the latest pair (x, y), 0 none.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.

    Source: Durkan et al., Neural Spline Flows, 2019 (arXiv:1906.04032).

    Example:
        >>> from torch.distributions import TransformedDistribution, Uniform
        >>> w, h, d = torch.randn(3, 8), torch.randn(3, 8), torch.randn(3, 9)
        >>> box = {"left": 0.0, "right": 1.0, "bottom": 0.0, "top": 1.0}
        >>> transform = RQSplineTransform(w, h, d, tails=None, **box)
        >>> base = Uniform(torch.zeros(3), torch.ones(3))
        >>> distribution = TransformedDistribution(base, transform)
        >>> distribution.log_prob(distribution.sample((5,))).shape
        torch.Size([5, 3])
        >>> transform.domain
        Interval(lower_bound=0.0, upper_bound=1.0)
    """

    parameter_names = ("unnormalized_widths", "unnormalized_heights", "unnormalized_derivatives")

    def __init__(
        self,
        unnormalized_widths: Tensor,
        unnormalized_heights: Tensor,
        unnormalized_derivatives: Tensor,
        *,
        tails: Literal["linear", "circular"] | None = "linear",
        tail_bound: Bound = 1.0,
        left: Bound | None = None,
        right: Bound | None = None,
        bottom: Bound | None = None,
        top: Bound | None = None,
        min_bin_width: float = 1e-3,
        min_bin_height: float = 1e-3,
        min_derivative: float = 1e-3,
        parametrization: Literal["softmax", "softclip", "knots"] = "softmax",
        logit_scale: float = 1.0,
        cache_size: int = 0,
    ) -> None:
        groups = (unnormalized_widths, unnormalized_heights, unnormalized_derivatives)
        self.num_bins, _ = check_rq_parameters(groups, unnormalized_widths, tails)
        self.unnormalized_widths = unnormalized_widths
        self.unnormalized_heights = unnormalized_heights
        self.unnormalized_derivatives = unnormalized_derivatives
        bounds = {
            "tail_bound": tail_bound,
            "left": left,
            "right": right,
            "bottom": bottom,
            "top": top,
        }
        box = {name: _bound(name, bound, unnormalized_widths) for name, bound in bounds.items()}
        others = {
            "min_bin_width": min_bin_width,
            "min_bin_height": min_bin_height,
            "min_derivative": min_derivative,
            "logit_scale": logit_scale,
        }
        in_numbers = not any(isinstance(bound, Tensor) for bound in box.values())
        edges = box_of(unnormalized_widths, *box.values())[1] if in_numbers else _UNIT_BOX
        kinds = {"tails": tails, "parametrization": parametrization}
        RQ.config(self.num_bins, False, *kinds.values(), edges, *others.values(), "none", 0)
        super().__init__({**kinds, **box, **others}, cache_size)

    def _leading_shapes(self) -> list[Size]:
        bounds = (self.settings[name] for name in ("tail_bound", *_EDGES))
        return [
            *super()._leading_shapes(),
            *(bound.shape for bound in bounds if isinstance(bound, Tensor)),
        ]

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def domain(self) -> constraints.Constraint:
        return self._interval("left", "right")

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def codomain(self) -> constraints.Constraint:
        return self._interval("bottom", "top")

    def _interval(self, low: str, high: str) -> constraints.Constraint:
        """The reals, or without tails the box along an axis."""
        if self.settings["tails"] is not None:
            return constraints.real
        lower, upper = self.settings[low], self.settings[high]
        bound = self.settings["tail_bound"]
        return _Interval(-bound if lower is None else lower, bound if upper is None else upper)

    def _transform(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return F.rq_spline(
            x,
            self.unnormalized_widths,
            self.unnormalized_heights,
            self.unnormalized_derivatives,
            inverse,
            **self.settings,
        )

    def _extra_repr(self) -> str:
        return f", num_bins={self.num_bins}, tails={self.settings['tails']!r}"


class _Interval(constraints.interval):  # named so since torch prints the name
    """torch's interval with bounds in the value's dtype, which may round them outwards."""

    def check(self, value: Tensor) -> Tensor:
        lower, upper = (
            bound.to(value.dtype) if isinstance(bound, Tensor) else bound
            for bound in (self.lower_bound, self.upper_bound)
        )
        return (lower <= value) & (value <= upper)


for _registry in (biject_to, transform_to):  # torch looks up the exact class
    _registry.register(
        _Interval,
        lambda box, to=_registry: to(constraints.interval(box.lower_bound, box.upper_bound)),
    )


def _bound(name: str, bound: Any, widths: Tensor) -> Any:
    """A sequence as a tensor beside the parameters, in the precision of the box."""
    if bound is None or isinstance(bound, (int, float, Tensor)):
        return bound
    dtype = torch.promote_types(widths.dtype, torch.float32)
    return bound_as_tensor(name, bound, dtype, widths.device)
