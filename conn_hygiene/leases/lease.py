"""A lease: one database wrapper's claim on one connection, as its owner uses it.

The life of a lease::

    CLOSED ──checkout──▶ HELD ──falls idle──▶ PARKED ──idle for RELEASE_AFTER──▶ GIVEN_BACK
                          ▲  ◀──next use───────┘                                    │
                          └───────────────────next use checks out again ◀───────────┘

A wrapper is made by Django for one thread (the *owner*), and has one lease for life. The lease is HELD from the owner's
first use of the connection on. When the last open cursor closes or a transaction ends, and nothing else keeps it, it is
PARKED: still with its owner, but the reaper may take it. After ``RELEASE_AFTER`` seconds the reaper does, and the
connection goes back to its pool (or is closed, without one): GIVEN_BACK. The owner itself does if ``RELEASE_AFTER`` is
0, if it is expected to pause now, or if the pool has a queue and the owner's turn is over. Its next use takes a parked
connection back, or checks one out again; it cannot tell the difference.

What keeps a lease from being parked: an open cursor, a transaction in the eyes of Django or of libpq, a pipeline,
commit hooks that have yet to run, a pin, a ``hold_connection`` around, no release scope around, or a wrapper that is
shared between threads.

A lease is one object for speed, and written in layers, each a class that knows those beneath it::

    Lease            here: the owner's checkouts, cursors and transactions
    TimedClaim       timed_claim: when it ends, by graces and turns
    LeavingClaim     leaving_claim: how it ends, and at whose word
    SessionClaim     session_claim: what the owner leaves in the session
    Claim            claim: the attributes, the lock, the books on one checkout

Who writes which attribute, under which lock, and in which order they are read: see :mod:`.invariants`. The order of
all locks: see :mod:`conn_hygiene.locks`. Under the lease's lock it is decided that the connection goes back, and it is
taken out of the lease; what is done with it then, under no lock, is in :mod:`.returns`. So it is with events: one
that is decided under the lock is published after it, since who listens may take any lock.
"""

from __future__ import annotations

import math
import sys
import time
import weakref
from typing import TYPE_CHECKING, Any

from psycopg.pq import TransactionStatus

from conn_hygiene import callsite, conf, locks
from conn_hygiene.events import CheckedOut
from conn_hygiene.leases import backoff, checkouts, cursors, invariants, looks, news, policy, usage
from conn_hygiene.leases.connecting import Connect, Connecting, Incoming
from conn_hygiene.leases.description import Transaction
from conn_hygiene.leases.states import CLOSED, GIVEN_BACK, HELD, PARKED
from conn_hygiene.leases.timed_claim import TimedClaim
from conn_hygiene.pools import base as pools
from conn_hygiene.pools import keeping
from conn_hygiene.sessions import client, effects, state

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

    import psycopg

    from conn_hygiene.leases.returns import Return


_now = time.monotonic


class Lease(TimedClaim):
    """One wrapper's claim on a connection; see the module's documentation."""

    __slots__ = ()

    def read(self, reader: FrameType) -> Any:
        """Return the connection, for *reader*, who reads the wrapper's and finds no :attr:`handle` that is out.

        Taken back if it was parked, checked out again if it was given back; for who only looks a stand-in, and nothing
        changes.
        """
        # Django's own way to a cursor is `use()`; who comes here may be anybody, see `wrapper.ensure_connection()`.
        if self.state == CLOSED and self._connection is None:
            # Where there are many databases, most are closed when Django looks at all, at both ends of each request.
            return None
        if self.state != CLOSED and looks.is_look(reader, self.wrapper()):
            return self.stand_in()
        return self.use()

    def use(self, *, is_allowed: bool = False) -> psycopg.Connection[Any] | None:
        """Return the connection for a use, taken back or checked out again; None if the wrapper is to connect.

        *is_allowed* tells that the wrapper's ``ensure_connection()`` calls, which has refused a thread that runs an
        event loop.
        """
        scopes = _current_scopes()
        # What take() comes to for nearly every query.
        with self._lock:
            connection = self._connection
            if (
                connection is not None
                and self.session_state.parameters is not None
                and (scopes is self._scopes or not scopes)
            ):
                self.state = HELD
                self.handle = connection
                return connection
        if connection is not None:
            if scopes and scopes is not self._scopes:
                self._begin_for(scopes)
            if (connection := self.take()) is not None:
                if self.carried is not None:
                    self._set_again_early()
                return connection
        if self.state != GIVEN_BACK:
            return None
        wrapper: Any = self.wrapper()
        again: psycopg.Connection[Any] | None = wrapper.check_out_again(is_allowed=is_allowed)
        return again

    def _set_again_early(self) -> None:
        """Set up what is being checked out, for a query of a signal handler or a finaliser in the middle of that.

        :raises psycopg.Error: that is not possible.
        """
        carried, connects = self.carried, self._connects
        if carried is None or carried.set_in == self.checkouts:
            return
        if connects is not None and connects.is_checking_out():
            self.set_again()

    def _begin_for(self, scopes: tuple[policy.Entry, ...]) -> None:
        """Use the session in *scopes*, which are others than before; of another request nothing is in it then."""
        request = policy.request_of(scopes)
        if self._is_of_other_than(request):
            self.end_with_other_request()
        with self._lock:
            connection = self._connection
            self._note_scopes(scopes)
            if request is not None and connection is not None and not self._carries(connection):
                self._served = request

    def used_in(self) -> policy.Entry | None:
        """Return the request in which the owner was last seen to use the session, as far as that is known."""
        with self._lock:
            return policy.request_of(self._scopes or ()) or self._served

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
            if self.session_state.parameters is None:
                wrapper = self.wrapper()
                if wrapper is not None and not self._setting_up(wrapper):
                    self.session_state.begin(connection)
            # Read only now, and no call comes after it: a signal handler that has queried may have let go of it.
            connection = self._connection
            if self.state == PARKED:
                self.state = HELD
            # While it is being set up, the next to read must come here, too.
            if connection is not None and self.session_state.parameters is not None:
                # It may be used until the next cursor closes, and nobody will say so.
                self.handle = connection
            return connection

    def assign(
        self,
        connection: psycopg.Connection[Any] | None,
        waited: float | None = None,
        frames: int = 0,
        incoming: Incoming | None = None,
    ) -> None:
        """Take note of what the wrapper's ``connection`` was set to: a new checkout, or None for the end of one.

        *waited* are the seconds that it was waited for; by default, those since :attr:`asked_at`. *frames* is how many
        of the stack's innermost, from the caller's on, are this package's. *incoming* is told when the connection is
        the lease's to give back, or is given back since an exception of a signal handler came before.
        """
        if connection is None:
            self._unassign()
        else:
            incoming = incoming or Incoming()
            try:
                overwritten = self._assign(connection, waited, frames, incoming)
                if overwritten is not None:
                    self.keeper.carry_back(overwritten, here=True)
            except BaseException:
                if not incoming.is_taken:
                    incoming.is_taken = True
                    pools.give_back(connection)
                self.keeper.rescue(self)
                raise
            self.keeper.ensure_running()
        # Who listens may query, and finds the session as it is to be: whoever sets it up publishes what is left here.
        if self._news and not self._is_connecting():
            self.publish_news()

    def _unassign(self) -> None:
        """End the checkout, if there is one: the wrapper's ``connection`` was set to None."""
        with self._lock:
            if self._connection is not None:
                self._end(self._connection, carried=self.carried)
            self.state = CLOSED
            # In the middle of a checkout, it is to be set again in the session of the next try.
            if not self._is_connecting():
                self.carried = None

    def _assign(
        self, connection: psycopg.Connection[Any], waited: float | None, frames: int, incoming: Incoming
    ) -> Return | None:
        """Do the part of :meth:`assign` that is under the lock; return what was overwritten, to be carried back.

        A checkout that is overwritten ends first. Then the lease gets the connection, with a :attr:`server_pid` of 0,
        and *incoming* is told: it cannot be lost from here on, and is not taken out while all else of the checkout is
        noted. The pid says that this is done. Last, the checkout is counted and told of. With the connection that is
        there already, none begins.
        """
        overwritten = None
        with self._lock:
            if connection is self._connection:
                incoming.is_taken = True
                return None
            pool = pools.pool_of(connection)
            if pool is not None:
                client.remember(connection)
            new = state.State(connection)
            if self._connection is not None:
                overwritten = self._end_overwritten(self._connection)
            # From here on without a call, in one line: an exception of a signal handler must not lose it, nor may its
            # query take the session for one that is set up.
            self.checkouts += 1
            self.server_pid = 0
            self.state, self.session_state, self._connection, incoming.is_taken = HELD, new, connection, True
            self._begin()
            # Skip the frames of assign(), and of the *frames* callers of it that are this package's.
            self.checked_out_by = _here(frames + 1)
            if not self.turn.begin(self.checkouts, self.queue):
                # A new burst begins: what the reaper learnt of the pace of the last one does not apply.
                self.backoff.delay = 0.0
            # A pool that had given something out before it was watched has another queue since.
            if (
                pool is None
                or self._pool() is not pool
                or getattr(pool, "_waiting", None) is not self.queue
                or not keeping.is_psycopgs(pool.__class__)
            ):
                self._note_pool(pool)
            scopes = _current_scopes()
            if self.carried is None:
                self._served = policy.request_of(scopes) if scopes else None
            if scopes is not self._scopes or conf.current is not self._settings:
                self._note_scopes(scopes)
            self._checkout_asked_at = self.checked_out_at
            if self.asked_at is not None:
                self._checkout_asked_at = self.asked_at
                if waited is None:
                    waited = self.checked_out_at - self.asked_at
                self.asked_at = None
            if self.pool_keeps:
                self.pauses.checked_out(self._label, self._checkout_asked_at, self._experience)
            request = _current_timing()
            if request is not None:
                if waited is not None:
                    request.waited(waited, self.alias)
                self._join_request()
            # The first query may skip the look at the socket if the connection was used or checked a moment ago.
            self.trusted = checkouts.is_trusted(connection, self.checked_out_at)
            cursors.follow(connection, self)
            self.keeper.checked_out(self)
            # Kept, since a connection that the application has closed no longer tells. All is noted by now.
            self.server_pid = connection.pgconn.backend_pid
            self.tally.checked_out(waited)
            if CheckedOut.listeners:
                self._news += (news.checked_out(self, waited),)
        return overwritten

    def _end_overwritten(self, before: psycopg.Connection[Any]) -> Return | None:
        """End the checkout of *before*, under the lock; return it to be given back if nobody else will do that.

        A logging handler that queries while a connection is checked out gets one first, which Django then forgets.
        Whoever has read the handle may have kept it, to put it back later.
        """
        if self.open_cursors or self._handle_is_out() or not (self.pooled and pools.is_idle(before)):
            self._end(before, carried=self.carried)
            return None
        return self._leave()

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

    def begin_use(self) -> None:
        """Take note that the connection is in use from now on, when its first cursor is opened. Owner only."""
        self.in_use_since = _now()
        if self._timing is not None or _current_timing() is not None:
            with self._lock:
                self._join_request()
                if self._timing is not None:
                    self._timing.change(self, used=1)

    def _note_scopes(self, scopes: tuple[policy.Entry, ...]) -> None:
        """Compute and remember what *scopes* and the settings want for this alias. Under the lock, by the owner.

        The answer holds for as long as both are the same objects, but for a hold: the entry of a ``hold_connection``
        stays in a task's tuple after its end. So a hold is never remembered (``_scopes`` is None), and asked for anew.
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
        with self._lock:
            if self.take() is None:
                return self.state == GIVEN_BACK
            # As if a cursor were open: a query of a signal handler lets go of nothing while the server is asked.
            listed = self.open_cursors
            listed[look] = None
        try:
            return look()
        finally:
            listed.pop(look, None)
            if not was_out:
                self.settle(handle_is_out=False)

    def carries_state(self) -> bool:
        """Return whether the owner has left anything in the session, or may have. Owner only, outside of transactions.

        May ask the server what its functions leave there.
        """
        self._see_unseen_state()
        with self._lock:
            # Given back, it leaves what is to be set again in the next.
            return self.carried is not None if self._connection is None else self._carries(self._connection)

    def end_with_other_request(self) -> None:
        """Give back, cleaned, a session in which another request has left something. Owner only.

        May ask the server what its functions leave there.
        """
        self._see_unseen_state()
        self._let_go(self._leave_with_other_request, here=True)
        with self._lock:
            self.carried = self._served = None

    def _see_unseen_state(self) -> None:
        """Ask the server what its functions leave in sessions, if that is not known and matters here. Owner only.

        It may be parked, and is the owner's while it is asked: whoever gets it next may begin a transaction at once.
        """
        if self.may_have_unseen_state() and not (self.open_cursors or self.in_transaction()):
            self.looked_at(self._ask_what_functions_leave)

    def _ask_what_functions_leave(self) -> bool:
        connection = self._connection
        if connection is not None and pools.is_idle(connection):
            self._ask_catalogue(connection)
        return True

    def settle(self, *, handle_is_out: bool | None = None) -> None:
        """Park the connection, or give it back at once, if nothing keeps it. Only the owner may call this.

        *handle_is_out* tells whether somebody may be about to use a handle that was read; by default, whether one was
        read since the last cursor closed.
        """
        with self._lock:
            if self._connection is None:
                return
            if self._is_connecting():
                # It is kept in any case until it is set up. Who has used its handle by now is done with it.
                if handle_is_out is False:
                    self.handle = None
                return
            if handle_is_out is None:
                handle_is_out = self._handle_is_out()
            if handle_is_out:
                self._note_scopes(_current_scopes())
                return
            # As if it had been for a cursor, which ends now.
            self.open_cursors[self] = None
        self.cursor_closed(self)

    def cursor_closed(self, cursor: object, *, by_owner: bool = True) -> None:
        """Forget *cursor*, one of :attr:`open_cursors`, and let the connection go if it was the last thing to keep it.

        What comes of it, in the order in which it is asked:

        1. Inside of an ``atomic()`` that was seen to begin: the time is noted, under no lock.
        2. The cursor is of an earlier checkout or was closed before, another one is open, or there is no connection any
           more: nothing.
        3. A transaction runs: it is noted if nobody saw it begin. Or a statement does, which a signal handler has
           interrupted.
        4. No scope wants a release, or something keeps the connection, see :meth:`_kept`: it stays HELD.
        5. The grace is 0, or there is one and the owner is expected to pause now: the connection is taken out of the
           lease, and carried back when the lock is let go. It stays HELD if it is broken, if it is pinned by what is
           found in its session, or in the middle of its checkout, where a signal handler has queried.
        6. There is another grace: it is PARKED, with a deadline for the reaper unless that is about to look in any
           case. If others wait and the owner has had its turn, the deadline is now, and the lease ends here.
        7. The grace is None, for ever: it is PARKED if it is a pool's, for whoever may come to wait for it; else HELD.

        *by_owner* is False where the reaper calls this, for a cursor that was collected, or closed in another thread.
        Nothing comes of it then while the owner has the handle; and the scopes, which are the owner's, are not looked
        at.

        In one piece, and asking what mostly decides before it calls anybody, since it ends every query.
        """
        wrapper = self.wrapper()
        if self._transaction is not None and by_owner and wrapper is not None and wrapper.in_atomic_block:
            # Nothing can end before the transaction does. The time comes first, for the reaper, which may be looking.
            self.idle_since = _now()
            self.open_cursors.pop(cursor, None)
            return
        # When the reaper is to look, on the monotonic clock; and what _end_idle() has returned: the Return or None, and
        # what keeps the connection.
        deadline = ended = None
        try:
            with self._lock:
                # Closed already, or of an earlier checkout, whose list was another one?
                if self.open_cursors.pop(cursor, self) is self:
                    return
                if by_owner:
                    self.handle = None
                    scopes = _current_scopes()
                    if scopes is not self._scopes or conf.current is not self._settings:
                        self._note_scopes(scopes)
                elif self._handle_is_out():
                    # The owner has read the handle a moment ago, and is about to use it.
                    return
                now = _now()
                # Read only now: a signal handler that ran in a call above may have queried, and swapped it.
                connection = self._connection
                if self.open_cursors or wrapper is None or connection is None:
                    return
                self.idle_since = now
                pgconn = connection.pgconn
                if (
                    wrapper.in_atomic_block
                    or not wrapper.autocommit
                    or pgconn.transaction_status != _IDLE
                    or pgconn.pipeline_status
                ) and self._in_transaction(wrapper):
                    if self._transaction is None and not self.runs_by_itself(wrapper):
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
                    grace = conf.current.RELEASE_AFTER if self.pool_keeps else self._grace()
                    pauses = self.pauses
                    pauses.at += 1
                    is_expected = pauses.at == pauses.expected_at
                    if grace and not (is_expected and self._may_pause(by_owner=by_owner)):
                        self.state = PARKED
                        if self.queue:
                            deadline = self._haste(now, grace)
                        elif self.look_at == _NEVER:
                            is_scarce = self.pool_keeps and not self.spare
                            deadline = backoff.leisure(now, grace, is_scarce=is_scarce)
                        # Else the reaper is about to look in any case.
                    elif grace is not None and pgconn.transaction_status == _IDLE and self.server_pid:
                        # A broken connection stays with its owner, whose next query reports it. And server_pid is 0 in
                        # the middle of a checkout, where a signal handler may query: that one is not ready to go back.
                        ended = self._end_idle(connection)
                        if grace and ended[0] is not None:
                            pauses.begin(now, grace)
                            # If its session has to be cleaned, a worker does that while the owner pauses.
                            by_owner = not ended[0].asks_session
                    elif grace is None and self.pooled:
                        # Grace None is for ever; parked all the same, for whoever may come to wait for it.
                        self.state = PARKED
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

    def transaction_began(self, opener: CodeType | None, *, by_atomic_requests: bool) -> None:
        """Remember when and where ``atomic()`` or ``set_autocommit(False)`` began, for reports. Owner only."""
        self.boundaries += 1
        with self._lock:
            set_before = frozenset(self.session_state.follows)
            self._transaction = Transaction(_now(), _here(), by_atomic_requests, opener, set_before)

    def transaction_ended(self) -> None:
        """Settle after a commit or a rollback, but for that of ``atomic()``: autocommit follows. Owner only."""
        self.boundaries += 1
        wrapper = self.wrapper()
        if wrapper is not None and (wrapper.autocommit or self._manual):
            self.settle(handle_is_out=False)

    def _after_settling(self, deadline: float, *, by_owner: bool) -> None:
        """Leave a parked lease to the reaper, or end it here and now if that is the time. Called without the lock."""
        if deadline <= self.idle_since:
            # Whoever waited may have been served by somebody else meanwhile.
            again = self.end_if_parked(deadline, here=by_owner)
            if again is None:
                return
            deadline = again
        self.keeper.parked(self, deadline)

    def share(self) -> psycopg.Connection[Any] | None:
        """Return the connection for somebody who will use it past the lease, which therefore keeps it."""
        self._pin(effects.Effect(frozenset({effects.SHARED}), frozenset()))
        return self.take()

    def reconsider(self) -> None:
        """Settle anew, since a scope began or ended. Only the owner may call this.

        Where no scope wants it released any more, a parked connection without a pool is its owner's to keep, as
        ``CONN_MAX_AGE`` says. One with a pool may go back all the same.
        """
        if policy.releases(self.alias):
            self.settle()
            return
        with self._lock:
            self._note_scopes(_current_scopes())
            if self.state == PARKED and not self.pooled:
                self.state = HELD


if locks.DEBUG:
    Lease.__setattr__ = invariants.checked_write  # type: ignore[assignment, method-assign]


# For what runs at every query: each saves a look-up or a call.
_IDLE = TransactionStatus.IDLE
_RELEASE = policy.RELEASE
_NEVER = math.inf
_current_scopes = policy.entered.get
_current_timing = usage.current.get


def _here(frames: int = 0) -> callsite.Place | None:
    # Past this one, the method that asks, and as many *frames* that called it.
    if conf.captures == "lines":
        return callsite.here(2 + frames)
    return callsite.here_in_full(2 + frames) if conf.captures else None
