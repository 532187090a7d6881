"""The lock of all that patching and counting share.

Read it as ``locking.lock`` each time: in a forked process it is a new one, since another thread of
the parent may have held the old one.
"""

from __future__ import annotations

import os
import threading

lock = threading.RLock()


def _renew() -> None:
    global lock
    lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
