"""Scopes on an event loop: whose they are, which thread does the work, and what a cancelled task leaves behind."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.core.asgi import get_asgi_application
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from psycopg_pool import ConnectionPool

import conn_hygiene
from conn_hygiene import closing_connections, hold_connection, release_between_queries, release_connections
from conn_hygiene.middleware import ConnectionHygieneMiddleware
from tests.testapp.models import Item
from tests.waiting import holds, let_the_reaper_look, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

pytestmark = [pytest.mark.django_db(transaction=True, databases=["default", "unpooled"]), pytest.mark.urls(__name__)]

both_graces = pytest.mark.parametrize("release_after", [0, 0.001], ids=["at once", "after a grace"])


def query(alias: str = "default") -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
    return threading.get_ident()


def held_by(thread: int) -> bool:
    return any(info.thread_id == thread for info in conn_hygiene.snapshot())


def query_and_wait() -> int:
    thread = query()
    wait_until(lambda: not held_by(thread), "this thread's connection is given back")
    return thread


def query_and_stay() -> int:
    thread = query()
    let_the_reaper_look()
    assert held_by(thread)
    return thread


# ##### Whose scope it is #####


def test_two_tasks_do_not_share_a_scope() -> None:
    async def inside() -> None:
        async with ThreadSensitiveContext(), release_between_queries():
            entered.set()
            await sync_to_async(query_and_wait)()
            await outside_is_done.wait()
            await sync_to_async(query_and_wait)()

    async def outside() -> None:
        async with ThreadSensitiveContext():
            await entered.wait()
            await sync_to_async(query_and_stay)()
            await sync_to_async(connections.close_all)()
            outside_is_done.set()

    async def main() -> None:
        await asyncio.gather(inside(), outside())

    entered, outside_is_done = asyncio.Event(), asyncio.Event()
    asyncio.run(main())


def test_two_tasks_do_not_share_a_hold() -> None:
    async def holding() -> None:
        async with ThreadSensitiveContext():
            async with hold_connection():
                entered.set()
                await sync_to_async(query_and_stay)()
                await other_is_done.wait()
                await sync_to_async(query_and_stay)()
            await sync_to_async(query_and_wait)()

    async def other() -> None:
        async with ThreadSensitiveContext():
            await entered.wait()
            await sync_to_async(query_and_wait)()
            other_is_done.set()

    async def main() -> None:
        async with release_between_queries():
            await asyncio.gather(holding(), other())

    entered, other_is_done = asyncio.Event(), asyncio.Event()
    asyncio.run(main())


def test_a_scope_is_over_for_the_task_that_left_it() -> None:
    async def main() -> None:
        async with release_between_queries():
            await sync_to_async(query_and_wait)()
        await sync_to_async(query_and_stay)()
        await sync_to_async(connections.close_all)()

    asyncio.run(main())


def test_a_task_that_was_started_in_a_hold_is_released_when_the_hold_ends() -> None:
    async def job() -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(query_and_stay)()
            held.set()
            await hold_is_over.wait()
            await sync_to_async(query_and_wait)()

    async def main() -> None:
        async with release_between_queries():
            async with hold_connection():
                task = asyncio.create_task(job())
                await held.wait()
            hold_is_over.set()
            await task

    held, hold_is_over = asyncio.Event(), asyncio.Event()
    asyncio.run(main())


@pytest.mark.parametrize("thread_sensitive", [True, False])
def test_a_scope_follows_into_the_threads_of_sync_to_async(thread_sensitive: bool) -> None:
    async def main() -> int:
        async with release_between_queries():
            return await sync_to_async(query_and_wait, thread_sensitive=thread_sensitive)()

    assert asyncio.run(main()) != threading.get_ident()


def test_a_scope_follows_into_to_thread_and_into_the_loop_of_async_to_sync() -> None:
    async def main() -> None:
        await asyncio.to_thread(query_and_wait)
        await sync_to_async(query_and_wait)()

    with release_between_queries():
        async_to_sync(main)()


def test_a_sync_with_block_covers_what_is_awaited_in_it() -> None:
    async def main() -> None:
        with release_between_queries():
            await Item.objects.acount()
            await sync_to_async(wait_until_released)()
            with hold_connection():
                await sync_to_async(query_and_stay)()
            await sync_to_async(query_and_wait)()

    asyncio.run(main())


# ##### Threads #####


def test_to_thread_closes_what_it_opened() -> None:
    async def main() -> None:
        await asyncio.gather(*[asyncio.to_thread(closing_connections(query)) for _ in range(10)])
        assert not conn_hygiene.snapshot()

    asyncio.run(main())


def ask(statement: str, alias: str = "default") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def make_a_table() -> None:
    ask("CREATE TEMPORARY TABLE mine (n int)")


def look_into_it() -> Any:
    return ask("SELECT count(*) FROM mine")


class Jobs:
    """Two jobs that overlap in one thread; the first one ends in the middle of the second."""

    def __init__(self, begin: Callable[[], object] = make_a_table, go_on: Callable[[], object] = look_into_it) -> None:
        self.begin, self.go_on = begin, go_on
        self.opened, self.second_is_at_work, self.first_is_over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def first(self) -> None:
        await sync_to_async(query)()
        self.opened.set()
        await self.second_is_at_work.wait()

    async def second(self) -> None:
        await self.opened.wait()
        await closing_connections(self._second)()

    async def _second(self) -> None:
        await sync_to_async(self.begin)()
        self.second_is_at_work.set()
        await self.first_is_over.wait()
        await sync_to_async(self.go_on)()

    async def run(self, first: Callable[[], Awaitable[None]]) -> None:
        async def and_tell() -> None:
            await first()
            self.first_is_over.set()

        await asyncio.gather(and_tell(), self.second())


async def in_a_thread_of_its_own(main: Callable[[], Awaitable[None]]) -> None:
    # One that a failure leaves in disorder is no other test's.
    async with ThreadSensitiveContext():
        await main()


async def nothing_is_held() -> None:
    assert not await sync_to_async(holds)("default")


def test_of_two_jobs_in_one_thread_the_last_closes_what_both_use() -> None:
    async def main() -> None:
        jobs = Jobs()
        await jobs.run(closing_connections(jobs.first))
        await nothing_is_held()

    asyncio.run(in_a_thread_of_its_own(main))


def test_so_it_is_where_the_later_one_ends_first() -> None:
    async def later() -> None:
        await opened.wait()
        await closing_connections(sync_to_async(query))()
        over.set()

    async def earlier() -> None:
        await sync_to_async(make_a_table)()
        opened.set()
        await over.wait()
        assert await sync_to_async(look_into_it)() == 0

    async def main() -> None:
        await asyncio.gather(closing_connections(earlier)(), later())
        await nothing_is_held()

    opened, over = asyncio.Event(), asyncio.Event()
    asyncio.run(in_a_thread_of_its_own(main))


def test_a_sync_job_in_the_thread_leaves_it_to_the_coroutine_beside_it() -> None:
    """As where a library runs a decorated function beside a task in its own context."""

    async def job() -> None:
        began.set()
        await over.wait()
        assert await sync_to_async(look_into_it)() == 0

    async def beside() -> None:
        await began.wait()
        await sync_to_async(closing_connections(make_a_table))()
        over.set()

    async def main() -> None:
        await asyncio.gather(closing_connections(job)(), beside())
        await nothing_is_held()

    began, over = asyncio.Event(), asyncio.Event()
    asyncio.run(in_a_thread_of_its_own(main))


def test_of_three_in_a_row_the_last_closes() -> None:
    """Each begins in the middle of the one before, and the first is over before the third begins."""
    began = [asyncio.Event() for _ in range(3)]
    over = [asyncio.Event() for _ in range(3)]
    work: list[Callable[[], Any]] = [query, make_a_table, query]

    @closing_connections
    async def job(number: int) -> None:
        await sync_to_async(work[number])()
        began[number].set()
        if number < 2:
            await began[number + 1].wait()
        else:
            await over[1].wait()
            assert await sync_to_async(look_into_it)() == 0

    async def after(number: int, event: asyncio.Event | None) -> None:
        if event is not None:
            await event.wait()
        await job(number)
        over[number].set()

    async def main() -> None:
        await asyncio.gather(after(0, None), after(1, began[0]), after(2, over[0]))
        await nothing_is_held()

    asyncio.run(in_a_thread_of_its_own(main))


def test_a_block_inside_of_another_closes_at_its_own_end_whoever_is_beside() -> None:
    async def main() -> None:
        jobs = Jobs()

        async def outer() -> None:
            async with closing_connections():
                async with closing_connections(using="unpooled"):
                    await sync_to_async(query)("unpooled")
                assert not await sync_to_async(holds)("unpooled")
                await jobs.first()

        await jobs.run(outer)
        await nothing_is_held()

    asyncio.run(in_a_thread_of_its_own(main))


def test_who_covers_other_aliases_only_keeps_nothing_open() -> None:
    async def other() -> None:
        async with closing_connections(using="unpooled"):
            await sync_to_async(query)("unpooled")
            began.set()
            await over.wait()

    async def job() -> None:
        await began.wait()
        await closing_connections(sync_to_async(query))()
        await nothing_is_held()
        assert await sync_to_async(holds)("unpooled")
        over.set()

    async def main() -> None:
        await asyncio.gather(other(), job())
        assert not await sync_to_async(holds)("unpooled")

    began, over = asyncio.Event(), asyncio.Event()
    asyncio.run(in_a_thread_of_its_own(main))


def test_a_transaction_that_one_of_two_jobs_leaves_open_ends_with_the_last(caplog: pytest.LogCaptureFixture) -> None:
    def leave_open() -> None:
        transaction.set_autocommit(False)
        Item.objects.create(name="never")

    async def main() -> None:
        jobs = Jobs()

        async def first() -> None:
            await jobs.first()
            await sync_to_async(leave_open)()

        await jobs.run(closing_connections(first))
        await nothing_is_held()
        assert not await Item.objects.aexists()

    asyncio.run(in_a_thread_of_its_own(main))
    (record,) = [record for record in caplog.records if record.name == "conn_hygiene.transactions"]
    assert record.getMessage().startswith(
        "The job that closing_connections covers left a transaction open on 'default'"
    )


def test_what_was_set_before_two_jobs_is_there_after_them() -> None:
    """To whoever is around, the connection was open all the time, though it was given back when the first began."""

    def set_around() -> None:
        ask("SET app.around = '1'")
        wait_until(lambda: not held_by(threading.get_ident()), "this thread's connection is given back")

    def said() -> Any:
        return ask("SELECT coalesce(current_setting('app.around', true), '')")

    async def main() -> None:
        jobs = Jobs(query, query)
        async with release_between_queries():
            await sync_to_async(set_around)()
        await jobs.run(closing_connections(jobs.first))
        await nothing_is_held()
        assert await sync_to_async(said)() == "1"

    asyncio.run(in_a_thread_of_its_own(main))


def test_what_two_jobs_have_set_ends_with_the_last() -> None:
    def set_tenant() -> None:
        ask("SET app.tenant = '1'")

    def said() -> Any:
        return ask("SELECT coalesce(current_setting('app.tenant', true), '')")

    async def main() -> None:
        jobs = Jobs(set_tenant, query)
        await jobs.run(release_between_queries(closing_connections(jobs.first)))
        assert await sync_to_async(said)() == ""

    asyncio.run(in_a_thread_of_its_own(main))


# ##### Holds of tasks that share a thread #####


class Tasks:
    """A task that holds, and another one that does something in its middle, in the same thread."""

    def __init__(self, begin: Callable[[], object], go_on: Callable[[], object], using: str | None = None) -> None:
        self.begin, self.go_on, self.using = begin, go_on, using
        self.holds, self.other_is_done = asyncio.Event(), asyncio.Event()

    async def holding(self) -> None:
        async with hold_connection(using=self.using):
            await sync_to_async(self.begin)()
            self.holds.set()
            await self.other_is_done.wait()
            await sync_to_async(self.go_on)()

    async def run(self, other: Callable[[], Awaitable[object]]) -> None:
        async def and_tell() -> None:
            await self.holds.wait()
            await other()
            self.other_is_done.set()

        async with release_between_queries():
            await asyncio.gather(self.holding(), and_tell())
            await sync_to_async(wait_until_released)()


def lock() -> None:
    ask("SELECT pg_advisory_lock(1)")


def locks() -> Any:
    return ask("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")


def has_lock() -> None:
    assert locks() == 1


def has_no_lock() -> None:
    assert locks() == 0


@both_graces
def test_the_end_of_a_hold_leaves_the_session_to_another_one(release_after: float, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": release_after}

    async def main() -> None:
        # Given back at the end of the hold in which it was locked, as is waited for.
        await Tasks(lock, has_lock).run(hold_connection(sync_to_async(query)))
        await sync_to_async(has_no_lock)()

    asyncio.run(in_a_thread_of_its_own(main))


def test_what_a_hold_has_left_goes_with_the_last_of_them() -> None:
    async def main() -> None:
        await Tasks(query, has_lock).run(hold_connection(sync_to_async(lock)))
        await sync_to_async(has_no_lock)()

    asyncio.run(in_a_thread_of_its_own(main))


def test_what_was_left_beside_a_hold_stays() -> None:
    """It is of no hold, whoever holds at that time: its owner relies on it to the end of the request."""

    async def beside() -> None:
        await tasks.holds.wait()
        await sync_to_async(lock)()
        tasks.other_is_done.set()

    async def main() -> None:
        async with release_between_queries():
            await asyncio.gather(tasks.holding(), beside())
            await sync_to_async(has_lock)()

    tasks = Tasks(query, has_lock)
    asyncio.run(in_a_thread_of_its_own(main))


class Session:
    """Finds out whether all of a task's queries are in one session."""

    def begin(self) -> None:
        self.pid = ask("SELECT pg_backend_pid()")

    def go_on(self) -> None:
        assert held_by(threading.get_ident())
        assert ask("SELECT pg_backend_pid()") == self.pid


async def queries_and_pauses() -> None:
    await sync_to_async(query_and_stay)()


async def releases() -> None:
    assert await sync_to_async(release_connections)() == 0


async def leaves_a_scope() -> None:
    async with release_between_queries():
        await sync_to_async(query)()
    await sync_to_async(let_the_reaper_look)()


async def leaves_a_hold() -> None:
    async with hold_connection():
        await sync_to_async(query)()
    await sync_to_async(query_and_stay)()


@both_graces
@pytest.mark.parametrize("other", [queries_and_pauses, releases, leaves_a_scope, leaves_a_hold])
def test_a_hold_keeps_its_session_from_a_task_beside_it(
    other: Callable[[], Awaitable[None]], release_after: float, settings: Any
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": release_after}

    async def main() -> None:
        session = Session()
        await Tasks(session.begin, session.go_on).run(other)

    asyncio.run(in_a_thread_of_its_own(main))


def test_so_it_does_where_the_other_has_begun_first() -> None:
    async def other() -> None:
        await sync_to_async(query_and_wait)()
        may_hold.set()
        await tasks.holds.wait()
        await queries_and_pauses()
        tasks.other_is_done.set()

    async def holding() -> None:
        await may_hold.wait()
        await tasks.holding()

    async def main() -> None:
        async with release_between_queries():
            await asyncio.gather(other(), holding())
            await sync_to_async(wait_until_released)()

    session, may_hold = Session(), asyncio.Event()
    tasks = Tasks(session.begin, session.go_on)
    asyncio.run(in_a_thread_of_its_own(main))


def test_a_hold_of_another_alias_keeps_nothing_from_going_back() -> None:
    async def other() -> None:
        await sync_to_async(query)()
        await sync_to_async(wait_until_released)()

    async def main() -> None:
        await Tasks(lambda: query("unpooled"), lambda: None, using="unpooled").run(other)

    asyncio.run(in_a_thread_of_its_own(main))


class Threads:
    """Which threads took connections from pools and returned them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.took: set[int] = set()
        self.returned: set[int] = set()
        getconn, putconn = ConnectionPool.getconn, ConnectionPool.putconn

        def take(pool: Any, *args: Any, **kwargs: Any) -> Any:
            self.took.add(threading.get_ident())
            return getconn(pool, *args, **kwargs)

        def give_back(pool: Any, connection: Any) -> None:
            self.returned.add(threading.get_ident())
            putconn(pool, connection)

        monkeypatch.setattr(ConnectionPool, "getconn", take)
        monkeypatch.setattr(ConnectionPool, "putconn", give_back)


@both_graces
def test_the_event_loops_thread_never_touches_a_connection(
    release_after: float, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": release_after}
    threads = Threads(monkeypatch)

    def set_something() -> None:
        with connections["default"].cursor() as cursor:
            cursor.execute("SET application_name = 'held'")

    @release_between_queries
    async def function() -> None:
        await sync_to_async(query)()
        async with hold_connection():
            await sync_to_async(set_something)()
        async for _ in generator():
            await Item.objects.acount()

    @hold_connection
    async def generator() -> AsyncIterator[int]:
        yield await sync_to_async(query)()
        yield await Item.objects.acount()

    @closing_connections
    async def job() -> None:
        await sync_to_async(query)()

    async def main() -> int:
        await sync_to_async(query)()
        async with release_between_queries():
            await function()
        await sync_to_async(connections.close_all)()
        await job()
        assert not holds("default")
        return threading.get_ident()

    loop_thread = asyncio.run(main())
    wait_until_released()
    assert loop_thread not in threads.took | threads.returned
    (owner,) = threads.took
    if release_after == 0:
        assert threads.returned == {owner}


# ##### More requests than connections #####


async def meet(request: HttpRequest) -> HttpResponse:
    """Query, wait until as many others have, and query again."""
    meeting = request.META["meeting"]
    await Item.objects.acount()
    meeting.here += 1
    if meeting.here == meeting.size:
        meeting.complete.set()
    await meeting.complete.wait()
    await Item.objects.acount()
    return HttpResponse("met")


urlpatterns = [path("meet/", meet)]


class Meeting:
    def __init__(self, size: int) -> None:
        self.size = size
        self.here = 0
        self.complete = asyncio.Event()


@both_graces
def test_more_requests_than_connections_are_served_at_once(
    release_after: float, settings: Any, pool_of: Callable[[str], ConnectionPool]
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": release_after}
    settings.MIDDLEWARE = [
        "tests.test_async.meeting_middleware",
        f"{ConnectionHygieneMiddleware.__module__}.{ConnectionHygieneMiddleware.__qualname__}",
    ]

    async def get() -> bytes:
        messages: list[Any] = []
        asked = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if asked.is_set():
                await asyncio.Event().wait()
            asked.set()
            return {"type": "http.request"}

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "GET", "path": "/meet/", "query_string": b"", "headers": []}
        await application(scope, receive, send)  # type: ignore[arg-type]
        return messages[1]["body"]

    async def main() -> list[bytes]:
        global meeting  # noqa: PLW0603 - the middleware finds it here
        meeting = Meeting(3 * pool_of("default").max_size)
        return await asyncio.gather(*[get() for _ in range(meeting.size)])

    application = get_asgi_application()
    assert set(asyncio.run(main())) == {b"met"}
    assert not holds("default")


meeting: Meeting


def meeting_middleware(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        request.META["meeting"] = meeting
        return await get_response(request)

    return middleware


meeting_middleware.async_capable = True
meeting_middleware.sync_capable = False


# ##### Cancelled tasks #####


class Query:
    """A query that is under way for as long as the test wants."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.may_end = threading.Event()

    def __call__(self) -> None:
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT 1")
            self.running.set()
            assert self.may_end.wait(10)


def covered_by_a_with_block(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def task() -> None:
        async with release_between_queries():
            await work()

    return task


def covered_by_a_middleware(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def get_response(request: HttpRequest) -> HttpResponse:
        await work()
        return HttpResponse()

    async def task() -> None:
        await ConnectionHygieneMiddleware(get_response)(HttpRequest())  # type: ignore[misc]

    return task


def covered_by_a_generator(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    @release_between_queries
    async def rows() -> AsyncIterator[int]:
        await work()
        yield 1

    async def task() -> None:
        async for _ in rows():
            pass

    return task


def covered_with_a_hold_inside(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    return release_between_queries(hold_connection(work))


def covered_by_closing(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    return closing_connections(work)


every_cover = pytest.mark.parametrize(
    "covered",
    [
        release_between_queries,
        covered_by_a_with_block,
        covered_by_a_middleware,
        covered_by_a_generator,
        covered_with_a_hold_inside,
        covered_by_closing,
    ],
    ids=lambda function: function.__name__,
)


@pytest.fixture
def query_under_way() -> Iterator[Query]:
    query = Query()
    yield query
    query.may_end.set()


@every_cover
@both_graces
@pytest.mark.parametrize("times", [1, 2])
def test_a_task_that_is_cancelled_in_a_query_leaves_nothing_checked_out(
    covered: Any, release_after: float, times: int, settings: Any, query_under_way: Query
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": release_after}

    async def work() -> None:
        await sync_to_async(query_under_way)()

    async def main() -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(covered(work)())
        while not query_under_way.running.is_set():
            await asyncio.sleep(0.001)
        assert holds("default")
        for _ in range(times):
            task.cancel()
            # As far as it gets, with its thread still in the query.
            for _ in range(5):
                await asyncio.sleep(0)
        query_under_way.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until_released)

    asyncio.run(main())


@pytest.mark.parametrize("thread_sensitive", [True, False])
@both_graces
def test_a_task_that_is_cancelled_in_any_kind_of_thread_leaves_nothing_checked_out(
    thread_sensitive: bool, release_after: float, settings: Any, query_under_way: Query
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": release_after}

    @release_between_queries
    async def work() -> None:
        await sync_to_async(query_under_way, thread_sensitive=thread_sensitive)()

    async def main() -> None:
        task = asyncio.create_task(work())
        while not query_under_way.running.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        query_under_way.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until_released)

    asyncio.run(main())


@every_cover
def test_a_task_that_is_cancelled_between_queries_leaves_nothing_checked_out(covered: Any) -> None:
    async def work() -> None:
        await sync_to_async(query)()
        queried.set()
        await asyncio.Event().wait()

    async def main() -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(covered(work)())
        await queried.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until_released)

    queried = asyncio.Event()
    asyncio.run(main())


def test_a_transaction_of_a_cancelled_job_is_rolled_back(caplog: pytest.LogCaptureFixture) -> None:
    def begin() -> None:
        connections["default"].set_autocommit(False)
        Item.objects.create(name="never")

    @closing_connections
    async def job() -> None:
        await sync_to_async(begin)()
        begun.set()
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(job())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    begun = asyncio.Event()
    asyncio.run(main())
    assert not holds("default")
    assert not Item.objects.exists()
    assert ["left a transaction open" in record.getMessage() for record in caplog.records] == [True]
