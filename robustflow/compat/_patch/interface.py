"""What users call: ``patch``, ``patch_module``, ``unpatch`` and ``patched``."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType

from robustflow._checks import describe
from robustflow._patchable import LIBRARIES
from robustflow.compat._patch import counts, locking, session
from robustflow.compat._patch.nflows_like.functions import changes_of_module
from robustflow.compat._patch.session import Patch

_modules: set[str] = set()  # given to patch_module, whether patched now or not


def patch(name: str) -> Patch:
    """Let robustflow's kernels serve a flow library's rational-quadratic splines.

    The library's functions and methods are changed in place, so existing models and every other
    reference to them run the kernels. Signatures, docstrings, ``state_dict`` and pickles stay as
    they are. If a call uses something the kernels do not support, the library's own code runs. The
    logger ``robustflow.compat`` says why at debug level, once for each reason, and :func:`patched`
    counts it.

    Args:
        name: ``"nflows"``, ``"normflows"``, ``"zuko"``, ``"FrEIA"``, ``"glasflow"`` or
            ``"transformers"`` (VITS).

    Returns:
        A handle with ``restore()``, also a context manager. Patches can be nested and made from
        several threads.

    Raises:
        TypeError: no string.
        ValueError: an unknown name.
        PatchError: the library is not installed, or its functions are not those that the kernels
            know: another signature, or other results on a few random inputs.

    Example:
        >>> import robustflow
        >>> with robustflow.compat.patch("zuko"):  # doctest: +SKIP
        ...     loss = -flow(context).log_prob(x).mean()
        ...     print(robustflow.compat.patched())
        {'zuko': {'kernel': 5, 'reference': 0, 'fallback': 0}}
    """
    _check_name(name)
    if name not in LIBRARIES:
        raise ValueError(
            f"name must be one of {_names(LIBRARIES)}, got {name!r}; use patch_module for a module "
            "that holds a copy of nflows' functions."
        )
    library = importlib.import_module(LIBRARIES[name].module)
    library.modules()  # import it without our lock: a thread that imports it may wait for the lock
    with locking.lock:
        return session.begin(name, library.changes)


def patch_module(module: ModuleType) -> Patch:
    """:func:`patch` for a module that holds a copy of nflows' spline functions.

    ``rational_quadratic_spline`` and ``unconstrained_rational_quadratic_spline``, or one of them,
    with nflows' parameters. Both versions are first compared, in both directions, on random
    inputs: the same name and signature can hide another function.

    Args:
        module: the imported module that defines them.

    Returns:
        A handle, as :func:`patch` does. ``patched()`` and ``unpatch`` know it by the module's name.

    Raises:
        TypeError: not a module.
        PatchError: the module has no such function, or it computes something else; the message
            has the largest difference.
    """
    if not isinstance(module, ModuleType):
        raise TypeError(f"module must be an imported module, got {type(module).__name__}.")
    name = module.__name__
    with locking.lock:
        handle = session.begin(name, lambda: changes_of_module(module, name))
        _modules.add(name)
        return handle


def unpatch(name: str) -> None:
    """Give a library its own code back, however many patches of it are in force.

    Args:
        name: as given to :func:`patch`, or the name of a module given to :func:`patch_module`.
            Nothing happens where it is not patched.

    Raises:
        TypeError: no string.
        ValueError: a name that neither function knows.
    """
    check_known(name)
    with locking.lock:
        session.end(name)


def check_known(name: str) -> None:
    """A library's name, or that of a module which :func:`patch_module` was given.

    Raises:
        TypeError: no string.
        ValueError: neither.
    """
    _check_name(name)
    if name not in LIBRARIES and name not in _modules:
        known = _names([*LIBRARIES, *sorted(_modules)])
        raise ValueError(f"name must be one of {known}, got {name!r}.")


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(
            f"name must be the name of one library, such as 'zuko', got {describe(name)}: make a "
            "call for each library."
        )


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def patched() -> dict[str, dict[str, int]]:
    """What served the calls of the libraries that are patched now, since each patch began.

    Returns:
        For each library ``{"kernel": k, "reference": r, "fallback": f}``, numbers of calls.
        ``"kernel"``: robustflow's kernels. ``"reference"``: its PyTorch reference, where there is
        no native library, where :func:`robustflow.use_backend` chose it, under ``torch.func``
        transforms that differentiate, and in traces and ONNX exports. ``"fallback"``: the
        library's own code. An autoregressive inverse whose network runs once for each feature,
        counts as one ``"fallback"`` beside the calls of its splines.

        A call inside ``torch.compile`` counts once, when it is traced. Each process counts its
        own calls; one that was forked goes on from its parent's numbers. A library with a change
        that could not be undone is listed until it is undone.

    Example:
        >>> import robustflow
        >>> robustflow.compat.patched()  # nothing is patched
        {}
    """
    return counts.current()


def fused_layers() -> dict[str, dict[str, int]]:
    """How many calls of the patched libraries' layers were fused, since each patch began.

    A coupling layer of nflows, normflows or glasflow with a small residual network, and zuko's
    coupling and autoregressive layers, are one call on the CPU: gather, network, spline, scatter
    and log-determinant, with a backward pass. So are autoregressive and LU linear layers of the
    first three. Others run the library's method, whose spline the kernels serve; the logger
    ``robustflow.compat`` says why at debug level, once for each reason.

    Returns:
        For each library ``{"fused": m, "unfused": n}``, numbers of calls. The splines of both are
        in :func:`patched`.

    Example:
        >>> import robustflow
        >>> robustflow.compat.fused_layers()  # nothing is patched
        {}
    """
    return counts.current_layers()
