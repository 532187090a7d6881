"""The transforms as ``torch.distributions`` Transforms.

They go wherever a :class:`torch.distributions.Transform` goes: ``TransformedDistribution``,
``ComposeTransform``, ``IndependentTransform``, and zuko's flows, whose protocol
(``call_and_ladj``, of the transform and of its inverse) they have. Each acts on single elements:
the event dimension is 0.

A call computes the value and the log-determinant together, and the latter is kept for as long as
the caller holds x and y: ``TransformedDistribution.log_prob`` costs one call a transform, and
``transform.log_abs_det_jacobian(x, y)`` and ``transform.inv.log_abs_det_jacobian(y, x)`` none.
``cache_size=1`` holds the latest pair itself, as in torch. Neither is used after a write to x, y
or a parameter (writes through ``tensor.data`` and to inference tensors are not counted by torch),
nor where it lacks a gradient that is wanted now. Inside torch.compile the log-determinant is kept
to the end of the compiled region, writes in between are not noticed, and no pair is cached.

Example:
    >>> import torch
    >>> from torch.distributions import Independent, Normal, TransformedDistribution
    >>> transform = ModifiedRQSplineTransform(torch.randn(2, 4))
    >>> base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    >>> distribution = TransformedDistribution(base, transform)
    >>> distribution.log_prob(distribution.rsample((7,))).shape
    torch.Size([7])
"""

from robustflow.distributions.affine import ConditionalAffineTransform
from robustflow.distributions.cubic_bspline import CubicBSplineTransform
from robustflow.distributions.modified_rq import ModifiedRQSplineTransform
from robustflow.distributions.rq import RQSplineTransform

__all__ = [
    "ConditionalAffineTransform",
    "CubicBSplineTransform",
    "ModifiedRQSplineTransform",
    "RQSplineTransform",
]
