"""Every GPU kernel that robustflow ships, compiled for an architecture."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.aot.occupancy import Occupancy, occupancy
from benchmarks.aot.sass import Instruction, access_widths, parse
from benchmarks.aot.toolchain import (
    CACHE,
    SOURCES,
    Resources,
    ToolMissing,
    compile_cuda,
    disassemble,
    readable,
    resources,
)

if TYPE_CHECKING:
    from benchmarks.aot.triton_launches import Launch


@dataclass(frozen=True)
class Compiled:
    """A kernel.

    Attributes:
        backend: ``cuda`` or ``triton``.
        instructions: none where nobody asked for them (see ``triton_kernels``).
        float32: whether it computes in float32.
    """

    backend: str
    name: str
    arch: int
    taken: Resources
    instructions: tuple[Instruction, ...]
    float32: bool

    @property
    def occupancy(self) -> Occupancy:
        """By what the compiler knows: memory that a launch adds is left out."""
        return occupancy(self.arch, self.taken.threads, self.taken.registers, self.taken.shared)

    @property
    def calls(self) -> int:
        """Instructions that call a function."""
        return sum(instruction.name == "CALL" for instruction in self.instructions)

    @property
    def local_accesses(self) -> int:
        """Instructions that load from or store to memory of the thread's own: spills, or arrays
        that are indexed at run time."""
        accesses = (instruction.access for instruction in self.instructions)
        return sum(access is not None and access.space == "local" for access in accesses)

    def global_widths(self, reads: bool) -> tuple[int, ...]:
        """Bytes of a thread's loads from global memory, or of its stores; the widest first."""
        return access_widths(self.instructions, "global", reads)


def cuda_sources(only: str = "") -> list[Path]:
    """The .cu files of csrc whose name, as ``cuda:affine``, contains the pattern ``only``."""
    return [path for path in sorted(SOURCES.rglob("*.cu")) if _matches(f"cuda:{path.stem}", only)]


def triton_launches(only: str = "") -> list[Launch]:
    """The launches whose name, as ``triton:rq8-forward-rows-fp32:gradient_kernel``, contains it.

    Raises:
        ToolMissing: triton is not there.
    """
    try:
        from benchmarks.aot.triton_launches import all_launches
    except ModuleNotFoundError as error:
        raise ToolMissing(f"{error.name} is not installed: `pip install {error.name}`.") from error
    return [launch for launch in all_launches() if _matches(f"triton:{launch.name}", only)]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, f"*{pattern}*")


def cuda_kernels(arch: int, only: str = "") -> Iterator[Compiled]:
    """Of each of :func:`cuda_sources` in turn.

    Raises:
        ToolMissing: a compiler or the disassembler is not there.
        RuntimeError: a file does not compile.
    """
    for source in cuda_sources(only):
        cubin = compile_cuda(source, arch)
        taken = resources(cubin)
        if not taken:
            continue  # a file of launches
        for symbol, instructions in parse(disassemble(cubin)).items():
            name = readable(symbol)
            float32 = "double" not in name
            yield Compiled("cuda", name, arch, taken[symbol], instructions, float32)


def calls_functions(cubin: bytes) -> bool:
    """Whether a kernel in a compiled file calls a function: such a one has a symbol of its own,
    "$kernel$function", or "$__internal_0_$function" where it is the compiler's."""
    return re.search(rb"\$\w+\$\w", cubin) is not None


def triton_kernels(
    arch: int, only: str = "", *, disassemble_all: bool = True
) -> Iterator[Compiled]:
    """Of each of :func:`triton_launches` in turn.

    Disassembling one takes half as long as compiling it. So, unless all are wanted, those stay
    without instructions that call nothing and have no stack.

    Raises:
        ToolMissing: triton or the disassembler is not there, or this process interprets kernels.
    """
    launches = triton_launches(only)
    import triton

    if triton.knobs.runtime.interpret:
        raise ToolMissing("TRITON_INTERPRET=1 interprets kernels: unset it to compile them.")

    def build(launch: Launch) -> Compiled:
        with triton.knobs.cache.scope():
            triton.knobs.cache.dir = str(CACHE / "triton")
            kernel = launch.compile(arch)
        binary: bytes = kernel.asm["cubin"]
        cubin = CACHE / f"triton-{hashlib.sha256(binary).hexdigest()[:20]}.cubin"
        if not cubin.exists():
            cubin.write_bytes(binary)
        ((symbol, taken),) = resources(cubin).items()
        with_instructions = disassemble_all or taken.stack or calls_functions(binary)
        return Compiled(
            "triton",
            launch.name,
            arch,
            replace(taken, threads=32 * launch.num_warps, shared=kernel.metadata.shared),
            parse(disassemble(cubin))[symbol] if with_instructions else (),
            "fp64" not in launch.name,
        )

    CACHE.mkdir(parents=True, exist_ok=True)
    yield from map(build, launches)
