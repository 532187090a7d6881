"""The published couplings: one order of steps around one elementwise transform."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow._call_state import is_plain_eager
from robustflow._checks import fits
from robustflow.compat.srflow._conditioner import Conditioner
from robustflow.compat.srflow._options import FLOW, option
from robustflow.nn.elementwise import (
    Affine,
    CubicBSpline,
    ElementwiseTransform,
    ModifiedRQSpline,
)

_STD_CHANNELS = (1, 3)  # of the noise maps in use; the last is the default
_Step = Callable[[Tensor], tuple[Tensor, Tensor]]
_log = logging.getLogger(__name__)


class SeparatedAndCond(nn.Module, ABC):
    """Injector, std-conditional and self-conditional transform; subclasses say which transform.

    Attributes:
        transform: the elementwise transform of all three.
        std_channels: channels of the noise map that the std-conditional net reads; 0 without it.
        std_mode: whether that net is used, where there is one.
    """

    need_features: ClassVar[bool] = True
    fFeatures: Conditioner
    _net_name: ClassVar[str]  # of the self-conditional net, in the state_dict

    def __init__(
        self,
        in_channels: int,
        opt: Mapping[str, Any] | None = None,
        std_mode: bool | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if in_channels < 2:
            raise ValueError(f"in_channels must be at least 2, to be split, got {in_channels}.")
        if not bias:
            raise ValueError(f"{name} has no form without bias (the published code has none).")
        self.in_channels = in_channels
        self.kept_channels = in_channels // 2
        self.transform = self._make_transform(opt)
        self.feature_channels = option(opt, *FLOW, "conditionInFeaDim", default=320)
        self.hidden_channels = self._option(opt, "hidden_channels", 64)
        self.std_mode = std_mode is not False
        self.std_channels = 0

        per_element = self.transform.num_params
        changed = (in_channels - self.kept_channels) * per_element
        both = (self.kept_channels, self.feature_channels, changed, self.hidden_channels)
        self.add_module(self._net_name, Conditioner(*both))
        self.fFeatures = Conditioner(
            0, self.feature_channels, in_channels * per_element, self.hidden_channels
        )
        default = _STD_CHANNELS[-1] if std_mode else 0
        std_channels = option(opt, *FLOW, "std_channels", default=default)
        if std_channels not in (0, *_STD_CHANNELS):
            raise ValueError(
                f"network_G.flow.std_channels must be 1 or 3 in opt, got {std_channels!r}."
            )
        if std_channels:
            self._add_std_net(std_channels)

    @abstractmethod
    def _make_transform(self, opt: Mapping[str, Any] | None) -> ElementwiseTransform: ...

    @classmethod
    def _option(cls, opt: Mapping[str, Any] | None, key: str, default: Any) -> Any:
        """``network_G.flow.<section>.<key>``: the class's own section, else the affine's."""
        sections = [kind.__name__ for kind in cls.__mro__] + ["CondAffineSeparatedAndCond"]
        values = (option(opt, *FLOW, section, key) for section in sections)
        return next((value for value in values if value is not None), default)

    @property
    def uses_std(self) -> bool:
        """Whether the std-conditional step is taken where a noise map is given."""
        return self.std_mode and self.std_channels > 0

    def _add_std_net(self, std_channels: int) -> None:
        changed = (self.in_channels - self.kept_channels) * self.transform.num_params
        net = Conditioner(self.kept_channels, std_channels, changed, self.hidden_channels)
        like = next(self.fFeatures.parameters())
        self.add_module(f"{self._net_name}_std", net.to(device=like.device, dtype=like.dtype))
        self.std_channels = std_channels

    def forward(
        self,
        input: Tensor,
        logdet: Tensor | float | None = None,
        reverse: bool = False,
        ft: Tensor | None = None,
        std: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """z -> (z, logdet), or back with ``reverse``.

        Args:
            input: z, (B, in_channels, H, W).
            logdet: (B,), or a number, to which this layer's is added; None counts as 0.
            reverse: the inverse, with the steps in the opposite order.
            ft: features, (B or 1, feature_channels, H, W); one condition serves a whole batch.
            std: the noise map, (B, 3, any, any), resized bicubically; or (B, 1, 1, 1) or
                (B, 1, H, W), expanded. None, ``std_mode=False``, or a layer without the net: no
                such step.

        Returns:
            z of the dtype of ``input``, and the log-determinant, in float32 or wider.

        Raises:
            ValueError: no features, or shapes that do not fit.
        """
        features = self._checked_features(ft, input)

        def inject(z: Tensor) -> tuple[Tensor, Tensor]:
            transform = self._transform_of("fFeatures")
            return transform(z, self.fFeatures.of_context(features), inverse=reverse)

        def couple(net: str, params_of: Callable[[Tensor], Tensor]) -> _Step:
            return lambda z: self._couple(z, net, params_of, reverse, own=z is not input)

        steps: list[_Step] = [inject]
        if std is not None and self.uses_std:
            noise = self._noise_map(std, input)
            steps.append(
                couple(
                    f"{self._net_name}_std",
                    lambda z1: self._net("_std")(torch.cat([z1, noise], dim=1)),
                )
            )
        steps.append(couple(self._net_name, lambda z1: self._net().of_both(z1, features)))
        z = input
        for step in reversed(steps) if reverse else steps:
            z, change = step(z)
            logdet = change if logdet is None else logdet + change
        assert isinstance(logdet, Tensor)
        return z, logdet

    def _transform_of(self, net: str) -> ElementwiseTransform:
        """The transform that a net's parameters are for; a converted layer has one for each."""
        return self.transform

    def _couple(
        self,
        z: Tensor,
        net: str,
        params_of: Callable[[Tensor], Tensor],
        reverse: bool,
        *,
        own: bool,
    ) -> tuple[Tensor, Tensor]:
        """Transform the second half of z given the first, into z itself where it is ours."""
        z1, z2 = z.split((self.kept_channels, self.in_channels - self.kept_channels), dim=1)
        y2, change = self._transform_of(net)(z2, params_of(z1), inverse=reverse)
        if own and not torch.is_grad_enabled() and is_plain_eager():
            z2.copy_(y2)
            return z, change
        return torch.cat([z1, y2], dim=1), change

    def _net(self, kind: str = "") -> Conditioner:
        return getattr(self, self._net_name + kind)

    def _checked_features(self, ft: Tensor | None, z: Tensor) -> Tensor:
        channels = self.feature_channels
        if ft is None:
            raise ValueError(f"{type(self).__name__} needs the features: pass ft=.")
        if z.dim() != 4 or z.shape[1] != self.in_channels:
            raise ValueError(
                f"input must have shape (B, {self.in_channels}, H, W), got {tuple(z.shape)}."
            )
        batch, _, *size = z.shape
        if ft.dim() != 4 or not fits(ft.shape[0], batch) or ft.shape[1:] != (channels, *size):
            raise ValueError(
                f"ft must have shape {(batch, channels, *size)} for an input of shape "
                f"{tuple(z.shape)} (or a batch size of 1), got {tuple(ft.shape)}."
            )
        return ft

    def _noise_map(self, std: Tensor, z: Tensor) -> Tensor:
        """std as (B, std_channels, H, W), in z's dtype."""
        batch, _, height, width = z.shape
        usable = std.dim() == 4 and fits(std.shape[0], batch)
        if usable and tuple(std.shape[1:]) in ((1, 1, 1), (1, height, width)):
            noise = std
        elif usable and std.shape[1] == self.std_channels:
            noise = functional.interpolate(std, size=(height, width), mode="bicubic")
        else:
            raise ValueError(
                f"std must have shape ({batch}, {self.std_channels}, any, any), or "
                f"({batch}, 1, 1, 1) or {(batch, 1, height, width)}, for an input of shape "
                f"{tuple(z.shape)}, got {tuple(std.shape)}."
            )
        return noise.to(z.dtype).expand(batch, self.std_channels, height, width)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *rest: Any
    ) -> None:
        """Take the std-conditional net as the checkpoint has it, or go without one.

        robustNF's have it in every coupling, used or not, SRFlow's and LLFlow's in none.
        """
        name = f"{self._net_name}_std"
        weight = state_dict.get(f"{prefix}{name}.0.weight")
        if weight is not None:
            channels = weight.shape[1] - self.kept_channels if weight.dim() == 4 else 0
            if channels in _STD_CHANNELS and channels != self.std_channels:
                self._add_std_net(channels)
        elif strict and self.std_channels and prefix + "fFeatures.0.weight" in state_dict:
            delattr(self, name)
            self.std_channels = 0
            _log.info("The checkpoint has no %s%s: the step is left out.", prefix, name)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *rest)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, features={self.feature_channels}, transform={self.transform}"


class CondAffineSeparatedAndCond(SeparatedAndCond):
    """SRFlow's and LLFlow's coupling: ``z = (z + shift) * s``, ``s = sigmoid(a + 2) + eps``.

    Its inverse divides by s, which falls to 1e-4: this is the coupling whose inverse explodes.

    Args:
        in_channels: channels of z; the first half is kept by the self-conditional step.
        opt: nested options. Read are ``network_G.flow.conditionInFeaDim`` (channels of the
            features, 320), ``network_G.flow.std_channels`` (those of the noise map, 1 or 3) and
            ``network_G.flow.CondAffineSeparatedAndCond.hidden_channels`` (64) and ``.eps`` (1e-4).
            None, or anything missing, is the default.
        std_mode: whether the std-conditional step is taken; False keeps its net, unused, where
            the options have ``std_channels``, as the published network has it in its first level.
            Without ``std_channels`` there is no net (SRFlow, LLFlow), unless this is True: then
            one for 3 channels. A checkpoint decides anew: loading adds the net, or removes it.
        bias: True; there is no other form.

    Raises:
        ValueError: ``bias=False``, or ``le_curve`` or other ``std_channels`` in the options.

    State_dict: ``fAffine``, ``fFeatures`` and, where there is one, ``fAffine_std``, each with
    ``{0,2}.weight``, ``{0,2}.actnorm.{bias,logs}`` and ``4.{weight,bias,logs}``.

    Source: Lugmayr et al., SRFlow, 2020 (arXiv:2006.14200).

    Example:
        >>> layer = CondAffineSeparatedAndCond(12, None)
        >>> z, ft = torch.randn(2, 12, 8, 8), torch.randn(2, 320, 8, 8)
        >>> y, logdet = layer(input=z, logdet=torch.zeros(2), ft=ft)
        >>> back, logdet = layer(input=y, logdet=logdet, reverse=True, ft=ft)
        >>> bool((back - z).abs().max() < 1e-5), bool(logdet.abs().max() < 1e-3)
        (True, True)
    """

    _net_name = "fAffine"
    _reciprocal: ClassVar[bool] = False

    def _make_transform(self, opt: Mapping[str, Any] | None) -> ElementwiseTransform:
        if option(opt, "le_curve"):
            raise ValueError(
                "The option le_curve (LLFlow's fCurve, which no published configuration turns on) "
                "is not supported: turn it off, or keep the original layer."
            )
        return Affine(eps=float(self._option(opt, "eps", 1e-4)), reciprocal=self._reciprocal)


class CondAffineReparamSeparatedAndCond(CondAffineSeparatedAndCond):
    """The reparametrised affine coupling: ``s = 1 / (sigmoid(a + 2) + eps)``.

    Its inverse multiplies by at most 1 + eps; all else is as in
    :class:`CondAffineSeparatedAndCond`, state_dict included.
    """

    _reciprocal = True


class CondRQsplineSeparatedAndCond(SeparatedAndCond):
    """The modified rational-quadratic spline in SRFlow's place: its inverse cannot explode.

    Args:
        in_channels, std_mode, bias: as for :class:`CondAffineSeparatedAndCond`.
        opt: nested options: ``conditionInFeaDim`` and ``std_channels`` as there, and
            ``network_G.flow.CondRQsplineSeparatedAndCond.hidden_channels``, ``.left``, ``.righ``
            (so spelt by the published code), ``.bottom`` and ``.top``, the box, +-0.5.

    Raises:
        ValueError: ``bias=False``, or a box that is not the same on both axes: the identity
            outside would not continue the spline.

    State_dict: as there, with ``fRQspline`` and ``fRQspline_std`` for ``fAffine``.

    Source: Hong, Park, Chun, ICCV 2023 (arXiv:2212.04319).

    Example:
        >>> layer = CondRQsplineSeparatedAndCond(12, None)
        >>> z, ft = torch.randn(2, 12, 8, 8), torch.randn(2, 320, 8, 8)
        >>> bool((layer(input=z, ft=ft)[0] - z).abs().max() < 1e-6)
        True
    """

    _net_name = "fRQspline"

    def _make_transform(self, opt: Mapping[str, Any] | None) -> ElementwiseTransform:
        left, right, bottom, top = (
            float(self._option(opt, edge, default))
            for edge, default in (("left", -0.5), ("righ", 0.5), ("bottom", -0.5), ("top", 0.5))
        )
        if (left, right) != (bottom, top):
            raise ValueError(
                f"The box must be the same on both axes, got [{left}, {right}] and [{bottom}, "
                f"{top}] from left, righ, bottom and top. The published code spells the option "
                "'righ', so a configuration's 'right' has no effect."
            )
        return ModifiedRQSpline(interval=(left, right), derivative="exp")


class CondBsplineSeparatedAndCond(SeparatedAndCond):
    """The monotone cubic B-spline in SRFlow's place, on a box of +-0.5.

    Args:
        in_channels, opt, std_mode, bias: as for :class:`CondAffineSeparatedAndCond`, whose options
            it reads, but ``eps``.

    Raises:
        ValueError: ``bias=False``.

    State_dict: as there, with ``fBspline`` and ``fBspline_std`` for ``fAffine``.

    Source: Hong, Park, Chun, ICCV 2023 (arXiv:2212.04319).

    Example:
        >>> layer = CondBsplineSeparatedAndCond(12, None)
        >>> z, ft = torch.randn(2, 12, 8, 8), torch.randn(2, 320, 8, 8)
        >>> y, logdet = layer(input=z, ft=ft)
        >>> bool((layer(input=y, ft=ft, reverse=True)[0] - z).abs().max() < 1e-5)
        True
    """

    _net_name = "fBspline"

    def _make_transform(self, opt: Mapping[str, Any] | None) -> ElementwiseTransform:
        return CubicBSpline.published()
