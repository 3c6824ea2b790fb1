"""One wrapper's claim on one connection: what is known of it, and how a checkout of it ends.

The innermost of the layers of a lease, see :mod:`.lease`: all attributes, the lock, and the questions that they answer.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg

from conn_hygiene import callsite, conf, internals, locks
from conn_hygiene.events import CameBack, CheckedIn, publish
from conn_hygiene.leases import backoff, checkouts, cursors, invariants, news, pauses, policy, turns, usage
from conn_hygiene.leases.states import CLOSED, GIVEN_BACK, HELD, State
from conn_hygiene.locks import Rank
from conn_hygiene.pools import base as pools
from conn_hygiene.pools import keeping, queues
from conn_hygiene.pools.experience import kind
from conn_hygiene.sessions import state
from conn_hygiene.work import serving, thread_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from django.db.backends.base.base import BaseDatabaseWrapper

    from conn_hygiene.events import Ending, Event
    from conn_hygiene.leases.connecting import Connecting
    from conn_hygiene.leases.description import Reported, Transaction
    from conn_hygiene.leases.keeper import Keeper
    from conn_hygiene.leases.returns import Return
    from conn_hygiene.sessions.following import Carried


_now = time.monotonic


class Claim:
    """One wrapper's claim on a connection: its attributes, and what they tell."""

    __slots__ = (
        "__weakref__",
        "_checkout_asked_at",
        "_connection",
        "_connects",
        "_experience",
        "_label",
        "_lock",
        "_manual",
        "_news",
        "_pool",
        "_scopes",
        "_served",
        "_settings",
        "_timing",
        "_transaction",
        "_used",
        "_wish",
        "alias",
        "asked_at",
        "backoff",
        "boundaries",
        "carried",
        "checked_out_at",
        "checked_out_by",
        "checkouts",
        "could_not_write",
        "ended_because",
        "handle",
        "idle_since",
        "in_use_since",
        "keeper",
        "last_statement",
        "look_at",
        "open_cursors",
        "outlives_request",
        "pauses",
        "pool_keeps",
        "pooled",
        "queue",
        "quiet",
        "reported",
        "request",
        "server_pid",
        "session_state",
        "spare",
        "state",
        "tally",
        "thread_end",
        "thread_id",
        "thread_name",
        "thread_runs",
        "trusted",
        "turn",
        "wrapper",
    )

    def __init__(self, wrapper: BaseDatabaseWrapper, keeper: Keeper, thread_end: weakref.ref[Any] | None) -> None:
        self._make_lock()
        self.keeper = keeper
        self.alias = wrapper.alias
        self.tally = keeper.tally_of(wrapper.alias)
        # What was decided under the lock, and is to be published after it.
        self._news: tuple[Event, ...] = ()
        # Since when the owner waits for a connection, on the monotonic clock, None while it does not; written by the
        # owner without the lock.
        self.asked_at: float | None = None
        self.wrapper = weakref.ref(wrapper, self._wrapper_gone)
        # The owner's thread, and a weak reference that dies when that thread ends: the reaper reclaims the connection
        # then. None if another thread made the wrapper, whose connection no thread's end leaves behind.
        self.thread_id = threading.get_ident()
        self.thread_end = thread_end
        # For reports that are made after the thread has ended, when threading no longer knows its name.
        self.thread_name = thread_names().get(self.thread_id)
        self.thread_runs = callsite.of_target() if conf.captures else None
        self.state = CLOSED
        # Counts the checkouts.
        self.checkouts = 0
        # Whether the last connection that was given up as broken was that only in that it could not write any more. It
        # is told of when another one is there.
        self.could_not_write = False
        # Counts where transactions begin and end in the eyes of Django: it stays what it is inside of each.
        self.boundaries = 0
        # When the reaper looks at this lease, on the monotonic clock; inf for never. See `Reaper.parked`.
        self.look_at = math.inf
        self.backoff = backoff.Backoff()
        self.turn = turns.Turn()
        self.pauses = pauses.Pauses()
        self._connection: psycopg.Connection[Any] | None = None
        # Which connect() calls of the wrapper are running; None if none is. One that is over may be there still.
        self._connects: Connecting | None = None
        # The pool that the last checkout was from, by a weak reference; whether there was one.
        self._pool: Callable[[], Any] = _nothing
        self.pooled = False
        # Whether that pool keeps what it gets back. If not, a connection goes back to it when it would be closed
        # without a pool: after UNPOOLED_RELEASE_AFTER.
        self.pool_keeps = False
        # The pool's live lists: of those who wait for a connection, and of the connections that nobody has checked out.
        self.queue: Sequence[Any] = ()
        self.spare: Sequence[Any] = ()
        self._experience = queues.experience_of(())
        # When the last checkout was asked for, on the monotonic clock, or took place if nobody knows. Its burst's place
        # in the queue, if that begins with it; see turns.py.
        self._checkout_asked_at = 0.0
        self._manual = False
        # What the owner has set in an earlier session, until it is set again in the next.
        self.carried: Carried | None = None
        # What the owner has left in the session, of this checkout.
        self.session_state = state.State()
        # What the owner's scopes wanted when the owner was last seen. The reaper goes by this: the scopes of the thread
        # in which a cursor is collected are somebody else's.
        self._wish = policy.KEEP
        # The scopes and the settings that _wish was computed from; None to compute it at the next use.
        self._scopes: tuple[policy.Entry, ...] | None = None
        self._settings: conf.Settings | None = None
        # The request (its middleware's entry) for which the session's state, or what is carried, was set. None if that
        # was there before any request.
        self._served: policy.Entry | None = None
        self._begin()

    def _make_lock(self) -> None:
        check = partial(invariants.check, self) if locks.DEBUG else None
        self._lock = locks.make(Rank.LEASE, on_release=check)

    def _begin(self) -> None:
        """Set what belongs to one checkout to its start."""
        # The open cursors by weak references, each with where it was opened, if that was asked for. Every checkout has
        # a list of its own: a cursor that is not in it is of an earlier one.
        self.open_cursors: dict[object, callsite.Place | None] = {}
        #: The psycopg connection, from when somebody reads the wrapper's until the next cursor opens or closes; None
        #: otherwise. While it is here, it is *out*: its reader may be about to use it, and the reaper leaves it alone.
        #: The next to read find it here; where there is none, they come to `Lease.read()`.
        self.handle: psycopg.Connection[Any] | None = None
        # Seconds for which the connection was in use, without the use that is under way, which began at `in_use_since`.
        self._used = 0.0
        self.in_use_since: float | None = None
        # The sums of the request in whose context the connection is used; None where nobody has asked for them.
        self._timing: usage.Timing | None = None
        self._transaction: Transaction | None = None
        # The last statement, for reports: another tuple for each that is executed. Written by the owner without the
        # lock.
        self.last_statement: tuple[Any] | None = None
        # For how long nothing runs behind an open cursor, as far as the reaper has seen: the last statement when it
        # looked, and since when that was so with nothing running.
        self.quiet: tuple[object, float] = (self, 0.0)
        # Whether the server has not hung up, as far as was seen in this checkout.
        self.trusted = False
        # Whether a request that used it is over, and no other has begun in its thread.
        self.outlives_request = False
        # Why the toolkit ended the session under its owner, who will be told.
        self.ended_because: str | None = None
        self.checked_out_by: callsite.Place | None = None
        self.request = self._label = serving.label
        self.server_pid = 0
        # What the reaper has reported of it, by the kind of report; the reaper's own.
        self.reported: dict[str, Reported] = {}
        self.checked_out_at = self.idle_since = _now()

    def __repr__(self) -> str:
        return f"<Lease of {self.alias!r} by thread {self.thread_id}: {self.state.name.lower()}>"

    def _handle_is_out(self) -> bool:
        """Return whether somebody may be about to use a handle that was read since the last cursor closed."""
        return self.handle is not None

    def _note_pool(self, pool: Any) -> None:
        self._pool = weakref.ref(pool) if pool is not None else _nothing
        self.pooled = pool is not None
        self.pool_keeps = keeping.keeps(pool)
        self.queue, self.spare = pools.queue_and_spare(pool)
        self._experience = queues.experience_of(self.queue)

    def _end(
        self,
        connection: psycopg.Connection[Any],
        state: State = CLOSED,
        reason: Ending = "close",
        *,
        carried: Carried | None = None,
        listed: bool = True,
    ) -> bool:
        """End the checkout of *connection*, under the lock, and close the books on it; return whether it was there.

        It is not if a signal handler that has queried in the meantime has let go of it. *carried* is what the owner is
        to find in the next session; *listed* tells that the lease is listed still as one that has a connection.
        """
        now = _now()
        # In this order: a handle that stays readable would be somebody else's soon.
        self.handle = None
        # No call may come between this look and what it leads to: at a call, a signal is handled.
        if self._connection is not connection:
            return False
        self.state, self._connection, self.carried, self.open_cursors = state, None, carried, {}
        if self._timing is not None:
            self._timing.change(self, held=-1, used=-(self.in_use_since is not None), ending=reason)
        if self.in_use_since is not None:
            self._used += now - self.in_use_since
        if listed:
            self.keeper.checked_in(self)
        held = now - self.checked_out_at
        if self.queue:
            self.turn.tell(self.checkouts, kind(self._label, self.thread_id), held, self._experience)
        self.tally.checked_in(held, self._used, released=reason == "release")
        if CheckedIn.listeners:
            self._news += (news.checked_in(self, reason, held),)
        if self.reported and CameBack.listeners:
            self._news += (news.came_back(self, connection, held),)
        if self.idle_since != self.checked_out_at:
            checkouts.note_use(connection, self.idle_since)
        return True

    def add_news(self, events: Iterable[Event]) -> None:
        """Have *events* published when the connection is set up that is being checked out. Owner only."""
        with self._lock:
            self._news += (*events,)

    def publish_news(self) -> None:
        """Publish what was decided under the lock. Called without it, by the owner."""
        with self._lock:
            told, self._news = self._news, ()
        for event in told:
            publish(event)

    def forget(self) -> bool:
        """Forget that a connection was given back, since the wrapper is being closed; return whether one was."""
        with self._lock:
            if self.state != GIVEN_BACK:
                return False
            self.state, self.carried = CLOSED, None
            return True

    def has_lost(self, carried: Carried) -> None:
        """Take note that the session ended, and was closed, with what the owner is to find again: the next use fails.

        Until the wrapper is closed once more, as if it had been given back. Owner only.
        """
        with self._lock:
            if self._connection is None and self.state == CLOSED and not self._is_connecting():
                self.state, self.carried = GIVEN_BACK, carried

    def is_lost(self, *, told: bool = True) -> bool:
        """Return whether the next use fails since what the owner is to find again is lost, as far as is known by now.

        If it is not *told* of any error, only where that has failed before. Owner only.
        """
        carried = self.carried
        if self.state != GIVEN_BACK or carried is None:
            return False
        return carried.was_refused or (told and carried.is_lost())

    def closing(self) -> None:
        """Take note that the wrapper is being closed: what was given back is forgotten, what is there is in use."""
        with self._lock:
            if self._connection is None:
                # A backend that closes what has failed, to try again, is in the middle of a checkout: what is to be set
                # again is so in the next one that it gets.
                if not self._is_connecting():
                    self.state, self.carried = CLOSED, None
            elif self.session_state.parameters is not None:
                # Until it is closed, which keeps the reaper off. Reading it takes no look at the reader's code then.
                self.state, self.handle = HELD, self._connection

    def _is_connecting(self) -> bool:
        """Return whether a ``connect()`` is running that ends with :meth:`.Lease.connected`. Under the lock."""
        return self._connects is not None and self._connects.is_under_way()

    def _setting_up(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Return whether any ``connect()`` of *wrapper* is running, be its end told or not. Under the lock."""
        return self._connects is not None and self._connects.is_setting_up(wrapper)

    def is_setting_up(self) -> bool:
        """Return whether a new session is being set up, receivers of ``connection_created`` included. Owner only."""
        with self._lock:
            wrapper = self.wrapper()
            return wrapper is not None and self._setting_up(wrapper)

    def in_transaction(self) -> bool:
        """Return whether the connection is in a transaction, in the eyes of Django or of libpq."""
        # Most have none when a request begins.
        if self.state in (CLOSED, GIVEN_BACK):
            return False
        with self._lock:
            wrapper = self.wrapper()
            return self._connection is not None and wrapper is not None and self._in_transaction(wrapper)

    def _in_transaction(self, wrapper: BaseDatabaseWrapper) -> bool:
        assert self._connection is not None
        if wrapper.in_atomic_block or not (wrapper.autocommit or self._manual):
            return True
        if self._connection.closed:
            # libpq no longer tells; what was open when the connection broke is not forgotten.
            return self._transaction is not None
        return not pools.is_idle(self._connection)

    def runs_by_itself(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Return whether a statement runs that is no part of a transaction, as far as is known. Under the lock.

        libpq tells that one runs, and not in what. Where nobody has seen a transaction begin, autocommit ends it.
        """
        connection = self._connection
        return (
            connection is not None
            and wrapper.autocommit
            and not wrapper.in_atomic_block
            and self._transaction is None
            and pools.is_active(connection)
        )

    def _kept(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Return whether an idle connection must stay with its owner; forget a ``connect()`` that is over."""
        if self._connects is not None and not self._connects.is_setting_up(wrapper):
            self._connects = None
        return bool(
            self.session_state.pins
            or wrapper.run_on_commit
            or self._connects
            # Another thread may be about to use the handle that it has just read.
            or wrapper._thread_sharing_count  # type: ignore[attr-defined]
        )

    @property
    def is_manual(self) -> bool:
        """Whether the application has turned autocommit off by hand, as :meth:`manual_transactions` was told."""
        return self._manual

    def manual_transactions(self, manual: bool) -> None:
        """Take note of whether the application has turned autocommit off by hand, outside of ``atomic()``."""
        with self._lock:
            self._manual = manual

    def drop(self) -> None:
        """Cut the connection, whatever its state; the pool replaces it when the wrapper is closed. Owner only."""
        with self._lock:
            connection = self._connection
            self.session_state.cleaned()
            self.carried = None
        if connection is not None:
            connection.pgconn.finish()

    def check(self) -> None:
        """Raise ``psycopg.OperationalError`` if the toolkit has ended the session, with the reason. Owner only."""
        if self.ended_because is not None:
            raise psycopg.OperationalError(self.ended_because)

    def idle_for(self) -> float:
        """Return for how many seconds the connection has not been used."""
        return _now() - self.idle_since

    def close_at(self) -> float | None:
        """Return when a session without a pool is past the age that ``CONN_MAX_AGE`` gives it; None for never."""
        wrapper: Any = self.wrapper()
        return None if wrapper is None or self.pooled else wrapper.close_at

    def detach(self) -> psycopg.Connection[Any] | None:
        """End the lease without touching the connection, and return it for the plain wrapper to go on with."""
        with self._lock:
            connection = self._connection
            if connection is not None:
                cursors.unfollow(connection)
                self._end(connection, reason="uninstall")
            self.state, self.carried = CLOSED, None
        if self._news:
            self.publish_news()
        return connection

    def serves_thread(self) -> bool:
        """Return whether Django lets the thread that asks use the wrapper: the one that it was made for, or any."""
        wrapper = self.wrapper()
        return wrapper is not None and (
            wrapper._thread_ident == threading.get_ident() or wrapper.allow_thread_sharing  # type: ignore[attr-defined]
        )

    def _wrapper_gone(self, _: weakref.ref[BaseDatabaseWrapper]) -> None:
        self.keeper.wrapper_lost(self)

    def after_fork_in_child(self) -> None:
        """Make the lease usable in a forked child: another thread may have held its lock at the moment of the fork."""
        self._make_lock()
        self.look_at = math.inf
        with self._lock:
            # Of the parent, which tells itself.
            self._news = ()

    def disown(self) -> psycopg.Connection[Any] | None:
        """Let go of an inherited connection and return it. It is the parent's, so nothing is counted or sent here."""
        with self._lock:
            self.handle = None
            self.carried = None
            connection, self._connection = self._connection, None
            if connection is not None:
                cursors.retire(connection)
            self.state = CLOSED
            self.open_cursors = {}
            return connection

    def is_out(self, returning: Return) -> bool:
        """Return whether *returning* has been taken out of the lease, and was not just about to be."""
        return self._connection is not returning.connection

    def is_locked_here(self) -> bool:
        """Return whether the running thread has the lease's lock."""
        return internals.TURNS.available and self._lock._is_owned()

    def holds_connection(self) -> bool:
        """Return whether a connection is checked out."""
        with self._lock:
            return self._connection is not None


def _nothing() -> None:
    """Stand for a reference to what is not there."""
