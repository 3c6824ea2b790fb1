"""What a session carries that its owner has left there, as far as that can be told without asking the server.

Statements say it (see :mod:`conn_hygiene.sessions.sql`), the parameters that the server reports on its own, and the
attributes that psycopg keeps on its side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.pq import ConnStatus

from conn_hygiene import callsite
from conn_hygiene.sessions.sql import DISCARDED, HARMLESS, INDELIBLE, SETTING

if TYPE_CHECKING:
    import psycopg

    from conn_hygiene.sessions.sql import Effect

# What the server reports on its own at every change (PostgreSQL documentation, "Asynchronous Operations"), as far as a
# change of it is the session's own doing. search_path is reported from PostgreSQL 18 on.
_REPORTED = tuple(
    name.encode()
    for name in (
        "search_path",
        "TimeZone",
        "DateStyle",
        "IntervalStyle",
        "application_name",
        "client_encoding",
        "default_transaction_read_only",
        "session_authorization",
        "is_superuser",
        "standard_conforming_strings",
    )
)


def reported_parameters(connection: psycopg.Connection[Any]) -> tuple[bytes | None, ...]:
    """Return the session parameters that libpq knows without asking the server; nothing for a closed connection."""
    pgconn = connection.pgconn
    if pgconn.status == ConnStatus.BAD:
        return ()
    return tuple(map(pgconn.parameter_status, _REPORTED))


def changed_parameters(before: tuple[bytes | None, ...], after: tuple[bytes | None, ...]) -> list[str]:
    """Return the names of the parameters that differ between two results of :func:`reported_parameters`."""
    return [name.decode() for name, old, new in zip(_REPORTED, before, after, strict=False) if old != new]


class State:
    """What the owner of one checkout has left in the session, as far as that can be told without asking the server.

    Guarded by the lock of the lease that it belongs to.
    """

    __slots__ = ("_attributes", "_of_hold", "_soiled", "fresh", "parameters", "pins")

    def __init__(self, connection: psycopg.Connection[Any] | None = None) -> None:
        #: The reported parameters when the session was new.
        self.fresh: tuple[bytes | None, ...] = () if connection is None else _fresh_parameters(connection)
        #: The same as the owner found them; None until it begins, and after a ``DISCARD ALL``.
        self.parameters: tuple[bytes | None, ...] | None = None
        self._attributes: tuple[Any, ...] = ()
        #: What ties the session to its owner: reason to place in the code.
        self.pins: dict[str, str] = {}
        # Of these, what was executed under hold_connection.
        self._of_hold: set[str] = set()
        # Whether a statement has left anything, undone since or not.
        self._soiled = False

    def begin(self, connection: psycopg.Connection[Any]) -> None:
        """Remember the session as it is now; what differs later is the owner's doing."""
        self.parameters = reported_parameters(connection)
        self._attributes = _attributes(connection)

    def add(self, effect: Effect, *, setting_up: bool, of_hold: bool) -> list[str]:
        """Take note of a statement's *effect*, and return the pins that it has added.

        *setting_up* tells that a receiver of ``connection_created`` executes it, which runs at every checkout: its
        ``SET`` need not survive a release.
        """
        self._soiled = True
        if DISCARDED in effect.adds:
            # The session is about to differ from what it was, and that is no reason to keep it.
            self.parameters = None
        for reason in effect.removes:
            self.pins.pop(reason, None)
        if setting_up and not effect.adds & INDELIBLE:
            return []
        added = [reason for reason in effect.adds - HARMLESS if reason not in self.pins]
        self.pins.update((reason, str(callsite.here() or callsite.UNKNOWN)) for reason in added)
        if of_hold:
            self._of_hold.update(added)
        return added

    def changed(
        self, connection: psycopg.Connection[Any], reported: tuple[bytes | None, ...] | None = None
    ) -> list[str]:
        """Return what differs from when the owner began. *reported*: the parameters, if they have just been read."""
        if self.parameters is None or connection.closed:
            return []
        if reported is None:
            reported = reported_parameters(connection)
        changed = [] if reported == self.parameters else changed_parameters(self.parameters, reported)
        if _attributes(connection) != self._attributes:
            changed.append("transaction characteristics of the psycopg connection")
        return changed

    def is_of_hold(self) -> bool:
        """Return whether there are pins, and all of them were added under ``hold_connection``."""
        return bool(self.pins) and self.pins.keys() <= self._of_hold

    def to_scrub(
        self, connection: psycopg.Connection[Any], reported: tuple[bytes | None, ...], *, soiled: bool
    ) -> frozenset[str]:
        """Return what must not reach anybody else; empty when the session is clean.

        *reported* are its parameters now; *soiled* tells of something else that has left its traces.
        """
        state = set(self.pins)
        if (
            soiled
            or self._soiled
            or reported != self.fresh
            or (self.parameters is not None and _attributes(connection) != self._attributes)
        ):
            state.add(SETTING)
        return frozenset(state)

    def cleaned(self) -> None:
        """Take note that nothing is left."""
        self.pins.clear()
        self._soiled = False


def _fresh_parameters(connection: psycopg.Connection[Any]) -> tuple[bytes | None, ...]:
    """Return the reported parameters of *connection* when first checked out; kept on it, as psycopg_pool's own data."""
    fresh: tuple[bytes | None, ...] | None = getattr(connection, "_conn_hygiene_fresh", None)
    if fresh is None:
        fresh = reported_parameters(connection)
        connection._conn_hygiene_fresh = fresh  # type: ignore[attr-defined]
    return fresh


def _attributes(connection: psycopg.Connection[Any]) -> tuple[Any, ...]:
    """Return the transaction characteristics that psycopg keeps on its own side of *connection*."""
    return connection.isolation_level, connection.read_only, connection.deferrable
