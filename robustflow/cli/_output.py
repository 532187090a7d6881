"""When the reader of standard output closes the pipe, as `head` does, that is no error."""

from __future__ import annotations

import io
import os
import select
import sys

# The exit code that a shell reports for a process that SIGPIPE ended.
READER_LEFT = 128 + 13


def reader_left() -> bool:
    """Whether the reader of standard output closed it; the remaining output is discarded."""
    try:
        file = sys.stdout.fileno()
    except io.UnsupportedOperation:  # not a file, as under pytest
        return False
    poll = select.poll()
    poll.register(file, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file)  # or the interpreter's last flush fails
    os.close(nowhere)
    return True
