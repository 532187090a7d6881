"""normflows: sampling is ``forward``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from normflows import flows, utils
from normflows.flows.affine.autoregressive import Autoregressive, MaskedAffineAutoregressive
from normflows.flows.affine.coupling import AffineConstFlow, CCAffineConst
from normflows.flows.mixing import _Linear, _Permutation
from normflows.flows.neural_spline.coupling import Coupling
from torch import Tensor, nn

from robustflow.compat.convert.normflows import ModifiedRQMaskedFlow
from robustflow.diagnostics._layers import AffineParams, Layer, Watched, Watcher
from robustflow.diagnostics._libraries._nflows_like import (
    FORWARD,
    NflowsLayer,
    autoregressive,
    coupling,
)
from robustflow.diagnostics._libraries._own import is_converted

_CONTAINERS = (flows.Composite, flows.GlowBlock, flows.Reverse)
_WRAPPERS = {  # of a layer whose inverse is called
    flows.CoupledRationalQuadraticSpline: "prqct",
    flows.CircularCoupledRationalQuadraticSpline: "prqct",
    flows.AutoregressiveRationalQuadraticSpline: "mprqat",
    flows.CircularAutoregressiveRationalQuadraticSpline: "mprqat",
}


class _Layer(NflowsLayer):
    """``forward(z)`` or ``forward(z, context)``; z may be a list of tensors."""

    library = "normflows"
    utils = utils
    sampling = FORWARD
    # The networks of affine couplings whose output holds the scales.
    net: nn.Module | None = None
    probe: Callable[..., Tensor] | None = None
    # For layers that split z in two: whether the first half transforms the second.
    first_kept: bool | None = None

    def watch(self, watcher: Watcher) -> None:
        super().watch(watcher)
        if self.net is not None and self.affine is not None:

            def params(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                output = proceed(*args, **kwargs)
                return watcher.params(self, output) if watcher.current() is self else output

            watcher.intercept(self.net, "forward", params, makes_params=True)

    def _wrapper(self, watcher: Watcher, density: bool) -> Callable[..., Any]:
        def layer(proceed: Callable[..., Any], z: Any, *args: Any, **kwargs: Any) -> Any:
            several = isinstance(z, list | tuple)
            if self.first_kept is not None:
                half = (z.shape[1] + 1) // 2  # the first is the larger, if one is
                first, last = slice(0, half), slice(half, None)
                self.kept, self.changed = (first, last) if self.first_kept else (last, first)

            def replay(marked: Sequence[Tensor]) -> Sequence[Tensor]:
                return self.outputs(proceed(list(marked) if several else marked[0]))

            def probe(kept: Tensor) -> Tensor:
                assert self.probe is not None
                return self.probe(kept, *args, **kwargs)

            return watcher.call(
                self,
                density,
                tuple(z) if several else (z,),
                lambda: proceed(z, *args, **kwargs),
                probe=probe if self.probe is not None else None,
                replay=replay,
            )

        return layer

    def outputs(self, result: Any) -> Sequence[Tensor]:
        z = result[0]
        return tuple(z) if isinstance(z, list | tuple) else (z,)

    def with_outputs(self, result: Any, outputs: Sequence[Tensor]) -> Any:
        z = list(outputs) if isinstance(result[0], list | tuple) else outputs[0]
        return (z, *result[1:])


def find(module: nn.Module) -> Watched | None:
    if not isinstance(module, flows.Flow) or isinstance(module, _CONTAINERS):
        return None
    layer = _Layer(module)
    inside = next((name for kind, name in _WRAPPERS.items() if isinstance(module, kind)), None)
    if inside is not None:
        return _wrapper(layer, getattr(module, inside))
    if isinstance(module, Coupling):
        return _of_nflows(coupling(layer, None))
    if isinstance(module, Autoregressive):
        return _autoregressive(layer)
    if isinstance(module, flows.AffineCouplingBlock):
        return _affine_block(layer)
    if isinstance(module, (flows.MaskedAffineFlow, ModifiedRQMaskedFlow)):
        return _masked(layer)
    if isinstance(module, AffineConstFlow | flows.BatchNorm | CCAffineConst):
        layer.kind, layer.spread, layer.conditional = "actnorm", "elementwise", False
    elif isinstance(module, flows.Permute | flows.Squeeze | flows.Split | _Permutation):
        layer.kind, layer.spread, layer.conditional = "reshape", "replay", False
    elif isinstance(
        module, flows.Invertible1x1Conv | flows.InvertibleAffine | flows.LULinearPermute | _Linear
    ):
        layer.kind, layer.spread, layer.conditional = "1x1", "channels", False
    return layer


def flips(module: nn.Module) -> bool:
    return isinstance(module, flows.Reverse)


def members(module: nn.Module) -> Iterable[nn.Module]:
    return ()


def _wrapper(layer: _Layer, inside: Any) -> _Layer:
    layer.sums = True
    if isinstance(inside, Coupling):
        layer.kind, layer.spread = "self-conditional", "coupling"
        layer.kept, layer.changed = inside.identity_features, inside.transform_features
        layer.conditioner = inside.transform_net
        layer.probe = inside.transform_net
    else:
        layer.kind, layer.spread = "autoregressive", "channels"
    return layer


def _of_nflows(layer: NflowsLayer) -> NflowsLayer:
    assert isinstance(layer, _Layer)
    layer.probe = layer.module.transform_net
    return layer


def _autoregressive(layer: _Layer) -> Layer:
    described = autoregressive(layer, MaskedAffineAutoregressive)
    if described.affine is not None:
        inverse = described.affine.log_gain  # of `inverse`; sampling is `forward`
        described.affine = AffineParams(described.affine.logits, lambda raw: -inverse(raw))
    return described


def _affine_block(layer: _Layer) -> _Layer:
    split, step, _ = layer.module.flows
    layer.kind, layer.conditioner = "self-conditional", step.param_map
    layer.part = "flows.1"  # z is whole here, and not yet in that module
    if split.mode in ("channel", "channel_inv"):
        layer.spread = "coupling"
        layer.probe = step.param_map
        layer.first_kept = split.mode == "channel"
    if not is_converted(step) and step.scale:
        layer.net = step.param_map

        def log_gain(raw: Tensor) -> Tensor:
            params = torch.stack([torch.zeros_like(raw), raw], dim=1)
            names = SimpleNamespace(
                param_map=lambda _: params, scale=True, scale_map=step.scale_map
            )
            zeros = torch.zeros_like(raw)[:, None]
            return flows.AffineCoupling.forward(names, [zeros, zeros])[1]

        layer.affine = AffineParams(lambda params: params[:, 1::2], log_gain)
    return layer


def _masked(layer: _Layer) -> _Layer:
    module = layer.module
    layer.kind = "self-conditional"
    mask = module.b[0]
    if mask.dim() == 1:
        layer.spread = "coupling"
        changed = (mask <= 0).nonzero()[:, 0]
        layer.kept, layer.changed = (mask > 0).nonzero()[:, 0], changed
        if isinstance(module, flows.MaskedAffineFlow) and isinstance(module.s, nn.Module):
            layer.net = module.s

            def log_gain(raw: Tensor) -> Tensor:
                zeros = torch.zeros_like(raw)[:, None]
                names = SimpleNamespace(b=zeros[:1], s=lambda _: raw[:, None], t=torch.zeros_like)
                return flows.MaskedAffineFlow.forward(names, zeros)[1]

            layer.affine = AffineParams(lambda params: params, log_gain, counted=changed)
    return layer
