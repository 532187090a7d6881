"""Experiments: exploding inverses and their remedies on several kinds of data.

The demonstration:

- :mod:`~robustflow.experiments.photographs`: pictures that scikit-image and scikit-learn ship.
- :mod:`~robustflow.experiments.super_resolution`: small conditional flows for 4x
  super-resolution that differ in their coupling only.
- :mod:`~robustflow.experiments.faults`: the published rule for a faulty sample.
- :mod:`~robustflow.experiments.fitting`: Adam with the published schedule.
- :mod:`~robustflow.experiments.workers`: one process per model, progress in the parent.
- :mod:`~robustflow.experiments.throughput`: fused kernels against eager and compiled PyTorch.
- :mod:`~robustflow.experiments.figures`: the pictures.
- :mod:`~robustflow.experiments.migration`: its affine flow, converted and trained on.
- :mod:`~robustflow.experiments.toy`: the same effect on data in two dimensions, with controls.

Imaging flows, by `robustflow train`, `sample` and `info`:

- :mod:`~robustflow.experiments.tasks`: inverse problems as operators.
- :mod:`~robustflow.experiments.data`: pictures from files, random crops, the built-in set.
- :mod:`~robustflow.experiments.encoders`: networks that make features of an observation.
- :mod:`~robustflow.experiments.imaging`: configuration, model, training, checkpoints, sampling.
"""

from robustflow._extras import explain_when_run

explain_when_run("experiments", {"safetensors": "train"})
