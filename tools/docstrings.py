"""How mkdocs reads the docstrings: ``Example:`` is code, and Sphinx roles become links."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([\w.]+)`")
_LINK = r'<autoref optional identifier="\1"><code>\1</code></autoref>'


class Docstrings(griffe.Extension):
    """griffe calls it with each object of the package; mkdocs-autorefs resolves the links."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = _ROLE.sub(_LINK, text)
