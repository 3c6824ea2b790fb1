"""Behind which queries a request pauses, so that it need not wait there for the reaper to notice.

A view that queries, asks another service and queries again pauses behind the same query each time. Found idle, its
connection goes back a grace later, by another thread that has to be woken for it, and nobody has any use of it
meanwhile. So it is counted, for each kind of request, behind which query the grace ran out. Where it did a few times in
a row, the owner itself gives the connection back, at once. It goes on to look: where a pause that was expected does not
come, the reaper is waited for again.
"""

from __future__ import annotations

import time

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


class Pauses:
    """Those of the request that the owner of one lease works for. Guarded by that lease's lock."""

    __slots__ = (
        "_ahead",
        "_at",
        "_computed",
        "_experience",
        "_grace",
        "_label",
        "_missed",
        "_next",
        "_parked_at",
        "_seen",
    )

    def __init__(self) -> None:
        self._experience = Experience()
        self._begin(None)

    def _begin(self, label: str | None) -> None:
        # The label of the request or task; None outside of any, where nothing is counted.
        self._label = label
        # How often the connection was idle so far, and since when it is.
        self._at = 0
        self._parked_at = 0.0
        # At which of these times a pause has come, or was expected. And of the latter, at which none came.
        self._seen: tuple[int, ...] = ()
        self._missed: tuple[int, ...] = ()
        # The owner's processor time when the last one that was expected began, and how long that is to be at least;
        # None if it is over.
        self._computed: float | None = None
        self._grace = 0.0
        # When the next one is expected, 0 for never, and those after it, the last first.
        self._next = 0
        self._ahead: list[int] = []

    def checked_out(self, label: str | None, asked_at: float, experience: Experience) -> None:
        """Take note that the owner asked for a connection at that time, for a request with that *label*.

        *experience* has what is known of requests of its kind.
        """
        if label is not self._label:
            self.end()
            self._begin(label)
            self._experience = experience
            if label is not None and (known := experience.pauses_of(kind_of_request(label))):
                self._ahead = sorted((at for at, times in known.items() if times >= SURE), reverse=True)
                self._expect_next()
        elif self._computed is not None:
            self._look_back(asked_at)

    def _expect_next(self) -> None:
        self._next = self._ahead.pop() if self._ahead else 0

    def _look_back(self, asked_at: float) -> None:
        """Find whether what was expected was a pause."""
        assert self._computed is not None
        paused = asked_at - self._parked_at
        # In the owner's thread, as when it began.
        computed, self._computed = time.thread_time() - self._computed, None
        if paused < self._grace or (computed >= COMPUTED and computed >= paused * PART):
            self._missed += (self._at,)

    def is_expected(self, idle_since: float, grace: float) -> bool:
        """Count that the owner has left its connection idle, and return whether it is expected to pause now.

        For at least the *grace*, that is.
        """
        self._at += 1
        self._parked_at = idle_since
        if self._at != self._next:
            return False
        self._seen += (self._at,)
        self._computed, self._grace = time.thread_time(), grace
        self._expect_next()
        return True

    def came(self, idle_since: float) -> None:
        """Take note that the grace has run out for a connection that is idle since then."""
        # Not if it was used past the wrapper meanwhile: whoever does that is to have all of its grace.
        if self._label is not None and idle_since == self._parked_at and self._at <= FARTHEST:
            self._seen += (self._at,)

    def end(self) -> None:
        """Have others of its kind learn from the request, which is over."""
        if self._label is None:
            return
        this = kind_of_request(self._label)
        known = self._experience.pauses_of(this)
        if known or self._seen:
            # What has not come this time is forgotten, but for what was left behind.
            learnt = {at: times for at, times in known.items() if at >= self._at or at in self._seen or times < 0}
            learnt.update((at, min(learnt.get(at, 0) + 1, SURE)) for at in self._seen)
            learnt.update((at, -DOUBT) for at in self._missed)
            self._experience.learn_pauses(this, learnt)
        self._label, self._next = None, 0
