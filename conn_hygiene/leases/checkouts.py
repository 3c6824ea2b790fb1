"""What a pool hands out, looked at before anybody has used it: nothing has run in such a session.

A restarted server leaves a whole pool of connections that look fine to the client. Whoever checks one out need not be
about to open a cursor: it may begin a transaction, have receivers of ``connection_created`` query, or take the handle.
"""

from __future__ import annotations

import math
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg

from conn_hygiene import conf
from conn_hygiene.events import Replaced
from conn_hygiene.leases import read_only
from conn_hygiene.leases.ended import QUIET
from conn_hygiene.pools import base as pools
from conn_hygiene.pools import waiting
from conn_hygiene.pools.configuring import LAST_USED
from conn_hygiene.work import serving

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper

# Where a connection keeps when it was last looked at here.
_LOOKED_AT = "_conn_hygiene_looked_at"
_NEVER = -math.inf


def note_use(connection: psycopg.Connection[Any], at: float) -> None:
    """Remember that *connection* was used *at* that time on the monotonic clock, for whoever has it next."""
    setattr(connection, LAST_USED, at)


def is_trusted(connection: psycopg.Connection[Any], now: float) -> bool:
    """Return whether the server was there a moment ago, as far as is known: it was used, or looked at."""
    return now - getattr(connection, LAST_USED, _NEVER) < QUIET or now - getattr(connection, _LOOKED_AT, _NEVER) < QUIET


def working_one(
    wrapper: BaseDatabaseWrapper,
    get: Callable[..., Any],
    *conn_params: Any,
    asked_at: float | None,
    replaced: list[Replaced],
) -> Any:
    """Return what *get*, a ``get_new_connection()`` of *wrapper*, returns, once it is a connection that works.

    Gives back, closed, what of a pool does not: what the server has hung up on, which is looked at as
    :func:`~conn_hygiene.leases.ended.close_if_broken` does, and what cannot write any more. It ends: the pool runs out
    of old connections, and a new one that is broken fails to connect. However many there are, all of it takes no longer
    than the pool's timeout, from *asked_at* on; None for now. What there is to tell of them is added to *replaced*:
    it is published once the wrapper has the one that works, since who listens may query.
    """
    connection = None
    try:
        connection = get(*conn_params)
        while True:
            if not isinstance(connection, psycopg.Connection) or pools.pool_of(connection) is None:
                # It has just been connected, or is of a backend that is left alone.
                break
            # Asked for before the look, after which libpq may not know it any more.
            server_pid = connection.pgconn.backend_pid
            if not conf.current.REPLACE_BROKEN or _works(wrapper.alias, connection):
                break
            pool = pools.pool_of(connection)
            replaced.append(_discard(wrapper.alias, connection, server_pid))
            if asked_at is None:
                asked_at = monotonic()
            with waiting.since(asked_at, pool):
                connection = get(*conn_params)
        return connection
    except BaseException:
        # Of a signal handler: nobody else has the connection yet.
        if isinstance(connection, psycopg.Connection) and pools.pool_of(connection) is not None:
            pools.give_back(connection)
        raise


def _works(alias: str, connection: psycopg.Connection[Any]) -> bool:
    now = monotonic()
    if read_only.is_outlived(alias, connection):
        return False
    if now - getattr(connection, LAST_USED, _NEVER) >= QUIET:
        if pools.is_hung_up(connection):
            return False
        setattr(connection, _LOOKED_AT, now)
    return True


def _discard(alias: str, connection: psycopg.Connection[Any], server_pid: int) -> Replaced:
    """Give *connection* back, closed; return what is to be told once another has its place."""
    could_not_write = read_only.is_outlived(alias, connection)
    idle_for = monotonic() - getattr(connection, LAST_USED, monotonic())
    connection.pgconn.finish()
    # So that it is given back once, should the next one not be had.
    records = pools.vacate(connection)
    pools.tell(records)
    return Replaced(
        alias=alias,
        server_pid=server_pid,
        thread_id=threading.get_ident(),
        request=serving.label,
        idle_for=idle_for,
        could_not_write=could_not_write,
    )
