"""One process per job, with progress reported to the parent."""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import signal
import traceback
from collections.abc import Callable, Mapping
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

    Raises:
        RuntimeError: a job raised, with its traceback, or its process was killed. The other
            processes are ended.
    """
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    processes = {
        name: context.Process(target=_work, args=(job, name, values, messages), daemon=True)
        for name, values in arguments.items()
    }
    results: dict[str, Result] = {}
    try:
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
        for process in processes.values():
            if process.pid is not None:
                process.terminate()
                process.join()
    return {name: results[name] for name in arguments}


def _work(job: Job[Result], name: str, values: tuple[Any, ...], messages: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    torch.set_num_threads(1)
    try:
        result = job(*values, lambda done, word: messages.put(("progress", name, (done, word))))
        # Pickled here: a queue would hand tensors over in shared memory that dies with us.
        messages.put(("result", name, pickle.dumps(result)))
    except Exception:
        messages.put(("error", name, traceback.format_exc()))
