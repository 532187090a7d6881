"""One training at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import weakref
from pathlib import Path

LOCK = "training.lock"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class FolderInUse(Exception):
    """Another training works in the folder; the text says which."""


class FolderLock:
    """Lock of a folder that only this process trains in, until :meth:`release` or its end.

    The operating system holds the lock, so it is released when the process ends or is killed.

    Args:
        folder: must exist.

    Attributes:
        works: whether the file system supports locks; if not, nothing is locked.

    Raises:
        FolderInUse: another training holds it.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.works = True
        self._file = (folder / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise FolderInUse(f"{folder} is in use by another training: {holder}") from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                self._file.close()
                raise
            self.works = False
            return
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()}\n")
        self._file.flush()
        # Children such as loading workers inherit the file, and would hold the lock after this
        # process.
        this_lock = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _release(this_lock()))

    def release(self) -> None:
        """Let another training begin."""
        self._file.close()


def _release(lock: FolderLock | None) -> None:
    if lock is not None:
        lock.release()
