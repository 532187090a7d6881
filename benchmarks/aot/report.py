"""The table of compiled kernels, for people."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.aot.kernels import Compiled
from robustflow.benchmarks.rows import table


def kernel_table(kernels: Iterable[Compiled]) -> str:
    """What each compiled kernel takes; its accesses, where it has been disassembled."""
    header = ["kernel", "regs", "stack", "shared", "threads", "blocks", "warps", "limit",
              "loads", "stores"]  # fmt: skip
    return table(
        header,
        [
            [
                f"{kernel.backend}: {kernel.name}",
                str(kernel.taken.registers),
                str(kernel.taken.stack),
                str(kernel.taken.shared),
                str(kernel.taken.threads),
                str(kernel.occupancy.blocks),
                str(kernel.occupancy.warps),
                kernel.occupancy.limit,
                *(
                    _in_bits(kernel.global_widths(reads)) if kernel.instructions else ""
                    for reads in (True, False)
                ),
            ]
            for kernel in kernels
        ],
    )


def _in_bits(sizes: tuple[int, ...]) -> str:
    """Sizes of accesses as the disassembly names them."""
    return "/".join(str(8 * size) for size in sizes) or "-"
