"""What the counts rest on: the parser, the loops, the rules of occupancy; and spills show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from aot.test_kernels import spills
from benchmarks.aot import flow, kernels, pipes, sass, toolchain
from benchmarks.aot.occupancy import occupancy

pytestmark = pytest.mark.aot

# A loop of two ways (a vector, or a number), one inside it, and a call that is rarely made.
TEXT = """
        Function : kernel
    .headerflags    @"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;          /* 0x00000a00ff017b82 */
                                                                   /* 0x000fe20000000800 */
        /*0010*/              @!P1 BRA 0x50 ;                      /* 0x0 */
        /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0030*/                   FFMA.FTZ R4, R4, R5, -R6 ;
        /*0040*/                   BRA 0x70 ;
        /*0050*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0060*/                   MUFU.RCP R4, R4 ;
        /*0070*/                   IMAD.MOV.U32 R7, RZ, RZ, R4 ;
        /*0080*/                   FADD R7, R7, R4 ;
        /*0090*/              @P2  BRA 0x80 ;
        /*00a0*/              @P3  CALL.REL.NOINC 0x100 ;
        /*00b0*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*00c0*/                   ULDC UR6, c[0x0][0xc] ;
        /*00d0*/              @!P0 BRA 0x10 ;
        /*00e0*/                   EXIT ;
        /*00f0*/                   BRA 0xf0;
        /*0100*/                   DFMA R4, R4, R4, R4 ;
        /*0110*/                   RET.REL.NODEC R20 0x0 ;
"""


@pytest.fixture(scope="module")
def instructions() -> tuple[sass.Instruction, ...]:
    return sass.parse(TEXT)["kernel"]


@pytest.mark.parametrize(
    "module", ["flow", "occupancy", "pipes", "predict", "report", "sass", "toolchain"]
)
def test_examples(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"benchmarks.aot.{module}")).failed == 0


def test_parser(instructions: tuple[sass.Instruction, ...]) -> None:
    assert [i.address for i in instructions] == list(range(0, 0x120, 0x10))
    load = instructions[2]
    assert (load.name, load.modifiers) == ("LDG", ("E", "128", "CONSTANT"))
    assert load.access == sass.Access("global", True, 16)
    assert instructions[1].guard == "!P1" and instructions[1].target == 0x50
    assert [i.control for i in instructions if i.control] == [
        *("jump", "jump", "jump", "call", "jump", "exit", "jump", "exit"),
    ]


def test_parser_wants_a_disassembly() -> None:
    with pytest.raises(ValueError, match="no disassembly"):
        sass.parse("nothing of the kind")


def test_loops(instructions: tuple[sass.Instruction, ...]) -> None:
    outer, inner = flow.loops_of(instructions)
    assert (outer.address, outer.parent) == (0x10, -1)
    assert (inner.address, inner.parent) == (0x80, 0)
    assert inner.widest.issue == 2
    assert set(outer.ways) == {(16, 8, 1), (4, 8, 1)}


def test_a_pass_is_one_way_without_the_loop_inside(
    instructions: tuple[sass.Instruction, ...],
) -> None:
    loop = flow.loops_of(instructions)[0]
    vector, single = flow.way_of(loop.ways, 17, 8), flow.way_of(loop.ways, 1, 1)
    assert dict(vector.pipes) == {"other": 4, "lsu": 2, "fp32": 1, "imad": 1, "uniform": 1}
    assert dict(single.pipes) == {"other": 3, "lsu": 2, "xu": 1, "imad": 1, "uniform": 1}
    assert vector.widths("global", True) == (16,) and vector.widths("global", False) == (8,)


def test_ways_through_a_function(instructions: tuple[sass.Instruction, ...]) -> None:
    straight = flow.ways_through(instructions)
    assert [way.issue for way in straight.values()] == [2]  # what is around the loop


def test_a_jump_through_a_table_is_refused() -> None:
    text = "Function : f\n /*0000*/ BRX R2 -0x10 ;\n /*0010*/ EXIT ;\n"
    with pytest.raises(ValueError, match="through a table"):
        flow.loops_of(sass.parse(text)["f"])


def test_an_unknown_opcode_is_refused() -> None:
    with pytest.raises(ValueError, match="FROB"):
        pipes.pipe_of(sass.Instruction(0, "", "FROB.X", "R0"))


def test_pipes_share_the_issue_slots() -> None:
    counts = pipes.Counts.of(sass.parse(TEXT)["kernel"])
    cycles = pipes.THROUGHPUT[90].cycles(counts)
    assert cycles["issue"] == 18 / 128
    assert cycles["xu"] == 1 / 16 and cycles["alu"] == 0 and cycles["fp64"] == 1 / 64
    assert cycles["fp32"] == (2 + 1) / 128  # integer multiplications keep the heavy half busy
    assert cycles["l1 bytes"] == (16 + 4 + 8) / 128


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks", "limit"),
    [
        (90, 256, 32, 0, 8, "warps"),
        (90, 256, 64, 0, 4, "registers"),
        (90, 256, 65, 0, 3, "registers"),  # registers come in units of 8 a thread
        (90, 128, 255, 0, 2, "registers"),
        (90, 32, 16, 0, 32, "blocks"),
        (90, 128, 32, 48 * 1024, 4, "shared memory"),
        (90, 128, 32, 227 * 1024, 1, "shared memory"),
        (86, 256, 32, 0, 6, "warps"),
        (89, 64, 32, 0, 24, "warps"),
        (80, 1024, 32, 0, 2, "warps"),
    ],
)
def test_occupancy(
    arch: int, threads: int, registers: int, shared: int, blocks: int, limit: str
) -> None:
    held = occupancy(arch, threads, registers, shared)
    assert (held.blocks, held.limit) == (blocks, limit)
    assert held.warps == blocks * -(-threads // 32)


def test_occupancy_refuses_what_cannot_run() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        occupancy(90, 1024, 128)
    with pytest.raises(ValueError, match="does not fit"):
        occupancy(90, 128, 32, 228 * 1024)
    with pytest.raises(ValueError, match="No figures"):
        occupancy(75, 128, 32)


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("plain_c", "plain_c"),
        ("_ZN10robustflow10cuda_lanes16add_partial_sumsENS0_8PartialsE", "add_partial_sums"),
        (
            "_ZN10robustflow10cuda_lanes15planes_gradientINS0_8AffineOpINS0_6SingleEEEffLb1EEEv"
            "NS0_14PlanesGradientIT_EE",
            "planes_gradient<AffineOp Single float float true>",
        ),
    ],
)
def test_names(symbol: str, name: str) -> None:
    assert toolchain.readable(symbol) == name


def _compile(tmp_path: Path, source: str, *flags: str) -> kernels.Compiled:
    file = tmp_path / "planted.cu"
    file.write_text(source)
    try:
        cubin = toolchain.compile_cuda(file, 90, (*toolchain.NVCC_FLAGS, *flags))
        ((symbol, taken),) = toolchain.resources(cubin).items()
        instructions = sass.parse(toolchain.disassemble(cubin))[symbol]
    except toolchain.ToolMissing as missing:
        pytest.skip(str(missing))
    return kernels.Compiled("cuda", symbol, 90, taken, instructions, single=True)


SIMPLE = """
extern "C" __global__ void __launch_bounds__(192) planted(const float4* x, float4* y, int n) {
  __shared__ float4 tile[256];
  for (int i = threadIdx.x; i < n; i += 192) {
    float4 v = x[i];
    v.x = __frcp_rn(v.x) + v.y * v.z;
    tile[threadIdx.x] = v;
    __syncwarp();
    y[i] = tile[threadIdx.x ^ 1];
  }
}
"""


def test_a_compiled_kernel(tmp_path: Path) -> None:
    kernel = _compile(tmp_path, SIMPLE, "-DSIMPLE")
    assert kernel.taken.threads == 192
    assert kernel.taken.shared == 256 * 16
    assert kernel.taken.stack == 0 and not spills([kernel])
    loops = flow.loops_of(kernel.instructions)
    # However it is unrolled: as many bytes in as out, sixteen at a time, no call on the way.
    for loop in loops:
        for (read, written, _), way in loop.ways.items():
            assert read == written > 0 and read % 16 == 0
            assert way.widths("global", True) == (16,)
            assert way.pipes["xu"] == read // 16
            assert way.calls == 0
    assert loops


def test_a_planted_spill_is_caught(tmp_path: Path) -> None:
    source = """
    extern "C" __global__ void planted(const float* x, float* y, const int* at, int n) {
      float kept[64];
      for (int i = 0; i < 64; ++i) kept[i] = x[i * n + threadIdx.x];
      for (int i = 0; i < n; ++i) kept[at[i] & 63] += kept[at[i + 1] & 63];
      for (int i = 0; i < 64; ++i) y[i * n + threadIdx.x] = kept[i];
    }
    """
    kernel = _compile(tmp_path, source)
    assert kernel.taken.stack >= 64 * 4 and kernel.local_accesses > 0
    assert len(spills([kernel])) == 1


def test_too_few_registers_are_caught(tmp_path: Path) -> None:
    source = """
    extern "C" __global__ void planted(const float* x, float* y, int n) {
      float v[48];
      #pragma unroll
      for (int i = 0; i < 48; ++i) v[i] = x[i * n + threadIdx.x];
      __syncthreads();
      #pragma unroll
      for (int i = 0; i < 48; ++i) y[i * n + threadIdx.x] = v[i] * v[47 - i] + v[(i + 24) % 48];
    }
    """
    assert not spills([_compile(tmp_path, source)])
    assert len(spills([_compile(tmp_path, source, "-maxrregcount=32")])) == 1


def test_a_call_shows_without_disassembly(tmp_path: Path) -> None:
    for name, divide, calls in (
        ("__fdividef", "__fdividef(x[i], y[i])", 0),
        ("/", "x[i] / y[i]", 1),
    ):
        source = (
            'extern "C" __global__ void planted(const float* x, float* y)'
            f"{{ int i = threadIdx.x; y[i] = {divide}; }}"
        )
        kernel = _compile(tmp_path, source)
        (cubin,) = toolchain.CACHE.glob("planted-sm_90-*.cubin")
        assert kernel.counts.calls == calls, name
        assert kernels.calls_functions(cubin.read_bytes()) == bool(calls), name


def test_what_has_not_changed_is_not_compiled_again(tmp_path: Path) -> None:
    file = tmp_path / "twice.cu"
    file.write_text(SIMPLE)
    try:
        first = toolchain.compile_cuda(file, 90)
    except toolchain.ToolMissing as missing:
        pytest.skip(str(missing))
    written = first.stat().st_mtime_ns
    assert toolchain.compile_cuda(file, 90) == first and first.stat().st_mtime_ns == written
    file.write_text(SIMPLE.replace("^ 1", "^ 2"))
    second = toolchain.compile_cuda(file, 90)
    assert second != first and not first.exists()
