"""Fused kernels against eager and compiled PyTorch, on tensors that a model really had."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustflow.nn import Affine, ModifiedRQSpline

Transform = Callable[..., tuple[Tensor, Tensor]]


def eager_modified_rq(x: Tensor, params: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """The textbook formula without masks, as one would write it in float32 PyTorch.

    The modified RQ spline with :class:`~robustflow.nn.ModifiedRQSpline`'s defaults:
    x (N, C, H, W), params (N or 1, C*4, H, W) -> y, logabsdet (N,).
    """
    settings = ModifiedRQSpline()
    left, right = settings.interval
    free, smallest = 1 - 2 * settings.min_bin, settings.min_bin
    w, h, d, shift = params.unflatten(1, (-1, 4)).unbind(2)
    middle_x = left + (right - left) * (smallest + free * torch.sigmoid(w))
    middle_y = left + (right - left) * (smallest + free * torch.sigmoid(h))
    derivative = torch.exp(d / (1 + d.abs() / -math.log(settings.min_derivative)))

    value = x - shift if inverse else x
    outside = (value <= left) | (value >= right)
    inside = torch.where(outside, 0.0, value)
    upper = inside >= (middle_y if inverse else middle_x)
    x0, y0 = torch.where(upper, middle_x, left), torch.where(upper, middle_y, left)
    width = torch.where(upper, right - middle_x, middle_x - left)
    height = torch.where(upper, right - middle_y, middle_y - left)
    d0, d1 = torch.where(upper, derivative, 1.0), torch.where(upper, 1.0, derivative)
    slope = height / width
    excess = d0 + d1 - 2 * slope
    if inverse:
        offset = inside - y0
        a = offset * excess + height * (slope - d0)
        b = height * d0 - offset * excess
        c = -slope * offset
        theta = 2 * c / (-b - torch.sqrt((b * b - 4 * a * c).clamp(min=0)))
    else:
        theta = (inside - x0) / width
    product = theta * (1 - theta)
    denominator = slope + excess * product
    numerator = d1 * theta**2 + 2 * slope * product + d0 * (1 - theta) ** 2
    logabsdet = 2 * torch.log(slope) + torch.log(numerator) - 2 * torch.log(denominator)
    logabsdet = torch.where(outside, 0.0, logabsdet).flatten(1).sum(dim=1)
    if inverse:
        return torch.where(outside, value, x0 + theta * width), -logabsdet
    y = y0 + height * (slope * theta**2 + d0 * product) / denominator
    return torch.where(outside, value, y) + shift, logabsdet


def eager_affine(x: Tensor, params: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """SRFlow's affine: x (N, C, H, W), params (N or 1, C*2, H, W) -> y, logabsdet (N,)."""
    shift, logit = params.unflatten(1, (-1, 2)).unbind(2)
    scale = torch.sigmoid(logit + 2) + Affine().eps
    logabsdet = torch.log(scale).expand_as(x).flatten(1).sum(dim=1)
    if inverse:
        return x / scale - shift, -logabsdet
    return (x + shift) * scale, logabsdet


@dataclass(frozen=True)
class Timing:
    """One row of the table; seconds are medians.

    Attributes:
        transform: name of the transform.
        task: "training" (forward and backward) or "sampling" (the inverse, without gradients).
        elements: elements of x.
        robustflow, eager: seconds a call.
        compiled: seconds, or None where torch.compile does not work here.
    """

    transform: str
    task: str
    elements: int
    robustflow: float
    eager: float
    compiled: float | None


def measure(
    name: str, transform: Transform, eager: Transform, x: Tensor, params: Tensor, *, training: bool
) -> Timing:
    """Time forward and backward (``training``), or the inverse without gradients (sampling)."""
    compiled = torch.compile(eager, dynamic=False)
    run = _training_step if training else _sampling_step
    candidates = {"robustflow": run(transform, x, params), "eager": run(eager, x, params)}
    try:
        candidates["compiled"] = run(compiled, x, params)
        candidates["compiled"]()
    except Exception:  # no C++ compiler at run time, or an unsupported Python: said in the table
        candidates.pop("compiled")
    seconds = _alternate(candidates)
    return Timing(
        name,
        "training" if training else "sampling",
        x.numel(),
        seconds["robustflow"],
        seconds["eager"],
        seconds.get("compiled"),
    )


def _training_step(transform: Transform, x: Tensor, params: Tensor) -> Callable[[], None]:
    x, params = x.detach().requires_grad_(), params.detach().requires_grad_()
    cotangents = (torch.ones_like(x), torch.ones(x.shape[0]))

    def step() -> None:
        torch.autograd.grad(transform(x, params), (x, params), cotangents)

    return step


def _sampling_step(transform: Transform, x: Tensor, params: Tensor) -> Callable[[], None]:
    @torch.no_grad()
    def step() -> None:
        transform(x, params, inverse=True)

    return step


def _alternate(
    candidates: dict[str, Callable[[], None]], rounds: int = 15, seconds: float = 0.005
) -> dict[str, float]:
    """Median seconds a call, the candidates taking turns, each turn of about ``seconds``."""
    repeats = {}
    for name, call in candidates.items():
        call()
        started = time.perf_counter()
        call()
        repeats[name] = max(1, round(seconds / (time.perf_counter() - started)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - started) / repeats[name])
    return {name: statistics.median(values) for name, values in times.items()}
