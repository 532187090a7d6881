"""Tables of kernels and of predictions, for people."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.aot.kernels import Compiled
from benchmarks.aot.pipes import ALU, FP32, IMAD, LSU, XU
from benchmarks.aot.predict import Prediction
from benchmarks.rows import table

LEGEND = """\
Predicted, not measured. Instructions of a thread for one element, by unit: fp32 (additions,
multiplications), int (integers, comparisons, selections), load/store, special (functions and
conversions). Cycles of a multiprocessor for one element: memory at the card's bandwidth, issue at
four warps a cycle, and the busiest unit. "of floor": the time of the bytes over the predicted one.
A branch off the way that moves the contract's bytes counts as never taken; a guarded instruction
as executed; of options that only instructions tell apart, the dearer."""


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
                    _widths(kernel.counts.widths("global", reads)) if kernel.instructions else ""
                    for reads in (True, False)
                ),
            ]
            for kernel in kernels
        ],
    )


def prediction_table(predictions: Iterable[Prediction]) -> str:
    """What each subject should come to on its card."""
    header = ["prediction", "card", "bytes", "regs", "warps", "loads", "stores", "instr", "fp32",
              "int", "ld/st", "special", "memory", "issue", "busiest", "bound by", "G/s",
              "of floor"]  # fmt: skip
    lines = []
    for p in predictions:
        units = {name: n for name, n in p.cycles.items() if name not in ("memory", "issue")}
        busiest = max(units, key=lambda name: units[name])
        n = p.instructions
        lines.append(
            [
                p.name,
                p.card,
                str(p.bytes),
                str(p.registers),
                str(p.warps),
                _widths(p.loads),
                _widths(p.stores),
                f"{n['all']:.0f}",
                f"{n.get(FP32, 0):.0f}",
                f"{n.get(ALU, 0) + n.get(IMAD, 0):.0f}",
                f"{n.get(LSU, 0):.1f}",
                f"{n.get(XU, 0):.1f}",
                f"{p.cycles['memory']:.2f}",
                f"{p.cycles['issue']:.2f}",
                f"{units[busiest]:.2f} {busiest}",
                p.bound,
                f"{p.elements_per_s / 1e9:.1f}",
                f"{p.fraction:.0%}",
            ]
        )
    return table(header, lines)


def _widths(sizes: tuple[int, ...]) -> str:
    """Accesses as the disassembly names them: in bits."""
    return "/".join(str(8 * size) for size in sizes) or "-"
