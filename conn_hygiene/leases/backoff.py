"""When the reaper looks at a parked lease: as seldom as it may where nobody waits, less often during a long burst.

Each look takes the GIL from a thread that works.
"""

from __future__ import annotations

#: Seconds after which the reaper looks at the latest, if nobody waits and the grace is no longer.
MAX_DELAY = 0.01

#: Seconds by which the reaper may be late if somebody does wait, so that it need not wake for each lease by itself.
SLACK = 0.003


class Backoff:
    """For how long the reaper lets the owner go on at a stretch. Guarded by the lock of the lease that has it."""

    __slots__ = ("_seen", "delay")

    def __init__(self) -> None:
        #: Seconds until the next look; 0 if the owner was not in a burst at the last one.
        self.delay = 0.0
        # Since when the owner was idle at the last look.
        self._seen = 0.0

    def looked(self, idle_since: float, grace: float) -> bool:
        """Take note of a look at the owner, idle since *idle_since*; return whether it has queried since the last look.

        If so, it is in a burst, and the delay until the next look doubles; else there is none. So an owner is left
        alone for as long again as its burst has lasted, up to :data:`MAX_DELAY`: to look more often would cost it more
        than its connection is worth to anybody.
        """
        in_burst = idle_since != self._seen
        self._seen = idle_since
        self.delay = min(2 * self.delay or grace, max(grace, MAX_DELAY)) if in_burst else 0.0
        return in_burst


def leisure(now: float, grace: float, *, is_scarce: bool) -> float:
    """Return when to look at a lease that is parked *now*, and that nobody waits for.

    :param is_scarce: the pool has no connection left. The look must not be late then: whoever asks such a pool for one
        ends the leases that are due itself, but a thread that has never had a connection cannot.
    """
    if is_scarce:
        return now + grace + SLACK
    # At one of few moments, so that one look serves many.
    return now + grace if grace > MAX_DELAY else (now // MAX_DELAY + 2) * MAX_DELAY
