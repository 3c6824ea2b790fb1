"""The short way to a connection: a checkout of a native pool, where the whole of ``connect()`` would come to no more.

A layer of a wrapper that goes by a lease, see :mod:`.wrapper`.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg
from django.db.backends.postgresql.psycopg_any import IsolationLevel
from django.db.backends.signals import connection_created

from conn_hygiene import internals
from conn_hygiene.events import CheckedOut, publish
from conn_hygiene.leases import checkouts, exhausted
from conn_hygiene.leases.closing_wrapper import ClosingWrapper
from conn_hygiene.leases.connecting import Connect, Incoming
from conn_hygiene.leases.djangos import OWN_PARTS, PARTS, async_unsafe, parts_of, reset_transaction_state
from conn_hygiene.leases.states import GIVEN_BACK
from conn_hygiene.pools import keeping, native
from conn_hygiene.pools.base import give_back

if TYPE_CHECKING:
    from conn_hygiene.events import Replaced
    from conn_hygiene.leases.lease import Lease


class PooledWrapper(ClosingWrapper):
    """A wrapper that checks connections out of a native pool, without the calls on the way."""

    def _plain_pool(self, lease: Lease) -> Any:
        """Return the native pool if ``connect()`` comes to no more than a checkout of it, else None.

        The time zone, the role and all else that Django sets are those of the pool's connections, for a wrapper that
        has been connected before.
        """
        if not (
            internals.CHECKOUTS.available
            and lease.pooled
            and self.autocommit
            and (settings := self.settings_dict)["AUTOCOMMIT"]
            # As Django has them, and nobody in between or on top: a subclass, an instrumentation, a test.
            and parts_of(self._conn_hygiene_class) == OWN_PARTS
            and self.__dict__.keys().isdisjoint(PARTS)
            # This package's own receiver, which has nothing to do for a wrapper that has a lease.
            and len(connection_created.receivers) == 1
            and settings["OPTIONS"].get("pool")
        ):
            return None
        pool: Any = self._connection_pools.get(self.alias)  # type: ignore[attr-defined]
        # Not if there is none, or one that was made since then.
        return pool if native.is_watched(pool) else None

    def _check_out_of_pool(self, lease: Lease, pool: Any, asked_at: float, frames: int) -> None:
        """Check a connection out of the native *pool*, and do what else ``connect()`` does that is not done already.

        *frames* is how many of the stack's innermost are this package's.
        """
        lease.asked_at = asked_at
        if lease.carried is not None:
            # First of all: it may be on its way back with the only connection there is.
            lease.await_carried()
        if not lease.spare:
            lease.keeper.wanted(lease.spare)
        self.errors_occurred = False
        # What was given back was in no transaction, and all else is as the last connect() has left it.
        if lease.state != GIVEN_BACK:
            self._begin_as_connected()
        if lease.carried is None and not CheckedOut.listeners:
            self._check_out(lease, pool, asked_at, frames)
            return
        # Until what is carried is set again, and whoever listens is told, nobody's query in between lets go of it.
        again, attempt = lease.state == GIVEN_BACK, Connect(is_checkout=True)
        try:
            lease.connecting(attempt)
            self._check_out(lease, pool, asked_at, frames)
            lease.publish_news()
        except BaseException:
            lease.connected(attempt, again=again)
            # Such a query may have checked another one out.
            lease.settle()
            raise
        lease.connected(attempt, again=again)

    def _check_out(self, lease: Lease, pool: Any, asked_at: float, frames: int) -> None:
        connection, incoming = None, Incoming()
        replaced: list[Replaced] = []
        try:
            # With a pool, it makes no use of the parameters.
            if (
                keeping.is_psycopgs(pool.__class__)
                and not pool.closed
                and "isolation_level" not in self.settings_dict["OPTIONS"]
            ):
                # What Django's get_new_connection() does for a pool, without the calls on the way.
                self.isolation_level = IsolationLevel.READ_COMMITTED
                connection = checkouts.working_one(self, pool.getconn, asked_at=asked_at, replaced=replaced)
            else:
                connection = self.get_new_connection({})
            lease.assign(connection, frames=frames, incoming=incoming)
        except BaseException as error:
            if connection is None and isinstance(error, psycopg.OperationalError):
                exhausted.tell_if_exhausted(self, lease.keeper, lease.asked_at, error)
                lease.asked_at = None
                raise
            # Of a signal handler: it may have come when nobody else had the connection, or when the lease had it
            # already, in which it is not set up.
            if connection is not None and not incoming.is_taken:
                give_back(connection)
            lease.checkout_failed()
            raise
        try:
            lease.begin_session()
        except BaseException:
            lease.checkout_failed()
            raise
        for event in replaced:
            publish(event)

    def _begin_as_connected(self) -> None:
        """Set what ``connect()`` does on the wrapper."""
        self.check_settings()
        reset_transaction_state(self)
        self.run_commit_hooks_on_set_autocommit_on = False
        self.health_check_enabled = self.settings_dict["CONN_HEALTH_CHECKS"]
        # The pool has done it.
        self.health_check_done = True
        # Django gives a pool to aliases with a CONN_MAX_AGE of 0 only.
        self.close_at = monotonic()

    _check_out_safely = async_unsafe(_check_out_of_pool)
