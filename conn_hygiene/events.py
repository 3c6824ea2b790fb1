"""What happens to connections, as dataclasses, for listeners: the log, signals, counters, and those that you add.

Each kind of event is a frozen dataclass. One object is made for each thing that happens, and every listener of its kind
gets that object::

    from conn_hygiene import events

    def too_slow(event: events.CheckedOut) -> None:
        if event.waited_for is not None and event.waited_for > 0.1:
            statsd.timing("waited", event.waited_for, tags=[event.alias])

    events.listen(events.CheckedOut, too_slow)

A listener is called in the thread in which the thing happens: the owner's of a connection, or one of the toolkit's own.
No lock of the toolkit is held meanwhile, so a listener may block and may query. Mind two things. A slow listener delays
the request in whose thread it is called; in a thread of the toolkit's it delays later events, and when too many wait,
further ones are dropped, which is logged. And a listener to :class:`CheckedOut` or :class:`CheckedIn` that queries may
check out a connection itself, which publishes the same kind of event again: guard against the recursion. An exception
of a listener is logged and goes no further. A ``BaseException`` such as ``KeyboardInterrupt`` propagates, and so does
what a signal handler raises while the listener runs.

Where nobody listens to a kind of event, no object is made: the publisher looks at ``listeners`` of the class first.

Who may touch what: ``listeners`` of each class is a tuple, replaced as a whole under ``_lock`` and read without it, so
that whoever publishes sees those before a change or those after it. The lock is a leaf. A forked child keeps the
listeners and replaces the lock, which another thread may have held.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from conn_hygiene import locks
from conn_hygiene.interruptions import is_of_handler
from conn_hygiene.locks import Rank
from conn_hygiene.masking import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conn_hygiene.callsite import Stack

logger = logging.getLogger("conn_hygiene.events")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The base class of all events. A listener to it gets events of every kind."""

    #: The functions that are called with an event of this class, in the order in which they were added.
    listeners: ClassVar[tuple[Callable[[Any], object], ...]] = ()

    def facts(self) -> dict[str, Any]:
        """Return the event's attributes by name: a new dictionary of the same values."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


E = TypeVar("E", bound=Event)


# ##### Checkouts #####

#: Why a checkout ends; see :class:`CheckedIn`.
Ending = Literal["release", "close", "reclaim", "uninstall"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedOut(Event):
    """A connection was taken from its pool, or opened where there is none. Published in the owner's thread."""

    alias: str
    #: The pid of the server process, as in ``pg_stat_activity``.
    server_pid: int
    #: The owner's thread, by ``threading.get_ident()``.
    thread_id: int
    #: A label of the request or task, such as ``"GET /orders/7/"``, or ``"task shop.tasks.sync[id]"``; None outside of
    #: both.
    request: str | None
    #: Whether it is from a pool.
    pooled: bool
    #: Seconds from asking for a connection to having it: the wait for the pool, or without a pool the time that it took
    #: to connect. None where that was not measured: for the first connection of a database wrapper of Django's that was
    #: made before the toolkit was installed, or that is a copy.
    waited_for: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedIn(Event):
    """A checkout ended: the connection went back to its pool, or was closed if there is none. One for each checkout.

    Published once the connection is back: in the owner's thread if the owner ended the checkout, else in a thread of
    the toolkit's.
    """

    alias: str
    server_pid: int
    #: The owner's thread, which need not be the one that publishes.
    thread_id: int
    request: str | None
    pooled: bool
    #: Seconds from the checkout to now.
    held_for: float
    #: Seconds of those in which a cursor was open or a transaction ran.
    used_for: float
    #: ``"release"``: it was given back between two queries, and the next query checks one out again. ``"close"``: the
    #: owner closed it, or its ``CONN_MAX_AGE`` was over while its thread had nothing to do. ``"reclaim"``: its thread
    #: ended, or its wrapper was garbage-collected. ``"uninstall"``: the toolkit was uninstalled; the owner keeps it.
    reason: Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOpened(Event):
    """Django's native pool has opened a connection. Published in the thread that opened it, mostly one of the pool's.

    Without a pool, each checkout opens a connection: :class:`CheckedOut`, whose ``pooled`` is false, says how long that
    took. For other pools there are no such events. A ``NullConnectionPool``, which a backend may have in its place,
    opens connections in the thread that asks, under the pool's lock: there, a listener that queries the same alias
    would wait for itself.
    """

    alias: str
    server_pid: int
    #: Seconds that it took to connect, without what the pool then sets up in the session.
    opened_in: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who held a connection of a pool when a checkout failed; see :class:`PoolExhausted`. Not an event itself.

    Times are in seconds.
    """

    #: The alias by which it is held. On the same pool, that may be another one than the alias of the failed checkout.
    alias: str
    server_pid: int
    thread_id: int
    #: None for a thread that has ended, or that Python's threading module does not know.
    thread_name: str | None
    request: str | None
    #: ``"in use"`` (a cursor is open or a transaction runs), ``"idle"``, or ``"pinned"`` (idle, but must stay).
    state: str
    held_for: float
    #: Since its last statement; 0 while one runs.
    idle_for: float
    in_transaction: bool
    #: What pins it.
    pinned_by: tuple[str, ...]
    #: The last statement, without its parameters, and as ``LOG_STATEMENTS`` says: with ``?`` for each value in it.
    statement: str | None
    #: Places in the code, such as ``"/app/shop/views.py:12 in pay"``: where it was checked out, where its transaction
    #: began, and where its thread is now. None where they are not known.
    where_checked_out: str | None
    where_began: str | None
    where_now: str | None
    #: What else keeps it while it is idle and no statement has run in a transaction, such as ``"hold_connection is
    #: around"``; several are joined by "and". None where nothing is known.
    kept_because: str | None = None

    @property
    def message(self) -> str:
        """Who it is, and what it does, in sentences: on one line."""
        # More than one line of code is too much to read at once: where a transaction began is the nearer one.
        if self.where_began:
            begun = place_told("Its transaction began at", self.where_began)
        else:
            begun = place_told("It was checked out at", self.where_checked_out)
        pinned = f" It is pinned by {', '.join(self.pinned_by)}." if self.pinned_by else ""
        kept = place_told("It is kept because", self.kept_because)
        last = f" Its last statement was: {shortened(self.statement)}" if self.statement else ""
        thread = f" in thread {self.thread_name or self.thread_id}" if self.request else ""
        return printable(
            f"{who(self)}{thread} on {self.alias!r} (server pid {self.server_pid}) for {self.held_for:.1f} s, "
            f"{self._activity}.{place_told('Its thread is at', self.where_now)}{begun}{pinned}{kept}{last}"
        )

    @property
    def _activity(self) -> str:
        inside = " in a transaction" if self.in_transaction else ""
        return f"idle{inside} for {self.idle_for:.1f} s" if self.idle_for else f"running a statement{inside}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolExhausted(Event):
    """A checkout failed, since the pool had no connection in time. Published in the thread that gets the exception.

    The numbers are those of the pool at that moment, or up to a tenth of a second before if many fail at once. They are
    all 0 if they could not be found out, which is logged.
    """

    alias: str
    thread_id: int
    thread_name: str | None = None
    request: str | None
    #: Seconds that it waited.
    waited_for: float
    #: The exception. Of psycopg_pool: ``"PoolTimeout"``, also if no connection could be opened, or
    #: ``"TooManyRequests"`` if as many as ``max_waiting`` were waiting already. Of SQLAlchemy: ``"TimeoutError"``.
    error: Literal["PoolTimeout", "TooManyRequests", "TimeoutError"]
    #: How many others wait for a connection of the pool.
    waiting: int = 0
    #: How many connections the pool has, including those that it is opening.
    size: int = 0
    #: How many it may have; 0 for no limit.
    max_size: int = 0
    #: How many are idle in the pool.
    available: int = 0
    #: How many are checked out through Django, by any alias and in any thread of this process.
    held: int = 0
    #: How many are on their way back: being cleaned, or rolled back.
    returning: int = 0
    #: How many attempts to open a connection have failed since the pool was opened. Always 0 for a pool of SQLAlchemy,
    #: where the checkout itself connects, and raises the error.
    connect_errors: int = 0
    #: Who holds them: the ten that have held theirs for longest, with the longest first.
    holders: tuple[Holder, ...] = ()

    @property
    def unaccounted(self) -> int:
        """How many are neither checked out through Django, nor idle in the pool, nor on their way back.

        They are being opened, which takes long while the server is down; or code has checked them out from the pool
        directly, as by its ``getconn()``.
        """
        return max(0, self.size - self.held - self.available - self.returning)

    @property
    def summary(self) -> str:
        """What happened, and the numbers of the pool, in sentences on one line."""
        if self.error == "TooManyRequests":
            waited = "and did not wait, since the pool's max_waiting is reached"
        else:
            waited = f"in {self.waited_for:.1f} s"
        others = f"; {self.waiting} more wait{'s' if self.waiting == 1 else ''}" if self.waiting else ""
        found = f"{who(self)} got no connection from the pool of {self.alias!r} {waited}{others}."
        return printable(f"{found}{self._connections}{self._failures}")

    @property
    def _connections(self) -> str:
        if not (self.size or self.max_size):
            return ""
        limit = f" of at most {self.max_size}" if self.max_size else ""
        kinds = {
            "held": self.held,
            "on the way back": self.returning,
            "idle in the pool": self.available,
            "being opened or checked out past Django": self.unaccounted,
        }
        told = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
        nobody = "" if self.held else " None is checked out through Django."
        connections = "connection" if self.size == 1 else "connections"
        return f" It has {self.size} {connections}{limit}{': ' if told else ''}{told}.{nobody}"

    @property
    def _failures(self) -> str:
        # What has failed long ago matters to nobody whose pool is whole.
        if not self.connect_errors or (0 < self.max_size <= self.size and not self.unaccounted):
            return ""
        failed = "attempt to open one has" if self.connect_errors == 1 else "attempts to open one have"
        since = "failed since the pool was opened; the logger 'psycopg.pool' has the errors"
        return f" {self.connect_errors} {failed} {since}."

    @property
    def lines(self) -> list[str]:
        """The whole report, line by line: the summary, and one line for each holder."""
        lines = [self.summary]
        if self.holders:
            lines[0] += " Those who hold one, longest first:"
            lines += [f"({number}) {holder.message}" for number, holder in enumerate(self.holders, 1)]
        more = self.held - len(self.holders)
        if self.holders and more > 0:
            lines.append(f"And {more} more.")
        return lines

    def with_plain_holders(self) -> dict[str, Any]:
        """Return the facts with dictionaries in the place of the holders, for a log of JSON."""
        return self.facts() | {"holders": [dataclasses.asdict(holder) for holder in self.holders]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned(Event):
    """Something in its session keeps a connection with its owner from now on. Published once for each reason.

    That may be in a thread of the toolkit's, if it finds the reason there.
    """

    alias: str
    server_pid: int
    thread_id: int
    request: str | None
    #: The reason, such as ``"temporary table"``.
    pinned_by: str
    #: A place in the code, such as ``"/app/shop/views.py:12 in pay"``, or a text that says that it is not known.
    where: str
    #: Whether this is the first reason for this checkout.
    first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaimed(Event):
    """A connection was taken back whose thread has ended, or whose wrapper was garbage-collected."""

    alias: str
    #: The owner's thread.
    thread_id: int
    #: The name that the thread had when the wrapper connected; None if Python's threading module did not know it.
    thread_name: str | None
    request: str | None
    server_pid: int
    #: Seconds since it was checked out.
    held_for: float
    #: Whether a transaction was open, which has been rolled back.
    in_transaction: bool
    #: The function that the thread was started for, with the line of its definition; None for the main thread, for a
    #: thread of the standard library's executors, and where ``CAPTURE_STACKS`` is off.
    thread_runs: str | None
    #: A place in the code, such as ``"/app/shop/views.py:12 in pay"``; None if it is not known.
    where_checked_out: str | None
    #: Where the transaction began that was rolled back; None if there was none, or if that is not known.
    where_began: str | None
    #: The whole stacks at these two places, which ``str()`` writes as tracebacks; None without ``FULL_STACKS``.
    stack_checked_out: Stack | None = None
    stack_began: Stack | None = None

    @property
    def message(self) -> str:
        """What happened, in sentences."""
        name = printable(str(self.thread_name or self.thread_id))
        served = f" It served {printable(self.request)}." if self.request else ""
        return (
            f"Reclaimed connection {self.alias!r} (server pid {self.server_pid}) from thread {name}, which ended with "
            f"it checked out{'; its open transaction was rolled back' if self.in_transaction else ''}.{served}"
            f"{place_told('The thread ran', self.thread_runs)}"
            f"{place_told('It was checked out at', self.where_checked_out)}"
            f"{place_told('Its transaction began at', self.where_began)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced(Event):
    """A connection that the server had closed, or that could not write any more, was replaced by another one."""

    alias: str
    #: The pid of the server process of the session that was given up.
    server_pid: int
    thread_id: int
    request: str | None
    #: Seconds since its last use.
    idle_for: float
    #: Whether it was given up for that it could not write any more, while new ones can; the server had not closed it.
    could_not_write: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed(Event):
    """What the owner had set in an earlier session has been set again in its new one, ahead of its next statement."""

    alias: str
    #: The pid of the new session's server process.
    server_pid: int
    thread_id: int
    request: str | None
    #: The names of the settings, sorted. Their values are not published.
    settings: tuple[str, ...]


# ##### What should not be #####


@dataclass(frozen=True, slots=True, kw_only=True)
class _Transaction(Event):
    alias: str
    server_pid: int
    thread_id: int
    #: None for a thread that has ended, or that Python's threading module does not know.
    thread_name: str | None
    request: str | None
    #: The last statement, without its parameters, and as ``LOG_STATEMENTS`` says: with ``?`` for each value in it.
    statement: str | None
    #: Seconds since the transaction began; 0 where that was not seen.
    open_for: float
    #: Seconds since its last statement.
    idle_for: float
    #: A place in the code, such as ``"/app/shop/views.py:12 in pay"``; None if that is not known.
    where_began: str | None
    #: Whether it is the one of ``ATOMIC_REQUESTS``.
    by_atomic_requests: bool
    #: The whole stack at *where_began*, which ``str()`` writes as a traceback; None without ``FULL_STACKS``.
    stack_began: Stack | None = None

    @property
    def beginning(self) -> str:
        """Where it began, as a sentence with a space in front; empty if that is not known."""
        begun = "ATOMIC_REQUESTS began it at" if self.by_atomic_requests else "It began at"
        return place_told(begun, self.where_began)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleInTransaction(_Transaction):
    """A transaction has run no statement for ``IDLE_IN_TRANSACTION_AFTER`` seconds."""

    #: Where the thread is now, a place in the code such as ``"/app/shop/views.py:12 in pay"``; None if not known.
    where_now: str | None
    #: ``"terminate"`` if its session was ended, else ``"log"``.
    action: Literal["log", "terminate"]
    #: The whole stack of the thread, which ``str()`` writes as a traceback; None without ``FULL_STACKS``.
    stack_now: Stack | None = None

    @property
    def message(self) -> str:
        """What is the matter, in sentences: for the log, and for the owner of a session that is ended."""
        return (
            f"The transaction of {who(self)} on {self.alias!r} (server pid {self.server_pid}) has been idle for "
            f"{self.idle_for:.1f} s.{self.beginning}{place_told('Its thread is at', self.where_now)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOpen(_Transaction):
    """A request, a task or a block of ``closing_connections`` left a transaction open. It has been rolled back.

    Or its connection was closed inside of ``atomic()``.
    """

    #: The label of the request or task that left it open, or a description, which has the line of a ``close()``.
    left_by: str

    def as_idle_in_transaction(self) -> dict[str, Any]:
        """Return the facts under the names that an idle transaction has them, with the action ``"rollback"``.

        Where its thread is now, in whatever ends a request, says nothing.
        """
        facts = self.facts()
        del facts["left_by"]
        return facts | {"where_now": None, "stack_now": None, "action": "rollback"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldTooLong(Event):
    """A connection was checked out, without a transaction or a statement, for ``HELD_TOO_LONG_AFTER`` seconds.

    A transaction in which nothing has run yet is none to the server. It keeps the connection, and is told of as that.
    """

    alias: str
    server_pid: int
    thread_id: int
    #: None for a thread that has ended, or that Python's threading module does not know.
    thread_name: str | None
    request: str | None
    #: The last statement, without its parameters, and as ``LOG_STATEMENTS`` says: with ``?`` for each value in it.
    statement: str | None
    #: Seconds since it was checked out.
    held_for: float
    #: Seconds since its last statement.
    idle_for: float
    #: Where it was checked out, a place in the code such as ``"/app/shop/views.py:12 in pay"``; None if not known.
    where_checked_out: str | None
    #: Where the thread is now, as a place in the code; None if not known.
    where_now: str | None
    #: What pins it, by reason, with the place in the code.
    pins: Mapping[str, str]
    #: ``"release"`` if it was given back, else ``"log"``.
    action: Literal["log", "release"]
    #: The whole stacks at these two places, which ``str()`` writes as tracebacks; None without ``FULL_STACKS``.
    stack_checked_out: Stack | None = None
    stack_now: Stack | None = None
    #: What else keeps it, such as ``"hold_connection is around"``; several are joined by "and". None where nothing is
    #: known.
    kept_because: str | None = None
    #: Where the transaction began in which nothing has run, as a place in the code; None without one, or if not known.
    where_began: str | None = None

    @property
    def keeping(self) -> str:
        """What keeps it, in sentences with a space in front of each; empty where nothing is known."""
        pinned = ", ".join(f"{reason} at {where}" for reason, where in self.pins.items())
        return (
            f"{place_told('It is pinned by', pinned)}{place_told('It is kept because', self.kept_because)}"
            f"{place_told('The transaction began at', self.where_began)}"
        )

    def with_reasons(self) -> dict[str, Any]:
        """Return the facts with ``pinned_by``, a tuple of reasons, in the place of ``pins``."""
        facts = self.facts()
        return facts | {"pinned_by": tuple(facts.pop("pins"))}


@dataclass(frozen=True, slots=True, kw_only=True)
class CameBack(Event):
    """A connection that was reported, as held too long or idle in a transaction, is back after all, or has ended."""

    alias: str
    server_pid: int
    #: The owner's thread.
    thread_id: int
    request: str | None
    #: Seconds that it was checked out.
    held_for: float
    #: How it was reported: as ``"held too long"``, as ``"idle in transaction"``, or both.
    reported_as: tuple[str, ...]
    #: Whether the session had been ended by then, by the toolkit or by the server: its owner has lost it.
    ended: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOver(Event):
    """A request or task ended whose connection had been reported, and ``CONN_MAX_AGE`` keeps that with its thread.

    The matter that was reported is over. If the connection goes back instead, :class:`CameBack` is published.
    """

    alias: str
    server_pid: int
    #: The owner's thread.
    thread_id: int
    #: The request or task that ended.
    request: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnclosedCursor(Event):
    """A cursor was garbage-collected without having been closed. Published if ``REPORT_UNCLOSED_CURSORS`` is on."""

    alias: str
    thread_id: int
    request: str | None
    #: Where it was opened, a place in the code such as ``"/app/shop/views.py:12 in pay"``.
    where_opened: str
    #: The whole stack at *where_opened*, which ``str()`` writes as a traceback; None without ``FULL_STACKS``.
    stack_opened: Stack | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnseenState(Event):
    """A statement has left something in its session that its text does not show; see ``AUDIT_SESSIONS``.

    Published in the owner's thread, after the statement or when its transaction is over, or in a thread of the
    toolkit's.
    """

    alias: str
    server_pid: int
    #: The owner's thread.
    thread_id: int
    request: str | None
    #: What it has left: ``"SET"``, ``"temporary table"``, ``"advisory lock"``, ``"LISTEN"``, ``"PREPARE"``,
    #: ``"cursor WITH HOLD"`` or ``"replication origin"``.
    reason: str
    #: The names of that: settings, relations, locks, channels, statements or cursors.
    names: tuple[str, ...]
    #: The statement, without its parameters, and as ``LOG_STATEMENTS`` says: with ``?`` for each value in it. If
    #: several statements of one transaction may have done it, this is the likeliest.
    statement: str | None
    #: Where it was executed, a place in the code such as ``"/app/shop/views.py:12 in pay"``, or a text that says that
    #: this is not known.
    where: str
    #: How many other statements may have done it.
    others: int
    #: What to write in the code instead, in sentences.
    advice: str

    @property
    def left(self) -> str:
        """What it has left, with its names."""
        return f"{self.reason} ({', '.join(self.names)})"

    @property
    def message(self) -> str:
        """What is the matter and what to do, in sentences."""
        likeliest = f" It is the likeliest of {self.others + 1} of one transaction." if self.others else ""
        return printable(
            f"A statement on {self.alias!r} (server pid {self.server_pid}) has left in its session what it does not "
            f"say: {self.left}. It was executed at {self.where}: {self.statement}.{likeliest} {self.advice}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftAlone(Event):
    """A backend on PostgreSQL is left alone: none of its connections is given back, cleaned, reported or reclaimed.

    Published once for each alias and process, when it connects for the first time.
    """

    alias: str
    #: As in ``DATABASES``.
    engine: str
    #: Why: a sentence without its beginning and its end.
    reason: str


# ##### What else is done #####


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionRetried(Event):
    """A transaction under ``retry_transaction`` failed, and is about to be run again."""

    alias: str
    #: The ``__qualname__`` of the function.
    function: str
    #: The number of the attempt that failed, from 1 on.
    attempt: int
    #: Why it failed.
    sqlstate: str | None
    #: Seconds until the next attempt.
    delay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsDiscarded(Event):
    """Connections that were inherited by a fork were discarded. Published in the child."""

    #: How many, by alias.
    discarded: Mapping[str, int]
    #: How many of those could not be closed without harm to the parent, and stay open, by alias.
    left_open: Mapping[str, int]

    @property
    def count(self) -> int:
        """How many in all."""
        return sum(self.discarded.values())

    @property
    def aliases(self) -> list[str]:
        """Of which aliases, sorted."""
        return sorted(self.discarded)


#: Every kind of event.
ALL: tuple[type[Event], ...] = (
    CheckedOut,
    CheckedIn,
    ConnectionOpened,
    PoolExhausted,
    Pinned,
    Reclaimed,
    Replaced,
    Followed,
    IdleInTransaction,
    LeftOpen,
    HeldTooLong,
    CameBack,
    RequestOver,
    UnclosedCursor,
    UnseenState,
    LeftAlone,
    TransactionRetried,
    ConnectionsDiscarded,
)


# ##### Who listens #####

_lock = locks.make(Rank.LEAF)


def listen(event_type: type[E], listener: Callable[[E], object]) -> None:
    """Have *listener* called with every event of *event_type* from now on; for :class:`Event`, with all events.

    A listener that is added twice is called once for each event. Call this in ``AppConfig.ready()``, for example.

    :raises TypeError: *event_type* is none of this module's, or *listener* cannot be called.
    """
    kinds = _kinds(event_type)
    if not callable(listener):
        raise TypeError(f"listen() takes what can be called with an event, not {listener!r}.")
    with _lock:
        for kind in kinds:
            if listener not in kind.listeners:
                kind.listeners = (*kind.listeners, listener)


def unlisten(event_type: type[E], listener: Callable[[E], object]) -> None:
    """Have *listener* called no longer, but for an event that is being published now; the opposite of :func:`listen`.

    Does nothing if it was not added.

    :raises TypeError: *event_type* is none of this module's.
    """
    kinds = _kinds(event_type)
    with _lock:
        for kind in kinds:
            kind.listeners = tuple(each for each in kind.listeners if each != listener)


def wants(event_type: type[Event]) -> bool:
    """Return whether anybody listens to *event_type*; for :class:`Event`, to any event.

    :raises TypeError: *event_type* is none of this module's.
    """
    return any(kind.listeners for kind in _kinds(event_type))


def _kinds(event_type: type[Event]) -> tuple[type[Event], ...]:
    if event_type is Event:
        return ALL
    if event_type not in ALL:
        raise TypeError(f"{event_type!r} is no kind of event.")
    return (event_type,)


def publish(event: Event) -> None:
    """Give *event* to those who listen to its class, one after the other. Never called under a lock of the toolkit."""
    locks.assert_none_held()
    for listener in type(event).listeners:
        try:
            listener(event)
        except Exception as error:
            # The listener's, whose failure must stay its own.
            if is_of_handler(error):
                raise
            _complain(listener, event, error)


def publish_to_others(event: Event) -> None:
    """Give *event* to those who listen to its class, as :func:`publish`, but for listeners in whose call it arose.

    That may be in this thread, or in one that works for it. They would be called again and again: if the pool has no
    connection left, a receiver that queries gets none either.
    """
    locks.assert_none_held()
    before = _running.get()
    for listener in type(event).listeners:
        if any(each is listener for each in before):
            continue
        token = _running.set((*before, listener))
        try:
            listener(event)
        except Exception as error:
            # Its failure must stay the listener's own here, too.
            if is_of_handler(error):
                raise
            _complain(listener, event, error)
        finally:
            _running.reset(token)


# The listeners that publish_to_others() is calling. Greenlets have contexts of their own whatever is patched.
_running: ContextVar[tuple[Callable[[Any], object], ...]] = ContextVar("conn_hygiene_listeners", default=())


def _complain(listener: Callable[[Any], object], event: Event, error: Exception) -> None:
    # It may be a logging handler that has failed, which this record would come to as well.
    with contextlib.suppress(Exception):
        logger.error("A listener of %s failed: %r", type(event).__name__, listener, exc_info=error)


def after_fork_in_child() -> None:
    """Replace in a forked child the lock that another thread may have held."""
    global _lock  # noqa: PLW0603 - nobody holds the new one yet
    _lock = locks.make(Rank.LEAF)


# ##### Texts #####


def who(event: _Transaction | HeldTooLong | PoolExhausted | Holder) -> str:
    """Return what a person would call the owner: the request, or else the thread."""
    return printable(event.request or f"thread {event.thread_name or event.thread_id}")


def place_told(before: str, place: str | None) -> str:
    """Return *before* and *place* as a sentence with a space in front; nothing without a place."""
    return f" {before} {printable(place)}." if place else ""


def shortened(statement: str, limit: int = 200) -> str:
    """Return *statement* on one line, cut to *limit* characters."""
    line = " ".join(statement.split())
    return line if len(line) <= limit else f"{line[:limit]}…"
