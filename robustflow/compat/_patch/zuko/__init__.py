"""zuko: ``MonotonicRQSTransform``, and the layers that make one from packed parameters.

zuko makes a transform a call and computes its knots at once. While patched it keeps the parameters
instead and computes ``horizontal``, ``vertical`` and ``derivatives`` when someone reads them; the
kernels need none of them. What a transform keeps is one attribute, which is gone from pickles, and
from all living transforms once the library is restored.

``changes`` says what to change; ``transform`` has the new methods, ``kept`` what a transform keeps,
``knots`` how its knots are computed later. ``packed`` carries packed parameters from a layer to its
transform, ``direct`` says for which layers they need not be cut, and ``inverse`` has the layers'
incremental inverse. ``kernels`` calls the kernels.
"""

from robustflow.compat._patch.zuko.changes import changes, modules

__all__ = ["changes", "modules"]
