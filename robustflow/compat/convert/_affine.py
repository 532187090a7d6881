"""An affine layer that was found in a model: watched while the model runs, then converted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from robustflow.compat.convert._head import Head, HeadWatch
from robustflow.compat.convert._spline import RescaledModifiedRQSpline
from robustflow.compat.convert._statistics import Elementwise, Statistics

Splines = Mapping[str, RescaledModifiedRQSpline]

ADDITIVE = "it is additive: it has no scale that could collapse"

_ABSENT = object()
# How the four parameters of an element are shared among a layer's networks: width, height,
# derivative and shift from one; or the shift from a network of its own, as the affine's was.
TOGETHER = (RescaledModifiedRQSpline.num_params,)
APART = (RescaledModifiedRQSpline.num_params - 1, 1)


class AffineLayer(ABC):
    """One layer with one or more elementwise affine transforms, its *parts*.

    A subclass knows a library's layer: :meth:`watch` puts itself in the way of the calls and
    hands each to :meth:`observe`; :meth:`convert` makes the layer another one, in place, so that
    everything that refers to it sees the change. It must not fail: all is checked before.

    Args:
        module: the layer.
        target: the class that it becomes; None where it stays one of its class.
    """

    channel_dim: ClassVar[int] = 1

    def __init__(self, module: nn.Module, target: type[nn.Module] | None = None) -> None:
        self.module: Any = module
        self.target = target
        self.kind = type(module).__name__
        self.statistics: dict[str, Statistics] = {}
        self.heads: dict[nn.Module, Head] = {}
        self._obstacle: str | None = None
        self._watch: HeadWatch | None = None
        self._shadowed: dict[str, Any] = {}

    @property
    def names(self) -> tuple[str, str]:
        """What the layer was and what it is then, for the report."""
        return self.kind, self.kind if self.target is None else self.target.__name__

    @abstractmethod
    def watch(self) -> None:
        """See to it that each call of a part comes to :meth:`observe`, by :meth:`shadow`."""

    @abstractmethod
    def convert(self, splines: Splines) -> None:
        """Make the layer one of splines, by part; the heads are made anew elsewhere."""

    def begin(self, watch: HeadWatch) -> None:
        self._watch = watch
        self.watch()

    def end(self) -> None:
        """Leave the layer as it was before :meth:`begin`."""
        for name, value in self._shadowed.items():
            if value is _ABSENT:
                self.module.__dict__.pop(name, None)
            else:
                self.module.__dict__[name] = value
        self._shadowed.clear()

    def shadow(self, name: str, replacement: Callable[..., Any]) -> None:
        """Put a function in the place of an attribute of this one object, until :meth:`end`."""
        self._shadowed[name] = self.module.__dict__.get(name, _ABSENT)
        self.module.__dict__[name] = replacement

    def observe(
        self,
        part: str,
        x: Tensor,
        params: tuple[Tensor, ...],
        inverse: bool,
        elementwise: Elementwise,
        *,
        wanted: tuple[int, ...] = TOGETHER,
        counted: Tensor | None = None,
    ) -> None:
        """Note a call of a part: its numbers, and which layers made its parameters.

        Args:
            part: its name; "" for the only one.
            x, params, inverse, elementwise, counted: as for :meth:`Statistics.add`.
            wanted: for each of ``params``, how many of the spline's it is to hold a channel.
        """
        statistics = self.statistics.setdefault(part, Statistics(self.channel_dim))
        # Asked before the transform runs, which may write to its parameters.
        makers = [self._watch.maker(param) if self._watch else None for param in params]
        statistics.add(x, params, inverse, elementwise, counted)
        for maker, number in zip(makers, wanted, strict=True):
            if maker is None:
                self._obstacle = (
                    "its conditioner does not end in a layer of a known kind (linear or "
                    "convolution) whose output goes straight to the transform"
                )
            else:
                self.want(maker, statistics.channels, number)

    def want(self, layer: nn.Module, channels: int, number: int) -> None:
        """Note that a layer is to make ``number`` parameters for each of ``channels``."""
        head = Head(layer, channels, number)
        if self.heads.setdefault(layer, head) != head:
            self._obstacle = "one last layer serves transforms of different sizes"

    def complete(self) -> None:  # noqa: B027
        """After the calibration: add parts that it did not reach, where that can be done."""

    @property
    def obstacle(self) -> str | None:
        """Why the layer cannot be converted; to be asked after the calibration."""
        if not self.statistics:
            return "the calibration batch did not pass through it"
        for statistics in self.statistics.values():
            if statistics.obstacle is not None:
                return statistics.obstacle
        if self._obstacle is not None:
            return self._obstacle
        obstacles = (head.obstacle for head in self.heads.values())
        return next((each for each in obstacles if each is not None), None)

    def splines(self) -> Splines:
        return {part: each.spline(self.weight) for part, each in self.statistics.items()}

    @property
    def weight(self) -> Tensor:
        """One of a last layer; under autocast, the parameters that it makes have another dtype."""
        return next(iter(self.heads)).get_parameter("weight").detach()


Found = AffineLayer | str | None  # a layer, or why it stays, or None where it is not affine
