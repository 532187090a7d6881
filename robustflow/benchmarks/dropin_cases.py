"""Neural spline flows of three libraries, and three modes to run them in: off, on, free.

``off`` and ``on`` are without and with ``robustflow.compat.patch``. ``free`` bounds what a patch
can gain: the transform is the identity and costs nothing, but autograd still connects its
parameters with the result, so that the conditioner's backward pass runs as usual.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor

from robustflow import compat
from robustflow.benchmarks import calls, peers, timing

LIBRARIES = ("nflows", "normflows", "zuko")
MODES = ("off", "on", "free")
TRAINING_STEP = "training step"
FUSED_ADAM = "training step, fused Adam"  # torch.optim.Adam(..., fused=True)
WHATS = (TRAINING_STEP, FUSED_ADAM, "sampling")
TAIL_BOUND = 5.0


@dataclass(frozen=True)
class Size:
    """A flow and its batch.

    Attributes:
        name: ``--filter`` searches the library's name followed by this one.
        batch: the batch of a training step, and the number of samples drawn.
        features: D. Coupling layers transform half of them.
        bins: K.
        layers: transforms in the flow.
        hidden: units of each of two hidden blocks or layers.
        context: features of each sample's context; 0 for a flow without one.
    """

    name: str
    batch: int
    features: int
    bins: int
    layers: int
    hidden: int
    context: int = 0


SIZES = (
    Size("large batch", 4096, 6, 8, 8, 64),
    Size("inference", 200, 5, 10, 5, 50, context=5),  # sbi's defaults
    Size("wide", 1024, 15, 8, 8, 512),  # gravitational waves
)
TINY = Size("tiny", 16, 4, 4, 2, 8)


def find_size(name: str) -> Size:
    for size in (*SIZES, TINY):
        if size.name == name:
            return size
    raise ValueError(f"No size {name!r}; there are {', '.join(size.name for size in SIZES)}.")


def make_flow(library: str, size: Size) -> Any:
    """A flow with ``log_prob(x)`` and ``sample()``, with the same weights at every call.

    A flow with a context holds one context for each sample of the batch.

    Raises:
        PeerMissing: the library is not installed.
    """
    peers.check(library)
    torch.manual_seed(0)
    flow = {"nflows": _nflows, "normflows": _normflows, "zuko": _zuko}[library](size)
    # Some flows start as the identity: move them away from it, as training would.
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return flow


def _nflows(size: Size) -> Any:
    from nflows import distributions, flows, transforms
    from nflows.nn.nets import ResidualNet

    layers: list[Any] = []
    for i in range(size.layers):
        layers.append(transforms.ReversePermutation(size.features))
        layers.append(
            transforms.PiecewiseRationalQuadraticCouplingTransform(
                (torch.arange(size.features) + i) % 2,
                lambda inputs, outputs: ResidualNet(
                    inputs, outputs, size.hidden, size.context or None
                ),
                num_bins=size.bins,
                tails="linear",
                tail_bound=TAIL_BOUND,
            )
        )
    base = distributions.StandardNormal([size.features])
    return _Conditioned(flows.Flow(transforms.CompositeTransform(layers), base), size)


def _normflows(size: Size) -> Any:
    import normflows as nf

    layers: list[Any] = []
    for _ in range(size.layers):
        layers.append(
            nf.flows.CoupledRationalQuadraticSpline(
                size.features,
                2,
                size.hidden,
                size.context or None,
                num_bins=size.bins,
                tail_bound=TAIL_BOUND,
            )
        )
        layers.append(nf.flows.LULinearPermute(size.features))
    base = nf.distributions.DiagGaussian(size.features, trainable=False)
    kind = nf.ConditionalNormalizingFlow if size.context else nf.NormalizingFlow
    return _Conditioned(kind(base, layers), size)


class _Conditioned(torch.nn.Module):
    """A flow, with a context for each sample of a batch if it takes one."""

    context: Tensor | None

    def __init__(self, flow: Any, size: Size) -> None:
        super().__init__()
        self.flow = flow
        self.count = size.batch
        context = torch.randn(size.batch, size.context) if size.context else None
        self.register_buffer("context", context)

    def log_prob(self, x: Tensor) -> Tensor:
        contexts = () if self.context is None else (self.context,)
        result: Tensor = self.flow.log_prob(x, *contexts)
        return result

    def sample(self) -> Any:
        """As many samples as the batch has. normflows also returns their log_prob."""
        if self.context is None:
            return self.flow.sample(self.count)
        if hasattr(self.flow, "transform_to_noise"):  # nflows: the number of samples per context
            return self.flow.sample(1, self.context)
        return self.flow.sample(self.count, self.context)


class _Zuko(_Conditioned):
    def log_prob(self, x: Tensor) -> Tensor:
        result: Tensor = self.flow(self.context).log_prob(x)
        return result

    def sample(self) -> Tensor:
        shape = (self.count,) if self.context is None else ()
        result: Tensor = self.flow(self.context).sample(shape)
        return result


def _zuko(size: Size) -> Any:
    import zuko

    return _Zuko(
        zuko.flows.NSF(
            size.features,
            size.context,
            transforms=size.layers,
            bins=size.bins,
            hidden_features=(size.hidden,) * 2,
        ),
        size,
    )


class _Free(torch.autograd.Function):
    """Returns x and a log-determinant of 0; for autograd they depend on the parameters."""

    zeros: ClassVar[dict[tuple[Any, ...], Tensor]] = {}

    @staticmethod
    def forward(ctx: Any, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        ctx.likes = [(p.shape, p.dtype, p.device) for p in params]
        return x.view_as(x), torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, ...]:
        for shape, dtype, device in ctx.likes:
            if (shape, dtype, device) not in _Free.zeros:  # so that a gradient costs nothing
                _Free.zeros[shape, dtype, device] = torch.zeros(shape, dtype=dtype, device=device)
        return gradients[0], *(_Free.zeros[like] for like in ctx.likes)


def _free_layer(self: Any, inputs: Tensor, transform_params: Tensor, inverse: bool) -> Any:
    return _Free.apply(inputs, transform_params)


def _free_elementwise(self: Any, inputs: Tensor, inverse: bool) -> Any:
    groups = (self.unnormalized_widths, self.unnormalized_heights, self.unnormalized_derivatives)
    y, logabsdet = _Free.apply(inputs, *groups)
    return y, logabsdet.sum(1)


def _free_methods(library: str) -> list[tuple[type, str, Callable[..., Any]]]:
    """The library's methods that apply a transform: a class, a name, and what runs instead."""
    if library == "nflows":
        from nflows.transforms import coupling

        layer = coupling.PiecewiseRationalQuadraticCouplingTransform
        return [(layer, "_piecewise_cdf", _free_layer)]
    if library == "normflows":
        from normflows.flows.neural_spline import coupling as couplings

        return [
            (couplings.PiecewiseRationalQuadraticCoupling, "_piecewise_cdf", _free_layer),
            (couplings.PiecewiseRationalQuadraticCDF, "_spline", _free_elementwise),
        ]
    from zuko.flows.autoregressive import MaskedAutoregressiveTransform
    from zuko.transforms import DependentTransform, IdentityTransform

    class Connected(IdentityTransform):
        def __init__(self, phi: Tensor) -> None:
            super().__init__()
            self.phi = phi

        def _call(self, x: Tensor) -> Tensor:
            return self.call_and_ladj(x)[0]

        _inverse = _call

        def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
            result: tuple[Tensor, Tensor] = _Free.apply(x, self.phi)
            return result

    def meta(self: Any, c: Tensor | None, x: Tensor) -> Any:
        phi = self.hyper(x if c is None else torch.cat((x, c), -1)).unflatten(-1, (-1, self.total))
        return DependentTransform(Connected(phi), 1)

    return [(MaskedAutoregressiveTransform, "meta", meta)]


@contextmanager
def _free(library: str) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name, replacement in _free_methods(library):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def mode_of(library: str, mode: str) -> Any:
    """The context manager inside which a flow of the library runs in this mode."""
    if mode == "off":
        return nullcontext()
    return compat.patch(library) if mode == "on" else _free(library)


@dataclass
class Run:
    """A training step or sampling of one flow in one mode; calling it enters the mode."""

    library: str
    mode: str
    work: Callable[[], object]

    def __call__(self) -> object:
        with mode_of(self.library, self.mode):
            return self.work()


def time_runs(
    runs: Mapping[str, Run], seconds: float, *, warmup: int = 3
) -> dict[str, timing.Timing]:
    """:func:`timing.alternate` with garbage collection on, as in a user's program.

    zuko leaves its parameters in reference cycles, so without collection every call would use new
    memory.
    """
    try:
        return timing.alternate(
            runs, seconds=seconds, warmup=warmup, min_sample=2e-2, sampler=_sample_seconds
        )
    finally:
        gc.unfreeze()


def _sample_seconds(run: Run, calls: int) -> float:
    """Seconds for a call. Before the clock starts the mode is entered, and one call is made: the
    first after patching describes the layers."""
    with mode_of(run.library, run.mode):
        collects = gc.isenabled()
        gc.collect()
        # Objects from before this call are not searched. They stay frozen between samples: to
        # search a large program's once a sample would take longer than to time a small flow.
        gc.freeze()
        gc.enable()
        try:
            run.work()
            begin = time.perf_counter()
            for _ in range(calls):
                run.work()
            return (time.perf_counter() - begin) / calls
        finally:
            if not collects:
                gc.disable()


def make_run(library: str, size: Size, what: str, mode: str, flow: Any = None) -> Run:
    """``what``, one of :data:`WHATS`: log_prob, backward and Adam, or samples without gradients."""
    flow = copy.deepcopy(make_flow(library, size) if flow is None else flow)
    x = torch.randn(size.batch, size.features, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-6, fused=what == FUSED_ADAM)

    def train() -> None:
        optimizer.zero_grad()
        (-flow.log_prob(x).mean()).backward()
        optimizer.step()

    def sample() -> object:
        with torch.no_grad():
            return flow.sample()

    return Run(library, mode, sample if what == "sampling" else train)


def results(library: str, size: Size, mode: str) -> dict[str, Tensor]:
    """log_prob, samples with a fixed seed, and the gradient of all parameters as one vector."""
    flow = make_flow(library, size)
    x = torch.randn(size.batch, size.features, generator=torch.Generator().manual_seed(1))
    with mode_of(library, mode):
        log_prob = flow.log_prob(x)
        log_prob.mean().backward()
        gradients = [p.grad.flatten() for p in flow.parameters() if p.grad is not None]
        torch.manual_seed(2)
        with torch.no_grad():
            samples = flow.sample()
    samples = samples[0] if isinstance(samples, tuple) else samples
    return {
        "log_prob": log_prob.detach(),
        "samples": samples.detach(),
        "gradients": torch.cat(gradients),
    }


def differences(library: str, size: Size) -> dict[str, float]:
    """The largest difference between on and off in each result.

    Raises:
        AssertionError: they differ by more than rounding.
    """
    off, on = (results(library, size, mode) for mode in ("off", "on"))
    largest = {}
    for name, expected in off.items():
        scale = float(expected.abs().max()) if name == "gradients" else 1.0
        calls.check_close(f"{library}: {name}", on[name] / scale, expected / scale)
        largest[name] = float((on[name] - expected).abs().max()) / scale
    return largest
