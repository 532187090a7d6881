"""Triton kernels: every operation on a GPU, in portable Triton, beside the mathematics.

Functions have the positional arguments of the operators that robustflow/ops defines. They run
wherever Triton does, and with ``TRITON_INTERPRET=1`` slowly on CPU tensors, for tests. One file an
operation holds its kernels and then their launchers:

- ``modified_rq``, ``rq`` and ``affine``, on ``elementary``, ``rq_bin`` and ``rq_spline``, which are
  csrc/math in Triton, step for step;
- ``plan``: which dimensions merge, and what a program does; ``indexing``: that inside a kernel;
- ``run``: allocation, sums over dimensions, calls with more dimensions than a kernel's arguments;
- ``sums``: the second pass of sums; ``launch``: the way into a kernel, or into torch.compile.
"""

from robustflow.kernels.affine import affine, affine_backward
from robustflow.kernels.modified_rq import modified_rq, modified_rq_backward
from robustflow.kernels.rq import rq, rq_backward

__all__ = [
    "affine",
    "affine_backward",
    "modified_rq",
    "modified_rq_backward",
    "rq",
    "rq_backward",
]
