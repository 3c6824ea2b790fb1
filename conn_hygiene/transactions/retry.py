"""Transactions that are run again when the server asks for it."""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, overload

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from psycopg.pq import TransactionStatus

from conn_hygiene import conf, internals
from conn_hygiene.events import TransactionRetried, publish
from conn_hygiene.leases.description import describe
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.pools import backends
from conn_hygiene.scoping import NOTHING, check_decorated
from conn_hygiene.transactions.errors import (
    DEADLOCK_DETECTED,
    IN_FAILED_SQL_TRANSACTION,
    LOCK_NOT_AVAILABLE,
    SERIALIZATION_FAILURE,
    sqlstate_of,
)
from conn_hygiene.using import alias, exempting

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

F = TypeVar("F", bound=Callable[..., Any])


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
    func: Any = NOTHING,
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
    is raised at once, and so is one with which an outer transaction of another alias has failed as well. When the limit
    is reached, the last of these errors is raised unchanged. ``on_commit`` hooks of an attempt that failed never run,
    and an error in a hook never causes a repetition, since the transaction is committed by then. Only the database of
    *using* is rolled back: what else the function does (files, e-mails, what it writes on another alias) happens in
    each attempt.

    Between two attempts it waits for a random time. Meanwhile a pooled connection is given back to its pool, unless
    ``RELEASE`` is ``"never"``, a ``hold_connection`` is around, session state pins the connection, or something outside
    of the failed attempt still has a cursor open.

    An asynchronous function has the ORM's thread (that of ``sync_to_async``) to itself during an attempt. Other tasks
    that use the same thread wait, so that their queries cannot get into the transaction. The function must not await
    the result of such a task: it would wait for ever.

    Needs the extra ``retry``: ``pip install "django-conn-hygiene[retry]"``.

    :param using: the alias of the transaction, as for Django's ``atomic()``.
    :param attempts: how often the function is run at most; None for no such limit.
    :param seconds: no attempt begins later than this many seconds after the first; None for no such limit.
    :param lock_not_available: repeat on SQLSTATE 55P03 as well, from ``NOWAIT`` or ``lock_timeout``.
    :param delay: the longest wait before the second attempt, in seconds; it doubles with each further one.
    :param max_delay: the longest wait of all, in seconds.
    :raises TypeError: at decoration, for a class, a generator function, or anything that is not a function; for a limit
        or a delay that is not a number; if *lock_not_available* is not a bool, or *using* not an alias.
    :raises ValueError: at decoration, for limits and delays that make no sense, NaN and infinity among them; if *using*
        is empty.
    :raises django.db.utils.ConnectionDoesNotExist: at decoration, if DATABASES has no such alias.
    :raises django.core.exceptions.ImproperlyConfigured: at decoration, if the extra is not installed.
    :raises RuntimeError: at the call, inside another transaction: all of that one would have to be repeated. As with
        ``durable=True``, the transaction that Django's ``TestCase`` opens does not count.
    """
    _check_bool(lock_not_available)
    retry = _Retry(
        using=DEFAULT_DB_ALIAS if using is None else using,
        attempts=attempts,
        seconds=seconds,
        sqlstates=_REPEATED | {LOCK_NOT_AVAILABLE} if lock_not_available else _REPEATED,
        delay=delay,
        max_delay=max_delay,
        called="retry_transaction(...)" if func is NOTHING else "retry_transaction",
    )
    return retry if func is NOTHING else retry(func)


_REPEATED = frozenset({SERIALIZATION_FAILURE, DEADLOCK_DETECTED})


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
        called: str,
    ) -> None:
        _check_limits(attempts, seconds)
        _check_delays(delay, max_delay)
        self._using = alias(using, "retry_transaction")
        self._attempts = attempts
        self._seconds = seconds
        self._sqlstates = sqlstates
        self._delay = delay
        self._max_delay = max_delay
        self._called = called

    def __call__(self, func: F) -> F:
        _check_function(func, self._called)
        name = getattr(func, "__qualname__", repr(func))
        # tenacity keeps the state of a run on the object, so each call has a copy.
        if iscoroutinefunction(func):
            retrying = self._retrying(name, asynchronous=True)

            @functools.wraps(func)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                def body() -> Any:
                    return _outcome(async_to_sync(_ended)(func, *args, **kwargs))

                # The thread runs the attempt from beginning to end; the function's own queries come back to it.
                return _outcome(await retrying.copy()(_ended, sync_to_async(self._attempt), func, body))

        else:
            retrying = self._retrying(name, asynchronous=False)

            @functools.wraps(func)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return _outcome(retrying.copy()(self._attempt, func, lambda: func(*args, **kwargs)))

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
        begin_wait: Any = self._begin_wait_in_thread if asynchronous else self._begin_wait
        return (tenacity.AsyncRetrying if asynchronous else tenacity.Retrying)(
            stop=tenacity.stop_any(*stops),
            wait=tenacity.wait_random_exponential(multiplier=self._delay, max=self._max_delay),
            retry=tenacity.retry_if_result(_is_to_be_repeated),
            before_sleep=functools.partial(begin_wait, name),
            retry_error_callback=_last_outcome,
        )

    def _attempt(self, func: Callable[..., Any], body: Callable[[], Any]) -> Any:
        """Run *body*, which calls *func*, once, in its transaction, in the thread of the connection.

        Return what it returns, or a :class:`_Failure`.
        """
        connection = connections[self._using]
        hooks: list[bool] = []
        try:
            if internals.RETRIES.available:
                _refuse_outer_transaction(connection)
            with transaction.atomic(using=self._using, durable=True):
                # Hooks run in the order in which they were added. Those of a TestCase's transaction never do.
                if internals.RETRIES.available and len(connection.atomic_blocks) == 1:
                    transaction.on_commit(lambda: hooks.append(True), using=self._using)
                return _finished(body())
        except BaseException as exc:  # noqa: BLE001 - _outcome() raises it
            is_last = hooks or not self._is_repeated(exc) or _another_has_failed(connection)
            return _Failure(exc, is_repeated=not is_last)

    def _is_repeated(self, exc: BaseException) -> bool:
        return internals.RETRIES.available and self._repeated_sqlstate(exc) is not None

    def _repeated_sqlstate(self, exc: BaseException | None) -> str | None:
        """Return the SQLSTATE for which *exc* is a reason to repeat the transaction; None if it is none.

        In a group, as ``asyncio.TaskGroup`` raises it, all else has to be what the others get once a transaction has
        failed.
        """
        found = [(sqlstate_of(each), each) for each in _members(exc)]
        reasons = [sqlstate for sqlstate, _ in found if sqlstate in self._sqlstates]
        others = [each for sqlstate, each in found if sqlstate not in self._sqlstates]
        return reasons[0] if reasons and all(map(_is_of_failed_transaction, others)) else None

    def _let_go(self, connection: BaseDatabaseWrapper) -> None:
        """Hold no connection of a pool while waiting; without a pool, the scopes around decide."""
        lease = lease_of(connection)
        if lease is not None and backends.has_pool(connection.alias) and conf.current.RELEASE != "never":
            lease.release_now()

    async def _begin_wait_in_thread(self, name: str, state: Any) -> None:
        """Do it in the thread of the connections, in which they are given back, and since who listens may query."""
        await sync_to_async(self._begin_wait)(name, state)

    def _begin_wait(self, name: str, state: Any) -> None:
        exc = state.outcome.result().taken()
        # What the caller is handling, also where it awaits: asgiref has it handled in this thread as well.
        _drop_frames(exc, sys.exc_info()[1])
        self._let_go(connections[self._using])
        publish(
            TransactionRetried(
                alias=self._using,
                function=name,
                attempt=state.attempt_number,
                sqlstate=self._repeated_sqlstate(exc),
                delay=state.next_action.sleep,
            )
        )


def _drop_frames(exc: BaseException, handled: BaseException | None) -> None:
    """Let go of what an attempt had in its variables, such as iterators with open cursors: nobody will see its error.

    What the caller has *handled* meanwhile is in the same chain, and may be seen. The frames are not cleared: that
    would end coroutines which are suspended in them, as tenacity's own is.
    """
    kept = _chained(handled)
    for each in _chained(exc):
        if not any(each is other for other in kept):
            each.with_traceback(None)


def _chained(exc: BaseException | None) -> list[BaseException]:
    """Return *exc* with its causes and contexts, and those of a group's exceptions, each once."""
    found: dict[int, BaseException] = {}
    left = [exc]
    while left:
        each = left.pop()
        if each is not None and id(each) not in found:
            found[id(each)] = each
            left += [each.__cause__, each.__context__, *(each.exceptions if isinstance(each, _GROUP) else ())]
    return [*found.values()]


# Python has had it since 3.11.
_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())


def _members(exc: BaseException | None) -> list[BaseException]:
    """Return the exceptions of a group, and of the groups in it; of anything else, itself."""
    if exc is None:
        return []
    return [member for each in exc.exceptions for member in _members(each)] if isinstance(exc, _GROUP) else [exc]


def _is_of_failed_transaction(exc: BaseException) -> bool:
    """Return whether a statement has failed with *exc* for an earlier one: the server's refusal, or Django's."""
    is_refused = isinstance(exc, transaction.TransactionManagementError)
    return is_refused or sqlstate_of(exc) == IN_FAILED_SQL_TRANSACTION


class _Failure:
    """The error with which an attempt has ended, as its result: tenacity gets to see no errors.

    It would repeat, or not, what it should not: an error of an ``on_commit`` hook, after the commit, or one that has
    taken a transaction along that is not the attempt's, or its own ``TryAgain``. And it would keep the error: whose
    frames keep those that called them, and tenacity's with them. In such a cycle, what was in the variables of all of
    them (an iterator with a cursor open) stays until the garbage collector comes, after the error was handled.
    """

    __slots__ = ("_exception", "is_repeated")

    def __init__(self, exception: BaseException, *, is_repeated: bool = False) -> None:
        self._exception: BaseException | None = exception
        #: Whether it is a reason to run the transaction again.
        self.is_repeated = is_repeated

    def taken(self) -> BaseException:
        """Return the error, once, and keep it no longer."""
        exception, self._exception = self._exception, None
        assert exception is not None
        return exception


def _is_to_be_repeated(result: Any) -> bool:
    return isinstance(result, _Failure) and result.is_repeated


def _last_outcome(state: Any) -> Any:
    return state.outcome.result()


def _outcome(result: Any) -> Any:
    if isinstance(result, _Failure):
        error = result.taken()
        context = error.__context__
        try:
            raise error
        finally:
            # Python has put in its place what the caller handles meanwhile.
            error.__context__ = context
            # In no variable: this frame is among the error's.
            del error, context
    return result


async def _ended(func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call *func* and return what it returns, or a :class:`_Failure`: asgiref would keep the error as well."""
    try:
        return await func(*args, **kwargs)
    except BaseException as exc:  # noqa: BLE001 - _outcome() raises it
        return _Failure(exc)


def _refuse_outer_transaction(connection: BaseDatabaseWrapper) -> None:
    if connection.atomic_blocks:
        if connection.atomic_blocks[-1]._from_testcase:  # type: ignore[attr-defined]
            return
        problem = "is called inside atomic()"
    elif not connection.get_autocommit():
        problem = "is called while autocommit is off"
    else:
        return
    raise RuntimeError(
        f"A function under @retry_transaction {problem} on {connection.alias!r}. Running it again cannot help there, "
        "since all of the outer transaction has failed with it. Decorate the outermost function instead; for a view "
        f"under ATOMIC_REQUESTS, add {exempting(connection.alias)}."
    )


def _another_has_failed(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a transaction of another alias is still open after an attempt, and has failed.

    It was around the attempt, and the next one could only tell that, in the place of the error that took it along.
    """
    return any(wrapper is not connection and _has_failed(wrapper) for wrapper in connections.all(initialized_only=True))


def _has_failed(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether *wrapper* is in a transaction that can only be rolled back; ask no server, and change nothing."""
    if wrapper.in_atomic_block and transaction.get_rollback(using=wrapper.alias):
        return True
    lease = lease_of(wrapper)
    held: Any = wrapper if lease is None else describe(lease, monotonic())
    # Another vendor's connection has none.
    pgconn = getattr(held and held.connection, "pgconn", None)
    return pgconn is not None and pgconn.transaction_status == TransactionStatus.INERROR


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


def _check_limits(attempts: int | None, seconds: float | None) -> None:
    if attempts is None and seconds is None:
        raise ValueError("retry_transaction() needs a limit: attempts, seconds, or both.")
    if attempts is not None:
        if isinstance(attempts, bool) or not isinstance(attempts, int):
            raise TypeError(f"retry_transaction() takes a whole number of attempts, or None, not {attempts!r}.")
        if attempts < 1:
            raise ValueError(f"retry_transaction() takes 1 attempt or more, or None for no limit, not {attempts!r}.")
    if seconds is not None:
        if not conf.is_number(seconds):
            raise TypeError(f"retry_transaction() takes a number of seconds, or None, not {seconds!r}.")
        # Said this way round, NaN is out as well; here and below.
        if not 0 < seconds <= conf.LONGEST:
            raise ValueError(
                f"retry_transaction() takes seconds above 0 and up to {conf.LONGEST}, or None for no limit, "
                f"not {seconds!r}."
            )


def _check_delays(delay: float, max_delay: float) -> None:
    for name, value in (("delay", delay), ("max_delay", max_delay)):
        if not conf.is_number(value):
            raise TypeError(f"retry_transaction() takes a number of seconds as {name}, not {value!r}.")
        if not 0 <= value <= conf.LONGEST:
            raise ValueError(f"retry_transaction() takes 0 to {conf.LONGEST} seconds as {name}, not {value!r}.")
    if delay > max_delay:
        raise ValueError(
            f"retry_transaction() takes a delay of at most max_delay, which is {max_delay!r}, not {delay!r}."
        )


def _check_bool(lock_not_available: Any) -> None:
    if not isinstance(lock_not_available, bool):
        raise TypeError(f"retry_transaction() takes True or False as lock_not_available, not {lock_not_available!r}.")


def _check_function(func: Any, called: str) -> None:
    aliases_told = "The alias is given as retry_transaction(using=...)."
    check_decorated(func, "retry_transaction", called=called, aliases_told=aliases_told)
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        name = getattr(func, "__qualname__", repr(func))
        raise TypeError(
            f"@retry_transaction cannot decorate the generator function {name}: what it has yielded cannot be taken "
            "back. Return a list."
        )
