"""How long an owner may keep a connection while others wait for one (its *turn*).

An owner in a burst of queries gives its connection back when its turn is over, so that a request with a single short
query need not wait for all of a long burst. The owner's next query then waits in the pool's queue, behind bursts that
are older than its own: few bursts are under way at a time, and each comes to an end. An owner that computes between its
queries keeps the connection longer: whoever got it would only wait for the GIL, which the owner's thread holds.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from conn_hygiene import green
from conn_hygiene.pools import queues

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conn_hygiene.pools.experience import Experience

#: Seconds for which an owner in a burst of queries has the connection, at least, if somebody waits for one. Much less
#: costs bursts as much as no grace at all, and more keeps others waiting for little.
TURN = 0.005

#: Seconds for which it has it in all, if all who wait have begun after it: a switch to them serves nobody sooner.
LONG_TURN = 0.5

#: Seconds after which whoever comes back has been about something else, and comes anew.
BREAK = 0.05

#: Seconds for which an owner may go without a query while it computes.
COMPUTING = 0.05

#: Seconds of the processor's that an owner has to have had between two looks to be computing.
COMPUTED = 0.0005

#: Seconds from one such look to the next: within these, each of few threads gets the interpreter's lock.
LOOK_AGAIN = 0.005

# Where Python has such a clock, as nearly all systems but macOS and Windows do.
_clock_of = getattr(time, "pthread_getcpuclockid", None)

_is_gil_enabled = getattr(sys, "_is_gil_enabled", lambda: True)


class Turn:
    """What one owner has had, from one checkout to the next.

    A burst may be of several checkouts: when its turn is over it lets go, and comes back. Each has its place, that of
    the time at which the first of them was asked for. Guarded by the lock of the lease that has it.
    """

    __slots__ = (
        "_checkout",
        "_clock",
        "_computed",
        "_has_computed",
        "_idle_since",
        "_kind",
        "_looked_at",
        "_over_with",
        "_place",
        "_told_of",
        "_used",
    )

    def __init__(self) -> None:
        # The number of the last checkout that went on with an earlier one's burst; the place of that, and the seconds
        # that the earlier ones had.
        self._checkout = 0
        self._place = 0.0
        self._used = 0.0
        # The number of a checkout that nothing goes on with.
        self._over_with = 0
        # The number of the last checkout that others have learnt of, and its kind.
        self._told_of = 0
        self._kind: object = None
        # Since when the owner was idle when its processor time was looked at, what that was, and by which clock.
        self._idle_since = 0.0
        self._computed = 0.0
        self._clock = 0
        # When that was last compared, and what came of it.
        self._looked_at = 0.0
        self._has_computed = False

    def went_on(self, checkout: int) -> bool:
        """Return whether the burst of a *checkout* began with an earlier one."""
        return self._checkout == checkout

    def begin(self, checkout: int, queue: Sequence[Any]) -> bool:
        """Take note that *checkout* begins; return whether it goes on with an earlier one's burst.

        It does if it was announced by :meth:`go_on`, and has asked for its connection by the burst's place in *queue*.
        Without that place it is about something else: the checkout that was announced has failed.
        """
        if not self.went_on(checkout):
            return False
        if queues.place_in(queue) is not None:
            return True
        self.end_with(checkout - 1)
        return False

    def go_on(self, checkout: int, place: float, had: float, now: float, others: Experience) -> float:
        """Have the next checkout be of the burst of *checkout*, which *had* a connection so long; return its place.

        *place* is that of *checkout*, if the burst began with it; then, *others* learn that it goes on, if they have
        learnt of that one. May be called again, by who tries again.
        """
        if self.went_on(checkout + 1):
            return self._place
        if not self.went_on(checkout):
            self._place, self._used = place, 0.0
            if self._told_of == checkout:
                others.came_back(self._kind)
        self._used += had
        if self._used >= LONG_TURN:
            # Behind all who are there.
            self._place, self._used = now, 0.0
        self._checkout = checkout + 1
        return self._place

    def tell(self, checkout: int, kind: object, held: float, others: Experience) -> None:
        """Have *others* learn for how long *checkout* held a connection that they waited for, if it came anew.

        *kind* is what it has in common with those that want as much.
        """
        if not self.went_on(checkout):
            self._told_of, self._kind = checkout, kind
            others.note_held(held, kind)

    def is_over(self, checkout: int, place: float, had: float, queue: Sequence[Any]) -> bool:
        """Return whether *checkout*, which *had* a connection so long, is to end for whoever waits in *queue*."""
        if had < TURN:
            return False
        before = 0.0
        if self.went_on(checkout):
            place, before = self._place, self._used
        return before + had >= LONG_TURN or queues.is_ahead(queue, place)

    def is_over_with(self, checkout: int) -> bool:
        """Return whether whatever comes after *checkout* is about something else."""
        return self._over_with == checkout

    def end_with(self, checkout: int) -> None:
        """Have whatever comes after *checkout* be about something else."""
        self._over_with, self._checkout = checkout, 0

    # ##### Whether the owner computes #####

    def note(self, idle_since: float, owner: int) -> None:
        """Note how long the running thread has computed until *idle_since*, which is now, if it is the *owner*.

        Not without the interpreter's lock: then, others run meanwhile. Nor of greenlets: one thread has all of them,
        and their numbers are no threads', which the system's library would take for one.
        """
        me = threading.get_ident()
        if _clock_of is None or me != owner or not _is_gil_enabled() or green.library() is not None:
            return
        self._idle_since, self._looked_at, self._clock = idle_since, 0.0, _clock_of(me)
        self._computed = time.thread_time()

    def computes(self, idle_since: float, now: float) -> bool:
        """Return whether the owner, idle since then, has computed since the last look at its clock, or :meth:`note`.

        Within :data:`LOOK_AGAIN` of a look its answer stands: while many ask, the owner has not had the interpreter's
        lock.
        """
        if self._idle_since != idle_since or now - idle_since >= COMPUTING:
            return False
        if now - self._looked_at < LOOK_AGAIN:
            return self._has_computed
        self._looked_at = now
        try:
            computed = time.clock_gettime(self._clock)
        except OSError:
            # The thread has ended.
            computed = self._computed
        self._has_computed = computed - self._computed >= COMPUTED
        self._computed = computed
        return self._has_computed
