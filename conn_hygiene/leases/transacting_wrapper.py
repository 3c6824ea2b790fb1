"""Where transactions of a wrapper begin and end, with or without a connection, as its lease is told.

A layer of a wrapper that goes by a lease, see :mod:`.wrapper`.
"""

from __future__ import annotations

import contextlib
import sys
from inspect import CO_GENERATOR
from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db.backends.base.base import BaseDatabaseWrapper

from conn_hygiene.leases.connecting_wrapper import ConnectingWrapper
from conn_hygiene.leases.djangos import TRANSACTION
from conn_hygiene.leases.ended import QUIET
from conn_hygiene.leases.states import CLOSED, GIVEN_BACK, PARKED

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from conn_hygiene.leases.lease import Lease

_PLAIN_SET_AUTOCOMMIT = getattr(getattr(BaseDatabaseWrapper, "set_autocommit", None), "__code__", None)


class TransactingWrapper(ConnectingWrapper):
    """A wrapper that tells its lease of each transaction, and asks for no connection where nothing is open."""

    def set_autocommit(self, autocommit: bool, force_begin_transaction_with_broken_autocommit: bool = False) -> None:
        """Set autocommit; turned on, it may have ended what kept the connection."""
        lease = self._conn_hygiene_lease
        if not autocommit:
            if not lease.trusted or monotonic() - lease.idle_since > QUIET:
                self._replace_if_broken()
        elif lease.state == GIVEN_BACK:
            self._note_autocommit(lease)
            return
        super().set_autocommit(autocommit, force_begin_transaction_with_broken_autocommit)
        # atomic() passes that argument, and nobody else does.
        manual = not autocommit and not force_begin_transaction_with_broken_autocommit
        if manual or lease.is_manual:
            lease.manual_transactions(manual)
        if autocommit:
            if lease.session_state.undone:
                with self.wrap_database_errors:
                    lease.confirm_undone()
            lease.settle(handle_is_out=False)
        else:
            self._transaction_began(sys._getframe(1))

    def _note_autocommit(self, lease: Lease) -> None:
        """Turn autocommit on for the next connection, which begins with it. That would tell the server nothing, too."""
        self.validate_no_atomic_block()
        self.autocommit = True
        lease.manual_transactions(False)
        # There are none that have yet to run, or it would not have been given back.
        self.run_commit_hooks_on_set_autocommit_on = False

    def _transaction_began(self, caller: FrameType | None) -> None:
        # Django asks for it in DATABASES only, which a wrapper that somebody has made need not be in.
        by_request = bool(self.settings_dict.get("ATOMIC_REQUESTS")) and _opened_by_handler(caller)
        self._conn_hygiene_lease.transaction_began(_opener(caller), by_atomic_requests=by_request)

    def _set_autocommit(self, autocommit: bool) -> None:
        """Set it on the connection; see to it that the lease knows, also where it came in the middle of the call.

        A thread's first connection may be made by ``set_autocommit(False)``, which is Django's plain method then to its
        end. (``atomic()`` asks for the flag before, and that connects.)
        """
        if autocommit:
            super()._set_autocommit(autocommit)  # type: ignore[misc]
            return
        self._turn_autocommit_off()
        if (plain := sys._getframe(1)).f_code is not _PLAIN_SET_AUTOCOMMIT:
            return
        caller = plain.f_back
        if caller is None or caller.f_code is not TransactingWrapper.set_autocommit.__code__:
            self._conn_hygiene_lease.manual_transactions(True)
            self._transaction_began(caller)

    def _turn_autocommit_off(self) -> None:
        """Turn it off on the connection that the lease has, which it keeps from here on.

        As if a cursor were open: Django has read the handle then, and the query of a signal handler or a finaliser in
        the middle must not let go of the connection. The flag is what keeps it afterwards.
        """
        lease = self._conn_hygiene_lease
        listed = lease.open_cursors
        listed[self] = None
        try:
            while lease.state in (PARKED, GIVEN_BACK):
                # A handler has come just before.
                listed.pop(self, None)
                self.ensure_connection()
                listed = lease.open_cursors
                listed[self] = None
            super()._set_autocommit(False)  # type: ignore[misc]
            self.autocommit = False
        finally:
            listed.pop(self, None)

    def _commit(self) -> Any:
        """Commit, unless the toolkit has ended the session, which is then said."""
        lease = self._conn_hygiene_lease
        if lease.state == GIVEN_BACK:
            # Nothing is open, for which psycopg asks no server either.
            return None
        if lease.ended_because is not None:
            with self.wrap_database_errors:
                lease.check()
        return super()._commit()  # type: ignore[misc]

    def _rollback(self) -> Any:
        """Roll back, for which a connection that was given back is not needed."""
        if self._conn_hygiene_lease.state == GIVEN_BACK:
            return None
        return super()._rollback()  # type: ignore[misc]

    def run_and_clear_commit_hooks(self) -> None:
        """Run the hooks; the transaction is over, and one that is slow before it queries should hold nothing."""
        if self.run_on_commit:
            # connect() empties the list, so it must be out of the way while the connection is let go.
            hooks, self.run_on_commit = self.run_on_commit, []
            try:
                self._conn_hygiene_lease.settle(handle_is_out=False)
            finally:
                # The transaction is committed, whatever a signal handler raises here.
                self.run_on_commit = hooks
        super().run_and_clear_commit_hooks()

    def commit(self) -> None:
        """Commit; under manual transaction management that may have ended what kept the connection."""
        super().commit()
        self._conn_hygiene_lease.transaction_ended()

    def rollback(self) -> None:
        """Roll back; as for :meth:`commit`."""
        super().rollback()
        self._conn_hygiene_lease.transaction_ended()

    def get_autocommit(self) -> bool:
        """Return the flag, without a checkout for it, nor a look at the handle: ``on_commit()`` asks at any time."""
        if self._conn_hygiene_lease.state != CLOSED and self.autocommit:
            return self.autocommit
        return super().get_autocommit()


def _opener(frame: FrameType | None) -> CodeType | None:
    """Return the function that has entered the ``atomic()`` of *frame*, and that runs for as long as it is inside.

    That is none of ``contextlib``'s, nor a generator that is a context manager.
    """
    frame = frame and frame.f_back
    while frame is not None and (frame.f_code.co_flags & CO_GENERATOR or frame.f_code.co_filename == _CONTEXTS_FILE):
        code, frame = frame.f_code, frame.f_back
        if code.co_filename != _CONTEXTS_FILE and (frame is None or frame.f_code.co_filename != _CONTEXTS_FILE):
            return code
    return frame and frame.f_code


_CONTEXTS_FILE = contextlib.ExitStack.close.__code__.co_filename


def _opened_by_handler(frame: FrameType | None) -> bool:
    """Return whether the ``atomic()`` in the stack from *frame* on is the one of ``ATOMIC_REQUESTS``.

    Django's handler calls it, and under ASGI asgiref on its behalf; any other is called by the project's own code.
    """
    while frame is not None:
        name: str = frame.f_globals.get("__name__", "")
        if name not in (TRANSACTION, "contextlib", __name__):
            return name.startswith(("django.core.handlers.", "asgiref."))
        frame = frame.f_back
    return False
