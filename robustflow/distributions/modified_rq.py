"""The modified rational-quadratic spline as a ``torch.distributions`` transform."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from robustflow import functional as F
from robustflow._transforms import MODIFIED_RQ
from robustflow.distributions.elementwise import ElementwiseTransform, check_parameters, with_dims


class ModifiedRQSplineTransform(ElementwiseTransform):
    """The modified rational-quadratic spline: it moves no value by more than the length of its box.

    ``|T(x) - x - shift|`` is less than the length of the interval whatever the parameters, so
    neither direction can explode; outside the box it is ``x + shift``. Domain and codomain are the
    reals. All-zero parameters give the identity.

    Args:
        params: (\\*, 4): width, height, derivative and shift logits; float64, float32, bfloat16 or
            float16. The leading dimensions are the batch shape and broadcast against x, which may
            have more: sizes of 1 and missing ones are shared without a copy.
        interval, min_bin, min_derivative, derivative: those of
            :func:`robustflow.functional.modified_rq_spline`, with its (the paper's) defaults. In
            a new model, after a scaling to about unit variance, take ``interval=(-3, 3)`` and
            ``derivative="softclip"``, as :class:`robustflow.nn.ModifiedRQSpline` does.
        cache_size: 1 holds the latest pair (x, y), 0 none.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.

    Source: Hong, Park, Chun, ICCV 2023 (arXiv:2212.04319).

    Example:
        >>> import torch
        >>> from torch.distributions import Normal, TransformedDistribution
        >>> params = torch.zeros(3, 4, requires_grad=True)
        >>> transform = ModifiedRQSplineTransform(params, interval=(-3, 3), derivative="softclip")
        >>> base = Normal(torch.zeros(3), torch.ones(3))
        >>> TransformedDistribution(base, transform).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
        >>> y, ladj = transform.call_and_ladj(torch.randn(5, 3))
        >>> x, minus_ladj = transform.inv.call_and_ladj(y)
    """

    parameter_names = ("params",)

    def __init__(
        self,
        params: Tensor,
        *,
        interval: tuple[float, float] = (-0.5, 0.5),
        min_bin: float = 1e-3,
        min_derivative: float = 1e-3,
        derivative: Literal["exp", "softclip"] = "exp",
        cache_size: int = 0,
    ) -> None:
        check_parameters("params", params, MODIFIED_RQ.num_params)
        self.params = params
        settings = {
            "interval": interval,
            "min_bin": min_bin,
            "min_derivative": min_derivative,
            "derivative": derivative,
        }
        MODIFIED_RQ.config(False, *settings.values(), "none", params.dim())
        super().__init__(settings, cache_size)

    def _transform(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        params = with_dims(self.params, x.dim() + 1)
        return F.modified_rq_spline(x, params, inverse=inverse, reduce="none", **self.settings)
