"""``python -m benchmarks.aot``: compile every GPU kernel and print what it takes; needs no GPU."""

from __future__ import annotations

import argparse
import sys

from benchmarks.aot import report
from benchmarks.aot.kernels import cuda_kernels, triton_kernels
from benchmarks.aot.occupancy import MULTIPROCESSORS
from benchmarks.aot.toolchain import ToolMissing


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__)
    parser.add_argument(
        "--arch",
        type=int,
        nargs="+",
        default=[90],
        choices=sorted(MULTIPROCESSORS),
        help="architectures to compile the kernels for",
    )
    options = parser.parse_args(arguments)
    try:
        for arch in options.arch:
            kernels = [*cuda_kernels(arch), *triton_kernels(arch)]
            print(f"sm_{arch}\n{report.kernel_table(kernels)}\n")
    except ToolMissing as missing:
        print(missing, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
