"""Autoregressive layer: each feature given those before it and the context."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robustflow.nn._checks import (
    check_counts,
    check_flags,
    check_module,
    check_options_are_used,
    check_shape,
    check_transform,
)
from robustflow.nn.circle import CircularShift, circles_from
from robustflow.nn.elementwise import (
    Affine,
    ElementwiseTransform,
    ModifiedRQSpline,
    RQSpline,
    circles_of,
    select,
)
from robustflow.nn.fused_layers import FusedRequest, transform_fused
from robustflow.nn.incremental import call_obstacle, context_obstacle, incremental_inverse
from robustflow.nn.layer import ConditionalLayer
from robustflow.nn.masked import MaskedConditioner, MaskedConditionerOptions, MaskedLinear
from robustflow.nn.precision import zero_logabsdet

if TYPE_CHECKING:
    from typing_extensions import Unpack


_log = logging.getLogger("robustflow.nn")


class Autoregressive(ConditionalLayer):
    """Masked autoregressive layer over (N, D): one pass forward, D passes back.

    Without gradients (``torch.no_grad``), the default conditioner computes every unit once on the
    way back: all D passes together do the work of one. If that is not possible, the logger
    ``robustflow.nn`` says why at debug level.

    Args:
        features: D.
        context_features: width of the context; 0 for a layer without one.
        transform: the elementwise transform; default :class:`ModifiedRQSpline`.
        conditioner: any module called as ``conditioner(z, context)``, or ``conditioner(z)`` with
            ``context_features=0``, that returns the parameters, (N, features * num_params) with
            index ``d * num_params + p``, those of a feature from the features before it alone:
            this is not checked. ``project`` as for :class:`Coupling`. Default a
            :class:`MaskedConditioner`, with which the layer starts at the transform's
            ``identity_params``.
        reverse: from the last feature to the first; of the default conditioner.
        options: ``hidden_features`` of the default conditioner; ``circles`` and
            ``num_frequencies`` as for :class:`Coupling`.

    Raises:
        ValueError: no features, or fewer hidden features than features.
        TypeError: an argument of the wrong kind, or options together with a conditioner.

    Source: Papamakarios et al., Masked Autoregressive Flow, 2017 (arXiv:1705.07057).

    Example:
        >>> layer = Autoregressive(4, context_features=2)
        >>> z, context = torch.randn(5, 4), torch.randn(5, 2)
        >>> y, logabsdet = layer(z, context)
        >>> bool((layer(y, context, inverse=True)[0] - z).abs().max() < 1e-4)
        True
    """

    def __init__(
        self,
        features: int,
        context_features: int = 0,
        transform: ElementwiseTransform | None = None,
        conditioner: nn.Module | None = None,
        *,
        reverse: bool = False,
        **options: Unpack[MaskedConditionerOptions],
    ) -> None:
        check_counts(features=features)
        check_counts(0, context_features=context_features)
        check_flags(reverse=reverse)
        transform = ModifiedRQSpline() if transform is None else transform
        check_transform(transform)
        circles = circles_of(transform, features)
        check_options_are_used(conditioner, {**options, **({"reverse": True} if reverse else {})})
        if conditioner is None:
            options["circles"] = circles_from(options.get("circles", circles), features)
            conditioner = MaskedConditioner(
                features,
                context_features,
                features * transform.num_params,
                reverse=reverse,
                initial_params=transform.identity_params,
                **options,
            )
        check_module("conditioner", conditioner)
        super().__init__(features, context_features, transform, conditioner)
        self.reverse = reverse

    def transform_with(
        self, z: Tensor, state: Any, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Transform every feature, given the projected context."""
        check_shape("z", z, self.channels, 0)
        if type(self).params_of is ConditionalLayer.params_of:
            every = range(self.channels)
            request = FusedRequest(self, every, every, MaskedConditioner, MaskedLinear)
            fused = transform_fused(request, z, state, inverse)
            if fused is not None:
                return fused
        if not inverse:
            return self.transform(z, self.params_of(z, state))
        if not torch.compiler.is_compiling():
            result = self._inverse_incrementally(z, state)
            if not isinstance(result, str):
                return result
            _log.debug("%s: its inverse takes D passes, since %s.", type(self).__name__, result)
        # After pass i the first i features of the order are final. The parameters of the last pass
        # depend on features - 1 of them at most.
        x = torch.zeros_like(z)
        for _ in range(self.channels - 1):
            x, _ = self.transform(z, self.params_of(x, state), inverse=True)
        return self.transform(z, self.params_of(x, state), inverse=True)

    def _inverse_incrementally(self, y: Tensor, state: Any) -> tuple[Tensor, Tensor] | str:
        """The inverse, each unit of the conditioner computed once; or why that cannot be."""
        if not isinstance(self.conditioner, MaskedConditioner):
            return "its conditioner is not the default one"
        if type(self).params_of is not ConditionalLayer.params_of:
            return "a subclass makes the parameters otherwise"
        if type(self.transform) not in (Affine, CircularShift, ModifiedRQSpline, RQSpline):
            return "its transform may tell the features apart"
        states = [] if state is None else [state]
        obstacle = context_obstacle(state, len(y)) or call_obstacle(
            y, *self.conditioner.parameters(), *states
        )
        network = obstacle or self.conditioner.planned(state)
        if isinstance(network, str):
            return network
        logabsdet = zero_logabsdet(y)
        steps = iter(network.plan.members)

        def invert(y: Tensor, params: Tensor) -> Tensor:
            transform = select(self.transform, next(steps))
            params = params[..., : transform.num_params]  # of linear tails fewer than of mixed
            x, change = transform(y, params.flatten(1), inverse=True)
            logabsdet.add_(change)
            return x

        x = incremental_inverse(network, y, invert, embed=self.conditioner.features_of)
        return x, logabsdet

    def extra_repr(self) -> str:
        return super().extra_repr() + (", reverse=True" if self.reverse else "")
