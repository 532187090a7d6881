"""A masked conditioner: the parameters of each feature depend on the features before it alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow.nn._checks import check_counts
from robustflow.nn.circle import PeriodicFeatures, periodic
from robustflow.nn.conditioner import TwoPartConditioner, periodic_features
from robustflow.nn.incremental import Masked, Operation, PlannedNetwork, Planner, module_obstacle

_planner = Planner()


class MaskedConditionerOptions(TypedDict, total=False):
    """Types of the options of :class:`MaskedConditioner` that layers pass on."""

    hidden_features: int
    circles: Sequence[float | None]
    num_frequencies: int


class MaskedConditioner(TwoPartConditioner):
    """The conditioner of an autoregressive layer over (N, D), in one pass.

    Each hidden unit has a degree: it reads the features up to that one of the order (none, with
    degree 0, and all of the context) and is read by the parameters of the features after it.

    Args:
        features: D.
        context_features: width of the context; 0 for a conditioner without one.
        out_features: ``features * transform.num_params``, index ``d * num_params + p``.
        hidden_features: width of the hidden layers; at least D, or some features go unread.
        reverse: the order is from the last feature to the first.
        initial_params: parameters of a feature at the start, whatever z and the context.
        circles, num_frequencies: of features on circles, as for :class:`Conditioner`.

    Raises:
        TypeError, ValueError: no whole numbers of features, or fewer hidden features than features.

    Shapes: context (N or 1, context_features), z (N, features), result (N, out_features).

    Source: Germain et al., MADE, 2015 (arXiv:1502.03509).

    Example:
        >>> conditioner = MaskedConditioner(3, 2, 3, initial_params=(1.0,))
        >>> conditioner(torch.randn(5, 3), conditioner.project(torch.randn(1, 2))).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        context_features: int,
        out_features: int,
        *,
        hidden_features: int = 64,
        reverse: bool = False,
        initial_params: Sequence[float] = (0.0,),
        circles: Sequence[float | None] | None = None,
        num_frequencies: int = 1,
    ) -> None:
        check_counts(features=features, out_features=out_features, hidden_features=hidden_features)
        check_counts(0, context_features=context_features)
        if out_features % features:
            raise ValueError(
                f"out_features must be a multiple of features, {features}, got {out_features}."
            )
        if hidden_features < features:
            raise ValueError(
                f"hidden_features must be at least {features}, one for each feature, so that "
                f"every feature is read, got {hidden_features}."
            )
        order = torch.arange(1, features + 1)
        order = order.flip(0) if reverse else order
        # Only a context reaches units of degree 0.
        lowest = 0 if context_features > 0 or features == 1 else 1
        hidden = lowest + torch.arange(hidden_features) * (features - lowest) // hidden_features
        after = order.repeat_interleave(out_features // features)
        z_features = periodic_features(features, circles, num_frequencies)
        read = order if z_features is None else order[list(z_features.sources)]

        context_layer = (
            nn.Linear(context_features, hidden_features) if context_features > 0 else None
        )
        super().__init__(
            context_layer,
            MaskedLinear(hidden[:, None] >= read, bias=context_layer is None),
            MaskedLinear(hidden[:, None] >= hidden),
            MaskedLinear(after[:, None] > hidden),
            initial_params,
            z_features,
        )
        self.features = features

    def planned(self, projected: Tensor | None) -> PlannedNetwork | str:
        """For :mod:`robustflow.nn.incremental`: the network, or a clause that says why not.

        Args:
            projected: what :meth:`project` returned.
        """
        replaced = "layers of its network were replaced"
        if type(self.trunk) is not nn.Sequential or self.z_layer is None:
            return replaced
        modules = [self.z_layer, *self.trunk]
        parts: list[nn.Module] = [self, self.trunk]
        if self.z_features is not None:
            parts.append(self.z_features)
        obstacle = module_obstacle(
            parts, MaskedConditioner, nn.Sequential, PeriodicFeatures
        ) or module_obstacle(modules, MaskedLinear)
        if obstacle is not None:
            return obstacle
        if (projected is None) != (self.context_layer is None):
            return "its context is missing, or has no part in it"
        operations: list[Operation] = [
            Masked(module.weight, module.bias, module.mask)
            if isinstance(module, MaskedLinear)
            else module
            for module in modules
        ]
        first = operations[0]
        if not isinstance(first, Masked):
            return replaced
        operations[0] = first._replace(offset=projected)
        sources = None if self.z_features is None else self.z_features.sources
        return _planner.plan(self, operations, self.features, sources=sources)

    def features_of(self, values: Tensor, chosen: Sequence[int]) -> Tensor:
        """What the first layer reads of some features, which are known, (N, n)."""
        if self.z_features is None:
            return values
        bounds = tuple(self.z_features.bounds[i] for i in chosen)
        return periodic(values, bounds, self.z_features.num_frequencies)


class MaskedLinear(nn.Linear):
    """A linear layer whose mask (out_features, in_features) is 1 where units are connected."""

    mask: Tensor

    def __init__(self, mask: Tensor, *, bias: bool = True) -> None:
        out_features, in_features = mask.shape
        super().__init__(in_features, out_features, bias=bias)
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight * self.mask, self.bias)
