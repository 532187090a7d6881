"""The results of a benchmark: rows with stable keys, a JSON file, a table."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Row:
    """One measured case.

    Attributes:
        name: the case's name.
        operation: a function of ``robustflow.functional``.
        direction: ``forward``, ``inverse`` or ``forward+backward``.
        shape: of x.
        dtype: of x and the parameters.
        allocator: ``default`` or ``keeping`` (see :mod:`robustflow.benchmarks.allocator`).
        median_s: robustflow's median seconds a call.
        spread: the interquartile range of the seconds over their median.
        elements_per_s: elements of x over ``median_s``.
        bytes: what the operation has to read and write, each tensor once.
        floor_fraction: the time of a copy that moves as many bytes, over ``median_s``.
        peak_bytes: the most memory that one call holds, outputs included and inputs not; None where
            it was not measured.
        ratio: by competitor, its time over ours.
        ratio_spread: by competitor, the spread of that ratio over the rounds of the run. A
            difference between two runs that is smaller may be noise.
    """

    name: str
    operation: str
    direction: str
    shape: tuple[int, ...]
    dtype: str
    allocator: str
    median_s: float
    spread: float
    elements_per_s: float
    bytes: int
    floor_fraction: float
    peak_bytes: int | None = None
    ratio: dict[str, float] = field(default_factory=dict)
    ratio_spread: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Row:
        """The row of a JSON record. Keys that are not in ``KEYS`` are dropped.

        Raises:
            ValueError: a key is missing.
        """
        names = [item.name for item in fields(cls)]
        known = {name: record[name] for name in names if name in record}
        try:
            return cls(**{**known, "shape": tuple(record["shape"])})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"This is no row of a benchmark ({error}): pass a file that a benchmark wrote "
                "with --json."
            ) from error


KEYS = tuple(item.name for item in fields(Row))


@dataclass
class Measured:
    """What a benchmark measured.

    Attributes:
        rows: each case under each allocator.
        left_out: from the name of what was not measured to a sentence that says why.
        failed: from the name of a case to its error. Its results were wrong or it did not run; it
            has no row, and the command fails.
        eager_peaks: by case, the peak bytes of eager PyTorch's training step, without its inputs.
    """

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    eager_peaks: dict[str, int] = field(default_factory=dict)

    def add(self, other: Measured) -> None:
        """Append what another runner measured."""
        self.rows += other.rows
        self.left_out |= other.left_out
        self.failed |= other.failed
        self.eager_peaks |= other.eager_peaks


class RowProvider(Protocol):
    """A module whose rows ``robustflow bench`` includes; ``suite.PROVIDERS`` lists it.

    Names of rows are unique and, like those of cases, consist of parts joined by dots.
    """

    def names(self, quick: bool) -> Sequence[str]:
        """The names of the rows, in order; a quick run may have fewer."""

    def measure(self, filter: str, quick: bool, say: Callable[[str], None]) -> Measured:
        """Measure every row whose name contains ``filter``, calling ``say(name)`` before each.

        Measurements run in processes that ``allocator.run`` starts, which inherit the number of
        threads.
        """


def command_line(arguments: Sequence[str]) -> str:
    """A Python process's command line as a user would type it, without ``--json``.

    Example:
        >>> command_line(["/bin/python3", "-m", "benchmarks.scaling", "--json", "x", "--quick"])
        'python -m benchmarks.scaling --quick'
        >>> command_line(["/bin/python3", "/bin/robustflow", "bench", "--json=x"])
        'robustflow bench'
    """
    words = list(arguments[1:])
    if "--json" in words:
        index = words.index("--json")
        del words[index : index + 2]
    words = [word for word in words if not word.startswith("--json=")]
    if words[:1] == ["-m"]:
        return shlex.join(["python", *words])
    words[:1] = [Path(word).name for word in words[:1]]
    return shlex.join(words)


def write_json(path: Path, machine: dict[str, Any], rows: Sequence[Row], **more: Any) -> bool:
    """Write ``{"machine": …, "command": …, "rows": […], **more}`` to a file, atomically.

    Returns:
        Whether the file was written. If not, standard error says why. The record is then saved
        elsewhere and standard error says where, unless ``more`` has ``complete=False``: a later
        call will write it again.
    """
    from robustflow._files import save, write_atomically  # imports torch, which readers do not need

    record = {
        "machine": machine,
        "command": command_line(sys.orig_argv),
        "rows": [asdict(row) for row in rows],
        **more,
    }
    text = json.dumps(record, indent=2) + "\n"
    if more.get("complete", True):
        return save(path, text)
    try:
        write_atomically(path, text)
    except OSError as error:
        print(f"{path} could not be written yet: {error}.", file=sys.stderr)
        return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """The content of a file that :func:`write_json` wrote.

    Raises:
        ValueError: there is no such file, or it is no benchmark's.
    """
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(record, dict) or not {"machine", "rows"} <= record.keys():
        raise ValueError(
            f"{path} has no rows and machine: pass a file that a benchmark wrote with --json."
        )
    return record


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that :func:`write_json` wrote."""
    return [Row.from_json(record) for record in read_json(path)["rows"]]


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right.

    Example:
        >>> print(table(["case", "ms"], [["a", "1.5"], ["bb", "12"]]))
        case   ms
        a     1.5
        bb     12
    """
    cells = [list(header), *(list(line) for line in lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best.

    Example:
        >>> duration(0.00412)
        '4.12 ms'
    """
    unit, size = next(
        ((unit, size) for unit, size in (("s", 1.0), ("ms", 1e-3)) if seconds >= size),
        ("us", 1e-6),
    )
    return f"{seconds / size:.3g} {unit}"
