"""How many blocks and warps of a kernel fit on a multiprocessor.

The limits are from the table of technical specifications by compute capability in NVIDIA's CUDA
programming guide. Each of the four schedulers has a quarter of the registers; a warp gets registers
in units of 256. A block gets shared memory in units of 128 bytes, and the system takes 1 KiB more.
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
    """The blocks and warps that a multiprocessor holds at once, and what limits them."""

    blocks: int
    warps: int
    limit: str


def occupancy(arch: int, threads: int, registers: int, shared_bytes: int = 0) -> Occupancy:
    """The occupancy of a kernel.

    Args:
        arch: the architecture, 90 for sm_90.
        threads: threads of a block.
        registers: registers of a thread.
        shared_bytes: shared memory of a block, static and dynamic.

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
    warp_registers = _round_up(registers * _WARP, _REGISTER_UNIT)
    block_shared_bytes = _round_up(shared_bytes + _SHARED_SYSTEM, _SHARED_UNIT)
    blocks = {
        "warps": limits.warps // warps,
        "blocks": limits.blocks,
        "registers": _REGISTERS // _SCHEDULERS // warp_registers * _SCHEDULERS // warps,
        "shared memory": limits.shared_bytes // block_shared_bytes,
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
