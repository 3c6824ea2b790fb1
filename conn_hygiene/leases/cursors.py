"""Cursors that tell their lease when they close, and what they execute.

While a connection is checked out under a lease, its cursor factories are subclasses of what they were; they are put
back before it returns to its pool. psycopg documents both as attributes to be set ("Cursor and connection factories").
"""

from __future__ import annotations

import weakref
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from psycopg import InterfaceError

from conn_hygiene import callsite, conf
from conn_hygiene.sessions.sql import LONGEST_REMEMBERED, remembered_effect_of

if TYPE_CHECKING:
    import psycopg
    from psycopg import Cursor as _Cursor

    from conn_hygiene.leases.lease import Lease
else:
    _Cursor = object

# Where a connection keeps the lease that it is checked out under, for cursors that its wrapper did not make.
_LEASE = "_conn_hygiene_lease"
_FACTORIES = ("cursor_factory", "server_cursor_factory")
# Where a class keeps the one that it stands for.
_PLAIN = "_conn_hygiene_plain"


class LeasedCursor(_Cursor):
    """Mixed into a psycopg cursor's class."""

    __slots__ = ()

    # The lease, and as what the cursor stands in its list of open ones; None for a cursor made on a raw handle, which
    # does not count, and for a closed one.
    _conn_hygiene_entry: tuple[Lease, weakref.ref[Any]] | None = None

    def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
        """Announce the statement to the lease, then execute it."""
        entry = self._conn_hygiene_entry
        if (
            entry is not None
            and type(query) is str
            and len(query) <= LONGEST_REMEMBERED
            and remembered_effect_of(query) is None
            and entry[1] in (lease := entry[0]).open_cursors
            and lease.ended_because is None
        ):
            # What _announce() comes to for nearly every statement.
            lease.last_statement = (query,)
        else:
            self._announce(query)
        if kwargs:
            return super().execute(query, params, **kwargs)
        return super().execute(query, params)

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Announce the statement to the lease, then execute it for each of the parameters."""
        self._announce(query)
        return super().executemany(query, *args, **kwargs)

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Announce the statement to the lease, then execute it row by row."""
        self._announce(query)
        return super().stream(query, *args, **kwargs)

    def _announce(self, query: Any) -> None:
        entry = self._conn_hygiene_entry
        if entry is not None and not entry[0].is_current(entry[1]):
            raise InterfaceError("the connection of this cursor was closed or given back")
        lease: Lease | None = getattr(self._conn, _LEASE, None) if entry is None else entry[0]
        if lease is not None:
            lease.statement(query, self._conn)

    def close(self) -> None:
        """Close the cursor, and tell the lease, once."""
        entry = self._conn_hygiene_entry
        if entry is None:
            super().close()
            return
        self._conn_hygiene_entry = None
        lease, cursor = entry
        if cursor not in lease.open_cursors and not lease.is_current(cursor):
            # Its connection may be somebody else's by now, who must not get the CLOSE of a server-side cursor.
            self._close()
            return
        try:
            super().close()
        finally:
            lease.cursor_closed(cursor)


class _StandsFor(type):
    """Makes a class equal to the one that it stands for: code may compare ``cursor_factory`` with what it has set."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or cls.__dict__.get(_PLAIN) is other

    def __hash__(cls) -> int:
        return type.__hash__(cls.__dict__.get(_PLAIN, cls))


# Bounded, since instrumentation may make a class for each connection (OpenTelemetry does).
@lru_cache(maxsize=64)
def leased_cursor_class(cls: Any) -> Any:
    """Return the subclass of psycopg cursor class *cls* that tells its lease; it goes by the name of *cls*."""
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__, _PLAIN: cls}
    make = _StandsFor if type(cls) is type else type(cls)
    return make(cls.__name__, (LeasedCursor, cls), names)


def follow(connection: psycopg.Connection[Any], lease: Lease) -> None:
    """Have the cursors of *connection* tell *lease* from here on."""
    setattr(connection, _LEASE, lease)
    for name in _FACTORIES:
        setattr(connection, name, _leased(getattr(connection, name)))


@lru_cache(maxsize=64)
def _leased(factory: Any) -> Any:
    # A factory need not be a class; the cursors of one that is not are followed one by one.
    if not isinstance(factory, type) or issubclass(factory, LeasedCursor):
        return factory
    return leased_cursor_class(factory)  # type: ignore[arg-type]


def unfollow(connection: psycopg.Connection[Any]) -> None:
    """Make *connection* what it was before :func:`follow`; to be repeated if it was interrupted.

    A factory that somebody has set since stays: it is made from ours, which does nothing without a lease.
    """
    connection.__dict__.pop(_LEASE, None)
    for name in _FACTORIES:
        factory = getattr(connection, name)
        if isinstance(factory, type) and _PLAIN in factory.__dict__:
            setattr(connection, name, factory.__dict__[_PLAIN])


def register(cursor: Any, lease: Lease) -> None:
    """Have *cursor* keep the connection of *lease* until it is closed, or collected. The owner's; takes no lock."""
    if not isinstance(cursor, LeasedCursor):
        # Made past the factories, as Django does for server-side cursors.
        try:
            cursor.__class__ = leased_cursor_class(type(cursor))  # type: ignore[arg-type]
        except TypeError:
            # A class of a layout of its own: its end cannot be seen, so it holds the connection for good.
            lease.open_cursors[object()] = None
            return
    reference = weakref.ref(cursor, lease.cursor_collected)
    lease.open_cursors[reference] = callsite.here() if conf.names_cursors else None
    cursor._conn_hygiene_entry = (lease, reference)
