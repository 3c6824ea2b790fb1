"""How long a server is waited for once it has let somebody in: ``connect_timeout`` says nothing of that.

A pooler takes clients in for which it has no session, and has their first query wait, PgBouncer for two minutes. A
server that stands still does not even refuse.
"""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from psycopg.abc import PQGen


class NoAnswer(psycopg.OperationalError):
    """There was no answer, or not all of it, in the time that was given for it. The connection is closed."""


def limit(connection: psycopg.Connection[Any], seconds: float) -> None:
    """Have whatever *connection* is asked from now on raise :exc:`NoAnswer` unless it is answered within *seconds*.

    All of the answer is to be there by then, also one that comes bit by bit: somebody is waiting to see it.
    """
    vars(connection)["wait"] = partial(_wait, connection, seconds)


def _wait(connection: psycopg.Connection[Any], seconds: float, asking: PQGen[Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return type(connection).wait(connection, _until(monotonic() + seconds, asking), *args, **kwargs)
    except _TooLate:
        # It would give the answer to the next question.
        connection.pgconn.finish()
        raise NoAnswer(f"no answer within {seconds:g} s") from None


class _TooLate(Exception):
    pass


def _until(deadline: float, asking: PQGen[Any]) -> PQGen[Any]:
    """Go on with *asking* until *deadline*, and take what has come by then.

    psycopg calls again a few times a second also if nothing has come.
    """
    ready: Any = None
    is_over = False
    while True:
        try:
            awaited = asking.send(ready)
        except StopIteration as end:
            return end.value
        if is_over:
            raise _TooLate
        ready = yield awaited
        is_over = monotonic() >= deadline
