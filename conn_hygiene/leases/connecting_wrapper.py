"""When a wrapper gets a connection, and by which way: for a use, again after a release, in the place of a broken one.

A layer of a wrapper that goes by a lease, see :mod:`.wrapper`.
"""

from __future__ import annotations

import contextlib
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db import OperationalError

from conn_hygiene.events import publish
from conn_hygiene.leases import ended, exhausted, news
from conn_hygiene.leases.connecting import Connect
from conn_hygiene.leases.djangos import ENSURE_CONNECTION, async_unsafe
from conn_hygiene.leases.pooled_wrapper import PooledWrapper
from conn_hygiene.leases.states import CLOSED, GIVEN_BACK
from conn_hygiene.pools import native, queues, waiting
from conn_hygiene.sessions.following import SessionGone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg
    from django.db.backends.base.base import BaseDatabaseWrapper

    from conn_hygiene.leases.lease import Lease

_CONNECT = "connect"


class _Replacing(threading.local):
    """For which wrappers the running thread is in what somebody has put in the place of Django's ensure_connection().

    It may well call the one that it has found there, which is ours.
    """

    wrappers: tuple[BaseDatabaseWrapper, ...] = ()

    def calls(self, wrapper: BaseDatabaseWrapper) -> bool:
        return any(each is wrapper for each in self.wrappers)

    @contextlib.contextmanager
    def calling(self, wrapper: BaseDatabaseWrapper) -> Iterator[None]:
        before = self.wrappers
        self.wrappers = (*before, wrapper)
        try:
            yield
        finally:
            self.wrappers = before


_replacing = _Replacing()

# How many frames of this package lie at least between the application's code and Lease.assign(), which passes so many
# without a look at them. Fewer than there are cost time; more would pass the application's line. These are always
# there: _check_out(), _check_out_of_pool(), _connect_once() and _conn_hygiene_connect(). Who calls the last tells, as
# *ensured*, how many more there are: 1 for ensure_connection(), 3 for check_out_again() with Lease.use() and
# ensure_connection() around it. 0 is for anybody else: what there is is not counted, and has yet to be refused in a
# thread that runs an event loop, which ensure_connection() has done.
_FRAMES = 4


class ConnectingWrapper(PooledWrapper):
    """A wrapper that takes its connection back or checks one out again for each use, and connects if there was none."""

    def check_out_again(self, *, is_allowed: bool = False) -> psycopg.Connection[Any] | None:
        """Connect, for whoever reads the connection after it was given back. Called by :meth:`.Lease.use`.

        *is_allowed* is passed on from there.
        """
        lease = self._conn_hygiene_lease
        if self._thread_ident != threading.get_ident() and not self.allow_thread_sharing:  # type: ignore[attr-defined]
            return None
        try:
            with self.wrap_database_errors:
                if "connect" in self.__dict__:
                    # Django's test classes forbid it by an attribute of the instance, and leave the plain method there
                    # when they allow it again.
                    self._checking_out(self.connect, monotonic())
                else:
                    self._conn_hygiene_connect(lease, 3 if is_allowed else 0)
        except OperationalError as error:
            exhausted.take_over_note(error)
            raise
        connection = lease.take()
        if connection is None and lease.state == GIVEN_BACK:
            # A signal handler or a finaliser has queried in between, and let go of it.
            return self.check_out_again(is_allowed=is_allowed)
        return connection

    def _ensure_connection(self) -> None:
        """Take the connection back or check one out again, since it is about to be used; connect if there was none.

        Django's method only looks, and that changes nothing. So this is the way of every query, and Django's is taken
        where there is no connection, or where somebody has put his own in its place.
        """
        if self._conn_hygiene_class.ensure_connection is not ENSURE_CONNECTION and not _replacing.calls(self):
            with _replacing.calling(self):
                exhausted.ensure_noted(super().ensure_connection)
            return
        lease = self._conn_hygiene_lease
        if lease.handle is None and lease.use(is_allowed=True) is None:
            try:
                if ENSURE_CONNECTION is None:
                    self._conn_hygiene_class.ensure_connection(self)
                elif lease.state != CLOSED or self.in_atomic_block or _CONNECT in self.__dict__:
                    ENSURE_CONNECTION(self)
                else:
                    # What Django's own method does in this case, without the call of connect(), which does the same.
                    with self.wrap_database_errors:
                        self._conn_hygiene_connect(lease, 1)
            except OperationalError as error:
                exhausted.take_over_note(error)
                raise

    ensure_connection = async_unsafe(_ensure_connection)

    def connect(self) -> None:
        """Connect, and go on in the transaction management that a release interrupted."""
        lease = self._conn_hygiene_lease
        if lease.state == GIVEN_BACK:
            self.validate_thread_sharing()
        self._conn_hygiene_connect(lease)

    def _conn_hygiene_connect(self, lease: Lease, ensured: int = 0) -> None:
        """Connect; and again, within the pool's timeout, if the server has ended the session before it was set up.

        *ensured* is how many frames up the stack :meth:`ensure_connection` is, which has refused a thread that runs an
        event loop; 0 if it is not there, and that is yet to be refused. See ``_FRAMES``.
        """
        asked_at = monotonic()
        try:
            self._connect_once(lease, asked_at, ensured)
        except SessionGone:
            # As many as a restarted server may leave.
            more = len(lease.spare) + 1
        else:
            return
        # All together within the timeout.
        with waiting.since(asked_at, getattr(self, "pool", None)):
            for left in range(more - 1, -1, -1):
                try:
                    self._connect_once(lease, monotonic())
                except SessionGone:
                    if not left:
                        raise
                else:
                    return

    def _connect_once(self, lease: Lease, asked_at: float, ensured: int = 0) -> None:
        # Where nothing is left, it is about to wait.
        place = None if lease.spare else lease.place_of_next(asked_at)
        if place is not None and queues.place_in(lease.queue) is None:
            with queues.going_on(lease.queue, place):
                return self._connect_once(lease, asked_at, ensured)
        pool = self._plain_pool(lease)
        if pool is None:
            self._checking_out(super().connect, asked_at)
        elif ensured:
            self._check_out_of_pool(lease, pool, asked_at, _FRAMES + ensured)
        else:
            self._check_out_safely(lease, pool, asked_at, _FRAMES)
        return None

    def _checking_out(self, connect: Callable[[], None], asked_at: float) -> None:
        """Call *connect*, and tell the lease of it, once."""
        lease = self._conn_hygiene_lease
        again = lease.state == GIVEN_BACK
        if again:
            self.validate_thread_sharing()
        # Ours alone to take back, however this ends: connect() may be called while another one is under way.
        attempt = Connect()
        lease.asked_at = asked_at
        if lease.carried is not None:
            lease.await_carried()
        native.watch(getattr(self, "pool", None))
        before = lease.checkouts
        try:
            if lease.connecting(attempt) and lease.pooled and not lease.spare:
                lease.keeper.wanted(lease.spare)
            if again and self.autocommit != self.settings_dict["AUTOCOMMIT"]:
                self._connect_as_before(connect, self.autocommit)
            else:
                connect()
            lease.note_set_up()
        except BaseException as error:
            exhausted.tell_if_exhausted(self, lease.keeper, lease.asked_at, error)
            # Half set up, it is good for nothing: a receiver of `connection_created` that has failed may have been
            # about to say whose the session is. The next use begins anew.
            if lease.checkouts != before:
                lease.checkout_failed()
            raise
        else:
            # Now that it is all set up, and before a query of who listens can let go of it.
            lease.publish_news()
        finally:
            lease.connected(attempt, again=again)
            lease.asked_at = None

    def _connect_as_before(self, connect: Callable[[], None], autocommit: bool) -> None:
        """Call *connect*, which sets autocommit as the settings say, and set it as the application had done."""
        try:
            connect()
            self._set_autocommit(autocommit)  # type: ignore[attr-defined]
        except BaseException:
            # What is written on this one would not be committed when the application says so, or before it does. To
            # the application, and a close() of its backend's own, nothing is closed: the next use tries another.
            self._conn_hygiene_lease.checkout_failed()
            raise
        finally:
            self.autocommit = autocommit
        self._conn_hygiene_lease.manual_transactions(not autocommit)

    def _replace_if_broken(self) -> None:
        """Put another connection in the place of one that the server has closed, outside of transactions.

        A restarted server leaves a whole pool of them, each good for one failed request.
        """
        lease = self._conn_hygiene_lease
        # Ends: the pool runs out of old connections, and a new one that is broken fails to connect.
        while ended.close_if_broken(lease):
            server_pid, idle_for = lease.server_pid, lease.idle_for()
            state_may_matter = lease.may_have_unseen_state()
            self.close()
            self.ensure_connection()
            if state_may_matter:
                with self.wrap_database_errors:
                    lease.refuse_if_state_mattered()
            publish(news.replaced(lease, server_pid, idle_for))
        if not lease.trusted:
            with self.wrap_database_errors:
                ended.refuse_if_lost(lease)
