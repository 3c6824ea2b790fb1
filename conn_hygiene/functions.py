"""The application's function behind a callable: past decorators, partials, class-based views and viewsets.

Asked where a transaction begins around a function, which has no frame yet. So it is cheap, and runs no code of others:
attributes are read where functions and classes keep them.
"""

from __future__ import annotations

import sys
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import CodeType


class ClassCode(NamedTuple):
    """What a class has of a code object: its file, and its name."""

    co_filename: str
    co_name: str


if TYPE_CHECKING:
    Code: TypeAlias = CodeType | ClassCode
    # With a line, which is 0 where nobody knows it: Python before 3.13 notes none for a class.
    Definition: TypeAlias = tuple[Code, int]

# So many callables are looked into, one behind the other: who decorates more is found at the decorator.
_DEPTH = 10

# How class-based views name themselves on the function that as_view() makes: Django, and Django REST framework.
_VIEW_CLASSES = ("view_class", "cls")


def definition(function: Any, request: Any, is_own: Callable[[str], bool], depth: int = _DEPTH) -> Definition | None:
    """Return where the function is defined that *function* calls in the end, if that is the application's.

    Of a decorated function that is the line of its first decorator, as Python has it. Of a view's class it is the
    method that *request* is for, or the class where a library has that method.

    :param request: what the callable is called with first, where that is known.
    :param is_own: whether a file is the application's.
    """
    kind = type(function)
    if kind is FunctionType:
        return _of_function(function, request, is_own, depth - 1) if depth else None
    if kind is MethodType:
        found = definition(function.__func__, request, is_own, depth)
        owner = function.__self__
        return found or _of_view(owner if isinstance(owner, type) else type(owner), None, request, is_own, depth)
    if kind is partial:
        return definition(function.func, request, is_own, depth - 1) if depth else None
    called = kind.__dict__.get("__call__")
    return definition(called, request, is_own, depth) if type(called) is FunctionType else None


def _of_function(function: Any, request: Any, is_own: Callable[[str], bool], depth: int) -> Definition | None:
    attributes = function.__dict__
    wrapped = attributes.get("__wrapped__")
    if wrapped is not None and (found := definition(wrapped, request, is_own, depth)):
        return found
    code = function.__code__
    if is_own(code.co_filename):
        return code, code.co_firstlineno
    for name in _VIEW_CLASSES:
        if isinstance(attributes.get(name), type):
            return _of_view(attributes[name], attributes.get("actions"), request, is_own, depth)
    return of_values(_cells(function), request, is_own, depth)


def _cells(function: Any) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            # Its variable has no value yet.
            continue
    return found


def of_values(values: list[Any], request: Any, is_own: Callable[[str], bool], depth: int = _DEPTH) -> Definition | None:
    """Return :func:`definition` of the first of *values* that has one, of those that are functions."""
    for value in values:
        if type(value) in (FunctionType, MethodType, partial) and (found := definition(value, request, is_own, depth)):
            return found
    return None


def _of_view(
    cls: type, actions: Mapping[str, str] | None, request: Any, is_own: Callable[[str], bool], depth: int
) -> Definition | None:
    """Return where the method of *cls* is that *request* is for, or else the class."""
    method = getattr(request, "__dict__", {}).get("method")
    if isinstance(method, str):
        name = method.lower()
        # A viewset's, by HTTP method.
        name = (actions or {}).get(name, name)
        for base in cls.__mro__:
            if name in base.__dict__:
                if found := definition(base.__dict__[name], None, is_own, depth):
                    return found
                break
    return _of_class(cls, is_own)


def _of_class(cls: type, is_own: Callable[[str], bool]) -> Definition | None:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is None or not is_own(file):
        return None
    lines = [value.__code__.co_firstlineno for value in cls.__dict__.values() if type(value) is FunctionType]
    return ClassCode(file, cls.__name__), cls.__dict__.get("__firstlineno__") or min(lines, default=0)
