"""Transactions that are run again when the server asks for it, and a limit on how long their statements may run."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

import psycopg
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import DEFAULT_DB_ALIAS, Error, NotSupportedError, OperationalError, connections, transaction
from psycopg.pq import TransactionStatus
from psycopg.rows import scalar_row

from conn_hygiene import conf, pools, reaper, session
from conn_hygiene.scopes import Using, _Scope, aliases, release_connections
from conn_hygiene.wrapper import lease_of

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from typing_extensions import Self

logger = logging.getLogger("conn_hygiene.transactions")

F = TypeVar("F", bound=Callable[..., Any])

# PostgreSQL documentation, "PostgreSQL Error Codes"; its chapter "Serialization Failure Handling" says which of them
# mean that the same transaction may well succeed when it is run once more.
_SERIALIZATION_FAILURE = "40001"
_DEADLOCK_DETECTED = "40P01"
_LOCK_NOT_AVAILABLE = "55P03"
_QUERY_CANCELED = "57014"


def _sqlstate(exc: BaseException | None) -> str | None:
    """Return the SQLSTATE of a database error, Django's or psycopg's; None if it has none."""
    if isinstance(exc, Error):
        exc = exc.__cause__
    return getattr(exc, "sqlstate", None)


# ##### retry_transaction #####


@overload
def retry_transaction(func: F, /) -> F: ...
@overload
def retry_transaction(
    *,
    using: str | None = None,
    attempts: int | None = 5,
    seconds: float | None = None,
    lock_not_available: bool = False,
    delay: float = 0.1,
    max_delay: float = 5.0,
) -> Callable[[F], F]: ...
def retry_transaction(
    func: Any = None,
    /,
    *,
    using: str | None = None,
    attempts: int | None = 5,
    seconds: float | None = None,
    lock_not_available: bool = False,
    delay: float = 0.1,
    max_delay: float = 5.0,
) -> Any:
    """Run a function in a transaction of its own, and run it again on a deadlock or a serialization failure.

    Each attempt is an ``atomic(durable=True)`` block. It is repeated when the server reports SQLSTATE 40P01
    (``deadlock_detected``) or 40001 (``serialization_failure``), from a statement or from ``COMMIT``. Any other error
    goes through at once, the last one of these goes through unchanged. ``on_commit`` hooks of an attempt that failed
    never run, and an error in a hook is never a reason to repeat what has been committed. What the function did besides
    the database is not undone.

    Between two attempts it waits for a random time, and a connection with a pool is back there meanwhile, unless
    ``RELEASE`` is ``"never"``, a ``hold_connection`` is around, or session state pins it.

    An asynchronous function has the thread of the ORM to itself for as long as an attempt lasts: queries of other tasks
    that share the thread wait, and cannot get into the transaction. It must not wait for such a task.

    Needs the extra ``retry``: ``pip install "django-conn-hygiene[retry]"``.

    :param using: the alias of the transaction, as for Django's ``atomic()``.
    :param attempts: how often the function is run at most; None for no such limit.
    :param seconds: no attempt begins later than this many seconds after the first; None for no such limit.
    :param lock_not_available: repeat on SQLSTATE 55P03 as well, from ``NOWAIT`` or ``lock_timeout``.
    :param delay: the longest wait before the second attempt, in seconds; it doubles with each further one.
    :param max_delay: the longest wait of all, in seconds.
    :raises TypeError: at decoration, for a class, a generator function, or what is no function.
    :raises ValueError: at decoration, for limits that make no sense.
    :raises django.core.exceptions.ImproperlyConfigured: at decoration, if the extra is not installed.
    :raises RuntimeError: at the call, inside another transaction: there the whole of it would have to be repeated. As
        with ``durable=True``, the transaction that Django's ``TestCase`` opens does not count.
    """
    retry = _Retry(
        using=DEFAULT_DB_ALIAS if using is None else using,
        attempts=attempts,
        seconds=seconds,
        sqlstates=_REPEATED | {_LOCK_NOT_AVAILABLE} if lock_not_available else _REPEATED,
        delay=delay,
        max_delay=max_delay,
    )
    return retry if func is None else retry(func)


_REPEATED = frozenset({_SERIALIZATION_FAILURE, _DEADLOCK_DETECTED})


class _Retry:
    """What a ``retry_transaction(...)`` was told; decorates functions."""

    def __init__(
        self,
        *,
        using: str,
        attempts: int | None,
        seconds: float | None,
        sqlstates: frozenset[str],
        delay: float,
        max_delay: float,
    ) -> None:
        if attempts is None and seconds is None:
            raise ValueError("retry_transaction() needs a limit: attempts, seconds, or both.")
        if (attempts is not None and attempts < 1) or (seconds is not None and seconds <= 0):
            raise ValueError("retry_transaction() needs at least one attempt, and more than 0 seconds.")
        if not 0 <= delay <= max_delay:
            raise ValueError("retry_transaction() needs a delay of at least 0 and at most max_delay.")
        aliases(using, "retry_transaction")
        self._using = using
        self._attempts = attempts
        self._seconds = seconds
        self._sqlstates = sqlstates
        self._delay = delay
        self._max_delay = max_delay

    def __call__(self, func: F) -> F:
        _check_function(func)
        name = getattr(func, "__qualname__", repr(func))
        if iscoroutinefunction(func):
            # tenacity keeps the state of a run on the object.
            retrying = self._retrying(name, asynchronous=True)

            @functools.wraps(func)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                async def attempt() -> Any:
                    # The thread runs the attempt from beginning to end; the function's own queries come back to it.
                    return await sync_to_async(self._attempt)(lambda: async_to_sync(func)(*args, **kwargs))

                return _outcome(await retrying.copy()(attempt))

        else:
            retrying = self._retrying(name, asynchronous=False)

            @functools.wraps(func)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return _outcome(retrying.copy()(self._attempt, lambda: func(*args, **kwargs)))

        return wrapper  # type: ignore[return-value]

    def _retrying(self, name: str, *, asynchronous: bool) -> Any:
        try:
            import tenacity
        except ImportError as exc:
            raise ImproperlyConfigured(
                'retry_transaction needs tenacity: pip install "django-conn-hygiene[retry]"'
            ) from exc
        stops: list[Any] = []
        if self._attempts is not None:
            stops.append(tenacity.stop_after_attempt(self._attempts))
        if self._seconds is not None:
            stops.append(tenacity.stop_before_delay(self._seconds))
        return (tenacity.AsyncRetrying if asynchronous else tenacity.Retrying)(
            stop=tenacity.stop_any(*stops),
            wait=tenacity.wait_random_exponential(multiplier=self._delay, max=self._max_delay),
            retry=tenacity.retry_if_exception(self._is_repeated),
            before_sleep=functools.partial(self._log, name),
            reraise=True,
        )

    def _attempt(self, body: Callable[[], Any]) -> Any:
        """Run *body* once, in its transaction, in the thread of the connection."""
        connection = connections[self._using]
        _refuse_outer_transaction(connection)
        hooks: list[bool] = []
        try:
            with transaction.atomic(using=self._using, durable=True):
                # Hooks run in the order in which they were added. Those of a TestCase's transaction never do.
                if len(connection.atomic_blocks) == 1:
                    transaction.on_commit(lambda: hooks.append(True), using=self._using)
                return _finished(body())
        except Exception as exc:
            if hooks:
                return _FailedHook(exc)
            if self._is_repeated(exc):
                self._let_go(connection)
            raise

    def _is_repeated(self, exc: BaseException) -> bool:
        return _sqlstate(exc) in self._sqlstates

    def _let_go(self, connection: BaseDatabaseWrapper) -> None:
        """Hold no connection of a pool while waiting; without a pool, the scopes around decide."""
        if connection.settings_dict.get("OPTIONS", {}).get("pool") and conf.current.RELEASE != "never":
            release_connections(using=self._using)

    def _log(self, name: str, state: Any) -> None:
        sqlstate, delay = _sqlstate(state.outcome.exception()), state.next_action.sleep
        logger.info(
            "The transaction of %s on %r failed in attempt %d with SQLSTATE %s; the next attempt is in %.3f s.",
            name,
            self._using,
            state.attempt_number,
            sqlstate,
            delay,
            extra={
                "alias": self._using,
                "function": name,
                "attempt": state.attempt_number,
                "sqlstate": sqlstate,
                "delay": delay,
            },
        )


class _FailedHook(NamedTuple):
    """The outcome of an attempt that was committed, and whose ``on_commit`` hook then failed."""

    exception: Exception


def _outcome(result: Any) -> Any:
    if isinstance(result, _FailedHook):
        raise result.exception
    return result


def _refuse_outer_transaction(connection: BaseDatabaseWrapper) -> None:
    if connection.atomic_blocks:
        if getattr(connection.atomic_blocks[-1], "_from_testcase", False):
            return
        problem = "is called inside atomic()"
    elif not connection.get_autocommit():
        problem = "is called while autocommit is off"
    else:
        return
    raise RuntimeError(
        f"A function under @retry_transaction {problem} on {connection.alias!r}. Running it again cannot help there, "
        "since all of the outer transaction has failed with it. Decorate the outermost function instead; for a view "
        "under ATOMIC_REQUESTS, add @transaction.non_atomic_requests."
    )


def _finished(result: Any) -> Any:
    """Return *result*, unless it has yet to run."""
    if inspect.iscoroutine(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError(
            f"A function under @retry_transaction returned a {type(result).__name__}, which would run after its "
            "transaction. Decorate an `async def` function itself, and return lists instead of generators."
        )
    return result


def _check_function(func: Any) -> None:
    if isinstance(func, (staticmethod, classmethod)):
        raise TypeError(f"Put @retry_transaction below @{type(func).__name__}, next to the function.")
    if inspect.isclass(func):
        raise TypeError(f"@retry_transaction cannot decorate the class {func.__qualname__}. Decorate a method.")
    if not callable(func):
        raise TypeError(
            f"@retry_transaction decorates functions, not {func!r}. The alias is given as retry_transaction(using=...)."
        )
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise TypeError(
            f"@retry_transaction cannot decorate the generator function {func.__qualname__}: what it has yielded "
            "cannot be taken back. Return a list."
        )


# ##### query_timeout #####


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
    that runs longer is ended by the server, and raises :exc:`~conn_hygiene.transactions.QueryTimeout`.

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
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
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


_SOILED = session.Effect(frozenset(), frozenset())


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
    if _sqlstate(exc) != _QUERY_CANCELED or elapsed * 1000 < limit * _CLOCKS:
        return False
    return "user request" not in str(exc)


# The server's clock and ours may differ by this.
_CLOCKS = 0.99


def _timeout(alias: str, limit: int) -> QueryTimeout:
    seconds = limit / 1000
    exc = QueryTimeout(f"A statement on {alias!r} ran longer than the {seconds:g} s that query_timeout() allows.")
    exc.seconds = seconds
    return exc
