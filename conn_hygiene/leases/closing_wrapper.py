"""How the connection of a wrapper is closed, and when.

The innermost layer of a wrapper that goes by a lease, see :mod:`.wrapper`.
"""

from __future__ import annotations

import contextlib
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg

from conn_hygiene import callsite
from conn_hygiene.leases import ended
from conn_hygiene.leases.djangos import CLOSE_IF_OLD, TRANSACTION
from conn_hygiene.leases.returns import TIME_LIMIT, TimeLimit
from conn_hygiene.leases.states import CLOSED, GIVEN_BACK, HELD
from conn_hygiene.pools import base as pools
from conn_hygiene.sessions.following import Lost

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.postgresql.base import DatabaseWrapper as _Wrapper

    from conn_hygiene.leases.lease import Lease
else:
    _Wrapper = object


class ClosingWrapper(_Wrapper):
    """A wrapper whose connection is closed as Django closes it, be it there or given back."""

    if TYPE_CHECKING:
        _conn_hygiene_lease: Lease
        _conn_hygiene_class: type[Any]

    def close(self) -> None:
        """Close the connection; one that was given back is closed by forgetting it, before it would be checked out.

        The backend's own method runs in any case, and finds no connection then. It may keep books to be closed.
        """
        lease = self._conn_hygiene_lease
        # Django's refuses other threads.
        is_owner = lease.serves_thread()
        lost: list[str] = []
        tell: Callable[[], None] | None = None
        if is_owner:
            if sys._getframe(1).f_globals.get("__name__") == TRANSACTION:
                lost = ended.lost_in_transaction(lease)
            elif self.in_atomic_block:
                tell = self._end_atomic(lease)
            lease.closing()
        try:
            super().close()
            if lost:
                # atomic() drops what has broken, and its caller may know nothing of it, and go on.
                lease.has_lost(Lost(lost))
        finally:
            if is_owner and lease.state == HELD:
                # It was not closed after all.
                lease.settle(handle_is_out=False)
        lease.keeper.wait_for_returns(lease=lease)
        if tell is not None:
            tell()

    def _end_atomic(self, lease: Lease) -> Callable[[], None] | None:
        """Roll back what an ``atomic()`` has done that is left with a closed connection; return what says so.

        The code around may know nothing of it, and go on as if it were going to be committed.
        """
        connection = lease._connection
        if self.closed_in_transaction or connection is None:
            return None
        if not pools.is_idle_in_transaction(connection):
            # Nothing has run in it, or nothing of it is left.
            return None
        tell = lease.keeper.left_open(lease, f"A close() at {callsite.here() or callsite.UNKNOWN}")
        if pools.pool_of(connection) is None:
            # It ends with its session.
            return tell
        # It is closed in any case. Done here, it leaves nothing for its pool to tell of once more.
        with contextlib.suppress(psycopg.Error), TimeLimit(connection, lease.keeper, TIME_LIMIT):
            if not pools.is_locked(connection):
                connection.rollback()
        return tell

    def close_pool(self) -> None:
        """Close the pool, once all is there that is on its way back: a database may be dropped right after this."""
        self._conn_hygiene_lease.keeper.wait_for_returns(alias=self.alias)
        super().close_pool()

    def _close(self) -> None:
        try:
            self._conn_hygiene_lease.prepare_return()
        except BaseException:
            # It may be anything but clean.
            self._conn_hygiene_lease.drop()
            raise
        finally:
            super()._close()  # type: ignore[misc]

    def is_usable(self) -> bool:
        """Return whether the connection works, asking the server if there is one.

        What was given back does, unless what its owner is to find in the next session is lost.
        """
        lease = self._conn_hygiene_lease
        if lease.state == CLOSED or not lease.serves_thread():
            return super().is_usable()
        return not lease.is_lost() and lease.looked_at(super().is_usable)

    def close_if_unusable_or_obsolete(self) -> None:
        """Do as Django does, given back or not.

        Close what is too old, has not the autocommit of the settings, or is of no use, as its owner was told.
        """
        lease = self._conn_hygiene_lease
        if lease.state == GIVEN_BACK:
            too_old = self.close_at is not None and monotonic() >= self.close_at
            if (
                too_old
                or self.autocommit != self.settings_dict["AUTOCOMMIT"]
                or lease.is_lost(told=self.errors_occurred)
            ):
                self._close_given_back(lease)
            return
        if self._conn_hygiene_class.close_if_unusable_or_obsolete is CLOSE_IF_OLD:
            # What Django's own method comes to: most are closed when a request begins, and what is closed in any case
            # need not be asked before whether it works.
            if lease.state == CLOSED:
                if lease._connection is None:
                    return
            elif self.close_at is not None and monotonic() >= self.close_at:
                self.close()
                return
        was_out = lease.handle is not None
        super().close_if_unusable_or_obsolete()
        if not was_out and lease.state != CLOSED:
            # It has only been looked at.
            lease.settle(handle_is_out=False)

    def _close_given_back(self, lease: Lease) -> None:
        """Close without waiting, as :meth:`close` does, for what is on its way back: a request ends, and no more."""
        if lease.serves_thread():
            lease.forget()
        if "close" in self.__dict__:
            # Somebody has put his own on the instance.
            self.close()
        else:
            super().close()
