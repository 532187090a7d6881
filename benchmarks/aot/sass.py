"""The text that ``cuobjdump -sass`` prints, as functions of instructions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_FUNCTION = re.compile(r"^\s*Function : (\S+)\s*$")
_INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+"
    r"(?:@!?U?P\w+\s+)?"  # the predicate under which it executes
    r"(?P<opcode>[A-Z][A-Z0-9_]*(?:\.[\w.]+)?)[^;]*;"
)


@dataclass(frozen=True)
class Access:
    """Memory traffic of one thread in one instruction: its space, direction and bytes."""

    space: str
    reads: bool
    bytes: int


_SPACES = {
    "LDG": ("global", True),
    "LDGSTS": ("global", True),
    "STG": ("global", False),
    "LDS": ("shared", True),
    "STS": ("shared", False),
    "LDL": ("local", True),
    "STL": ("local", False),
}


@dataclass(frozen=True)
class Instruction:
    """One instruction, by its opcode with modifiers, such as ``LDG.E.128.CONSTANT``."""

    opcode: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def access(self) -> Access | None:
        """The memory that it reads or writes, if any."""
        space = _SPACES.get(self.name)
        if space is None:
            return None
        modifiers = self.opcode.split(".")[1:]
        sizes = [int(m) for m in modifiers if m in ("64", "128")]
        narrow = [int(m[1:]) for m in modifiers if m in ("U8", "S8", "U16", "S16")]
        return Access(*space, (sizes or narrow or [32])[0] // 8)


def access_widths(instructions: Iterable[Instruction], space: str, reads: bool) -> tuple[int, ...]:
    """Bytes of the accesses to a space in one direction, the widest first, each once."""
    accesses = (instruction.access for instruction in instructions)
    sizes = {a.bytes for a in accesses if a and (a.space, a.reads) == (space, reads)}
    return tuple(sorted(sizes, reverse=True))


def parse(text: str) -> dict[str, tuple[Instruction, ...]]:
    """Functions by name, in the order in which they are printed.

    Raises:
        ValueError: there is none, or one without instructions: not such a text.

    Example:
        >>> text = '''
        ...     Function : f
        ...         /*0000*/              @P0 FADD.FTZ R0, R1, R2 ;   /* 0x000000 */
        ...         /*0010*/                  EXIT ;
        ... '''
        >>> [i.opcode for i in parse(text)["f"]]
        ['FADD.FTZ', 'EXIT']
    """
    functions: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    for line in text.splitlines():
        if named := _FUNCTION.match(line):
            current = functions.setdefault(named[1], [])
        elif (matched := _INSTRUCTION.match(line)) and current is not None:
            current.append(Instruction(matched["opcode"]))
    if not functions or not all(functions.values()):
        raise ValueError("This is no disassembly: it names no function that holds instructions.")
    return {name: tuple(instructions) for name, instructions in functions.items()}
