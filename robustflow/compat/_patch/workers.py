"""Patches for worker processes that start without those of their parent."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from robustflow._patchable import LIBRARIES
from robustflow.compat._patch.interface import check_known, patch, patch_module, patched


@dataclass(frozen=True)
class WorkerInit:
    """Patches these libraries in the process that calls it. See :func:`worker_init`."""

    names: tuple[str, ...]

    def __call__(self, *args: object) -> None:
        """For the rest of the process; the arguments, such as a worker's number, are not used."""
        for name in self.names:
            if name in patched():  # a process that was forked has its parent's
                continue
            if name in LIBRARIES:
                patch(name)
            else:
                patch_module(importlib.import_module(name))


def worker_init(*names: str) -> WorkerInit:
    """An initialiser for worker processes that patches what is patched here.

    A process that is *spawned* (everywhere on macOS and Windows, and on Linux wherever
    ``spawn`` or ``forkserver`` is the start method, the default from Python 3.14 on) imports its
    libraries again, without the patches of its parent. Only a forked process has them.

    Args:
        names: as given to :func:`patch`, or names of modules given to :func:`patch_module`. None:
            all that is patched now.

    Returns:
        A callable that can be pickled, for ``DataLoader(worker_init_fn=...)``,
        ``multiprocessing.Pool(initializer=...)`` and
        ``concurrent.futures.ProcessPoolExecutor(initializer=...)``. It raises what :func:`patch`
        raises. Where a library is patched already, as in a forked process, it does nothing.

    Raises:
        TypeError: a name that is no string.
        ValueError: an unknown name; or no names, and nothing is patched.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader(range(3), num_workers=2, worker_init_fn=worker_init("nflows"))
    """
    for name in names:
        check_known(name)
    chosen = names or tuple(patched())
    if not chosen:
        raise ValueError("Nothing is patched: name the libraries, such as worker_init('nflows').")
    return WorkerInit(chosen)
