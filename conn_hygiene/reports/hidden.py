"""From where a statement comes, and whether that is a place where nobody looks for one; for the panel in the browser.

What hides statements is what the how-to "Audit a view for hidden queries" lists: templates, context processors,
serializers, signals, ``__str__``, hooks of a commit, the body of a stream. They are told by the functions of Django, of
Django REST framework and of the standard library that stand in the stack between the view and the statement.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from conn_hygiene import callsite

if TYPE_CHECKING:
    from types import FrameType


class Origin(NamedTuple):
    """Where a statement comes from."""

    #: A line of the application's own, such as ``"shop/views.py:12 in pay"``; None if that is not known.
    where: str | None
    #: The line of the template that asked for it, such as ``"shop/order.html:7"``; None without one.
    template: str | None
    #: Where it hides, such as ``"template"`` or ``"middleware"``; None for one that does not.
    hidden: str | None

    def told(self) -> dict[str, str | None]:
        """Return it by its names."""
        return {"where": self.where, "template": self.template, "hidden": self.hidden}


_TEMPLATE = "template"
_MIDDLEWARE = "middleware"
_AFTER_THE_VIEW = "rendered after the view"

# By the name of a function, the ends of the files that have it, and what that is.
_HIDING: dict[str, tuple[tuple[str, str], ...]] = {
    "render_annotated": (("django/template/base.py", _TEMPLATE),),
    "bind_template": (("django/template/context.py", "context processor"),),
    "run_and_clear_commit_hooks": (("django/db/backends/base/base.py", "on_commit hook"),),
    **dict.fromkeys(("send", "send_robust"), (("django/dispatch/dispatcher.py", "signal receiver"),)),
    "to_representation": (("rest_framework/serializers.py", "serializer"),),
    "serialize": (("django/core/serializers/base.py", "serializer"),),
    "handle": (("logging/__init__.py", "log record"),),
    "render": (("django/template/response.py", _AFTER_THE_VIEW),),
}
# Where Django calls the view, where it calls a middleware, and where asgiref calls what a thread is to do.
_VIEW = "django/core/handlers/base.py"
_CHAIN = "django/core/handlers/exception.py"
_THREAD = ("thread_handler", "asgiref/sync.py")


def origin(awaited: Any = None) -> Origin:
    """Return where the running code is called from; in a thread that works for *awaited*, where that waits for it.

    :param awaited: a task, or an asynchronous generator.
    """
    place = callsite.here()
    where = template = hidden = None
    found: FrameType | None = sys._getframe(1)
    while found is not None:
        name, filename = found.f_code.co_name, found.f_code.co_filename
        if _is_in(filename, _VIEW) or (name == _THREAD[0] and _is_in(filename, _THREAD[1])):
            break
        if _is_in(filename, _CHAIN):
            # No view in between.
            hidden = hidden or _MIDDLEWARE
            break
        if place is not None and found.f_code is place.code:
            # Not a line of the server's, which is further down.
            where = short(str(place))
        kind = _kind(name, filename)
        hidden = f"{hidden}, {kind}" if hidden is not None and kind == _AFTER_THE_VIEW else hidden or kind
        if template is None:
            template = _template(found) if kind == _TEMPLATE else _jinja_template(found)
            hidden = hidden or (None if template is None else _TEMPLATE)
        found = found.f_back
    return Origin(where or _awaiting(awaited), template, hidden)


def _kind(name: str, filename: str) -> str | None:
    if name in ("__str__", "__repr__") and callsite.is_own(filename):
        return name
    return next((kind for end, kind in _HIDING.get(name, ()) if _is_in(filename, end)), None)


def _is_in(filename: str, end: str) -> bool:
    return filename.replace(os.sep, "/").endswith(end)


def _template(frame: FrameType) -> str | None:
    """Return the line of the node of a Django template that *frame* renders."""
    node: Any = frame.f_locals.get("self")
    token, source = getattr(node, "token", None), getattr(node, "origin", None)
    if token is None:
        return None
    name = getattr(source, "template_name", None) or "a template"
    return f"{name}:{token.lineno}"


def _jinja_template(frame: FrameType) -> str | None:
    """Return the line of a Jinja template that *frame* runs (Jinja's documentation, ``get_corresponding_lineno``)."""
    template: Any = frame.f_globals.get("__jinja_template__")
    return None if template is None else f"{template.name}:{template.get_corresponding_lineno(frame.f_lineno)}"


def _awaiting(awaited: Any) -> str | None:
    """Return the application's innermost line of a task, or a generator, that waits for a thread; None without one.

    That thread's own stack begins with asgiref: nothing in it says who has written the ``await``.
    """
    waits: Any = awaited.get_coro() if isinstance(awaited, asyncio.Task) else awaited
    place = None
    while waits is not None:
        frame, waits = _step(waits)
        if frame is None:
            break
        if callsite.is_own(frame.f_code.co_filename):
            place = callsite.Place(frame.f_code, frame.f_lineno)
        # What anext() waits for cannot be asked; where it is ours that waits, its frame knows of whom.
        covered = frame.f_locals.get("iterator")
        waits = covered if inspect.isasyncgen(covered) else waits
    return None if place is None else short(str(place))


def _step(waits: Any) -> tuple[FrameType | None, Any]:
    """Return the frame of a coroutine or of a generator, and what that awaits; nothing of anything else."""
    if inspect.iscoroutine(waits):
        return waits.cr_frame, waits.cr_await
    if inspect.isasyncgen(waits):
        return waits.ag_frame, waits.ag_await
    if inspect.isgenerator(waits):
        return waits.gi_frame, waits.gi_yieldfrom
    return None, None


def short(place: str) -> str:
    """Return *place* with its file relative to where Python imports it from."""
    roots = [
        root.rstrip(os.sep) + os.sep for root in sys.path if root and place.startswith(root.rstrip(os.sep) + os.sep)
    ]
    return place[len(max(roots, key=len)) :] if roots else place
