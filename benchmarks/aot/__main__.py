"""``python -m benchmarks.aot``: compile every GPU kernel and print its resources, without a GPU."""

from __future__ import annotations

import argparse
import sys

from benchmarks.aot import report
from benchmarks.aot.kernels import (
    cuda_kernels,
    cuda_sources,
    triton_kernels,
    triton_launches,
)
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
    parser.add_argument(
        "--only",
        default="",
        metavar="NAME",
        help="only kernels whose name contains this, * and ? being wildcards: cuda:FILE, as in "
        "cuda:affine, or triton:LAUNCH, as in triton:rq8-forward-rows-fp32",
    )
    options = parser.parse_args(arguments)
    try:
        if not cuda_sources(options.only) and not triton_launches(options.only):
            names = [f"cuda:{source.stem}" for source in cuda_sources()]
            names += [f"triton:{launch.name}" for launch in triton_launches()]
            parser.error(
                f"no kernel's name contains {options.only!r}; there are {', '.join(names)}"
            )
        for arch in options.arch:
            kernels = [*cuda_kernels(arch, options.only), *triton_kernels(arch, options.only)]
            print(f"sm_{arch}\n{report.kernel_table(kernels)}\n")
    except ToolMissing as missing:
        print(missing, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
