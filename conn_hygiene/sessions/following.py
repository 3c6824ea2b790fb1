"""Settings that follow their owner: read where a connection goes back, and set again on the next.

Between the two they belong to the lease, as a :class:`Carried`, and end with ``close()``. They are read by the server's
own ``current_setting()`` and set by its ``set_config()``, so that lists, quotes, units and roles come back as they were
(PostgreSQL documentation, "Configuration Settings Functions").
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import ExecStatus
from psycopg.rows import tuple_row

from conn_hygiene import conf, internals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

#: Who somebody is, which decides what it may set: they are reset first, and set again when all else is. Setting the
#: first of them sets the second to "none".
IDENTITIES = ("session_authorization", "role")


def decides(name: str) -> bool:
    """Return whether setting *name* decides whose data a query sees: a role, schemas, or what policies read."""
    return "." in name or name in _DECIDING


_DECIDING = frozenset({*IDENTITIES, "search_path", "row_security"})


def is_wanted() -> bool:
    """Return whether what a statement sets follows its owner; else it keeps the connection."""
    return conf.current.ON_SET == "follow" and internals.FOLLOWING.available


class _Known(str):
    """See :data:`KNOWN`."""

    __slots__ = ()


#: Among values that are set again, stands for that of a name that nobody was seen to set, and that was found empty: a
#: session that has never heard of it does not have it, which ``current_setting()`` tells from that.
KNOWN = _Known()

# Where a psycopg connection keeps of which names its session is known to have heard. The server forgets none.
_HEARD = "_conn_hygiene_heard"


def heard(connection: psycopg.Connection[Any]) -> set[str]:
    """Return the names of one's own settings of which the session of *connection* is known to have heard."""
    names: set[str] = connection.__dict__.setdefault(_HEARD, set())
    return names


def note_heard(connection: psycopg.Connection[Any], names: Iterable[str]) -> None:
    """Take note that the session of *connection* has heard of *names*, be they reset or set."""
    heard(connection).update(name for name in names if "." in name)


def missing_in(connection: psycopg.Connection[Any], values: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return which of *values* are to be set in the session of *connection*: not what it need only know, and does."""
    known = heard(connection)
    return {name: value for name, value in values.items() if value is not KNOWN or name not in known}


class SessionGone(psycopg.OperationalError):
    """The server has ended a session before anything could be set in it again."""


class Carried:
    """The values that an owner is to find again, on their way from one session to the next: a future.

    Set once, by whoever takes the connection back, and waited for by the owner before it takes another one.
    """

    __slots__ = ("_done", "_error", "_values", "names", "set_in", "was_refused")

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self._values: Mapping[str, str | None] = {}
        self._error: BaseException | None = None
        self._done = threading.Event()
        #: In which checkout of their owner's they were set again last; none so far.
        self.set_in = 0
        #: Whether a session was there and has not taken them.
        self.was_refused = False

    def is_lost(self) -> bool:
        """Return whether it is known by now that there is nothing to be set again: no query runs then."""
        return self.done() and self._error is not None

    def done(self) -> bool:
        """Return whether the values are there, or lost."""
        return self._done.is_set()

    def set_result(self, values: Mapping[str, str | None]) -> None:
        """Set what is to be set again, None to its default; what is not among *values* was not set.

        What is :data:`KNOWN` among them need only be known.

        Of this and :meth:`set_exception`, the first call counts.
        """
        if not self._done.is_set():
            self._values = values
            self._done.set()

    def set_exception(self, error: BaseException | None = None) -> None:
        """Have the values be lost, for *error*. Does nothing if they are there."""
        if not self._done.is_set():
            self._error = error or psycopg.OperationalError("its session ended before it could be asked")
            self._done.set()

    def result(self, timeout: float) -> Mapping[str, str | None]:
        """Return what is to be set again, None to its default; waiting *timeout* seconds at most.

        :raises psycopg.OperationalError: it could not be read, or not in time. Nothing may run in another session then.
        """
        if not self._done.wait(timeout):
            raise self.lost(f"the server has not answered for {timeout:g} s")
        if self._error is not None:
            raise self.lost(str(self._error)) from self._error
        return self._values

    def lost(self, why: str) -> psycopg.OperationalError:
        """Return the error that tells *why* the values are not known."""
        names = f" ({', '.join(sorted(self.names))})" if self.names else ""
        return psycopg.OperationalError(
            f"What was set in this session{names} could not be read when its connection was given back: {why.strip()}. "
            "No query runs in another session without it. Close the connection to go on."
        )


class Lost(Carried):
    """The values of a session that has ended before they could be read."""

    __slots__ = ()

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        self.set_exception()

    def lost(self, why: str) -> psycopg.OperationalError:
        """Return the error that tells what was lost with the session."""
        return lost_with_session(sorted(self.names))


def lost_with_session(names: Iterable[str]) -> psycopg.OperationalError:
    """Return the error for whoever queries without *names*, which were set in a session that the server has ended."""
    return psycopg.OperationalError(
        f"What was set in this session ({', '.join(names)}) is lost: the server has closed its connection. "
        "No query runs in another session without it. Close the connection to go on."
    )


def in_order_of_setting(names: AbstractSet[str]) -> list[str]:
    """Return *names* in the order in which they are to be set: a change of the session's user takes the role back."""
    return [*sorted(names - set(IDENTITIES)), *(name for name in IDENTITIES if name in names)]


def in_order_of_reset(names: AbstractSet[str]) -> list[str]:
    """Return *names* in the order in which they are to be reset."""
    return [*(name for name in IDENTITIES if name in names), *sorted(names - set(IDENTITIES))]


def set_again(connection: psycopg.Connection[object], values: Mapping[str, str | None]) -> None:
    """Set *values*, None for the default, in the session of *connection*: all of them or none, in one round trip.

    Those that are :data:`KNOWN` are made known there, if they are not.

    What the session's own role may not set is set by the one that is carried, if that may. A default that is
    refused is left as it is, unless it decides whose data a query sees.

    :raises psycopg.Error: the server refuses a value; nothing is set then.
    """
    try:
        _set_in_turn(connection, values)
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.CantChangeRuntimeParam):
        # Who may not set it has tried to in vain: what the session began with is right.
        settable = {name: value for name, value in values.items() if value is not None or decides(name)}
        if len(settable) == len(values):
            raise
        _roll_back(connection)
        _set_in_turn(connection, settable)
    note_heard(connection, values)


def _set_in_turn(connection: psycopg.Connection[object], values: Mapping[str, str | None]) -> None:
    if not values:
        return
    # A change of the session's user takes the role back.
    identities = [name for name in IDENTITIES if name in values]
    others = sorted(values.keys() - set(IDENTITIES))
    try:
        _set(connection, others + identities, values)
    except psycopg.errors.InsufficientPrivilege:
        if not identities or not others:
            raise
        _roll_back(connection)
        _set(connection, identities + others, values)


def _roll_back(connection: psycopg.Connection[object]) -> None:
    if not connection.autocommit:
        connection.rollback()


def _set(connection: psycopg.Connection[object], names: Sequence[str], values: Mapping[str, str | None]) -> None:
    run(connection, setting(connection, names, values))
    if not connection.autocommit:
        # A rollback would take it back.
        connection.commit()


def asking(connection: psycopg.Connection[object], names: Iterable[str]) -> str:
    """Return the statement that asks for the values of *names* in the session of *connection*."""
    # By its full name: the owner's search_path may have another in front of it.
    return "SELECT " + ", ".join(f"pg_catalog.current_setting({literal(connection, name)}, true)" for name in names)


def setting(connection: psycopg.Connection[object], names: Iterable[str], values: Mapping[str, str | None]) -> str:
    """Return the statement that sets *names*, in this order, to their *values* in the session of *connection*."""
    return "SELECT " + ", ".join(_call(connection, name, values[name]) for name in names)


def _call(connection: psycopg.Connection[object], name: str, value: str | None) -> str:
    # By their full names: the owner's search_path may have others in front of them, and may be set by the same query.
    setting = literal(connection, name)
    if value is KNOWN:
        # Where a library has the name by now, it is known, and may be for others to set.
        unknown = f"pg_catalog.current_setting({setting}, true) IS NULL"
        return f"CASE WHEN {unknown} THEN pg_catalog.set_config({setting}, NULL, false) END"
    wanted = "NULL" if value is None else literal(connection, value)
    return f"pg_catalog.set_config({setting}, {wanted}, false)"


def literal(connection: psycopg.Connection[object], text: str) -> str:
    """Return *text* as a string literal for the session of *connection*, by libpq's own rules."""
    encoding = encoding_of(connection)
    escaped: bytes = psycopg.pq.Escaping(connection.pgconn).escape_literal(text.encode(encoding, _ERRORS))
    return escaped.decode(encoding, _ERRORS)


def encoding_of(connection: psycopg.BaseConnection[Any]) -> str:
    """Return Python's name for the client encoding of *connection*, one that takes any byte for ``SQL_ASCII``."""
    encoding = connection.info.encoding
    return "utf-8" if encoding == "ascii" else encoding


_ERRORS = "surrogateescape"


class _TextDumper(Dumper):
    """Sends text as :func:`literal` writes it."""

    def dump(self, obj: str) -> bytes:
        assert self.connection is not None
        return obj.encode(encoding_of(self.connection), _ERRORS)


def run(
    connection: psycopg.Connection[object], query: str, parameters: Sequence[str | None] | None = None
) -> list[list[str | None]]:
    """Run one statement or several in one round trip; return the first row of each that returns rows, as text.

    With *parameters*, of one statement, they are sent beside it.

    Past all that an application may have set on the connection: adapters, factories, prepared statements.

    :raises psycopg.Error: the server refuses it, or does not answer.
    """
    rows = []
    encoding = encoding_of(connection)
    # Not of the connection's own class, which would tell the lease.
    with psycopg.Cursor(connection, row_factory=tuple_row) as cursor:
        if parameters is not None:
            cursor.adapters.register_dumper(str, _TextDumper)
        cursor.execute(query.encode(encoding, _ERRORS), parameters, prepare=False)
        if connection.pgconn.pipeline_status:
            # It has only been sent. To move to the row that is there waits for it, and loads nothing.
            cursor.scroll(0)
        while True:
            result = cursor.pgresult
            if result is not None and result.status == ExecStatus.TUPLES_OK:
                values = [result.get_value(0, column) for column in range(result.nfields)]
                rows.append([None if value is None else bytes(value).decode(encoding, _ERRORS) for value in values])
            if not cursor.nextset():
                return rows
