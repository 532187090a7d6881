"""The shifts that conditioners make: observed, they complete the growth bound with a number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from robustflow import nn as rnn
from robustflow.diagnostics import certify
from tests.compat.affine_flows import KINDS
from tests.diagnostics.describe.test_libraries import GAINS, largest_params, made
from tests.diagnostics.test_certify import block_rms, shifts_of, two_levels

BOUNDED = [name for name in KINDS if math.isfinite(GAINS[name])]


@pytest.mark.parametrize("transform", [rnn.ModifiedRQSpline(), rnn.Affine()], ids=str)
def test_they_are_those_that_the_conditioners_make(transform: Any) -> None:
    flow = two_levels(transform).double().eval()
    contexts = 10 * torch.randn(3, 3, 4, 4).double()
    latents = torch.randn(3, 2, 4, 4).double(), torch.randn(3, 8, 2, 2).double()

    def run(model: Any, contexts: Tensor) -> Any:
        return model.inverse(latents, contexts)

    with shifts_of(flow) as expected, torch.no_grad():
        x, _ = run(flow, contexts)
    certificate = certify(flow)
    assert certificate.shifts(contexts, run=run) == expected
    growth = certificate.growth.given(expected)
    norm = block_rms(latents[0], 2).square() / 2 + latents[1].square().sum(dim=1) / 16
    assert not growth.shifts
    assert bool((block_rms(x, 2) <= growth.A * norm.sqrt() + growth.B).all())


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("name", BOUNDED)
def test_they_complete_every_library_s_bound(name: str, converted: bool) -> None:
    kind, model = KINDS[name], made(name)
    if converted:
        context = torch.randn(64, 1) if kind.conditional else None
        kind.convert(model, 2 * torch.randn(64, 2), context)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    model.double()
    certificate = certify(model)
    contexts, z = 10 * torch.randn(32, 1).double(), 3 * torch.randn(32, 2).double()
    given = contexts if kind.conditional else None
    found: list[Tensor] = []

    def run(model: Any, contexts: Tensor) -> None:
        found.append(kind.inverse(model, z, given))

    shifts = certificate.shifts(contexts, run=run)
    assert set(shifts) == set(certificate.growth.shifts)
    growth = certificate.growth.given(shifts)
    norm, size = (each.square().mean(dim=1).sqrt() for each in (z, found[0]))
    assert bool((size <= growth.A * norm + growth.B).all())
    if not converted:  # what the networks made is no smaller, and is their largest output at most
        with largest_params(model) as largest, torch.no_grad():
            kind.inverse(model, z, given)
        for layer, shift in shifts.items():
            assert 0 < shift <= largest[layer] * (1 + 1e-6)


def test_a_transform_alone_makes_none() -> None:
    with pytest.raises(ValueError, match="A transform alone"):
        certify(rnn.Affine()).shifts(torch.randn(2, 3))
    with pytest.raises(TypeError, match="a tensor with a context a row"):
        certify(rnn.Injector(2, 3, spatial_dims=0)).shifts(3)  # type: ignore[arg-type]
