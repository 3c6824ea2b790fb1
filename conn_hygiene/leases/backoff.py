"""When the reaper looks at a lease: seldom where nobody waits, and late where the owner goes on and on."""

from __future__ import annotations

#: Seconds for which the reaper leaves an owner in a burst alone at most, and which it takes if a pool has nothing left.
PATIENCE = 0.01

#: Seconds that it takes if the pool has more, since nobody can be kept waiting then. Who comes when there is nothing
#: left any more ends what is due by itself.
LEISURE = 0.1

#: Seconds from one of its wake-ups to the next but one, at least, be there ever so many leases that somebody waits for.
#: In a crowd, most are ended by their owners or by who wants them, and nothing is left to do when it comes.
REST = 0.015

#: Seconds by which the reaper may be late if somebody does wait, so that it need not be woken for each lease by itself.
SLACK = 0.003

#: Seconds for which an owner in a burst of queries has the connection, at least, if somebody waits for one. Much less
#: costs bursts as much as no grace at all, and more keeps others waiting for little.
TURN = 0.005


class Backoff:
    """For how long the reaper lets the owner go on at a stretch. Guarded by the lock of the lease that has it."""

    __slots__ = ("_seen", "patience")

    def __init__(self) -> None:
        #: Seconds; 0 if the owner was not in a burst when it was last looked at.
        self.patience = 0.0
        # Since when the owner was idle then.
        self._seen = 0.0

    def reset(self) -> None:
        """Forget the burst before: another checkout begins."""
        self.patience = 0.0

    def is_in_burst(self, idle_since: float, grace: float) -> bool:
        """Return whether the owner has queried since the last look, and be more patient if it has.

        It is left alone for as long again as its burst has lasted, up to a limit: to look more often would cost it more
        than its connection is worth to anybody.
        """
        in_burst = idle_since != self._seen
        self._seen = idle_since
        self.patience = min(2 * self.patience or grace, max(grace, PATIENCE)) if in_burst else 0.0
        return in_burst


def leisure(now: float, grace: float, *, is_scarce: bool) -> float:
    """Return when to look at a lease that is parked *now*, and that nobody waits for.

    Whoever comes by Django to a pool that has nothing left ends what is due; others that it may have cannot, and the
    reaper must. *is_scarce* tells that the pool has nothing left.
    """
    # At one of few moments, so that one look serves many.
    between = PATIENCE if is_scarce else LEISURE
    return now + grace if grace > between else (now // between + 2) * between
