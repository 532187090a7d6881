"""`robustflow train` by several processes: `torchrun --nproc-per-node=N -m` this module."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch
from torch import distributed

from robustflow.cli import train


def main(argv: Sequence[str] | None = None) -> int:
    """Join the processes that torchrun started, train, and leave them; the exit code.

    Args:
        argv: the arguments of `robustflow train`; by default those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m robustflow.experiments.train")
    train.add_arguments(parser)
    args = parser.parse_args(argv)
    if "RANK" not in os.environ:  # started without torchrun: one process
        return train.run(args)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        return train.run(args)
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
