"""Where in the application's code something happens, found cheaply enough to ask at every checkout and every BEGIN."""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
import threading
import traceback
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from conn_hygiene import functions
from conn_hygiene.interruptions import is_of_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from conn_hygiene.functions import Code, Definition


class Stack(NamedTuple):
    """A whole stack. ``str()`` gives it as a traceback has it, with the lines of source, and reads files for that."""

    #: Outermost first.
    frames: tuple[tuple[Code, int], ...]

    def __str__(self) -> str:
        frames = [(code.co_filename, line, code.co_name, None) for code, line in self.frames]
        return "".join(traceback.StackSummary.from_list(frames).format())


class Place(NamedTuple):
    """A line of code. ``str()`` gives it as "file:line in function"."""

    code: Code
    #: 0 where it is not known.
    line: int
    #: The whole stack, where that was asked for.
    stack: Stack | None = None

    def __str__(self) -> str:
        line = f":{self.line}" if self.line else ""
        return f"{self.code.co_filename}{line} in {self.code.co_name}"


_OWN, _LIBRARY, _PLUMBING, _STANDARD, _CURSORS, _CONTEXTS, _RETRIES, _HANDLERS = range(8)

#: For texts, where there is none.
UNKNOWN = "a place that is not known"

# What stands between the application's code and its connection, wherever it is installed.
_PACKAGES = ("django", "psycopg", "psycopg_pool", "asgiref", "debug_toolbar", "sentry_sdk", "opentelemetry")

# Django's cursors, where all of a project's execute wrappers run: called by the one, and calling the other.
_CURSORS_PATH = os.path.join("django", "db", "backends", "utils.py")
_CALLS_WRAPPERS = "_execute_with_wrappers"
_CALLED_BY_WRAPPERS = ("_execute", "_executemany")

# Where a function that is decorated with a context manager has yet to be called: the frames here have it as `func`.
_CONTEXTS_FILE = contextlib.ContextDecorator.__call__.__code__.co_filename
_CALLS_FUNC = ("inner", "_attempt")

# Django's ORM, with all that it rests on.
_ORM = os.path.join(os.sep, "django", "db", "")

# Where Django calls a view, and what is its name there.
_HANDLERS_PATH = os.path.join("django", "core", "handlers", "base.py")
_CALLS_VIEW = "_get_response"

# What wrappers of libraries call, by the names that are usual in them.
_CALLED = frozenset({"f", "fn", "fun", "func", "function", "handler", "method", "view_func", "wrapped"})

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STANDARD_PATHS = ("<frozen ", *{sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib")})
_RETRIES_FILE = os.path.join(_HERE, "transactions", "retry.py")
# Of installed commands, such as gunicorn.
_SCRIPTS = sysconfig.get_path("scripts") + os.sep
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))

# By file, since a file's code is read as a whole; and those of them that are never the place that is looked for. Any
# thread may add to both; two that find the same file agree.
_kinds: dict[str, int] = {}
_passed: set[str] = set()


class _Answering:
    """A request under ASGI, whose view awaits what other threads do for it, and where that view is."""

    __slots__ = ("place", "request")

    def __init__(self, request: Any) -> None:
        self.request = request
        # Looked for once.
        self.place: Place | None = None


_answering: ContextVar[_Answering | None] = ContextVar("conn_hygiene_answering", default=None)


@contextlib.contextmanager
def answering(request: Any) -> Iterator[None]:
    """Have what is done inside in other threads, with no line of the application's, be the view's of *request*."""
    token = _answering.set(_Answering(request))
    try:
        yield
    finally:
        _answering.reset(token)


def here(skip: int = 0) -> Place | None:
    """Return the innermost place of the running stack that is the application's own.

    That is outside of the standard library and of installed packages. A function of the application's that has yet to
    be called counts, with the line of its definition: ``@transaction.atomic`` begins a transaction before there is a
    frame of the view, the task or the receiver under it. So does the view of the request that Django answers.

    Failing that, it is outside of what stands between an application and its connection (Django, psycopg, this
    package). None if there is nothing else.

    An ``execute_wrapper`` that passes a statement on is not the place where it comes from, whosever it is.

    :param skip: how many of the innermost frames, from the caller's on, are known to be passed.
    """
    return _innermost(sys._getframe(1 + skip), True)


def here_in_full(skip: int = 0) -> Place:
    """Return what :func:`here` does, with the whole stack but for this package's part; at least a line of Django's."""
    frame: FrameType | None = sys._getframe(1 + skip)
    while frame is not None and frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    assert frame is not None
    return in_full(frame, _innermost(frame, True))


def in_full(frame: FrameType, place: Place | None) -> Place:
    """Return *place*, or else the innermost line, with the whole stack of *frame*."""
    found: FrameType | None = frame
    stack: list[tuple[Code, int]] = []
    while found is not None:
        # Between two lines it has none.
        stack.append((found.f_code, found.f_lineno or 0))
        found = found.f_back
    code, line = stack[0] if place is None else (place.code, place.line)
    return Place(code, line, Stack(tuple(reversed(stack))))


def text(place: Place | None) -> str | None:
    """Return *place* as reports have it; None if there is none."""
    return None if place is None else str(place)


def stack(place: Place | None) -> Stack | None:
    """Return the whole stack of *place*; None if there is none."""
    return None if place is None else place.stack


def stack_text(place: Place | None) -> str | None:
    """Return the whole stack of *place* as a traceback shows it; None if there is none. Reads files."""
    return None if place is None or place.stack is None else str(place.stack)


def of_target() -> Place | None:
    """Return the function that the running thread was started for, with the line of its definition.

    The application's, where that is decorated by somebody else. None for the main thread, and for one that takes jobs
    from the standard library's executors: which job it is that it ends with, nobody knows yet.
    """
    frame: FrameType | None = sys._getframe(1)
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    if frames[-1].f_code.co_filename != threading.__file__:
        return None
    below = [found for found in reversed(frames) if found.f_code.co_filename != threading.__file__]
    if not below or kind_of(below[0].f_code.co_filename) == _STANDARD:
        return None
    for found in below:
        kind = kind_of(found.f_code.co_filename)
        if kind == _OWN:
            return Place(found.f_code, found.f_code.co_firstlineno)
        if place := _ahead(found, kind):
            return place
    return Place(below[0].f_code, below[0].f_code.co_firstlineno)


def of_thread(thread_id: int, *, full: bool = False) -> Place | None:
    """Return the innermost line of the thread *thread_id* that is the application's own, as it stands at this moment.

    At least a line of Django's, and of its ORM the one at which that was asked: a query that asynchronous code awaits
    has no other. None if it has ended, or is at rest, and in uWSGI, where that cannot be seen. With the whole stack if
    *full* says so.
    """
    frame = _frame_of(thread_id)
    if frame is None:
        return None
    # What its functions are about to call is not looked for: it runs, and changes its variables meanwhile.
    place = _innermost(frame)
    if place is None:
        if _is_at_rest(frame):
            return None
        asked = _asked(frame)
        place = Place(asked.f_code, asked.f_lineno)
    return in_full(frame, place) if full else place


def _asked(frame: FrameType) -> FrameType:
    """Return the outermost frame of Django's ORM, which says what it was asked for; *frame* if there is none."""
    found: FrameType | None = frame
    while found is not None:
        if _ORM in found.f_code.co_filename:
            frame = found
        found = found.f_back
    return frame


def _frame_of(thread_id: int) -> FrameType | None:
    """Return the innermost frame of a thread; None if it has ended, and in uWSGI.

    uWSGI exchanges the frames of its threads behind Python's back: those of another thread may be no more, and to look
    at them ends the process by a segmentation fault.
    """
    return None if "uwsgi" in sys.modules else sys._current_frames().get(thread_id)


def is_running(code: Code) -> bool:
    """Return whether the function of *code* is on the running stack: it has not ended."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def is_at_rest(thread_id: int) -> bool:
    """Return whether the thread *thread_id* runs nothing of the application's, nor of Django's: it waits for work.

    False in uWSGI, where that cannot be seen.
    """
    frame = _frame_of(thread_id)
    return frame is not None and _is_at_rest(frame)


def _is_at_rest(frame: FrameType) -> bool:
    found: FrameType | None = frame
    while found is not None:
        if kind_of(found.f_code.co_filename) in (_OWN, _PLUMBING, _CURSORS, _RETRIES, _HANDLERS):
            return False
        found = found.f_back
    return True


def _innermost(frame: FrameType, ahead: bool = False) -> Place | None:
    found: FrameType | None = frame
    library, passed = None, _passed
    while found is not None:
        # Most are passed without a call: the stack is deep.
        if found.f_code.co_filename not in passed:
            kind = _kinds.get(found.f_code.co_filename)
            if kind is None:
                kind = kind_of(found.f_code.co_filename)
            if kind == _OWN:
                return Place(found.f_code, found.f_lineno)
            if kind == _CURSORS:
                if found.f_code.co_name in _CALLED_BY_WRAPPERS:
                    found = _past_wrappers(found)
            elif ahead and (place := _ahead(found, kind)):
                return place
            elif kind == _LIBRARY and library is None:
                library = found
        found = found.f_back
    if ahead and (answering := _answering.get()) and (place := _view(answering)):
        return place
    return None if library is None else Place(library.f_code, library.f_lineno)


def _ahead(frame: FrameType, kind: int) -> Place | None:
    """Return the definition of the application's function that *frame* is there to call; None if there is none."""
    code = frame.f_code
    if kind in (_CONTEXTS, _RETRIES) and code.co_name in _CALLS_FUNC:
        variables = frame.f_locals
        arguments = variables.get("args")
        return _defined(variables.get("func"), arguments[0] if arguments else None)
    if kind == _HANDLERS and code.co_name == _CALLS_VIEW:
        variables = frame.f_locals
        return _defined(variables.get("callback"), variables.get("request"))
    if kind == _LIBRARY and not _CALLED.isdisjoint(code.co_freevars):
        variables = frame.f_locals
        called = [variables.get(name) for name in code.co_freevars if name in _CALLED]
        return _place(partial(functions.of_values, called, None, is_own))
    return None


def _view(answering: _Answering) -> Place | None:
    if answering.place is None:
        resolved = getattr(answering.request, "resolver_match", None)
        answering.place = _defined(getattr(resolved, "func", None), answering.request)
    return answering.place


def _defined(function: Any, request: Any) -> Place | None:
    return _place(partial(functions.definition, function, request, is_own))


def _place(find: Callable[[], Definition | None]) -> Place | None:
    try:
        found = find()
    except Exception as error:
        # A class, or what stands for a request, may be anybody's, and the transaction must not fail because of it.
        if is_of_handler(error):
            raise
        return None
    return Place(*found) if found else None


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


def is_own(filename: str) -> bool:
    """Return whether *filename* is the application's own code."""
    return kind_of(filename) == _OWN


def kind_of(filename: str) -> int:
    """Return whose code *filename* is: the application's, a library's, plumbing, Python's own.

    Of what is passed, some files are kinds of their own, since they have frames that are looked at.
    """
    kind = _kinds.get(filename)
    if kind is None:
        kind = _kinds[filename] = _kind(filename)
        if kind in (_PLUMBING, _STANDARD):
            _passed.add(filename)
    return kind


def _kind(filename: str) -> int:
    if filename == _CONTEXTS_FILE:
        return _CONTEXTS
    if filename == _RETRIES_FILE:
        return _RETRIES
    if filename.startswith(_HERE):
        return _PLUMBING
    for installed in _INSTALLED:
        _, found, inside = filename.rpartition(installed)
        if found:
            if inside == _CURSORS_PATH:
                return _CURSORS
            if inside == _HANDLERS_PATH:
                return _HANDLERS
            return _PLUMBING if inside.partition(os.sep)[0].removesuffix(".py") in _PACKAGES else _LIBRARY
    if filename.startswith(_STANDARD_PATHS):
        return _STANDARD
    return _LIBRARY if filename.startswith(_SCRIPTS) else _OWN
