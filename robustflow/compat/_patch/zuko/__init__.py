"""zuko: ``MonotonicRQSTransform``, and the layers that make one from packed parameters.

zuko makes a transform a call and computes its knots at once. While patched it keeps the parameters
instead and computes ``horizontal``, ``vertical`` and ``derivatives`` when someone reads them; the
kernels need none of them. What a transform keeps is plain tensors in a tuple under one attribute,
and it is gone from pickles and from all living transforms once the library is restored.
"""

from robustflow.compat._patch.zuko.changes import changes, modules

__all__ = ["changes", "modules"]
