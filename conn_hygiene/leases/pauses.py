"""Behind which queries a request pauses, so that it need not wait there for the reaper to notice.

A view that queries, asks another service and queries again pauses behind the same query each time. Found idle, its
connection goes back a grace later, by another thread that has to be woken for it, and nobody has any use of it
meanwhile. So it is counted, for each kind of request, behind which query the grace ran out. Where it did a few times in
a row, the owner itself gives the connection back, at once. It goes on to look: where a pause that was expected does not
come, the reaper is waited for again.
"""

from __future__ import annotations

import time

from conn_hygiene import green
from conn_hygiene.pools.experience import Experience, kind_of_request

#: In how many requests in a row a pause has to have come for the next one to expect it.
SURE = 3

#: In how many more, once it was expected and did not come. To be wrong costs a release and a checkout.
DOUBT = 12

#: Behind how many queries of a request at most.
FARTHEST = 250

#: Seconds of the processor's, and the part of the time, from which on the owner has computed and not paused: whoever
#: computes keeps what it has, see :mod:`.turns`.
COMPUTED, PART = 0.001, 0.1


# What is known outside of any request.
_NOBODYS = Experience()


class Pauses:
    """Those of the request that the owner of one lease works for. Guarded by that lease's lock."""

    __slots__ = (
        "_ahead",
        "_began",
        "_began_at",
        "_computed",
        "_experience",
        "_grace",
        "_missed",
        "_seen",
        "_used_at",
        "at",
        "expected_at",
        "label",
    )

    def __init__(self) -> None:
        #: The label of the request or task; None outside of any, where nothing is learnt.
        self.label: str | None = None
        #: How often the owner has left its connection idle, counted by the lease, and when it is expected to pause; 0
        #: for never.
        self.at = self.expected_at = 0
        # When it is after that, the last first.
        self._ahead: list[int] = []
        # At which of these times a pause has come, or was expected. And of the latter, at which none came.
        self._seen: tuple[int, ...] = ()
        self._missed: tuple[int, ...] = ()
        # Of the last one that was expected: which it was, when it began, how long it is to be at least, and the owner's
        # processor time at its start, None if it is over.
        self._began = 0
        self._began_at = self._grace = 0.0
        self._computed: float | None = None
        # The last time at which the connection was used while it seemed to be idle.
        self._used_at = 0
        # Where it is known what others of its kind have done.
        self._experience = _NOBODYS

    def checked_out(self, label: str | None, asked_at: float, experience: Experience) -> None:
        """Take note that the owner asked for a connection at that time, for a request with that *label*.

        *experience* has what is known of requests of its kind.
        """
        if label is not self.label:
            self.end()
            self.label, self.at, self._used_at, self._experience = label, 0, 0, experience
            if label is not None and (known := experience.pauses_of(kind_of_request(label))):
                self._ahead = sorted((at for at, times in known.items() if times >= SURE), reverse=True)
                self.expect_next()
        elif self._computed is not None:
            self._look_back(asked_at)

    def expect_next(self) -> None:
        """Expect the next one of those that are known."""
        while self._ahead and self._ahead[-1] <= self.at:
            self._ahead.pop()
        self.expected_at = self._ahead.pop() if self._ahead else 0

    def _look_back(self, asked_at: float) -> None:
        """Find whether what was expected was a pause."""
        assert self._computed is not None
        paused = asked_at - self._began_at
        # In the owner's thread, as when it began.
        computed, self._computed = time.thread_time() - self._computed, None
        # Of greenlets, nobody can tell whose it was.
        if paused < self._grace or (computed >= COMPUTED and computed >= paused * PART and green.library() is None):
            self._missed += (self._began,)

    def begin(self, idle_since: float, grace: float) -> None:
        """Take note that the owner gives its connection back, since it is expected to pause for at least the *grace*.

        Called in its thread.
        """
        self._seen += (self.at,)
        self._began, self._began_at, self._grace = self.at, idle_since, grace
        self._computed = time.thread_time()

    def used(self) -> None:
        """Take note that the connection is used past its wrapper: whoever does that is to have all of the grace."""
        self._used_at = self.at

    def came(self) -> None:
        """Take note that the grace has run out."""
        if self.label is not None and self._used_at != self.at <= FARTHEST:
            self._seen += (self.at,)

    def end(self) -> None:
        """Have others of its kind learn from the request, which is over."""
        if self.label is None:
            return
        this = kind_of_request(self.label)
        known = self._experience.pauses_of(this)
        if known or self._seen:
            seen = set(self._seen)
            # What has not come this time is forgotten, unless the request has not come so far.
            learnt = {at: times for at, times in known.items() if at >= self.at or at in seen or times < 0}
            learnt.update((at, min(learnt.get(at, 0) + 1, SURE)) for at in seen)
            learnt.update((at, -DOUBT) for at in self._missed)
            if learnt != known:
                self._experience.learn_pauses(this, learnt)
            self._seen = self._missed = ()
        self.label, self.expected_at, self._computed = None, 0, None
