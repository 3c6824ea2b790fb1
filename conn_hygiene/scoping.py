"""How a scope is put around code: a block, every kind of function, and the response that a view returns.

A scope covers whatever of a function has yet to run when that has returned: the body of a streaming response, a
template that is not rendered yet, a generator, a coroutine. What it does when it begins and ends is up to each scope:
see :mod:`conn_hygiene.scopes` and :mod:`conn_hygiene.transactions.settings`.

In async code whatever touches a connection runs in the thread that owns it, by ``sync_to_async``; on the event loop
only the scope's entry is pushed and popped.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.http import StreamingHttpResponse
from django.template.response import SimpleTemplateResponse

from conn_hygiene import internals
from conn_hygiene.using import aliases

if TYPE_CHECKING:
    from contextvars import ContextVar
    from types import TracebackType

    from typing_extensions import Self

    from conn_hygiene.using import Using

F = TypeVar("F", bound=Callable[..., Any])
# Tells @scope(None), which is a mistake, from @scope().
NOTHING: Any = object()


class Scope:
    """What all scopes share: they are entered as context managers, sync and async, and decorate every kind of function.

    A scope has no state of its own: one object may be entered many times at once, by many threads and tasks. Each
    entering is an *entry*, in a list that goes with the context (see :mod:`contextvars`).
    """

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
        """Put a new entry on the list, and return it."""
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
        """Return *func* with the scope around each call, as a function of the same kind.

        :raises TypeError: *func* is something else; see :func:`check_decorated`.
        """
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


def cover_streaming(response: StreamingHttpResponse, scope: Scope) -> None:
    """Have the body of *response* produced inside *scope*, step by step; between two steps the scope is not entered."""
    # A file, which the server may send without us, and which does not query.
    if not internals.STREAMING.available or getattr(response, "file_to_stream", None) is not None:
        return
    # What `streaming_content` returns is an iterator around this one, that does not close it.
    body = response._iterator  # type: ignore[attr-defined]
    # Django has the body's own close() listed here, and that of whatever covers it already. Each is called ahead of the
    # one of ours, and may run what the body does in the end.
    closers: list[Callable[[], Any]] = response._resource_closers  # type: ignore[attr-defined]
    closers[:] = [functools.partial(_close_inside, scope, close) for close in closers]
    if response.is_async:
        response.streaming_content = steps = _asteps(scope, body)
        closers.append(functools.partial(_close_in_request, steps))
    else:
        response.streaming_content = _steps(scope, body)


def _close_inside(scope: Scope, close: Callable[[], Any]) -> None:
    # On an event loop no query can run, and what needs a thread of its own is not to keep the rest from it.
    with nullcontext() if is_on_event_loop() else scope.around_generator(), scope.step():
        close()


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


def _steps(scope: Scope, iterator: Iterator[Any]) -> Iterator[Any]:
    with scope.around_generator():
        try:
            while True:
                with scope.step():
                    item = next(iterator, _END)
                if item is _END:
                    return
                yield item
        finally:
            with scope.step():
                if inspect.isgenerator(iterator):
                    iterator.close()
                # A generator may be inside of it, which nobody closes: it ends with the last reference.
                del iterator


async def _asteps(scope: Scope, iterator: AsyncIterator[Any]) -> AsyncGenerator[Any, Any]:
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


def cover_rendering(response: SimpleTemplateResponse, scope: Scope) -> None:
    """Have *response* rendered inside *scope*, by whoever asks it to."""
    render: Callable[[], Any] = response.render
    # A partial, and no function of its own, since a response whose content was set instead may be pickled with it.
    inside: Any = _arender if iscoroutinefunction(render) else _render
    vars(response)["render"] = functools.partial(inside, scope, response, render)


def _render(scope: Scope, response: SimpleTemplateResponse, render: Callable[[], Any]) -> Any:
    # On an event loop no query can run, and what needs a thread of its own is not to keep the rest from it.
    with _uncovered(response), nullcontext() if is_on_event_loop() else scope:
        return scope.cover(render())


def is_on_event_loop() -> bool:
    """Return whether the running thread runs an event loop at this moment."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _arender(scope: Scope, response: SimpleTemplateResponse, render: Callable[[], Any]) -> Any:
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


def drive(scope: Scope, generator: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
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
