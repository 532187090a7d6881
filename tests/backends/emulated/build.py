"""Compile csrc/cuda and the emulator into one library for the host.

Objects are kept in ``build/emulated`` and made anew where a file that they were made of has
changed; a library of altered sources, such as the tests of planted faults make, shares the others.
Processes that share that folder build one after another, so that none compiles what another does.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CACHE = ROOT / "build" / "emulated"
JOBS = 2
_KEPT = 4  # objects of one source

# As the native build has them: never -ffast-math.
_FLOAT_FLAGS = ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
# A misaligned access is slow here and ends a kernel on a GPU.
_SANITIZERS = ("-fsanitize=address,alignment,bounds,integer-divide-by-zero,null,unreachable",)


class Missing(Exception):
    """A sentence about what this machine lacks."""


@dataclass(frozen=True)
class Toolchain:
    """A compiler, flags of its own, and what a process that loads its libraries preloads."""

    compiler: str
    flags: tuple[str, ...]
    preload: tuple[str, ...]


@functools.cache
def toolchain() -> Toolchain:
    """The compiler of ``CXX``, or g++, or clang++.

    Raises:
        Missing: there is none, or none with AddressSanitizer's library.
    """
    if not sys.platform.startswith("linux"):
        raise Missing("AddressSanitizer is preloaded as on Linux, and this is another system.")
    named = os.environ.get("CXX", "").split()[:1]
    compiler = next(filter(shutil.which, named or ["g++", "clang++"]), None)
    if compiler is None:
        raise Missing(
            "No C++ compiler was found: install g++ (Debian and Ubuntu: apt install g++)."
        )
    clang = "clang" in _output(compiler, "--version")
    machine = "aarch64" if os.uname().machine == "aarch64" else "x86_64"
    library = f"libclang_rt.asan-{machine}.so" if clang else "libasan.so"
    preload = []
    for name in (library, "libstdc++.so.6"):
        path = _output(compiler, f"-print-file-name={name}")
        if not Path(path).is_absolute():  # the name itself: not found
            package = "libclang-rt-dev" if clang else "libasan8 (it comes with g++)"
            raise Missing(f"{compiler} has no {name}: install it (Debian and Ubuntu: {package}).")
        preload.append(str(Path(path).resolve()))
    flags = ["-shared-libasan"] if clang else []
    if _has_fma():
        flags += ["-mfma"]
    return Toolchain(compiler, tuple(flags), tuple(preload))


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _has_fma() -> bool:
    """Whether the machine multiplies and adds in one rounding as a GPU does, when asked to."""
    try:
        return " fma " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def build(csrc: Path = ROOT / "csrc", only: Collection[str] | None = None) -> Path:
    """The library of the sources in ``csrc``, compiled where it is not in the cache.

    Args:
        csrc: the repository's, or a copy of it.
        only: names of the sources to take from there, the others from the repository.

    Raises:
        Missing: see :func:`toolchain`.
        RuntimeError: the compiler refused a source; with its message.
    """
    # The shim comes before all else, since it also decides how the formulas are compiled.
    shim_first = ["-include", "cuda/device.h"]
    torch_directory = Path(torch.__file__).parent
    torch_flags = [
        f"-isystem{torch_directory / 'include'}",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
    ]
    usual = ROOT / "csrc"
    jobs = [
        (HERE / "ops_emulated.cpp", usual, torch_flags),
        *((source, usual, []) for source in sorted(HERE.glob("shim/*.cpp"))),
        *(
            (root / "cuda" / source.name, root, shim_first)
            for source in sorted(csrc.glob("cuda/*.cu"))
            for root in [csrc if only is None or source.name in only else usual]
        ),
    ]
    with _alone(), ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(lambda job: _object(*job), jobs))
        library = CACHE / f"emulated-{_digest(*(o.name.encode() for o in objects))}.so"
        if not library.exists():
            _link(library, objects, ["-shared", f"-L{torch_directory / 'lib'}", "-ltorch_cpu"])
    return library


def build_program(source: Path, *flags: str) -> Path:
    """A program of one source and the emulator, with further flags of the compiler."""
    sources = (*sorted(HERE.glob("shim/*.cpp")), source)
    with _alone():
        objects = [_object(s, ROOT / "csrc", list(flags)) for s in sources]
        program = CACHE / f"{source.stem}-{_digest(*(o.name.encode() for o in objects))}"
        if not program.exists():
            _link(program, objects, [])
    return program


@contextmanager
def _alone() -> Iterator[None]:
    """Within it, no other process works on the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # closing the file gives it back
        yield


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:16]


def _common_flags() -> list[str]:
    return [
        *("-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility-inlines-hidden"),
        *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-missing-field-initializers"),
        *(_FLOAT_FLAGS + _SANITIZERS),
        *("-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
        *toolchain().flags,
    ]


def _object(source: Path, csrc: Path, flags: list[str]) -> Path:
    """The object of a source: from the cache where all that it was made of is as it was."""
    command = [
        *(toolchain().compiler, *_common_flags(), f"-I{HERE / 'shim'}", f"-I{csrc}", *flags),
        *(f"-ffile-prefix-map={csrc}=csrc", f"-ffile-prefix-map={ROOT}=."),
    ]
    # A copy of the sources gives the same object.
    settings = " ".join(command).replace(str(csrc), "csrc")
    manifests = sorted(CACHE.glob(f"{source.name}-*.json"), key=lambda path: path.stat().st_mtime)
    for manifest in manifests:
        kept = json.loads(manifest.read_text())
        if kept["settings"] == settings and all(
            (path := _placed(name, csrc)).exists() and _digest(path.read_bytes()) == digest
            for name, digest in kept["files"].items()
        ):
            manifest.touch()
            return manifest.with_suffix(".o")
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        built, listing = Path(scratch, "object.o"), Path(scratch, "object.d")
        output = ("-MMD", "-MF", str(listing), "-o", str(built))
        begun = time.time()
        done = subprocess.run(
            [*command, "-x", "c++", "-c", str(source), *output], stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{source.name} does not compile for the host:\n{done.stderr}")
        names = listing.read_text().replace("\\\n", " ").partition(":")[2].split()
        if any(Path(name).stat().st_mtime > begun for name in names):
            return _object(source, csrc, flags)  # edited meanwhile
        files = {_name(Path(name), csrc): _digest(Path(name).read_bytes()) for name in names}
        kept = {"settings": settings, "files": files}
        target = CACHE / f"{source.name}-{_digest(json.dumps(kept).encode())}.o"
        built.replace(target)
        target.with_suffix(".json").write_text(json.dumps(kept))
    for manifest in manifests[: 1 - _KEPT]:
        manifest.unlink(missing_ok=True)
        manifest.with_suffix(".o").unlink(missing_ok=True)
    return target


def _name(path: Path, csrc: Path) -> str:
    """A file's name wherever the sources lie: "csrc/..." for theirs."""
    path = Path(os.path.normpath(path))
    return f"csrc/{path.relative_to(csrc)}" if path.is_relative_to(csrc) else str(path)


def _placed(name: str, csrc: Path) -> Path:
    return csrc / name.removeprefix("csrc/") if name.startswith("csrc/") else Path(name)


def _link(target: Path, objects: list[Path], flags: list[str]) -> None:
    """Link, and remove what was linked before of other objects, all but the newest."""
    same = target.name.replace(target.stem.rpartition("-")[2], "*")
    old = [path for path in CACHE.glob(same) if path.suffix == target.suffix]
    for path in sorted(old, key=lambda path: path.stat().st_mtime)[: 1 - _KEPT]:
        path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        built = Path(scratch, "linked")
        command = [toolchain().compiler, *_common_flags(), *map(str, objects), *flags]
        subprocess.run([*command, "-o", str(built)], check=True)
        built.replace(target)
