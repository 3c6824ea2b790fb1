"""The scopes: where idle connections are given back, where one is kept, and where all are closed at the end.

Each is a decorator and a context manager, for sync and for async code, as :mod:`conn_hygiene.scoping` makes them.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, overload

from django.conf import settings
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections

from conn_hygiene.interruptions import is_of_handler
from conn_hygiene.leases import policy, usage
from conn_hygiene.leases.blocks import Blocks
from conn_hygiene.leases.states import GIVEN_BACK, HELD, PARKED
from conn_hygiene.leases.wrapper import is_open, lease_of
from conn_hygiene.scoping import NOTHING, F, Scope, is_on_event_loop
from conn_hygiene.transactions import overrides
from conn_hygiene.transactions.left_open import end_transaction, end_unleased_transaction
from conn_hygiene.using import aliases
from conn_hygiene.work import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from django.db.backends.base.base import BaseDatabaseWrapper
    from typing_extensions import Self

    from conn_hygiene.using import Using

logger = logging.getLogger("conn_hygiene")


def _wrappers(using: frozenset[str] | None) -> list[BaseDatabaseWrapper]:
    """Return the running thread's wrappers of the aliases *using*."""
    return [w for w in connections.all(initialized_only=True) if using is None or w.alias in using]


class _FirstError:
    """Lets a loop over aliases go on past one for which it fails, and raises the first error at its end.

    In the place of that, what a signal handler has raised, such as the time limit of a task. The other errors are
    logged. After a ``BaseException`` such as ``KeyboardInterrupt`` nothing goes on.
    """

    def __init__(self) -> None:
        self._kept: Exception | None = None
        self._alias = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._kept is None:
            return
        try:
            if exc is None:
                raise self._kept
            _log_another(self._alias, self._kept)
        finally:
            # An exception must not keep alive, by its traceback, the frame that keeps it.
            self._kept = None

    @contextmanager
    def of(self, wrapper: BaseDatabaseWrapper) -> Iterator[None]:
        """Keep an error of the block, which is about *wrapper*, for the end; log it if there is one already."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - kept, or logged with its traceback
            if self._kept is None:
                self._kept, self._alias = error, wrapper.alias
            elif is_of_handler(error):
                _log_another(self._alias, self._kept)
                self._kept, self._alias = error, wrapper.alias
            else:
                _log_another(wrapper.alias, error)


def _log_another(alias: str, error: Exception) -> None:
    logger.error("Connection %r failed as well; the error of another one is raised.", alias, exc_info=error)


class _PolicyScope(Scope):
    """A scope that says what becomes of idle connections while it lasts."""

    holds: bool
    _entered = policy.entered

    def _entry(self) -> policy.Entry:
        return policy.Entry(self, holds=self.holds, using=self._using)

    def leave(self, entry: Any = None) -> Any:
        entry = super().leave(entry)
        if entry is not None:
            entry.over = True
        return entry

    def _begin(self, entry: Any) -> None:
        _reconsider(self._using)

    def _end(self, entry: Any) -> None:
        _reconsider(self._using)


def _reconsider(using: frozenset[str] | None) -> None:
    with _FirstError() as errors:
        for wrapper in _wrappers(using):
            lease = lease_of(wrapper)
            # Where there are many databases, most have no connection, and so nothing to reconsider.
            if lease is not None and lease.state in (HELD, PARKED):
                with errors.of(wrapper):
                    lease.reconsider()


class _Release(_PolicyScope):
    name = "release_between_queries"
    holds = False
    lasts = False


class RequestScope(_Release):
    """What a middleware puts around a request: the code of one request, wherever it runs."""

    def _entry(self) -> policy.Entry:
        return policy.Entry(self, holds=False, using=None, of_request=True)


class SameRequest(_Release):
    """What is around a streaming body: *entry* once more, of the request whose response it is."""

    def __init__(self, entry: policy.Entry) -> None:
        super().__init__()
        self._again = entry

    def _entry(self) -> policy.Entry:
        return self._again


class _Hold(_PolicyScope):
    name = "hold_connection"
    holds = True
    lasts = True

    def _begin(self, entry: Any) -> None:
        policy.holding.begin(entry)
        _reconsider(self._using)

    def _end(self, entry: Any) -> None:
        with _FirstError() as errors:
            for wrapper in _wrappers(self._using):
                lease = lease_of(wrapper)
                with errors.of(wrapper):
                    if lease is not None:
                        lease.hold_ended()
                        lease.reconsider()


class _ClosingEntry:
    """One entering of ``closing_connections``, and the aliases that were open then, or were so but for a release.

    Both sets are written in the thread of the connections: as the block begins, and by others that end beside it.
    """

    def __init__(self, scope: _Closing, around: tuple[_ClosingEntry, ...]) -> None:
        self.scope = scope
        self.before: set[str] = set()
        self.given_back: set[str] = set()
        # Those in whose middle it was entered.
        self.around = around
        self.over = False

    def covers(self, alias: str) -> bool:
        return self.scope._using is None or alias in self.scope._using

    def beside(self) -> list[_ClosingEntry]:
        """Return the blocks that go on as this one ends, but for those around it, which wait for that."""
        return [other for other in _closings.active() if other is not self and other not in self.around]

    def leave_to(self, others: list[_ClosingEntry], alias: str) -> None:
        """Have *others*, of which one ends last, do with *alias* what is to be done at this one's end."""
        for other in others:
            other.before.discard(alias)
            if alias in self.given_back:
                other.given_back.add(alias)
            else:
                other.given_back.discard(alias)


_closings: Blocks[_ClosingEntry] = Blocks()


class _Closing(Scope):
    name = "closing_connections"
    lasts = True
    _entered = ContextVar("conn_hygiene_closing", default=())

    def _entry(self) -> _ClosingEntry:
        return _ClosingEntry(self, self._entered.get())

    def _begin(self, entry: _ClosingEntry) -> None:
        for wrapper in _wrappers(self._using):
            if is_open(wrapper) or _has_other_autocommit(wrapper):
                entry.before.add(wrapper.alias)
            elif _is_given_back(wrapper):
                entry.given_back.add(wrapper.alias)
        _closings.begin(entry)

    def _end(self, entry: _ClosingEntry | None) -> None:
        # None: left in another context, where it is not known what was open before.
        if entry is None:
            return
        entry.over = True
        beside = entry.beside()
        told: list[Callable[[], None]] = []
        with _FirstError() as errors:
            for wrapper in _wrappers(self._using):
                if wrapper.alias not in entry.before and (is_open(wrapper) or _is_given_back(wrapper)):
                    # They may be using it: what is in its session, its transaction, its cursors.
                    others = [other for other in beside if other.covers(wrapper.alias)]
                    if others:
                        entry.leave_to(others, wrapper.alias)
                        continue
                    with errors.of(wrapper):
                        self._close(wrapper, entry, told)
            for tell in told:
                tell()

    def _close(self, wrapper: BaseDatabaseWrapper, entry: _ClosingEntry, told: list[Callable[[], None]]) -> None:
        lease = lease_of(wrapper)
        if lease is None:
            if wrapper.in_atomic_block or (wrapper.settings_dict["AUTOCOMMIT"] and not wrapper.autocommit):
                told.append(end_unleased_transaction(wrapper, _JOB))
        elif lease.in_transaction():
            told.append(end_transaction(wrapper, lease, _JOB))
        if lease is not None and wrapper.alias in entry.given_back:
            # To whoever is around it was open all the time, with what its session and its backend know.
            lease.release_now()
        else:
            wrapper.close()


_JOB = "The job that closing_connections covers"


def _is_given_back(wrapper: BaseDatabaseWrapper) -> bool:
    lease = lease_of(wrapper)
    return lease is not None and lease.state == GIVEN_BACK


def _has_other_autocommit(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether *wrapper* was given back with an autocommit that was changed, which ``close()`` would end."""
    return _is_given_back(wrapper) and bool(wrapper.autocommit != wrapper.settings_dict["AUTOCOMMIT"])


@overload
def release_between_queries(func: F, /) -> F: ...
@overload
def release_between_queries(*, using: Using = None) -> _Release: ...
def release_between_queries(func: Any = NOTHING, /, *, using: Using = None) -> Any:
    """Give connections back while they sit idle: a decorator, and a context manager for ``with`` and ``async with``.

    Inside, a connection that has been idle for ``RELEASE_AFTER`` seconds (``UNPOOLED_RELEASE_AFTER`` without a pool)
    returns to its pool, or is closed; the next query checks one out again. A connection is not idle while a cursor is
    open or a transaction runs. It is kept if its session has state that cannot be set again in another one, such as a
    temporary table or a session-level lock. Settings (``SET``, ``set_config()``) do not keep it, unless ``ON_SET`` is
    ``"pin"``: their values are read when it goes back and set again in the next session, before its first query, until
    the request ends or the connection is closed.

    Works on functions and methods, coroutine functions, generators and asynchronous generators, on view functions (the
    bodies of streaming responses are covered, and the rendering of a ``TemplateResponse``), and on class-based views by
    ``method_decorator``. Scopes nest; a ``hold_connection`` around or inside wins.

    :param using: an alias of DATABASES, or several; all by default.
    :raises TypeError: what is decorated is not a function, or *using* is no alias.
    :raises ValueError: *using* names none, as an empty list does.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    """
    scope = _Release(using)
    return scope if func is NOTHING else scope(func)


@overload
def hold_connection(func: F, /) -> F: ...
@overload
def hold_connection(*, using: Using = None) -> _Hold: ...
def hold_connection(func: Any = NOTHING, /, *, using: Using = None) -> Any:
    """Keep one connection for as long as the block or function runs, even if a release scope is around or inside.

    It is also kept from coroutines that run at the same time and query in the same thread, which use it as well.

    For code that needs one session in a way that the toolkit cannot see: it uses a handle from
    ``connection.connection``, calls functions that take session-level locks, or relies on ``currval()`` or
    ``pg_backend_pid()``. State that the toolkit does see (temporary tables, session-level locks) does not outlive the
    block if a release scope is around it: at the end of the block the session is cleaned and the connection given back.
    Where blocks overlap in one thread, as those of coroutines may, that is at the end of the last.
    Settings do outlive it: they follow the request to its end, unless ``ON_SET`` is ``"pin"``.

    :param using: an alias of DATABASES, or several; all by default.
    :raises TypeError: what is decorated is not a function, or *using* is no alias.
    :raises ValueError: *using* names none, as an empty list does.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    """
    scope = _Hold(using)
    return scope if func is NOTHING else scope(func)


@overload
def closing_connections(func: F, /) -> F: ...
@overload
def closing_connections(*, using: Using = None) -> _Closing: ...
def closing_connections(func: Any = NOTHING, /, *, using: Using = None) -> Any:
    """When the block or function ends, close the connections that it opened, of any vendor; give pooled ones back.

    For the target functions of threads, jobs of executors and the like, after which Django closes nothing. Connections
    that were open before stay open. A transaction that is still open at the end is rolled back and reported as a
    warning. If closing one fails, the others are closed all the same, and the first error is raised then.

    Coroutines that run at the same time may share a thread for their queries, and so its connections. Where blocks
    overlap there, the last of them to end closes what any of them opened.

    :param using: an alias of DATABASES, or several; all by default.
    :raises TypeError: what is decorated is not a function, or *using* is no alias.
    :raises ValueError: *using* names none, as an empty list does.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    """
    scope = _Closing(using)
    return scope if func is NOTHING else scope(func)


def leave_inherited() -> None:
    """Be in no scope and serve no request, where both were copied with the context or thread of whoever started this.

    For the start of a worker, be it a thread or a process, which goes on to do the jobs of others. It has no session.
    """
    _Closing._entered.set(())
    policy.entered.set(())
    overrides.entered.set(())
    usage.current.set(None)
    serving.label = serving.request = None
    # Without Django, there are none.
    if settings.configured:
        for wrapper in _wrappers(None):
            overrides.Overrides.forget(wrapper)


def _refuse_event_loop(name: str) -> None:
    """Refuse what would find nothing to do, as Django refuses a query: what async code queries over is a thread's."""
    if is_on_event_loop() and not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        raise SynchronousOnlyOperation(
            f"{name}() cannot be called on an event loop: connections belong to the thread that "
            f"runs the queries. Use `await sync_to_async({name})()`."
        )


def release_connections(using: Using = None) -> int:
    """Give the idle connections of the running thread back now, and return how many were given back.

    Works inside and outside of scopes, whatever ``RELEASE`` says. Never touches a transaction, an open cursor, a pinned
    connection, or one that a ``hold_connection`` keeps. In async code call it by ``sync_to_async``: connections belong
    to the thread that runs the queries.

    :param using: an alias of DATABASES, or several; all by default.
    :raises django.core.exceptions.SynchronousOnlyOperation: it is called in a thread that runs an event loop.
    :raises TypeError: *using* is no alias.
    :raises ValueError: *using* names none, as an empty list does.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    """
    _refuse_event_loop("release_connections")
    released = 0
    with _FirstError() as errors:
        for wrapper in _wrappers(aliases(using, "release_connections")):
            lease = lease_of(wrapper)
            with errors.of(wrapper):
                released += lease is not None and lease.release_now()
    return released


def reset_connections(using: Using = None) -> int:
    """Close all connections of the running thread, whatever their state, also pooled ones; return how many.

    The next query opens a new connection, or gets one from the pool, which replaces those that were closed. The server
    rolls back what was not committed. For test frameworks and long-running commands, between two jobs. Do not call it
    inside ``atomic()``: as after Django's own ``connection.close()``, queries fail then until the block ends. If the
    ``close()`` of a backend of your own raises, the connections of the other aliases are closed all the same, and the
    first error is raised then. In async code call it by ``sync_to_async``.

    :param using: an alias of DATABASES, or several; all by default.
    :raises django.core.exceptions.SynchronousOnlyOperation: it is called in a thread that runs an event loop.
    :raises TypeError: *using* is no alias.
    :raises ValueError: *using* names none, as an empty list does.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    """
    _refuse_event_loop("reset_connections")
    dropped = 0
    with _FirstError() as errors:
        for wrapper in _wrappers(aliases(using, "reset_connections")):
            dropped += is_open(wrapper)
            lease = lease_of(wrapper)
            with errors.of(wrapper):
                if lease is not None:
                    lease.drop()
                wrapper.close()
    return dropped
