"""A pool's check of what it gives out: only what may have died is asked, and what is dead is passed over at once.

With ``CONN_HEALTH_CHECKS``, Django gives psycopg_pool's ``check_connection`` to the pool as its ``check``, which asks
the server at each checkout. Where that fails, the pool waits before it tries its next connection: a second, and twice
as long each time (``AttemptWithBackoff``). After a restart of the server all of them are dead, and whoever comes first
waits for longer than a request may.
"""

from __future__ import annotations

import math
import weakref
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg

from conn_hygiene import internals
from conn_hygiene.pools import base as pools
from conn_hygiene.pools import waiting
from conn_hygiene.pools.configuring import LAST_USED

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds for which a connection is taken to work since it was last used, by whomever, as long as its socket is silent.
#: As HikariCP's aliveBypassWindowMs, which is 500 ms there; psycopg_pool gives its connections out in turn, so that
#: between two uses of one there is a use of each.
ALIVE_FOR = 2.0


class _Checkout:
    """Stands for the ``_getconn_unchecked()`` of a pool, and checks what it gives."""

    __slots__ = ("_lost_before", "_whose", "check")

    def __init__(self, pool: Any, check: Callable[[psycopg.Connection[Any]], None] | None) -> None:
        # The pool has this one.
        self._whose = weakref.ref(pool)
        #: What asks the server; None for a check of the project's own, which the pool calls itself.
        self.check = check
        # What was last used before it has been lost, as far as is known.
        self._lost_before = -math.inf

    def __call__(self, timeout: float) -> psycopg.Connection[Any]:
        """Return a connection of the pool that is alive, within *timeout* seconds.

        :raises psycopg_pool.PoolTimeout: there was none, as the pool's own does.
        """
        pool: Any = self._whose()
        deadline = monotonic() + waiting.shortened(timeout, pool)
        # Ends: what is dead is replaced by what is new, and if that cannot be had in time, the pool says so.
        while True:
            connection: psycopg.Connection[Any] = type(pool)._getconn_unchecked(pool, deadline - monotonic())
            is_alive = False
            try:
                is_alive = self._is_alive(connection)
            finally:
                # Also after an exception of a signal handler.
                if not is_alive:
                    pool._putconn(connection, from_getconn=True)
            if is_alive:
                return connection

    def _is_alive(self, connection: psycopg.Connection[Any]) -> bool:
        """Return whether the server is still there for *connection*, which is closed if not."""
        if pools.is_hung_up(connection):
            connection.pgconn.finish()
            return False
        if self.check is None:
            return True
        now = monotonic()
        last_used: float | None = getattr(connection, LAST_USED, None)
        if last_used is not None:
            if last_used < self._lost_before:
                connection.pgconn.finish()
                return False
            if now - last_used < ALIVE_FOR:
                return True
        try:
            self.check(connection)
        except psycopg.Error:
            # Nothing was to be seen at the socket, so the network has lost it without a word. It mostly loses all that
            # is idle together, and to ask costs a time-out for each. SQLAlchemy's pool_pre_ping goes by the same.
            self._lost_before = now
            connection.pgconn.finish()
            return False
        setattr(connection, LAST_USED, monotonic())
        return True


def watch(pool: Any) -> None:
    """Have *pool* check only what may have died, if it has a check and is one of psycopg's; see the module."""
    check = getattr(pool, "_check", None)
    if check is None or not internals.POOL_CHECKS.available or not hasattr(pool, "_getconn_unchecked"):
        return
    from psycopg_pool import ConnectionPool

    is_known = check is ConnectionPool.check_connection
    pool._getconn_unchecked = _Checkout(pool, check if is_known else None)
    if is_known:
        pool._check = None


def unwatch(pool: Any) -> None:
    """Give *pool* its own check back."""
    checkout = vars(pool).get("_getconn_unchecked")
    if type(checkout) is _Checkout:
        del pool._getconn_unchecked
        if checkout.check is not None:
            pool._check = checkout.check
