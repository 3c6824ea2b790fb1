"""Settings of the code that runs: a limit on how long its statements may run."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from django.core.exceptions import SynchronousOnlyOperation
from django.db import Error, NotSupportedError, OperationalError, connections
from psycopg.pq import TransactionStatus
from psycopg.rows import scalar_row

from conn_hygiene import conf, internals
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.pools import base as pools
from conn_hygiene.reaper import reaper
from conn_hygiene.scopes import _Scope
from conn_hygiene.sessions.sql import Effect
from conn_hygiene.transactions.errors import QUERY_CANCELED, sqlstate_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper
    from typing_extensions import Self

    from conn_hygiene.using import Using

logger = logging.getLogger("conn_hygiene.transactions")


class QueryTimeout(OperationalError):
    """A statement ran longer than the :func:`~conn_hygiene.query_timeout` around it allows.

    The ``__cause__`` is psycopg's error.
    """

    #: The limit, in seconds.
    seconds: float


def query_timeout(seconds: float, *, using: Using = None) -> _QueryTimeout:
    """Limit how long each statement may run: a decorator, and a context manager for ``with`` and ``async with``.

    The limit is PostgreSQL's ``statement_timeout``. It takes the place of the one in the settings or on the server,
    be that longer or shorter; of nested limits the innermost counts, and the outer one comes back after it. A statement
    that runs longer is ended by the server, and raises :exc:`~conn_hygiene.QueryTimeout`.

    The limit is set with the first statement on each connection (outside of transactions) or in each transaction, which
    costs a round trip, and taken back at the end, which costs another one. A block without statements costs none.
    A connection that is given back in between is cleaned, so that nobody else meets the limit.

    In async code it holds for the queries of the ORM, which run in the thread that ``sync_to_async`` takes for them.

    :param seconds: for each statement, above 0. The server counts whole milliseconds; fractions are rounded up.
    :param using: an alias of DATABASES, or several; by default all that are PostgreSQL's.
    :raises TypeError: *seconds* is no number, *using* is no alias, or what is decorated is not a function.
    :raises ValueError: *seconds* is 0 or less, or more than the server can count.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    :raises django.core.exceptions.SynchronousOnlyOperation: at ``with``, in a thread that runs an event loop.
    :raises django.db.NotSupportedError: at ``with``, if an alias of *using* is not PostgreSQL's; at the first statement
        outside of a transaction, if the backend is one that the toolkit leaves alone, or it is not installed: nobody
        would take the limit back from a connection that goes to somebody else.
    """
    return _QueryTimeout(seconds, using)


# PostgreSQL's integer parameters end here.
_MOST = 2**31 - 1


class _Limit(NamedTuple):
    """One entering of a ``query_timeout``."""

    scope: _QueryTimeout
    milliseconds: int
    using: frozenset[str] | None


class _QueryTimeout(_Scope):
    name = "query_timeout"
    lasts = True
    _entered: ContextVar[tuple[_Limit, ...]] = ContextVar("conn_hygiene_query_timeouts", default=())

    def __init__(self, seconds: float, using: Using) -> None:
        if not conf.is_number(seconds):
            raise TypeError(f"query_timeout() takes a number of seconds, not {seconds!r}.")
        # Said this way round, NaN is out as well.
        if not 0 < seconds * 1000 <= _MOST:
            raise ValueError(f"query_timeout() takes seconds above 0 and up to {_MOST // 1000}, not {seconds!r}.")
        super().__init__(using)
        self._milliseconds = math.ceil(seconds * 1000)

    @classmethod
    def limit(cls, alias: str) -> int | None:
        """Return the limit in milliseconds of the code that runs now, None if there is none."""
        for entry in reversed(cls._entered.get()):
            if entry.using is None or alias in entry.using:
                return entry.milliseconds
        return None

    def __enter__(self) -> Self:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return super().__enter__()
        raise SynchronousOnlyOperation("Use `async with query_timeout(...)`: queries run in another thread than this.")

    def _entry(self) -> _Limit:
        return _Limit(self, self._milliseconds, self._using)

    def _wrappers(self) -> list[BaseDatabaseWrapper]:
        if self._using is None:
            return [wrapper for wrapper in connections.all() if wrapper.vendor == "postgresql"]
        return [connections[alias] for alias in self._using]

    def _begin(self, entry: Any) -> None:
        if not internals.TIMEOUTS.available:
            raise NotSupportedError(f"query_timeout() needs {', '.join(internals.TIMEOUTS.missing)}, which is missing.")
        wrappers = self._wrappers()
        for wrapper in wrappers:
            if wrapper.vendor != "postgresql":
                raise NotSupportedError(
                    f"query_timeout() is for PostgreSQL, and {wrapper.alias!r} is another database."
                )
        for wrapper in wrappers:
            _Limiter.of(wrapper).entered += 1

    def _end(self, entry: Any) -> None:
        for wrapper in self._wrappers():
            _Limiter.of(wrapper).left(wrapper)


class _Setting(NamedTuple):
    """What was set in a session, or in a transaction."""

    milliseconds: int | None
    # As SHOW gave it, what it was before.
    before: str
    # Of the lease. A session that was given back and checked out again is another one.
    checkout: int
    # Whether nothing can have undone it since.
    certain: bool = True


class _Limiter:
    """Keeps one wrapper's ``statement_timeout`` at what the code around each of its statements wants.

    It is one of the wrapper's ``execute_wrappers`` (Django documentation, "Database instrumentation"), the outermost.
    Outside of transactions it sets the session's value, and has the lease
    clean the session before anybody else gets it. In a transaction it uses ``SET LOCAL``, which ends with it.
    """

    def __init__(self) -> None:
        self.entered = 0
        self._session: _Setting | None = None
        self._transaction: _Setting | None = None

    @classmethod
    def of(cls, wrapper: BaseDatabaseWrapper) -> _Limiter:
        """Return the limiter of *wrapper*, put there if it has none."""
        for found in wrapper.execute_wrappers:
            if isinstance(found, cls):
                return found
        limiter = cls()
        # At the front: whoever leaves an execute_wrapper() pops the last one.
        wrapper.execute_wrappers.insert(0, limiter)
        return limiter

    def __call__(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        wrapper: BaseDatabaseWrapper = context["connection"]
        limit = _QueryTimeout.limit(wrapper.alias)
        with wrapper.wrap_database_errors:
            self._adjust(wrapper, context["cursor"].cursor.connection, limit)
        began = time.monotonic()
        try:
            return execute(sql, params, many, context)
        except OperationalError as exc:
            if limit is None or not _is_timeout(exc, time.monotonic() - began, limit):
                raise
            raise _timeout(wrapper.alias, limit) from exc.__cause__
        finally:
            if self._transaction and isinstance(sql, str) and sql.startswith("ROLLBACK TO"):
                self._transaction = self._transaction._replace(certain=False)

    def left(self, wrapper: BaseDatabaseWrapper) -> None:
        """Take the limit back, or go to the one around, when a block ends."""
        self.entered -= 1
        try:
            if self._is_set(wrapper):
                with wrapper.cursor() as cursor:
                    self._adjust(wrapper, cursor.cursor.connection, _QueryTimeout.limit(wrapper.alias))
        except (Error, psycopg.Error):
            # Broken, as its next statement will say; and the error that it broke with may be on its way.
            logger.info("The limit of query_timeout() on %r could not be taken back.", wrapper.alias, exc_info=True)
        finally:
            if self.entered <= 0 and self in wrapper.execute_wrappers:
                wrapper.execute_wrappers.remove(self)

    def _is_set(self, wrapper: BaseDatabaseWrapper) -> bool:
        """Return whether there may be something to take back, without a checkout for the answer."""
        lease = lease_of(wrapper)
        if wrapper.closed_in_transaction:
            return False
        if lease is None:
            return self._transaction is not None and not wrapper.autocommit
        if self._transaction is not None and lease.in_transaction():
            return True
        return self._session is not None and self._session.checkout == lease.checkouts and lease.holds_connection()

    def _adjust(self, wrapper: BaseDatabaseWrapper, connection: psycopg.Connection[Any], limit: int | None) -> None:
        """Set the limit that is wanted, if it is not the one that is set."""
        status = connection.pgconn.transaction_status
        if status == TransactionStatus.INERROR:
            # Nothing can be set, and the rollback that must come next ends at once.
            return
        lease = lease_of(wrapper)
        checkout = 0 if lease is None else lease.checkouts
        if self._session is not None and self._session.checkout != checkout:
            self._session = None
        if status == TransactionStatus.IDLE:
            self._transaction = None
        now = self._transaction or self._session
        if (now is None and limit is None) or (now is not None and now.certain and now.milliseconds == limit):
            return
        if status == TransactionStatus.IDLE and connection.autocommit:
            if self._session is None:
                if lease is None:
                    _refuse_unless_connecting(wrapper)
                    return
                # Unlike an application's own SET, it is no reason to keep the session.
                lease._pin(_SOILED)
            before = _set(connection, "SET", limit, self._session)
            self._session = None if limit is None else _Setting(limit, before, checkout)
        else:
            before = _set(connection, "SET LOCAL", limit, now)
            self._transaction = _Setting(limit, before, checkout)


_SOILED = Effect(frozenset(), frozenset())


def _set(connection: psycopg.Connection[Any], command: str, limit: int | None, known: _Setting | None) -> str:
    """Set ``statement_timeout`` to *limit*, or to what it was before for None; return what it was before."""
    # Not of the connection's own class, which would pin the lease. And not SELECT set_config(): no query may come
    # before a SET TRANSACTION.
    with psycopg.Cursor(connection, row_factory=scalar_row) as cursor:
        if known is not None:
            value = known.before if limit is None else limit
            cursor.execute(f"{command} statement_timeout = '{value}'".encode(), prepare=False)
            return known.before
        cursor.execute(f"SHOW statement_timeout; {command} statement_timeout = '{limit}'".encode(), prepare=False)
        return str(cursor.fetchone())


def _refuse_unless_connecting(wrapper: BaseDatabaseWrapper) -> None:
    """Let receivers of ``connection_created`` query before there is a lease; raise for who will never get one."""
    if reaper.running is None or not pools.understands(wrapper):
        raise NotSupportedError(
            f"Outside of a transaction, query_timeout() needs conn_hygiene to look after {wrapper.alias!r}, and it "
            "does not. Use it inside atomic(), or have conn_hygiene in INSTALLED_APPS and use Django's own backend."
        )


def _is_timeout(exc: OperationalError, elapsed: float, limit: int) -> bool:
    """Return whether *exc* came from our own limit: the same SQLSTATE comes from ``pg_cancel_backend()``.

    The server tells them apart in the text of the message alone, which may be in any language; so the clock decides
    where it can.
    """
    if sqlstate_of(exc) != QUERY_CANCELED or elapsed * 1000 < limit * _CLOCKS:
        return False
    return "user request" not in str(exc)


# The server's clock and ours may differ by this.
_CLOCKS = 0.99


def _timeout(alias: str, limit: int) -> QueryTimeout:
    seconds = limit / 1000
    exc = QueryTimeout(f"A statement on {alias!r} ran longer than the {seconds:g} s that query_timeout() allows.")
    exc.seconds = seconds
    return exc
