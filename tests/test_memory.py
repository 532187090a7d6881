"""`retain_memory` and `empty_cache`: what they change is counted in page faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import robustflow
import robustflow.nn as rnn
from robustflow.fused import is_available
from robustflow.memory import allocator

# Prints the page faults of filling one more tensor of 40 MB.
FAULTS = """
import resource, sys, torch
import robustflow
if sys.argv[1] == "retain":
    assert robustflow.retain_memory()
for _ in range(12):  # glibc has a block of the right size and alignment after at most six
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


# Prints the pages that the layers keep, and the page faults of a step with and without them.
STEPS = """
import resource, torch
import robustflow
import robustflow.nn as rnn
flow = rnn.ConditionalFlow(
    [[rnn.RQSplineCoupling(6, spatial_dims=0, hidden_channels=64) for _ in range(8)]]
)
x = torch.randn(4096, 6)

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    flow.log_prob(x).mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(8):
    faults_of_a_step()
warm = min(faults_of_a_step() for _ in range(5))
kept = robustflow.empty_cache() // resource.getpagesize()
print(kept, warm, faults_of_a_step())
"""


# Prints what the second call of empty_cache returns, and by how much the process shrinks, in MiB.
SECOND_ROUND = """
import torch
import robustflow
import robustflow.nn as rnn
flow = rnn.ConditionalFlow(
    [[rnn.RQSplineCoupling(6, spatial_dims=0, hidden_channels=64) for _ in range(8)]]
)
x = torch.randn(4096, 6)

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

for _ in range(2):
    for _ in range(4):
        flow.log_prob(x).mean().backward()
    before = resident()
    freed = robustflow.empty_cache() / 2**20
print(freed, before - resident())
"""

# One thread trains while another forks; every child empties its cache.
FORKS = """
import os, signal, threading, torch
import robustflow
import robustflow.nn as rnn
torch.set_num_threads(1)
layer = rnn.RQSplineCoupling(6, spatial_dims=0, hidden_channels=64)
x = torch.randn(1000, 6)

def train():
    while not done.is_set():
        layer(x)[1].sum().backward()

done = threading.Event()
thread = threading.Thread(target=train, daemon=True)
thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        robustflow.empty_cache()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
done.set()
thread.join()
"""


def numbers_of(script: str, *arguments: str) -> list[float]:
    """The numbers that a script prints in a fresh process, with one thread."""
    code = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        code, check=True, stdout=subprocess.PIPE, text=True, env=environment, timeout=120
    )
    return [float(number) for number in output.stdout.split()]


@pytest.mark.skipif(allocator() != "glibc", reason="retain_memory is for glibc's allocator")
def test_a_freed_tensors_memory_is_used_again() -> None:
    (kept,), (default,) = numbers_of(FAULTS, "retain"), numbers_of(FAULTS, "leave")
    assert kept < 100, "a retained tensor's pages should be in place already"
    # Pages of 4 KiB, or fewer and larger ones where the system hands those out.
    assert default > kept


def test_the_result_says_whether_it_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustflow.memory.allocator", lambda: "jemalloc")
    retention = robustflow.retain_memory()
    assert not retention and not retention.applied
    assert "jemalloc" in retention.reason


@pytest.mark.skipif(not is_available(), reason="robustflow._autograd is not built")
@pytest.mark.skipif(allocator() != "glibc", reason="other allocators keep their memory themselves")
def test_fused_layers_keep_the_memory_of_a_training_step() -> None:
    kept, warm, emptied = numbers_of(STEPS)
    assert kept > 5000, "eight layers store more than 20 MB for their backward pass"
    assert warm < kept / 10, "the pages of the step before should be in place"
    assert emptied > kept / 2, "without them, a step should have new pages"


@pytest.mark.skipif(not is_available(), reason="robustflow._autograd is not built")
def test_kept_memory_is_not_given_out_twice() -> None:
    torch.manual_seed(0)
    layer = rnn.RQSplineCoupling(6, spatial_dims=0, hidden_channels=64)
    inputs = [torch.randn(batch, 6) for batch in (2000, 1500, 2000, 900)]

    def gradients(batches: list[torch.Tensor]) -> list[torch.Tensor]:
        """Of every batch, whose graphs all exist before the first backward pass."""
        losses = [layer(x)[1].sum() for x in batches]
        weights = list(layer.parameters())
        return [g for loss in losses for g in torch.autograd.grad(loss, weights)]

    alone = [g for x in inputs for g in gradients([x])]
    for ours, expected in zip(gradients(inputs), alone, strict=True):
        assert torch.equal(ours, expected)
    assert robustflow.empty_cache() > 0
    assert robustflow.empty_cache() == 0
    for ours, expected in zip(gradients(inputs), alone, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.skipif(not is_available(), reason="robustflow._autograd is not built")
@pytest.mark.skipif(allocator() != "glibc", reason="it trims the heap of glibc")
def test_a_second_empty_cache_shrinks_the_process_too() -> None:
    freed, shrunk = numbers_of(SECOND_ROUND)
    assert freed > 20
    assert shrunk > freed / 2


@pytest.mark.skipif(not is_available(), reason="robustflow._autograd is not built")
def test_a_process_forked_beside_a_training_thread_does_not_wait_for_the_cache() -> None:
    assert numbers_of(FORKS) == []
