"""InverseMonitor: watches a flow while it samples, and finds where its inverse explodes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from robustflow._versions import Unchanged
from robustflow.diagnostics._find import find_layers
from robustflow.diagnostics._layers import (
    Block,
    Call,
    Layer,
    Probe,
    Replay,
    Run,
    State,
    Watched,
    Watcher,
    is_watchable,
)
from robustflow.diagnostics._moments import Moments, Summary, summarise
from robustflow.diagnostics.figures import onset_panel, variance_figure
from robustflow.diagnostics.onsets import (
    REASONS,
    Crossings,
    Limits,
    Mask,
    Onset,
    find_crossings,
    grouped,
    spread,
)
from robustflow.diagnostics.runs import Value, WatchedRun
from robustflow.diagnostics.table import LayerRecord, MonitorReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ExplosionWarning(UserWarning):
    """An inverse explodes."""


class ExplodingInverseError(RuntimeError):
    """An inverse explodes; raised with ``on_explosion="raise"``.

    Attributes:
        onset: where it begins.
    """

    def __init__(self, onset: Onset) -> None:
        super().__init__(f"The inverse explodes: {onset}.")
        self.onset = onset


@dataclass(eq=False)
class _Row:
    """The records of one layer in one direction."""

    layer: Layer
    density: bool
    calls: int = 0
    inputs: Moments = field(default_factory=Moments)
    outputs: Moments = field(default_factory=Moments)
    raw: tuple[float, float] | None = None  # extremes of an affine layer's raw scales
    log: tuple[float, float] | None = None  # extremes of log-derivatives
    onsets: int = 0

    @property
    def derivatives(self) -> tuple[float, float] | None:
        """The smallest and the largest derivative, in the direction that was watched."""
        logs = self.log
        if self.raw is not None and self.layer.affine is not None:
            ends = self.layer.affine.log_gain(torch.tensor(self.raw)).tolist()
            logs = (min(ends), max(ends))
            if self.density:
                logs = (-logs[1], -logs[0])
        return None if logs is None else (_exp(logs[0]), _exp(logs[1]))


@dataclass
class _Frame:
    """A running call of a block: its z, and the mask of z."""

    z: Tensor
    mask: Mask


class _State(State):
    """The state of one thread."""

    def __init__(self) -> None:
        super().__init__()
        self.run: WatchedRun | None = None
        self.frames: list[_Frame] = []
        self.params: dict[Layer, Unchanged] = {}  # each injector's latest parameters
        self.paused = False


_MOST_ONSETS = 10_000
_LARGEST_LOG = math.log(torch.finfo(torch.float64).max)
_MOST_MAP_BYTES = 2**28
_MOST_FEATURES = 2**16  # elements of a (N, C) tensor up to which panels keep all features


OnExplosion = Literal["warn", "raise"] | Callable[[Onset], object]


GROWTH = 10.0  # growth in one layer that counts as an explosion


class InverseMonitor(Watcher):
    """Watches a flow's layers while the model samples, and finds where its inverse explodes.

    A context manager. Within it, every sampling pass of the model is recorded, layer by layer:
    magnitude and variance of input and output, the smallest and the largest derivative, and the
    number of values that are not finite. Results stay the same, except for the last bits of
    splines' log-determinants, which the monitor sums itself. The model object is not changed:
    copies, pickles and the state_dict are the usual ones.

    An *explosion* is growth of magnitude. An element *crosses* if ``|out| / max(1, |in|)``, its
    growth in one layer, reaches ``growth``; or if ``|out|`` reaches ``magnitude`` and ``|in|`` was
    below it; or if it is not finite although it was computed from finite values. ``magnitude``
    finds explosions that build up over many layers (FrEIA's couplings bound the growth in one layer
    to e^2). Layers that multiply by constants (actnorms, 1x1 convolutions) change units, so their
    growth does not count. A large derivative is not an explosion: inside its box the derivative of
    a healthy spline can pass 1e3, and yet no value moves by more than the size of the box.

    The default ``growth`` lies between healthy and exploding layers, as 450 samples of the
    demonstration's three flows show (seed 0, six pictures, five temperatures from 0.5 to 1). In
    clean samples no layer's growth passed 3.8 (affine couplings), 4.8 (reparametrised) or 1.7
    (modified RQ). In every exploded sample, all of the affine flow, it passed 1e4, the bound of one
    affine layer's inverse, after some layers with growth of 10 to 700. The default of 10 is twice
    the largest in clean samples. It finds every explosion, but a little late, because layers with
    growth of 2 to 8 come first: of 40 explosions, holding the scale of the reported layer at its
    median (:func:`hold_scale`) removed 2; with ``growth=5`` it removed 15. No layer's growth passed
    5 in 1,400 clean samples. So take 5 to find where an explosion begins, if the layers keep their
    values near 1. Healthy flows in few dimensions stretch more: take 100 if x is narrow given some
    conditions, as in the toy of docs/toy.md. The default ``magnitude`` is 1000; latents of clean
    samples stayed under 23.

    An *onset* is a crossing of an element that no earlier crossing could have influenced. From
    layer to layer a crossing influences more elements, through the conditioners' receptive fields.

    Args:
        model: with layers of :mod:`robustflow.nn`, robustflow.compat.srflow or SRFlow's published
            code, nflows, glasflow, normflows, zuko or FrEIA, patched by robustflow.compat or not.
        layers: names or modules of the only layers to watch; any module can be named.
        on_explosion: what happens at an onset: ``"warn"`` (an :class:`ExplosionWarning`, one per
            pass), ``"raise"`` (:class:`ExplodingInverseError`, in the middle of the sampling
            call), or a function called with each :class:`Onset`. None: it is only recorded.
        growth, magnitude: the thresholds, more than 1.
        density: record the direction from data to latents, too.

    Attributes:
        onsets: of all runs, in the order in which they were met; at most 10,000 are kept.
        runs: the recorded passes, :class:`WatchedRun`: from latents to data, and with ``density``
            also from data to latents.

    Raises:
        TypeError, ValueError: no layer is found, the model has no layer of a given name, the model
            is compiled, or a threshold is out of range.

    A monitor can be entered again; it then adds to its records, and :meth:`clear` deletes them.
    Monitors may overlap, and several threads may use the model: each pass belongs to one thread.
    Under ``torch.compile``, ``torch.func`` and the like nothing is recorded.

    Source: the effect, Hong, Park and Chun, ICCV 2023 (arXiv:2212.04319); the thresholds are ours.

    Example:
        >>> from robustflow import nn as rnn
        >>> steps = [layer for _ in range(4) for layer in rnn.flow_step(6, 3, rnn.Affine())]
        >>> flow, context = rnn.ConditionalFlow([steps]), torch.randn(1, 3, 8, 8)
        >>> with torch.no_grad(), InverseMonitor(flow) as monitor:
        ...     samples = flow.sample(5, context)
        >>> monitor.onsets, monitor.contaminated.shape
        ([], torch.Size([5, 6, 8, 8]))
        >>> monitor.report().layers[0].name
        'levels.0.layers.15'
    """

    derivatives: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[str | nn.Module] | None = None,
        on_explosion: OnExplosion | None = None,
        *,
        growth: float = GROWTH,
        magnitude: float = 1000.0,
        density: bool = False,
    ) -> None:
        super().__init__()
        self._state: _State = _State()
        for name, value in (("growth", growth), ("magnitude", magnitude)):
            if not value > 1:
                raise ValueError(f"{name} must be more than 1, got {value!r}.")
        if not (on_explosion in (None, "warn", "raise") or callable(on_explosion)):
            raise ValueError(
                'on_explosion must be "warn", "raise", a function to call with the onset, or '
                f"None, got {on_explosion!r}."
            )
        self.limits = Limits(growth, magnitude)
        self.on_explosion = on_explosion
        self.density = density
        self._layers = find_layers(model, layers)
        self._model_name = type(model).__name__
        self.clear()

    def clear(self) -> None:
        """Delete all that was recorded."""
        with self._lock:
            self.onsets: list[Onset] = []
            self.runs: list[WatchedRun] = []
            self._rows: dict[tuple[Layer, bool], _Row] = {}
            self._samples = 0
            self._map_bytes = 0

    def __enter__(self) -> InverseMonitor:
        if self._watching:
            raise RuntimeError(
                "This monitor is already active: create another InverseMonitor to nest them."
            )
        self._state = _State()
        self.start(self._layers)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        for run in self.runs:
            self._close(run)

    @property
    def first_explosion(self) -> Onset | None:
        """The first onset that was met, in time; None where nothing exploded."""
        return self.onsets[0] if self.onsets else None

    @property
    def contaminated(self) -> Tensor:
        """The elements that an onset can have influenced, for all samples in the order of the runs.

        bool, (N, C, \\*S), with the shape of the last layer's output. After one call
        ``flow.sample(n, context)`` with one context, it has the order of the samples. With several
        contexts the order is not that of ``samples.flatten(0, 1)``, because ``flow.sample`` may
        pass one sample of every context at a time, or blocks. ``runs[i].contaminated`` has one run.

        Raises:
            ValueError: nothing was sampled, or the runs' outputs differ in size.
        """
        masks = [run.contaminated for run in self.runs if not run.density]
        if not masks:
            raise ValueError(self._nothing_seen())
        if len({mask.shape[1:] for mask in masks}) > 1:
            sizes = ", ".join(sorted({str(tuple(mask.shape[1:])) for mask in masks}))
            raise ValueError(
                f"The runs' outputs have different sizes, {sizes}: read "
                "monitor.runs[i].contaminated one by one."
            )
        return torch.cat(masks)

    def report(self) -> MonitorReport:
        """What was recorded, layer by layer, in the order in which the layers were called.

        Reshapes and permutations are left out: they change no value.

        Raises:
            ValueError: no layer was called.
        """
        records = [self._record_of(row) for row in self._rows.values()]
        if not records:
            raise ValueError(self._nothing_seen())
        return MonitorReport(
            self._model_name,
            tuple(records),
            tuple(self.onsets),
            sum(row.onsets for row in self._rows.values()),
            sum(run.samples for run in self.runs if not run.density),
            self.limits,
        )

    def figure(self, reference: InverseMonitor | None = None) -> Figure:
        """The variance after each layer, in the order of sampling, on a logarithmic axis.

        Args:
            reference: another monitor of the same model, such as one of contexts from the
                training data, drawn beside this one.

        Raises:
            ValueError: no layer was called.
            ImportError: matplotlib is missing.

        Source: the figure of variances by layer of Hong, Park and Chun, ICCV 2023.
        """
        return variance_figure(self.report(), None if reference is None else reference.report())

    def panel(self, onset: Onset, radius: int = 8) -> Figure:
        """log10 |z| around an onset, layer by layer: before it, at it, and as it spreads.

        At each position the largest channel of z is drawn. A frame shows the receptive field: how
        far an explosion at the onset can have travelled.

        Args:
            onset: one of this monitor's.
            radius: of the square that is drawn, in positions at the onset's layer.

        Raises:
            ValueError: the onset is not one of this monitor's, or its maps were not kept. Maps are
                kept for the first runs with onsets, up to 256 MiB.
            ImportError: matplotlib is missing.
        """
        run = next((run for run in self.runs if onset in run.onsets), None)
        if run is None:
            raise ValueError("onset must be one of this monitor's own, from monitor.onsets.")
        with self._lock:
            self._close(run)
        if not run.maps:
            raise ValueError(
                f"The maps of run {onset.run} were not kept, because they would exceed the memory "
                "that a monitor may use: sample fewer at once, or call clear() first."
            )
        assert run.map_rows is not None
        row = run.map_rows.index(onset.sample - run.first_sample)
        maps = [each.of([row]) for each in run.maps]
        return onset_panel(onset, maps, radius, self.limits.growth)

    # Called by the layers.

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
        state = self._state
        if not self._is_recording(state, density) or self.current() is layer:
            return run()
        call = Call(layer)
        state.calls.append(call)  # calling() would cost more than the rest of this function
        try:
            result = run()
        finally:
            state.calls.pop()
        outputs = layer.outputs(result)
        if inputs and outputs:
            self._record(state, density, call, inputs, outputs, probe, replay)
        return result

    def call_block(self, block: Block, density: bool, inputs: Sequence[Tensor], run: Run) -> Any:
        state = self._state
        if not self._is_recording(state, density):
            return run()
        (z,) = inputs
        watched, known = self._find_run(state, block, density, inputs)
        (mask,) = watched.masks_of(known, inputs)
        state.frames.append(_Frame(z, mask))
        try:
            result = run()
        finally:
            frame = state.frames.pop()
        (output,) = block.outputs(result)
        watched.remember(output, output, frame.mask, None)
        return result

    def params(self, layer: Layer, params: Tensor) -> Tensor:
        calls = self._state.calls
        if calls and layer.affine is not None and params.numel():
            before = self._state.params.get(layer)
            if before is not None and before.holds(params):
                return params  # those of an injector, used again for another block of samples
            logits = layer.affine.logits(params.detach())
            if layer.affine.counted is not None:
                logits = logits[:, layer.affine.counted]
            raw = _min_and_max(logits)
            # The parameters of all features replace those of earlier passes, which were computed
            # before all features were known.
            several = layer.kind == "autoregressive" and logits.shape[1] > 1
            calls[-1].raw = raw if several else _merged(calls[-1].raw, raw)
            if layer.kind == "injector":
                self._state.params[layer] = Unchanged(params)
        return params

    def record_derivatives(self, log_derivatives: Tensor, *, last: bool = False) -> None:
        calls = self._state.calls
        if calls and log_derivatives.numel():
            log = _min_and_max(log_derivatives.detach())
            calls[-1].log = log if last else _merged(calls[-1].log, log)

    def _is_recording(self, state: _State, density: bool) -> bool:
        return not state.paused and (self.density or not density) and is_watchable()

    def _record(
        self,
        state: _State,
        density: bool,
        call: Call,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        probe: Probe | None,
        replay: Replay | None,
    ) -> None:
        layer = call.layer
        frame = state.frames[-1] if state.frames else None
        run, value = state.run, None
        if frame is None:
            if run is not None and run.density == density:
                value = run.value_of(inputs[0])
            if run is None or value is None:
                run, (value, *_) = self._find_run(state, layer, density, inputs)
            else:
                run.called.add(layer)
        assert run is not None
        before, after = _as_channels_first(layer, inputs), _as_channels_first(layer, outputs)
        masks: list[Mask] = [None] * len(outputs)
        if not run.clean:
            masks = self._spread(layer, run, frame, inputs, before, after, probe, replay)
        last = None
        onsets: list[Onset] = []
        if layer.kind != "reshape":
            first = (value and value.summary_of(inputs[0])) or summarise(before[0])
            last = summarise(after[0])
            crossings = self._crossings(layer, before[0], after[0], (first, last), masks[0], frame)
            if crossings is not None:
                shape = after[0].shape
                if frame is not None:
                    shape = frame.z.shape
                    every = torch.arange(shape[1], device=after[0].device)
                    crossings = crossings.of_channels(every[layer.changed])
                masks[0] = crossings.joined(masks[0], shape)
                onsets = self._onsets(layer, run, crossings, shape)
            self._add(run, density, call, before[0], after[0], (first, last), onsets)
        if frame is not None:
            frame.mask = masks[0]
        else:
            for tensor, z, mask in zip(outputs, after, masks, strict=True):
                run.remember(tensor, z, mask, last)
                last = None  # of the first alone
        if onsets:
            run.clean = False
            self._handle_onsets(state, run, onsets)

    def _spread(
        self,
        layer: Layer,
        run: WatchedRun,
        frame: _Frame | None,
        inputs: Sequence[Tensor],
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        probe: Probe | None,
        replay: Replay | None,
    ) -> list[Mask]:
        """The elements after a layer that earlier crossings can have influenced."""
        if frame is not None:
            masks, sources, shapes = [frame.mask], [frame.z], [frame.z.shape]
        else:
            masks = run.masks_of([run.value_of(each) for each in inputs], before)
            sources, shapes = list(before), [each.shape for each in after]
        return spread(layer, masks, sources, shapes, probe, replay)

    def _find_run(
        self, state: _State, watched: Watched, density: bool, inputs: Sequence[Tensor]
    ) -> tuple[WatchedRun, list[Value | None]]:
        """The run that a call belongs to, and what is known of the inputs.

        A new run begins if this layer was already called in the current run and its input is not
        the output of a layer in the run. (If it is, the flow uses one module in several steps.)
        """
        run = state.run
        if run is not None and run.density == density:
            known = [run.value_of(each) for each in inputs]
            if watched not in run.called or any(each is not None for each in known):
                run.called.add(watched)
                return run, known
        samples = len(_as_channels_first(watched, inputs)[0])
        with self._lock:
            if run is not None:
                self._close(run)
            run = WatchedRun(len(self.runs), self._samples, samples, density)
            self.runs.append(run)
            self._samples += 0 if density else samples
        run.called.add(watched)
        state.run = run
        return run, [None] * len(inputs)

    def _crossings(
        self,
        layer: Layer,
        before: Tensor,
        after: Tensor,
        summaries: tuple[Summary, Summary],
        mask: Mask,
        frame: _Frame | None,
    ) -> Crossings | None:
        limits = self.limits
        smallest = min(limits.growth, limits.magnitude) if layer.conditional else limits.magnitude
        if summaries[1].peak < smallest:  # growth is no more than |out|
            return None
        if mask is not None and frame is not None:
            mask = mask[:, layer.changed]
        peaks = (summaries[0].peaks, summaries[1].peaks)
        whole = frame is None
        return find_crossings(
            layer, before.detach(), after.detach(), peaks, mask, limits, whole=whole
        )

    def _add(
        self,
        run: WatchedRun,
        density: bool,
        call: Call,
        before: Tensor,
        after: Tensor,
        summaries: tuple[Summary, Summary],
        onsets: list[Onset],
    ) -> None:
        """Add a call to the rows, the onsets and the maps."""
        key = (call.layer, density)
        with self._lock:
            row = self._rows.get(key)
            if row is None:
                row = self._rows[key] = _Row(*key)
            row.calls += 1
            row.inputs.add(summaries[0])
            row.outputs.add(summaries[1])
            row.raw, row.log = _merged(row.raw, call.raw), _merged(row.log, call.log)
            if onsets:
                row.onsets += len(onsets)
                run.onsets += onsets
                self.onsets += onsets[: _MOST_ONSETS - len(self.onsets)]
            if run.map_rows is None:  # not closed
                if run.steps == 0:
                    self._keep_map(run, None, before, summaries[0])
                self._keep_map(run, call.layer, after, summaries[1])
            run.steps += 1

    def _onsets(
        self, layer: Layer, run: WatchedRun, crossings: Crossings, shape: torch.Size
    ) -> list[Onset]:
        groups = grouped(crossings, shape[2:])
        chosen = torch.tensor([number for number, _ in groups], device=crossings.index.device)
        sizes = crossings.magnitude.nan_to_num(nan=math.inf)
        columns = (crossings.index, crossings.growth, sizes, crossings.reasons)
        rows = zip(*(column[chosen].tolist() for column in columns), strict=True)
        onsets = []
        for (index, growth, magnitude, reason), (_, elements) in zip(rows, groups, strict=True):
            sample, *position = index
            onsets.append(
                Onset(
                    layer=layer.name,
                    kind=layer.kind,
                    sample=run.first_sample + sample,
                    position=tuple(position),
                    shape=tuple(shape[1:]),
                    growth=growth,
                    magnitude=magnitude,
                    reason=REASONS[reason],
                    elements=elements,
                    step=run.steps,
                    run=run.number,
                )
            )
        return onsets

    def _keep_map(self, run: WatchedRun, layer: Layer | None, z: Tensor, summary: Summary) -> None:
        """Keep maps for :meth:`panel`, up to a limit; without a layer, those of the latents."""
        magnitudes = summary.peaks
        if z.dim() == 2 and z.numel() <= _MOST_FEATURES:
            magnitudes = z.detach().abs()
        size = magnitudes.nbytes
        if self._map_bytes + size <= _MOST_MAP_BYTES:
            self._map_bytes += size
            run.keep(layer, magnitudes)

    def _close(self, run: WatchedRun) -> None:
        self._map_bytes -= run.close()

    def _handle_onsets(self, state: _State, run: WatchedRun, onsets: Sequence[Onset]) -> None:
        first = len(run.onsets) == len(onsets)
        if self.on_explosion == "warn":
            if first:
                warnings.warn(f"The inverse explodes: {onsets[0]}.", ExplosionWarning, stacklevel=2)
        elif self.on_explosion == "raise":
            raise ExplodingInverseError(onsets[0])
        elif self.on_explosion is not None:
            state.paused = True  # the function may call the model
            try:
                for onset in onsets:
                    self.on_explosion(onset)
            finally:
                state.paused = False

    def _record_of(self, row: _Row) -> LayerRecord:
        smallest, largest = row.derivatives or (None, None)
        return LayerRecord(
            name=row.layer.name,
            kind=row.layer.kind,
            library=row.layer.library,
            direction="density" if row.density else "sampling",
            calls=row.calls,
            input_magnitude=row.inputs.magnitude,
            output_magnitude=row.outputs.magnitude,
            input_variance=row.inputs.variance,
            output_variance=row.outputs.variance,
            smallest_derivative=smallest,
            largest_derivative=largest,
            nonfinite_inputs=row.inputs.nonfinite,
            nonfinite_outputs=row.outputs.nonfinite,
            onsets=row.onsets,
        )

    def _nothing_seen(self) -> str:
        return (
            f"No layer of this {self._model_name} was called from latents to data: call the "
            "model's own sampling method within `with monitor:`. log_prob does not count, and code "
            "that is compiled by torch.compile or captured in a CUDA graph cannot be watched."
        )


def _exp(log: float) -> float:
    """exp, or infinity on overflow."""
    return math.inf if log > _LARGEST_LOG else math.exp(log)


def _as_channels_first(watched: Watched, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors in the layout (N, C, \\*S)."""
    if watched.channels_last:
        return [each.reshape(-1, each.shape[-1]) for each in tensors]
    if len(tensors) == 1 and tensors[0].dim() > 1:
        return tensors
    return [each if each.dim() > 1 else each.reshape(-1, 1) for each in tensors]


def _min_and_max(values: Tensor) -> tuple[float, float]:
    ends = torch.aminmax(values)
    return ends.min.item(), ends.max.item()


def _merged(
    one: tuple[float, float] | None, other: tuple[float, float] | None
) -> tuple[float, float] | None:
    if one is None or other is None:
        return one or other
    return (min(one[0], other[0]), max(one[1], other[1]))
