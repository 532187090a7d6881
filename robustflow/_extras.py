"""Packages that only an extra installs: where one is missing, a sentence names the extra."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType, TracebackType


def explain(what: str, error: ModuleNotFoundError, extra: str) -> str | None:
    """A sentence that names the extra; None where a module of robustflow itself is missing."""
    package = (error.name or "robustflow").partition(".")[0]
    if package == "robustflow":
        return None
    return f"{what} needs the package {package}: pip install 'robustflow[{extra}]'"


def require(module: str, what: str, extra: str) -> ModuleType:
    """A module that an extra installs.

    Raises:
        ModuleNotFoundError: it is missing; the text is that sentence.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        sentence = explain(what, error, extra)
        if sentence is None:
            raise
        raise ModuleNotFoundError(sentence, name=error.name) from None


def explain_when_run(extra: str, others: Mapping[str, str]) -> None:
    """Let ``python -m`` of any module of a package end with that sentence, without a traceback.

    Called by the package's ``__init__``, which runs before the module; it does nothing where the
    package is imported otherwise.

    Args:
        extra: what installs a missing package, unless ``others`` names it.
        others: by package, the extra that installs it.
    """
    if sys.argv[:1] != ["-m"]:  # its value while `python -m` looks for the module
        return

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, ModuleNotFoundError):
            named = others.get((error.name or "").partition(".")[0], extra)
            if sentence := explain("This module", error, named):
                print(sentence, file=sys.stderr)
                return
        sys.__excepthook__(kind, error, traceback)

    sys.excepthook = hook
