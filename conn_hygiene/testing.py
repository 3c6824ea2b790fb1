"""For tests: that nothing is held while something slow runs, and that nothing is left behind.

With pytest they come as the fixture ``assert_released`` and the marker ``connection_hygiene``, see
:mod:`conn_hygiene.contrib.pytest`; for the test classes of Django there is :class:`ConnectionHygieneMixin`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from contextlib import ContextDecorator, aclosing
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from asgiref.sync import AsyncToSync, SyncToAsync, iscoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_finished, request_started

from conn_hygiene import callsite, internals
from conn_hygiene.leases import policy
from conn_hygiene.leases.description import describe
from conn_hygiene.leases.states import PARKED
from conn_hygiene.masking import printable
from conn_hygiene.reaper import reaper
from conn_hygiene.reports.leftovers import Leftovers
from conn_hygiene.using import aliases
from conn_hygiene.work import serving, thread_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from concurrent.futures import Executor
    from types import TracebackType

    from django.db.backends.base.base import BaseDatabaseWrapper
    from typing_extensions import Self

    from conn_hygiene.leases.description import Description
    from conn_hygiene.leases.lease import Lease
    from conn_hygiene.scoping import F
    from conn_hygiene.using import Using

__all__ = ["ConnectionHygieneMixin", "assert_released", "flush"]


def flush(timeout: float = 5.0) -> bool:
    """Wait until the toolkit's background work is done: connections given back, log records and signals sent.

    That includes what was held by threads that ended, or by cursors that were garbage-collected, before the call.

    :param timeout: the longest time to wait, in seconds.
    :returns: True if all of it was done in time, or if the toolkit is not installed; False if *timeout* passed first.
        In a receiver or logging handler that a thread of the toolkit calls with a report, it is always False: it would
        wait for itself.
    """
    return reaper.running is None or reaper.running.flush(timeout)


class assert_released(ContextDecorator):
    """Assert that no connection is held when the block, or the decorated function, begins and when it ends.

    Checked are the connections of the request or task that the running code works for: those of its thread, in async
    code of the thread in which its queries run, and under the middleware those that it uses in others, such as that of
    ``asyncio.to_thread``. Outside of any, it is those of all threads that serve none. A connection passes if it has
    been given back, or if it is idle and will be given back after ``RELEASE_AFTER`` (the check does not wait for that).
    The transaction that Django's ``TestCase`` keeps open around each test is ignored, so that the code is judged as it
    would run in production.

    Queries inside of the block are allowed, since only its two ends are checked. The end of a block that raises is not
    checked, so that its own exception is the one that is seen. A coroutine function or a generator begins when it is
    awaited or asked for its first item.

    ::

        with assert_released():
            ...

        # As a replacement for what is slow, called by a view:
        mock.patch("mysite.views.urlopen", assert_released()(answer))

    :param using: an alias of DATABASES, or several; by default all.
    :raises AssertionError: a connection is held. The message says by whom, since which line, and what keeps it.
    :raises django.core.exceptions.ImproperlyConfigured: the toolkit is not installed at the time of the check, so that
        nothing could be seen.
    :raises TypeError: *using* is no alias; it may be that the parentheses are missing.
    :raises ValueError: *using* names none, as an empty list does.
    :raises django.db.utils.ConnectionDoesNotExist: DATABASES has no such alias.
    """

    def __init__(self, using: Using = None) -> None:
        self._using = aliases(using, "assert_released")

    def __enter__(self) -> Self:
        self._assert()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is None:
            self._assert()

    def __call__(self, func: F) -> F:
        """Return *func* with the check around each call, as a function of the same kind."""
        if iscoroutinefunction(func):
            return self._around_coroutine(func)
        if inspect.isgeneratorfunction(func):
            return self._around_generator(func)
        if inspect.isasyncgenfunction(func):
            return self._around_async_generator(func)
        return super().__call__(func)

    def _around_coroutine(self, func: F) -> F:
        @functools.wraps(func)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self:
                return await func(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    def _around_generator(self, func: F) -> F:
        @functools.wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            with self:
                return (yield from func(*args, **kwargs))

        return wrapper  # type: ignore[return-value]

    def _around_async_generator(self, func: F) -> F:
        @functools.wraps(func)
        async def wrapper(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            with self:
                async with aclosing(func(*args, **kwargs)) as generator:
                    async for item in generator:
                        yield item

        return wrapper  # type: ignore[return-value]

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def _assert(self) -> None:
        require_toolkit()
        held = held_now(self._using)
        if held:
            raise AssertionError("\n".join(held))


def require_toolkit() -> None:
    """Refuse to look where the toolkit is not installed: whatever is held or left would pass there.

    :raises django.core.exceptions.ImproperlyConfigured: it is not.
    """
    if reaper.running is None:
        raise ImproperlyConfigured(
            'The toolkit is not installed, and sees nothing: put "conn_hygiene" into INSTALLED_APPS, or call '
            "conn_hygiene.install()."
        )


def held_now(using: frozenset[str] | None = None) -> list[str]:
    """Return which connections would stay with the running code for as long as it does not query, a sentence each."""
    found = [_held(lease) for lease in _concerned() if using is None or lease.alias in using]
    return [text for text in found if text is not None]


def _concerned() -> Iterator[Lease]:
    """Yield the leases of the request that is served, or of all threads that serve none, with this one's."""
    leases = [] if reaper.running is None else reaper.running.leases()
    work = _Work.of_this()
    for lease in leases:
        if work.concerns(lease):
            yield lease


class _Work(NamedTuple):
    """What the running code works for, and where."""

    #: Its own thread, and that of its queries.
    threads: set[int]
    #: The request or task that its own thread serves.
    label: str | None
    #: The same, by the entry of its middleware.
    request: policy.Entry | None
    #: Whether it works for one at all.
    serves: bool

    @classmethod
    def of_this(cls) -> _Work:
        label, request, own = serving.label, policy.request_of(policy.entered.get()), threading.get_ident()
        serves = label is not None or request is not None
        if not internals.ASYNC_TESTS.available:
            return cls({own}, label, request, serves)
        threads = {own, *_threads_of(_executor_of_queries())}
        # Under ASGI, a request is where this is.
        in_context = SyncToAsync.thread_sensitive_context.get(None) is not None
        return cls(threads, label, request, serves or in_context or not threads.isdisjoint(_serving))

    def concerns(self, lease: Lease) -> bool:
        if lease.thread_id in self.threads:
            return True
        request = lease.used_in()
        if request is not None and self.request is not None:
            return request is self.request
        # Two requests of one path have the same label, and tell nothing of each other's threads.
        return lease.request == self.label and (self.label is not None or not self.serves)


def _executor_of_queries() -> Executor | None:
    """Return in what ``sync_to_async`` would run a query of the code that runs now; None if it is not asynchronous."""
    # As asgiref itself looks for it.
    current: Executor | None = getattr(AsyncToSync.executors, "current", None)
    if current is not None:
        return current
    context = SyncToAsync.thread_sensitive_context.get(None)
    if context is not None:
        return SyncToAsync.context_to_thread_executor.get(context)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return AsyncToSync.loop_thread_executors.get(loop, SyncToAsync.single_thread_executor)


def _threads_of(executor: Any) -> set[int]:
    """Return the thread of one of asgiref's executors, if it has one yet."""
    if executor is None:
        return set()
    threads = executor._threads if isinstance(executor, ThreadPoolExecutor) else {executor._work_thread}
    return {thread.ident for thread in threads if thread.ident is not None}


# The threads that serve a request of Django's. Async code cannot ask another thread what it works for.
_serving: set[int] = set()


def _note_start(**kwargs: Any) -> None:
    _serving.add(threading.get_ident())


def _note_end(**kwargs: Any) -> None:
    # Behind the toolkit's own receiver: of a response that a view has made itself, the request goes on.
    if serving.label is not None:
        return
    own = threading.get_ident()
    if own not in _serving and internals.ASYNC_TESTS.available:
        # Django's AsyncClient closes its response in another thread than that of the queries.
        _serving.difference_update(_threads_of(_executor_of_queries() or SyncToAsync.single_thread_executor))
    _serving.discard(own)


request_started.connect(_note_start)
request_finished.connect(_note_end)


def _held(lease: Lease) -> str | None:
    found = describe(lease, time.monotonic())
    keeps = None if found is None else _what_keeps(lease, found)
    if found is None or keeps is None:
        return None
    who = lease.request or f"thread {thread_names().get(lease.thread_id, lease.thread_id)}"
    wrapper = lease.wrapper()
    # That of a test's own transaction is a line of the test runner's.
    is_known = lease.checked_out_by is not None and not (wrapper and _is_of_test(wrapper))
    since = f" It was checked out at {lease.checked_out_by}." if is_known else ""
    last = "" if found.statement is None else f" The last statement was {found.statement}."
    now = callsite.here()
    where = "" if now is None else f" at {now}"
    return printable(f"{who} holds a connection of {lease.alias!r}{where}: {keeps}.{since}{last}")


def _what_keeps(lease: Lease, found: Description) -> str | None:
    wrapper = lease.wrapper()
    if wrapper is None:
        return "its thread has lost it"
    for place in list(lease.open_cursors.values()):
        return f"a cursor is open{'' if place is None else f', since {place}'}"
    of_test = _is_in_tests_transaction(wrapper)
    if found.in_transaction and not of_test:
        if _is_of_test(wrapper):
            # On the server it is a savepoint, of whose beginning nobody takes note.
            return "a transaction is open, inside of the test's own"
        begun = found.transaction.place if found.transaction else None
        return f"a transaction is open{'' if begun is None else f', since {begun}'}"
    for reason, where in found.pins.items():
        return f"it is pinned by {reason} at {where}"
    if lease.state == PARKED:
        return None
    wish = policy.wish(lease.alias)
    if wish == policy.HOLD:
        return "hold_connection is around"
    if wish == policy.KEEP:
        return "nothing around says to give it back: no release_between_queries, and no middleware that does"
    # Where a transaction hides whether anything else keeps it, there is nothing to be said.
    return None if of_test else "somebody has read its handle, or shares it between threads"


def _is_of_test(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether the connection's outermost transaction is that of a ``TestCase``."""
    return any(block._from_testcase for block in wrapper.atomic_blocks[:1])  # type: ignore[attr-defined]


def _is_in_tests_transaction(wrapper: BaseDatabaseWrapper) -> bool:
    """Return whether the connection is in the transaction of a ``TestCase``, and in no other."""
    blocks = wrapper.atomic_blocks
    return bool(blocks) and all(block._from_testcase for block in blocks)  # type: ignore[attr-defined]


class _Unpicklable:
    """A method that Django's parallel runner leaves out when it pickles the test, in place of pickling that again."""

    def __init__(self, method: Callable[..., None]) -> None:
        self._method = method

    def __call__(self, *args: Any) -> None:
        self._method(*args)

    def __reduce__(self) -> NoReturn:
        raise TypeError("it stays in the process in which the test runs")


class ConnectionHygieneMixin(unittest.TestCase):
    """For Django's test classes: fails a test that leaves something behind, and has :meth:`assertReleased`.

    What counts is a connection that was checked out in a thread that has ended, a transaction or a cursor that is
    still open, a transaction that a request has left open, a cursor that was garbage-collected without having been
    closed (where :setting:`REPORT_UNCLOSED_CURSORS` has that reported), state in the session of a connection, and what
    :setting:`AUDIT_SESSIONS` finds. Put the mixin in front of Django's class, and call its ``setUp()`` from yours; a
    test fails if that was not called::

        class ParcelTests(ConnectionHygieneMixin, TestCase):
            def setUp(self):
                super().setUp()

    The check comes after ``tearDown()`` and all other cleanups. Where the toolkit is not installed, each test ends with
    :exc:`~django.core.exceptions.ImproperlyConfigured`, since nothing could be seen.
    """

    _is_watching = False

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        """Run the test, and fail it if its ``setUp()`` has left out the one here."""
        self.setUp = _Unpicklable(functools.partial(self._set_up, self.setUp))  # type: ignore[method-assign]
        try:
            return super().run(result)
        finally:
            del self.setUp

    def _set_up(self, own: Callable[[], None]) -> None:
        self._is_watching = False
        own()
        if not self._is_watching:
            name = next(cls for cls in type(self).__mro__ if "setUp" in vars(cls)).__qualname__
            self.fail(
                f"setUp() of {name} does not call super().setUp(), so that nothing the test leaves would be seen. Call "
                "it there, or put ConnectionHygieneMixin first among the base classes."
            )

    def setUp(self) -> None:
        """Begin to watch."""
        require_toolkit()
        super().setUp()
        self._is_watching = True
        watch = Leftovers()
        watch.begin()
        self.addCleanup(_Unpicklable(self._look_for_leftovers), watch)

    def _look_for_leftovers(self, watch: Leftovers) -> None:
        try:
            found = watch.found()
        finally:
            watch.end()
        if found:
            self.fail("\n".join(found))

    def assertReleased(self, using: Using = None) -> assert_released:
        """Return :class:`assert_released`, for a ``with`` statement or as a decorator."""
        return assert_released(using)
