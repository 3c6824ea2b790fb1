"""How a connection leaves its owner: on the owner's word, on the reaper's, or since it was good for nothing.

A layer of a lease, see :mod:`.lease`. Under the lock the connection is taken out of the lease, as a
:class:`~.returns.Return`; the keeper carries that back under no lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conn_hygiene import callsite, conf, internals
from conn_hygiene.leases import cursors, news, policy
from conn_hygiene.leases.returns import Return
from conn_hygiene.leases.session_claim import SessionClaim
from conn_hygiene.leases.states import GIVEN_BACK, HELD, PARKED
from conn_hygiene.pools import backends
from conn_hygiene.sessions import effects, known, state
from conn_hygiene.sessions.following import Carried
from conn_hygiene.sessions.plan import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from conn_hygiene.events import Ending, Reclaimed


class LeavingClaim(SessionClaim):
    """A claim that can be ended, if nothing keeps it. Who asks for what is in each method's name."""

    __slots__ = ()

    def _end_idle(self, connection: psycopg.Connection[Any]) -> tuple[Return | None, list[str]]:
        """Take out, under the lock, what is idle and to be given back; return it, or what keeps it."""
        reported = state.reported_parameters(connection)
        if self._leaves_nothing(connection, reported):
            # What all that follows comes to for nearly every session.
            fresh = self.session_state.fresh
            return self._take_out(Return(self, self.alias, connection, plan=NOTHING, fresh=fresh, is_as_given=True)), []
        changed = self._note_changes(connection, reported)
        if not changed:
            return self._leave(reported, of=connection), []
        if self._connection is not connection:
            # A signal handler has been faster.
            return None, []
        self.state = HELD
        reason = f"a change of {', '.join(changed)}"
        self.session_state.pins[reason] = callsite.UNKNOWN
        return None, [reason]

    def _leave(
        self,
        reported: tuple[bytes | None, ...] | None = None,
        *,
        of: psycopg.Connection[Any] | None = None,
        is_rolled_back: bool = False,
        reason: Ending = "release",
    ) -> Return | None:
        """Take the connection out of the lease, under the lock, for it to be carried back outside of it.

        None if a signal handler has been faster, in between.

        *reported* are its session's parameters, if they have just been looked at; those *of* which connection.
        """
        connection = self._connection
        if connection is None or (of is not None and of is not connection):
            return None
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
        # Now that it is nobody else's: one that a signal handler has given back may be another thread's by now.
        cursors.retire(returning.connection)
        # Published when it is where it belongs.
        returning.news, self._news = self._news, ()
        returning.is_complete = True
        return returning

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
        if self._is_read() or self._in_transaction(wrapper) or self._kept(wrapper):
            return None
        if self._note_changes(self._connection):
            return None
        return self._leave()

    def _is_read(self) -> bool:
        """Return whether a cursor is open; forget those that were collected. Owner only.

        The reaper was told of them, and may not have got to it. It reports them all the same.
        """
        if self.open_cursors:
            cursors.forget_collected(self.open_cursors)
        return bool(self.open_cursors)

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
        if effects.SETTING in self.session_state.pins and backends.has_own_close(wrapper.__class__):
            return None
        if self._is_read() or self._in_transaction(wrapper) or wrapper.run_on_commit:
            return None
        return self._leave()

    def serves(self) -> bool:
        """Return whether the state of the session is that of a request whose end nobody has told. Owner only."""
        return self._served is not None

    def _leave_with_other_request(self) -> Return | None:
        wrapper, connection = self.wrapper(), self._connection
        if wrapper is None or connection is None or self._is_read() or self._in_transaction(wrapper):
            return None
        if self._setting_up(wrapper):
            return None
        # Hooks and threads that share the wrapper need it as it is; neither is state of the session.
        if wrapper.run_on_commit or wrapper._thread_sharing_count:  # type: ignore[attr-defined]
            return None
        if self._carries(connection) or self.may_have_unseen_state():
            return self._leave(reason="close")
        return None

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
        if returning is not None:
            self.carried = carried
        return returning

    def reclaim(self) -> tuple[Return, Reclaimed | None] | None:
        """Take the connection from an owner that is no more; return it, with what was found. Called by the reaper.

        None if there was nothing to take. What is open is rolled back on the way: nobody is left who could commit it.
        """
        with self._lock:
            wrapper, connection = self.wrapper(), self._connection
            # Shared with other threads, which may be in the middle of something.
            if connection is None or (wrapper is not None and wrapper.allow_thread_sharing):
                return None
            # A parked connection was about to go back anyway: a dead owner is nothing to report.
            found = news.reclaimed(self, connection) if self.state != PARKED else None
            if self._handle_is_out():
                # Whoever has got the handle may go on with it, and must not share the session with its next owner.
                connection.pgconn.finish()
            if found is None:
                returning = self._leave()
            else:
                is_rolled_back = found.in_transaction and not connection.closed
                returning = self._leave(is_rolled_back=is_rolled_back, reason="reclaim")
            return (returning, found) if returning is not None else None

    def give_back_if_abandoned(self) -> bool:
        """Give a connection with a pool back that its owner has held too long, and return whether it was.

        Only if a scope asks for it, or if the thread has nothing to do: to code that runs, and that nobody has told of
        releases, state may matter that cannot be seen. Called by the reaper.
        """
        return self.pooled and self._let_go(self._leave_if_abandoned, here=False)

    def give_back_on_demand(self, idle_since: float) -> bool:
        """Give a connection with a pool back that somebody waits for; return whether it was.

        By the rules of :meth:`give_back_if_abandoned`, and only if the owner has not used it since *idle_since*, and
        for no request. Called by the reaper.
        """

        def leave() -> Return | None:
            if not self.pooled or self.idle_since > idle_since or self.request is not None:
                return None
            return self._leave_if_abandoned()

        return self._let_go(leave, here=False)

    def give_back_if_too_old(self, now: float) -> bool:
        """Close a connection without a pool that is past its age; return whether it was.

        By the rules of :meth:`give_back_if_abandoned`, but that no release scope asks for it, and for no request.
        After a request, Django would do so when the next one begins; the owner calls its backend's ``close()`` then.
        Where the thread has served none, it is a release: what follows the owner follows. Called by the reaper.
        """

        def leave() -> Return | None:
            close_at = self.close_at()
            if close_at is None or now < close_at or self.request is not None:
                return None
            # An age takes connections from threads at rest only; a release scope around code that runs does not count.
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
        if self._in_transaction(wrapper) or self._kept(wrapper) or self._note_changes(connection):
            return None
        if not (scopes_count and self._wish == policy.RELEASE) and not callsite.is_at_rest(self.thread_id):
            return None
        return self._leave(reason=reason)
