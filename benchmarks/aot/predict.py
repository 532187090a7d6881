"""Predictions: how long an element takes by its bytes and by its instructions, and which is longer.

The model is a bound, not a simulation: every unit is busy all the time that it has work, so the
slowest one decides. Latency, divergence and the last partly filled wave of blocks are left out. A
GPU run confirms a prediction where it reaches most of it, and refutes it where it is faster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.aot.catalogue import Subject
from benchmarks.aot.kernels import Compiled
from benchmarks.aot.occupancy import occupancy
from benchmarks.aot.pipes import THROUGHPUT, Counts
from benchmarks.aot.toolchain import Resources
from benchmarks.gpu.predictions import MEMORY


@dataclass(frozen=True)
class Card:
    """A GPU: bytes a second that a copy moves, multiprocessors, cycles a second."""

    name: str
    arch: int
    bandwidth: float
    multiprocessors: int
    clock: float

    @property
    def bytes_per_cycle(self) -> float:
        """Of one multiprocessor's share."""
        return self.bandwidth / self.multiprocessors / self.clock

    def seconds(self, cycles: float) -> float:
        """In which each multiprocessor spends this many cycles on an element."""
        return cycles / self.multiprocessors / self.clock


CARDS = (
    Card("H100", 90, bandwidth=3.0e12, multiprocessors=132, clock=1.75e9),
    Card("H200", 90, bandwidth=4.3e12, multiprocessors=132, clock=1.75e9),
)


@dataclass(frozen=True)
class Prediction:
    """Of one subject on one card.

    Attributes:
        backend, transform, num_bins, direction, layout, dtype, parameter_dtype: the subject.
        fraction: the time of the bytes over the predicted time: 1 where memory is the limit.
        bound: ``memory``, or the unit that is busy longer.
        instructions: an element, by pipe (``benchmarks.aot.pipes``), and in all.
        cycles: of a multiprocessor for an element, by what they are spent on; ``memory`` is the
            time of the bytes.
        elements_per_s: at the predicted time.
        moved: bytes of global memory that the counted instructions access, an element.
        loads, stores: bytes of the global accesses of a thread, the widest first.
    """

    backend: str
    transform: str
    num_bins: int
    direction: str
    layout: str
    dtype: str
    parameter_dtype: str
    fraction: float
    bound: str
    elements_per_s: float
    kernel: str
    card: str
    bytes: int
    registers: int
    stack: int
    static_shared: int
    dynamic_shared: int
    threads: int
    blocks: int
    warps: int
    occupancy_limit: str
    loads: tuple[int, ...]
    stores: tuple[int, ...]
    moved: float
    instructions: dict[str, float]
    cycles: dict[str, float]

    @property
    def name(self) -> str:
        """The subject's."""
        bins = self.num_bins or ""
        return f"{self.backend}.{self.transform}{bins}.{self.direction}.{self.layout}.{self.dtype}"

    @property
    def bound_by_instructions(self) -> bool:
        return self.bound != MEMORY


def predict(card: Card, subject: Subject, counts: Counts, taken: Resources) -> Prediction:
    """From what an element costs and what the kernel takes."""
    held = occupancy(
        card.arch, taken.threads, taken.registers, taken.shared + subject.dynamic_shared
    )
    cycles = THROUGHPUT[card.arch].cycles(counts)
    cycles[MEMORY] = subject.bytes / card.bytes_per_cycle
    bound = max(cycles, key=lambda name: cycles[name])
    return Prediction(
        backend=subject.backend,
        transform=subject.transform,
        num_bins=subject.num_bins,
        direction=subject.direction,
        layout=subject.layout,
        dtype=subject.dtype,
        parameter_dtype=subject.dtype,
        fraction=round(cycles[MEMORY] / cycles[bound], 3),
        bound=bound,
        elements_per_s=round(1 / card.seconds(cycles[bound])),
        kernel=subject.kernel,
        card=card.name,
        bytes=subject.bytes,
        registers=taken.registers,
        stack=taken.stack,
        static_shared=taken.shared,
        dynamic_shared=subject.dynamic_shared,
        threads=taken.threads,
        blocks=held.blocks,
        warps=held.warps,
        occupancy_limit=held.limit,
        loads=counts.widths("global", True),
        stores=counts.widths("global", False),
        moved=round(counts.moved("global", True) + counts.moved("global", False), 1),
        instructions={
            "all": round(counts.issue, 1),
            **{pipe: round(count, 1) for pipe, count in sorted(counts.pipes.items())},
        },
        cycles={name: round(value, 3) for name, value in cycles.items()},
    )


def predictions(compiled: Iterable[Compiled], card: Card = CARDS[0]) -> list[Prediction]:
    """Of every compiled kernel that the catalogue has a subject for.

    Raises:
        ValueError: a kernel's loops are not those that the catalogue expects.
    """
    made = [
        predict(card, subject, subject.counts(kernel.instructions), kernel.taken)
        for kernel in compiled
        for subject in kernel.subjects
    ]
    return sorted(made, key=lambda prediction: prediction.name)


def record(made: list[Prediction], compilers: dict[str, str]) -> dict[str, Any]:
    """Predictions as they are kept in a file: never to be taken for measurements."""
    cards = {prediction.card for prediction in made}
    return {
        "kind": "predicted, not measured",
        "arch": "sm_90",
        "cards": [asdict(card) for card in CARDS if card.name in cards],
        "compilers": compilers,
        "predictions": [asdict(prediction) for prediction in made],
    }
