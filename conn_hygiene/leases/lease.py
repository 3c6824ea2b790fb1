"""A lease: one database wrapper's claim on one connection, and all that decides when the claim may end.

The life of a lease::

    CLOSED ──checkout──▶ HELD ──falls idle──▶ PARKED ──idle for RELEASE_AFTER──▶ GIVEN_BACK
                          ▲  ◀──next use───────┘                                    │
                          └───────────────────next use checks out again ◀───────────┘

A wrapper is made by Django for one thread (the *owner*), and has one lease for life. The lease is HELD from the owner's
first use of the connection on. When the last open cursor closes or a transaction ends, and nothing else keeps it, it is
PARKED: still with its owner, but the reaper may take it. After ``RELEASE_AFTER`` seconds the reaper does, and the
connection goes back to its pool (or is closed, without one): GIVEN_BACK. The owner itself does if the pool has a queue
and the owner's turn is over. Its next use takes a parked connection back, or checks one out again; it cannot tell the
difference.

What keeps a lease from being parked: an open cursor, a transaction in the eyes of Django or of libpq, a pipeline,
commit hooks that have yet to run, a pin, a ``hold_connection`` around, no release scope around, or a wrapper that is
shared between threads.

Who writes which attribute, under which lock, and in which order they are read: see :mod:`.invariants`. The order of
all locks: see :mod:`conn_hygiene.locks`. Under the lease's lock it is decided that the connection goes back, and it is
taken out of the lease; what is done with it then, under no lock, is in :mod:`.returns`. So it is with events: one
that is decided under the lock is published after it, since who listens may take any lock.
"""

from __future__ import annotations

import enum
import math
import sys
import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus

from conn_hygiene import callsite, conf, internals, locks
from conn_hygiene.events import CameBack, CheckedIn, CheckedOut, Followed, Reclaimed, publish
from conn_hygiene.leases import (
    ahead,
    audits,
    backoff,
    checkouts,
    cursors,
    invariants,
    looks,
    news,
    pauses,
    policy,
    read_only,
    returns,
    turns,
    usage,
)
from conn_hygiene.leases.connecting import Connect, Connecting
from conn_hygiene.leases.description import Reported, Transaction
from conn_hygiene.leases.returns import Return
from conn_hygiene.locks import Rank
from conn_hygiene.pools import backends, keeping, queues
from conn_hygiene.pools import base as pools
from conn_hygiene.pools.experience import kind
from conn_hygiene.sessions import cleaning, client, following, known, sql, state
from conn_hygiene.sessions.following import Carried
from conn_hygiene.sessions.plan import NOTHING, Plan
from conn_hygiene.work import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from django.db.backends.base.base import BaseDatabaseWrapper

    from conn_hygiene.events import Ending, Event
    from conn_hygiene.leases.keeper import Keeper

_now = time.monotonic


class State(enum.IntEnum):
    """Where a lease is in its life; see the module's documentation."""

    CLOSED = 0
    HELD = 1
    PARKED = 2
    GIVEN_BACK = 3


# Module constants: reading an enum's member costs more than the comparisons on the way of every query.
CLOSED, HELD, PARKED, GIVEN_BACK = State


class _Handle:
    """What :attr:`Lease.handle` is while it is not in the lease's dictionary."""

    def __get__(self, lease: Lease, owner: type[Lease]) -> Any:
        # Django's own way to a cursor is `use()`; who comes here may be anybody, see `wrapper.ensure_connection()`.
        if lease.state == CLOSED and lease._connection is None:
            # Where there are many databases, most are closed when Django looks at all, at both ends of each request.
            return None
        if lease.state != CLOSED and looks.is_look(sys._getframe(1), lease.wrapper()):
            return lease.stand_in()
        return lease.use()


class Lease:
    """One wrapper's claim on a connection; see the module's documentation."""

    #: The connection, for whoever reads the wrapper's: taken back if it was parked, checked out again if it was given
    #: back; for who only looks a stand-in, and nothing changes. The first to use it puts it into the dictionary, where
    #: the next find it without a call; the handle is *out* then, until the next cursor opens or closes. Being no data
    #: descriptor, this one gives way to the dictionary.
    handle: Any = _Handle()

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_connection",
        "_connects",
        "_experience",
        "_label",
        "_lock",
        "_manual",
        "_news",
        "_place",
        "_pool",
        "_scopes",
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
        "ended_because",
        "idle_since",
        "in_use_since",
        "keeper",
        "keeps",
        "last_statement",
        "look_at",
        "open_cursors",
        "outlives_request",
        "pauses",
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
        # Since when the owner waits for a connection, on the monotonic clock; written by the owner without the lock.
        self.asked_at: float | None = None
        self.wrapper = weakref.ref(wrapper, self._wrapper_gone)
        # Whose end strands the connection, and what is collected then. None if it strands nothing: another thread made
        # the wrapper.
        self.thread_id = threading.get_ident()
        self.thread_end = thread_end
        # For the day when it has ended.
        self.thread_name = _thread_name(self.thread_id)
        self.thread_runs = callsite.of_target() if conf.captures else None
        self.state = CLOSED
        # Counts the checkouts.
        self.checkouts = 0
        # Counts where transactions begin and end in the eyes of Django: it stays what it is inside of each.
        self.boundaries = 0
        # When the reaper looks at this lease, on the monotonic clock; see there.
        self.look_at = math.inf
        self.backoff = backoff.Backoff()
        self.turn = turns.Turn()
        self.pauses = pauses.Pauses()
        self._connection: psycopg.Connection[Any] | None = None
        # None where none can be under way.
        self._connects: Connecting | None = None
        # Of the pool that the last checkout was from, if there was one: who waits, and what is left.
        self._pool: Callable[[], Any] = _nothing
        self.pooled = False
        # Whether that keeps what it gets back; if not, it is only given back as a connection without a pool is closed.
        self.keeps = False
        self.queue: Sequence[Any] = ()
        self._experience = queues.experience_of(())
        # When the checkout was asked for, on the monotonic clock, or took place if nobody knows.
        self._place = 0.0
        self.spare: Sequence[Any] = ()
        self._manual = False
        # What the owner has set in an earlier session, until it is set again in the next.
        self.carried: Carried | None = None
        # What the owner has left in the session, of this checkout.
        self.session_state = state.State()
        # What the owner's scopes wanted when the owner was last seen. The reaper goes by this: the scopes of the thread
        # in which a cursor is collected are somebody else's.
        self._wish = policy.KEEP
        # What that was found from; None to look anew.
        self._scopes: tuple[policy.Entry, ...] | None = None
        self._settings: conf.Settings | None = None
        self._begin()

    def _make_lock(self) -> None:
        check = partial(invariants.check, self) if locks.DEBUG else None
        self._lock = locks.make(Rank.LEASE, on_release=check)

    def _begin(self) -> None:
        """Set what belongs to one checkout to its start."""
        # By weak references, each with where it was opened, if that was asked for. Every checkout has its own: a cursor
        # that is not in it is of an earlier one.
        self.open_cursors: dict[object, callsite.Place | None] = {}
        self.__dict__.clear()
        self._used = 0.0
        self.in_use_since: float | None = None
        # Of the request that has it, if that is to be told how long.
        self._timing: usage.Timing | None = None
        self._transaction: Transaction | None = None
        # Written by the owner without the lock, for reports: another tuple for each that is executed.
        self.last_statement: tuple[Any] | None = None
        # What the reaper has seen, and since when: the last statement, with nothing running.
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

    # ##### Checkout and return: the wrapper's `connection` attribute #####

    def use(self, *, is_allowed: bool = False) -> psycopg.Connection[Any] | None:
        """Return the connection for a use, taken back or checked out again; None if the wrapper is to connect.

        *is_allowed* tells that no event loop runs in this thread, or that it may.
        """
        # The same as take(), for nearly every query.
        with self._lock:
            connection = self._connection
            if connection is not None and self.session_state.parameters is not None:
                self.state = HELD
                self.handle = connection
                return connection
        if connection is not None and (connection := self.take()) is not None:
            return connection
        if self.state != GIVEN_BACK:
            return None
        wrapper: Any = self.wrapper()
        again: psycopg.Connection[Any] | None = wrapper.check_out_again(is_allowed=is_allowed)
        return again

    def stand_in(self) -> looks.StandIn | None:
        """Return what stands for the connection, the one that the next use gets; None if there is none."""
        with self._lock:
            connection = self._connection
            if connection is not None:
                return looks.StandIn(closed=connection.closed, broken=connection.broken)
            # Django allows any thread to look at a wrapper, but only its own to use it. To a looker, there is none now.
            if self.state == GIVEN_BACK and self.serves_thread():
                return looks.StandIn(closed=False, broken=False)
            return None

    def take(self) -> psycopg.Connection[Any] | None:
        """Return the connection, taken back from the reaper if it was parked; None if there is none now."""
        with self._lock:
            connection = self._connection
            if connection is None:
                return None
            if self.state == PARKED:
                self.state = HELD
            if self.session_state.parameters is None and not self._is_connecting():
                self._look_at_session(connection)
            # While it is being set up, the next to read must come here, too.
            if self.session_state.parameters is not None:
                # It may be used until the next cursor closes, and nobody will say so.
                self.handle = connection
            return connection

    def _handle_is_out(self) -> bool:
        """Return whether somebody may be about to use a handle that was read since the last cursor closed."""
        return bool(self.__dict__)

    def assign(self, connection: psycopg.Connection[Any] | None, waited: float | None = None, frames: int = 0) -> None:
        """Take note of what the wrapper's ``connection`` was set to: a new checkout, or None for the end of one.

        *waited* are the seconds that it was waited for; by default, those since :attr:`asked_at`. *frames* is how many
        of the stack's innermost, from the caller's on, are this package's.
        """
        try:
            overwritten = self._assign(connection, waited, frames)
            if overwritten is not None:
                self.keeper.carry_back(overwritten, here=True)
        except BaseException:
            # Of a signal handler, before it was known here: nobody else has it.
            if connection is not None and connection is not self._connection:
                pools.give_back(connection)
            self.keeper.rescue(self)
            raise
        if connection is not None:
            self.keeper.ensure_running()
        if self._news:
            self._publish()

    def _assign(self, connection: psycopg.Connection[Any] | None, waited: float | None, frames: int) -> Return | None:
        overwritten = None
        with self._lock:
            if connection is self._connection is not None:
                return None
            if self._connection is not None:
                overwritten = self._end_overwritten(self._connection, connection)
            if connection is None:
                self.state, self.carried = CLOSED, None
                return None
            self.checkouts += 1
            # First of all: an exception of a signal handler, at any of these lines, must not lose it.
            self.server_pid, self.state, self._connection = 0, HELD, connection
            self._begin()
            # Past assign() as well.
            self.checked_out_by = _here(frames + 1)
            if not self.turn.begin(self.checkouts, self.queue):
                # The reaper's knowledge is of the burst before.
                self.backoff.patience = 0.0
            pool = pools.pool_of(connection)
            # A pool that had given something out before it was watched has another queue since.
            if (
                pool is None
                or self._pool() is not pool
                or getattr(pool, "_waiting", None) is not self.queue
                or not keeping.is_psycopgs(pool.__class__)
            ):
                self._note_pool(pool)
            scopes = _current_scopes()
            if scopes is not self._scopes or conf.current is not self._settings:
                self._heed(scopes)
            self._place = self.checked_out_at
            if self.asked_at is not None:
                self._place = self.asked_at
                if waited is None:
                    waited = self.checked_out_at - self.asked_at
                self.asked_at = None
            if self.keeps:
                self.pauses.checked_out(self._label, self._place, self._experience)
            request = _current_timing()
            if request is not None:
                if waited is not None:
                    request.waited(waited, self.alias)
                self._join_request()
            if pool is not None:
                client.remember(connection)
            self.session_state = state.State(connection)
            # It was in use a moment ago, by somebody else, or has been looked at.
            self.trusted = checkouts.is_trusted(connection, self.checked_out_at)
            cursors.follow(connection, self)
            self.keeper.checked_out(self)
            # Kept, since a connection that the application has closed no longer tells. All is noted by now.
            self.server_pid = connection.pgconn.backend_pid
            self.tally.checked_out(waited)
            if CheckedOut.listeners:
                self._news += (news.checked_out(self, waited),)
        return overwritten

    def _note_pool(self, pool: Any) -> None:
        self._pool = weakref.ref(pool) if pool is not None else _nothing
        self.pooled = pool is not None
        self.keeps = keeping.keeps(pool)
        self.queue, self.spare = pools.queue_and_spare(pool)
        self._experience = queues.experience_of(self.queue)

    def _end_overwritten(self, before: psycopg.Connection[Any], after: psycopg.Connection[Any] | None) -> Return | None:
        """End the checkout of *before*, under the lock; return it to be given back if nobody else will do that.

        A logging handler that queries while a connection is checked out gets one first, which Django then forgets.
        Whoever has read the handle may have kept it, to put it back later.
        """
        if after is None or self.open_cursors or self._handle_is_out() or not (self.pooled and pools.is_idle(before)):
            self._end(before, carried=self.carried)
            return None
        return self._leave()

    def _publish(self) -> None:
        """Publish what was decided under the lock. Called without it, by the owner."""
        with self._lock:
            told, self._news = self._news, ()
        for event in told:
            publish(event)

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
        self.__dict__.clear()
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
            self._news += (news.came_back(self, held),)
        if self.idle_since != self.checked_out_at:
            checkouts.note_use(connection, self.idle_since)
        return True

    def connecting(self, connect: Connect) -> bool:
        """Take note that ``connect()`` begins, and return whether it does; else another one is under way.

        It ends with :meth:`connected`, called with the same *connect*; with another one that does nothing.

        From here to :meth:`connected` the wrapper shows no connection, as a plain one would: whoever is patched into
        ``connect()`` and looks must not start a second one.
        """
        with self._lock:
            if self._is_connecting():
                return False
            self._connects = self._connects or Connecting()
            self._connects.attempt = weakref.ref(connect)
            if self.state == GIVEN_BACK:
                self.state = CLOSED
            return True

    def connected(self, connect: Connect, *, again: bool) -> None:
        """Take note that ``connect()`` ended. *again*: a failure to check out again, which the next use may repeat."""
        with self._lock:
            connects = self._connects
            if connects is None or connects.attempt is None or connects.attempt() is not connect:
                return
            connects.attempt = None
            if connects.marker is None:
                self._connects = None
            if self._connection is None:
                self.state = GIVEN_BACK if again else CLOSED

    def mark_connect(self) -> None:
        """Take note that a ``connect()`` is under way whose end nobody will tell, and see to it that it can be told.

        Called with the connection there, which ``connect()`` has made or is about to show to its receivers.
        """
        with self._lock:
            wrapper = self.wrapper()
            if wrapper is not None and not self._is_connecting() and not wrapper.run_on_commit:
                self._connects = self._connects or Connecting()
                self._connects.marker = wrapper.run_on_commit = []

    def forget(self) -> bool:
        """Forget that a connection was given back, since the wrapper is being closed; return whether one was."""
        with self._lock:
            if self.state != GIVEN_BACK:
                return False
            self.state, self.carried = CLOSED, None
            return True

    def _is_connecting(self) -> bool:
        return self._connects is not None and self._connects.is_under_way()

    def _setting_up(self, wrapper: BaseDatabaseWrapper) -> bool:
        return self._connects is not None and self._connects.is_setting_up(wrapper)

    def is_setting_up(self) -> bool:
        """Return whether a new session is being set up, receivers of ``connection_created`` included. Owner only."""
        with self._lock:
            wrapper = self.wrapper()
            return wrapper is not None and self._setting_up(wrapper)

    # ##### Use: cursors and transactions #####

    def begin_use(self) -> None:
        """Take note that the connection is in use from now on, when its first cursor is opened. Owner only."""
        self.in_use_since = _now()
        if self._timing is not None or _current_timing() is not None:
            with self._lock:
                self._join_request()
                if self._timing is not None:
                    self._timing.change(self, used=1)

    def _heed(self, scopes: tuple[policy.Entry, ...]) -> None:
        """Take note of what the scopes around and the settings want. Called where they may be others, by the owner.

        They may be the same and want something else only if they held, and the hold is over.
        """
        self._wish = policy.wish(self.alias)
        self._settings = conf.current
        self._scopes = None if self._wish == policy.HOLD else scopes

    def _join_request(self) -> None:
        """Have the time count for the request in whose context the connection is used, under the lock; unused so far.

        A connection may outlive its request, and belongs to the next one from its first use there.
        """
        request = usage.current.get()
        if request is self._timing:
            return
        if self._timing is not None:
            self._timing.change(self, held=-1)
        self._timing = request
        if request is not None:
            request.change(self, held=1)

    def _look_at_session(self, connection: psycopg.Connection[Any]) -> None:
        """Have the session remembered as it is now, unless it is not set up yet."""
        wrapper = self.wrapper()
        if wrapper is None or self._setting_up(wrapper):
            return
        self.session_state.begin(connection)

    def begin_session(self) -> None:
        """Turn autocommit on, which is all that is to be set up, and remember the session as it is. Owner only.

        :raises psycopg.Error: what the owner has set in another session cannot be set in this one.
        """
        connection = self._connection
        if connection is not None:
            if not connection.autocommit:
                connection.autocommit = True
            if self.carried is not None:
                self.set_again()
            with self._lock:
                self.session_state.begin(connection)
                # Last of all: after an exception of a signal handler, it is to be set again in another session.
                self.carried = None

    def await_carried(self) -> None:
        """Wait until it is known what the owner is to find again in the next session. Owner only, and under no lock.

        :raises psycopg.OperationalError: it was lost with the session before.
        """
        if self.carried is not None:
            self.carried.values(returns.PATIENCE)

    def set_again(self) -> None:
        """Set in the session what the owner has set in the one before. Owner only.

        :raises psycopg.Error: that is not possible. Nothing may run in this session then. ``SessionGone`` if the server
            has ended it, so that another one will do.
        """
        carried, connection = self.carried, self._connection
        if carried is None or connection is None:
            return
        values = carried.values(0)
        try:
            # Where nothing was set, the server need not be asked.
            if values:
                with returns.TimeLimit(connection, self.keeper, returns.TIME_LIMIT):
                    following.set_again(connection, values)
        except psycopg.OperationalError as error:
            if connection.closed:
                raise following.SessionGone(*error.args) from error
            raise
        again, carried.set_in = carried.set_in == self.checkouts, self.checkouts
        with self._lock:
            # What is as it is in a new session need not follow; who sets it once more is seen again. What has followed
            # unseen goes on, also if nothing is executed before the next release.
            self.session_state.follows |= values.keys()
        if Followed.listeners and values and not again:
            publish(news.followed(self, values))

    def has_set_again(self) -> None:
        """Take note that the session is set up: what followed is where it belongs, and what comes later is new.

        Receivers of ``connection_created`` may have set the same names, to what they hold for right in a new session.
        Where nobody is told of it, as while a test mutes signals, nothing was set again yet.
        """
        carried = self.carried
        if carried is not None:
            if carried.set_in != self.checkouts or self.session_state.was_set_at_connect(carried.values(0).keys()):
                self.set_again()
            with self._lock:
                self.carried = None

    def checkout_failed(self) -> None:
        """Give back, closed, a connection that could not be set up; the next use tries another. Owner only."""
        self._let_go(self._leave_unprepared, here=True)

    def _leave_unprepared(self) -> Return | None:
        connection, carried = self._connection, self.carried
        if connection is None:
            return None
        connection.pgconn.finish()
        self.session_state.cleaned()
        returning = self._leave()
        self.carried = carried
        return returning

    def cursor_collected(self, cursor: weakref.ref[Any]) -> None:
        """Hand a cursor that was collected without being closed to the reaper; safe in a finaliser, in any thread."""
        if not sys.is_finalizing():
            # Looked up now, and not by the reaper: the checkout may have ended by then.
            self.keeper.cursor_lost(self, cursor, is_of_checkout=cursor in self.open_cursors)

    def looked_at(self, look: Callable[[], bool]) -> bool:
        """Call *look*, which asks whether the connection works, and leave the lease as it was.

        Returns what it returns; True without a call if the connection was given back, since the next use gets one that
        works. Only the owner may call this.
        """
        was_out = self._handle_is_out()
        if self.take() is None:
            return self.state == GIVEN_BACK
        try:
            return look()
        finally:
            if not was_out:
                self.settle(handle_is_out=False)

    def settle(self, *, handle_is_out: bool | None = None) -> None:
        """Park the connection, or give it back at once, if nothing keeps it. Only the owner may call this.

        *handle_is_out* tells whether somebody may be about to use a handle that was read; by default, whether one was
        read since the last cursor closed.
        """
        with self._lock:
            # While it is being set up, it is kept in any case.
            if self._connection is None or self._is_connecting():
                return
            if handle_is_out is None:
                handle_is_out = self._handle_is_out()
            if handle_is_out:
                self._heed(_current_scopes())
                return
            # As if it had been for a cursor, which ends now.
            self.open_cursors[self] = None
        self.cursor_closed(self)

    def cursor_closed(self, cursor: object, *, by_owner: bool = True) -> None:
        """Forget a cursor of ``open_cursors``, and let the connection go if it was the last thing to keep it.

        In one piece, and asking what mostly decides before it calls anybody, since it ends every query.
        """
        wrapper = self.wrapper()
        if self._transaction is not None and by_owner and wrapper is not None and wrapper.in_atomic_block:
            # Nothing can end before the transaction does. The time comes first, for the reaper, which may be looking.
            self.idle_since = _now()
            self.open_cursors.pop(cursor, None)
            return
        deadline = ended = None
        try:
            with self._lock:
                # Another one, by now, of another checkout?
                if self.open_cursors.pop(cursor, self) is self:
                    return
                if by_owner:
                    self.__dict__.clear()
                    scopes = _current_scopes()
                    if scopes is not self._scopes or conf.current is not self._settings:
                        self._heed(scopes)
                elif self._handle_is_out():
                    # The owner has read the handle a moment ago, and is about to use it.
                    return
                connection = self._connection
                if self.open_cursors or wrapper is None or connection is None:
                    return
                self.idle_since = now = _now()
                pgconn = connection.pgconn
                if (
                    wrapper.in_atomic_block
                    or not wrapper.autocommit
                    or pgconn.transaction_status != _IDLE
                    or pgconn.pipeline_status
                ) and self._in_transaction(wrapper):
                    if self._transaction is None:
                        # By a literal BEGIN, or by the first statement after autocommit was turned off.
                        self._transaction = Transaction(now, _here(), by_atomic_requests=False)
                    return
                self._transaction = None
                if self.in_use_since is not None:
                    self._used += now - self.in_use_since
                    self.in_use_since = None
                    if self._timing is not None:
                        self._timing.change(self, used=-1)
                if self._wish == _RELEASE and not (
                    (
                        self.session_state.pins
                        or wrapper.run_on_commit
                        or self._connects
                        or wrapper._thread_sharing_count  # type: ignore[attr-defined]
                    )
                    and self._kept(wrapper)
                ):
                    grace = conf.current.RELEASE_AFTER if self.keeps else self._grace()
                    pauses = self.pauses
                    pauses.at += 1
                    is_expected = pauses.at == pauses.expected_at
                    if grace and not (is_expected and self._may_pause(by_owner=by_owner)):
                        self.state = PARKED
                        if self.queue:
                            deadline = self._haste(now, grace)
                        elif self.look_at == _NEVER:
                            is_scarce = self.keeps and not self.spare
                            deadline = backoff.leisure(now, grace, is_scarce=is_scarce)
                        # Else the reaper is about to look in any case.
                    elif (
                        grace is not None
                        and pgconn.transaction_status == _IDLE
                        and self.server_pid
                        and self._connection is connection
                    ):
                        # What has broken stays its owner's, who is told at the next use. So does what it checks out at
                        # this moment, where a signal handler queries; or that query has given it back.
                        ended = self._end_idle(connection)
                        if grace and ended[0] is not None:
                            pauses.begin(now, grace)
                            # Its owner waits for nothing that can be done meanwhile.
                            by_owner = not ended[0].asks_session
                    if is_expected:
                        pauses.expect_next()
            if ended is not None:
                if ended[0] is not None:
                    self.keeper.carry_back(ended[0], here=by_owner)
                else:
                    self._carry_back(*ended, here=by_owner)
        except BaseException:
            self.keeper.rescue(self)
            raise
        if deadline is not None:
            self._after_settling(deadline, by_owner=by_owner)

    def _may_pause(self, *, by_owner: bool) -> bool:
        """Return whether a pause that is expected now is the owner's, in its thread, of a session that is set up.

        A signal handler may query in the middle of a checkout.
        """
        is_set_up = self.server_pid and self.carried is None and self.session_state.parameters is not None
        return by_owner and bool(is_set_up)

    def _haste(self, now: float, grace: float) -> float | None:
        """Return when a lease should end that is parked *now* and that somebody waits for.

        None if the reaper is about to look in any case.
        """
        if self._has_had_its_turn():
            return now
        self.turn.note(now, self.thread_id)
        deadline = self._experience.look_at(now + grace)
        if self.look_at != math.inf and (self.backoff.patience or self.look_at <= deadline):
            return None
        return deadline

    def transaction_began(self, *, by_atomic_requests: bool) -> None:
        """Remember when and where ``atomic()`` or ``set_autocommit(False)`` began, for reports. Owner only."""
        self.boundaries += 1
        with self._lock:
            self._transaction = Transaction(_now(), _here(), by_atomic_requests=by_atomic_requests)

    def transaction_ended(self) -> None:
        """Settle after a commit or a rollback, but for that of ``atomic()``: autocommit follows. Owner only."""
        self.boundaries += 1
        wrapper = self.wrapper()
        if wrapper is not None and (wrapper.autocommit or self._manual):
            self.settle(handle_is_out=False)

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

    def _kept(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Return whether an idle connection must stay with its owner all the same."""
        if self._connects is not None and not self._connects.is_setting_up(wrapper):
            # Set up for good.
            self._connects = None
        return bool(
            self.session_state.pins
            or wrapper.run_on_commit
            or self._connects
            # Another thread may be about to use the handle that it has just read.
            or wrapper._thread_sharing_count  # type: ignore[attr-defined]
        )

    def _grace(self, *, is_wanted: bool = False) -> float | None:
        """Return for how many seconds the connection may sit idle; None for ever.

        *is_wanted* tells that somebody is about to ask its pool for one. A pool that keeps nothing hands it to whoever
        waits.
        """
        if not self.keeps and not self.queue:
            connection = self._connection
            if not is_wanted or connection is None or not keeping.is_full(pools.pool_of(connection)):
                return conf.current.UNPOOLED_RELEASE_AFTER
        return conf.current.RELEASE_AFTER

    def _has_had_its_turn(self) -> bool:
        """Return whether the owner has had the connection for so long that whoever waits for one comes first."""
        had = self.idle_since - self.checked_out_at
        return self.turn.is_over(self.checkouts, self._place, had, self.queue)

    def place_of_next(self, now: float) -> float | None:
        """Return the place of the next checkout in the pool's queue, if it goes on with the last one. Owner only."""
        if self.state != GIVEN_BACK or now >= self.idle_since + turns.BREAK:
            return None
        if self.turn.is_over_with(self.checkouts):
            return None
        had = self.idle_since - self.checked_out_at
        with self._lock:
            return self.turn.go_on(self.checkouts, self._place, had, now, self._experience)

    def comes_anew(self) -> None:
        """Have the next checkout be about something else than the last: another request, say. Owner only."""
        # Else there is nothing to go on with, as at the start of nearly every request.
        if self.state == GIVEN_BACK:
            with self._lock:
                self.turn.end_with(self.checkouts)

    def request_is_over(self) -> None:
        """Have others learn from the request or task that the owner worked for. Owner only."""
        if self.pauses.label is not None:
            with self._lock:
                self.pauses.end()

    def _due(self, *, is_wanted: bool = False) -> float | None:
        """Return when a parked lease may end; None for never."""
        grace = self._grace(is_wanted=is_wanted)
        if grace is None:
            return None
        # Whoever is about to wait is not in the queue yet, and may not have to: the pool may grow.
        if self.queue and self._has_had_its_turn():
            return self.idle_since
        return self.idle_since + grace

    def _after_settling(self, deadline: float, *, by_owner: bool) -> None:
        """Leave a parked lease to the reaper, or end it here and now if that is the time. Called without the lock."""
        if deadline <= self.idle_since:
            # Whoever waited may have been served by somebody else meanwhile.
            again = self.end_if_parked(deadline, here=by_owner)
            if again is None:
                return
            deadline = again
        self.keeper.parked(self, deadline)

    @property
    def is_manual(self) -> bool:
        """Whether the application has turned autocommit off by hand, as :meth:`manual_transactions` was told."""
        return self._manual

    def manual_transactions(self, manual: bool) -> None:
        """Take note of whether the application has turned autocommit off by hand, outside of ``atomic()``."""
        with self._lock:
            self._manual = manual

    # ##### Session state #####

    def pin_for_its_past(self) -> None:
        """Keep a connection with its owner that was in use before there was a lease: its session may carry anything."""
        self._pin(sql.Effect(frozenset({sql.PAST}), frozenset()))

    def share(self) -> psycopg.Connection[Any] | None:
        """Return the connection for somebody who will use it past the lease, which therefore keeps it."""
        self._pin(sql.Effect(frozenset({sql.SHARED}), frozenset()))
        return self.take()

    def statement(self, query: Any, params: Any, connection: psycopg.Connection[Any]) -> sql.Effect | None:
        """Look at a statement that is about to run, and pin the lease if it leaves something in the session.

        Returns what to call :meth:`succeeded` with when it has run without an error; None if that need not be told.

        :raises psycopg.OperationalError: the toolkit has ended the session; it says why.
        """
        if self.ended_because is not None:
            self.check()
        wrapper = self.wrapper()
        if wrapper is not None and wrapper.execute_wrappers:
            ahead.ahead_of(query, wrapper, connection)
        self.last_statement = (query,)
        self.idle_since = _now()
        if self.in_use_since is None:
            with self._lock:
                self.pauses.used()
        text = query if type(query) is str else sql.text_of(query, connection)
        if text is None:
            effect: sql.Effect | None = _UNREADABLE
        elif len(text) > sql.LONGEST_REMEMBERED:
            effect = sql.effect_of(text)
        else:
            effect = sql.remembered_effect_of(text)
        if effect is None:
            return None
        if effect.settings:
            effect = effect.with_parameters(params)
        self._pin(effect)
        return effect if effect.removes else None

    def succeeded(self, effect: sql.Effect, connection: psycopg.Connection[Any]) -> None:
        """Take note that what undoes something has been executed without an error. Owner only."""
        with self._lock:
            self.session_state.succeeded(effect, in_transaction=not pools.is_idle(connection))
        if sql.PREPARED in effect.removes and internals.CLEANING.available:
            # psycopg does not always notice.
            client.forget_prepared(connection)

    def failed(self, error: psycopg.Error, connection: psycopg.Connection[Any]) -> None:
        """Take note of the *error* of a statement: what it says of the session is of use for others. Owner only."""
        if connection is not self._connection:
            return
        if connection.closed:
            with self._lock:
                # It is to be looked at, be the next statement ever so near.
                self.trusted = False
            # Another one can have its place, whatever its owner believes to be in: it will come to nothing more.
            records = pools.vacate(connection)
            if records:
                self.keeper.tell(pools.tell, records)
        elif error.sqlstate == read_only.SQLSTATE:
            with self._lock:
                self.trusted = False
            read_only.refused(self, connection)

    def confirm_undone(self) -> None:
        """Ask the server what a transaction that has ended has undone. Owner only, outside of transactions."""
        connection = self._connection
        if connection is not None and self.session_state.undone and pools.is_idle(connection):
            left = cleaning.left_of(connection, self.session_state.undone)
            with self._lock:
                self.session_state.confirm_undone(left)

    def overriding(self, name: str, before: str | None) -> None:
        """Take note that a block has set *name*, which was *before*, None for not at all, for as long as it lasts.

        A release resets it, and what follows the owner is what was before. Of several calls the last counts.
        Owner only.
        """
        with self._lock:
            self.session_state.overridden[name] = before

    def no_longer_overriding(self, name: str) -> None:
        """Take note that *name* is again what it was before. Owner only."""
        with self._lock:
            self.session_state.overridden.pop(name, None)

    def fetching(self) -> None:
        """Take note that a server-side cursor is about to fetch, which is no new statement, and is not idle either.

        :raises psycopg.OperationalError: the toolkit has ended the session; it says why.
        """
        self.check()
        if self.last_statement is not None:
            self.last_statement = (self.last_statement[0],)

    def _pin(self, effect: sql.Effect) -> None:
        with self._lock:
            wrapper = self.wrapper()
            if self._connection is None or wrapper is None:
                return
            added = self.session_state.add(
                effect, setting_up=self._setting_up(wrapper), of_hold=policy.holds(self.alias)
            )
        news.publish_pins(self, added)

    def prepare_return(self) -> None:
        """Make the connection what it was at checkout, and its session clean. The owner does this in ``close()``."""
        with self._lock:
            connection = self._connection
            if connection is None:
                return
            # Until it is closed it is in use, which keeps the reaper off.
            self.state, self.handle = HELD, connection
            # Before the cursors are what they were, since comparing them takes longer then.
            is_as_given = self._leaves_nothing(connection, state.reported_parameters(connection))
            cursors.retire(connection)
            if connection.closed:
                return
            is_due = self.last_statement is not None and known.is_due(self.alias, _now())
            if is_as_given and not is_due and client.has_nothing_new(connection) and not audits.is_audited(connection):
                return
        for event in returns.audit(connection, self.keeper):
            publish(event)
        if is_due:
            self._ask_catalogue(connection)
        with self._lock:
            plan, fresh = self._plan(connection, follows=False), self.session_state.fresh
        if plan.left or plan.resets:
            with returns.TimeLimit(connection, self.keeper, returns.TIME_LIMIT):
                pools.scrub(connection, plan, fresh)
            with self._lock:
                self.session_state.cleaned()
        pools.restore(connection)

    def _ask_catalogue(self, connection: psycopg.Connection[Any]) -> None:
        """Ask what functions and policies do, of a connection whose transaction is over, or is to end in any case."""
        with returns.TimeLimit(connection, self.keeper, returns.TIME_LIMIT):
            if pools.is_ready(connection):
                known.ask(self.alias, connection, self.keeper.tell)

    def _plan(
        self,
        connection: psycopg.Connection[Any],
        reported: tuple[bytes | None, ...] | None = None,
        *,
        follows: bool,
    ) -> Plan:
        """Return what is to be done to the session before it is anybody else's.

        *reported* are its parameters, if they have just been looked at. *follows* tells that the owner goes on.
        """
        # A session in which nothing was executed has nothing of its owner's.
        declared = known.followed(self.alias) if self.last_statement is not None else frozenset()
        if connection.closed:
            # What cannot be read any more is missed by its owner, who is told.
            return Plan(follow=declared | self.session_state.follows if follows else frozenset())
        if reported is None:
            reported = state.reported_parameters(connection)
        # An open cursor on the server may be WITH HOLD; its late close() will find that the connection is gone.
        always = known.cleans_always(self.alias)
        soiled = always or bool(self.open_cursors)
        plan = self.session_state.plan(connection, reported, declared, soiled=soiled, follows=follows)
        if not self.pooled:
            # Giving back is closing.
            return plan._replace(left=frozenset(), resets=frozenset())
        if always and self.last_statement is not None:
            return plan._replace(left=plan.left | known.indelible(self.alias))
        return plan

    def carries_state(self) -> bool:
        """Return whether the owner has left anything in the session, or may have. Owner only, outside of transactions.

        May ask the server what its functions leave there.
        """
        connection = self._connection
        if connection is None:
            # Given back, it leaves what is to be set again in the next.
            return self.carried is not None
        if self.may_have_unseen_state() and pools.is_idle(connection):
            self._ask_catalogue(connection)
        with self._lock:
            return bool(
                self.session_state.changed(connection)
                or self.session_state.carries()
                or (self.last_statement is not None and known.cleans_always(self.alias))
            )

    def may_have_unseen_state(self) -> bool:
        """Return whether nobody knows if what was executed has left something in the session."""
        return self.last_statement is not None and known.is_unknown(self.alias)

    def refuse_if_state_mattered(self) -> None:
        """Ask the server whether what functions leave in a session matters; called when one was replaced. Owner only.

        :raises psycopg.OperationalError: it does, and may have been lost with the session before.
        """
        connection = self._connection
        if connection is not None:
            self._ask_catalogue(connection)
        if known.state_matters(self.alias):
            raise psycopg.OperationalError(
                "The server had closed the connection. What functions had set in its session is lost, which matters "
                "here: row-level security or functions of this database depend on it."
            )

    @property
    def pins(self) -> dict[str, str]:
        """What pins the lease: reason to place in the code."""
        with self._lock:
            return dict(self.session_state.pins)

    # ##### The end of a lease #####

    def end_if_parked(self, now: float, *, here: bool = False) -> float | None:
        """Give the connection back if it has been parked for its grace. The reaper's way, and the owner's at grace 0.

        Returns None if there is nothing left to do, else when to look again. *here* tells that the owner asks.
        """
        try:
            with self._lock:
                if self._connection is None:
                    return None
                if self.state != PARKED or not self.server_pid:
                    return self._in_vain(now, self._next_look(now, now))
                due = self._due()
                if due is None:
                    return None
                if now < due:
                    again = self._next_look(now, due)
                    return again if here else self._in_vain(now, again)
                if self.turn.computes(self.idle_since, now):
                    return self._in_vain(now, now + turns.LOOK_AGAIN)
                if self.queue and not here:
                    self._experience.ended_one()
                returning, kept_for = self._end_parked(self._connection, now)
            self._carry_back(returning, kept_for, here=here)
        except BaseException:
            self.keeper.rescue(self)
            raise
        return None

    def _in_vain(self, now: float, again: float | None) -> float | None:
        """Return when to look once more instead of *again*, after a look that has ended nothing. Under the lock."""
        if not self.queue:
            return again
        self._experience.looked_in_vain(now, self._grace() or 0.0)
        return again and self._experience.look_at(again)

    def end_if_due(self, now: float, spare: Sequence[Any]) -> float | None:
        """Give the connection back if it has been parked for its grace, and its pool is the one of *spare*.

        Returns when it will be due if it is parked, else None. For a thread that needs one, which may be any.
        """
        # First without the lock, and then not waiting for it: whoever has it is giving the connection back, or uses it.
        # And the thread may have another lease's, if it queries in a finaliser; two such would block each other.
        if self.spare is not spare or self.state != PARKED or self._lock._is_owned():
            return None
        try:
            again, returning, kept_for = self._take_out_if_due(now, spare)
            self._carry_back(returning, kept_for, here=False)
        except BaseException:
            self.keeper.rescue(self)
            raise
        return again

    def _take_out_if_due(self, now: float, spare: Sequence[Any]) -> tuple[float | None, Return | None, list[str]]:
        try:
            if not self._lock.acquire(blocking=False):
                return None, None, []
            due = self._due(is_wanted=True)
            if self.spare is not spare or self.state != PARKED or self._connection is None or due is None:
                return None, None, []
            if now < due:
                return None if self.backoff.patience else due, None, []
            if self.turn.computes(self.idle_since, now):
                return self._experience.look_at(now + turns.LOOK_AGAIN), None, []
            return None, *self._end_parked(self._connection, now)
        finally:
            # An exception of a signal handler may have come before it was taken, or after. No call may come first here:
            # at a call, the next signal is handled.
            try:  # noqa: SIM105
                self._lock.release()
            except RuntimeError:
                pass

    def _end_parked(self, connection: psycopg.Connection[Any], now: float) -> tuple[Return | None, list[str]]:
        """Take out, under the lock, what has been parked for its grace; return it, or what keeps it."""
        # A handle that was read before the lease was parked may have been used since.
        if not pools.is_idle(connection):
            self.state = HELD
            self.pauses.used()
            return None, []
        # Else, it is the end of its turn that the owner lets go for.
        if now >= self.idle_since + conf.current.RELEASE_AFTER:
            self.pauses.came()
        return self._end_idle(connection)

    def _end_idle(self, connection: psycopg.Connection[Any]) -> tuple[Return | None, list[str]]:
        """Take out, under the lock, what is idle and to be given back; return it, or what keeps it."""
        reported = state.reported_parameters(connection)
        if self._leaves_nothing(connection, reported):
            # What all that follows comes to for nearly every session.
            cursors.retire(connection)
            fresh = self.session_state.fresh
            return self._take_out(Return(self, self.alias, connection, plan=NOTHING, fresh=fresh, is_as_given=True)), []
        changed = self._changed(connection, reported)
        if not changed:
            return self._leave(reported), []
        self.state = HELD
        reason = f"a change of {', '.join(changed)}"
        self.session_state.pins[reason] = callsite.UNKNOWN
        return None, [reason]

    def _leaves_nothing(self, connection: psycopg.Connection[Any], reported: tuple[bytes | None, ...]) -> bool:
        """Return whether nothing is to be done to the session, whose parameters are as *reported*, for anybody else."""
        return (
            self.session_state.is_untouched(connection, reported)
            and known.leaves_nothing(self.alias)
            and not self.open_cursors
        )

    def _changed(
        self, connection: psycopg.Connection[Any], reported: tuple[bytes | None, ...] | None = None
    ) -> list[str]:
        """Return what of the session may be the owner's, was not seen in a statement, and cannot follow."""
        changed = self.session_state.changed(connection, reported)
        if not internals.FOLLOWING.available and self.last_statement is not None:
            changed += sorted(known.followed(self.alias))
        if self.last_statement is not None and known.was_not_told(self.alias):
            changed.append(sql.UNTOLD)
        return changed

    def _carry_back(self, returning: Return | None, kept_for: list[str], *, here: bool) -> None:
        """Do outside of the lock what was decided under it."""
        if returning is not None:
            self.keeper.carry_back(returning, here=here)
        if not kept_for:
            return
        if here:
            news.publish_pins(self, kept_for)
        else:
            self.keeper.tell(news.publish_pins, self, kept_for)

    def _next_look(self, now: float, due: float) -> float | None:
        """Return when the reaper should look again at what may end at *due*; None for when it is parked next."""
        if self.backoff.is_in_burst(self.idle_since, self._grace() or 0.0):
            return max(due, now + self.backoff.patience)
        return due if self.state == PARKED else None

    def _leave(
        self,
        reported: tuple[bytes | None, ...] | None = None,
        *,
        is_rolled_back: bool = False,
        reason: Ending = "release",
    ) -> Return | None:
        """Take the connection out of the lease, under the lock, for it to be carried back outside of it.

        None if a signal handler has been faster, in between.

        *reported* are its session's parameters, if they have just been looked at.
        """
        connection = self._connection
        assert connection is not None
        cursors.retire(connection)
        follows = reason == "release" and internals.FOLLOWING.available
        plan = self._plan(connection, reported, follows=follows)
        # While the catalogue is not known, it is not known what follows either.
        carried = (
            Carried(plan.follow - plan.unseen) if plan.follow or (follows and known.is_unknown(self.alias)) else None
        )
        returning = Return(
            self,
            self.alias,
            connection,
            plan=plan,
            carried=carried,
            fresh=self.session_state.fresh,
            is_rolled_back=is_rolled_back,
        )
        return self._take_out(returning, reason)

    def _take_out(self, returning: Return, reason: Ending = "release") -> Return | None:
        # First of all: an exception of a signal handler, at any of these lines, must not lose it.
        self.keeper.leaving(self, returning)
        if not self._end(returning.connection, GIVEN_BACK, reason, carried=returning.carried, listed=False):
            self.keeper.stays(self, returning)
            return None
        # Published when it is where it belongs.
        returning.news, self._news = self._news, ()
        return returning

    def is_out(self, returning: Return) -> bool:
        """Return whether *returning* has been taken out of the lease, and was not just about to be."""
        return self._connection is not returning.connection

    def _let_go(self, taken_out: Callable[[], Return | None], *, here: bool) -> bool:
        """Call *taken_out* under the lock, carry back what it returns, and tell whether that was anything."""
        try:
            with self._lock:
                returning = taken_out()
            if returning is None:
                return False
            self.keeper.carry_back(returning, here=here)
        except BaseException:
            self.keeper.rescue(self)
            raise
        return True

    def release_now(self) -> bool:
        """Give the connection back now if it is idle, whatever the scopes say; return whether it was. Owner only."""
        return self._let_go(self._leave_if_idle, here=True)

    def _leave_if_idle(self) -> Return | None:
        wrapper = self.wrapper()
        if self._connection is None or wrapper is None or policy.holds(self.alias):
            return None
        if self.open_cursors or self._in_transaction(wrapper) or self._kept(wrapper):
            return None
        if self._changed(self._connection):
            return None
        return self._leave()

    def reclaim(self) -> tuple[Return, Reclaimed | None] | None:
        """Take the connection from an owner that is no more; return it, with what was found. Called by the reaper.

        None if there was nothing to take. What is open is rolled back on the way: nobody is left who could commit it.
        """
        with self._lock:
            wrapper, connection = self.wrapper(), self._connection
            # Shared with other threads, which may be in the middle of something.
            if connection is None or (wrapper is not None and wrapper.allow_thread_sharing):
                return None
            # If parked, on its way back in any case.
            found = news.reclaimed(self, connection) if self.state != PARKED else None
            if found is None:
                returning = self._leave()
            else:
                returning = self._leave(is_rolled_back=found.in_transaction, reason="reclaim")
            return (returning, found) if returning is not None else None

    def reconsider(self) -> None:
        """Settle anew, since a scope began or ended. Only the owner may call this.

        Where no scope wants it released any more, a parked connection without a pool is its owner's to keep, as
        ``CONN_MAX_AGE`` says. One with a pool may go back all the same.
        """
        if policy.releases(self.alias):
            self.settle()
            return
        with self._lock:
            self._heed(_current_scopes())
            if self.state == PARKED and not self.pooled:
                self.state = HELD

    def hold_ended(self) -> None:
        """Give back a connection whose session state all comes from a ``hold_connection`` that ends now. Owner only.

        It is not settled but given back, cleaned: what receivers of ``connection_created`` have set is gone as well,
        and runs again at the next checkout.
        """
        self._let_go(self._leave_with_hold, here=True)

    def _leave_with_hold(self) -> Return | None:
        wrapper = self.wrapper()
        if self._connection is None or wrapper is None or policy.holds(self.alias):
            return None
        of_hold = self.session_state.is_of_hold()
        self.session_state.hold_ended()
        if not of_hold or not policy.releases(self.alias):
            return None
        # What does not follow, such a backend would not set again in the next session: it believes to have set it.
        if sql.SETTING in self.session_state.pins and backends.has_own_close(wrapper.__class__):
            return None
        if self.open_cursors or self._in_transaction(wrapper) or wrapper.run_on_commit:
            return None
        return self._leave()

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

    def give_back_if_abandoned(self) -> bool:
        """Give a connection with a pool back that its owner has held too long, and return whether it was.

        Only if a scope asks for it, or if the thread has nothing to do: to code that runs, and that nobody has told of
        releases, state may matter that cannot be seen. Called by the reaper.
        """
        return self.pooled and self._let_go(self._leave_if_abandoned, here=False)

    def give_back_on_demand(self, idle_since: float) -> bool:
        """Give a connection back that somebody waits for, by the same rules; return whether it was.

        Only if the owner has not used it since *idle_since*, and for no request. Called by the reaper.
        """

        def leave() -> Return | None:
            if not self.pooled or self.idle_since > idle_since or self.request is not None:
                return None
            return self._leave_if_abandoned()

        return self._let_go(leave, here=False)

    def close_at(self) -> float | None:
        """Return when a session without a pool is past the age that ``CONN_MAX_AGE`` gives it; None for never."""
        wrapper: Any = self.wrapper()
        return None if wrapper is None or self.pooled else wrapper.close_at

    def give_back_if_too_old(self, now: float) -> bool:
        """Close a connection without a pool that is past its age, by the same rules; return whether it was.

        After a request, Django would do so when the next one begins; the owner calls its backend's ``close()`` then.
        Where the thread has served none, it is a release: what follows the owner follows. Called by the reaper.
        """

        def leave() -> Return | None:
            close_at = self.close_at()
            if close_at is None or now < close_at or self.request is not None:
                return None
            # A scope around code that runs is none of an age's business.
            return self._leave_if_abandoned("close" if self.outlives_request else "release", scopes_count=False)

        return self._let_go(leave, here=False)

    def _leave_if_abandoned(self, reason: Ending = "release", *, scopes_count: bool = True) -> Return | None:
        wrapper, connection = self.wrapper(), self._connection
        if wrapper is None or connection is None:
            return None
        # The handle first, and the cursors after it: in this order, one of them tells of an owner that is at work.
        if self._handle_is_out() or self.open_cursors:
            return None
        if conf.current.RELEASE == "never" or self._wish == policy.HOLD:
            return None
        if self._in_transaction(wrapper) or self._kept(wrapper) or self._changed(connection):
            return None
        if not (scopes_count and self._wish == policy.RELEASE) and not callsite.is_at_rest(self.thread_id):
            return None
        return self._leave(reason=reason)

    # ##### Broken connections #####

    def idle_for(self) -> float:
        """Return for how many seconds the connection has not been used."""
        return _now() - self.idle_since

    def detach(self) -> psycopg.Connection[Any] | None:
        """End the lease without touching the connection, and return it for the plain wrapper to go on with."""
        with self._lock:
            connection = self._connection
            if connection is not None:
                cursors.unfollow(connection)
                self._end(connection, reason="uninstall")
            self.state, self.carried = CLOSED, None
        if self._news:
            self._publish()
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
            self.__dict__.clear()
            self.carried = None
            connection, self._connection = self._connection, None
            if connection is not None:
                cursors.retire(connection)
            self.state = CLOSED
            self.open_cursors = {}
            return connection

    def holds_connection(self) -> bool:
        """Return whether a connection is checked out."""
        with self._lock:
            return self._connection is not None


if locks.DEBUG:
    Lease.__setattr__ = invariants.checked_write  # type: ignore[assignment, method-assign]

_UNREADABLE = sql.Effect(frozenset({sql.UNREADABLE}), frozenset())


# For what runs at every query: each saves a look-up or a call.
_IDLE = TransactionStatus.IDLE
_RELEASE = policy.RELEASE
_NEVER = math.inf
_current_scopes = policy.entered.get
_current_timing = usage.current.get


def _nothing() -> None:
    """Stand for a reference to what is not there."""


def _thread_name(thread_id: int) -> str | None:
    # Not current_thread(), which makes an object for a thread that is not Python's.
    return next((thread.name for thread in threading.enumerate() if thread.ident == thread_id), None)


def _here(frames: int = 0) -> callsite.Place | None:
    # Past this one, the method that asks, and as many *frames* that called it.
    if conf.captures == "lines":
        return callsite.here(2 + frames)
    return callsite.here_in_full(2 + frames) if conf.captures else None
