"""Distribute a run of the tests over processes, and report it as one.

Triton's kernels are compiled as they are called: one process would take an hour over that. So
`pytest -m gpu` on a machine with a GPU starts some processes of the same command, each of which
runs a shard of what was collected and sends its reports back. ROBUSTFLOW_TEST_WORKERS gives their
number (0: none) here and anywhere else.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

import pytest
import torch

WORKERS, SHARD = "ROBUSTFLOW_TEST_WORKERS", "ROBUSTFLOW_TEST_SHARD"
MOST = 12  # a CUDA context takes half a GiB or so
# Neighbours often share kernels: a shard takes as many at once.
_BLOCK = 8


def count(config: pytest.Config) -> int:
    """How many worker processes this run has: none in a worker, where pytest-xdist has its own, and
    by default without a GPU."""
    if SHARD in os.environ or config.option.collectonly or is_xdists(config):
        return 0
    if WORKERS in os.environ:
        return int(os.environ[WORKERS])
    if config.option.markexpr != "gpu" or not torch.cuda.is_available():
        return 0
    return max(0, min(MOST, (os.cpu_count() or 1) - 2))


def is_xdists(config: pytest.Config) -> bool:
    """Whether pytest-xdist shares this run out, or started this process."""
    return hasattr(config, "workerinput") or getattr(config.option, "dist", "no") != "no"


def is_alone(item: pytest.Item) -> bool:
    """Whether a test needs the whole GPU, and so waits until the workers are gone."""
    return item.get_closest_marker("alone") is not None


def shard(items: list[pytest.Item], index: int, of: int) -> list[pytest.Item]:
    """What worker ``index`` runs of all that was collected."""
    shared = [item for item in items if not is_alone(item)]
    return [item for number, item in enumerate(shared) if number // _BLOCK % of == index]


def own_shard(items: list[pytest.Item]) -> list[pytest.Item]:
    """In a worker its shard, elsewhere everything."""
    if SHARD not in os.environ:
        return items
    index, of, _ = map(int, os.environ[SHARD].split("/"))
    return shard(items, index, of)


def send(config: pytest.Config, report: Any) -> None:
    """In a worker: hand a report to the process that started it."""
    if SHARD not in os.environ:
        return
    data = config.hook.pytest_report_to_serializable(config=config, report=report)
    pipe = int(os.environ[SHARD].split("/")[2])
    os.write(pipe, json.dumps(data).encode() + b"\n")


class _Worker:
    """One process, and the tests that it has not finished yet."""

    def __init__(self, session: pytest.Session, index: int, of: int) -> None:
        self.expected = {item.nodeid: item for item in shard(session.items, index, of)}
        receive, write = os.pipe()
        os.set_inheritable(write, True)
        self.pipe: IO[bytes] = os.fdopen(receive, "rb")
        self.output = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *session.config.invocation_params.args],
            cwd=session.config.invocation_params.dir,
            env={**os.environ, SHARD: f"{index}/{of}/{write}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(write,),
        )
        os.close(write)

    def listen(self, put: Callable[[tuple[_Worker, dict[str, Any] | None]], None]) -> None:
        """Start threads that pass reports on, and None at their end."""

        def reports() -> None:
            for line in self.pipe:
                put((self, json.loads(line)))
            put((self, None))

        def output() -> None:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                self.output = (self.output + line)[-4000:]

        for target in (reports, output):
            threading.Thread(target=target, daemon=True).start()


def run(session: pytest.Session, number: int) -> None:
    """Run all that was collected: in workers, and what must be alone in this process after them."""
    reports: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
    workers = [_Worker(session, index, number) for index in range(number)]
    try:
        for worker in workers:
            worker.listen(reports.put)
        running = len(workers)
        while running and not (session.shouldfail or session.shouldstop):
            worker, data = reports.get()
            if data is None:
                running -= 1
                _report_the_rest(session, worker)
            else:
                _report(session, worker, data)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
    alone = [item for item in session.items if is_alone(item)]
    for item, following in itertools.zip_longest(alone, alone[1:]):
        if session.shouldfail or session.shouldstop:
            break
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)


def _report(session: pytest.Session, worker: _Worker, data: dict[str, Any]) -> None:
    hook = session.config.hook
    report = hook.pytest_report_from_serializable(config=session.config, data=data)
    if isinstance(report.longrepr, list):  # of a skip: JSON has no tuples
        report.longrepr = tuple(report.longrepr)
    item = worker.expected[report.nodeid]
    if report.when == "setup":
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    hook.pytest_runtest_logreport(report=report)
    if report.when == "teardown":
        del worker.expected[report.nodeid]
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _report_the_rest(session: pytest.Session, worker: _Worker) -> None:
    """A worker has ended: the tests that it did not finish have failed."""
    code = worker.process.wait()
    for item in list(worker.expected.values()):
        text = (
            f"The worker that should have run this ended before it, with exit code {code}. "
            f"Its last words:\n{worker.output.decode(errors='replace')}"
        )
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome="failed",
            longrepr=text,
            when="call",
        )
        session.config.hook.pytest_runtest_logreport(report=report)
    worker.expected.clear()
