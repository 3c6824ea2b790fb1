"""Django's database wrapper while it has a lease.

The wrapper instance is moved to a subclass of its own class, in which ``connection`` is a property. Being a data
descriptor, it sees every use: by Django, and by code that reaches for ``connections["default"].connection``. It sees
looks, too, and ``looks`` tells which they are. Whatever others have put on the instance (django-debug-toolbar, Django's
test client) goes on working on top.
"""

from __future__ import annotations

import contextlib
import sys
from functools import lru_cache
from inspect import CO_GENERATOR
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db.backends.base.base import BaseDatabaseWrapper

from conn_hygiene import internals
from conn_hygiene.leases import checkouts, cursors, proxied
from conn_hygiene.leases.connecting_wrapper import ConnectingWrapper
from conn_hygiene.leases.djangos import (
    TRANSACTION,
)
from conn_hygiene.leases.ended import QUIET
from conn_hygiene.leases.states import CLOSED, GIVEN_BACK, HELD, PARKED
from conn_hygiene.pools import sqlalchemy

if TYPE_CHECKING:
    from types import CodeType, FrameType

    import psycopg

    from conn_hygiene.leases.lease import Lease


_PLAIN_SET_AUTOCOMMIT = getattr(getattr(BaseDatabaseWrapper, "set_autocommit", None), "__code__", None)

# Where a wrapper keeps its lease.
LEASE = "_conn_hygiene_lease"


class LeasedWrapper(ConnectingWrapper):
    """Mixed into a wrapper's class: every use of the connection goes by the lease."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return a plain wrapper of the backend's own class, for whoever makes one from ``type(self)``."""
        # BaseDatabaseWrapper.copy() does; the copy gets a lease of its own once it connects.
        return plain_class(cls)(*args, **kwargs)

    def __copy__(self) -> Any:
        """Return a plain wrapper with the same attributes, the connection included, as ``copy.copy()`` would."""
        copy = object.__new__(plain_class(type(self)))
        copy.__dict__.update(self.__dict__)
        lease = copy.__dict__.pop(LEASE)
        # The very handle that this one shows: the proxy, where there is one.
        copy.__dict__["connection"] = None if lease.share() is None else self.connection
        return copy

    def _set_connection(self, connection: psycopg.Connection[Any] | None) -> None:
        lease = self._conn_hygiene_lease
        if connection is not None:
            lease.mark_connect()
        lease.assign(connection)

    # Read twice for each query, and so by a function that is not written in Python; see `Lease.handle`.
    connection = property(attrgetter("_conn_hygiene_lease.handle"), _set_connection, doc="The psycopg connection.")

    def create_cursor(self, name: str | None = None) -> Any:
        """Create a cursor that tells the lease when it closes."""
        lease, in_transaction = self._conn_hygiene_lease, self.in_atomic_block
        if not in_transaction and (not lease.trusted or monotonic() - lease.idle_since > QUIET):
            self._replace_if_broken()
        number = lease.checkouts
        cursor = super().create_cursor(name)
        cursors.register(cursor, lease)
        if not in_transaction:
            if lease.state != HELD or lease.checkouts != number:
                cursors.abandon(cursor, lease)
                cursor = self._create_cursor_anew(lease, name)
            # The handle was read to make the cursor, and is not out any more: from here on it is the open cursor that
            # keeps the reaper off. In a transaction, it is the transaction.
            lease.__dict__.clear()
        if lease.in_use_since is None:
            lease.begin_use()
        return cursor

    def _create_cursor_anew(self, lease: Lease, name: str | None) -> Any:
        """Create a cursor in the place of one whose connection was let go of as it was made.

        By the query of a signal handler or a finaliser, or of a backend's own ``create_cursor()``. Such a query lets go
        of nothing this time, as if a cursor were open.
        """
        while True:
            self.ensure_connection()
            number, listed = lease.checkouts, lease.open_cursors
            listed[self] = None
            try:
                if lease.state != HELD:
                    # A handler has come just before.
                    continue
                cursor = super().create_cursor(name)
                cursors.register(cursor, lease)
            finally:
                listed.pop(self, None)
            if lease.state == HELD and lease.checkouts == number:
                return cursor
            cursors.abandon(cursor, lease)

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
        if caller is None or caller.f_code is not LeasedWrapper.set_autocommit.__code__:
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


class CheckingWrapper(LeasedWrapper):
    """Mixed in where it is known by which method a wrapper gets its connections: they are looked at there."""

    def get_new_connection(self, conn_params: Any) -> Any:
        """Get one as the backend does, and have it replaced if it is of a pool and does not work."""
        asked_at = self._conn_hygiene_lease.asked_at
        return checkouts.working_one(self, super().get_new_connection, conn_params, asked_at=asked_at)


def leased_class(cls: Any) -> type[Any]:
    """Return the subclass of wrapper class *cls* that goes by a lease; its instances answer *cls* for ``__class__``.

    Django makes wrappers from ``self.__class__`` and sends ``connection_created`` with it as the sender.
    """
    return _mixed_in(CheckingWrapper if internals.CHECKOUTS.available else LeasedWrapper, cls)


@lru_cache(maxsize=64)
def _mixed_in(mixin: type[Any], cls: Any) -> type[Any]:
    namespace = _names(cls) | {"__class__": property(plain_class_of), "_conn_hygiene_class": cls}
    if sqlalchemy.is_backend(cls):
        return type(cls.__name__, (proxied.Shown, mixin, proxied.Behind, cls), namespace)
    return type(cls.__name__, (mixin, cls), namespace)


def _names(cls: type[Any]) -> dict[str, Any]:
    """Return what makes a subclass go by the name of *cls* in reprs and tracebacks."""
    return {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}


def plain_class(cls: type[Any]) -> type[Any]:
    """Return the backend's own class for a class made by :func:`leased_class`."""
    plain: type[Any] = cls._conn_hygiene_class
    return plain


def plain_class_of(wrapper: LeasedWrapper) -> type[Any]:
    """Return the backend's own class of a leased wrapper."""
    return plain_class(type(wrapper))


def lease_of(wrapper: BaseDatabaseWrapper) -> Lease | None:
    """Return the lease of *wrapper*, or None if it has none: another vendor, never connected, or left alone."""
    return wrapper.__dict__.get(LEASE)


def is_open(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether *wrapper* has a connection now; not one that was given back."""
    lease = lease_of(wrapper)
    return wrapper.connection is not None if lease is None else lease.holds_connection()
