"""Wrappers whose pool hands out proxies: what they show is the proxy, and what their lease has the connection in it.

See :mod:`conn_hygiene.pools.sqlalchemy`. The class that :func:`.wrapper.leased_class` makes for such a wrapper has
:class:`Shown` before ``LeasedWrapper``, and :class:`Behind` after it, right before the backend's own class.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper

from conn_hygiene.leases.states import CLOSED, GIVEN_BACK
from conn_hygiene.pools import sqlalchemy

if TYPE_CHECKING:
    from django.db.backends.postgresql.base import DatabaseWrapper as _Wrapper

    from conn_hygiene.leases.lease import Lease
else:
    _Wrapper = object


def taken_from(wrapper: BaseDatabaseWrapper, lease: Lease, handle: Any) -> Any:
    """Return what *lease* gets of *handle*, which *wrapper* has checked out, or somebody has put there."""
    return sqlalchemy.take(handle, wrapper, partial(_taken_away, lease))


def _taken_away(lease: Lease) -> None:
    """Clean the session of *lease*, whose owner has closed the proxy, and end the checkout. Called by the owner."""
    try:
        lease.prepare_return()
    except psycopg.Error:
        lease.drop()
    finally:
        lease.assign(None)


class Shown(_Wrapper):
    """Shows the proxy, and hands its connection to the lease."""

    if TYPE_CHECKING:
        _conn_hygiene_lease: Lease
        _conn_hygiene_class: type[Any]

        def _set_connection(self, connection: psycopg.Connection[Any] | None) -> None: ...

    def _shown_connection(self) -> Any:
        lease = self._conn_hygiene_lease
        connection = lease.handle or lease.read(sys._getframe(1))
        return None if connection is None else sqlalchemy.proxy_of(connection) or connection

    def _assign_connection(self, handle: Any) -> None:
        before = self._conn_hygiene_lease._connection
        proxy = sqlalchemy.proxy_of(before)
        taken = None if handle is None else taken_from(self, self._conn_hygiene_lease, handle)
        self._set_connection(taken)
        if before is not None and before is not taken:
            sqlalchemy.forget(before, proxy)

    connection = property(_shown_connection, _assign_connection, doc="SQLAlchemy's proxy of the psycopg connection.")

    def _cursor(self, name: str | None = None) -> Any:
        # Django's own method: LeasedWrapper's would pass by what `Behind` does to the cursor.
        return self._conn_hygiene_class._cursor(self, name)

    def __repr__(self) -> str:
        """Return what the backend does, or Django if there is no connection now: to look at the proxy is a use."""
        if self._conn_hygiene_lease.state in (CLOSED, GIVEN_BACK):
            return BaseDatabaseWrapper.__repr__(self)
        return super().__repr__()

    __str__ = __repr__


class Behind(_Wrapper):
    """Does what Django's backend would do to the proxy."""

    if TYPE_CHECKING:
        _conn_hygiene_lease: Lease

    def _close(self) -> None:
        """Give the connection back. SQLAlchemy logs an error where it rolls back one that is broken."""
        connection = self._conn_hygiene_lease._connection
        if connection is None or sqlalchemy.proxy_of(connection) is None:
            super()._close()  # type: ignore[misc]
            return
        sqlalchemy.give_back(connection)
        # As with a native pool: it may be somebody else's by now, whose proxy the setter would take for ours.
        self._conn_hygiene_lease.assign(None)

    def create_cursor(self, name: str | None = None) -> Any:
        """Create a cursor of the connection; Django makes server-side ones on the proxy."""
        cursor = super().create_cursor(name)
        connection = sqlalchemy.driver_connection(cursor._conn)
        if connection is not None:
            cursor._conn = connection
        return cursor
