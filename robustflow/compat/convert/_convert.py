"""The conversion: find the layers, observe a calibration batch, check, and only then change."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

from robustflow._modes import evaluating
from robustflow.compat.adapters import adapters as adapters_of
from robustflow.compat.convert._affine import AffineLayer, Splines
from robustflow.compat.convert._head import PLAIN, HeadWatch
from robustflow.compat.convert._report import ConversionReport, Kept, Replaced

Run = Callable[[Any, Any], Any]

_WRAPPERS = {
    "DataParallel": "model.module",
    "DistributedDataParallel": "model.module",
    "OptimizedModule": "model._orig_mod, what torch.compile was given,",
}
_TARGETS = ("modified_rq_spline",)


@torch.inference_mode(False)  # parameters made in inference mode cannot be trained
def convert_affine(
    model: nn.Module,
    calibration_batch: Any,
    to: str = "modified_rq_spline",
    *,
    run: Run | None = None,
) -> ConversionReport:
    """Replace a trained model's affine couplings by modified RQ splines, whose inverse is bounded.

    For affine layers of nflows, glasflow, normflows, FrEIA, zuko, :mod:`robustflow.nn` and
    :mod:`robustflow.compat.srflow`. Each becomes, in place, a constant scale and shift a channel
    followed by the modified RQ spline (:class:`RescaledModifiedRQSpline`). Scale and shift start
    at the affine's means over the calibration batch (of the log-scale) and are parameters; the
    box holds the central 99 % of the values that come out of them, and a fifth more. The
    conditioners keep all their weights except those of the last layer. That layer is replaced by
    one of zeros with 4 outputs for every 2. So the model begins as the affine one without its
    dependence on the condition. Fine-tune it with a new optimiser, because the old one holds
    parameters that are gone.

    An error leaves the model unchanged. A second call finds nothing to replace. Weights of a
    converted model load into one that was converted alike. The model runs twice, in evaluation
    mode and without gradients: before the conversion to calibrate, after it as a check.

    Args:
        model: a trained model, on any device; changed in place. Layers that occur twice in it
            stay one layer.
        calibration_batch: a batch of training data, a few hundred samples or more: what the model
            is called with, a tensor, a sequence of arguments or a dictionary of them. It must go
            from data to latents.
        to: ``"modified_rq_spline"``.
        run: how to call the model: ``run(model, calibration_batch)``. By default ``log_prob`` of
            the arguments where the model has it, for a zuko flow ``model(c).log_prob(x)`` with the
            arguments x and c, and else the model itself.

    Returns:
        What was replaced, and which affine layers were kept, with the reason.

    Raises:
        TypeError, ValueError: arguments of the wrong kind; the model is wrapped by torch.compile
            or for several devices.

    Source: the spline of Hong, Park and Chun, ICCV 2023 (arXiv:2212.04319); the constant scale is
    ours, since the spline alone cannot rescale data.

    Example:
        >>> import robustflow
        >>> from robustflow import nn as rnn
        >>> steps = [rnn.flow_step(2, 1, rnn.Affine(), spatial_dims=0) for _ in range(2)]
        >>> flow = rnn.ConditionalFlow([sum(steps, [])])
        >>> x, context = torch.randn(256, 2), torch.randn(256, 1)
        >>> report = robustflow.convert_affine(flow, (x, context))
        >>> len(report.replaced), len(report.kept)
        (4, 0)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    for wrapper, inner in _WRAPPERS.items():
        if type(model).__name__ == wrapper:
            raise ValueError(
                f"model is wrapped as {wrapper}: convert {inner} and wrap it anew, since the "
                "wrapper holds on to the layers as they were."
            )
    if to not in _TARGETS:
        raise ValueError(f"to must be one of {', '.join(map(repr, _TARGETS))}, got {to!r}.")
    if run is not None and not callable(run):
        raise TypeError(f"run must be called as run(model, batch), got {type(run).__name__}.")
    run = run or _default_run
    adapters = adapters_of(__name__.rpartition(".")[0])
    layers, reasons = _find(model, adapters)
    if layers:
        _calibrate(model, layers, adapters, lambda: run(model, calibration_batch))
        _set_aside(model, layers, reasons)
    splines = {name: layer.splines() for name, layer in layers.items()}
    if layers:
        with _undone_on_error(layers.values()), evaluating(model), torch.no_grad():
            for head in {head for layer in layers.values() for head in layer.heads.values()}:
                head.remake()
            for name, layer in layers.items():
                layer.convert(splines[name])
            run(model, calibration_batch)
    return _report(layers, splines, reasons)


def _find(
    model: nn.Module, adapters: Sequence[Any]
) -> tuple[dict[str, AffineLayer], dict[str, Kept]]:
    """The affine layers by qualified name, and the reasons of those that stay."""
    layers: dict[str, AffineLayer] = {}
    reasons: dict[str, Kept] = {}
    for name, module in model.named_modules():
        for adapter in adapters:
            outcome = adapter.find(module)
            if isinstance(outcome, str):
                reasons[name] = Kept(name, type(module).__name__, outcome)
            elif outcome is not None:
                layers[name] = outcome
            if outcome is not None:
                break
    return layers, reasons


def _calibrate(
    model: nn.Module,
    layers: Mapping[str, AffineLayer],
    adapters: Sequence[ModuleType],
    run: Callable[[], Any],
) -> None:
    kinds = (*PLAIN, *(kind for adapter in adapters for kind in adapter.HEAD_KINDS))
    watch = HeadWatch((layer.module for layer in layers.values()), kinds)
    begun: list[AffineLayer] = []
    try:
        for layer in layers.values():
            begun.append(layer)
            layer.begin(watch)
        with evaluating(model), torch.no_grad():
            run()
    finally:
        watch.close()
        for layer in begun:
            layer.end()
    for layer in layers.values():
        layer.complete()


def _set_aside(model: nn.Module, layers: dict[str, AffineLayer], reasons: dict[str, Kept]) -> None:
    """Move the layers that cannot be converted from ``layers`` to ``reasons``."""

    def keep(name: str, reason: str) -> None:
        reasons[name] = Kept(name, layers.pop(name).kind, reason)

    for name, layer in list(layers.items()):
        if layer.obstacle is not None:
            keep(name, layer.obstacle)
    changed = True
    while changed:  # a layer that stays may share its last layer with others
        changed = False
        for name, layer in list(layers.items()):
            for head, size in layer.heads.items():
                users = [other for other in reasons if head in model.get_submodule(other).modules()]
                users += [
                    other for other, its in layers.items() if its.heads.get(head, size) != size
                ]
                if users:
                    keep(name, f"its conditioner's last layer is that of {users[0]}, too")
                    changed = True
                    break


@contextmanager
def _undone_on_error(layers: Any) -> Iterator[None]:
    """On an error, restore the layers and everything in them."""
    modules = [module for layer in layers for module in layer.module.modules()]
    before = [(module, type(module), _copy(module.__dict__)) for module in modules]

    def undo() -> None:
        for module, kind, attributes in before:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(attributes)

    with ExitStack() as on_error:
        on_error.callback(undo)
        yield
        on_error.pop_all()


def _copy(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a module, with copies of its dictionaries of children and tensors."""
    return {
        name: value.copy() if name in ("_modules", "_parameters", "_buffers") else value
        for name, value in attributes.items()
    }


def _default_run(model: Any, batch: Any) -> Any:
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    if isinstance(batch, Mapping):
        kwargs = batch
    elif isinstance(batch, (tuple, list)):
        args = batch
    else:
        args = (batch,)
    if "zuko" in sys.modules:
        from robustflow.compat.convert import zuko

        if zuko.runs(model):
            return zuko.run(model, *args, **kwargs)
    log_prob = getattr(model, "log_prob", None)
    return (log_prob if callable(log_prob) else model)(*args, **kwargs)


def _report(
    layers: Mapping[str, AffineLayer], splines: Mapping[str, Splines], kept: Mapping[str, Kept]
) -> ConversionReport:
    replaced = [
        Replaced(
            ".".join(filter(None, (name, part))),
            *layer.names,
            spline.log_scale.numel(),
            (
                float((spline.centre - spline.half_width).min()),
                float((spline.centre + spline.half_width).max()),
            ),
            float(spline.log_scale.detach().mean()),
        )
        for name, layer in layers.items()
        for part, spline in splines[name].items()
    ]
    return ConversionReport(tuple(replaced), tuple(kept.values()))
