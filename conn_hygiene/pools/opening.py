"""A native pool's new connections, told as events with the time that each took.

psycopg_pool counts them and adds up whole milliseconds (its documentation, "Pool stats"); how long one took, it does
not say. What opens them is the class that it was given as ``connection_class``, by its ``connect()``.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper

from conn_hygiene import internals
from conn_hygiene.events import ConnectionOpened, publish

if TYPE_CHECKING:
    import psycopg


class _Opener:
    """Stands for the ``connection_class`` of a pool, which is in everything else the class itself."""

    __slots__ = ("_alias", "connection_class")

    def __init__(self, alias: str, connection_class: type[psycopg.Connection[Any]]) -> None:
        self._alias = alias
        self.connection_class = connection_class

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection_class, name)

    def connect(self, *arguments: Any, **parameters: Any) -> psycopg.Connection[Any]:
        """Open a connection, and tell of it if anybody listens."""
        if not ConnectionOpened.listeners:
            return self.connection_class.connect(*arguments, **parameters)
        began = monotonic()
        connection = self.connection_class.connect(*arguments, **parameters)
        opened_in = monotonic() - began
        publish(ConnectionOpened(alias=self._alias, server_pid=connection.info.backend_pid, opened_in=opened_in))
        return connection


def watch(pool: Any, backend: Any) -> None:
    """Have each connection that *pool* opens be told of, if it is one that Django has made for *backend*."""
    if not internals.OPENED.available:
        return
    connection_class = getattr(pool, "connection_class", None)
    if isinstance(backend, PostgreSQLWrapper) and isinstance(connection_class, type):
        pool.connection_class = _Opener(backend.alias, connection_class)


def unwatch(pool: Any) -> None:
    """Give *pool* its own class back."""
    opener = getattr(pool, "connection_class", None)
    if type(opener) is _Opener:
        pool.connection_class = opener.connection_class
