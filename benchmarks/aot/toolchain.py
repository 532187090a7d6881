"""The compilers: found, run, and their results kept by the hash of what went in."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
CACHE = ROOT / "build" / "aot"

# As CMakeLists.txt compiles them for release, less what concerns the host.
NVCC_FLAGS = ("-O3", "-DNDEBUG", "-std=c++20")


class ToolMissing(Exception):
    """A tool that is not there; the message says what to install."""


def nvcc() -> Path:
    """The CUDA compiler.

    Raises:
        ToolMissing: there is none.
    """
    return _find(
        "nvcc",
        "Install the CUDA toolkit 13, or `pip install nvidia-cuda-nvcc` and put its bin on PATH.",
    )


def disassembler() -> Path:
    """cuobjdump, which prints the instructions and resources of a compiled kernel.

    Raises:
        ToolMissing: there is none.
    """
    return _find("cuobjdump", "`pip install nvidia-cuda-cuobjdump` or triton, which brings it.")


def _find(name: str, advice: str) -> Path:
    for place in _places():
        if os.access(place / name, os.X_OK):
            return place / name
    raise ToolMissing(f"{name} is neither on PATH nor in a Python package. {advice}")


def _places() -> Iterator[Path]:
    """PATH, CUDA_HOME, then what pip's packages of NVIDIA and of triton bring."""
    for name in (os.environ.get("PATH") or os.defpath).split(os.pathsep):
        yield Path(name)
    if "CUDA_HOME" in os.environ:
        yield Path(os.environ["CUDA_HOME"]) / "bin"
    for package, folders in (
        ("nvidia", ("cu13/bin", "*/bin")),
        ("triton", ("backends/nvidia/bin",)),
    ):
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or ()) if spec else ():
            for folder in folders:
                yield from sorted(Path(location).glob(folder))


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers and bytes of stack of a thread, bytes of static
    shared memory of a block; and the most threads that a block may have."""

    registers: int
    stack: int
    shared: int
    threads: int


def compile_cuda(
    source: Path, arch: int, flags: Sequence[str] = NVCC_FLAGS, include: Path = SOURCES
) -> Path:
    """The binary for sm_``arch`` of a .cu file; compiled afresh only when something has changed.

    Raises:
        ToolMissing: there is no nvcc.
        RuntimeError: it fails; the message is its own.
    """
    compiler = nvcc()
    key = hashlib.sha256()
    for part in (version(compiler), f"sm_{arch}", *flags):
        key.update(part.encode() + b"\0")
    headers = sorted(path for ext in ("h", "cuh") for path in include.rglob(f"*.{ext}"))
    for path in [source, *headers]:
        key.update(path.read_bytes() + b"\0")
    out = CACHE / f"{source.stem}-sm_{arch}-{key.hexdigest()[:20]}.cubin"
    if not out.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for stale in CACHE.glob(f"{source.stem}-sm_{arch}-*"):
            stale.unlink(missing_ok=True)
        partial = CACHE / f"partial-{os.getpid()}-{out.name}"
        _run(
            [compiler, "-cubin", f"-arch=sm_{arch}", *flags, f"-I{include}", source, "-o", partial]
        )
        partial.rename(out)
    return out


def disassemble(cubin: Path) -> str:
    """The instructions of a compiled file, as text; kept beside it."""
    kept = cubin.with_suffix(".sass")
    if not kept.exists():
        kept.write_text(_run([disassembler(), "-sass", cubin]))
    return kept.read_text()


def resources(cubin: Path) -> dict[str, Resources]:
    """Of each kernel of a compiled file."""
    usage = _run([disassembler(), "-res-usage", cubin])
    sections = _run([disassembler(), "-elf", cubin])
    threads: dict[str, str] = {}
    kernel, is_thread_count = "", False
    for line in sections.splitlines():
        if line.startswith(".nv.info."):
            kernel = line.removeprefix(".nv.info.").strip()
        elif "Attribute:" in line:
            is_thread_count = line.endswith(("EIATTR_MAX_THREADS", "EIATTR_REQNTID"))
        elif is_thread_count and "Value:" in line:
            threads[kernel] = line.split()[1]
    architecture = re.search(r"\bsm=(\d+)", sections)
    # Where the system takes shared memory of a block for itself, newer compilers count that in.
    system = 1024 if architecture and int(architecture[1]) >= 90 else 0
    matches = re.finditer(r"Function (\S+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    return {
        f[1]: Resources(
            int(f[2]), int(f[3]), max(int(f[4]) - system, 0), int(threads.get(f[1], "0x0"), 16)
        )
        for f in matches
    }


def version(tool: Path) -> str:
    """What a tool says of itself."""
    text = _run([tool, "--version"])
    matched = re.search(r"release [\d.]+, (V[\d.]+)", text)
    return f"{tool.name} {matched[1] if matched else text.strip()}"


def _run(command: Sequence[Path | str]) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{Path(command[0]).name} failed ({done.returncode}):\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def readable(symbol: str) -> str:
    """A kernel's name and template arguments, from its mangled name.

    Example:
        >>> readable("_ZN10robustflow10cuda_lanes6stagedINS0_4RqOpINS0_9FastFloatELi8EEELb1EEEvi")
        'staged<RqOp FastFloat 8 true>'
    """
    if not symbol.startswith("_ZN"):
        return symbol
    words: list[str] = []
    depth, position, name = 1, 3, ""
    while depth and position < len(symbol):
        rest = symbol[position:]
        if matched := re.match(r"\d+", rest):
            start = position + matched.end()
            position = start + int(matched[0])
            words.append(symbol[start:position])
        elif matched := re.match(r"L([a-z])(\d+)E", rest):
            flag = ("false", "true")[int(matched[2]) > 0]
            words.append(flag if matched[1] == "b" else matched[2])
            position += matched.end()
        elif matched := re.match(r"S\w*?_", rest):
            position += matched.end()
        else:
            depth += {"N": 1, "I": 1, "E": -1}.get(rest[0], 0)
            if rest[0] == "I" and not name:
                name, words = words[-1], []
            elif rest[0] in "fd":
                words.append({"f": "float", "d": "double"}[rest[0]])
            position += 1
    return f"{name}<{' '.join(words)}>" if name else words[-1]
