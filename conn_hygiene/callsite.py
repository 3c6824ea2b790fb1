"""Where in the application's code something happens, found cheaply enough to ask at every checkout and every BEGIN."""

from __future__ import annotations

import os
import sys
import sysconfig
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from types import CodeType, FrameType


class Place(NamedTuple):
    """A line of code. ``str()`` gives it as "file:line in function"."""

    code: CodeType
    line: int

    def __str__(self) -> str:
        return f"{self.code.co_filename}:{self.line} in {self.code.co_name}"


_OWN, _LIBRARY, _PLUMBING, _STANDARD, _CURSORS = range(5)

#: For texts, where there is none.
UNKNOWN = "a place that is not known"

# What stands between the application's code and its connection, wherever it is installed.
_PACKAGES = ("django", "psycopg", "psycopg_pool", "asgiref", "debug_toolbar", "sentry_sdk", "opentelemetry")

# Django's cursors, where all of a project's execute wrappers run: called by the one, and calling the other.
_CURSORS_PATH = os.path.join("django", "db", "backends", "utils.py")
_CALLS_WRAPPERS = "_execute_with_wrappers"
_CALLED_BY_WRAPPERS = ("_execute", "_executemany")

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STANDARD_PATHS = ("<frozen ", *{sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
# Of installed commands, such as gunicorn.
_SCRIPTS = sysconfig.get_path("scripts") + os.sep
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))

# By file, since a file's code is read as a whole; and those of them that are never the place that is looked for. Any
# thread may add to both; two that find the same file agree.
_kinds: dict[str, int] = {}
_passed: set[str] = set()


def here(skip: int = 0) -> Place | None:
    """Return the innermost place of the running stack that is the application's own.

    That is outside of the standard library and of installed packages; failing that, outside of what stands between an
    application and its connection (Django, psycopg, this package). None if there is nothing else, as where an ``await``
    of Django's has the query run in a worker thread.

    An ``execute_wrapper`` that passes a statement on is not the place where it comes from, whosever it is.

    :param skip: how many of the innermost frames, from the caller's on, are known to be passed.
    """
    return _innermost(sys._getframe(1 + skip))


def of_thread(thread_id: int) -> Place | None:
    """Return the same of the thread *thread_id*, as it stands at this moment; at least a line of Django's.

    None if it has ended, or is at rest.
    """
    frame = sys._current_frames().get(thread_id)
    if frame is None:
        return None
    place = _innermost(frame)
    return place if place is not None or _is_at_rest(frame) else Place(frame.f_code, frame.f_lineno)


def is_at_rest(thread_id: int) -> bool:
    """Return whether the thread *thread_id* runs nothing of the application's, nor of Django's: it waits for work."""
    frame = sys._current_frames().get(thread_id)
    return frame is not None and _is_at_rest(frame)


def _is_at_rest(frame: FrameType) -> bool:
    found: FrameType | None = frame
    while found is not None:
        if kind_of(found.f_code.co_filename) in (_OWN, _PLUMBING, _CURSORS):
            return False
        found = found.f_back
    return True


def _innermost(frame: FrameType) -> Place | None:
    found: FrameType | None = frame
    library = None
    while found is not None:
        # Most are passed without a call: the stack is deep.
        if found.f_code.co_filename not in _passed:
            kind = kind_of(found.f_code.co_filename)
            if kind == _OWN:
                return Place(found.f_code, found.f_lineno)
            if kind == _LIBRARY and library is None:
                library = found
            elif kind == _CURSORS and found.f_code.co_name in _CALLED_BY_WRAPPERS:
                found = _past_wrappers(found)
        found = found.f_back
    return None if library is None else Place(library.f_code, library.f_lineno)


def _past_wrappers(frame: FrameType) -> FrameType:
    """Return the frame that called the execute wrappers around *frame*, which is the end of a statement's way.

    A wrapper's own queries end before they get there, and are its own.
    """
    cursors = frame.f_code.co_filename
    found = frame.f_back
    while found is not None:
        if found.f_code.co_name == _CALLS_WRAPPERS and found.f_code.co_filename == cursors:
            return found
        found = found.f_back
    return frame


def kind_of(filename: str) -> int:
    """Return whose code *filename* is: the application's, a library's, plumbing, Python's own, or Django's cursors."""
    kind = _kinds.get(filename)
    if kind is None:
        kind = _kinds[filename] = _kind(filename)
        if kind in (_PLUMBING, _STANDARD):
            _passed.add(filename)
    return kind


def _kind(filename: str) -> int:
    if filename.startswith(_HERE):
        return _PLUMBING
    for installed in _INSTALLED:
        _, found, inside = filename.rpartition(installed)
        if found:
            if inside == _CURSORS_PATH:
                return _CURSORS
            return _PLUMBING if inside.partition(os.sep)[0].removesuffix(".py") in _PACKAGES else _LIBRARY
    if filename.startswith(_STANDARD_PATHS):
        return _STANDARD
    return _LIBRARY if filename.startswith(_SCRIPTS) else _OWN
