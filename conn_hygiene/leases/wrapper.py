"""Django's database wrapper while it has a lease.

The wrapper instance is moved to a subclass of its own class, in which ``connection`` is a property. Being a data
descriptor, it sees every use: by Django, and by code that reaches for ``connections["default"].connection``. It sees
looks, too, and ``looks`` tells which they are. Whatever others have put on the instance (django-debug-toolbar, Django's
test client) goes on working on top.

That subclass is written in layers, as the lease is, each a class that knows those beneath it::

    LeasedWrapper         here: the connection, its copies, and its cursors
    TransactingWrapper    transacting_wrapper: where transactions begin and end
    ConnectingWrapper     connecting_wrapper: when it gets a connection, and by which way
    PooledWrapper         pooled_wrapper: the short way, out of a native pool
    ClosingWrapper        closing_wrapper: how the connection is closed, and when
    the backend's own
"""

from __future__ import annotations

import sys
from functools import lru_cache
from inspect import unwrap
from time import monotonic
from typing import TYPE_CHECKING, Any

from conn_hygiene import internals
from conn_hygiene.leases import checkouts, cursors, proxied
from conn_hygiene.leases.djangos import CODE_OF_CURSOR, CREATE_CURSOR, CURSOR
from conn_hygiene.leases.ended import QUIET
from conn_hygiene.leases.states import HELD
from conn_hygiene.leases.transacting_wrapper import TransactingWrapper
from conn_hygiene.pools import sqlalchemy

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg
    from django.db.backends.base.base import BaseDatabaseWrapper

    from conn_hygiene.events import Replaced
    from conn_hygiene.leases.lease import Lease

# Without the question for an event loop.
_create_cursor: Any = unwrap(CREATE_CURSOR)
_CREATE_CURSOR, _ENSURE_CONNECTION = "create_cursor", "ensure_connection"

# Where a wrapper keeps its lease.
LEASE = "_conn_hygiene_lease"


class LeasedWrapper(TransactingWrapper):
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

    def _get_connection(self) -> Any:
        # Called twice for each query, when the handle is out: without a call then.
        handle = self._conn_hygiene_lease.handle
        return self._conn_hygiene_lease.read(sys._getframe(1)) if handle is None else handle

    connection = property(_get_connection, _set_connection, doc="The psycopg connection.")

    def _cursor(self, name: str | None = None) -> Any:
        """Do what Django's does, with what has been asked by then not asked again: whether an event loop runs here.

        Django asks that as its ``cursor()`` begins, in ``ensure_connection()``, and in ``create_cursor()``, which costs
        as much as all that the toolkit has to do when the cursor closes.
        """
        own = self.__dict__
        if (
            self._conn_hygiene_class._cursor is not CURSOR
            or self._conn_hygiene_class.create_cursor is not CREATE_CURSOR
            or _CREATE_CURSOR in own
            or _ENSURE_CONNECTION in own
        ):
            # Somebody has put his own in its place.
            return super()._cursor(name)  # type: ignore[misc]
        self.close_if_health_check_failed()
        if sys._getframe(1).f_code is CODE_OF_CURSOR:
            self._ensure_connection()
        else:
            self.ensure_connection()
        try:
            return self._prepare_cursor(  # type: ignore[attr-defined]
                self._make_cursor(_create_cursor.__get__(self), name)
            )
        except Exception:
            with self.wrap_database_errors:
                raise

    def create_cursor(self, name: str | None = None) -> Any:
        """Create a cursor that tells the lease when it closes."""
        return self._make_cursor(super().create_cursor, name)

    def _make_cursor(self, create: Callable[[str | None], Any], name: str | None) -> Any:
        lease, in_transaction = self._conn_hygiene_lease, self.in_atomic_block
        if not in_transaction and (not lease.trusted or monotonic() - lease.idle_since > QUIET):
            self._replace_if_broken()
        number = lease.checkouts
        cursor = create(name)
        cursors.register(cursor, lease)
        if not in_transaction:
            if lease.state != HELD or lease.checkouts != number:
                cursors.abandon(cursor, lease)
                cursor = self._make_cursor_anew(lease, create, name)
            # The handle was read to make the cursor, and is not out any more: from here on it is the open cursor that
            # keeps the reaper off. In a transaction, it is the transaction.
            lease.handle = None
        if lease.in_use_since is None:
            lease.begin_use()
        return cursor

    def _make_cursor_anew(self, lease: Lease, create: Callable[[str | None], Any], name: str | None) -> Any:
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
                cursor = create(name)
                cursors.register(cursor, lease)
            finally:
                listed.pop(self, None)
            if lease.state == HELD and lease.checkouts == number:
                return cursor
            cursors.abandon(cursor, lease)


class CheckingWrapper(LeasedWrapper):
    """Mixed in where it is known by which method a wrapper gets its connections: they are looked at there."""

    def get_new_connection(self, conn_params: Any) -> Any:
        """Get one as the backend does, and have it replaced if it is of a pool and does not work."""
        lease = self._conn_hygiene_lease
        replaced: list[Replaced] = []
        connection = checkouts.working_one(
            self, super().get_new_connection, conn_params, asked_at=lease.asked_at, replaced=replaced
        )
        if replaced:
            lease.add_news(replaced)
        return connection


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
