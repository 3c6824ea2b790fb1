"""A pool's new connections, looked at before anybody has them.

A backend may change a connection while it checks it out, and only the pool has it before.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper

from conn_hygiene import internals
from conn_hygiene.pools import reconnecting
from conn_hygiene.sessions import client, known, login, state

if TYPE_CHECKING:
    import psycopg

#: Where a connection keeps when it was last used, under any lease, on the monotonic clock.
LAST_USED = "_conn_hygiene_last_used"


class _Configure:
    """Stands for the ``configure`` of a pool, which psycopg_pool calls for each new connection."""

    __slots__ = ("configure",)

    def __init__(self, configure: Any) -> None:
        self.configure = configure

    def __call__(self, connection: psycopg.Connection[Any]) -> None:
        """Configure *connection*, then have it remembered. In a thread of the pool's, mostly."""
        if self.configure is not None:
            self.configure(connection)
        client.remember(connection)
        state.fresh_parameters(connection)
        alias = getattr(getattr(self.configure, "__self__", None), "alias", None)
        if alias is not None:
            login.remember(connection, known.of_login(alias))
        setattr(connection, LAST_USED, monotonic())
        reconnecting.connected(getattr(connection, "_pool", None))


def watch(pool: Any) -> None:
    """Have what *pool* gives out be known for all connections that it makes from here on. Does nothing for None."""
    if pool is None or not internals.CLIENT.available:
        return
    configure = getattr(pool, "_configure", _UNKNOWN)
    # Two threads may both be here: what they put there is the same.
    if configure is not _UNKNOWN and type(configure) is not _Configure:
        pool._configure = _Configure(configure)


def configure_of(pool: Any) -> Any:
    """Return the ``configure`` that *pool* was made with, or None."""
    configure = pool._configure
    return configure.configure if type(configure) is _Configure else configure


def is_djangos(configure: Any) -> bool:
    """Return whether *configure*, which a pool was made with, sets the time zone and the role, and that is all.

    Django's own does, where no method that it calls is a backend's.
    """
    if getattr(configure, "__func__", None) is not _DJANGOS[0]:
        return False
    backend = type(getattr(configure, "__self__", None))
    return tuple(getattr(backend, name, None) for name in SETTING_UP) == _DJANGOS


def sets_no_more(pool: Any) -> bool:
    """Return whether *pool*, or None, surely sets no more in a new session than the time zone and the role."""
    configure = getattr(pool, "_configure", _UNKNOWN)
    return pool is None or (configure is not _UNKNOWN and is_djangos(configure_of(pool)))


#: The methods by which Django's backend sets up a new session: the first, and those that it calls.
SETTING_UP = ("_configure_connection", "_configure_timezone", "_configure_role")
_DJANGOS = tuple(getattr(PostgreSQLWrapper, name, None) for name in SETTING_UP)


def unwatch(pool: Any) -> None:
    """Give *pool* its own ``configure`` back."""
    configure = getattr(pool, "_configure", None)
    if type(configure) is _Configure:
        pool._configure = configure.configure


# Stands for what a pool of another class does not have.
_UNKNOWN = object()
