"""A flow's layers as the tools of this package see them: found in a model, and watched.

One module a library, in :mod:`robustflow.diagnostics._libraries`, knows the classes of its layers,
how they are called, and which of their directions is sampling. A layer stands around those calls,
without a trace in the model, and hands each to a :class:`Watcher`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from robustflow._call_state import is_plain_eager
from robustflow._intercept import Around, Interception, intercept
from robustflow.diagnostics.kinds import Kind

Run = Callable[[], Any]
Probe = Callable[[Tensor], Tensor]
Replay = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Channels = slice | Tensor
# Where a change of an input element shows in the output:
#   "elementwise"  in the same element
#   "coupling"     if it is of a kept channel, in the changed ones too, as far as the conditioner
#                  reaches
#   "channels"     in every channel of its position
#   "replay"       where the layer itself puts NaN: permutations, reshapes, linear maps
#   "sample"       in all of its sample
Spread = Literal["elementwise", "coupling", "channels", "replay", "sample"]


@dataclass(frozen=True)
class AffineParams:
    """Where an affine layer's scales are.

    Attributes:
        logits: from the tensor of parameters to the raw scales in it, a view.
        log_gain: from raw scales (k,) to log |dx/dz| of sampling, (k,): monotone.
        counted: which of the second dimension's count, for a network that makes more.
    """

    logits: Callable[[Tensor], Tensor]
    log_gain: Callable[[Tensor], Tensor]
    counted: Tensor | None = None


class Watched(ABC):
    """A module, or a part of one, whose calls can be watched.

    Attributes:
        module: the module.
        name: as in ``model.named_modules()``.
        flipped: it runs against the direction of the flow around it.
        channels_last: z is (\\*, C), not (N, C, \\*S).
    """

    library: str = ""
    channels_last: bool = False

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        self.name = ""
        self.flipped = False

    @abstractmethod
    def watch(self, watcher: Watcher) -> None:
        """Hand the module's calls to the watcher, by :meth:`Watcher.intercept`."""

    def outputs(self, result: Any) -> Sequence[Tensor]:
        """The values in what a call returns."""
        return (result[0],)

    def with_outputs(self, result: Any, outputs: Sequence[Tensor]) -> Any:
        """What a call returned, with other values."""
        return (outputs[0], *result[1:])


class Layer(Watched):
    """One transform of a flow.

    Attributes:
        kind: see :mod:`robustflow.diagnostics.kinds`.
        conditional: what it does depends on z or on the context. Otherwise (an actnorm, a 1x1
            convolution) it is the same for every input.
        spread: see :data:`Spread`.
        kept, changed: of a coupling, channels of z.
        affine: where its scales are; None where it has none, or they are not known.
        conditioner: of a coupling, the module that reads the kept channels.
        reach: how many positions it lets a value travel, as far as that was asked for; None:
            everywhere.
        part: what its name has beyond the module's: of a part of a block, its submodule or
            method.
    """

    kind: Kind = "other"
    conditional: bool = True
    spread: Spread = "sample"
    kept: Channels = slice(0, 0)
    changed: Channels = slice(None)
    affine: AffineParams | None = None
    conditioner: nn.Module | None = None
    reach: int | None = 0
    part: str = ""

    @property
    def elementwise(self) -> bool:
        """Whether each output element is a transform of one input element, the same one."""
        return self.spread in ("elementwise", "coupling") or (
            self.conditional and self.spread == "channels"
        )


class Block(Watched):
    """A module with several transforms in it, which are layers of their own, its parts.

    Attributes:
        parts: in any order.
    """

    parts: list[Layer]


class Call:
    """A layer's call under way, and the extremes of what was noted in it."""

    __slots__ = ("layer", "log", "raw")

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.raw: tuple[float, float] | None = None  # of an affine layer's raw scales
        self.log: tuple[float, float] | None = None  # of log-derivatives


class State(threading.local):
    """Of a watcher, in one thread."""

    def __init__(self) -> None:
        self.calls: list[Call] = []


class Watcher(ABC):
    """Who looks at the calls of layers, or changes what they return.

    Threads are apart: each has its own call under way.

    Attributes:
        derivatives: whether :meth:`note` is to be called for splines.
        gradients: whether what it is told is to have its gradients, where they are on.
        changes: it changes parameters, and watchers that do not see them changed.
    """

    derivatives: ClassVar[bool] = False
    gradients: ClassVar[bool] = False
    changes: ClassVar[bool] = False

    def __init__(self) -> None:
        self._state: Any = State()
        self._watching = False
        self._interceptions: list[Interception] = []
        self._once: set[tuple[int, str]] = set()
        self._lock = threading.RLock()

    def start(self, found: Iterable[Watched]) -> None:
        """See all calls of these from now on; after an error, of none."""
        with self._lock:
            self._watching = True
        try:
            for each in found:
                each.watch(self)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """See no more calls."""
        with self._lock:
            for each in self._interceptions:
                each.remove()
            self._interceptions.clear()
            self._once.clear()
            self._watching = False

    def intercept(
        self,
        target: object,
        name: str,
        around: Around,
        *,
        makes_params: bool = False,
        once: bool = False,
        weak: bool = False,
    ) -> None:
        """:func:`robustflow._intercept.intercept`, until :meth:`stop`.

        Args:
            target, name, around, weak: as there.
            makes_params: the method returns parameters; otherwise it may take them.
            once: several layers share the target: what comes after the first call is dropped.
        """
        with self._lock:
            if not self._watching or (once and (id(target), name) in self._once):
                return
            if once:
                self._once.add((id(target), name))
            if weak:
                self._interceptions = [each for each in self._interceptions if each.active]
            inner, outer = self.changes and makes_params, self.changes and not makes_params
            interception = intercept(target, name, around, inner=inner, outer=outer, weak=weak)
            self._interceptions.append(interception)

    @abstractmethod
    def call(
        self,
        layer: Layer,
        density: bool,
        inputs: Sequence[Tensor],
        run: Run,
        *,
        probe: Probe | None = None,
        replay: Replay | None = None,
    ) -> Any:
        """Stand for ``run()``, one call of a layer.

        Args:
            layer: which.
            density: the call goes from data to latents.
            inputs: the values that go in.
            run: the call; the watcher returns what it returns, or the same with other values.
            probe: for a coupling: its conditioner, from the kept channels to the parameters.
            replay: for ``spread="replay"``: the call, from inputs to outputs.
        """

    def inside(self, block: Block, density: bool, inputs: Sequence[Tensor], run: Run) -> Any:
        """Stand for ``run()``, one call of a block."""
        return run()

    def params(self, layer: Layer, params: Tensor) -> Tensor:
        """The parameters of an affine layer pass by, in a call of it; these or others go on."""
        return params

    def transformed(  # noqa: B027
        self, layer: Layer, transform: object, x: Tensor, params: Tensor
    ) -> None:
        """A transform of robustflow's is called, in a call of this layer, with raw parameters."""

    def note(self, log_derivatives: Tensor, *, last: bool = False) -> None:  # noqa: B027
        """Take note of elementwise log-derivatives in the call that is under way.

        Args:
            log_derivatives: any shape.
            last: they replace those that this call noted before.
        """

    def current(self) -> Layer | None:
        """The layer whose call is under way in this thread, for this watcher."""
        calls = self._state.calls
        return calls[-1].layer if calls else None

    @contextmanager
    def calling(self, layer: Layer) -> Iterator[Call]:
        """Within it, the layer is the current one."""
        call = Call(layer)
        self._state.calls.append(call)
        try:
            yield call
        finally:
            self._state.calls.pop()


def set_name(watched: Watched, name: str) -> None:
    for each in [watched, *(watched.parts if isinstance(watched, Block) else ())]:
        part = each.part if isinstance(each, Layer) else ""
        each.name = ".".join(filter(None, (name, part)))


def layers_of(found: Iterable[Watched]) -> list[Layer]:
    """The layers, and in the place of each block its parts."""
    layers: list[Layer] = []
    for each in found:
        if isinstance(each, Block):
            layers += each.parts
        elif isinstance(each, Layer):
            layers.append(each)
    return layers


class _Asking(threading.local):
    depth = 0


_ASKING = _Asking()


@contextmanager
def asking() -> Iterator[None]:
    """A tool calls the model for itself: no other one records that."""
    _ASKING.depth += 1
    try:
        yield
    finally:
        _ASKING.depth -= 1


def is_watchable() -> bool:
    """Whether a call is the user's, and its tensors have values to look at.

    Not calls that a tool makes to learn about a layer (:func:`asking`), nor tensors that are
    traced, batched, fake, or dual numbers.
    """
    return not _ASKING.depth and is_plain_eager()
