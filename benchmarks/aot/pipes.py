"""Which unit of a multiprocessor executes an instruction, and how many threads it serves a cycle.

Sources: the pipelines as NVIDIA's profiler names them (Nsight Compute's profiling guide), NVIDIA's
own account of GA10x and GH100 ("FMAheavy takes IMAD and FP32, FMAlite FP32, half pairs both"), and
the throughput table of the CUDA programming guide. What those do not say is a stated assumption:

- ``MOV`` goes to the logic unit (the compiler spreads moves over it and ``IMAD.MOV``);
- ``HFMA2.MMA`` (a constant move, mostly) counts as an instruction on half pairs;
- branches, barriers, constants and special registers cost an issue slot and no unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.aot.sass import Instruction

# Everything that executes takes one of the four slots a cycle in which a warp's 32 threads issue.
ISSUE_LANES = 4 * 32

FP32 = "fp32"  # additions, multiplications and both in one, in either half of the unit
IMAD = "imad"  # integer multiplications: the heavy half only, shared with fp32
ALU = "alu"  # integers, logic, comparisons, selections, minima
XU = "xu"  # special functions and conversions
LSU = "lsu"  # loads, stores, shuffles
FP64 = "fp64"
UNIFORM = "uniform"  # one result for the whole warp
OTHER = "other"  # control flow, barriers, constants, special registers
TENSOR = "tensor"

_NAMES: dict[str, str] = {
    FP32: "FADD FMUL FFMA FFMA32I FADD32I FMUL32I FSWZADD HADD2 HMUL2 HFMA2 HADD2_32I HFMA2_32I "
    "FADD2 FMUL2 FFMA2",
    IMAD: "IMAD IMUL IDP IDP4A IMAD32I",
    ALU: "FMNMX FMNMX3 FSETP FSEL FSET FCHK IADD3 IADD IADD32I IABS ISETP IMNMX VIMNMX VIMNMX3 "
    "VIADD VIADDMNMX LEA LOP LOP3 LOP32I SHF SHL SHR PRMT BMSK SGXT SEL MOV MOV32I PLOP3 PSETP P2R "
    "R2P HMNMX2 HSETP2 HSET2 VABSDIFF VABSDIFF4 F2FP I2FP F2IP I2IP CSET CSETP VOTE VOTEU "
    "IADD3X ISCADD",
    XU: "MUFU F2F F2I I2F FRND POPC FLO BREV F2F32 I2I",
    LSU: "LDG STG LDS STS LDL STL LD ST LDSM STSM LDGSTS ATOM ATOMS ATOMG RED SHFL MATCH "
    "MEMBAR REDUX CCTL QSPC PREFETCH LDGDEPBAR UBLKCP",
    FP64: "DADD DMUL DFMA DSETP DMNMX",
    OTHER: "BRA BRX BRXU JMP JMX JMXU CALL RET EXIT BSSY BSYNC BREAK BMOV BAR WARPSYNC NOP YIELD "
    "DEPBAR ERRBAR NANOSLEEP KILL ELECT LEPC BPT RPCMOV ACQBULK ENDCOLLECTIVE SYNCS PREEXIT CCTLL "
    "CREDUX LDC S2R S2UR CS2R R2UR",
    TENSOR: "HMMA IMMA DMMA HGMMA QGMMA IGMMA",
}
_PIPE = {name: pipe for pipe, names in _NAMES.items() for name in names.split()}


def pipe_of(instruction: Instruction) -> str:
    """The pipe that executes an instruction.

    Raises:
        ValueError: an opcode that the table above does not have.
    """
    name = instruction.name
    if name in _PIPE:
        return _PIPE[name]
    if name.startswith("U") and len(name) > 2:  # ULDC, UIADD3, USEL, UMOV, UFADD, ...
        return UNIFORM
    raise ValueError(
        f"No pipe is known for {instruction.opcode!r}: add {name} to the table of "
        f"benchmarks/aot/pipes.py."
    )


@dataclass
class Counts:
    """What some code asks of a multiprocessor, for one thread.

    Attributes:
        pipes: instructions on each pipe.
        accesses: (space, reads, bytes) of each memory access.
        calls: to functions of its own.
    """

    pipes: Counter[str] = field(default_factory=Counter)
    accesses: Counter[tuple[str, bool, int]] = field(default_factory=Counter)
    calls: int = 0

    @classmethod
    def of(cls, instructions: Iterable[Instruction]) -> Counts:
        counts = cls()
        for instruction in instructions:
            counts.pipes[pipe_of(instruction)] += 1
            counts.calls += instruction.control == "call"
            if access := instruction.access:
                counts.accesses[access.space, access.reads, access.bytes] += 1
        return counts

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.pipes + other.pipes, self.accesses + other.accesses, self.calls + other.calls
        )

    def times(self, factor: float) -> Counts:
        """What ``factor`` executions ask."""

        def scaled(counter: Counter[Any]) -> Counter[Any]:
            return Counter({key: count * factor for key, count in counter.items()})

        return Counts(scaled(self.pipes), scaled(self.accesses), self.calls)

    @property
    def issue(self) -> float:
        return sum(self.pipes.values())

    def moved(self, space: str, reads: bool) -> int:
        """Bytes."""
        return sum(
            n * size for (s, r, size), n in self.accesses.items() if (s, r) == (space, reads)
        )

    def widths(self, space: str, reads: bool) -> tuple[int, ...]:
        """Bytes an access, the widest first."""
        return tuple(
            sorted({size for s, r, size in self.accesses if (s, r) == (space, reads)}, reverse=True)
        )


@dataclass(frozen=True)
class Throughput:
    """Threads served a cycle by each unit of a multiprocessor of one architecture."""

    fp32: int = 128
    imad: int = 64
    alu: int = 64
    xu: int = 16
    lsu: int = 32
    fp64: int = 64
    uniform: int = 64
    wavefront_bytes: int = 128  # of shared memory and first-level cache

    def cycles(self, per_thread: Counts, threads: float = 1.0) -> dict[str, float]:
        """Cycles in which each unit of a multiprocessor is busy with ``threads`` threads' worth."""
        n = per_thread.pipes
        memory = sum(
            count * size
            for (space, _, size), count in per_thread.accesses.items()
            if space in ("global", "shared", "local")
        )
        return {
            name: threads * cycles
            for name, cycles in {
                "issue": per_thread.issue / ISSUE_LANES,
                FP32: (n[FP32] + n[IMAD]) / self.fp32,
                IMAD: n[IMAD] / self.imad,
                ALU: n[ALU] / self.alu,
                XU: n[XU] / self.xu,
                LSU: n[LSU] / self.lsu,
                "l1 bytes": memory / self.wavefront_bytes,
                FP64: n[FP64] / self.fp64,
                UNIFORM: n[UNIFORM] / self.uniform,
            }.items()
        }


THROUGHPUT = {
    80: Throughput(fp32=64, fp64=32),
    86: Throughput(fp64=2),
    89: Throughput(fp64=2),
    90: Throughput(),
    100: Throughput(),
    120: Throughput(fp64=2),
}
