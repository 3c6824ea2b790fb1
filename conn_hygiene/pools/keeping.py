"""Whether a pool keeps what it gets back, or closes it, as psycopg's ``NullConnectionPool`` does when nobody waits."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

# Pools of somebody's own that closed what they were given last.
_closing: set[type[Any]] = set()


def keeps(pool: Any) -> bool:
    """Return whether *pool* keeps connections, as far as its class tells or was seen; False for None."""
    return pool is not None and not _is_null(pool.__class__) and type(pool) not in _closing


@lru_cache(maxsize=64)
def _is_null(cls: Any) -> bool:
    return any(base.__module__ == "psycopg_pool.null_pool" for base in cls.__mro__)


@lru_cache(maxsize=64)
def is_psycopgs(cls: Any) -> bool:
    """Return whether *cls* is a class of psycopg_pool's own."""
    return bool(cls.__module__.partition(".")[0] == "psycopg_pool")


def is_full(pool: Any) -> bool:
    """Return whether *pool*, which keeps nothing, has to wait for a connection to come back before it opens another."""
    limit = getattr(pool, "max_size", 0)
    return bool(limit) and getattr(pool, "_nconns", 0) >= limit


def came_back(pool: Any, connection: psycopg.Connection[Any]) -> None:
    """Take note of what *pool* did with a *connection* that was open when it came back.

    Of psycopg_pool's own, the class tells: they close one now and then, for its age.
    """
    cls: Any = pool.__class__
    if pool is None or is_psycopgs(cls):
        return
    if connection.closed:
        _closing.add(cls)
    else:
        _closing.discard(cls)
