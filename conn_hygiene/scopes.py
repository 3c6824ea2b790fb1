"""The scopes: where idle connections are given back, where one is kept, and where all are closed at the end.

Each is a decorator and a context manager, for sync and for async code. In async code whatever touches a connection runs
in the thread that owns it, by ``sync_to_async``; on the event loop only the scope's frame is pushed and popped.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, overload

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections
from django.http import StreamingHttpResponse
from django.template.response import SimpleTemplateResponse

from conn_hygiene import internals
from conn_hygiene.interruptions import is_of_handler
from conn_hygiene.leases import policy
from conn_hygiene.leases.states import GIVEN_BACK, HELD, PARKED
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.transactions.left_open import end_transaction, end_unleased_transaction
from conn_hygiene.using import aliases

if TYPE_CHECKING:
    from types import TracebackType

    from django.db.backends.base.base import BaseDatabaseWrapper
    from typing_extensions import Self

    from conn_hygiene.using import Using

logger = logging.getLogger("conn_hygiene")

F = TypeVar("F", bound=Callable[..., Any])
# Tells @scope(None), which is a mistake, from @scope().
NOTHING: Any = object()


def _wrappers(using: frozenset[str] | None) -> list[BaseDatabaseWrapper]:
    """Return the running thread's wrappers of the aliases *using*."""
    return [w for w in connections.all(initialized_only=True) if using is None or w.alias in using]


class _Each:
    """Does the same for one alias after another, also past one for which it fails.

    The first error is raised in the end, or what a signal handler has raised, such as the time limit of a task; others
    are logged. After a ``BaseException`` such as ``KeyboardInterrupt`` nothing goes on.
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
    def one(self, wrapper: BaseDatabaseWrapper) -> Iterator[None]:
        """Have an error of the block be kept for the end, or logged if there is one already."""
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


class _Scope:
    """What the scopes share: entering and leaving in sync and async code, and wrapping every kind of function."""

    name: str
    # Whether it has to be called with arguments before it decorates anything.
    takes_arguments = False
    # Whether a generator stays inside between two of its steps, while the code that consumes it runs.
    lasts: bool
    # How often which scopes were entered, innermost last. An entry has its scope as an attribute.
    _entered: ContextVar[tuple[Any, ...]]

    def __init__(self, using: Using = None) -> None:
        self._using = aliases(using, self.name)

    # What a scope does. The list of entries is kept where the code runs, be it on an event loop; what follows runs in
    # the thread of the connections.

    def _entry(self) -> Any:
        """Return a new entry for the list."""
        raise NotImplementedError

    def _begin(self, entry: Any) -> None:
        """Do what is to be done with the running thread's connections at the start."""

    def _end(self, entry: Any) -> None:
        """Do what is to be done with the running thread's connections at the end."""

    def enter(self) -> Any:
        entry = self._entry()
        self._entered.set((*self._entered.get(), entry))
        return entry

    def leave(self, entry: Any = None) -> Any:
        """Take *entry* off the list, by default this scope's innermost, and return it; None if there is none.

        It need not be the last: generators that are inside scopes take turns. And there is none where a generator is
        ended in another context than it began in, by the garbage collector for instance.
        """
        entries = self._entered.get()
        if entry is None:
            entry = next((entry for entry in reversed(entries) if entry.scope is self), None)
        if entries and entries[-1] is entry:
            self._entered.set(entries[:-1])
        else:
            self._entered.set(tuple(other for other in entries if other is not entry))
        return entry

    @contextmanager
    def step(self) -> Iterator[Any]:
        """Be inside the scope for as long as the block runs, without touching a connection; yield the entry."""
        entry = self.enter()
        try:
            yield entry
        finally:
            self.leave(entry)

    # As a context manager.

    def __enter__(self) -> Self:
        entry = self.enter()
        try:
            self._begin(entry)
        except BaseException:
            self.leave(entry)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(self.leave())

    async def __aenter__(self) -> Self:
        entry = self.enter()
        try:
            await sync_to_async(self._begin)(entry)
        except BaseException:
            self.leave(entry)
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A task that is cancelled once more would else take this off the queue of a thread that is still in a query.
        await asyncio.shield(sync_to_async(self._end)(self.leave()))

    # As a decorator.

    def __call__(self, func: F) -> F:
        aliases_told = f"Aliases are given as {self._with_using()}."
        check_decorated(func, self.name, called=self._called(), aliases_told=aliases_told)
        if iscoroutinefunction(func):
            return self._wrap_coroutine_function(func)

        if inspect.isgeneratorfunction(func):
            return self._wrap_generator_function(func)
        if inspect.isasyncgenfunction(func):
            return self._wrap_async_generator_function(func)

        @functools.wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self:
                return self.cover(func(*args, **kwargs))

        return wrapper  # type: ignore[return-value]

    # Each kind of function gets a wrapper of its own kind, since others ask: pytest of fixtures, Django of views.

    def _wrap_coroutine_function(self, func: F) -> F:
        @functools.wraps(func)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            async with self:
                return self.cover(await func(*args, **kwargs))

        return wrapper  # type: ignore[return-value]

    def _wrap_generator_function(self, func: F) -> F:
        @functools.wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            return (yield from drive(self, func(*args, **kwargs)))

        return wrapper  # type: ignore[return-value]

    def _wrap_async_generator_function(self, func: F) -> F:
        @functools.wraps(func)
        async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            # What `yield from` is for synchronous generators.
            generator = func(*args, **kwargs)
            resume: Callable[[Any], Any] = generator.asend
            value: Any = None
            async with self.around_generator():
                try:
                    while True:
                        with self.step():
                            try:
                                item = await resume(value)
                            except StopAsyncIteration:
                                return
                        try:
                            resume, value = generator.asend, (yield item)
                        except GeneratorExit:
                            raise
                        except BaseException as exc:  # noqa: BLE001 - whatever is thrown in is the generator's
                            resume, value = generator.athrow, exc
                finally:
                    # An exception must not keep alive, by its traceback, the frame that keeps it.
                    value = None
                    async with self:
                        await generator.aclose()

        return wrapper  # type: ignore[return-value]

    def around_generator(self) -> Self | nullcontext[None]:
        """Return what is entered for the whole life of a generator; its steps are entered one by one besides."""
        return self if self.lasts else nullcontext()

    def _called(self) -> str:
        """Return the scope as somebody has to write it who means this one, whatever its arguments are."""
        if self._using is not None:
            return self._with_using()
        return f"{self.name}(...)" if self.takes_arguments else self.name

    def _with_using(self) -> str:
        return f"{self.name}({'..., ' if self.takes_arguments else ''}using=...)"

    def cover(self, result: Any) -> Any:
        """Return *result*, wrapped so that what of it has yet to run does so inside the scope.

        That is the body of a streaming response, the template of one that is not rendered yet, a generator, or a
        coroutine: ``View.dispatch`` of an asynchronous view is a plain method that returns one.
        """
        if isinstance(result, StreamingHttpResponse):
            cover_streaming(result, self)
        elif isinstance(result, SimpleTemplateResponse):
            if not result.is_rendered:
                cover_rendering(result, self)
        elif inspect.iscoroutine(result):
            return self._finish(result)
        elif inspect.isgenerator(result):
            return drive(self, result)
        elif inspect.isasyncgen(result):
            return self._wrap_async_generator_function(lambda: result)()
        return result

    async def _finish(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        async with self:
            return self.cover(await coroutine)


def check_decorated(func: Any, name: str, *, called: str, aliases_told: str) -> None:
    """Refuse, with advice, what the decorator *name* cannot decorate.

    :param called: the decorator as it is written where it is handed on.
    :param aliases_told: the sentence for who has given an alias in the place of a function.
    :raises TypeError: *func* is a method's wrapper, a queue's task, a class, or cannot be called.
    """
    if isinstance(func, (staticmethod, classmethod)):
        raise TypeError(f"Put @{name} below @{type(func).__name__}, next to the function.")
    if _is_task(func):
        raise TypeError(
            f"Put @{name} below the queue's decorator, next to the function: the queue's has already made a task of it."
        )
    if inspect.isclass(func):
        raise TypeError(
            f"@{name} cannot decorate the class {func.__qualname__}. Decorate a method; for a view class, "
            f'use @method_decorator({called}, name="dispatch").'
        )
    if not callable(func):
        raise TypeError(f"@{name} decorates functions, not {func!r}. {aliases_told}")


def _is_task(func: Any) -> bool:
    """Return whether *func* is what a task queue makes of a function: its users would miss those methods."""
    # The class that it says it has: Celery's is behind a proxy. And not func itself: a Mock has whatever is asked for.
    kind = func.__class__
    return any(hasattr(kind, one) and hasattr(kind, other) for one, other in _METHODS_OF_TASKS)


# Celery, Dramatiq, Django, Huey. Two of each: one alone may be anybody's.
_METHODS_OF_TASKS = (
    ("delay", "apply_async"),
    ("send", "send_with_options"),
    ("enqueue", "aenqueue"),
    ("schedule", "call_local"),
)


def cover_streaming(response: StreamingHttpResponse, scope: _Scope) -> None:
    """Have the body of *response* produced inside *scope*, step by step; between two steps the scope is not entered."""
    # A file, which the server may send without us, and which does not query.
    if not internals.STREAMING.available or getattr(response, "file_to_stream", None) is not None:
        return
    # What `streaming_content` returns is an iterator around this one, that does not close it.
    body = response._iterator  # type: ignore[attr-defined]
    if response.is_async:
        response.streaming_content = steps = _asteps(scope, body)
        response._resource_closers.append(functools.partial(_close_in_request, steps))  # type: ignore[attr-defined]
    else:
        response.streaming_content = _steps(scope, body)


def _close_in_request(generator: AsyncGenerator[Any, Any]) -> None:
    """Close *generator*, the body of a response that is being closed, if its client went away in the middle.

    Django leaves that to the garbage collector. What the body does in the end would then run when the request is over,
    and its queries in a thread where nobody gives connections back.
    """

    async def close() -> None:
        await generator.aclose()

    if generator.ag_frame is not None:  # type: ignore[attr-defined]
        async_to_sync(close)()


_END = object()


def _steps(scope: _Scope, iterator: Iterator[Any]) -> Iterator[Any]:
    with scope.around_generator():
        while True:
            with scope.step():
                item = next(iterator, _END)
            if item is _END:
                return
            yield item


async def _asteps(scope: _Scope, iterator: AsyncIterator[Any]) -> AsyncGenerator[Any, Any]:
    async with scope.around_generator():
        try:
            while True:
                with scope.step():
                    try:
                        item = await anext(iterator)
                    except StopAsyncIteration:
                        return
                yield item
        finally:
            close = getattr(iterator, "aclose", None)
            if close is not None:
                with scope.step():
                    await close()


def cover_rendering(response: SimpleTemplateResponse, scope: _Scope) -> None:
    """Have *response* rendered inside *scope*, by whoever asks it to."""
    render: Callable[[], Any] = response.render
    # A partial, and no function of its own, since a response whose content was set instead may be pickled with it.
    inside: Any = _arender if iscoroutinefunction(render) else _render
    vars(response)["render"] = functools.partial(inside, scope, response, render)


def _render(scope: _Scope, response: SimpleTemplateResponse, render: Callable[[], Any]) -> Any:
    # On an event loop no query can run, and what needs a thread of its own is not to keep the rest from it.
    with _uncovered(response), nullcontext() if _is_on_event_loop() else scope:
        return scope.cover(render())


def _is_on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _arender(scope: _Scope, response: SimpleTemplateResponse, render: Callable[[], Any]) -> Any:
    with _uncovered(response):
        async with scope:
            return scope.cover(await render())


@contextmanager
def _uncovered(response: SimpleTemplateResponse) -> Iterator[None]:
    """Take off *response* what covers it, for good unless the block fails.

    The callbacks of its rendering may pickle it, and it would keep itself alive until the garbage collector comes.
    """
    covered = vars(response).pop("render", None)
    try:
        yield
    except BaseException:
        # There may be another attempt, with another template.
        if covered is not None:
            vars(response)["render"] = covered
        raise


def drive(scope: _Scope, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Run *generator* inside *scope*, as ``yield from`` would without."""
    resume: Callable[[Any], Any] = generator.send
    value: Any = None
    with scope.around_generator():
        try:
            while True:
                with scope.step():
                    try:
                        item = resume(value)
                    except StopIteration as stop:
                        return stop.value
                try:
                    resume, value = generator.send, (yield item)
                except GeneratorExit:
                    raise
                except BaseException as exc:  # noqa: BLE001 - whatever is thrown in is the generator's
                    resume, value = generator.throw, exc
        finally:
            # An exception must not keep alive, by its traceback, the frame that keeps it.
            value = None
            with scope:
                generator.close()


class _PolicyScope(_Scope):
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
        with _Each() as each:
            for wrapper in _wrappers(self._using):
                lease = lease_of(wrapper)
                # Where there are many databases, most have no connection, and so nothing to reconsider.
                if lease is not None and lease.state in (HELD, PARKED):
                    with each.one(wrapper):
                        lease.reconsider()

    _end = _begin


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

    def _end(self, entry: Any) -> None:
        with _Each() as each:
            for wrapper in _wrappers(self._using):
                lease = lease_of(wrapper)
                with each.one(wrapper):
                    if lease is not None:
                        lease.hold_ended()
                        lease.reconsider()


class _Closing(_Scope):
    name = "closing_connections"
    lasts = True
    _entered = ContextVar("conn_hygiene_closing", default=())

    class Entry:
        """One entering, and the aliases that were open then, or were so but for a release."""

        def __init__(self, scope: _Closing) -> None:
            self.scope = scope
            self.before: set[str] = set()
            self.given_back: set[str] = set()

    def _entry(self) -> Entry:
        return self.Entry(self)

    def _begin(self, entry: Entry) -> None:
        for wrapper in _wrappers(self._using):
            if _is_open(wrapper) or _has_other_autocommit(wrapper):
                entry.before.add(wrapper.alias)
            elif _is_given_back(wrapper):
                entry.given_back.add(wrapper.alias)

    def _end(self, entry: Entry | None) -> None:
        # None: left in another context, where it is not known what was open before.
        if entry is None:
            return
        told: list[Callable[[], None]] = []
        with _Each() as each:
            for wrapper in _wrappers(self._using):
                if wrapper.alias not in entry.before and (_is_open(wrapper) or _is_given_back(wrapper)):
                    with each.one(wrapper):
                        self._close(wrapper, entry, told)
            for tell in told:
                tell()

    def _close(self, wrapper: BaseDatabaseWrapper, entry: Entry, told: list[Callable[[], None]]) -> None:
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

_OPEN = (HELD, PARKED)


def _is_given_back(wrapper: BaseDatabaseWrapper) -> bool:
    lease = lease_of(wrapper)
    return lease is not None and lease.state == GIVEN_BACK


def _has_other_autocommit(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether *wrapper* was given back with an autocommit that was changed, which ``close()`` would end."""
    return _is_given_back(wrapper) and bool(wrapper.autocommit != wrapper.settings_dict["AUTOCOMMIT"])


def _is_open(wrapper: BaseDatabaseWrapper) -> bool:
    lease = lease_of(wrapper)
    return wrapper.connection is not None if lease is None else lease.state in _OPEN


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

    For code that needs one session in a way that the toolkit cannot see: it uses a handle from
    ``connection.connection``, calls functions that take session-level locks, or relies on ``currval()`` or
    ``pg_backend_pid()``. State that the toolkit does see (temporary tables, session-level locks) does not outlive the
    block if a release scope is around it: at the end of the block the session is cleaned and the connection given back.
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

    :param using: an alias of DATABASES, or several; all by default.
    :raises TypeError: what is decorated is not a function, or *using* is no alias.
    :raises ValueError: *using* names none, as an empty list does.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    """
    scope = _Closing(using)
    return scope if func is NOTHING else scope(func)


def _refuse_event_loop(name: str) -> None:
    """Refuse what would find nothing to do, as Django refuses a query: what async code queries over is a thread's."""
    if _is_on_event_loop() and not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
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
    with _Each() as each:
        for wrapper in _wrappers(aliases(using, "release_connections")):
            lease = lease_of(wrapper)
            with each.one(wrapper):
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
    with _Each() as each:
        for wrapper in _wrappers(aliases(using, "reset_connections")):
            dropped += _is_open(wrapper)
            lease = lease_of(wrapper)
            with each.one(wrapper):
                if lease is not None:
                    lease.drop()
                wrapper.close()
    return dropped
