"""What differs between a native pool, another pool and no pool when a connection goes back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper
from psycopg.pq import ConnStatus, TransactionStatus

from conn_hygiene.sessions import sql, state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg_pool import ConnectionPool

logger = logging.getLogger("conn_hygiene.pools")


def understands(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether giving back is known to be safe for *wrapper*: psycopg 3, closed in the way that Django closes it.

    A backend that closes connections in a way of its own (a pool from before Django had one) is left alone.
    """
    cls = type(wrapper)
    return (
        isinstance(wrapper, PostgreSQLWrapper)
        and cls._close is PostgreSQLWrapper._close  # type: ignore[attr-defined]
        and cls.close is BaseDatabaseWrapper.close
        and hasattr(wrapper.connection, "pgconn")
    )


def pool_of(connection: psycopg.Connection[Any]) -> ConnectionPool[Any] | None:
    """Return the psycopg_pool that *connection* is checked out of, or None.

    psycopg_pool keeps it on the connection, which is how Django's own ``_close()`` finds it. The pool that the settings
    name now may be another one.
    """
    return getattr(connection, "_pool", None)


def queue_and_spare(pool: ConnectionPool[Any] | None) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the live lists of those who wait for a connection of *pool*, and of those that nobody has checked out."""
    # The pool has them under no public names. Of another kind of pool, or of none, they are always empty.
    return getattr(pool, "_waiting", ()), getattr(pool, "_pool", ())


def is_idle(connection: psycopg.Connection[Any]) -> bool:
    """Return whether libpq sees no transaction, no running command and no pipeline on *connection*; asks no server."""
    pgconn = connection.pgconn
    return pgconn.transaction_status == TransactionStatus.IDLE and not pgconn.pipeline_status


def is_active(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a statement is running on *connection* right now."""
    return connection.pgconn.transaction_status == TransactionStatus.ACTIVE


def is_idle_in_transaction(connection: psycopg.Connection[Any]) -> bool:
    """Return whether *connection* is in a transaction, failed or not, and runs no statement."""
    return connection.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)


def is_hung_up(connection: psycopg.Connection[Any]) -> bool:
    """Return whether the server has ended the session of an idle *connection*; asks nothing of the server.

    Reads what has come, without waiting, and without letting another thread run meanwhile, which may take long: a
    select() would. Of an idle session that is nothing, a notification, or the server's goodbye.
    """
    pgconn = connection.pgconn
    try:
        # The goodbye and the end of the stream may take a read each, and what came before them another.
        for _ in range(_READS):
            pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return bool(pgconn.status == ConnStatus.BAD)


_READS = 3


def roll_back(connection: psycopg.Connection[Any]) -> None:
    """Roll back what is open on *connection*, whose owner is no more; close it where that cannot be done at once.

    A COPY, a pipeline or a generator that its owner has left behind hold psycopg's lock of the connection for ever.
    Never raises: its pool replaces a connection that is closed.
    """
    try:
        if is_idle_in_transaction(connection) and not connection.lock.locked():
            connection.rollback()
        else:
            connection.pgconn.finish()
    except psycopg.Error:
        logger.info("A transaction could not be rolled back; its connection is closed.", exc_info=True)
        connection.pgconn.finish()


def give_back(connection: psycopg.Connection[Any]) -> None:
    """Return *connection* to its pool, or close it where there is none. Never raises: nobody could mend it."""
    pool = pool_of(connection)
    try:
        if pool is None:
            connection.close()
        else:
            pool.putconn(connection)
    except Exception:
        logger.exception("Giving back a connection failed; it is closed instead.")
        connection.pgconn.finish()


def scrub(connection: psycopg.Connection[Any], state: frozenset[str], fresh: tuple[bytes | None, ...]) -> None:
    """Make *connection* fit for somebody else before it returns to its pool; close it if that cannot be had.

    *state* is what the session carries, *fresh* its reported parameters when it was new. Sends ``DISCARD ALL``, then
    has the pool configure the connection anew (time zone, role), since that was discarded too. Never raises. A pool
    replaces a closed connection on its own. Does nothing without a pool: there, giving back is closing.
    """
    pool = pool_of(connection)
    if pool is None:
        return
    try:
        if state & sql.INDELIBLE or not _cleaned(connection, pool, fresh):
            connection.pgconn.finish()
    except Exception:
        logger.info("A session could not be cleaned and was closed.", exc_info=True)
        connection.pgconn.finish()


def _cleaned(connection: psycopg.Connection[Any], pool: ConnectionPool[Any], fresh: tuple[bytes | None, ...]) -> bool:
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        connection.rollback()
    connection.autocommit = True
    connection.isolation_level = connection.read_only = connection.deferrable = None
    connection.execute("DISCARD ALL")
    if pool._configure is not None:
        pool._configure(connection)
    return is_idle(connection) and state.reported_parameters(connection) == fresh
