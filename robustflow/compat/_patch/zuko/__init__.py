"""zuko: its spline transform, and the layers that make one from packed parameters."""

from robustflow.compat._patch.zuko.transform import changes, modules

__all__ = ["changes", "modules"]
