"""Experiments that show the exploding inverse, and its absence, on real data.

- :mod:`~robustflow.experiments.photographs`: pictures that scikit-image and scikit-learn ship.
- :mod:`~robustflow.experiments.super_resolution`: small conditional flows for 4x
  super-resolution, alike but for their coupling.
- :mod:`~robustflow.experiments.faults`: the published rule for a faulty sample.
- :mod:`~robustflow.experiments.workers`: one process per model, progress in the parent.
- :mod:`~robustflow.experiments.throughput`: fused kernels against eager and compiled PyTorch.
- :mod:`~robustflow.experiments.figures`: the pictures.
"""
