"""Triton kernels of all transforms, with their formulas.

They run wherever Triton does; for tests, with ``TRITON_INTERPRET=1``, slowly on CPU tensors.

- ``modified_rq``, ``rq``, ``affine`` and ``cubic_bspline``: the formulas, one file a transform, on
  ``elementary``, ``rq_bin`` and ``rq_spline``, which are csrc/math in Triton, step for step;
- ``loops``: the two kernels around all formulas; ``indexing``: where a program's elements lie;
- ``launchers``: the transforms as functions on tensors, with the positional arguments of the
  operators that robustflow/ops defines, from their specs; how each is launched;
- ``run``: allocation, sums over dimensions, calls with more dimensions than a kernel's arguments;
- ``plan``: which dimensions merge, and what a program does;
- ``sums``: the second pass of sums; ``launch``: the way into a kernel, or into torch.compile.
"""

from robustflow.kernels.launchers import functions

__all__ = ["functions"]
