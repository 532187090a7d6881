"""The common interface to a flow's layers: how they are found in a model and watched.

Each library has a module in :mod:`robustflow.diagnostics._libraries` that knows the classes of its
layers, how they are called, and which direction is sampling. A :class:`Layer` wraps those calls,
without changing the model, and passes each to a :class:`Watcher`.
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
from robustflow._intercept import Interception, Wrapper, intercept
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
        counted: which channels of the second dimension count, if the network outputs more.
    """

    logits: Callable[[Tensor], Tensor]
    log_gain: Callable[[Tensor], Tensor]
    counted: Tensor | None = None


class Watched(ABC):
    """A module, or a part of one, whose calls can be watched.

    Attributes:
        module: the module.
        name: as in ``model.named_modules()``.
        flipped: it runs in the direction opposite to that of the flow around it.
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
        """Pass the module's calls to the watcher, by :meth:`Watcher.intercept`."""

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
        affine: where its scales are; None if it has none or they are not known.
        conditioner: of a coupling, the module that reads the kept channels.
        reach: how many positions a value can travel in it, as far as that was asked for; None:
            everywhere.
        part: for a part of a block, what its name adds to the module's: a submodule or method.
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
        """Whether each output element depends on the same input element alone."""
        return self.spread in ("elementwise", "coupling") or (
            self.conditional and self.spread == "channels"
        )


class Block(Watched):
    """A module that contains several transforms; its parts are layers of their own.

    Attributes:
        parts: in any order.
    """

    parts: list[Layer]


class Call:
    """A running call of a layer, and the extremes that were recorded in it."""

    __slots__ = ("layer", "log", "raw")

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.raw: tuple[float, float] | None = None  # of an affine layer's raw scales
        self.log: tuple[float, float] | None = None  # of log-derivatives


class State(threading.local):
    """A watcher's state in one thread."""

    def __init__(self) -> None:
        self.calls: list[Call] = []


class Watcher(ABC):
    """Base class of what observes the calls of layers, or changes what they return.

    Each thread has its own running call.

    Attributes:
        derivatives: whether :meth:`record_derivatives` is to be called for splines.
        gradients: whether recorded tensors keep their autograd graph, if gradients are on.
        changes: it changes parameters; watchers that do not change any see the changed ones.
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

    def start(self, layers: Iterable[Watched]) -> None:
        """Watch all calls of these layers from now on; after an error, none."""
        with self._lock:
            self._watching = True
        try:
            for each in layers:
                each.watch(self)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop watching."""
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
        wrapper: Wrapper,
        *,
        makes_params: bool = False,
        once: bool = False,
        weak: bool = False,
    ) -> None:
        """:func:`robustflow._intercept.intercept`, until :meth:`stop`.

        Args:
            target, name, wrapper, weak: as there.
            makes_params: the method returns parameters; otherwise parameters may be its arguments.
            once: several layers share the target: calls after the first are not counted.
        """
        with self._lock:
            if not self._watching or (once and (id(target), name) in self._once):
                return
            if once:
                self._once.add((id(target), name))
            if weak:
                self._interceptions = [each for each in self._interceptions if each.active]
            inner, outer = self.changes and makes_params, self.changes and not makes_params
            interception = intercept(target, name, wrapper, inner=inner, outer=outer, weak=weak)
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
        """Run ``run()``, one call of a layer, and record it.

        Args:
            layer: which.
            density: the call goes from data to latents.
            inputs: the values that go in.
            run: the call; the watcher returns what it returns, or the same with other values.
            probe: for a coupling: its conditioner, from the kept channels to the parameters.
            replay: for ``spread="replay"``: the call, from inputs to outputs.
        """

    def call_block(self, block: Block, density: bool, inputs: Sequence[Tensor], run: Run) -> Any:
        """Run ``run()``, one call of a block, and record it."""
        return run()

    def params(self, layer: Layer, params: Tensor) -> Tensor:
        """Called with the parameters of an affine layer; returns these or changed ones."""
        return params

    def transformed(  # noqa: B027
        self, layer: Layer, transform: object, x: Tensor, params: Tensor
    ) -> None:
        """Called when robustflow's transform in this layer is, with its raw parameters."""

    def record_derivatives(self, log_derivatives: Tensor, *, last: bool = False) -> None:  # noqa: B027
        """Record elementwise log-derivatives of the running call.

        Args:
            log_derivatives: any shape.
            last: they replace those that this call recorded before.
        """

    def current(self) -> Layer | None:
        """The layer whose call is running in this thread, for this watcher."""
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


def layers_of(watched: Iterable[Watched]) -> list[Layer]:
    """The layers, with each block replaced by its parts."""
    layers: list[Layer] = []
    for each in watched:
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
    """Within it, a tool calls the model for its own purposes: no watcher records that."""
    _ASKING.depth += 1
    try:
        yield
    finally:
        _ASKING.depth -= 1


def is_watchable() -> bool:
    """Whether a call is the user's, with tensors that hold values.

    False for calls that a tool makes to learn about a layer (:func:`asking`), and for tensors that
    are traced, batched, fake, or dual numbers.
    """
    return not _ASKING.depth and is_plain_eager()
