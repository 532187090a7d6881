"""Guards against exploding inverses, for models that cannot be retrained, and their cost.

None of them repairs the density. Each is measured by :func:`measure_guards` against the plainest
one, a lower temperature.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustflow._checks import check_number
from robustflow.diagnostics._find import find_layers
from robustflow.diagnostics._layers import (
    Layer,
    Probe,
    Replay,
    Run,
    Watched,
    Watcher,
    layers_of,
)
from robustflow.diagnostics.artifacts.published_rule import count_faulty
from robustflow.diagnostics.monitor import InverseMonitor
from robustflow.diagnostics.onsets import Onset

_WIDEST = 2.0**14  # raw scales beyond this saturate in every library
_HALVINGS = 80


class _ScaleGuard(Watcher):
    """Changes the raw scales of affine layers while the model samples; nothing else."""

    changes: ClassVar[bool] = True  # a monitor sees the scales that are used

    def __init__(self, change: Callable[[Layer, Tensor], Tensor]) -> None:
        super().__init__()
        self._change = change

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
        if density:
            return run()
        with self.calling(layer):
            return run()

    def params(self, layer: Layer, params: Tensor) -> Tensor:
        if layer.affine is None or self.current() is not layer:
            return params
        changed = params.clone()
        logits = layer.affine.logits(changed)
        logits.copy_(self._change(layer, logits))
        return changed


class Guard:
    """A guard in place: a context manager, or until :meth:`restore`.

    Attributes:
        layers: names of the layers that it is in.
    """

    def __init__(self, watcher: Watcher, layers: Sequence[Layer], watched: Iterable[Any]) -> None:
        self.layers = tuple(layer.name for layer in layers)
        self._watcher = watcher
        watcher.start(watched)

    def restore(self) -> None:
        """Sample as before; a second call does nothing."""
        self._watcher.stop()

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()


def clamp_inverse(
    model: nn.Module, *, max_gain: float, layers: Iterable[str] | None = None
) -> Guard:
    """Limit the gain of every affine layer's inverse to ``max_gain`` while the model samples.

    Smaller scales are clamped to where the gain is exactly that. The model's weights and log_prob
    do not change, so where the guard acts samples no longer come from the density that log_prob
    gives. Layers whose inverse moves no value by more than a box (splines) need no guard, and get
    none.

    Args:
        model: as for :class:`InverseMonitor`.
        max_gain: at least 1. A healthy layer's inverse seldom multiplies by more than 10.
        layers: names, to guard these alone.

    Returns:
        The guard: ``with clamp_inverse(model, max_gain=10): model.sample(...)``, or keep it and
        call ``restore()``.

    Raises:
        ValueError: no affine layer whose scale is known, ``max_gain`` below 1, or a name that is
            none of the model's.

    Example:
        >>> from robustflow import nn as rnn
        >>> flow = rnn.ConditionalFlow([rnn.flow_step(6, 3, rnn.Affine(), spatial_dims=0)])
        >>> with clamp_inverse(flow, max_gain=10.0) as guard:
        ...     samples = flow.sample(5, torch.randn(2, 3))
        >>> guard.layers
        ('levels.0.layers.2', 'levels.0.layers.3')
    """
    check_number("max_gain", max_gain)
    if not max_gain >= 1:
        raise ValueError(f"max_gain must be at least 1, got {max_gain!r}.")
    watched, affine = _affine_layers(model, layers, "clamp_inverse")
    # Computed before any call, by the layer's own code.
    limits = {layer.name: _range_below(layer, math.log(max_gain)) for layer in affine}
    guard = _ScaleGuard(lambda layer, logits: logits.clamp(*limits[layer.name]))
    return Guard(guard, affine, watched)


def hold_scale(model: nn.Module, layers: str | Iterable[str]) -> Guard:
    """Hold the scale of affine layers at its median over each call, while the model samples.

    An experiment, not a remedy: if an explosion begins in a layer because its scale collapses
    somewhere, then it does not begin there with the scale held at its median.

    Args:
        model: as for :class:`InverseMonitor`.
        layers: one name, or several.

    Raises:
        ValueError: a layer is not affine, or a name is none of the model's.

    Example:
        >>> from robustflow import nn as rnn
        >>> flow = rnn.ConditionalFlow([rnn.flow_step(6, 3, rnn.Affine(), spatial_dims=0)])
        >>> with hold_scale(flow, "levels.0.layers.3"):
        ...     samples = flow.sample(5, torch.randn(2, 3))
    """
    names = [layers] if isinstance(layers, str) else list(layers)
    watched, affine = _affine_layers(model, names, "hold_scale")
    guard = _ScaleGuard(lambda _, logits: logits.median().expand_as(logits))
    return Guard(guard, affine, watched)


def _affine_layers(
    model: nn.Module, names: Iterable[str] | None, what: str
) -> tuple[list[Watched], list[Layer]]:
    """The layers to watch, and the affine ones among them."""
    watched = find_layers(model, names)
    affine = [layer for layer in layers_of(watched) if layer.affine is not None]
    if not affine:
        raise ValueError(
            f"{what} found no affine layer whose scale it knows in this {type(model).__name__}: "
            "splines need no such guard, and other layers are not known."
        )
    return watched, affine


def _range_below(layer: Layer, log_gain: float) -> tuple[float, float]:
    """The raw scales at which a layer's inverse multiplies by at most exp(log_gain)."""
    assert layer.affine is not None
    gain = layer.affine.log_gain
    weights = [*layer.module.parameters(), torch.empty(0)]

    def at(raw: float) -> float:
        return float(gain(torch.full((1,), raw).to(weights[0]))[0])

    low, high = -_WIDEST, _WIDEST
    if max(at(low), at(high)) <= log_gain:
        return -math.inf, math.inf
    rising = at(high) > at(low)
    if min(at(low), at(high)) > log_gain:  # no scale is low enough: take the nearest
        return (low, low) if rising else (high, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if (at(middle) > log_gain) == rising:
            high = middle
        else:
            low = middle
    return (-math.inf, low) if rising else (high, math.inf)


Decode = Callable[[Sequence[Tensor]], Tensor]


def resample_onsets(
    model: nn.Module,
    decode: Decode,
    latents: Sequence[Tensor],
    *,
    radius: int = 8,
    tries: int = 8,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, list[Tensor], int]:
    """Resample latents where explosions begin, and only there, until none does.

    Each try draws the latents within ``radius`` positions of every onset, in every latent at its
    own resolution, and doubles the radius for the next.

    Args:
        model: watched while ``decode`` runs.
        decode: from latents, each (N, C, \\*S), to samples (N, C, \\*S).
        latents: to begin with.
        radius: positions around an onset, at the resolution of its layer.
        tries: at most so many.
        temperature: of the new latents.
        generator: of the new latents, on the CPU.

    Returns:
        The samples, their latents, and how many samples still have an onset.

    Raises:
        ValueError: tries or radius below 1, or a ``decode`` that does not sample all in one call
            of the model, where a monitor sees it.
        TypeError: latents that are no sequence.
    """
    if tries < 1 or radius < 1:
        raise ValueError(f"tries and radius must be at least 1, got {tries} and {radius}.")
    _check_latents(latents)
    current = [latent.clone() for latent in latents]
    for attempt in range(tries + 1):
        with torch.no_grad(), InverseMonitor(model) as monitor:
            samples = decode(current)
        _check_one_pass(monitor, samples, "decode")
        faulty = {onset.sample for onset in monitor.onsets}
        if not faulty or attempt == tries:
            break
        for index, latent in enumerate(current):
            mask = _near_onsets(monitor.onsets, latent, radius * 2**attempt)
            fresh = torch.randn(latent.shape, generator=generator).to(latent)
            current[index] = torch.where(mask, temperature * fresh, latent)
    return samples, current, len(faulty)


def _check_latents(latents: Sequence[Tensor]) -> None:
    if isinstance(latents, Tensor):
        raise TypeError("latents must be a sequence of tensors, one for each of the flow's: [z].")


def _check_one_pass(monitor: InverseMonitor, samples: Tensor, what: str) -> None:
    """Check that all samples came from one pass, so that onsets match them by index."""
    if not monitor.runs:
        raise ValueError(
            f"{what} called no layer of the model: it must sample from that model, and not by a "
            "compiled function, which no monitor sees into."
        )
    if monitor.runs[-1].samples != len(samples):
        raise ValueError(
            f"{what} must sample all {len(samples)} in one call of the model, such as "
            f"flow.inverse(latents, context); its last call made {monitor.runs[-1].samples}. "
            "flow.sample with several contexts or in blocks makes several calls."
        )


def _near_onsets(onsets: Iterable[Onset], latent: Tensor, radius: int) -> Tensor:
    """Which positions of a latent (N, C, \\*S) lie near an onset, (N, 1, \\*S)."""
    size = latent.shape[2:]
    mask = torch.zeros(latent.shape[0], 1, *size, dtype=torch.bool, device=latent.device)
    for onset in onsets:
        region: list[slice | int] = [onset.sample, 0]
        for at, there, here in zip(onset.position[1:], onset.shape[1:], size, strict=False):
            scale = here / there
            centre, reach = (at + 0.5) * scale, (radius + 0.5) * scale
            region.append(slice(max(0, int(centre - reach)), math.ceil(centre + reach)))
        mask[tuple(region)] = True
    return mask


def cool_latents(latents: Sequence[Tensor], where: Tensor, factor: float) -> list[Tensor]:
    """Lower the temperature only where a score or a monitor says so.

    Args:
        latents: each (N, C, \\*S).
        where: (N or 1, \\*S), bool, at any resolution: a score above its threshold, or
            ``monitor.contaminated.any(dim=1)``.
        factor: on the latents there, in [0, 1].

    Raises:
        ValueError: a factor out of range, or ``where`` of another shape.
        TypeError: ``where`` is not of bool, or latents are no sequence.

    Example:
        >>> where = torch.tensor([[True, False]])
        >>> cool_latents([torch.ones(1, 3, 4)], where, 0.5)[0][0, 0].tolist()
        [0.5, 0.5, 1.0, 1.0]
    """
    if not 0 <= factor <= 1:
        raise ValueError(f"factor must lie in [0, 1], got {factor!r}.")
    _check_latents(latents)
    if where.dtype != torch.bool:
        raise TypeError(
            f"where must be of torch.bool, got {where.dtype}: compare a score with its threshold."
        )
    for latent in latents:
        if where.dim() != latent.dim() - 1 or where.shape[0] not in (1, len(latent)):
            raise ValueError(
                f"where must have shape (N or 1, *S) for latents (N, C, *S) = "
                f"{tuple(latent.shape)}, got {tuple(where.shape)}: a mask (N, C, *S) by "
                ".any(dim=1)."
            )
    pools: Mapping[int, Any] = {
        1: functional.adaptive_max_pool1d,
        2: functional.adaptive_max_pool2d,
        3: functional.adaptive_max_pool3d,
    }
    cooled = []
    for latent in latents:
        size = latent.shape[2:]
        mask = where[:, None].to(latent.device).float()
        if size and mask.shape[2:] != size:
            mask = pools[len(size)](mask, tuple(size))
        cooled.append(torch.where(mask > 0, factor * latent, latent))
    return cooled


def project_onto_observation(
    samples: Tensor,
    observation: Tensor,
    forward: Callable[[Tensor], Tensor],
    pseudo_inverse: Callable[[Tensor], Tensor],
) -> Tensor:
    """``x + A^+ (y - A x)``: the nearest picture that the observation could be of.

    This removes the part of an artifact that A sees and leaves the rest. So a large value is
    spread, not removed, and so is a value that is not finite: look for explosions first.

    Args:
        samples: x, (N, C, \\*S).
        observation: y, as ``forward`` returns it; (N or 1, ...).
        forward, pseudo_inverse: A and A^+, such as those of a task of
            :mod:`robustflow.experiments.tasks`.

    Raises:
        ValueError: an observation of another shape than ``forward`` makes.
    """
    seen = forward(samples)
    if observation.shape[1:] != seen.shape[1:] or observation.shape[0] not in (1, seen.shape[0]):
        raise ValueError(
            f"observation must have the shape of forward(samples), {tuple(seen.shape)}, or a batch "
            f"size of 1, got {tuple(observation.shape)}."
        )
    return samples + pseudo_inverse(observation - seen)


@dataclass(frozen=True)
class GuardRow:
    """What one guard did.

    Attributes:
        guard: its name.
        faulty: samples that break the published rule, of ``samples``; None where they are no
            pictures.
        onsets: where explosions began.
        contaminated: the fraction of pixels that an onset reached.
        largest: largest absolute value.
        change: root mean square change of what no onset had reached without a guard.
        seconds: of sampling.
    """

    guard: str
    samples: int
    faulty: int | None
    onsets: int
    contaminated: float
    largest: float
    change: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: "inf" stands for it."""
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def measure_guards(
    model: nn.Module, guarded: Mapping[str, Callable[[], Tensor]], plain: str
) -> list[GuardRow]:
    """Run every way of sampling under a monitor, and compare each with the plain one.

    Args:
        model: watched.
        guarded: by name, functions that sample, (N, C, \\*S), from the same latents and contexts,
            all N in one call of the model. Values in [0, 1] for the published rule.
        plain: the name of the one without a guard.

    Raises:
        ValueError: ``plain`` is none of the names, or a function that does not sample all in one
            call of the model.
    """
    if plain not in guarded:
        raise ValueError(f"plain must be one of {', '.join(guarded)}, got {plain!r}.")
    rows: dict[str, GuardRow] = {}
    reference, healthy = Tensor(), Tensor()
    for name in dict.fromkeys([plain, *guarded]):
        with torch.no_grad(), InverseMonitor(model) as monitor:
            started = time.perf_counter()
            samples = guarded[name]()
            seconds = time.perf_counter() - started
        _check_one_pass(monitor, samples, f"guarded[{name!r}]")
        reached = monitor.runs[-1].contaminated.any(dim=1)  # of what came out last
        if name == plain:
            reference, healthy = samples, ~reached
        differences = (samples - reference).square().mean(dim=1)[healthy]
        rows[name] = GuardRow(
            guard=name,
            samples=len(samples),
            faulty=count_faulty(samples),
            onsets=len(monitor.runs[-1].onsets),
            contaminated=float(reached.float().mean()),
            largest=float(samples.abs().nan_to_num(nan=math.inf, posinf=math.inf).max()),
            change=float(differences.mean().sqrt()) if differences.numel() else math.nan,
            seconds=seconds,
        )
    return [rows[name] for name in guarded]
