"""Wrap the calls of one object's method without changing the object.

A class's method is replaced by a function that looks the object up and, for other objects, calls
the method as it was. What belongs to an object is held here, by its identity, and not in the
object, so copies and pickles of it are unaffected. Interceptions may overlap and end in any order.

Under ``torch.compile``, ``torch.export`` and tracing the methods run as they are.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from robustflow._call_state import is_tracing

Wrapper = Callable[..., Any]

_ABSENT: Any = object()
_lock = threading.RLock()
_sites: dict[tuple[type | ModuleType, str], _Site] = {}


def any_interceptions() -> bool:
    """Whether any method of any object is intercepted now."""
    return bool(_sites)


class Interception:
    """One wrapper of one object's method: what :func:`intercept` returns."""

    def __init__(
        self,
        site: _Site,
        target: object,
        wrapper: Wrapper,
        inner: bool,
        outer: bool,
        weak: bool,
    ) -> None:
        self.wrapper = wrapper
        self.inner = inner
        self.outer = outer
        self.active = True
        self._site = site
        self._key = id(target)
        # Keeps the object alive, unless weak, so that no other object gets its id.
        self._target: object | None = None if weak else target
        if weak:
            weakref.finalize(target, self.remove).atexit = False

    def remove(self) -> None:
        """Call the method as before; a second call does nothing."""
        with _lock:
            if self.active:
                self.active = False
                self._target = None
                self._site.remove(self, self._key)


class _Site:
    """A class's method, or a Python module's function, that is intercepted for some objects."""

    def __init__(self, owner: type | ModuleType, name: str) -> None:
        self.owner = owner
        self.name = name
        self.own = vars(owner).get(name, _ABSENT)
        self.entries: dict[int, tuple[Interception, ...]] = {}
        self.function = self._make()
        setattr(owner, name, self.function)

    @property
    def in_place(self) -> bool:
        """Whether it is this function that calls reach first."""
        return vars(self.owner).get(self.name) is self.function

    def _make(self) -> Callable[..., Any]:
        like = getattr(self.owner, self.name)
        if isinstance(self.owner, type):

            @functools.wraps(like)
            def method(this: Any, *args: Any, **kwargs: Any) -> Any:
                if torch.compiler.is_compiling() or is_tracing():
                    return self.original(this, *args, **kwargs)
                proceed = functools.partial(self.original, this)
                return self._wrapped(id(this), proceed)(*args, **kwargs)

            return method

        @functools.wraps(like)
        def function(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or is_tracing():
                return self.original(*args, **kwargs)
            return self._wrapped(id(self.owner), self.original)(*args, **kwargs)

        return function

    def _wrapped(self, key: int, proceed: Callable[..., Any]) -> Callable[..., Any]:
        for each in self.entries.get(key, ()):
            proceed = functools.partial(each.wrapper, proceed)
        return proceed

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """What the owner defines itself, or inherits at the time of the call."""
        if self.own is not _ABSENT:
            return self.own(*args, **kwargs)
        this, *rest = args
        return getattr(super(self.owner, this), self.name)(*rest, **kwargs)

    def add(self, interception: Interception, key: int) -> None:
        others = self.entries.get(key, ())
        # Functions that change results stand inside, those that change arguments outside, and those
        # that look at both in between.
        outer = tuple(each for each in others if each.outer)
        rest = tuple(each for each in others if not each.outer)
        if interception.inner:
            self.entries[key] = (interception, *others)
        elif interception.outer:
            self.entries[key] = (*others, interception)
        else:
            self.entries[key] = (*rest, interception, *outer)

    def remove(self, interception: Interception, key: int) -> None:
        rest = tuple(each for each in self.entries[key] if each is not interception)
        if rest:
            self.entries[key] = rest
            return
        del self.entries[key]
        if self.entries or not self.in_place:
            return  # still used, or another function wraps this one
        if self.own is _ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.own)
        if _sites.get((self.owner, self.name)) is self:
            del _sites[self.owner, self.name]


def intercept(
    target: object,
    name: str,
    wrapper: Wrapper,
    *,
    inner: bool = False,
    outer: bool = False,
    weak: bool = False,
) -> Interception:
    """Replace a method of this one object by ``wrapper(proceed, *args, **kwargs)``.

    ``proceed(*args, **kwargs)`` is the method as it was, with the interceptions of it that stand
    further inside.

    Args:
        target: an object whose class has the method, as a plain function; or a Python module,
            whose function is intercepted for every caller that looks it up there.
        name: of the method.
        wrapper: what is called in its place, with the method's arguments.
        inner: stand inside all others: for what changes results that others look at.
        outer: stand outside all others: for what changes arguments that others look at.
        weak: end with the object, too, and do not keep it alive.
    """
    owner = target if isinstance(target, ModuleType) else type(target)
    with _lock:
        site = _sites.get((owner, name))
        if site is None or not site.in_place:
            site = _sites[owner, name] = _Site(owner, name)
        interception = Interception(site, target, wrapper, inner, outer, weak)
        site.add(interception, id(target))
        return interception
