"""Layers named for their transform, whose options they take beside those of the conditioner.

A named layer is a declaration: its base says where the parameters come from, and
``default_transform`` is what it applies. An option replaces the field of that name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, TypeVar

from torch import nn

from robustflow.nn.autoregressive import Autoregressive
from robustflow.nn.conditioner import ConditionerOptions
from robustflow.nn.coupling import Coupling
from robustflow.nn.elementwise import (
    Affine,
    CubicBSpline,
    Derivative,
    ElementwiseTransform,
    ModifiedRQSpline,
    Parametrization,
    RQSpline,
    Scale,
    Tails,
)
from robustflow.nn.injector import Injector
from robustflow.nn.masked import MaskedConditionerOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

TransformT = TypeVar("TransformT", bound=ElementwiseTransform)

# What the default conditioners take of a layer's options.
_CONDITIONER = tuple(ConditionerOptions.__annotations__)
_MASKED_CONDITIONER = tuple(MaskedConditionerOptions.__annotations__)


class TransformOptions(TypedDict, total=False):
    """Types of the fields of all transforms. A layer takes those that its own transform has."""

    # Affine
    scale: Scale
    eps: float
    clamp: float | None
    shift_first: bool
    reciprocal: bool
    # ModifiedRQSpline; CubicBSpline has the first two
    interval: tuple[float, float]
    min_bin: float
    min_derivative: float
    derivative: Derivative
    # RQSpline, which has min_derivative, too
    num_bins: int
    tails: Tails | Sequence[Tails]
    tail_bound: float | Sequence[float]
    min_bin_width: float
    min_bin_height: float
    parametrization: Parametrization


class LayerOptions(TransformOptions, ConditionerOptions, total=False):
    """Options of a transform and of the default :class:`Conditioner`."""


class MaskedLayerOptions(TransformOptions, MaskedConditionerOptions, total=False):
    """Options of a transform and of the default :class:`MaskedConditioner`."""


def split_options(
    transform: TransformT, options: Mapping[str, Any], others: Iterable[str]
) -> tuple[TransformT, dict[str, Any]]:
    """The transform with those options that are its fields, and those that are in ``others``.

    Raises:
        TypeError: an option is neither.
    """
    names = [field.name for field in fields(transform)]  # type: ignore[arg-type]
    others = list(others)
    if unknown := [name for name in options if name not in (*names, *others)]:
        raise TypeError(
            f"{', '.join(unknown)}: no such option. There are {', '.join(names)} of the transform "
            f"and {', '.join(others)} of the default conditioner."
        )
    changes = {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name in others}
    return replace(transform, **changes), rest  # type: ignore[type-var]


class NamedCoupling(Coupling):
    """Base of the named couplings: a subclass declares ``default_transform``."""

    default_transform: ClassVar[ElementwiseTransform]

    def __init__(
        self,
        channels: int,
        context_channels: int = 0,
        conditioner: nn.Module | None = None,
        *,
        reverse: bool = False,
        **options: Unpack[LayerOptions],
    ) -> None:
        transform, rest = split_options(self.default_transform, options, _CONDITIONER)
        super().__init__(
            channels, context_channels, transform, conditioner, reverse=reverse, **rest
        )


class NamedInjector(Injector):
    """Base of the named injectors."""

    default_transform: ClassVar[ElementwiseTransform]

    def __init__(
        self,
        channels: int,
        context_channels: int,
        conditioner: nn.Module | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        transform, rest = split_options(self.default_transform, options, _CONDITIONER)
        super().__init__(channels, context_channels, transform, conditioner, **rest)


class NamedAutoregressive(Autoregressive):
    """Base of the named autoregressive layers."""

    default_transform: ClassVar[ElementwiseTransform]

    def __init__(
        self,
        features: int,
        context_features: int = 0,
        conditioner: nn.Module | None = None,
        *,
        reverse: bool = False,
        **options: Unpack[MaskedLayerOptions],
    ) -> None:
        transform, rest = split_options(self.default_transform, options, _MASKED_CONDITIONER)
        super().__init__(
            features, context_features, transform, conditioner, reverse=reverse, **rest
        )


class ConditionalAffineCoupling(NamedCoupling):
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

    default_transform = Affine(scale="softclip_exp")


class ConditionalAffineInjector(NamedInjector):
    """:class:`Injector` by an :class:`Affine` transform, with a bounded scale.

    Args:
        channels, context_channels, conditioner: as for :class:`Injector`.
        options: as for :class:`ConditionalAffineCoupling`.

    Example:
        >>> ConditionalAffineInjector(6, 3, scale="sigmoid").transform.eps
        0.0001
    """

    default_transform = Affine(scale="softclip_exp")


class ModifiedRQSplineCoupling(NamedCoupling):
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

    default_transform = ModifiedRQSpline()


class ModifiedRQSplineInjector(NamedInjector):
    """:class:`Injector` by a :class:`ModifiedRQSpline`.

    Args:
        channels, context_channels, conditioner: as for :class:`Injector`.
        options: as for :class:`ModifiedRQSplineCoupling`.

    Example:
        >>> ModifiedRQSplineInjector(12, 16, hidden_channels=32).transform.num_params
        4
    """

    default_transform = ModifiedRQSpline()


class CubicBSplineCoupling(NamedCoupling):
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

    default_transform = CubicBSpline()


class CubicBSplineInjector(NamedInjector):
    """:class:`Injector` by a :class:`CubicBSpline`.

    Args:
        channels, context_channels, conditioner: as for :class:`Injector`.
        options: as for :class:`CubicBSplineCoupling`.

    Example:
        >>> CubicBSplineInjector(12, 16, hidden_channels=32).transform.num_params
        11
    """

    default_transform = CubicBSpline()


class RQSplineCoupling(NamedCoupling):
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

    default_transform = RQSpline()


class RQSplineInjector(NamedInjector):
    """:class:`Injector` by an :class:`RQSpline` of K bins.

    Args:
        channels, context_channels, conditioner: as for :class:`Injector`.
        options: as for :class:`RQSplineCoupling`.

    Example:
        >>> RQSplineInjector(12, 16, num_bins=4).transform.num_params
        11
    """

    default_transform = RQSpline()


class RQSplineAutoregressive(NamedAutoregressive):
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

    default_transform = RQSpline()
