"""An affine layer of a model: observed while the model runs, then converted."""

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
# derivative and shift from one; or the shift from a network of its own, if the affine's was.
TOGETHER = (RescaledModifiedRQSpline.num_params,)
APART = (RescaledModifiedRQSpline.num_params - 1, 1)


class AffineLayer(ABC):
    """One layer with one or more elementwise affine transforms, its *parts*.

    There is a subclass for each library's layers. Its :meth:`watch` intercepts the calls and passes
    each to :meth:`observe`. Its :meth:`convert` changes the layer's class in place, so that every
    reference to it sees the change; it must not fail, so everything is checked before.

    Args:
        module: the layer.
        target: the class that it becomes; None if it keeps its class.
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
        """What the layer was, and what it becomes, for the report."""
        return self.kind, self.kind if self.target is None else self.target.__name__

    @abstractmethod
    def watch(self) -> None:
        """Intercept each call of a part by :meth:`shadow`, and pass it to :meth:`observe`."""

    @abstractmethod
    def convert(self, splines: Splines) -> None:
        """Turn the layer into one of splines, one for each part; heads are replaced elsewhere."""

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
        """Replace an attribute of this one object by a function, until :meth:`end`."""
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
        spline_params: tuple[int, ...] = TOGETHER,
        counted: Tensor | None = None,
    ) -> None:
        """Record a call of a part: its statistics, and the layers whose outputs are its parameters.

        Args:
            part: its name; "" for the only one.
            x, params, inverse, elementwise, counted: as for :meth:`Statistics.add`.
            spline_params: for each of ``params``, how many of a channel's spline parameters it
                will hold.
        """
        statistics = self.statistics.setdefault(part, Statistics(self.channel_dim))
        # Before the transform runs, because it may write to its parameters.
        makers = [self._watch.maker(param) if self._watch else None for param in params]
        statistics.add(x, params, inverse, elementwise, counted)
        for maker, number in zip(makers, spline_params, strict=True):
            if maker is None:
                self._obstacle = (
                    "its conditioner does not end in a layer of a known kind (linear or "
                    "convolution) whose output goes straight to the transform"
                )
            else:
                self.plan_head(maker, statistics.channels, number)

    def plan_head(self, layer: nn.Module, channels: int, number: int) -> None:
        """Record that a layer is to output ``number`` parameters for each of ``channels``."""
        head = Head(layer, channels, number)
        if self.heads.setdefault(layer, head) != head:
            self._obstacle = "one last layer serves transforms of different sizes"

    def complete(self) -> None:  # noqa: B027
        """After the calibration: add parts that it did not reach, if possible."""

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
        """A weight of a last layer. Under autocast its outputs have another dtype."""
        return next(iter(self.heads)).get_parameter("weight").detach()


Found = AffineLayer | str | None  # a layer, or why it stays, or None if it is not affine
