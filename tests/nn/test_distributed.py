"""A flow under DistributedDataParallel: two processes stay one model, from ActNorm's start on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from robustflow.nn import (
    ActNorm,
    ConditionalAffineInjector,
    ConditionalFlow,
    InvertibleConv1x1,
    LogProb,
    ModifiedRQSplineCoupling,
    RQSplineAutoregressive,
)

RANKS, STEPS = 2, 3
D, CONTEXT = 4, 2
ROWS = (3, 8)  # of each rank's first batch


def new_flow() -> ConditionalFlow:
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        ActNorm(D),
        InvertibleConv1x1(D, lu=False),
        ConditionalAffineInjector(D, CONTEXT, spatial_dims=0, hidden_channels=8),
        ModifiedRQSplineCoupling(D, CONTEXT, spatial_dims=0, hidden_channels=8),
        ActNorm(D),
        RQSplineAutoregressive(D, CONTEXT, hidden_features=8),
    ]
    return ConditionalFlow([layers])


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """Of other means, deviations and sizes on each rank; far from 0, where squares cancel."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    x = torch.randn(ROWS[rank], D, generator=generator)
    context = torch.randn(ROWS[rank], CONTEXT, generator=generator)
    return 1e3 + 2 * rank + (1 + rank) * x, context


def degenerate(rank: int) -> Tensor:
    """A first batch that the ranks have only together: one rank has no rows.

    The first of its channels is constant, the second lacks elements, the third is large.
    """
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(7)) * torch.tensor(
        [0, 1, 1e30]
    )
    rows[:, 0] = 0.3
    rows[1, 1], rows[4, 1] = math.nan, math.inf
    return rows if rank == 0 else rows[:0]


def first_batches(rank: int) -> list[ActNorm]:
    """An ActNorm after an empty batch on all ranks, and one after a degenerate batch too."""
    empty, norm = ActNorm(3), ActNorm(3)
    for each in (empty, norm):
        each(torch.zeros(0, 3))
    norm(degenerate(rank))
    return [empty, norm]


def train(rank: int, folder: str) -> None:
    """One rank: its states after each step and its gradients, saved for the test to compare."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    norms = [norm.state_dict() for norm in first_batches(rank)]
    torch.save(norms, f"{folder}/norms-{rank}.pt")
    flow = new_flow()
    model = DistributedDataParallel(LogProb(flow))
    optimiser = torch.optim.SGD(flow.parameters(), lr=1e-2)
    seen: list[Any] = []
    for step in range(STEPS):
        x, context = batch(rank, step)
        loss = -model(x, context).mean()
        started = {name: value.clone() for name, value in flow.state_dict().items()}
        optimiser.zero_grad()
        loss.backward()
        gradients = {name: p.grad for name, p in flow.named_parameters()}
        optimiser.step()
        ended = {name: value.clone() for name, value in flow.state_dict().items()}
        seen.append((started, gradients, ended, loss.detach()))
    torch.save(seen, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes saved."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(train, (str(folder),), nprocs=RANKS)
    return folder


def test_a_first_batch_of_all_ranks_counts_as_one(folder: Path) -> None:
    alone = ActNorm(3)
    alone(degenerate(0))
    for rank in range(RANKS):
        empty, norm = torch.load(folder / f"norms-{rank}.pt")
        assert not empty["initialised"] and not empty["log_scale"].any()
        torch.testing.assert_close(norm, alone.state_dict())
    assert alone.log_scale[0] == 0 and bool(alone.log_scale.isfinite().all())


def test_two_processes_train_one_flow(folder: Path) -> None:
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]
    for one, other in zip(*ranks, strict=True):
        torch.testing.assert_close(one[:3], other[:3], atol=0, rtol=0)  # the same bits
        assert one[3] != other[3]  # of different data

    # ActNorm starts from all ranks' rows together, as one process with all rows would.
    started = ranks[0][0][0]
    rows = torch.cat([batch(rank, 0)[0] for rank in range(RANKS)]).double()
    mean, deviation = rows.mean(dim=0), rows.std(dim=0, correction=0)
    norm = "levels.0.layers.0."
    assert bool(started[norm + "initialised"])
    torch.testing.assert_close(started[norm + "bias"].double(), -mean, atol=0, rtol=1e-6)
    torch.testing.assert_close(
        started[norm + "log_scale"].double(), -deviation.log(), atol=1e-4, rtol=0
    )
    alone = new_flow()
    alone(rows.float(), torch.cat([batch(rank, 0)[1] for rank in range(RANKS)]))
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(started[name], value, atol=1e-3, rtol=1e-5)

    # And one process's mean loss over the ranks has the gradient that each of them got.
    alone.load_state_dict(started)
    losses = [-alone.log_prob(*batch(rank, 0)).mean() for rank in range(RANKS)]
    (sum(losses, torch.zeros(())) / RANKS).backward()
    for name, parameter in alone.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(ranks[0][0][1][name], parameter.grad, atol=1e-4, rtol=1e-3)
