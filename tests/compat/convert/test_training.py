"""Affine flows that were trained, converted and trained on: as likely, and nothing explodes.

Data of standard deviation 3 whose width grows with the condition, which teaches the affine scales
to fall with it: outside the conditions of the training data they go on falling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustflow.compat.convert import RescaledModifiedRQSpline
from tests.compat.affine_flows import KINDS, Kind

LAYERS, BATCH = 8, 256
AFFINE_UPDATES, MORE_UPDATES = 200, 150
MEANS = torch.tensor([[-4.0, 0.0], [0.0, 2.0], [3.5, -1.0]])
DEVIATIONS = torch.tensor([[0.8, 1.6], [1.0, 0.5], [0.7, 1.5]])
ANGLE = torch.tensor(0.6)
ROTATION = torch.stack([ANGLE.cos(), -ANGLE.sin(), ANGLE.sin(), ANGLE.cos()]).view(2, 2)
REACH = 32.0  # how many times further than in training the search looks


class Data:
    """x (N, 2) of standard deviation about 3, and what it depends on, (N, 2), or None."""

    def __init__(self, conditional: bool) -> None:
        self.conditional = conditional
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, count: int) -> tuple[Tensor, Tensor | None]:
        kind = torch.randint(3, (count,), generator=self.generator)
        noise = torch.randn(count, 2, generator=self.generator)
        x = (MEANS[kind] + DEVIATIONS[kind] * noise) @ ROTATION.T
        if not self.conditional:
            return x, None
        context = 2 * torch.rand(count, 2, generator=self.generator) - 1
        width = 0.1 + 0.9 * context.abs().amax(dim=1, keepdim=True) ** 2
        return 1.5 * width * x + 2 * context, context

    @staticmethod
    def best(x: Tensor) -> float:
        """The true negative log-likelihood of unconditional x."""
        each = torch.distributions.Normal(MEANS, DEVIATIONS).log_prob((x @ ROTATION)[:, None])
        return -float((each.sum(dim=2).logsumexp(dim=1) - math.log(3)).mean())


def train(kind: Kind, model: nn.Module, data: Data, updates: int) -> None:
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    model.train()
    for _ in range(updates):
        loss = -kind.log_prob(model, *data(BATCH)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def worst(kind: Kind, model: nn.Module, conditional: bool) -> float:
    """The largest value that unfamiliar conditions, or latents, find."""
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(4000, 2, generator=generator)
    far = 2 * torch.rand(4000, 2, generator=generator) - 1
    far = far / far.abs().amax(dim=1, keepdim=True) * REACH
    found = kind.inverse(model, z if conditional else far, far if conditional else None)
    return float(found.abs().nan_to_num(nan=math.inf).max())


@contextmanager
def each_layer_bounded(model: nn.Module) -> Iterator[list[float]]:
    """Check every inverse against its bound; yields the share of the bound that each took."""
    shares: list[float] = []

    def check(spline: Any, args: Any, kwargs: Any, output: Any) -> None:
        z, params = args
        assert kwargs["inverse"] != spline.inverted  # from latents to data
        last = spline.channel_dim == -1
        own = params[..., 3] if last else params.unflatten(1, (-1, 4))[:, :, 3]

        def per_channel(constant: Tensor) -> Tensor:
            return constant if last else constant.view(-1, *[1] * (z.dim() - 2))

        half, scale = per_channel(spline.half_width), per_channel(torch.exp(-spline.log_scale))
        unmoved = (z - own * half - per_channel(spline.shift)) * scale
        rounding = 1e-5 * (z.abs() + (own * half).abs()) * scale
        moved = ((output[0] - unmoved).abs() - rounding) / (2 * half * scale)
        shares.append(float(moved.max()))

    handles = [
        module.register_forward_hook(check, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, RescaledModifiedRQSpline)
    ]
    yield shares
    for handle in handles:
        handle.remove()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "conditional"),
    [
        ("robustflow", True),
        ("nflows coupling", True),
        ("normflows masked", False),
        ("FrEIA GLOW", True),
        ("zuko coupling", True),
        ("SRFlow", True),
    ],
)
def test_as_likely_as_the_affine_flow_and_no_explosion(name: str, conditional: bool) -> None:
    kind, data = KINDS[name], Data(conditional)
    torch.manual_seed(0)
    # A step of SRFlow's kind is two layers, an injector and a coupling.
    steps = LAYERS // 2 if name == "SRFlow" else LAYERS
    model = kind.make(steps, 2 if conditional else 0)
    held_out = data(4000)
    assert held_out[0].std(dim=0).max() == pytest.approx(3, abs=0.2)

    def nll() -> float:
        with torch.no_grad():
            return -float(kind.log_prob(model, *held_out).mean())

    train(kind, model, data, AFFINE_UPDATES)
    affine, exploded = nll(), worst(kind, model, conditional)
    report = kind.convert(model, *data(1000))
    assert not report.kept and len(report.replaced) >= LAYERS
    train(kind, model, data, MORE_UPDATES)
    converted = nll()
    with each_layer_bounded(model) as shares:
        largest = worst(kind, model, conditional)

    assert converted < 1.02 * affine
    if not conditional:
        assert affine < 1.05 * Data.best(held_out[0])  # it was trained
    assert len(shares) == len(report.replaced) and max(shares) <= 1
    # Further conditions shift further, in proportion; nothing is multiplied.
    assert largest < 3 * REACH * float(held_out[0].abs().max())
    assert exploded > 100 * largest
