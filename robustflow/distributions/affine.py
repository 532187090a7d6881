"""The conditional affine transform as a ``torch.distributions`` transform."""

from __future__ import annotations

from typing import Literal

from torch import Size, Tensor

from robustflow import functional as F
from robustflow._checks import check_same_device, check_tensor
from robustflow._transforms import AFFINE
from robustflow.distributions.elementwise import ElementwiseTransform, check_parameters, with_dims


class ConditionalAffineTransform(ElementwiseTransform):
    """The affine transform ``(x + shift) * s`` or ``x * s + shift`` with a predicted scale.

    s is a positive function of the scale logit; see
    :func:`robustflow.functional.conditional_affine`. Domain and codomain are the reals. (For a
    scale that is there already, :class:`torch.distributions.AffineTransform` does.)

    Args:
        params: (\\*, 2): shift and scale logit; or, with ``log_scale``, the shift alone, (\\*,).
            float64, float32, bfloat16 or float16. The leading dimensions are the batch shape and
            broadcast against x, which may have more: sizes of 1 and missing ones are shared
            without a copy.
        log_scale: the scale logits as a tensor of their own, (\\*,), which broadcasts too.
        scale, eps, clamp, shift_first, reciprocal: those of
            :func:`robustflow.functional.conditional_affine`, with its defaults (SRFlow's).
        cache_size: 1 holds the latest pair (x, y), 0 none.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.

    Source: Lugmayr et al., SRFlow, 2020 (arXiv:2006.14200); Dinh et al. 2017 (arXiv:1605.08803).

    Example:
        >>> import torch
        >>> from torch.distributions import Normal, TransformedDistribution
        >>> transform = ConditionalAffineTransform(torch.zeros(3, 2), scale="exp")
        >>> base = Normal(torch.zeros(3), torch.ones(3))
        >>> TransformedDistribution(base, transform).rsample((5,)).shape
        torch.Size([5, 3])
        >>> shift, log_scale = torch.randn(3), torch.zeros(())
        >>> ConditionalAffineTransform(shift, log_scale, scale="exp").batch_shape
        torch.Size([3])
    """

    parameter_names = ("params", "log_scale")

    def __init__(
        self,
        params: Tensor,
        log_scale: Tensor | None = None,
        *,
        scale: Literal[
            "sigmoid", "exp", "softplus", "atan_exp", "tanh_exp", "softclip_exp"
        ] = "sigmoid",
        eps: float = 1e-4,
        clamp: float | None = None,
        shift_first: bool = True,
        reciprocal: bool = False,
        cache_size: int = 0,
    ) -> None:
        if log_scale is None:
            check_parameters("params", params, AFFINE.num_params)
        else:
            check_tensor("params", params)
            check_tensor("log_scale", log_scale)
            check_same_device("log_scale", log_scale, params)
        self.params = params
        self.log_scale = log_scale
        settings = {
            "scale": scale,
            "eps": eps,
            "clamp": clamp,
            "shift_first": shift_first,
            "reciprocal": reciprocal,
        }
        AFFINE.config(False, *settings.values(), "none", params.dim())
        super().__init__(settings, cache_size)

    def _leading_shapes(self) -> list[Size]:
        if self.log_scale is None:
            return super()._leading_shapes()
        return [self.params.shape, self.log_scale.shape]

    def _transform(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if self.log_scale is None:
            params, log_scale = with_dims(self.params, x.dim() + 1), None
        else:
            params, log_scale = with_dims(self.params, x.dim()), with_dims(self.log_scale, x.dim())
        return F.conditional_affine(
            x, params, log_scale, inverse=inverse, reduce="none", **self.settings
        )
