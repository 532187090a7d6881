"""What all tests share: one thread unless a test is about threads, and the backends under test."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
import torch

from conformance.targets import Target, target_params

# The same examples on every run: a failure that comes and goes helps nobody.
hypothesis.settings.register_profile(
    "robustflow", deadline=None, derandomize=True, max_examples=40, print_blob=True
)
hypothesis.settings.load_profile("robustflow")


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=target_params())
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every backend in turn, chosen for the length of the test."""
    with request.param.chosen():
        yield request.param


@pytest.fixture(params=target_params(native=True))
def native_target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every backend but the reference, for what only kernels have or lack."""
    with request.param.chosen():
        yield request.param


@pytest.fixture(params=target_params(each_isa=False))
def device_target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every backend, with its usual instruction set only: for what kernels have no part in."""
    with request.param.chosen():
        yield request.param


@pytest.fixture(params=target_params(native=True, each_isa=False))
def native_device(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Both at once."""
    with request.param.chosen():
        yield request.param
