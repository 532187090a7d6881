"""The emulated suite finds faults that are planted in copies of the kernels."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.backends.emulated.build import ROOT, Missing, build, toolchain
from tests.backends.emulated.process import SUITE, run_tests

pytestmark = [pytest.mark.emulated, pytest.mark.slow]


@dataclass(frozen=True)
class Fault:
    """A change of one file, and how the suite must fail on it.

    ``compiled``: the source to compile with it; the others stay as they are.
    ``case``: of the suite, to run; ``status`` and ``finding``: how pytest then ends, and says why.
    """

    file: str
    before: str
    after: str
    compiled: str
    case: str
    status: int
    finding: str


FAULTS = {
    # Forward, every thread has left its number before another one adds it up.
    "missing barrier": Fault(
        "staged.h",
        "      if (t < count) logs[t] = logabsdet;\n      barrier();\n",
        "      if (t < count) logs[t] = logabsdet;\n",
        compiled="affine.cu",
        case="affine[sigmoid,shift_first]-rows-float32",
        status=1,
        finding="['logabsdet'] differ between threads taken forward and reverse",
    ),
    "write out of bounds": Fault(
        "partials.cu",
        "offset_of(p.space, p.out, element) +",
        "offset_of(p.space, p.out, element) + 1 +",
        compiled="partials.cu",
        case="affine[sigmoid,shift_first]-long-float32",
        status=99,
        finding="AddressSanitizer: heap-buffer-overflow",
    ),
    # x lies otherwise than y, and both within reach.
    "wrong stride": Fault(
        "staged.h",
        "load_element<V>(p.x, offset_of(p.space, p.x, e))",
        "load_element<V>(p.x, offset_of(p.space, p.y, e))",
        compiled="affine.cu",
        case="affine[sigmoid,shift_first]-rows_sliced-float16",
        status=1,
        finding="times the bound of",
    ),
}


def plant(fault: Fault, folder: Path) -> Path:
    """A copy of csrc with the fault in it."""
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    file = csrc / "cuda" / fault.file
    text = file.read_text()
    assert text.count(fault.before) == 1, f"{fault.file} no longer holds {fault.before!r} once."
    file.write_text(text.replace(fault.before, fault.after))
    return csrc


def _test_of(fault: Fault) -> str:
    return f"{SUITE}::test_matches_the_oracle_in_every_order_of_the_threads[{fault.case}]"


@pytest.fixture(scope="module")
def sound() -> None:
    """Without a fault the faults' cases pass."""
    try:
        toolchain()
    except Missing as missing:
        pytest.skip(f"No fault was planted. {missing}")
    outcome = run_tests(build(), *map(_test_of, FAULTS.values()))
    assert outcome.status == 0, outcome.last_lines
    assert f"{len(FAULTS)} passed" in outcome.output, outcome.last_lines


@pytest.mark.usefixtures("sound")
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, tmp_path: Path) -> None:
    fault = FAULTS[name]
    library = build(plant(fault, tmp_path), only={fault.compiled})
    outcome = run_tests(library, _test_of(fault))
    assert outcome.status == fault.status and fault.finding in outcome.output, outcome.last_lines
