"""The transforms in plain PyTorch: the oracle of every kernel, and the fallback without one.

Any floating dtype, no boolean-mask gathers, no branch on data: they work under ``torch.compile``
with ``fullgraph=True``, under ``torch.func`` and to any order of differentiation. Each function
takes the positional arguments of the native operator of the same name. Half types compute in
float32, whether autocast is on or not: parameters are converted here, and no operation that
autocast lowers is used.
"""

from robustflow.reference.affine import affine
from robustflow.reference.cubic_bspline import cubic_bspline
from robustflow.reference.modified_rq import modified_rq
from robustflow.reference.rq import rq

__all__ = ["affine", "cubic_bspline", "modified_rq", "rq"]
