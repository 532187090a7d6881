"""Which libraries are patched, and how many patches each has: what users call."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import ModuleType, TracebackType

from robustflow._checks import describe
from robustflow._patchable import LIBRARIES
from robustflow.compat._patch import counts, locking
from robustflow.compat._patch.code import Change
from robustflow.compat._patch.nflows_like.functions import changes_of_module
from robustflow.compat._patch.recognise import standard_modes
from robustflow.compat._patch.session import Session

_sessions: dict[str, Session] = {}
_modules: set[str] = set()  # given to patch_module, whether patched now or not


class Patch:
    """A patch in force: what :func:`patch` returns.

    As a context manager it ends at exit. Patches of one library are counted, so that it gets its
    own code back when the last of them has ended.
    """

    def __init__(self, session: Session) -> None:
        self._session: Session | None = session
        self.name = session.name

    def restore(self) -> None:
        """End this patch; a second call does nothing."""
        with locking.lock:
            session, self._session = self._session, None
            if session is None or _sessions.get(session.name) is not session:
                return
            session.uses -= 1
            if session.uses == 0:
                _end(session)

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()

    def __repr__(self) -> str:
        state = "" if self._session else ", restored"
        return f"Patch({self.name!r}{state})"


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
        return _begin(name, library.changes)


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
        _modules.add(name)
        return _begin(name, lambda: changes_of_module(module, name))


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
        if name in _sessions:
            _end(_sessions[name])


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


def _begin(name: str, changes: Callable[[], Sequence[Change]]) -> Patch:
    session = _sessions.get(name)
    if session is None:
        with standard_modes():
            session = Session(name, changes())
    try:
        session.apply()
    finally:
        _register(session)
    if session.uses == 0:
        counts.start(name)
    session.uses += 1
    return Patch(session)


def _end(session: Session) -> None:
    try:
        session.undo()
    finally:  # its handles are void, and must not end a later patch
        _register(replace(session, uses=0))


def _register(session: Session) -> None:
    """A library is in the registry while any change of its patch is in force."""
    if session.applied:
        _sessions[session.name] = session
        counts.keep(session.name)
    else:
        _sessions.pop(session.name, None)
        counts.stop(session.name)
