"""How many threads a multiprocessor holds: the hardware's rules of allocation.

Figures: the table of technical specifications by compute capability in NVIDIA's CUDA programming
guide. Registers are given to warps in units of 256 from the quarter of the file that belongs to
one scheduler; shared memory to blocks in units of 128 bytes, with 1 KiB of the system's own.
"""

from __future__ import annotations

from dataclasses import dataclass

_WARP = 32
_SCHEDULERS = 4
_REGISTERS = 65536
_REGISTER_UNIT = 256
_SHARED_UNIT = 128
_SHARED_SYSTEM = 1024


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one multiprocessor."""

    warps: int
    blocks: int
    shared_bytes: int
    block_shared_bytes: int


MULTIPROCESSORS = {
    80: Multiprocessor(64, 32, 164 * 1024, 163 * 1024),
    86: Multiprocessor(48, 16, 100 * 1024, 99 * 1024),
    89: Multiprocessor(48, 24, 100 * 1024, 99 * 1024),
    90: Multiprocessor(64, 32, 228 * 1024, 227 * 1024),
    100: Multiprocessor(64, 32, 228 * 1024, 227 * 1024),
    120: Multiprocessor(48, 24, 100 * 1024, 99 * 1024),
}


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps that a multiprocessor holds at once, and what keeps it from holding more."""

    blocks: int
    warps: int
    limit: str


def occupancy(arch: int, threads: int, registers: int, shared_bytes: int = 0) -> Occupancy:
    """Of a kernel of ``threads`` threads a block, on sm_``arch``.

    Args:
        registers: of a thread.
        shared_bytes: of a block, static and dynamic.

    Raises:
        ValueError: an architecture without figures, or a block that cannot run at all.

    Example:
        >>> occupancy(90, threads=256, registers=32)
        Occupancy(blocks=8, warps=64, limit='warps')
    """
    if arch not in MULTIPROCESSORS:
        known = ", ".join(f"sm_{a}" for a in MULTIPROCESSORS)
        raise ValueError(f"No figures for sm_{arch}: known are {known}.")
    limits = MULTIPROCESSORS[arch]
    warps = -(-threads // _WARP)
    of_warp = _round_up(registers * _WARP, _REGISTER_UNIT)
    of_block = _round_up(shared_bytes + _SHARED_SYSTEM, _SHARED_UNIT)
    blocks = {
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
        "registers": _REGISTERS // _SCHEDULERS // of_warp * _SCHEDULERS // warps,
        "shared memory": limits.shared_bytes // of_block,
    }
    limit = min(blocks, key=lambda name: blocks[name])
    if blocks[limit] < 1 or shared_bytes > limits.block_shared_bytes:
        raise ValueError(
            f"A block of {threads} threads with {registers} registers each and {shared_bytes} "
            f"bytes of shared memory does not fit a multiprocessor of sm_{arch}."
        )
    return Occupancy(blocks[limit], blocks[limit] * warps, limit)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
