"""Which native sources a library was built from. setup.py runs this file alone, without torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

_SUFFIXES = {".cpp", ".cu", ".h"}


def fingerprint(root: Path) -> str | None:
    """A hash of the native sources below ``root``; None where there are none.

    setup.py writes it beside the library, so that a source tree can tell whether the library of an
    installation was built from the very same sources.
    """
    folder, description = root / "csrc", root / "CMakeLists.txt"
    if not (folder.is_dir() and description.is_file()):
        return None
    sources = [path for path in folder.rglob("*") if path.suffix in _SUFFIXES and path.is_file()]
    digest = hashlib.sha256()
    for path in (description, *sorted(sources)):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
