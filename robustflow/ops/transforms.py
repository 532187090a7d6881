"""The transforms as operators."""

from __future__ import annotations

from robustflow import _transforms, _triton, reference
from robustflow._spec import Spec
from robustflow.ops.registry import Transform

TRANSFORMS = {spec.name: Transform(spec, getattr(reference, spec.name)) for spec in _transforms.ALL}

if _triton.load():
    for transform in TRANSFORMS.values():
        transform.add_implementation(
            "triton",
            *_triton.kernels.functions(transform.spec),
            traced=not _triton.INTERPRETED,  # the interpreter needs numbers, not traces
        )


def of(spec: Spec) -> Transform:
    """The operators of a transform."""
    return TRANSFORMS[spec.name]
