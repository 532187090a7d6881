"""Control flow of a disassembled function: basic blocks, loops, and what one pass of a loop costs.

A pass is counted along one way through the loop, from its head back to it: rare branches are those
that lie on other ways. Which way a workload takes shows in the bytes that it moves: of the ways of
a loop, the one is taken whose global reads and writes come nearest to what is asked for. Of several
ways that move the same bytes only one is kept: one without a call before one with, then one of wide
accesses before one of narrow ones (whole vectors rather than remainders), then the one with the
most instructions (of alternatives that an option chooses between, the dearer). A guarded
instruction counts as executed. A loop inside is not part of a pass: it has passes of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from benchmarks.aot.pipes import Counts
from benchmarks.aot.sass import Instruction


@dataclass
class Block:
    """Instructions that execute one after another, and the blocks that may follow."""

    instructions: tuple[Instruction, ...]
    successors: tuple[int, ...]

    @cached_property
    def counts(self) -> Counts:
        return Counts.of(self.instructions)


# Ways through some code, by the bytes of global memory that they read, those that they write, and
# the number of stores.
Ways = dict[tuple[int, int, int], Counts]


def way_of(ways: Ways, reads: float, writes: float, stores: int = 1) -> Counts:
    """The way that moves the bytes nearest to these; of several, with the stores nearest to so
    many."""

    def distance(moved: tuple[int, int, int]) -> tuple[float, int]:
        return abs(moved[0] - reads) + abs(moved[1] - writes), abs(moved[2] - stores)

    return ways[min(ways, key=distance)]


@dataclass(frozen=True)
class Loop:
    """A loop.

    Attributes:
        address: of its head.
        parent: index of the loop that holds it, or -1.
        ways: of one pass.
    """

    address: int
    parent: int
    ways: Ways

    @property
    def widest(self) -> Counts:
        """The way that moves the most bytes."""
        return self.ways[max(self.ways, key=sum)]


def blocks_of(instructions: Sequence[Instruction]) -> list[Block]:
    """Basic blocks in the order of their addresses.

    Raises:
        ValueError: a jump through a table, whose targets the disassembly does not give.
    """
    for instruction in instructions:
        if instruction.control == "indirect":
            raise ValueError(
                f"The jump at {instruction.address:#x} goes through a table: its ways are unknown."
            )
    index = {instruction.address: i for i, instruction in enumerate(instructions)}
    starts = {0}
    for i, instruction in enumerate(instructions):
        if instruction.control in ("jump", "exit"):
            starts.add(i + 1)
            if instruction.control == "jump":
                starts.add(index[_target(instruction)])
    order = sorted(start for start in starts if start < len(instructions))
    number = {start: i for i, start in enumerate(order)}
    blocks = []
    for start, end in zip(order, [*order[1:], len(instructions)], strict=True):
        last = instructions[end - 1]
        successors = []
        if last.control == "jump":
            successors.append(number[index[_target(last)]])
        falls_through = last.control in ("", "call") or last.conditional
        if falls_through and end in number:
            successors.append(number[end])
        blocks.append(Block(tuple(instructions[start:end]), tuple(dict.fromkeys(successors))))
    return blocks


def loops_of(instructions: Sequence[Instruction]) -> list[Loop]:
    """The loops of a function, outer ones before those inside them, then by address.

    Example:
        >>> from benchmarks.aot.sass import parse
        >>> text = '''
        ...     Function : f
        ...         /*0000*/                  MOV R0, RZ ;
        ...         /*0010*/                  FADD R1, R1, R0 ;
        ...         /*0020*/              @P0 BRA 0x10 ;
        ...         /*0030*/                  EXIT ;
        ... '''
        >>> [(hex(loop.address), loop.widest.issue) for loop in loops_of(parse(text)["f"])]
        [('0x10', 2)]
    """
    blocks = blocks_of(instructions)
    order, back_edges = _depth_first(blocks)
    bodies = _bodies(blocks, back_edges)
    heads = sorted(bodies, key=lambda head: (-len(bodies[head]), head))
    loops: list[Loop] = []
    for position, head in enumerate(heads):
        # The largest first, so the last is the nearest.
        around = [i for i, other in enumerate(heads[:position]) if bodies[head] < bodies[other]]
        ends = [source for source, to in back_edges if to == head]
        inside = set().union(*(body for body in bodies.values() if body < bodies[head]))
        loops.append(
            Loop(
                blocks[head].instructions[0].address,
                around[-1] if around else -1,
                _ways(blocks, order, back_edges, bodies[head], inside, ends),
            )
        )
    return loops


def ways_through(instructions: Sequence[Instruction]) -> Ways:
    """Ways from the entry of a function to its end, loops left out."""
    blocks = blocks_of(instructions)
    order, back_edges = _depth_first(blocks)
    inside = set().union(*_bodies(blocks, back_edges).values())
    ends = [i for i in order if blocks[i].instructions[-1].control == "exit"]
    return _ways(blocks, order, back_edges, set(order), inside, ends)


def _target(instruction: Instruction) -> int:
    if instruction.target is None:
        raise ValueError(f"A jump to no address: {instruction.opcode} {instruction.operands}.")
    return instruction.target


def _depth_first(blocks: Sequence[Block]) -> tuple[list[int], list[tuple[int, int]]]:
    """Reachable blocks in reverse postorder, and the edges that lead back."""
    state = [0] * len(blocks)  # 0 unseen, 1 on the path, 2 done
    postorder: list[int] = []
    back_edges: list[tuple[int, int]] = []
    stack = [(0, iter(blocks[0].successors))]
    state[0] = 1
    while stack:
        node, successors = stack[-1]
        for successor in successors:
            if state[successor] == 1:
                back_edges.append((node, successor))
            elif state[successor] == 0:
                state[successor] = 1
                stack.append((successor, iter(blocks[successor].successors)))
                break
        else:
            state[node] = 2
            postorder.append(node)
            stack.pop()
    return postorder[::-1], back_edges


def _bodies(blocks: Sequence[Block], back_edges: Sequence[tuple[int, int]]) -> dict[int, set[int]]:
    """The blocks of each loop, by its head: those from which a back edge is reached without it."""
    predecessors: list[list[int]] = [[] for _ in blocks]
    for i, block in enumerate(blocks):
        for successor in block.successors:
            predecessors[successor].append(i)
    bodies: dict[int, set[int]] = {}
    for source, head in back_edges:
        body = bodies.setdefault(head, {head})
        pending = [source]
        while pending:
            node = pending.pop()
            if node not in body:
                body.add(node)
                pending += predecessors[node]
    return bodies


def _ways(
    blocks: Sequence[Block],
    order: Sequence[int],
    back_edges: Sequence[tuple[int, int]],
    body: set[int],
    inside: set[int],
    ends: Sequence[int],
) -> Ways:
    """Ways from the first block of ``body`` in ``order`` to one of ``ends``."""
    back = set(back_edges)
    reaching: dict[int, Ways] = {}
    for node in order:
        if node not in body:
            continue
        arriving = [Counts()] if not reaching else reaching.get(node, {}).values()
        own = Counts() if node in inside else blocks[node].counts
        reaching[node] = _best(way + own for way in arriving)
        for successor in blocks[node].successors:
            if (node, successor) not in back and successor in body:
                known = reaching.get(successor, {})
                reaching[successor] = _best([*known.values(), *reaching[node].values()])
    return _best(way for end in ends for way in reaching.get(end, {}).values())


def _best(ways: Iterable[Counts]) -> Ways:
    best: Ways = {}
    for way in ways:
        stores = sum(
            n for (space, reads, _), n in way.accesses.items() if space == "global" and not reads
        )
        moved = (way.moved("global", True), way.moved("global", False), stores)
        if moved not in best or _preference(way) > _preference(best[moved]):
            best[moved] = way
    return best


def _preference(way: Counts) -> tuple[float, ...]:
    wide = sum(n * size * size for (_, _, size), n in way.accesses.items())
    return -way.calls, wide, way.issue
