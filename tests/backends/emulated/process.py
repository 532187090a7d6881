"""pytest in a process of its own, into which AddressSanitizer's library is preloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.backends.emulated.build import ROOT, toolchain

SUITE = Path(__file__).with_name("suite.py")
# What the process must load, and where it leaves the symbols of the kernels that it has launched.
LIBRARY_VARIABLE = "ROBUSTFLOW_EMULATED_LIBRARY"
KERNELS_VARIABLE = "ROBUSTFLOW_EMULATED_KERNELS"

SANITIZER_OPTIONS = {
    # Python and torch keep memory to their end. The first error ends the process.
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:exitcode=99:quarantine_size_mb=32",
    "UBSAN_OPTIONS": "halt_on_error=1:exitcode=99:print_stacktrace=1",
}
# With "sys" pytest leaves the sanitizer's own words, which end the process, where they are seen.
_PYTEST = (
    *(sys.executable, "-m", "pytest", "-q", "--tb=short", "--capture=sys"),
    *("-p", "no:cacheprovider", "-p", "tests.backends.emulated.backend"),
)


@dataclass(frozen=True)
class Outcome:
    """How a process ended, and all of its output."""

    status: int
    output: str

    @property
    def last_lines(self) -> str:
        return self.output[-8000:]


def environment(**variables: str) -> dict[str, str]:
    """This process' environment with AddressSanitizer in it."""
    preload = " ".join(toolchain().preload)
    return {**os.environ, "LD_PRELOAD": preload, **SANITIZER_OPTIONS, **variables}


def run_tests(library: Path, *arguments: str, kernels: Path | None = None) -> Outcome:
    """Tests with a library of the emulated operators as their only target.

    Args:
        library: made by :func:`tests.backends.emulated.build.build`.
        arguments: pytest's.
        kernels: a file to write with the symbols of the kernels that have been launched.
    """
    variables = {LIBRARY_VARIABLE: str(library)}
    if kernels is not None:
        variables[KERNELS_VARIABLE] = str(kernels)
    done = subprocess.run(
        [*_PYTEST, *arguments],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Outcome(done.returncode, done.stdout)
