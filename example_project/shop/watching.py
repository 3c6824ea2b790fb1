"""What a process does with the connections of its pool, told to another one that draws it.

The same for a shop with the toolkit and for one without: what is looked at is Django's own pool and psycopg's
connections. Only shops that are compared do it (``WATCHED=1``).
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.signals import request_finished, request_started
from django.db import connections
from django.db.backends.signals import connection_created
from django.http import Http404, JsonResponse
from django.views.decorators.http import require_GET
from psycopg.pq import TransactionStatus

if TYPE_CHECKING:
    from django.http import HttpRequest
    from psycopg import Connection

IN_USE, HELD_IDLE, FREE = "in use", "held idle", "free"

_thread = threading.local()
# Both by the pid of the server's process, which is what tells connections apart.
_known: dict[int, Connection[Any]] = {}
_holders: dict[int, int | None] = {}


def watch() -> None:
    """Note from now on which visitor each connection is checked out for."""
    request_started.connect(_note_visitor)
    request_finished.connect(_forget_visitor)
    # Django sends it at each checkout from a pool, not only for a session that is new.
    connection_created.connect(_note_holder)


def _note_visitor(environ: dict[str, Any], **kwargs: Any) -> None:
    # The visitors are numbered, and each asks for the order of that number.
    found = re.fullmatch(r"/orders/(\d+)/", environ["PATH_INFO"])
    _thread.visitor = int(found[1]) if found else None


def _forget_visitor(**kwargs: Any) -> None:
    _thread.visitor = None


def _note_holder(connection: Any, **kwargs: Any) -> None:
    if connection.alias == "default":
        session = connection.connection
        pid = session.info.backend_pid
        _known[pid] = session
        _holders[pid] = getattr(_thread, "visitor", None)


@require_GET
def pool(request: HttpRequest) -> JsonResponse:
    """Say of each connection of the pool whether it is free, in use, or held and idle, and who holds it; as JSON."""
    pool: Any = connections["default"].pool  # type: ignore[attr-defined]
    if pool is None or not getattr(settings, "WATCHED", False):
        raise Http404
    # psycopg_pool counts those that nobody has, and does not name them elsewhere.
    free = {session.info.backend_pid: session for session in pool._pool.copy()}
    _known.update(free)
    for pid in [pid for pid, session in _known.copy().items() if session.closed]:
        del _known[pid]
    states = {pid: FREE if pid in free else _state(session) for pid, session in sorted(_known.copy().items())}
    return JsonResponse(
        {
            "size": pool.max_size,
            "patience": pool.timeout,
            "connections": [
                {"pid": pid, "state": state, "visitor": None if state == FREE else _holders.get(pid)}
                for pid, state in states.items()
            ],
        }
    )


def _state(session: Connection[Any]) -> str:
    # Of libpq's memory, so that nobody is asked: a command under way, or a transaction, and nobody else may have it.
    return HELD_IDLE if session.info.transaction_status is TransactionStatus.IDLE else IN_USE
