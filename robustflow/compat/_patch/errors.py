"""The one error of patching."""


class PatchError(RuntimeError):
    """A library cannot be patched: it is missing, or is not the one that the kernels know."""
