"""Files that commands write: paths are checked before the work, and files are written atomically.

Every file that a command leaves behind goes through this module, so that no work is lost to a wrong
path, no result to a full disk, and an interruption leaves no partial file.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_written: list[Path] = []


class UnwritablePath(OSError):
    """Nothing can be written at a path; the message is a sentence that says why."""


def check_writable(*paths: Path) -> None:
    """Create the folders of files that are to be written later, and check that they can be written.

    Args:
        paths: of the files. Files that exist are left as they are.

    Raises:
        UnwritablePath: a path is a folder, its folder cannot be created, or this process may not
            write there.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from robustflow._files import check_writable
        >>> check_writable(Path(tempfile.mkdtemp(), "new-folder", "results.json"))
    """
    for path in paths:
        try:
            _check_target(path)
            if not _is_device(path):
                partial = _partial(path)
                partial.touch(exist_ok=False)
                partial.unlink()
        except OSError as error:
            raise UnwritablePath(
                f"{path} cannot be written ({_reason(error)}): name another path."
            ) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of ``path`` when the block ends without an error.

    Until then ``path`` is as it was, and after an error too: nothing is left of the new contents.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from robustflow._files import replacing
        >>> with replacing(Path(tempfile.mkdtemp(), "state.pt")) as file:
        ...     torch.save({"step": 1}, file)
    """
    _check_target(path)
    if _is_device(path):
        with path.open("ab") as file:
            yield file
        return
    target = path.resolve()  # a link stays a link
    partial = _partial(target)
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # a full disk may be reported only here
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if path not in _written:
        _written.append(path)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8; creates its folder."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def save(path: Path, content: str | bytes) -> bool:
    """:func:`write_atomically` for results that took long: they survive a failure.

    If they cannot be written, they go to a temporary folder. If that fails too, text is printed.
    Standard error says what happened.

    Returns:
        Whether they are at ``path``.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        print(f"{path} could not be written ({_reason(error)}).", file=sys.stderr)
        _keep_elsewhere(path.name, content)
        return False
    return True


def written() -> tuple[Path, ...]:
    """The files that this process has written, in order, each once."""
    return tuple(_written)


def _keep_elsewhere(name: str, content: str | bytes) -> None:
    try:
        path = Path(tempfile.mkdtemp(prefix="robustflow-"), name)
        write_atomically(path, content)
    except OSError as error:
        problem = f"There is no temporary folder to keep its contents in ({_reason(error)})"
        if isinstance(content, bytes):
            print(f"{problem}: they are lost.", file=sys.stderr)
        else:
            print(f"{problem}: they are printed instead.", file=sys.stderr)
            print(content)
        return
    print(f"Its contents are kept in {path}.", file=sys.stderr)


def _check_target(path: Path) -> None:
    """Make the folder; OSError where ``path`` itself may not be written."""
    if path.is_dir():
        raise IsADirectoryError("it is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError("it is there and write-protected")


def _is_device(path: Path) -> bool:
    """Whether it is a pipe or something like /dev/stdout, which is written to, never replaced."""
    return path.exists() and (not path.is_file() or Path("/dev") in path.parents)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _reason(error: OSError) -> str:
    return f"{error.strerror}: {error.filename}" if error.strerror else str(error)
