"""Searches conditions for the worst gain of a trained model, by gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustflow._checks import check_number, check_positive
from robustflow._modes import evaluating
from robustflow.diagnostics._gains import GainWatcher, largest_gains, watching
from robustflow.diagnostics._sampling import Run, check_contexts, sample_mean

# A gain computed in float32 may exceed a bound by this factor.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Found:
    """The search's result for one layer.

    Attributes:
        layer: its name.
        kind: its kind.
        start: its largest inverse derivative over the contexts as they were given.
        found: the largest over all contexts that the search tried.
        bound: the certificate's, which holds for every condition; infinite where it has none.
    """

    layer: str
    kind: str
    start: float
    found: float
    bound: float


@dataclass(frozen=True)
class SearchResult:
    """What :meth:`Certificate.search` found; ``str()`` of it is a table.

    Attributes:
        layers: every layer with an inverse derivative, in the order of sampling.
        contexts: the worst context found from each given one, in the form of the argument.
        gains: (N,), the largest inverse derivative of any layer at those.
    """

    layers: tuple[Found, ...]
    contexts: Any
    gains: Tensor

    @property
    def worst(self) -> Found:
        """The layer with the largest gain that was found."""
        return max(self.layers, key=lambda each: each.found)

    @property
    def beaten(self) -> tuple[Found, ...]:
        """Layers whose bound was exceeded by more than rounding; there must be none."""
        return tuple(each for each in self.layers if each.found > each.bound * (1 + _ROUNDING))

    def to_dict(self) -> dict[str, Any]:
        """The layers, in plain types."""
        return {"layers": [asdict(each) for each in self.layers]}

    def __str__(self) -> str:
        head = ("layer", "kind", "given", "found", "bound")
        rows = [head] + [
            (each.layer, each.kind, *(f"{x:.5g}" for x in (each.start, each.found, each.bound)))
            for each in self.layers
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        worst = self.worst
        summary = (
            f"Worst inverse derivative: {worst.found:.5g} in {worst.layer or worst.kind}, "
            f"{worst.start:.5g} at the contexts as given; no condition passes {worst.bound:.5g}."
        )
        return "\n".join([summary, *lines])


def search(
    model: nn.Module,
    bound_of: Callable[[str], float],
    contexts: Any,
    steps: int,
    *,
    step_size: float | None = None,
    within: tuple[float, float] | None = None,
    run: Run | None = None,
) -> SearchResult:
    """See :meth:`Certificate.search`; ``bound_of`` gives a layer's bound by its name."""
    starts = check_contexts("contexts", contexts)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}.")
    if step_size is not None:
        check_positive("step_size", step_size)
    if within is not None:
        _check_within(within, starts)
    if run is not None and not callable(run):
        raise TypeError(f"run must be called as run(model, contexts), got {type(run).__name__}.")
    with evaluating(model), watching(model) as watcher, torch.enable_grad():
        climb = _Climb(model, watcher, contexts, run or sample_mean)
        climb.go(steps, step_size, within)
    layers = tuple(
        Found(name, watcher.kinds[name], start, climb.found[name], bound_of(name))
        for name, start in climb.start.items()
    )
    return SearchResult(layers, climb.shaped(climb.best), climb.best_gain.exp())


class _Climb:
    """Ascent of the largest log gain of each context, all of them side by side."""

    def __init__(self, model: nn.Module, watcher: GainWatcher, contexts: Any, run: Run) -> None:
        self.model, self.watcher, self.run = model, watcher, run
        self.single = isinstance(contexts, Tensor)
        self.kind = type(contexts)
        starts = [contexts] if self.single else list(contexts)
        self.now = [each.detach().clone().requires_grad_() for each in starts]
        self.best = [each.detach().clone() for each in starts]
        self.best_gain = torch.empty(0)
        self.start: Mapping[str, float] = {}
        self.found: dict[str, float] = {}

    def shaped(self, tensors: list[Tensor]) -> Any:
        """The contexts in the form of the argument."""
        return tensors[0] if self.single else self.kind(tensors)

    def go(self, steps: int, step_size: float | None, within: tuple[float, float] | None) -> None:
        groups = [{"params": [each], "lr": step_size or _step_size(each)} for each in self.now]
        optimizer = torch.optim.Adam(groups, maximize=True)
        for step in range(steps + 1):
            gains = self._gains()
            if step == steps:
                break
            grads: tuple[Tensor | None, ...] = (None,)
            if gains.requires_grad:
                grads = torch.autograd.grad(gains.sum(), self.now, allow_unused=True)
            if all(grad is None for grad in grads):
                raise ValueError(
                    "The layers' gains do not depend on the contexts: the model must use them, and "
                    "run must neither detach them nor work without gradients, as "
                    "ConditionalFlow.sample does: call rsample."
                )
            for each, grad in zip(self.now, grads, strict=True):
                # One context whose gradient overflows must not stop the others.
                each.grad = None if grad is None else grad.nan_to_num(0.0, 0.0, 0.0)
            optimizer.step()
            if within is not None:
                with torch.no_grad():
                    for each in self.now:
                        each.clamp_(*within)

    def _gains(self) -> Tensor:
        """The objective, (N,): a soft maximum over the layers; records the largest so far."""
        self.watcher.log_gains.clear()
        self.run(self.model, self.shaped(self.now))
        each = largest_gains(self.watcher, len(self.now[0]))
        logs = self.watcher.log_gains
        self._note({name: _largest(value) for name, value in logs.items()}, each.detach())
        return torch.logsumexp(torch.where(each.isfinite(), each, 0.0), dim=0)

    def _note(self, gains: Mapping[str, float], each: Tensor) -> None:
        if not self.start:
            self.start = gains
        for name, gain in gains.items():
            self.found[name] = max(gain, self.found.get(name, 0.0))
        largest = torch.where(each.isfinite(), each, -math.inf).amax(dim=0)
        if not len(self.best_gain):
            self.best_gain = largest
            return
        better = largest > self.best_gain
        self.best_gain = torch.where(better, largest, self.best_gain)
        for kept, now in zip(self.best, self.now, strict=True):
            kept[better] = now.detach()[better]


def _largest(logs: Tensor) -> float:
    finite = logs.detach()[logs.detach().isfinite()]
    return math.exp(float(finite.max())) if len(finite) else 0.0


def _step_size(contexts: Tensor) -> float:
    """A twentieth of their root mean square."""
    size = float(contexts.detach().square().mean().sqrt())
    return 0.05 * size if size > 0 else 0.05


def _check_within(within: tuple[float, float], starts: tuple[Tensor, ...]) -> None:
    low, high = within
    check_number("within[0]", low)
    check_number("within[1]", high)
    if not low < high:
        raise ValueError(f"within must be (lowest, highest) value of a context, got {within!r}.")
    if any(bool(((each < low) | (each > high)).any()) for each in starts):
        raise ValueError(f"contexts must lie within {within!r}, where the search is to stay.")
