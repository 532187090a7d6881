"""The cubic B-spline as a ``torch.distributions`` transform."""

from __future__ import annotations

from torch import Tensor

from robustflow import functional as F
from robustflow._transforms import CUBIC_BSPLINE
from robustflow.distributions.elementwise import ElementwiseTransform, check_parameters, with_dims


class CubicBSplineTransform(ElementwiseTransform):
    """The monotone cubic B-spline: smooth, its slope bounded whatever its parameters.

    Outside the box it is ``x + shift``. Domain and codomain are the reals.

    Args:
        params: (\\*, 11): knot logits, control logits, shift; float64, float32, bfloat16 or
            float16. The leading dimensions are the batch shape and broadcast against x, which may
            have more: sizes of 1 and missing ones are shared without a copy.
        interval, min_bin: those of :func:`robustflow.functional.cubic_bspline`. The interval is by
            default the paper's; in a new model, after a scaling to about unit variance, take
            ``interval=(-3, 3)``, as :class:`robustflow.nn.CubicBSpline` does.
        cache_size: 1 holds the latest pair (x, y), 0 none.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.

    Source: Hong, Chun, AAAI 2023 (arXiv:2304.04555).

    Example:
        >>> import torch
        >>> from torch.distributions import Normal, TransformedDistribution
        >>> params = torch.zeros(3, 11, requires_grad=True)
        >>> transform = CubicBSplineTransform(params, interval=(-3, 3))
        >>> base = Normal(torch.zeros(3), torch.ones(3))
        >>> TransformedDistribution(base, transform).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    parameter_names = ("params",)

    def __init__(
        self,
        params: Tensor,
        *,
        interval: tuple[float, float] = (-0.5, 0.5),
        min_bin: float = 1e-2,
        cache_size: int = 0,
    ) -> None:
        check_parameters("params", params, CUBIC_BSPLINE.num_params)
        self.params = params
        settings = {"interval": interval, "min_bin": min_bin}
        CUBIC_BSPLINE.config(False, *settings.values(), "none", params.dim())
        super().__init__(settings, cache_size)

    def _transform(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        params = with_dims(self.params, x.dim() + 1)
        return F.cubic_bspline(x, params, inverse=inverse, reduce="none", **self.settings)
