"""How a forked process drops a connection that it shares with its parent, by driver, and a pool, by kind.

Closing a connection tells the server that the session is over, and the server ends it for both. So the descriptor is
pointed at /dev/null first, and what the driver writes as it finishes goes nowhere. What cannot be finished like that
is *buried*: kept open, unused, until the process ends. So is what another thread may have been using at the moment of
the fork: the driver may have been in the middle of a call, and greenlets survive the fork and go on with it.

All of it runs in the child, in the thread that forked, which is the only one of the system's that is there; but for
:func:`close_pools`, which is for the parent, ahead of the fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

import psycopg
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper
from psycopg import pq

from conn_hygiene import green, internals
from conn_hygiene.pools import sqlalchemy
from conn_hygiene.pools.base import is_locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper


def discard(connection: Any, *, of_another: bool = False) -> bool:
    """Drop an inherited DB-API *connection*: not a byte of what its driver sends, TLS included, reaches the server.

    Return False if it had to be left open instead: SQLite's, which a child must not even close (sqlite.org, "How To
    Corrupt An SQLite Database File"), those of drivers that do not tell their descriptor, and any where the process has
    no descriptor left.

    *of_another* tells that another thread has it. Then it is freed only if its driver can tell that it was not in use.
    For whoever goes on to use it, the server has hung up.

    The descriptor's number stays the driver's own, which closes it; closing it here would let the driver close whatever
    gets the number next.
    """
    proxy = sqlalchemy.proxy_of(connection)
    if proxy is not None:
        # Collected, it would return the connection to the pool.
        bury(proxy)
    if isinstance(connection, psycopg.Connection):
        # Who leaves the parent's copy() or stream() cancels it, by a connection of its own, which reaches the server.
        vars(connection).update(cancel=_cancel_nothing, cancel_safe=_cancel_nothing)
    try:
        descriptor = _descriptor_of(connection)
    except Exception:  # noqa: BLE001 - each driver has its own; all of them mean that it was closed before the fork
        return True
    if descriptor is None:
        bury(connection)
        return False
    try:
        _point_at_nothing(descriptor)
    except OSError:
        # No descriptor is left, or there is no /dev/null. The others must not suffer for it.
        bury(connection)
        return False
    # psycopg's close() would hand a pool's connection to the pool.
    pgconn = getattr(connection, "pgconn", None)
    if of_another if pgconn is None else is_locked(connection):
        # A driver in C may have a lock of its own that nobody will let go of, or buffers half moved.
        bury(connection)
        return True
    with contextlib.suppress(Exception):  # Nobody hears its goodbye, and some drivers mind.
        connection.close() if pgconn is None else pgconn.finish()
    return True


def _cancel_nothing(**kwargs: Any) -> None:
    """Stand for the methods of a connection that would cancel the parent's statement."""


def _descriptor_of(connection: Any) -> int | None:
    # psycopg, psycopg2 and mysqlclient have fileno(); PyMySQL has a socket that does.
    for source in (connection, getattr(connection, "_sock", None)):
        fileno = getattr(source, "fileno", None)
        if fileno is not None:
            descriptor: int = fileno()
            return descriptor
    return None


def _point_at_nothing(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(null, descriptor, inheritable=False)
    finally:
        os.close(null)


def bury(thing: object) -> None:
    """Have *thing* never be collected, not even as the interpreter ends: its finaliser would harm the parent."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def is_private(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether *wrapper*'s database lives in this process's memory, where a fork has made a copy of all of it."""
    return wrapper.vendor == "sqlite" and wrapper.is_in_memory_db()  # type: ignore[attr-defined]


def taken_from_proxy(connection: Any) -> Any:
    """Return the driver's connection in a proxy of SQLAlchemy's, which is buried; *connection* itself if it is none."""
    inner = getattr(connection, "driver_connection", None)
    if inner is None:
        return connection
    # Collected, it would return the connection to the pool.
    bury(connection)
    return inner


def take_native_pools() -> Iterator[tuple[str, Any]]:
    """Take Django's psycopg pools away, and yield the connections that are idle in them, with their aliases."""
    internals.look_once()
    if not internals.FORKED_POOLS.available:
        taken: list[tuple[str, Any]] = [(each.alias, each.pool) for each in _natively_pooled()]
    else:
        pools = PostgreSQLWrapper._connection_pools  # type: ignore[attr-defined]
        taken = [(alias, pools.pop(alias)) for alias in list(pools)]
    for alias, pool in taken:
        # Its finaliser would wait for threads that are no more.
        bury(pool)
        if internals.IDLE_IN_POOLS.available:
            for connection in list(pool._pool):
                yield alias, connection


def _natively_pooled() -> Iterator[Any]:
    """Return this thread's wrappers of the aliases that have a native pool, made for this if need be."""
    for alias in connections:
        # An alias whose backend cannot be loaded has no pool either.
        with contextlib.suppress(ImproperlyConfigured):
            wrapper = connections[alias]
            if isinstance(wrapper, PostgreSQLWrapper) and getattr(wrapper, "pool", None) is not None:
                yield wrapper


def cut_greenlets_off() -> None:
    """Point at nothing what greenlets are about to have, which is in no list yet: they go on with it in the child.

    A greenlet may be in the middle of connecting, be it a pool's worker, and one that waited for a pool may have been
    handed a connection, and has yet to run. Other threads are no more, and go on with nothing.
    """
    if green.library() is None:
        return
    # Who waits for a pool of psycopg's, and has in "conn" what it was handed.
    waiting = getattr(sys.modules.get("psycopg_pool.pool"), "WaitingClient", None)
    for each in gc.get_objects():
        # Without isinstance(), which asks a lazy object for its class, and thereby makes what it stands for.
        kind = type(each)
        pgconn = getattr(each.conn, "pgconn", None) if kind is waiting else _on_its_way(kind, each)
        if pgconn is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                _point_at_nothing(pgconn.socket)


def _on_its_way(kind: type, thing: Any) -> Any:
    """Return libpq's connection of *thing*, of that *kind*, if it is one that is being made, or is a pool's."""
    if kind is pq.PGconn:
        return None if thing.status in (pq.ConnStatus.OK, pq.ConnStatus.BAD) else thing
    if issubclass(kind, psycopg.Connection):
        return None if getattr(thing, "_pool", None) is None else thing.pgconn
    return None


def take_sqlalchemy_pools() -> Iterator[tuple[str, Any]]:
    """Take django-db-connection-pool's pools away, and yield the connections that are idle in them, with aliases."""
    container = _sqlalchemy_pools()
    if container is None:
        return
    # Somebody may have held it at the moment of the fork.
    container.lock = threading.Lock()
    for alias in list(container):
        pool = container.pop(alias)
        bury(pool)
        for record in list(pool._pool.queue):
            if record.dbapi_connection is not None:
                yield alias, record.dbapi_connection


def close_pools() -> int:
    """Close this process's own pools, ahead of a fork; return how many there were."""
    internals.look_once()
    native: list[Callable[[], None]] = []
    if not internals.FORKED_POOLS.available:
        if internals.CLOSED_POOLS.available:
            native = [each.close_pool for each in _natively_pooled()]
    else:
        pools = PostgreSQLWrapper._connection_pools  # type: ignore[attr-defined]
        native = [pools.pop(alias).close for alias in list(pools)]
    others = [pool.dispose for pool in (_sqlalchemy_pools() or {}).values()]
    for close in (*native, *others):
        close()
    return len(native) + len(others)


def _sqlalchemy_pools() -> Any:
    core = sys.modules.get("dj_db_conn_pool.core")
    if core is None:
        return None
    # It may have been imported since the toolkit was installed.
    internals.look()
    return core.pool_container if internals.SQLALCHEMY_POOLS.available else None
