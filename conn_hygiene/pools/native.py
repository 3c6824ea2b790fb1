"""All that is put onto a pool when a wrapper is about to connect over it, and taken off again."""

from __future__ import annotations

from typing import Any

from conn_hygiene.pools import checking, configuring, opening, parameters, queues, reconnecting, waiting

_PARTS = (configuring, checking, reconnecting, queues)

# Stands on a pool that is watched.
_WATCHED = "_conn_hygiene_watched"


def is_watched(pool: Any) -> bool:
    """Return whether all has been put onto *pool*, which may be None, as far as it has a place for it."""
    return getattr(pool, _WATCHED, False)


def watch(pool: Any) -> None:
    """Have *pool* remember, check and replace its connections as the toolkit does. Does nothing for None.

    It is best done before the pool opens.
    """
    if pool is None or is_watched(pool):
        return
    try:
        # First of all, so that of two threads one does it.
        setattr(pool, _WATCHED, True)
    except AttributeError:
        # Of a class of somebody's own.
        return
    # Before it is wrapped: the wrapper whose method it is has made the pool.
    backend = getattr(getattr(pool, "_configure", None), "__self__", None)
    parameters.watch(pool, backend)
    opening.watch(pool, backend)
    for part in _PARTS:
        part.watch(pool)


def unwatch(pool: Any) -> None:
    """Make *pool* what it was."""
    if is_watched(pool):
        delattr(pool, _WATCHED)
    for part in _PARTS:
        part.unwatch(pool)
    waiting.unwatch(pool)
    opening.unwatch(pool)
    parameters.unwatch(pool)
