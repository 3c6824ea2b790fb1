"""Cursors that tell their lease when they close, and what they execute.

While a connection is checked out under a lease, its cursor factories are subclasses of what they were; they are put
back before it returns to its pool. psycopg documents both as attributes to be set ("Cursor and connection factories").

A cursor outlives its checkout if somebody keeps it. Its connection may be somebody else's by then, so it is *retired*
when the checkout ends: it moves to a class in which whatever reaches the server is refused. One that is in use need not
ask whether it may.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from psycopg import Cursor, Error, InterfaceError, OperationalError, ServerCursor
from psycopg.pq import TransactionStatus

from conn_hygiene import callsite, conf, internals
from conn_hygiene.leases import audits
from conn_hygiene.sessions.effects import Each
from conn_hygiene.sessions.sql import LONGEST_REMEMBERED, remembered_effect_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import psycopg
    from psycopg import Cursor as _Cursor

    from conn_hygiene.leases.lease import Lease
    from conn_hygiene.sessions.effects import Effect
else:
    _Cursor = object

# Where a connection keeps the checkout that it is of, for cursors that its wrapper did not make.
_CHECKOUT = "_conn_hygiene_checkout"
# Where it keeps those that its wrapper did not make, once they have executed something.
_UNLISTED = "_conn_hygiene_unlisted"
_FACTORIES = ("cursor_factory", "server_cursor_factory")
# Where a class keeps the one that it stands for.
_PLAIN = "_conn_hygiene_plain"
# What is kept on each cursor, see LeasedCursor. Where there are slots, they hide the defaults there.
_KEPT = ("_conn_hygiene_entry", "_conn_hygiene_made_in")

# From psycopg 3.3 on, a cursor is an iterator itself.
_IS_ITERATOR = hasattr(Cursor, "__next__")

# For each query, which saves a look-up.
_ref = weakref.ref


class _Checkout:
    """One checkout of a connection. Written by its owner, or whoever ends it for that."""

    __slots__ = ("lease", "open_cursors", "over")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        #: The lease's list of these. Each checkout has its own.
        self.open_cursors = lease.open_cursors
        #: Whether the connection was closed or given back, and may be somebody else's.
        self.over = False


class LeasedCursor(_Cursor):
    """Mixed into a psycopg cursor's class."""

    __slots__ = ()

    # In which checkout the cursor was made; None outside of any, and for one that was not made by this class.
    _conn_hygiene_made_in: _Checkout | None = None

    # The lease, and as what the cursor stands in its list of open ones; None for a cursor made on a raw handle, which
    # does not count, and for a closed one.
    _conn_hygiene_entry: tuple[Lease, weakref.ref[Any]] | None = None

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        # Before all else, which may query already: in a slot, there is no default.
        self._conn_hygiene_entry = None
        self._conn_hygiene_made_in = getattr(connection, _CHECKOUT, None)
        super().__init__(connection, *args, **kwargs)

    def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
        """Announce the statement to the lease, then execute it."""
        entry = self._conn_hygiene_entry
        if (
            entry is not None
            and query.__class__ is str
            and len(query) <= LONGEST_REMEMBERED
            and remembered_effect_of(query) is None
            and (lease := entry[0]).ended_because is None
            # Django has them called for its own cursors only, and not for those that these are made of.
            and not getattr(lease.wrapper(), "execute_wrappers", None)
        ):
            # What _announce() comes to for nearly every statement.
            lease.last_statement = (query,)
            if not kwargs:
                try:
                    return super().execute(query, params)
                except Error as error:
                    self._failed(error)
                    raise
            undoes = None
        else:
            undoes = self._announce(query, params)
        try:
            result = super().execute(query, params, **kwargs) if kwargs else super().execute(query, params)
        except Error as error:
            self._failed(error)
            raise
        if undoes is not None:
            self._succeeded(undoes)
        return result

    def executemany(self, query: Any, params_seq: Any, **kwargs: Any) -> Any:
        """Announce the statement to the lease, then execute it for each of the parameters."""
        # No undoing is believed, since there may be nothing to execute it for.
        self._announce(query, Each(params_seq))
        with self._telling():
            return super().executemany(query, params_seq, **kwargs)

    # The next two announce it when they begin, which is when they send it, and not when they are called.

    def stream(self, query: Any, params: Any = None, **kwargs: Any) -> Iterator[Any]:
        """Announce the statement to the lease, then execute it row by row."""
        self._announce(query, params)
        with self._telling():
            yield from super().stream(query, params, **kwargs)

    @contextlib.contextmanager
    def copy(self, statement: Any, params: Any = None, **kwargs: Any) -> Iterator[Any]:
        """Announce the ``COPY`` to the lease, then begin it."""
        self._announce(statement, params)
        with self._telling(), super().copy(statement, params, **kwargs) as copy:
            yield copy

    def scroll(self, value: int, mode: str = "relative") -> None:
        """Scroll, unless the cursor is closed: psycopg would send the ``MOVE`` of a server-side one all the same."""
        self._refuse_if_closed()
        super().scroll(value, mode)

    def _announce(self, query: Any, params: Any) -> Effect | None:
        """Tell the lease what is about to run. Returns what it is to be told again when that has succeeded."""
        entry = self._conn_hygiene_entry
        if entry is not None:
            return entry[0].statement(query, params, self._conn)
        # Before executemany() turns pipeline mode on, for one.
        self._refuse_if_closed()
        if self._is_left_behind():
            self._refuse()
        checkout: _Checkout | None = getattr(self._conn, _CHECKOUT, None)
        if checkout is None:
            return None
        self._conn.__dict__.setdefault(_UNLISTED, _Unlisted()).note(self)
        lease = checkout.lease
        if getattr(self, "withhold", False):
            # psycopg writes the DECLARE, and the query does not show it. Django's own cursors keep the connection while
            # they are open, so this is about those of the handle.
            lease.note_held_cursor()
        return lease.statement(query, params, self._conn)

    def _succeeded(self, undoes: Effect) -> None:
        lease = self._lease()
        # In a pipeline it has only been sent.
        if lease is not None and not self._conn.pgconn.pipeline_status:
            lease.succeeded(undoes, self._conn)

    def _failed(self, error: Error) -> None:
        lease = self._lease()
        if lease is not None:
            lease.failed(error, self._conn)

    def _lease(self) -> Lease | None:
        if self._conn_hygiene_entry is not None:
            return self._conn_hygiene_entry[0]
        checkout: _Checkout | None = getattr(self._conn, _CHECKOUT, None)
        return None if checkout is None else checkout.lease

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell the lease of an error of psycopg's that is raised inside."""
        try:
            yield
        except Error as error:
            self._failed(error)
            raise

    def _is_left_behind(self) -> bool:
        """Return whether the cursor was made in a checkout that is over: one on a raw handle, which nobody has listed.

        What was executed by then has been retired.
        """
        made_in = self._conn_hygiene_made_in
        return made_in is not None and made_in.over

    def _refuse(self) -> NoReturn:
        if self._conn.closed:
            # As psycopg has it, for who looks for that to connect again.
            raise OperationalError("the connection is closed")
        raise InterfaceError("the connection of this cursor was closed or given back")

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise InterfaceError("the cursor is closed")

    def close(self) -> None:
        """Close the cursor, and tell the lease, once."""
        entry = self._conn_hygiene_entry
        if entry is None:
            super().close()
            return
        self._conn_hygiene_entry = None
        lease, cursor = entry
        try:
            super().close()
        finally:
            if threading.get_ident() == lease.thread_id:
                lease.cursor_closed(cursor)
            else:
                _closed_elsewhere(lease, cursor)


def _tell_closed(lease: Lease, cursor: weakref.ref[Any]) -> None:
    """Tell the lease of the end of a cursor. For each query, :meth:`LeasedCursor.close` has it written out."""
    if threading.get_ident() == lease.thread_id:
        lease.cursor_closed(cursor)
    else:
        _closed_elsewhere(lease, cursor)


def _closed_elsewhere(lease: Lease, cursor: weakref.ref[Any]) -> None:
    """Leave the end of a cursor to the reaper that another thread than its owner's has closed.

    It is a generator's, which an event loop or the garbage collector ends at any line of that thread. The owner may be
    about to use the connection, and has scopes of its own.
    """
    if not sys.is_finalizing():
        lease.keeper.cursor_lost(lease, cursor, is_of_checkout=False)


class LeasedServerCursor(LeasedCursor):
    """Mixed into the class of a server-side cursor, for which a fetch is a statement: ``FETCH``, or ``MOVE``."""

    __slots__ = ()

    withhold: bool
    itersize: int

    def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
        """Take note of one ``WITH HOLD``, which lasts until it is closed, and do as any other."""
        entry = self._conn_hygiene_entry
        if entry is not None and self.withhold:
            entry[0].session_state.held.add(entry[1])
        return super().execute(query, params, **kwargs)

    def _succeeded(self, undoes: Effect) -> None:
        """Believe in no undoing: it has only been declared."""

    def fetchone(self) -> Any:
        """Tell the lease of the fetch, then return the next row."""
        self._fetching()
        with self._telling():
            return super().fetchone()

    def fetchmany(self, size: int = 0) -> Any:
        """Tell the lease of the fetch, then return the next rows."""
        self._fetching()
        with self._telling():
            return super().fetchmany(size)

    def fetchall(self) -> Any:
        """Tell the lease of the fetch, then return the remaining rows."""
        self._fetching()
        with self._telling():
            return super().fetchall()

    if _IS_ITERATOR:

        def __next__(self) -> Any:
            self._fetching()
            # As _telling() has it, which costs too much for each row.
            try:
                return super().__next__()
            except Error as error:
                self._failed(error)
                raise
    else:

        def __iter__(self) -> Any:
            # psycopg's is a generator, which would fetch by itself.
            while rows := self.fetchmany(self.itersize):
                yield from rows

    def scroll(self, value: int, mode: str = "relative") -> None:
        """Tell the lease, then scroll."""
        self._fetching()
        with self._telling():
            super().scroll(value, mode)

    def close(self) -> None:
        """Close the cursor; where the toolkit has ended its session, nobody is there for the ``CLOSE``."""
        entry = self._conn_hygiene_entry
        if entry is None:
            if self._is_left_behind():
                self._close()
            else:
                super().close()
            return
        self._conn_hygiene_entry = None
        lease, cursor = entry
        try:
            if lease.ended_because is None:
                self._close_on_server(lease, cursor)
            else:
                self._close()
        finally:
            _tell_closed(lease, cursor)

    def _close_on_server(self, lease: Lease, cursor: weakref.ref[Any]) -> None:
        # In a transaction that has failed, psycopg sends none.
        is_sent = self._conn.pgconn.transaction_status in (TransactionStatus.IDLE, TransactionStatus.INTRANS)
        with self._telling() if lease.serves_thread() else contextlib.nullcontext():
            super(LeasedCursor, self).close()
        if is_sent:
            lease.session_state.held.discard(cursor)

    def _fetching(self) -> None:
        entry = self._conn_hygiene_entry
        if entry is not None:
            entry[0].fetching()
        elif self._is_left_behind():
            self._refuse()


class RetiredCursor(LeasedCursor):
    """Mixed into the class of a cursor whose connection was closed or given back.

    What it has received can be fetched still. A server-side cursor has nothing that lasts: its portal is gone.
    """

    __slots__ = ()

    def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
        """Refuse the statement."""
        self._announce(query, params)

    def _announce(self, query: Any, params: Any) -> Effect | None:
        self._refuse()

    def _refuse_if_not_here(self) -> None:
        # In pipeline mode, psycopg would fetch what has not come yet.
        if isinstance(self, ServerCursor) or not self.pgresult:
            self._refuse_if_closed()
            self._announce(None, None)

    def fetchone(self) -> Any:
        """Return the next row, if it has been received."""
        self._refuse_if_not_here()
        return super().fetchone()

    def fetchmany(self, size: int = 0) -> Any:
        """Return the next rows, if they have been received."""
        self._refuse_if_not_here()
        return super().fetchmany(size)

    def fetchall(self) -> Any:
        """Return the remaining rows, if they have been received."""
        self._refuse_if_not_here()
        return super().fetchall()

    if _IS_ITERATOR:

        def __next__(self) -> Any:
            self._refuse_if_not_here()
            return super().__next__()
    else:

        def __iter__(self) -> Any:
            self._refuse_if_not_here()
            return super().__iter__()

    def scroll(self, value: int, mode: str = "relative") -> None:
        """Move among the rows, if they have been received."""
        self._refuse_if_not_here()
        super().scroll(value, mode)

    def close(self) -> None:
        """Close the cursor here; the next owner must not get the ``CLOSE`` of a server-side one."""
        self._conn_hygiene_entry = None
        self._close()


class _Unlisted(dict["weakref.ref[Any]", None]):
    """Cursors on a raw handle, by weak references."""

    def note(self, cursor: LeasedCursor) -> None:
        self.setdefault(weakref.ref(cursor, self._forget))

    def _forget(self, reference: weakref.ref[Any]) -> None:
        self.pop(reference, None)


class Opened(NamedTuple):
    """Where a cursor was opened, and for which request. Its report comes later, when the lease may be another's."""

    place: callsite.Place | None
    request: str | None


class _NamedRef(weakref.ref[Any]):
    """A weak reference to a cursor that should be named if it is never closed."""

    __slots__ = ("opened",)

    opened: Opened


def opened(cursor: weakref.ref[Any]) -> Opened | None:
    """Return what was noted when the *cursor* was opened; None if it is not to be named. Safe in a finaliser."""
    return cursor.opened if type(cursor) is _NamedRef else None


class _StandsFor(type):
    """Makes a class equal to the one that it stands for: code may compare ``cursor_factory`` with what it has set."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or cls.__dict__.get(_PLAIN) is other

    def __hash__(cls) -> int:
        return type.__hash__(cls.__dict__.get(_PLAIN, cls))


# Bounded, since instrumentation may make a class for each connection (OpenTelemetry does).
@lru_cache(maxsize=64)
def leased_cursor_class(cls: Any) -> Any:
    """Return the subclass of psycopg cursor class *cls* that tells its lease; it goes by the name of *cls*."""
    # With slots, a cursor needs no dictionary for what is kept on it, without which Python finds its methods faster.
    return _mixed_in(_leased_mixin(cls), cls, slots=_KEPT)


@lru_cache(maxsize=64)
def _adopting_class(cls: Any) -> Any:
    """Return what :func:`leased_cursor_class` does, as a class that a cursor of *cls* can be moved to.

    That takes one of the same memory layout, without slots of its own.
    """
    return _mixed_in(_leased_mixin(cls), cls, slots=None)


def _leased_mixin(cls: Any) -> type[LeasedCursor]:
    return LeasedServerCursor if issubclass(cls, ServerCursor) else LeasedCursor


@lru_cache(maxsize=64)
def audited_cursor_class(cls: Any) -> Any:
    """Return the subclass of leased cursor class *cls* that tells its connection's audit; it goes by the same name."""
    return _mixed_in(audits.AuditedCursor, cls)


@lru_cache(maxsize=64)
def retired_cursor_class(cls: Any) -> Any:
    """Return the subclass of leased cursor class *cls* that reaches no server; it goes by the same name."""
    return _mixed_in(RetiredCursor, cls)


def _mixed_in(mixin: type, cls: Any, *, slots: tuple[str, ...] | None = ()) -> Any:
    plain = cls.__dict__.get(_PLAIN, cls)
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__, _PLAIN: plain}
    if slots is not None:
        names["__slots__"] = slots
    make = _StandsFor if type(cls) is type else type(cls)
    return make(cls.__name__, (mixin, cls), names)


def follow(connection: psycopg.Connection[Any], lease: Lease) -> None:
    """Have the cursors of *connection* tell *lease* from here on."""
    connection.__dict__[_CHECKOUT] = _Checkout(lease)
    factories: Any = connection
    factories.cursor_factory = _leased(factories.cursor_factory)
    factories.server_cursor_factory = _leased(factories.server_cursor_factory)
    if conf.current.AUDIT_SESSIONS and internals.AUDITS.available:
        _audit(connection, lease)


def _audit(connection: psycopg.Connection[Any], lease: Lease) -> None:
    audits.begin(connection, lease.alias, lease.session_state)
    for name in _FACTORIES:
        factory = getattr(connection, name)
        if isinstance(factory, type) and not issubclass(factory, audits.AuditedCursor):
            setattr(connection, name, audited_cursor_class(factory))  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def _leased(factory: Any) -> Any:
    # A factory need not be a class, or not one of psycopg's: its cursors are followed one by one.
    if not isinstance(factory, type) or not issubclass(factory, Cursor) or issubclass(factory, LeasedCursor):
        return factory
    return leased_cursor_class(factory)  # type: ignore[arg-type]


def retire(connection: psycopg.Connection[Any]) -> None:
    """Have the cursors of *connection* refuse what would reach the server, and unfollow it: its checkout ends.

    Sends nothing. To be repeated if it was interrupted.
    """
    attributes = connection.__dict__
    checkout: _Checkout | None = attributes.get(_CHECKOUT)
    if checkout is not None:
        checkout.over = True
        if checkout.open_cursors or _UNLISTED in attributes:
            _retire_all((*checkout.open_cursors, *attributes.get(_UNLISTED, ())))
    unfollow(connection)


def _retire_all(references: Iterable[object]) -> None:
    for reference in references:
        cursor = reference() if isinstance(reference, weakref.ref) else None
        if cursor is not None and not isinstance(cursor, RetiredCursor):
            cursor.__class__ = retired_cursor_class(type(cursor))  # type: ignore[arg-type]


def unfollow(connection: psycopg.Connection[Any]) -> None:
    """Make *connection* what it was before :func:`follow`; to be repeated if it was interrupted.

    A factory that somebody has set since stays: it is made from ours, which does nothing without a lease.
    """
    attributes = connection.__dict__
    attributes.pop(_UNLISTED, None)
    attributes.pop(_CHECKOUT, None)
    connection.cursor_factory = _unleased(connection.cursor_factory)
    connection.server_cursor_factory = _unleased(connection.server_cursor_factory)


def _unleased(factory: Any) -> Any:
    return factory.__dict__.get(_PLAIN, factory) if isinstance(factory, type) else factory


def register(cursor: Any, lease: Lease) -> None:
    """Have *cursor* keep the connection of *lease* until it is closed, or collected. The owner's; takes no lock."""
    if not isinstance(cursor, LeasedCursor):
        # Made past the factories, as Django does for server-side cursors.
        try:
            leased = _adopting_class(type(cursor))  # type: ignore[arg-type]
            cursor.__class__ = audited_cursor_class(leased) if audits.is_audited(cursor.connection) else leased
        except TypeError:
            # A class of a layout of its own: its end cannot be seen, so it holds the connection for good.
            lease.open_cursors[object()] = None
            return
    reference: weakref.ref[Any]
    if conf.names_cursors:
        place = _here()
        reference = named = _NamedRef(cursor, lease.cursor_collected)
        named.opened = Opened(place, lease.request)
        lease.open_cursors[reference] = place
    else:
        reference = _ref(cursor, lease.cursor_collected)
        lease.open_cursors[reference] = None
    cursor._conn_hygiene_entry = (lease, reference)


def forget_collected(listed: dict[object, Any]) -> None:
    """Take those that were collected out of *listed*, the open cursors of a lease. The owner's; takes no lock."""
    # Of a copy: a signal handler may query.
    for reference in list(listed):
        if isinstance(reference, weakref.ref) and reference() is None:
            listed.pop(reference, None)


def abandon(cursor: Any, lease: Lease) -> None:
    """Forget *cursor*, which has executed nothing, and close it on this side only. The owner's; takes no lock.

    Nothing is sent: the connection that it was made on may be somebody else's by now.
    """
    if isinstance(cursor, LeasedCursor) and cursor._conn_hygiene_entry is not None:
        _, reference = cursor._conn_hygiene_entry
        cursor._conn_hygiene_entry = None
        lease.open_cursors.pop(reference, None)
        cursor._close()


def _here() -> callsite.Place | None:
    return callsite.here_in_full(2) if conf.current.FULL_STACKS else callsite.here(2)
