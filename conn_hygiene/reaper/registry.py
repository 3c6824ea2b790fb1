"""The registry: which leases hold a connection, and which connections are on their way back to their pools.

From its checkout until it is back in its pool, a connection is in one of the two lists. So nothing is lost: not where a
thread ends, not where a signal handler's exception comes between two lines, and not at a fork.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, cast

from conn_hygiene import locks
from conn_hygiene.leases import returns
from conn_hygiene.locks import Rank

if TYPE_CHECKING:
    import psycopg

    from conn_hygiene.leases.claim import Claim
    from conn_hygiene.leases.lease import Lease
    from conn_hygiene.leases.returns import Return

logger = logging.getLogger("conn_hygiene.reaper")


class Registry:
    """The part of :class:`~conn_hygiene.leases.keeper.Keeper` that lists; the reaper adds who acts on the lists.

    ``_leases``, ``_returning`` and ``_awaited`` are guarded by ``_registry_lock``, which is held while nothing else is
    called. It may be taken under a lease's lock. ``_returning`` may be looked at without it, as the wait does: what
    matters there is put in before the look, by the same thread.
    """

    def __init__(self) -> None:
        self._leases: set[Lease] = set()
        self._forget_returns()

    def _forget_returns(self) -> None:
        self._registry_lock = locks.make(Rank.REGISTRY)
        self._returned = threading.Condition(self._registry_lock)
        self._returning: set[Return] = set()
        # How many wait for one of them.
        self._awaited = 0

    # ##### Leases #####

    def leases(self) -> list[Lease]:
        """Return the leases that hold a connection now."""
        with self._registry_lock:
            return list(self._leases)

    def _add(self, lease: Lease) -> bool:
        """List *lease*, which has a connection, and so keep it reachable; return whether it is the only one."""
        with self._registry_lock:
            first = not self._leases
            self._leases.add(lease)
        return first

    def checked_in(self, lease: Claim) -> None:
        """Forget *lease*, which has no connection any more."""
        with self._registry_lock:
            self._leases.discard(lease)

    # ##### What is on its way back #####

    def leaving(self, lease: Claim, returning: Return) -> None:
        """List *returning*, which is about to be taken out of *lease*, and forget that one. Under the lease's lock."""
        with self._registry_lock:
            self._returning.add(returning)
            self._leases.discard(lease)

    def stays(self, lease: Claim, returning: Return) -> None:
        """Forget *returning*, which was not taken out of *lease* after all."""
        holds = lease.holds_connection()
        with self._registry_lock:
            if holds:
                self._leases.add(whole(lease))
        self.returned(returning)

    def returned(self, returning: Return) -> None:
        """Forget *returning*, and wake who waits for it."""
        with self._registry_lock:
            self._returning.discard(returning)
            if self._awaited:
                self._returned.notify_all()

    def _taken_out_of(self, lease: Claim) -> list[Return]:
        # Past another thread that is in the middle of it: what is only half taken out here is the running one's.
        with lease._lock, self._registry_lock:
            return [returning for returning in list(self._returning) if returning.lease is lease]

    def returning_to(self, pool: object) -> list[psycopg.Connection[Any]]:
        """Return the connections that are on their way back to *pool*."""
        with self._registry_lock:
            return [each.connection for each in list(self._returning) if each.pool is pool]

    def _pools_returned_to(self) -> list[Any]:
        """Return the pool of each connection that is on its way back, None for those without one."""
        with self._registry_lock:
            return [each.pool for each in list(self._returning)]

    def wait_for_returns(self, *, lease: Lease | None = None, alias: str | None = None) -> None:
        """Wait until what was taken out of *lease*, or out of any of *alias*, is where it belongs.

        Not for longer than what is done to it may take. Nor for what the running thread itself is about.
        """
        if not self._returning:
            return

        def is_there() -> bool:
            return not any(
                (each.lease is lease or each.alias == alias) and not each.is_carried_here
                for each in list(self._returning)
            )

        with self._returned:
            self._awaited += 1
            try:
                arrived = self._returned.wait_for(is_there, returns.RETURN_TIMEOUT)
            finally:
                self._awaited -= 1
        if not arrived:
            logger.warning(
                "A connection of %r was still on its way back after %.0f s, so that close() or close_pool() goes on "
                "without it. Look for a logging handler, or a pool's `configure` or `reset`, that hangs.",
                alias if lease is None else lease.alias,
                returns.RETURN_TIMEOUT,
            )

    # ##### Forks #####

    def _forget_after_fork(self) -> tuple[set[Lease], list[tuple[str, Any]]]:
        """Forget all in a forked child; return the parent's leases, and its connections on their way back, by alias.

        The lock may have been held. What other threads of the parent held must not be reclaimed when their wrappers are
        collected here.
        """
        inherited, self._leases = self._leases, set()
        for lease in inherited:
            lease.after_fork_in_child()
        on_their_way = self._returning
        self._forget_returns()
        return inherited, [(each.alias, each.connection) for each in on_their_way]


def whole(lease: Claim) -> Lease:
    """Return *lease* as what it is: those that are no more than a claim are never made."""
    return cast("Lease", lease)
