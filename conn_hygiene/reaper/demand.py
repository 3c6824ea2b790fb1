"""What threads at rest hold, for those who wait for it: connections of a pool that has nothing left.

A thread of an executor that waits for its next job keeps the connection of its last one. Nobody may take that from it
at once: to code that nobody has told of releases, state may matter that cannot be seen. But who waits in the pool's
queue fails in the end, so what has been at rest for a moment goes to them; see :data:`REST` and
:meth:`.Lease.give_back_on_demand`.

Who may touch what: ``_demands`` is written by the timer's thread alone and read by any; ``asked_at`` of each is written
by any. What is lost in between is found by the next look at all leases.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from conn_hygiene.leases import policy
from conn_hygiene.pools import base as pools
from conn_hygiene.pools import sqlalchemy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from conn_hygiene.leases.lease import Lease

#: Seconds for which a connection has been idle, and its thread at rest, before somebody else gets it; half of what the
#: pool lets anybody wait, if that is less.
REST = 1.0

# How often a demand is looked at, as a part of that.
_LOOKS = 10


class _Demand:
    """Somebody has come to the pool of this queue when it had nothing left."""

    __slots__ = ("asked_at", "look_at", "queue", "rest", "spare")

    def __init__(self, queue: Sequence[Any], spare: Sequence[Any], rest: float, now: float) -> None:
        # The live lists of the pool, which are its identity here.
        self.queue = queue
        self.spare = spare
        self.rest = rest
        self.asked_at = now
        # Whoever has come is about to be in the queue.
        self.look_at = now + rest / _LOOKS


class Demands:
    """The pools of this process that somebody waits for."""

    def __init__(self) -> None:
        self._demands: dict[int, _Demand] = {}

    @property
    def look_at(self) -> float:
        """When to look next, on the monotonic clock."""
        return min((demand.look_at for demand in self._demands.values()), default=math.inf)

    def renew(self, spare: Sequence[Any], now: float) -> bool:
        """Take note that somebody is about to wait for the pool of *spare*; return whether it is looked at already."""
        demand = self._demands.get(id(spare))
        if demand is None:
            return False
        demand.asked_at = now
        return True

    def begin(self, lease: Lease, now: float) -> None:
        """Have the pool of *lease* looked at from now on, until nobody waits for it. By the timer."""
        rest = _rest(lease)
        if rest is not None and id(lease.spare) not in self._demands:
            self._demands[id(lease.spare)] = _Demand(lease.queue, lease.spare, rest, now)

    def begin_where_somebody_waits(self, leases: Iterable[Lease], now: float) -> None:
        """Have those pools of *leases* looked at from now on for which somebody waits, be it told or not. The timer."""
        for lease in leases:
            if lease.queue and may_rest(lease) and pools.waiting_in(lease.queue):
                self.begin(lease, now)

    def see_to(self, leases: Iterable[Lease], returning: Iterable[Any], now: float) -> None:
        """Give back what may be had of *leases* for those who wait, what is idle for longest first. By the timer.

        As many as wait, and no more, since each costs its thread a checkout. *returning* are the pools of connections
        that are on their way back already, one for each of these.
        """
        coming = [pools.queue_and_spare(pool)[1] for pool in returning]
        for demand in list(self._demands.values()):
            if now < demand.look_at:
                continue
            wanted = pools.waiting_in(demand.queue) - sum(spare is demand.spare for spare in coming)
            # Who has asked may have had no turn of the processor since.
            if wanted <= 0 and now - demand.asked_at > demand.rest:
                del self._demands[id(demand.spare)]
                continue
            demand.look_at = now + demand.rest / _LOOKS
            idle = [lease for lease in leases if lease.spare is demand.spare and may_rest(lease)]
            for lease in sorted(idle, key=lambda lease: lease.idle_since):
                if wanted > 0 and now - lease.idle_since >= demand.rest:
                    wanted -= lease.give_back_on_demand(now - demand.rest)


def may_rest(lease: Lease) -> bool:
    """Return whether *lease* is of those that go back on demand: for no request, and under no scope."""
    # A request's connection stays its own between two steps of it; under a scope, nothing needs to be asked for.
    return lease.pooled and lease.request is None and lease._wish == policy.KEEP


def _rest(lease: Lease) -> float | None:
    connection = lease._connection
    pool = None if connection is None else pools.pool_of(connection)
    timeout = sqlalchemy.timeout_of(pool)
    return None if timeout is None else min(REST, timeout / 2)
