"""Every Triton kernel as it is launched: what to compile ahead of time, without a GPU.

The launchers are called on meta tensors, which have shapes and strides and no data, and their
launches are recorded instead of run. So a signature here is that of a call, never written by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from robustflow import _transforms, kernels
from robustflow._spec import Spec

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
}


@dataclass(frozen=True)
class Launch:
    """One kernel, specialised.

    ``signature`` maps each argument to its type ("constexpr" for those in ``constants``);
    ``divisible`` are the positions of arguments that are multiples of 16, as pointers and numbers
    from real calls are told to Triton's compiler to be.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[int, ...]
    num_warps: int
    enable_fp_fusion: bool = False

    def __str__(self) -> str:
        return self.name

    def compile(self, architecture: int = 90) -> Any:
        """Compile for sm_<architecture>: ``asm`` (ttgir, ptx, cubin) and ``metadata``."""
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        positions = {name: i for i, name in enumerate(self.kernel.arg_names)}
        source = ASTSource(
            self.kernel,
            self.signature,
            {(positions[name],): value for name, value in self.constants.items()},
            {(i,): [["tt.divisibility", 16]] for i in self.divisible},
        )
        options = {"num_warps": self.num_warps, "enable_fp_fusion": self.enable_fp_fusion}
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def describe(
    name: str, kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any], num_warps: int
) -> Launch:
    """What Triton would make of the arguments of a launch: 1 is a constant, 16 n divisible."""
    signature: dict[str, str] = {}
    fixed: dict[str, Any] = {}
    divisible: list[int] = []
    for i, (argument, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        if isinstance(value, Tensor):
            signature[argument] = f"*{TYPES[value.dtype]}"
            if value.storage_offset() * value.element_size() % 16 == 0:
                divisible.append(i)
        elif isinstance(value, float):
            signature[argument] = "fp64"
        elif value is None or value == 1:
            signature[argument], fixed[argument] = "constexpr", value
        else:
            signature[argument] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                divisible.append(i)
    signature |= dict.fromkeys(constants, "constexpr")
    return Launch(name, kernel, signature, fixed | constants, tuple(divisible), num_warps)


@contextmanager
def recorded(name: str, launches: list[Launch]) -> Iterator[None]:
    """Within it, launches are appended to a list, and not run."""

    def launch(
        kernel: Any,
        programs: int,
        arguments: tuple[Any, ...],
        constants: dict[str, Any],
        num_warps: int,
    ) -> None:
        what = f"{name}:{kernel.__name__}"
        launches.append(describe(what, kernel, arguments, constants, num_warps))

    with mock.patch.multiple("robustflow.kernels.launch", launch=launch):
        patches = [
            mock.patch(f"robustflow.kernels.{module}.launch", launch)
            for module in ("launchers", "sums")
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


# Large enough that a program has as many tiles as it would have in earnest.
_IMAGE = (16, 12, 160, 160)
_ROWS = (1 << 20, 8)


def _planar(shape: tuple[int, ...], planes: int, dtype: torch.dtype) -> Tensor:
    """(N, C, *S, P) as a view of a conditioner's (N, C*P, *S)."""
    packed = torch.empty(shape[0], shape[1] * planes, *shape[2:], device="meta", dtype=dtype)
    return packed.unflatten(1, (shape[1], planes)).movedim(2, -1)


def _rows(shape: tuple[int, ...], planes: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, planes, device="meta", dtype=dtype)


def _both(
    name: str,
    spec: Spec,
    x: Tensor,
    params: tuple[Tensor | None, ...],
    config: tuple[Any, ...],
) -> list[Launch]:
    """A transform's launches and its gradient's, summed over each sample."""
    wide = any(t is not None and t.dtype == torch.float64 for t in (x, *params))
    grad_logabsdet = torch.empty(
        x.shape[:1], device="meta", dtype=torch.float64 if wide else torch.float32
    )
    launches: list[Launch] = []
    forward, backward = kernels.functions(spec)
    with recorded(name, launches):
        forward(x, *params, *config, 1)
        backward(torch.empty_like(x), grad_logabsdet, x, *params, *config, 1, 15)
    return launches


def _modified_rq(
    name: str,
    params: Tensor,
    x_dtype: torch.dtype,
    inverse: bool,
    shape: tuple[int, ...] = _IMAGE,
    softclip: bool = False,
) -> list[Launch]:
    x = torch.empty(shape, device="meta", dtype=x_dtype)
    config = (inverse, -3.0, 3.0, 1e-3, 1e-3, softclip)
    return _both(name, _transforms.MODIFIED_RQ, x, (params,), config)


def _affine(
    name: str, params: Tensor, x_dtype: torch.dtype, inverse: bool, shape: tuple[int, ...] = _IMAGE
) -> list[Launch]:
    x = torch.empty(shape, device="meta", dtype=x_dtype)
    config = (inverse, 0, 1e-4, 2.0, True, False)
    return _both(name, _transforms.AFFINE, x, (params, None), config)


def _cubic_bspline(name: str, dtype: torch.dtype, inverse: bool) -> list[Launch]:
    x = torch.empty(_IMAGE, device="meta", dtype=dtype)
    config = (inverse, -3.0, 3.0, 1e-2)
    return _both(name, _transforms.CUBIC_BSPLINE, x, (_planar(_IMAGE, 11, dtype),), config)


def _rq(
    name: str,
    params: tuple[Tensor | None, ...],
    x: Tensor,
    num_bins: int,
    inverse: bool,
    tails: int = 1,
    parametrization: int = 0,
) -> list[Launch]:
    config = (
        *(num_bins, inverse, tails, parametrization, -3.0, 3.0, -3.0, 3.0),
        *(1e-3, 1e-3, 1e-3, 1.0),
    )
    return _both(name, _transforms.RQ, x, (*params, None), config)


def all_launches() -> list[Launch]:
    """Every operation, direction and layout, float32; planar ones in every dtype."""
    out: list[Launch] = []
    for inverse in (False, True):
        way = "inverse" if inverse else "forward"
        for dtype, kind in TYPES.items():
            out += _modified_rq(
                f"modified_rq-{way}-planar-{kind}", _planar(_IMAGE, 4, dtype), dtype, inverse
            )
            out += _affine(f"affine-{way}-planar-{kind}", _planar(_IMAGE, 2, dtype), dtype, inverse)
            out += _cubic_bspline(f"cubic_bspline-{way}-planar-{kind}", dtype, inverse)
        f32, bf16 = torch.float32, torch.bfloat16
        for dtype in (f32, bf16):
            rows = _rows(_ROWS, 23, dtype)
            x = torch.empty(_ROWS, device="meta", dtype=dtype)
            name = f"rq8-{way}-packed_rows-{TYPES[dtype]}"
            out += _rq(name, (rows, None, None), x, 8, inverse)
        rows_x = torch.empty(_ROWS, device="meta", dtype=f32)
        image_x = torch.empty(_IMAGE, device="meta", dtype=f32)
        out += _modified_rq(
            f"modified_rq-{way}-rows-fp32", _rows(_ROWS, 4, f32), f32, inverse, _ROWS
        )
        out += _affine(f"affine-{way}-rows-fp32", _rows(_ROWS, 2, f32), f32, inverse, _ROWS)
        out += _modified_rq(
            f"modified_rq-{way}-shared_batch-fp32",
            _planar((1, *_IMAGE[1:]), 4, f32), f32, inverse,
        )  # fmt: skip
        out += _modified_rq(
            f"modified_rq-{way}-shared_space-fp32",
            _planar((*_IMAGE[:2], 1, 1), 4, f32), f32, inverse,
        )  # fmt: skip
        out += _affine(
            f"affine-{way}-shared_batch-fp32", _planar((1, *_IMAGE[1:]), 2, f32), f32, inverse
        )
        for bins in (8, 16, 32, 64):
            parts = tuple(_rows(_ROWS, n, f32) for n in (bins, bins, bins - 1))
            out += _rq(f"rq{bins}-{way}-rows-fp32", parts, rows_x, bins, inverse)
        planar = _planar(_IMAGE, 23, f32)
        out += _rq(f"rq8-{way}-planar-fp32", (planar, None, None), image_x, 8, inverse)
        shared = tuple(_rows((1, _ROWS[1]), n, f32) for n in (8, 8, 7))
        out += _rq(f"rq8-{way}-shared_rows-fp32", shared, rows_x, 8, inverse)
        parts = tuple(_rows(_ROWS, n, f32) for n in (8, 8, 8))
        out += _rq(f"rq8-{way}-rows_circular_softclip-fp32", parts, rows_x, 8, inverse, 2, 1)
        parts = tuple(_rows(_ROWS, n, f32) for n in (8, 8, 9))
        out += _rq(f"rq8-{way}-rows_no_tails_knots-fp32", parts, rows_x, 8, inverse, 0, 2)
    unique: dict[tuple[str, ...], Launch] = {}
    for launch in out:
        key = (launch.kernel.__name__, str(launch.signature), str(launch.constants))
        unique.setdefault((*key, str(launch.divisible)), launch)
    return list(unique.values())
