"""FrEIA: sampling is ``rev=True``; what goes in and comes out are tuples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from FrEIA import framework
from FrEIA import modules as freia
from FrEIA.modules import coupling_layers
from torch import Tensor, nn

from robustflow.diagnostics._layers import (
    AffineParams,
    Block,
    Layer,
    Spread,
    Watched,
    Watcher,
)
from robustflow.diagnostics._libraries._own import is_converted, watch_converted
from robustflow.diagnostics.kinds import Kind

_CONTAINERS = tuple(
    getattr(framework, name)
    for name in ("SequenceINN", "GraphINN", "ReversibleSequential")
    if hasattr(framework, name)
)


class _Tuples(Watched):
    library = "FrEIA"

    def outputs(self, result: Any) -> Sequence[Tensor]:
        return tuple(result[0])

    def with_outputs(self, result: Any, outputs: Sequence[Tensor]) -> Any:
        return (tuple(outputs), *result[1:])


class _Layer(_Tuples, Layer):
    def watch(self, watcher: Watcher) -> None:
        def call(
            turned: bool, x: Sequence[Tensor], conditions: Sequence[Tensor], run: Callable[..., Any]
        ) -> Any:
            def probe(kept: Tensor) -> Tensor:
                return self.conditioner(torch.cat([kept, *conditions], dim=1))  # type: ignore[misc]

            return watcher.call(
                self,
                turned == self.flipped,
                tuple(x),
                lambda: run(x),
                probe=None if self.conditioner is None else probe,
                replay=lambda marked: run(tuple(marked))[0],
            )

        watcher.intercept(self.module, "forward", _wrapper(self.module, call))
        watch_converted(watcher, self.module)
        if self.affine is not None:
            _watch_net(watcher, self, self.module.subnet)


class _Part(Layer):
    """One transform of a block; the block passes its calls on.

    Attributes:
        method: of the block, which computes it.
        net: the network of its parameters; None if the method gets them as an argument.
    """

    library = "FrEIA"
    method: str = ""
    net: nn.Module | None = None

    def watch(self, watcher: Watcher) -> None:
        watcher.intercept(self.module, self.method, self._wrapper(watcher))
        watch_converted(watcher, self.module)
        if self.net is not None and self.affine is not None:
            _watch_net(watcher, self, self.net)

    def outputs(self, result: Any) -> Sequence[Tensor]:
        return (result if isinstance(result, Tensor) else result[0],)

    def with_outputs(self, result: Any, outputs: Sequence[Tensor]) -> Any:
        return outputs[0] if isinstance(result, Tensor) else (outputs[0], *result[1:])

    def _wrapper(self, watcher: Watcher) -> Callable[..., Any]:
        def call(proceed: Callable[..., Any], x: Tensor, *args: Any, rev: bool = False) -> Any:
            def run() -> Any:
                params = args
                if args and self.net is None and self.affine is not None:
                    params = (watcher.params(self, args[0]), *args[1:])
                return proceed(x, *params, rev=rev)

            def probe(kept: Tensor) -> Tensor:
                conditions = args[0][:, kept.shape[1] :]
                return self.net(torch.cat([kept, conditions], dim=1))  # type: ignore[misc]

            return watcher.call(
                self,
                bool(rev) == self.flipped,
                (x,),
                run,
                probe=None if self.net is None else probe,
            )

        return call


class _Block(_Tuples, Block):
    """A block; its parts are named after the methods that compute them."""

    def __init__(self, module: nn.Module, parts: list[Layer]) -> None:
        super().__init__(module)
        self.parts = parts

    def watch(self, watcher: Watcher) -> None:
        def call(
            turned: bool, x: Sequence[Tensor], conditions: Sequence[Tensor], run: Callable[..., Any]
        ) -> Any:
            return watcher.call_block(self, turned == self.flipped, tuple(x), lambda: run(x))

        watcher.intercept(self.module, "forward", _wrapper(self.module, call))
        for part in self.parts:
            part.watch(watcher)


def _wrapper(module: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
    """The wrapper of a ``forward``, by ``call(rev, inputs, conditions, run)``."""
    signature = inspect.signature(module.forward)

    def layer(proceed: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(x, *args, **kwargs).arguments
        return call(
            bool(arguments.get("rev", False)),
            x,
            arguments.get("c") or (),
            lambda inputs: proceed(inputs, *args, **kwargs),
        )

    return layer


def _watch_net(watcher: Watcher, layer: Layer, net: nn.Module) -> None:
    def params(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = proceed(*args, **kwargs)
        return watcher.params(layer, output) if watcher.current() is layer else output

    watcher.intercept(net, "forward", params, makes_params=True)


def find(module: nn.Module) -> Watched | None:
    if not isinstance(module, freia.InvertibleModule) or isinstance(module, _CONTAINERS):
        return None
    if isinstance(module, coupling_layers.AffineCouplingOneSided):
        return _one_sided(module)
    if isinstance(module, coupling_layers.ConditionalAffineTransform):
        layer = _Layer(module)
        layer.kind, layer.spread = "injector", "elementwise"
        layer.affine = _affine_of_forward(module)
        return layer
    if isinstance(module, coupling_layers._BaseCouplingBlock):
        return _two_sided(module)
    if isinstance(module, freia.AllInOneBlock):
        return _all_in_one(module)
    layer = _Layer(module)
    layer.kind, layer.spread, layer.conditional = next(
        (how for kinds, how in _PLAIN if isinstance(module, kinds)), ("other", "sample", True)
    )
    return layer


def flips(module: nn.Module) -> bool:
    return False


def members(module: nn.Module) -> Iterable[nn.Module]:
    return ()


def _named(*names: str) -> tuple[type[nn.Module], ...]:
    """FrEIA's classes by name, as far as this version has them."""
    return tuple(getattr(freia, name) for name in names if hasattr(freia, name))


_PLAIN: tuple[tuple[tuple[type[nn.Module], ...], tuple[Kind, Spread, bool]], ...] = (
    (_named("ActNorm"), ("actnorm", "elementwise", False)),
    (
        _named("InvertibleSigmoid", "LearnedElementwiseScaling", "InvAutoAct"),
        ("elementwise", "elementwise", False),
    ),
    (
        _named(
            "PermuteRandom",
            "IRevNetDownsampling",
            "IRevNetUpsampling",
            "Flatten",
            "Reshape",
            "Split",
            "Concat",
        ),
        ("reshape", "replay", False),
    ),
    (
        _named(
            "HaarDownsampling",
            "HaarUpsampling",
            "Fixed1x1Conv",
            "FixedLinearTransform",
            "OrthogonalTransform",
            "HouseholderPerm",
        ),
        ("1x1", "replay", False),
    ),
)


def _halves(module: Any) -> tuple[slice, slice]:
    return slice(0, module.split_len1), slice(module.split_len1, None)


def _two_sided(module: Any) -> Watched:
    """A block whose two halves are transformed one after the other, each by its own method."""
    first, second = _halves(module)
    parts: list[Layer] = []
    for method, changed, kept, nets in (
        ("_coupling1", first, second, ("subnet_s2", "subnet2", "F")),
        ("_coupling2", second, first, ("subnet_s1", "subnet1", "G")),
    ):
        name = next((name for name in nets if hasattr(module, name)), None)
        if name is None:
            layer = _Layer(module)  # a block of the user's own, whose networks are not known
            layer.kind = "self-conditional"
            return layer
        part = _Part(module)
        part.kind, part.spread = "self-conditional", "coupling"
        part.kept, part.changed, part.method = kept, changed, method
        part.net = part.conditioner = module.get_submodule(name)
        part.affine = _affine_of_half(module, method, name)
        part.part = method
        parts.append(part)
    return _Block(module, parts)


def _affine_of_half(module: Any, method: str, name: str) -> AffineParams | None:
    if type(module) is coupling_layers.RNVPCouplingBlock:
        other = name.replace("_s", "_t")
        logits = lambda params: params  # noqa: E731
    elif type(module) is coupling_layers.GLOWCouplingBlock:
        other = None
        logits = lambda params: params[:, : params.shape[1] // 2]  # noqa: E731
    else:
        return None

    def log_gain(raw: Tensor) -> Tensor:
        raw, zeros = _tiny(raw, module.ndims)
        nets = {name: lambda _: torch.cat([raw, zeros], dim=1)}
        if other is not None:
            nets = {name: lambda _: raw, other: lambda _: zeros}
        stand_in = _stand_in(module, **nets)
        return getattr(type(module), method)(stand_in, zeros, None, rev=True)[1]

    return AffineParams(logits, log_gain)


def _one_sided(module: Any) -> Layer:
    layer = _Layer(module)
    layer.kind, layer.spread = "self-conditional", "coupling"
    layer.kept, layer.changed = _halves(module)
    layer.conditioner = module.subnet
    layer.affine = _affine_of_forward(module)
    return layer


def _affine_of_forward(module: Any) -> AffineParams | None:
    """Of a module whose ``forward`` gets scale and shift, halves of a tensor, from ``subnet``."""
    if is_converted(module):
        return None

    def log_gain(raw: Tensor) -> Tensor:
        raw, zeros = _tiny(raw, module.ndims)
        stand_in = _stand_in(module, subnet=lambda _: torch.cat([raw, zeros], dim=1))
        stand_in.split_len1, stand_in.conditional = 0, False
        return type(module).forward(stand_in, (zeros,), (zeros,), rev=True)[1]

    return AffineParams(lambda params: params[:, : params.shape[1] // 2], log_gain)


def _all_in_one(module: Any) -> Watched:
    first, second = slice(0, module.splits[0]), slice(module.splits[0], None)
    coupling = _Part(module)
    coupling.kind, coupling.spread, coupling.method = "self-conditional", "coupling", "_affine"
    coupling.kept, coupling.changed = first, second
    coupling.conditioner = module.subnet
    if not (module.GIN or is_converted(module)):

        def log_gain(raw: Tensor) -> Tensor:
            raw, zeros = _tiny(raw, len(module.sum_dims))
            # Not on the module, whose calls may be watched.
            own = {name: each for name, each in vars(module).items() if not name.startswith("_")}
            params = torch.cat([raw, zeros], dim=1)
            return type(module)._affine(SimpleNamespace(**own), zeros, params, rev=True)[1]

        coupling.affine = AffineParams(lambda params: params[:, : params.shape[1] // 2], log_gain)
    parts: list[Layer] = [coupling]
    for method in ("_permute", *(["_pre_permute"] if module.reverse_pre_permute else [])):
        mixing = _Part(module)
        mixing.kind, mixing.spread, mixing.conditional = "1x1", "channels", False
        mixing.method, mixing.part = method, "global_scale"
        parts.append(mixing)
    return _Block(module, parts)


def _tiny(raw: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Raw scales (k,), and zeros like them, as one channel of ``dims`` dimensions."""
    raw = raw.view(-1, *[1] * dims)
    return raw, torch.zeros_like(raw)


def _stand_in(module: Any, **networks: Any) -> SimpleNamespace:
    """A block's settings for the library's own code, of one channel, with other networks."""
    return SimpleNamespace(
        channels=1,
        split_len1=1,
        split_len2=1,
        ndims=module.ndims,
        clamp=module.clamp,
        f_clamp=module.f_clamp,
        **networks,
    )
