"""FrEIA: GLOW's, RealNVP's and one-sided coupling blocks, conditional affine, ``AllInOneBlock``."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from FrEIA.modules import AllInOneBlock
from FrEIA.modules import coupling_layers as blocks
from torch import Tensor, nn

from robustflow.compat.convert._affine import ADDITIVE, APART, TOGETHER, AffineLayer, Found, Splines
from robustflow.compat.convert._spline import RescaledModifiedRQSpline, joined
from robustflow.compat.convert.methods import FORWARD, overrides

HEAD_KINDS = ()

_Result = tuple[Tensor, Tensor]
_Outputs = tuple[tuple[Tensor], Tensor]


class ModifiedRQGLOWCouplingBlock(blocks.GLOWCouplingBlock):
    """What a ``GLOWCouplingBlock`` becomes."""

    rescaled1: RescaledModifiedRQSpline
    rescaled2: RescaledModifiedRQSpline

    def _coupling1(self, x1: Tensor, u2: Tensor, rev: bool = False) -> _Result:
        return self.rescaled1(x1, self.subnet2(u2), inverse=rev)

    def _coupling2(self, x2: Tensor, u1: Tensor, rev: bool = False) -> _Result:
        return self.rescaled2(x2, self.subnet1(u1), inverse=rev)


class ModifiedRQRNVPCouplingBlock(blocks.RNVPCouplingBlock):
    """What an ``RNVPCouplingBlock`` becomes; the s networks make all but the shift."""

    rescaled1: RescaledModifiedRQSpline
    rescaled2: RescaledModifiedRQSpline

    def _coupling1(self, x1: Tensor, u2: Tensor, rev: bool = False) -> _Result:
        params = joined(self.subnet_s2(u2), self.subnet_t2(u2), x1)
        return self.rescaled1(x1, params, inverse=rev)

    def _coupling2(self, x2: Tensor, u1: Tensor, rev: bool = False) -> _Result:
        params = joined(self.subnet_s1(u1), self.subnet_t1(u1), x2)
        return self.rescaled2(x2, params, inverse=rev)


class ModifiedRQCouplingOneSided(blocks.AffineCouplingOneSided):
    """What an ``AffineCouplingOneSided`` becomes."""

    rescaled: RescaledModifiedRQSpline

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> _Outputs:
        x1, x2 = x[0].split((self.split_len1, self.split_len2), dim=1)
        params = self.subnet(torch.cat([x1, *c], dim=1))
        x2, logabsdet = self.rescaled(x2, params, inverse=rev)
        return (torch.cat([x1, x2], dim=1),), logabsdet


class ModifiedRQConditionalTransform(blocks.ConditionalAffineTransform):
    """What a ``ConditionalAffineTransform`` becomes."""

    rescaled: RescaledModifiedRQSpline

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> _Outputs:
        y, logabsdet = self.rescaled(x[0], self.subnet(torch.cat(list(c), dim=1)), inverse=rev)
        return (y,), logabsdet


class ModifiedRQAllInOneBlock(AllInOneBlock):
    """What an ``AllInOneBlock`` becomes; its permutation and global scale stay."""

    rescaled: RescaledModifiedRQSpline

    def _affine(self, x: Tensor, a: Tensor, rev: bool = False) -> _Result:
        return self.rescaled(x, a, inverse=rev)


class _Block(AffineLayer):
    """A block; ``rescaled`` names the attribute of each part's spline."""

    rescaled: ClassVar[dict[str, str]] = {"": "rescaled"}

    def convert(self, splines: Splines) -> None:
        self.module.__class__ = self.target
        for name in ("clamp", "f_clamp"):  # a lambda, which cannot be pickled
            self.module.__dict__.pop(name, None)
        for part, attribute in self.rescaled.items():
            setattr(self.module, attribute, splines[part])

    def stand_in(self, **networks: Any) -> SimpleNamespace:
        """The block's settings for the library's own code, with other networks."""
        names = ("channels", "split_len1", "split_len2", "ndims", "clamp", "f_clamp")
        return SimpleNamespace(**{name: getattr(self.module, name) for name in names}, **networks)


class _TwoSided(_Block):
    """Each half is transformed, given the other: two parts, by the method's name."""

    own: ClassVar[type[nn.Module]]
    networks: ClassVar[dict[str, tuple[str, ...]]]  # by method, in the order of its parameters
    spline_params: ClassVar[tuple[int, ...]]
    rescaled: ClassVar[dict[str, str]] = {"_coupling1": "rescaled1", "_coupling2": "rescaled2"}

    def watch(self) -> None:
        for name in self.networks:
            self.shadow(name, partial(self._watched, name, getattr(self.module, name)))

    def _watched(self, name: str, original: Any, x: Tensor, u: Tensor, rev: bool = False) -> Any:
        params = tuple(getattr(self.module, network)(u) for network in self.networks[name])
        elementwise = partial(self._elementwise, name, rev)
        self.observe(name, x, params, rev, elementwise, spline_params=self.spline_params)
        return original(x, u, rev=rev)

    def _elementwise(self, name: str, rev: bool, x: Tensor, *params: Tensor) -> Tensor:
        outputs = zip(self.networks[name], params, strict=True)
        layer = self.stand_in(**{network: _always(value) for network, value in outputs})
        y: Tensor = getattr(self.own, name)(layer, x, None, rev=rev)[0]
        return y


class _GLOW(_TwoSided):
    own = blocks.GLOWCouplingBlock
    networks: ClassVar = {"_coupling1": ("subnet2",), "_coupling2": ("subnet1",)}
    spline_params = TOGETHER


class _RNVP(_TwoSided):
    own = blocks.RNVPCouplingBlock
    networks: ClassVar = {
        "_coupling1": ("subnet_s2", "subnet_t2"),
        "_coupling2": ("subnet_s1", "subnet_t1"),
    }
    spline_params = APART


class _OneSided(_Block):
    def watch(self) -> None:
        self.shadow(FORWARD, partial(self._watched, self.module.forward))

    def _watched(
        self, original: Any, x: Any, c: Any = (), rev: bool = False, jac: bool = True
    ) -> Any:
        x1, x2 = x[0].split((self.module.split_len1, self.module.split_len2), dim=1)
        params = self.module.subnet(torch.cat([x1, *c], dim=1))
        self.observe("", x2, (params,), rev, partial(self._elementwise, rev))
        return original(x, c, rev=rev, jac=jac)

    def _elementwise(self, rev: bool, x: Tensor, params: Tensor) -> Tensor:
        layer = self.stand_in(subnet=_always(params), conditional=False)
        layer.split_len1, layer.split_len2 = 0, x.shape[1]
        y: Tensor = blocks.AffineCouplingOneSided.forward(layer, (x,), rev=rev)[0][0]
        return y


class _Conditional(_Block):
    def watch(self) -> None:
        self.shadow(FORWARD, partial(self._watched, self.module.forward))

    def _watched(
        self, original: Any, x: Any, c: Any = (), rev: bool = False, jac: bool = True
    ) -> Any:
        params = self.module.subnet(torch.cat(list(c), dim=1))
        self.observe("", x[0], (params,), rev, partial(self._elementwise, rev))
        return original(x, c, rev=rev, jac=jac)

    def _elementwise(self, rev: bool, x: Tensor, params: Tensor) -> Tensor:
        layer = self.stand_in(subnet=_always(params))
        y: Tensor = blocks.ConditionalAffineTransform.forward(layer, (x,), (x,), rev=rev)[0][0]
        return y


class _AllInOne(_Block):
    def watch(self) -> None:
        self.shadow("_affine", partial(self._watched, self.module._affine))

    def _watched(self, original: Any, x: Tensor, a: Tensor, rev: bool = False) -> Any:
        self.observe("", x, (a,), rev, partial(self._elementwise, original, rev))
        return original(x, a, rev)

    def _elementwise(self, original: Any, rev: bool, x: Tensor, params: Tensor) -> Tensor:
        y: Tensor = original(x, params.clone(), rev)[0]  # it may write to its parameters
        return y


def _always(result: Tensor) -> Any:
    return lambda _: result


_METHODS = (FORWARD, "_coupling1", "_coupling2")
_KINDS: tuple[tuple[type[nn.Module], type[_Block], type[nn.Module], tuple[str, ...]], ...] = (
    (blocks.GLOWCouplingBlock, _GLOW, ModifiedRQGLOWCouplingBlock, _METHODS),
    (blocks.RNVPCouplingBlock, _RNVP, ModifiedRQRNVPCouplingBlock, _METHODS),
    (blocks.AffineCouplingOneSided, _OneSided, ModifiedRQCouplingOneSided, (FORWARD,)),
    (
        blocks.ConditionalAffineTransform,
        _Conditional,
        ModifiedRQConditionalTransform,
        (FORWARD,),
    ),
    (AllInOneBlock, _AllInOne, ModifiedRQAllInOneBlock, (FORWARD, "_affine")),
)


def find(module: nn.Module) -> Found:
    if isinstance(module, tuple(target for _, _, target, _ in _KINDS)):
        return None
    if isinstance(module, blocks.GINCouplingBlock) or (
        isinstance(module, AllInOneBlock) and module.GIN
    ):
        return "it preserves volume: its log-scales sum to zero in every sample"
    if isinstance(module, blocks.NICECouplingBlock):
        return ADDITIVE
    for kind, layer, target, methods in _KINDS:
        if isinstance(module, kind):
            return overrides(module, kind, *methods) or layer(module, target)
    return None
