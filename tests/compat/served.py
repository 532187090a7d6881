"""What `patched()` gives for a library."""

from __future__ import annotations


def counts(kernel: int = 0, reference: int = 0, fallback: int = 0) -> dict[str, int]:
    return {"kernel": kernel, "reference": reference, "fallback": fallback}
