"""Layers by the name of their transform: its options beside those of the layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from robustflow.nn.autoregressive import Autoregressive
from robustflow.nn.conditioner import ConditionerOptions
from robustflow.nn.coupling import Coupling
from robustflow.nn.elementwise import (
    Affine,
    AffineOptions,
    CubicBSpline,
    CubicBSplineOptions,
    ModifiedRQSpline,
    ModifiedRQSplineOptions,
    RQSpline,
    RQSplineOptions,
    take_options,
)
from robustflow.nn.injector import Injector
from robustflow.nn.masked import MaskedConditionerOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

# What the default conditioners take from a layer's options.
_CONDITIONER = tuple(ConditionerOptions.__annotations__)
_MASKED_CONDITIONER = tuple(MaskedConditionerOptions.__annotations__)


class _AffineLayerOptions(AffineOptions, ConditionerOptions, total=False): ...


class _ModifiedRQSplineLayerOptions(ModifiedRQSplineOptions, ConditionerOptions, total=False): ...


class _CubicBSplineLayerOptions(CubicBSplineOptions, ConditionerOptions, total=False): ...


class _RQSplineLayerOptions(RQSplineOptions, ConditionerOptions, total=False): ...


class _RQSplineMaskedOptions(RQSplineOptions, MaskedConditionerOptions, total=False): ...


def _bounded(options: _AffineLayerOptions) -> _AffineLayerOptions:
    """Adds the default scale, which is bounded and starts at the identity."""
    return {"scale": "softclip_exp", **options}


class ConditionalAffineCoupling(Coupling):
    """:class:`Coupling` by an :class:`Affine` transform, with a bounded scale.

    Args:
        channels, context_channels, conditioner, reverse: as for :class:`Coupling`.
        options: ``scale``, ``eps``, ``clamp``, ``shift_first`` and ``reciprocal`` of
            :class:`Affine`, but that ``scale`` is ``"softclip_exp"``: within
            exp(+-clamp), and the identity at the start. ``scale="sigmoid"`` is the published
            one, which starts at sigmoid(2) and explodes. And ``hidden_channels``,
            ``spatial_dims``, ``kernel_size`` and ``head_kernel_size`` of the default
            :class:`Conditioner`.

    Example:
        >>> import torch
        >>> coupling = ConditionalAffineCoupling(6, spatial_dims=0, clamp=2.0)
        >>> y, logabsdet = coupling(torch.randn(5, 6))
        >>> logabsdet.tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        channels: int,
        context_channels: int = 0,
        conditioner: nn.Module | None = None,
        *,
        reverse: bool = False,
        **options: Unpack[_AffineLayerOptions],
    ) -> None:
        transform, rest = take_options(Affine, _bounded(options), _CONDITIONER)
        super().__init__(
            channels, context_channels, transform, conditioner, reverse=reverse, **rest
        )


class ConditionalAffineInjector(Injector):
    """:class:`Injector` by an :class:`Affine` transform, with a bounded scale.

    Args:
        channels, context_channels, conditioner: as for :class:`Injector`.
        options: as for :class:`ConditionalAffineCoupling`.

    Example:
        >>> ConditionalAffineInjector(6, 3, scale="sigmoid").transform.eps
        0.0001
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        conditioner: nn.Module | None = None,
        **options: Unpack[_AffineLayerOptions],
    ) -> None:
        transform, rest = take_options(Affine, _bounded(options), _CONDITIONER)
        super().__init__(channels, context_channels, transform, conditioner, **rest)


class ModifiedRQSplineCoupling(Coupling):
    """:class:`Coupling` by a :class:`ModifiedRQSpline`.

    Args:
        channels, context_channels, conditioner, reverse: as for :class:`Coupling`.
        options: ``interval``, ``min_bin``, ``min_derivative`` and ``derivative`` of
            :class:`ModifiedRQSpline`; ``hidden_channels``, ``spatial_dims``, ``kernel_size`` and
            ``head_kernel_size`` of the default :class:`Conditioner`.

    Example:
        >>> ModifiedRQSplineCoupling(12, 16, interval=(-2.0, 2.0)).transform.interval
        (-2.0, 2.0)
    """

    def __init__(
        self,
        channels: int,
        context_channels: int = 0,
        conditioner: nn.Module | None = None,
        *,
        reverse: bool = False,
        **options: Unpack[_ModifiedRQSplineLayerOptions],
    ) -> None:
        transform, rest = take_options(ModifiedRQSpline, options, _CONDITIONER)
        super().__init__(
            channels, context_channels, transform, conditioner, reverse=reverse, **rest
        )


class ModifiedRQSplineInjector(Injector):
    """:class:`Injector` by a :class:`ModifiedRQSpline`.

    Args:
        channels, context_channels, conditioner: as for :class:`Injector`.
        options: as for :class:`ModifiedRQSplineCoupling`.

    Example:
        >>> ModifiedRQSplineInjector(12, 16, hidden_channels=32).transform.num_params
        4
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        conditioner: nn.Module | None = None,
        **options: Unpack[_ModifiedRQSplineLayerOptions],
    ) -> None:
        transform, rest = take_options(ModifiedRQSpline, options, _CONDITIONER)
        super().__init__(channels, context_channels, transform, conditioner, **rest)


class CubicBSplineCoupling(Coupling):
    """:class:`Coupling` by a :class:`CubicBSpline`.

    Args:
        channels, context_channels, conditioner, reverse: as for :class:`Coupling`.
        options: ``interval`` and ``min_bin`` of :class:`CubicBSpline`; ``hidden_channels``,
            ``spatial_dims``, ``kernel_size`` and ``head_kernel_size`` of the default
            :class:`Conditioner`.

    Example:
        >>> CubicBSplineCoupling(12, 16, interval=(-2.0, 2.0)).transform.interval
        (-2.0, 2.0)
    """

    def __init__(
        self,
        channels: int,
        context_channels: int = 0,
        conditioner: nn.Module | None = None,
        *,
        reverse: bool = False,
        **options: Unpack[_CubicBSplineLayerOptions],
    ) -> None:
        transform, rest = take_options(CubicBSpline, options, _CONDITIONER)
        super().__init__(
            channels, context_channels, transform, conditioner, reverse=reverse, **rest
        )


class CubicBSplineInjector(Injector):
    """:class:`Injector` by a :class:`CubicBSpline`.

    Args:
        channels, context_channels, conditioner: as for :class:`Injector`.
        options: as for :class:`CubicBSplineCoupling`.

    Example:
        >>> CubicBSplineInjector(12, 16, hidden_channels=32).transform.num_params
        11
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        conditioner: nn.Module | None = None,
        **options: Unpack[_CubicBSplineLayerOptions],
    ) -> None:
        transform, rest = take_options(CubicBSpline, options, _CONDITIONER)
        super().__init__(channels, context_channels, transform, conditioner, **rest)


class RQSplineCoupling(Coupling):
    """:class:`Coupling` by an :class:`RQSpline` of K bins: the layer of neural spline flows.

    Args:
        channels, context_channels, conditioner, reverse: as for :class:`Coupling`.
        options: ``num_bins``, ``tails``, ``tail_bound``, ``min_bin_width``, ``min_bin_height``,
            ``min_derivative`` and ``parametrization`` of :class:`RQSpline`; ``hidden_channels``,
            ``spatial_dims``, ``kernel_size``, ``head_kernel_size``, ``circles`` and
            ``num_frequencies`` of the default :class:`Conditioner`, as for :class:`Coupling`.

    Source: Durkan et al., Neural Spline Flows, 2019 (arXiv:1906.04032).

    Example:
        >>> import torch
        >>> coupling = RQSplineCoupling(5, 2, num_bins=10, tail_bound=5.0, spatial_dims=0)
        >>> y, logabsdet = coupling(torch.randn(4, 5), torch.randn(4, 2))
        >>> y.shape, logabsdet.shape
        (torch.Size([4, 5]), torch.Size([4]))
    """

    def __init__(
        self,
        channels: int,
        context_channels: int = 0,
        conditioner: nn.Module | None = None,
        *,
        reverse: bool = False,
        **options: Unpack[_RQSplineLayerOptions],
    ) -> None:
        transform, rest = take_options(RQSpline, options, _CONDITIONER)
        super().__init__(
            channels, context_channels, transform, conditioner, reverse=reverse, **rest
        )


class RQSplineInjector(Injector):
    """:class:`Injector` by an :class:`RQSpline` of K bins.

    Args:
        channels, context_channels, conditioner: as for :class:`Injector`.
        options: as for :class:`RQSplineCoupling`.

    Example:
        >>> RQSplineInjector(12, 16, num_bins=4).transform.num_params
        11
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        conditioner: nn.Module | None = None,
        **options: Unpack[_RQSplineLayerOptions],
    ) -> None:
        transform, rest = take_options(RQSpline, options, _CONDITIONER)
        super().__init__(channels, context_channels, transform, conditioner, **rest)


class RQSplineAutoregressive(Autoregressive):
    """:class:`Autoregressive` layer over (N, D) by an :class:`RQSpline` of K bins.

    Args:
        features, context_features, conditioner, reverse: as for :class:`Autoregressive`.
        options: ``num_bins``, ``tails``, ``tail_bound``, ``min_bin_width``, ``min_bin_height``,
            ``min_derivative`` and ``parametrization`` of :class:`RQSpline`; ``hidden_features``,
            ``circles`` and ``num_frequencies`` of the default :class:`MaskedConditioner`.

    Source: Durkan et al., Neural Spline Flows, 2019 (arXiv:1906.04032).

    Example:
        >>> import torch
        >>> layer = RQSplineAutoregressive(3, context_features=2, hidden_features=32)
        >>> y, logabsdet = layer(torch.randn(4, 3), torch.randn(1, 2))  # one context for all
        >>> y.shape, logabsdet.shape
        (torch.Size([4, 3]), torch.Size([4]))
    """

    def __init__(
        self,
        features: int,
        context_features: int = 0,
        conditioner: nn.Module | None = None,
        *,
        reverse: bool = False,
        **options: Unpack[_RQSplineMaskedOptions],
    ) -> None:
        transform, rest = take_options(RQSpline, options, _MASKED_CONDITIONER)
        super().__init__(
            features, context_features, transform, conditioner, reverse=reverse, **rest
        )
