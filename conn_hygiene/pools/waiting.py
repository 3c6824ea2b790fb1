"""Waiting for a pool once more, for the rest of the time that its ``timeout`` allows.

What a pool gives may be of no use, so that it is asked again on behalf of the same caller. psycopg_pool would count
from the beginning then, and whoever wants a connection would wait for several times as long as the project has said.
"""

from __future__ import annotations

import contextlib
import weakref
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING, Any

from conn_hygiene import internals

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

#: Seconds that a pool is given at least, be the time over or not: with 0 it would not even hand out what it has ready.
MIN_TIMEOUT = 0.01

# For which pool, and until when on the monotonic clock; (None, 0) for who asks for the first time.
_limit: ContextVar[tuple[Any, float]] = ContextVar("conn_hygiene_pool_limit", default=(None, 0.0))


def shortened(timeout: float, pool: Any) -> float:
    """Return how many of *timeout* seconds are left to the caller for *pool*."""
    limited, deadline = _limit.get()
    return min(timeout, max(deadline - monotonic(), MIN_TIMEOUT)) if limited is pool else timeout


@contextlib.contextmanager
def since(began: float, pool: Any) -> Iterator[None]:
    """Have the caller wait for *pool* inside until its timeout has passed since *began*, on the monotonic clock.

    *pool* then raises its ``PoolTimeout``, as ever. Does nothing for other pools than psycopg's.
    """
    if not _watch(pool):
        yield
        return
    limited, deadline = _limit.get()
    own = began + pool.timeout
    # Who asks again may be asked to ask again.
    try:
        # Inside, and without a token: an exception of a signal handler may come as soon as it is set.
        _limit.set((pool, min(own, deadline) if limited is pool else own))
        yield
    finally:
        _limit.set((limited, deadline))


class _Limited:
    """Stands for the ``_getconn_unchecked()`` of a pool, of which somebody has wanted more than one."""

    __slots__ = ("_whose",)

    def __init__(self, pool: Any) -> None:
        # The pool has this one.
        self._whose = weakref.ref(pool)

    def __call__(self, timeout: float) -> psycopg.Connection[Any]:
        """Return what the pool's own does, within what is left of *timeout* seconds."""
        pool: Any = self._whose()
        connection: psycopg.Connection[Any] = type(pool)._getconn_unchecked(pool, shortened(timeout, pool))
        return connection


def _watch(pool: Any) -> bool:
    """Have *pool* heed what is left to who asks again; return whether it does."""
    if not internals.POOL_CHECKS.available or not hasattr(pool, "_getconn_unchecked"):
        return False
    # Not before it is needed: each checkout goes by it. Two threads may both be here, and put the same. One that is
    # checked has a stand-in already, which heeds it.
    if "_getconn_unchecked" not in vars(pool):
        pool._getconn_unchecked = _Limited(pool)
    return True


def unwatch(pool: Any) -> None:
    """Take away what was put onto *pool*."""
    if type(vars(pool).get("_getconn_unchecked")) is _Limited:
        del pool._getconn_unchecked
