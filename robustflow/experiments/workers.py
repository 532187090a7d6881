"""One process per job, with progress reported to the parent."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
Job = Callable[..., Result]
OnProgress = Callable[[str, int, str], None]


def run_in_processes(
    job: Job[Result], arguments: Mapping[str, tuple[Any, ...]], on_progress: OnProgress
) -> dict[str, Result]:
    """``{name: job(*arguments[name], report)}``, each in a process of its own with one thread.

    One thread each keeps the numbers the same however many cores there are, and networks this
    small gain little from a second.

    Args:
        job: a function of a module, called with the arguments and a ``report(done, word)``.
        arguments: for each name, arguments that can be pickled.
        on_progress: called in this process as ``on_progress(name, done, word)``.

    However this function ends, its processes end too: after an error or Ctrl-C, and when this
    process is killed.

    Raises:
        RuntimeError: a job raised, with its traceback, or its process was killed.
    """
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    processes = {
        name: context.Process(target=_work, args=(job, name, values, messages), daemon=True)
        for name, values in arguments.items()
    }
    results: dict[str, Result] = {}
    try:
        with _interrupts_ignored():
            for process in processes.values():
                process.start()
        while len(results) < len(processes):
            try:
                kind, name, content = messages.get(timeout=0.5)
            except queue.Empty:
                for name, process in processes.items():
                    if process.exitcode:  # None while it runs, 0 after it sent its result
                        raise RuntimeError(
                            f"The process of {name!r} ended with exit code {process.exitcode}; "
                            "the system kills processes when memory runs out."
                        ) from None
                continue
            if kind == "error":
                raise RuntimeError(f"The job {name!r} failed:\n{content}")
            if kind == "progress":
                on_progress(name, *content)
            else:
                results[name] = pickle.loads(content)
    finally:
        _end([process for process in processes.values() if process.pid is not None])
    return {name: results[name] for name in arguments}


def _end(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(timeout=5)
        if process.exitcode is None:
            process.kill()
            process.join()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started inside ignore Ctrl-C from their first moment: their parent ends them."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(job: Job[Result], name: str, values: tuple[Any, ...], messages: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        result = job(*values, lambda done, word: messages.put(("progress", name, (done, word))))
        # Pickled here: a queue would pass tensors in shared memory that is freed with this process.
        messages.put(("result", name, pickle.dumps(result)))
    except Exception:
        messages.put(("error", name, traceback.format_exc()))


def _end_with_parent() -> None:
    """End this worker when its parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)
