"""What all tests share: one thread unless a test is about threads, the backends under test, and
how tests that need a GPU are run, or left out."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import torch

from robustflow.fused import FusedCall
from tests.conformance.targets import Target, target_params
from tests.support import gpu_summary, run_summary, workers

# The same examples on every run, without a time limit: a failure must be reproducible.
hypothesis.settings.register_profile(
    "robustflow",
    deadline=None,
    derandomize=True,
    max_examples=40,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("robustflow")


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(params=target_params())
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every backend in turn, chosen for the length of the test."""
    with request.param.chosen():
        yield request.param


@pytest.fixture(params=target_params(native=True))
def native_target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every backend except the reference, for properties of kernels."""
    with request.param.chosen():
        yield request.param


@pytest.fixture(params=target_params(each_isa=False))
def device_target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every backend, with its usual instruction set only: for properties outside the kernels."""
    with request.param.chosen():
        yield request.param


@pytest.fixture(params=target_params(native=True, host=True))
def native_host(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every kernel that serves CPU tensors, for what only a CPU has: threads, guard pages."""
    with request.param.chosen():
        yield request.param


@pytest.fixture(params=target_params(native=True, each_isa=False))
def native_device(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Both at once."""
    with request.param.chosen():
        yield request.param


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU, tests that need one are named in one line, unless they were asked for."""
    gpu = [item for item in items if item.get_closest_marker("gpu") is not None]
    run_summary.of(config).gpu_tests = {item.nodeid for item in gpu}
    if gpu and not torch.cuda.is_available() and "gpu" not in config.option.markexpr:
        items[:] = [item for item in items if item.get_closest_marker("gpu") is None]
        config.hook.pytest_deselected(items=gpu)
    items[:] = workers.own_shard(items)
    if workers.is_xdists(config):
        slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
        items.sort(key=lambda item: item.path not in slow)  # or one process would end with them
        shared = "needs a GPU to itself, and pytest-xdist's processes share it: run `pytest -m gpu`"
        for item in filter(workers.is_alone, items):
            item.add_marker(pytest.mark.skip(reason=shared))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    number = workers.count(session.config)
    if number == 0 or session.testsfailed:
        return None
    workers.run(session, number)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if _config is not None:
        workers.send(_config, report)


@pytest.fixture
def without_fused_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer runs unfused."""
    monkeypatch.setattr(FusedCall, "__call__", lambda *_: "a test wants it so")


_config: pytest.Config | None = None


def pytest_configure(config: pytest.Config) -> None:
    global _config  # a report does not know it
    _config = config
    # For fixtures that outlive a test, and for processes that tests start: threads that share a
    # core with another process of tests wait for one another, and use up its time while they do.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """Tests that collect garbage do not search what pytest holds: half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    run_summary.send(session.config)


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_testnodedown(node: Any) -> None:
    run_summary.receive(node.config, node)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.option.collectonly:
        return
    summary = run_summary.of(config)
    for title, text in summary.sections:
        terminalreporter.section(title)
        terminalreporter.write_line(text)
    if lines := gpu_summary.lines(terminalreporter.stats, summary.gpu_tests):
        terminalreporter.section("GPU")
        for line in lines:
            terminalreporter.write_line(line)
