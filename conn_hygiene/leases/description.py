"""A lease as others see it, at one moment, and what is remembered of that."""

from __future__ import annotations

import _socket
import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from conn_hygiene import conf, masking
from conn_hygiene.leases import policy
from conn_hygiene.leases.states import PARKED
from conn_hygiene.pools import base as pools
from conn_hygiene.sessions.texts import text_of

if TYPE_CHECKING:
    from types import CodeType

    from django.db.backends.base.base import BaseDatabaseWrapper

    from conn_hygiene import callsite
    from conn_hygiene.leases.lease import Lease


class Transaction(NamedTuple):
    """The beginning of a transaction: when on the monotonic clock, where, and whether ``ATOMIC_REQUESTS`` opened it."""

    began: float
    place: callsite.Place | None
    by_atomic_requests: bool
    #: The function that entered ``atomic()``, whosever it is; None for what was begun otherwise.
    opener: CodeType | None = None
    #: The settings that the owner had made in the session before it; what was set since goes with its rollback.
    set_before: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Description:
    """A lease as it was at one moment; times in seconds."""

    connection: psycopg.Connection[Any]
    state: str
    held_for: float
    idle_for: float
    used_for: float
    open_cursors: int
    in_transaction: bool
    #: Whether one is open for Django alone. Where autocommit was turned off by hand, *in_transaction* is not true then.
    is_untouched: bool
    #: When and where it began; None if that was not seen, on a handle.
    transaction: Transaction | None
    open_for: float
    #: The last one, as it was executed.
    last_statement: tuple[Any] | None
    #: A statement is running, in a cursor or on a handle.
    active: bool
    pooled: bool
    pins: dict[str, str]
    #: What else keeps it, as :func:`_kept_because` has it.
    kept_because: str | None

    @property
    def statement(self) -> str | None:
        """The last statement as :func:`reportable` has it. To be asked for under no lock: adapters may run."""
        return None if self.last_statement is None else reportable(self.last_statement[0])


# Masking takes about a microsecond a character, and so many say which statement it is. PostgreSQL shows 1,024 of one.
_LONGEST = 10_000


def reportable(query: Any) -> str | None:
    """Return *query*, which is anything that psycopg executes, as ``LOG_STATEMENTS`` has it told; None without text.

    It is without its parameters in any case. Masked, it is what :func:`conn_hygiene.masking.mask` makes of its
    beginning. Called when a report is made, and never on the way of a query.
    """
    text = text_of(query, None)
    if text is None:
        return None
    if conf.current.LOG_STATEMENTS == "raw":
        # Its values, but for what would be no value any more on a terminal.
        return masking.harmless(text, lines=True)
    return masking.mask(text[:_LONGEST])


@dataclasses.dataclass(frozen=True)
class End:
    """To what a connection leads, and from where, as libpq and the system have it; None for what is not known."""

    #: The server's name or address, or the directory of its socket, and its port.
    host: str | None
    address: str | None
    port: int | None
    database: str | None
    user: str | None
    #: Of this side, as ``pg_stat_activity`` has them unless something in between translates; None for a Unix socket.
    client_address: str | None
    client_port: int | None


class Reported(NamedTuple):
    """A report that was made, and that is not made again too soon."""

    #: The transaction or the checkout.
    about: object
    again_at: float


def look(lease: Lease, now: float) -> Description | None:
    """Describe the lease, and remember what is seen: whether anything runs, and which statement was the last.

    Behind an open cursor, what has not changed from one look to the next has been idle since. The reaper's.
    """
    with lease._lock:
        connection = lease._connection
        if connection is not None and (lease.quiet[0] is not lease.last_statement or pools.is_active(connection)):
            lease.quiet = (lease.last_statement, now)
        return describe(lease, now)


def describe(lease: Lease, now: float) -> Description | None:
    """Return the lease as it is at *now*, for reports; None if it holds no connection."""
    with lease._lock:
        connection = lease._connection
        if connection is None:
            return None
        wrapper = lease.wrapper()
        # Or so it seems: a statement that runs keeps the connection as a transaction does, and need not be in one.
        keeps = wrapper is not None and lease._in_transaction(wrapper)
        in_transaction = keeps and not (wrapper and lease.runs_by_itself(wrapper))
        is_untouched = wrapper is not None and _is_untouched(lease, wrapper)
        in_use = bool(lease.open_cursors) or keeps
        active = pools.is_active(connection)
        return Description(
            connection=connection,
            state="in use" if in_use else "pinned" if lease.session_state.pins else "idle",
            held_for=now - lease.checked_out_at,
            idle_for=0.0 if active else now - _quiet_since(lease, now),
            used_for=lease._used + (now - lease.in_use_since if lease.in_use_since is not None else 0.0),
            open_cursors=len(lease.open_cursors),
            in_transaction=in_transaction,
            is_untouched=is_untouched,
            transaction=lease._transaction if in_transaction or is_untouched else None,
            open_for=now - lease._transaction.began if in_transaction and lease._transaction else 0.0,
            last_statement=lease.last_statement,
            active=active,
            pooled=lease.pooled,
            pins=dict(lease.session_state.pins),
            kept_because=None if wrapper is None or (keeps and not is_untouched) else _kept_because(lease, wrapper),
        )


def _is_untouched(lease: Lease, wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether Django is in a transaction in which nothing has run, as far as libpq has seen. Under the lock.

    psycopg begins it on the server with its first statement.
    """
    connection = lease._connection
    return (
        connection is not None
        and pools.is_idle(connection)
        # One that is over is not forgotten before the cursors close that were open at its end.
        and (lease._in_transaction(wrapper) or (lease._transaction is not None and not wrapper.autocommit))
    )


def _kept_because(lease: Lease, wrapper: BaseDatabaseWrapper) -> str | None:
    """Return why the lease stays with its owner while no transaction runs, besides its pins; None if nothing is known.

    Under the lock. That nobody has asked to give it back is told only where nothing else would keep it if somebody had.
    """
    is_untouched = _is_untouched(lease, wrapper)
    keeps = (
        (lease.open_cursors, "a cursor is open"),
        # Django itself reads it to turn autocommit off.
        (lease._handle_is_out() and not is_untouched, "its handle was read"),
        (lease._wish == policy.HOLD, "hold_connection is around"),
        (wrapper._thread_sharing_count, "it is shared between threads"),  # type: ignore[attr-defined]
        (is_untouched, f"{_opened(lease)} in which nothing has run"),
    )
    reasons = [reason for does, reason in keeps if does]
    if reasons or lease.session_state.pins or lease.state == PARKED:
        return " and ".join(reasons) or None
    if conf.current.RELEASE == "never":
        return 'RELEASE is "never"'
    if lease._wish == policy.KEEP:
        return "no release scope is around"
    return "UNPOOLED_RELEASE_AFTER is None" if lease._grace() is None else None


def _opened(lease: Lease) -> str:
    begun = lease._transaction
    return "ATOMIC_REQUESTS has opened a transaction" if begun and begun.by_atomic_requests else "a transaction is open"


def _quiet_since(lease: Lease, now: float) -> float:
    """Return since when nothing runs, as far as is known; with a cursor open, since the reaper has seen so."""
    if not lease.open_cursors:
        return lease.idle_since
    last, since = lease.quiet
    return since if last is lease.last_statement else now


def end_of(lease: Lease) -> End | None:
    """Return where the lease's connection leads, for who has to tell it from another server's of the same pid.

    Under the lock, since nobody may close it meanwhile.
    """
    with lease._lock:
        connection = lease._connection
        return None if connection is None else end_of_connection(connection)


def end_of_connection(connection: psycopg.Connection[Any]) -> End | None:
    """Return where *connection* leads; None if it is broken. Nothing is asked: libpq and the system know."""
    with contextlib.suppress(psycopg.Error, OSError):
        info = connection.info
        return End(info.host, _hostaddr(info), info.port, info.dbname, info.user, *_own_end(connection.fileno()))
    return None


def _hostaddr(info: psycopg.ConnectionInfo) -> str | None:
    try:
        return info.hostaddr or None
    except psycopg.NotSupportedError:
        # libpq is older than 12.
        return None


def _own_end(descriptor: int) -> tuple[str | None, int | None]:
    # Python's own, of which gevent and eventlet make nothing else: it is asked for its name only.
    with contextlib.closing(_socket.socket(fileno=os.dup(descriptor))) as copy:
        name = copy.getsockname()
    return (name[0], name[1]) if isinstance(name, tuple) else (None, None)
