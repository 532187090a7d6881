"""The registered operators: schemas, fake kernels, autograd, vmap, and the choice of backend.

Operators take tensors in canonical form: ``x`` of any shape S, and parameters whose last
dimension is the parameter axis and whose other dimensions equal S or are 1. A packed tensor is
brought to that form by a view. A transform is described in robustflow/_transforms.py. It has
implementations (``registry``), of which :mod:`robustflow._backend` names the one that serves a
call.
"""

from robustflow.ops.transforms import TRANSFORMS, of

__all__ = ["TRANSFORMS", "of"]
