"""Whether a pooler stands between Django and PostgreSQL: found out by asking, since nothing announces one."""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Any

import psycopg

from conn_hygiene.server import answers

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds to wait for an answer of a second connection. One to a pooler in session mode may have to queue for minutes.
ANSWER_TIMEOUT = 3.0

# How often to try; another client may be faster each time.
_TRIES = 3


# What they say of libpq's start-up parameter "options", which a pooler could not take along from client to client:
# PgBouncer before 1.20 and from then on (src/client.c), and Amazon's RDS Proxy.
_REFUSES_OPTIONS = re.compile(
    r"unsupported startup parameter: options\b|unsupported startup parameter in options"
    r"|unsupported options startup parameter|RDS Proxy currently doesn.t support command-line options",
    re.IGNORECASE,
)


def refuses_options(error: BaseException) -> bool:
    """Return whether *error* is a pooler's answer to libpq's ``options``, in which ``SESSION_TIMEOUTS`` travel."""
    return _REFUSES_OPTIONS.search(str(error)) is not None


class Pooler(enum.Enum):
    """What lies between, as far as can be told from this side."""

    NONE = "none"
    #: A session for the length of a transaction or a statement: PgBouncer's transaction mode, or what works like it.
    TRANSACTION = "transaction"
    #: A session for as long as the client is connected; or somebody was faster than each of the tries.
    SESSION = "session"


def between(connection: psycopg.Connection[Any], connect: Callable[[], psycopg.Connection[Any]]) -> Pooler:
    """Return what stands between *connection*, which is in no transaction, and its server.

    A pooler cannot tell a client the pid of a server process that it assigns later, so PgBouncer and its like make one
    up. If the pid that *connection* was told is not the one that the server names, *connect* is called for a second
    connection, three times at most. A pooler in transaction mode lends it the very session that the first has just
    used, since it lends out what came back last.
    """
    if connection.info.backend_pid == _server_pid(connection):
        return Pooler.NONE
    for _ in range(_TRIES):
        before = _server_pid(connection)
        with connect() as other:
            lent = _server_pid_soon(other)
            if lent == before or _server_pid(connection) != before:
                return Pooler.TRANSACTION
    return Pooler.SESSION


_QUESTION = "SELECT pg_backend_pid()"


def _server_pid(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(_QUESTION).fetchone()
    assert row is not None
    return int(row[0])


def _server_pid_soon(connection: psycopg.Connection[Any]) -> int | None:
    """Return the pid of the server process; None if no answer comes within ANSWER_TIMEOUT, which ends *connection*."""
    answers.limit(connection, ANSWER_TIMEOUT)
    try:
        return _server_pid(connection)
    except psycopg.Error:
        return None
