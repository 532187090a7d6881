"""Changes a function in place, so that every existing reference to it sees the change.

Call sites hold functions in many ways (from-imports, partials, defaults, class attributes,
dictionaries), and all of them hold the function *object*. So the object stays and its code is
exchanged: the new code has the same parameters and passes them, in order, to a replacement.
Defaults, docstring, name, module and pickles do not change.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

Function = Callable[..., Any]

# What the new code of each changed function calls: a replacement or, once restored, the library's
# own code. An entry is never removed, since a thread may have loaded the code and not yet the
# entry.
slots: list[Function] = []


class Change(Protocol):
    """Something that can be applied and undone."""

    def apply(self) -> None: ...

    def undo(self) -> None: ...


@dataclass
class _Changed:
    """A function that has been changed at least once."""

    function: types.FunctionType
    original: types.FunctionType  # the library's own code, as a function of its own
    slot: int
    forwarding: types.CodeType  # which calls the slot
    replacements: list[Function] = field(default_factory=list)  # the last one is in force

    def update(self) -> None:
        """Install the code of the last replacement, or the function's own."""
        own = self.original.__code__
        if self.replacements:
            slots[self.slot] = self.replacements[-1]
            self.function.__code__ = self.forwarding
        else:
            slots[self.slot] = self.original
            self.function.__code__ = own


_changed: dict[types.FunctionType, _Changed] = {}


def original_of(function: types.FunctionType) -> types.FunctionType:
    """The function's own code, as a function that no change reaches."""
    if function in _changed:
        return _changed[function].original
    original = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    original.__kwdefaults__ = function.__kwdefaults__
    original.__qualname__ = function.__qualname__
    return original


@dataclass
class CodeChange:
    """Let ``replacement`` run, with all arguments by position, where ``function`` is called.

    Keyword arguments that the function collects in ``**kwargs`` are passed on as keywords. Changes
    of one function can be nested, and undone in any order.
    """

    function: types.FunctionType
    replacement: Function

    def apply(self) -> None:
        changed = _changed.get(self.function)
        if changed is None:
            original = original_of(self.function)
            slot = len(slots)
            forwarding = _forwarding_code(original.__code__, slot)
            changed = _Changed(self.function, original, slot, forwarding)
            _changed[self.function] = changed
            slots.append(original)
        changed.replacements.append(self.replacement)
        changed.update()

    def undo(self) -> None:
        changed = _changed[self.function]
        changed.replacements.remove(self.replacement)
        changed.update()


@dataclass
class AttributeChange:
    """Give a class an attribute that it does not define itself."""

    owner: type
    name: str
    value: object

    def apply(self) -> None:
        if self.name in vars(self.owner):
            raise RuntimeError(f"{self.owner.__qualname__} defines {self.name} itself.")
        setattr(self.owner, self.name, self.value)

    def undo(self) -> None:
        if vars(self.owner).get(self.name) is self.value:  # else another has replaced it since
            delattr(self.owner, self.name)


def _forwarding_code(own: types.CodeType, slot: int) -> types.CodeType:
    """Code with the parameters of ``own`` that calls ``slots[slot]``.

    It keeps the name, the file and the first line, so that ``inspect`` still finds the library's
    source. Names that ``own`` closes over stay free variables, because new code must have as many
    as the function has cells.
    """
    count = own.co_argcount + own.co_kwonlyargcount
    names = list(own.co_varnames[:count])
    parameters = names[: own.co_argcount]
    if own.co_posonlyargcount:
        parameters.insert(own.co_posonlyargcount, "/")
    arguments = list(names)
    rest = iter(own.co_varnames[count:])
    if own.co_flags & inspect.CO_VARARGS:
        raise ValueError(f"{own.co_name} takes *{next(rest)}, which has no place by position.")
    if own.co_kwonlyargcount:
        parameters += ["*", *names[own.co_argcount :]]
    if own.co_flags & inspect.CO_VARKEYWORDS:
        keywords = f"**{next(rest)}"
        parameters.append(keywords)
        arguments.append(keywords)
    body = f"from {__name__} import slots; return slots[{slot}]({', '.join(arguments)})"
    if own.co_freevars:  # named after the return: never reached, but it makes them free variables
        body += f"; ({', '.join(own.co_freevars)},)"
    source = f"def changed({', '.join(parameters)}): {body}"
    if own.co_freevars:
        source = f"def outer({', '.join(own.co_freevars)}):\n    " + source + "\n    return changed"
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    made = namespace["outer"](*own.co_freevars) if own.co_freevars else namespace["changed"]
    code: types.CodeType = made.__code__
    looks: dict[str, Any] = {
        "co_name": own.co_name,
        "co_filename": own.co_filename,
        "co_firstlineno": own.co_firstlineno,
    }
    if sys.version_info >= (3, 11):
        looks["co_qualname"] = own.co_qualname
    return code.replace(**looks)
