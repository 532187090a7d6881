"""The transforms as operators."""

from __future__ import annotations

from robustflow import _transforms, _triton, reference
from robustflow.ops.registry import Transform

TRANSFORMS = tuple(Transform(spec, getattr(reference, spec.name)) for spec in _transforms.ALL)
MODIFIED_RQ, RQ, AFFINE = TRANSFORMS

if _triton.load():
    for transform in TRANSFORMS:
        transform.add_implementation(
            "triton",
            *_triton.kernels.functions(transform.spec),
            traced=not _triton.INTERPRETED,  # the interpreter needs numbers, not traces
        )
