"""``python -m benchmarks.aot``: compile, count, predict, print; no GPU takes part."""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks.aot import predict, report
from benchmarks.aot.kernels import cuda_kernels, pinned_kernels, triton_kernels
from benchmarks.aot.occupancy import MULTIPROCESSORS
from benchmarks.aot.toolchain import ToolMissing, compilers
from robustflow._arguments import output_file
from robustflow._files import save


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
        "--card",
        nargs="+",
        choices=[card.name for card in predict.CARDS],
        default=[card.name for card in predict.CARDS],
        help="the GPUs to predict for",
    )
    parser.add_argument("--json", type=output_file, help="write the predictions to this file")
    options = parser.parse_args(arguments)
    cards = [card for card in predict.CARDS if card.name in options.card]
    made: list[predict.Prediction] = []
    try:
        for arch in options.arch:
            kernels = [*cuda_kernels(arch), *triton_kernels(arch)]
            print(f"sm_{arch}\n{report.kernel_table(kernels)}\n")
        for card in cards:
            subjects = [*pinned_kernels(card.arch), *triton_kernels(card.arch)]
            made += predict.predictions(subjects, card)
    except ToolMissing as missing:
        print(missing, file=sys.stderr)
        return 1
    print(f"{report.prediction_table(made)}\n\n{report.LEGEND}")
    if options.json:
        text = json.dumps(predict.record(made, compilers()), indent=1)
        return 0 if save(options.json, text + "\n") else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
