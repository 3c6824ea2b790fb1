"""When a parked connection leaves: at the end of its grace, or of its owner's turn if somebody waits.

A layer of a lease, see :mod:`.lease`. Whoever looks, be it the reaper, the owner or a thread that needs a connection,
is told when to look again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from conn_hygiene import conf
from conn_hygiene.leases import turns
from conn_hygiene.leases.leaving_claim import LeavingClaim
from conn_hygiene.leases.states import GIVEN_BACK, HELD, PARKED
from conn_hygiene.pools import base as pools
from conn_hygiene.pools import keeping

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from conn_hygiene.leases.returns import Return


class TimedClaim(LeavingClaim):
    """A claim that ends when its time has come, or when somebody else's has."""

    __slots__ = ()

    def _grace(self, *, is_wanted: bool = False) -> float | None:
        """Return for how many seconds the connection may sit idle; None for ever.

        *is_wanted* tells that somebody is about to ask its pool for one. A pool that keeps nothing hands it to whoever
        waits.
        """
        if not self.pool_keeps and not self.queue:
            connection = self._connection
            if not is_wanted or connection is None or not keeping.is_full(pools.pool_of(connection)):
                return conf.current.UNPOOLED_RELEASE_AFTER
        return conf.current.RELEASE_AFTER

    def _due(self, *, is_wanted: bool = False) -> float | None:
        """Return when a parked lease may end; None for never."""
        grace = self._grace(is_wanted=is_wanted)
        if grace is None:
            return None
        # Whoever is about to wait is not in the queue yet, and may not have to: the pool may grow.
        if self.queue and self._has_had_its_turn():
            return self.idle_since
        return self.idle_since + grace

    def _has_had_its_turn(self) -> bool:
        """Return whether the owner has had the connection for so long that whoever waits for one comes first."""
        had = self.idle_since - self.checked_out_at
        return self.turn.is_over(self.checkouts, self._checkout_asked_at, had, self.queue)

    def place_of_next(self, now: float) -> float | None:
        """Have the next checkout go on with the burst of the last one, and return its place in the pool's queue.

        None if it is about something else. Owner only.
        """
        if self.state != GIVEN_BACK or now >= self.idle_since + turns.BREAK:
            return None
        if self.turn.is_over_with(self.checkouts):
            return None
        had = self.idle_since - self.checked_out_at
        with self._lock:
            return self.turn.go_on(self.checkouts, self._checkout_asked_at, had, now, self._experience)

    def comes_anew(self) -> None:
        """Have the next checkout be about something else than the last: another request, say. Owner only."""
        # Else there is nothing to go on with, as at the start of nearly every request.
        if self.state == GIVEN_BACK:
            with self._lock:
                self.turn.end_with(self.checkouts)

    def request_is_over(self) -> None:
        """Have others learn from the request or task that the owner worked for. Owner only."""
        if self.pauses.label is not None or self._served is not None:
            with self._lock:
                self._served = None
                if self.pauses.label is not None:
                    self.pauses.end()

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
        if self.look_at != math.inf and (self.backoff.delay or self.look_at <= deadline):
            return None
        return deadline

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

    def _next_look(self, now: float, due: float) -> float | None:
        """Return when the reaper should look again at what may end at *due*; None for when it is parked next."""
        if self.backoff.looked(self.idle_since, self._grace() or 0.0):
            return max(due, now + self.backoff.delay)
        return due if self.state == PARKED else None

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
                return None if self.backoff.delay else due, None, []
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
