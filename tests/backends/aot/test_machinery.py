"""What the checks rest on: the parser, the rules of occupancy; and planted faults show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from benchmarks.aot import __main__ as command
from benchmarks.aot import kernels, sass, toolchain
from benchmarks.aot.occupancy import occupancy
from tests.backends.aot.test_kernels import spills

pytestmark = pytest.mark.aot

TEXT = """
        Function : kernel
    .headerflags    @"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;          /* 0x00000a00ff017b82 */
                                                                   /* 0x000fe20000000800 */
        /*0010*/              @!P1 BRA 0x40 ;                      /* 0x0 */
        /*0020*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0030*/                   FFMA.FTZ R4, R4, R5, -R6 ;
        /*0040*/              @!P1 LDG.E R4, desc[UR4][R2.64] ;
        /*0050*/                   STS.U16 [R2], R4 ;
        /*0060*/              @P3  CALL.REL.NOINC 0x90 ;
        /*0070*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0080*/                   EXIT ;
        /*0090*/                   RET.REL.NODEC R20 0x0 ;
"""


@pytest.mark.parametrize("module", ["occupancy", "sass", "toolchain"])
def test_examples(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"benchmarks.aot.{module}")).failed == 0


def test_parser() -> None:
    instructions = sass.parse(TEXT)["kernel"]
    assert [instruction.name for instruction in instructions] == [
        *("LDC", "BRA", "LDG", "FFMA", "LDG", "STS", "CALL", "STG", "EXIT", "RET"),
    ]
    assert instructions[2].opcode == "LDG.E.128.CONSTANT"
    assert instructions[2].access == sass.Access("global", True, 16)
    assert instructions[5].access == sass.Access("shared", False, 2)
    assert instructions[3].access is None
    assert sass.access_widths(instructions, "global", True) == (16, 4)
    assert sass.access_widths(instructions, "global", False) == (8,)


def test_parser_wants_a_disassembly() -> None:
    with pytest.raises(ValueError, match="no disassembly"):
        sass.parse("nothing of the kind")


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
            "_ZN10robustflow10cuda_lanes15planar_gradientINS0_8AffineOpINS0_9FastFloatEEEffLb1EEEv"
            "NS0_14PlanarGradientIT_EE",
            "planar_gradient<AffineOp FastFloat float float true>",
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
    return kernels.Compiled("cuda", symbol, 90, taken, instructions, float32=True)


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
    assert kernel.global_widths(reads=True) == kernel.global_widths(reads=False) == (16,)


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
        assert kernel.calls == calls, name
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


def _selected(only: str) -> list[str]:
    return [
        *(f"cuda:{source.stem}" for source in kernels.cuda_sources(only)),
        *(f"triton:{launch.name}" for launch in kernels.triton_launches(only)),
    ]


def test_only_some_kernels_are_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton")
    assert {name.partition(":")[0] for name in _selected("")} == {"cuda", "triton"}
    affine = _selected("affine")
    assert "cuda:affine" in affine and "triton:affine-inverse-rows-fp32:gradient_kernel" in affine
    assert not any("rq" in name for name in affine)
    assert _selected("cuda:rq") == ["cuda:rq_gradient", "cuda:rq_transform"]
    assert _selected("triton:rq8*-rows-fp32:grad") == [
        "triton:rq8-forward-rows-fp32:gradient_kernel",
        "triton:rq8-inverse-rows-fp32:gradient_kernel",
    ]

    compiled: list[str] = []

    def compile_nothing(source: Path, arch: int) -> Path:
        compiled.append(f"{source.stem} for sm_{arch}")
        return source

    monkeypatch.setattr(kernels, "compile_cuda", compile_nothing)
    monkeypatch.setattr(kernels, "resources", lambda cubin: {})
    assert command.main(["--only", "cuda:rq", "--arch", "90", "80"]) == 0
    assert compiled == [
        *("rq_gradient for sm_90", "rq_transform for sm_90"),
        *("rq_gradient for sm_80", "rq_transform for sm_80"),
    ]
    with pytest.raises(SystemExit):
        command.main(["--only", "nothing"])
    assert "no kernel's name contains 'nothing'; there are cuda:affine" in capsys.readouterr().err
