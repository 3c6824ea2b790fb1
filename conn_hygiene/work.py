"""Which request a thread is serving, and what threads are called.

Django runs the receivers of ``request_started`` and ``request_finished`` in the thread that serves the request, under
ASGI too, where it is the thread that owns the request's connections; so what belongs to the request is thread-local.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

from conn_hygiene.interruptions import is_of_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Request(NamedTuple):
    """What there was in its thread when a request began, and is not its own."""

    label: str | None
    #: The aliases that were in a transaction.
    in_transaction: Sequence[str]
    #: Those whose sessions had state, as far as that was looked at.
    with_state: Sequence[str]
    #: The scopes around it.
    scopes: tuple[object, ...]
    #: The request in whose middle it began: a test client's, in a view.
    around: Request | None


class Serving(threading.local):
    """What this thread works for: the label of a request or a task, and the request, of which there may be none."""

    label: str | None = None
    request: Request | None = None


serving = Serving()


def daemon_thread(name: str, target: Callable[[], object]) -> threading.Thread | None:
    """Return a new thread that keeps no process alive, to be started; None in an interpreter that is to have none.

    Such are the isolated ones, from Python 3.12 on (Python documentation, "Sub-interpreter support").
    """
    try:
        return threading.Thread(target=target, name=name, daemon=True)
    except RuntimeError as error:
        if is_of_handler(error):
            raise
        return None


def thread_names() -> dict[int | None, str]:
    """Return the names of all threads that Python's threading module knows, by their idents."""
    # Not by current_thread(): in a thread that it does not know it makes an object that nothing removes again.
    return {thread.ident: thread.name for thread in threading.enumerate()}
