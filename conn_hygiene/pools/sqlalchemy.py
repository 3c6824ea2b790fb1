"""The pools of django-db-connection-pool (``dj_db_conn_pool``), which are SQLAlchemy's.

Such a pool hands out no psycopg connection but a proxy around one (SQLAlchemy documentation, "Connection Pooling",
``PoolProxiedConnection``), for each checkout another. Django and the application go on seeing the proxy. A lease has
the connection within, which names the proxy for as long as it is checked out.

Neither SQLAlchemy nor the backend is imported before somebody else has done so.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus

from conn_hygiene import internals
from conn_hygiene.sessions import client, known, login, state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django.db.backends.base.base import BaseDatabaseWrapper

#: The package that the backends are of.
PACKAGE = "dj_db_conn_pool"

#: What it takes for what ``POOL_OPTIONS`` of an alias does not say, as far as that is asked for here.
DEFAULTS = {"POOL_SIZE": 10, "MAX_OVERFLOW": 10, "PRE_PING": True}

# Where a psycopg connection keeps how it is checked out.
_CHECKOUT = "_conn_hygiene_proxied"


class _Checkout(NamedTuple):
    """What a connection is checked out in, and who is told if it goes back past the lease."""

    proxy: Any
    taken_away: Callable[[], None]


def is_backend(cls: type[BaseDatabaseWrapper]) -> bool:
    """Return whether wrappers of *cls* have their connections from such a pool."""
    return any(base.__module__.partition(".")[0] == PACKAGE for base in cls.__mro__)


def is_known() -> bool:
    """Return whether all that is needed of SQLAlchemy and the backend is there, which must have been imported.

    Called under no lock: what is missing is logged.
    """
    global _looked  # noqa: PLW0603 - one process, one look
    if not _looked:
        # They may have been imported since the toolkit was installed.
        internals.look()
        _looked = True
    return internals.SQLALCHEMY.available


_looked = False


def driver_connection(handle: Any) -> psycopg.Connection[Any] | None:
    """Return the psycopg connection that *handle*, a wrapper's ``connection``, is or proxies; None if there is none."""
    if isinstance(handle, psycopg.Connection):
        return handle
    inner = getattr(handle, "dbapi_connection", None)
    return inner if isinstance(inner, psycopg.Connection) else None


def first_look(connection: psycopg.Connection[Any], wrapper: Any) -> None:
    """Remember *connection* as it is when it is new, unless that was done before.

    *wrapper*, which it was made for, sets up the time zone of the session first, as Django would a moment later: after
    each checkout it looks whether it is that, and what it sets is no change then.

    :raises psycopg.Error: that could not be done.
    """
    if state.is_known(connection):
        return
    # Who listens to new connections may have begun a transaction, which is for Django to refuse.
    is_idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
    if is_idle:
        connection.autocommit = True
    client.remember(connection)
    if is_idle and internals.SQLALCHEMY.available:
        wrapper._configure_timezone(connection)
        login.remember(connection, known.of_login(wrapper.alias))
    state.fresh_parameters(connection)


def take(handle: Any, wrapper: Any, taken_away: Callable[[], None]) -> psycopg.Connection[Any] | None:
    """Return the psycopg connection in *handle*, which *wrapper* has just checked out, or was given by somebody.

    None if it has none any more, since it went back to its pool.

    Until it is given back, :func:`proxy_of` knows it. *taken_away* is called if somebody else than
    :func:`give_back` returns it to its pool, just before anybody can have it.

    :raises psycopg.Error: it is new, and could not be set up.
    """
    connection = driver_connection(handle)
    if connection is None or connection is handle:
        return connection
    try:
        first_look(connection, wrapper)
        _listen(handle._pool)
    except BaseException:
        handle.invalidate()
        raise
    connection.__dict__[_CHECKOUT] = _Checkout(handle, taken_away)
    return connection


def proxy_of(connection: Any) -> Any:
    """Return the proxy that *connection* is checked out in; None if there is none."""
    checkout: _Checkout | None = getattr(connection, _CHECKOUT, None)
    return None if checkout is None else checkout.proxy


def let_go(connection: psycopg.Connection[Any]) -> Any:
    """Forget the checkout of *connection*, which goes on; return what Django is to have of it."""
    checkout: _Checkout | None = connection.__dict__.pop(_CHECKOUT, None)
    return connection if checkout is None else checkout.proxy


def forget(connection: psycopg.Connection[Any], proxy: Any) -> None:
    """Have *connection*, whose owner has forgotten *proxy*, go back as soon as nobody has that any more; closed then.

    Somebody may have kept it, to put it back later. Does nothing if the connection has gone back already.
    """
    if proxy is not None and proxy_of(connection) is proxy:
        connection.__dict__[_CHECKOUT] = _Checkout(None, connection.pgconn.finish)


def pool_of(connection: psycopg.Connection[Any]) -> Any:
    """Return the pool that *connection* is checked out of; None if there is none."""
    proxy = proxy_of(connection)
    return None if proxy is None or not _is_pools(connection, proxy) else proxy._pool


def _is_pools(connection: psycopg.Connection[Any], proxy: Any) -> bool:
    """Return whether the pool of *proxy* has given out *connection* still; its owner may have taken it away for good.

    ``detach()`` fails half way through on the proxies of django-db-connection-pool 1.2.6, whose ``info`` is psycopg's.
    The proxy then has the place in the pool still, which is another's, and would return that one's connection.
    """
    return bool(proxy.driver_connection is connection)


def queue_and_spare(pool: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the live lists of those who wait for a connection of *pool*, and of those that nobody has checked out."""
    if not internals.SQLALCHEMY_TURNS.available:
        return (), ()
    queue = pool._pool
    return queue.not_empty._waiters, queue.queue


def is_pool(pool: Any) -> bool:
    """Return whether *pool* is SQLAlchemy's."""
    return type(pool).__module__.partition(".")[0] == "sqlalchemy"


def timeout_of(pool: Any) -> float | None:
    """Return for how many seconds *pool*, of whatever kind, lets anybody wait; None if it does not say."""
    timeout = getattr(pool, "timeout", None)
    # SQLAlchemy's is a method.
    return timeout() if callable(timeout) else timeout


def sets_sessions_up(pool: Any) -> bool:
    """Return whether somebody listens to new connections of *pool*: what was set then, a reset would take away."""
    return bool(pool.dispatch.connect)


def give_back(connection: psycopg.Connection[Any]) -> None:
    """Return *connection* to its pool, which replaces one that is closed; what listens to the pool is called.

    One that is no longer the pool's is closed.
    """
    proxy = let_go(connection)
    if not _is_pools(connection, proxy):
        connection.close()
    elif connection.closed:
        proxy.invalidate()
    else:
        proxy.close()


# ##### The pools of the process #####


def opened() -> dict[str, Any]:
    """Return the pools that this process has opened, by alias."""
    core = sys.modules.get(f"{PACKAGE}.core")
    return dict(core.pool_container) if core is not None and is_known() else {}


def numbers_of(pool: Any) -> dict[str, Any]:
    """Return the numbers of *pool*, by the names that psycopg_pool has for them; without a limit, ``pool_max`` is 0."""
    available = pool.checkedin()
    size, overflow = pool.size(), pool._max_overflow
    return {
        "pool_size": available + max(0, pool.checkedout()),
        "pool_available": available,
        "requests_waiting": len(queue_and_spare(pool)[0]),
        "pool_min": 0,
        "pool_max": size + overflow if size and overflow >= 0 else 0,
    }


def unwatch() -> None:
    """Take away what was added to the pools of this process."""
    for pool in opened().values():
        _unlisten(pool)


def _listen(pool: Any) -> None:
    from sqlalchemy import event

    if not event.contains(pool, "checkin", _checked_in):
        event.listen(pool, "checkin", _checked_in)


def _unlisten(pool: Any) -> None:
    from sqlalchemy import event

    if event.contains(pool, "checkin", _checked_in):
        event.remove(pool, "checkin", _checked_in)


def _checked_in(connection: Any, record: Any) -> None:
    """Tell the lease of *connection*, which its owner has closed by the proxy: nobody else has it yet."""
    checkout: _Checkout | None = None if connection is None else connection.__dict__.get(_CHECKOUT)
    if checkout is None:
        return
    try:
        checkout.taken_away()
    finally:
        connection.__dict__.pop(_CHECKOUT, None)
        if connection.closed:
            record.invalidate()
