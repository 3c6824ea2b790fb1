"""When the reaper looks at a lease: seldom where nobody waits, and late where the owner goes on and on."""

from __future__ import annotations

#: Seconds after which the reaper looks at the latest, if nobody waits and the grace is no longer.
MAX_DELAY = 0.01

#: Seconds by which the reaper may be late if somebody does wait, so that it need not wake for each lease by itself.
SLACK = 0.003


class Backoff:
    """For how long the reaper lets the owner go on at a stretch. Guarded by the lock of the lease that has it."""

    __slots__ = ("_seen", "patience")

    def __init__(self) -> None:
        #: Seconds; 0 if the owner was not in a burst when it was last looked at.
        self.patience = 0.0
        # Since when the owner was idle then.
        self._seen = 0.0

    def is_in_burst(self, idle_since: float, grace: float) -> bool:
        """Return whether the owner has queried since the last look, and be more patient if it has.

        It is left alone for as long again as its burst has lasted, up to a limit: to look more often would cost it more
        than its connection is worth to anybody.
        """
        in_burst = idle_since != self._seen
        self._seen = idle_since
        self.patience = min(2 * self.patience or grace, max(grace, MAX_DELAY)) if in_burst else 0.0
        return in_burst


def leisure(now: float, grace: float, *, is_scarce: bool) -> float:
    """Return when to look at a lease that is parked *now*, and that nobody waits for.

    Whoever comes to a pool that has nothing left ends what is due; if that is a thread's first query ever, it cannot,
    and the reaper must. *is_scarce* tells that the pool has nothing left.
    """
    if is_scarce:
        return now + grace + SLACK
    # At one of few moments, so that one look serves many.
    return now + grace if grace > MAX_DELAY else (now // MAX_DELAY + 2) * MAX_DELAY
