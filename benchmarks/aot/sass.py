"""The text that ``cuobjdump -sass`` prints, as functions of instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FUNCTION = re.compile(r"^\s*Function : (\S+)\s*$")
_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+"
    r"(?:@(?P<guard>!?U?P\w+)\s+)?"
    r"(?P<opcode>[A-Z][A-Z0-9_]*(?:\.[\w.]+)?)"
    r"(?P<operands>[^;]*);"
)
_ADDRESS = re.compile(r"\b0x([0-9a-f]+)\s*$")

# What transfers control, and where: "jump" (to its target, or past it under a guard), "call",
# "exit" (ends the thread, under a guard only some), "indirect" (anywhere).
_CONTROL = {
    "BRA": "jump",
    "JMP": "jump",
    "CALL": "call",
    "EXIT": "exit",
    "RET": "exit",
    "KILL": "exit",
    "BRX": "indirect",
    "BRXU": "indirect",
    "JMX": "indirect",
    "JMXU": "indirect",
}
# Variants that only serve a warp whose threads have come apart, and go on in the next instruction.
_DIVERGENCE = (".DIV", ".CONV")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        address: in bytes from the start of the function.
        guard: the predicate under which it executes, such as ``!P0``; empty where it always does.
        opcode: with its modifiers, such as ``LDG.E.128.CONSTANT``.
        operands: as printed.
    """

    address: int
    guard: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])

    @property
    def control(self) -> str:
        """``jump``, ``call``, ``exit``, ``indirect``, or empty: the next instruction follows."""
        if self.opcode.endswith(_DIVERGENCE):
            return ""
        return _CONTROL.get(self.name, "")

    @property
    def conditional(self) -> bool:
        """Whether a transfer of control may also fall through."""
        first = self.operands.split(",")[0].strip()
        return self.guard not in ("", "PT", "UPT") or re.fullmatch(r"!?U?P\d", first) is not None

    @property
    def target(self) -> int | None:
        """The address that a jump or call names."""
        found = _ADDRESS.search(self.operands)
        return int(found[1], 16) if found else None

    @property
    def access(self) -> Access | None:
        """The memory that it reads or writes, if any."""
        space = _SPACES.get(self.name)
        if space is None:
            return None
        sizes = [int(m) for m in self.modifiers if m in ("64", "128")]
        narrow = [int(m[1:]) for m in self.modifiers if m in ("U8", "S8", "U16", "S16")]
        return Access(*space, (sizes or narrow or [32])[0] // 8)


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
        >>> [(i.guard, i.name, i.control) for i in parse(text)["f"]]
        [('P0', 'FADD', ''), ('', 'EXIT', 'exit')]
    """
    functions: dict[str, list[Instruction]] = {}
    current: list[Instruction] | None = None
    for line in text.splitlines():
        if named := _FUNCTION.match(line):
            current = functions.setdefault(named[1], [])
        elif (found := _INSTRUCTION.match(line)) and current is not None:
            current.append(
                Instruction(
                    int(found["address"], 16),
                    found["guard"] or "",
                    found["opcode"],
                    found["operands"].strip(),
                )
            )
    if not functions or not all(functions.values()):
        raise ValueError("This is no disassembly: it names no function that holds instructions.")
    return {name: tuple(instructions) for name, instructions in functions.items()}
