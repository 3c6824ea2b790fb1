"""Sessions that cannot write though others of their alias can: opened on a standby, or turned read-only since.

After a failover they stay in the pool, where they look fine. PostgreSQL refuses a write with SQLSTATE 25006, and
reports ``in_hot_standby`` and ``default_transaction_read_only`` to the client (since version 14; documentation,
"Asynchronous Operations"), though not to a session that executes nothing. So a refused write is what tells, and then
a new connection is asked, past the pool: only if that one can write are all replaced that are older. Where nobody can
write, as on an alias for a standby, all go on as they are.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
from django.db import Error, connections
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper

from conn_hygiene import conf
from conn_hygiene.sessions import state

if TYPE_CHECKING:
    from conn_hygiene.leases.claim import Claim

logger = logging.getLogger("conn_hygiene.broken")

#: Of the error of a write in a read-only transaction, whoever has made it one.
SQLSTATE = "25006"

# Seconds between two questions whether a new connection can write, and for which a server is waited for.
_PAUSE = 0.5
_CONNECT_TIMEOUT = 5

# Seconds that a connect takes at most, or the session is what it is: where others go on being read-only, it ends.
_CONNECTING = 1.0

# When a new connection could write, on the monotonic clock, by alias. What was opened before has outlived that.
_renewed: dict[str, float] = {}
# When it may be asked again. Two threads that both ask do no harm: their lane has one place.
_ask_again_at: dict[str, float] = {}


def is_outlived(alias: str, connection: psycopg.Connection[Any]) -> bool:
    """Return whether *connection* was opened before its alias got another server, or the server its right to write."""
    # Nearly always there are none, and this is asked at each checkout.
    if not _renewed:
        return False
    renewed, opened = _renewed.get(alias, -math.inf), state.opened_at(connection)
    # A connect takes its time: one that was under way may have been to the server of before.
    return opened < renewed or (opened < renewed + _CONNECTING and _is_read_only(connection))


def refused(lease: Claim, connection: psycopg.Connection[Any]) -> None:
    """Take note that the server has refused a write on *connection*; see whether others can. Owner only.

    What the owner has made read-only itself, the transaction or the session, is as it wants it.
    """
    if not conf.current.REPLACE_BROKEN or not _is_read_only(connection) or lease.session_state.has_set(state.READ_ONLY):
        return
    now = monotonic()
    if now < _ask_again_at.get(lease.alias, -math.inf) or is_outlived(lease.alias, connection):
        return
    _ask_again_at[lease.alias] = now + _PAUSE
    lease.keeper.ask(lease.alias, partial(_ask, lease.alias))


def _ask(alias: str) -> None:
    """Have what is open replaced if a new connection of *alias* can write. In a worker's thread."""
    wrapper: Any = connections.create_connection(alias)
    parameters = {"connect_timeout": _CONNECT_TIMEOUT, **wrapper.get_connection_params(), "autocommit": True}
    began = monotonic()
    try:
        with psycopg.connect(**parameters) as connection:
            _set_up(wrapper, connection)
            is_read_only = _is_read_only(connection)
    except (psycopg.Error, Error) as error:
        logger.info("Whether new connections of %r can write is not known: %s", alias, error)
        return
    if not is_read_only:
        _renewed[alias] = began
        logger.info("Sessions of %r are read-only, and new ones are not: those that are older are replaced.", alias)


def _set_up(wrapper: Any, connection: psycopg.Connection[Any]) -> None:
    """Have the backend do to *connection* what it does to each new one: it may be what makes all of them read-only."""
    wrapper.connection, wrapper.autocommit = connection, True
    wrapper.init_connection_state()
    # Where there is a pool, that has done it.
    if _CONFIGURE is not None and wrapper.pool is not None:
        wrapper._configure_connection(connection)


_CONFIGURE = getattr(PostgreSQLWrapper, "_configure_connection", None)


def _is_read_only(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the session says that it cannot write; asks no server."""
    reported = connection.pgconn.parameter_status
    return b"on" in (reported(b"in_hot_standby"), reported(state.READ_ONLY.encode()))


def reset() -> None:
    """Forget all, for a forked child and for whoever installs the toolkit anew."""
    _renewed.clear()
    _ask_again_at.clear()
