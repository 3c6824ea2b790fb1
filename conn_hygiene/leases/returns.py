"""A connection on its way back: taken out of its lease under the lock, cleaned and given back outside of any.

What happens here may take long, or for ever: a server that does not answer, a logging handler, the ``reset`` of a pool.
So it happens while nobody waits but those who close the very same wrapper, or its pool, and an owner whose settings
follow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg

from conn_hygiene import locks
from conn_hygiene.events import publish
from conn_hygiene.interruptions import is_of_handler
from conn_hygiene.leases import audits, cursors
from conn_hygiene.locks import Rank
from conn_hygiene.pools import base as pools
from conn_hygiene.sessions import known

if TYPE_CHECKING:
    from types import TracebackType

    from conn_hygiene.events import Event
    from conn_hygiene.leases.keeper import Keeper
    from conn_hygiene.sessions.following import Carried
    from conn_hygiene.sessions.plan import Plan

logger = logging.getLogger("conn_hygiene.lease")

#: Seconds that a server has for the cleaning of a session, or for a rollback; it is hung up on then.
TIME_LIMIT = 5.0

#: Seconds that is waited for what is on its way back: by who closes a wrapper or a pool, or needs what follows.
RETURN_TIMEOUT = TIME_LIMIT + 1.0


class TimeLimit:
    """Hangs up on the server of a connection if what is done inside takes longer than the limit.

    The lock is a leaf. It keeps the copy of the socket from being closed, and its number from being another's, at the
    moment at which it is shut.
    """

    def __init__(self, connection: psycopg.Connection[Any], keeper: Keeper, seconds: float) -> None:
        self._connection = connection
        self._keeper = keeper
        self._seconds = seconds
        self._lock = locks.make(Rank.LEAF)
        self._copy: socket.socket | None = None

    def __enter__(self) -> None:
        try:
            # A descriptor of our own: libpq closes its own when it likes.
            self._copy = socket.socket(fileno=os.dup(self._connection.fileno()))
            self._keeper.ring_at(time.monotonic() + self._seconds, self)
        except (psycopg.OperationalError, OSError) as error:
            # It is closed, and nobody waits for it; or there is no descriptor left, and it is done without a limit. A
            # handler's may be a TimeoutError, which is an OSError.
            if is_of_handler(error):
                raise

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            if self._copy is not None:
                self._copy.close()
                self._copy = None

    @property
    def is_over(self) -> bool:
        """Whether what is done inside has ended."""
        return self._copy is None

    def after_fork_in_child(self) -> None:
        """Close the copy of what is the parent's connection. Another thread may have had the lock."""
        self._lock = locks.make(Rank.LEAF)
        copy, self._copy = self._copy, None
        if copy is not None:
            copy.close()

    def expire(self) -> None:
        """Hang up, unless it is over. Does not block."""
        with self._lock:
            if self._copy is not None:
                # Whoever waits for the server is told at once that it is gone.
                with contextlib.suppress(OSError):
                    self._copy.shutdown(socket.SHUT_RDWR)
                # Whoever was to do that may have been kept from it by an exception of a signal handler.
                self._copy.close()
                self._copy = None


def audit(connection: psycopg.Connection[Any], keeper: Keeper) -> tuple[Event, ...]:
    """Return what an audit of the session of *connection* has to tell in the end; nothing without one."""
    if not audits.is_audited(connection):
        return ()
    with TimeLimit(connection, keeper, TIME_LIMIT):
        return tuple(audits.end(connection))


class Return:
    """One connection on its way back, which nobody can reach any more but through this.

    It is made, and :attr:`is_complete` set, under the lock of its lease by who takes the connection out; all else is
    written by who carries it out, which is one thread: the first that is in ``_carrier``.
    """

    __slots__ = (
        "_carrier",
        "_is_as_given",
        "_is_begun",
        "_is_due",
        "alias",
        "by_owner",
        "carried",
        "connection",
        "fresh",
        "is_complete",
        "is_put",
        "is_rolled_back",
        "lease",
        "news",
        "plan",
        "pool",
    )

    def __init__(
        self,
        lease: object,
        alias: str,
        connection: psycopg.Connection[Any],
        *,
        plan: Plan,
        carried: Carried | None = None,
        fresh: tuple[bytes | None, ...] = (),
        is_rolled_back: bool = False,
        is_as_given: bool = False,
    ) -> None:
        self.lease = lease
        self.alias = alias
        self.connection = connection
        # Asked for while it is there: it no longer names its pool when it is back.
        self.pool = pools.pool_of(connection)
        #: What is to be done to the session, its reported parameters when it was new, and who gets what it was asked.
        self.plan = plan
        self.fresh = fresh
        self.carried = carried
        self.is_rolled_back = is_rolled_back
        #: What is to be published when it is back.
        self.news: tuple[Event, ...] = ()
        #: Whether its lease is done with it: its cursors are retired, and it has the news.
        self.is_complete = False
        #: Whether its owner carries it out, who may wait for handlers and listeners of its own.
        self.by_owner = False
        # By whom it is carried out: the first thread that puts itself here, in one step.
        self._carrier: dict[None, int] = {}
        self._is_begun = False
        #: Whether its pool was called, which is done once.
        self.is_put = False
        # Whether the catalogue was due when that was first looked at.
        self._is_due: bool | None = None
        # Whether it was seen to be what its pool gives out, and nothing is to be done to its session.
        self._is_as_given = is_as_given

    @property
    def may_block(self) -> bool:
        """Whether giving it back asks the server for something, or calls code that is not ours."""
        return self.asks_session or pools.may_block(self.pool)

    @property
    def asks_session(self) -> bool:
        """Whether something is to be done to the session first, for which the server is asked."""
        return self._asks_server or audits.is_audited(self.connection)

    @property
    def _asks_server(self) -> bool:
        plan = self.plan
        # Whoever is to be told what follows waits for it, be it nothing.
        is_awaited = self.carried is not None
        return bool(plan.left or plan.resets) or is_awaited or self.is_rolled_back or self._asks_catalogue

    @property
    def _asks_catalogue(self) -> bool:
        """Whether it is time to ask what the database's functions do; an owner does not wait for that if it can."""
        if self.is_rolled_back or (self.by_owner and self.carried is None):
            return False
        # Decided once: a thread that must not wait for a server carries out what was seen to ask it for nothing.
        if self._is_due is None:
            self._is_due = known.is_due(self.alias, time.monotonic())
        return self._is_due

    @property
    def is_carried(self) -> bool:
        """Whether some thread is carrying it out, or has."""
        return bool(self._carrier)

    @property
    def is_carried_here(self) -> bool:
        """Whether the running thread is carrying it out, further up its stack."""
        return self._carrier.get(None) == threading.get_ident()

    def carry_out(self, keeper: Keeper) -> None:
        """Clean the session and give the connection back. Does nothing if another thread is at it, or has been.

        Called under no lock. Repeated in the same thread after an exception of a signal handler, it goes on.
        """
        if locks.DEBUG:
            locks.assert_none_held()
        me = threading.get_ident()
        if self._carrier.setdefault(None, me) != me:
            return
        records: list[logging.LogRecord] = []
        if not self.is_put:
            if not self.is_complete:
                # An exception of a signal handler came in between.
                cursors.retire(self.connection)
            if self._is_as_given and self.by_owner and not audits.is_audited(self.connection):
                # Should it be interrupted, it may be anything.
                self._is_as_given = False
                records = pools.put_back(self.connection, self)
            else:
                self._prepare(keeper)
                records = pools.give_back(self.connection, self)
        keeper.returned(self)
        if records or self.news:
            self._tell(records, keeper)

    def _prepare(self, keeper: Keeper) -> None:
        self.news += audit(self.connection, keeper)
        if self._asks_server:
            with TimeLimit(self.connection, keeper, TIME_LIMIT):
                self._clean(keeper)

    def _tell(self, records: list[logging.LogRecord], keeper: Keeper) -> None:
        """Tell of what is done; not in a worker's thread, where the next to go back may wait for it."""
        news, self.news = self.news, ()
        if not self.by_owner:
            if records:
                keeper.tell(pools.tell, records)
            for event in news:
                keeper.publish_later(event)
            return
        pools.tell(records)
        for event in news:
            publish(event)

    def _clean(self, keeper: Keeper) -> None:
        try:
            if self._is_begun:
                # An exception of a signal handler came in between, and nobody knows how far it got.
                self.connection.pgconn.finish()
                return
            self._is_begun = True
            if self.is_rolled_back:
                pools.roll_back(self.connection)
            values = self._scrub(keeper)
            if self.carried is not None:
                self.carried.set_result(values)
        except Exception as error:
            # Whatever it is, the connection has to go back.
            if is_of_handler(error):
                raise
            # Its owner's, who gets it with the next query.
            if self.carried is not None:
                self.carried.set_exception(error)
        finally:
            if self.carried is not None:
                self.carried.set_exception()

    def _scrub(self, keeper: Keeper) -> dict[str, str | None]:
        plan = self.plan
        # What follows has to be known first.
        if (
            self._asks_catalogue
            and pools.make_ready(self.connection)
            and known.begin_asking(self.alias, time.monotonic(), is_needed=self.carried is not None)
        ):
            known.ask(self.alias, self.connection, keeper.tell)
            plan = plan._replace(left=plan.left | known.indelible(self.alias))
        if self.carried is not None:
            # It may have been somebody else who has asked, since this was planned.
            plan = plan.following_also(known.followed(self.alias), pooled=self.pool is not None)
        if plan.left or plan.resets or plan.follow:
            return pools.scrub(self.connection, plan, self.fresh, known.of_login(self.alias))
        return {}
