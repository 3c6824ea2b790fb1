"""Where a pool has no connection in time, its exception, the log, a signal and an event say who holds those it has."""

from __future__ import annotations

import importlib
import inspect
import logging
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path

import conn_hygiene
from conn_hygiene import closing_connections, events, hold_connection, release_between_queries, signals
from conn_hygiene.events import Holder, PoolExhausted
from conn_hygiene.leases import exhausted, returns
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.reports import log
from tests.test_events import heard
from tests.test_forks import remade
from tests.test_pools import cut_off, pooled
from tests.waiting import wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from psycopg_pool import ConnectionPool

ALIAS = "unpooled"
#: Seconds for which anybody waits for a connection.
TIMEOUT = 0.05

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", ALIAS]),
    pytest.mark.urls(__name__),
]


def query(sql: str = "SELECT 1") -> None:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute(sql)


def view(request: HttpRequest) -> HttpResponse:
    query()
    return HttpResponse("ok")


async def async_view(request: HttpRequest) -> HttpResponse:
    await sync_to_async(query)()
    return HttpResponse("ok")


urlpatterns = [path("view/", view), path("async/", async_view)]


def line_of(text: str, function: Callable[..., Any]) -> str:
    """Return the place of the only line of *function* that has *text*, as events name it."""
    lines, first = inspect.getsourcelines(function)
    [number] = [first + offset for offset, line in enumerate(lines) if text in line]
    return f"{__file__}:{number} in {function.__name__}"


class Holders:
    """Threads that hold a connection each, until the end of the block."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.threads: list[threading.Thread] = []
        self.pids: list[int] = []

    def add(self, name: str, work: Callable[[Callable[[], None]], None]) -> None:
        """Have *work* run in a thread of that *name*; it calls what it is given when it has its connection."""
        ready = threading.Event()

        def wait() -> None:
            # Not by the handle, which would keep the connection.
            lease = lease_of(connections[ALIAS])
            assert lease is not None
            assert lease.server_pid is not None
            self.pids.append(lease.server_pid)
            ready.set()
            self.go_on.wait(30)

        thread = threading.Thread(target=closing_connections(lambda: work(wait)), name=name)
        thread.start()
        self.threads.append(thread)
        assert ready.wait(30)

    def end(self) -> None:
        self.go_on.set()
        for thread in self.threads:
            thread.join()


def in_transaction(wait: Callable[[], None]) -> None:
    with transaction.atomic(using=ALIAS):  # begins
        query("SELECT 'Ada', 1815")
        wait()  # now


def idle(wait: Callable[[], None]) -> None:
    query("SELECT 'Grace'")  # checks out
    wait()  # now


@contextmanager
def of_size(size: int, **pool: Any) -> Iterator[tuple[ConnectionPool, Holders]]:
    """Give the alias a pool of *size*, and threads to hold its connections."""
    holders = Holders()
    with pooled(pool={"min_size": size, "max_size": size, "timeout": 30, **pool}) as opened:
        try:
            yield opened, holders
        finally:
            holders.end()


@pytest.fixture(autouse=True)
def anew() -> None:
    """Have nothing said yet, and nothing found."""
    log.reset()
    exhausted._last = None


@pytest.fixture
def told() -> Iterator[list[PoolExhausted]]:
    with heard(PoolExhausted) as published:
        yield published


@contextmanager
def impatient() -> Iterator[None]:
    """Have who gets no connection fail soon; who is to get one may take as long as it takes."""
    pool: Any = connections[ALIAS].pool
    before, pool.timeout = pool.timeout, TIMEOUT
    try:
        yield
    finally:
        pool.timeout = before


def fail(work: Callable[[], None] = query, match: str = "couldn't get a connection") -> OperationalError:
    """Return the exception of *work*, which gets no connection."""
    with impatient(), pytest.raises(OperationalError, match=match) as caught:
        work()
    return caught.value


def connect_and_close() -> None:
    made = connections[ALIAS]
    made.ensure_connection()
    made.close()


def note_of(error: BaseException) -> str:
    [note] = error.__notes__
    return str(note)


def without_times(holder: Holder) -> dict[str, Any]:
    facts = asdict(holder)
    assert 0 <= facts.pop("idle_for") <= facts.pop("held_for") < 30
    return facts


# ##### Who is named #####


@pytest.mark.parametrize("first", [True, False], ids=["a thread's first", "another"])
def test_the_holders_are_named_longest_first(first: bool, told: list[PoolExhausted]) -> None:
    with of_size(2) as (_, holders), ThreadPoolExecutor(1, thread_name_prefix="waiter") as executor:
        if not first:
            executor.submit(connect_and_close).result()
        holders.add("in-transaction", in_transaction)
        holders.add("at-rest", idle)
        error = executor.submit(closing_connections(fail)).result()
        idents = [thread.ident for thread in holders.threads]
    [event] = told
    assert [without_times(holder) for holder in event.holders] == [
        {
            "alias": ALIAS,
            "server_pid": holders.pids[0],
            "thread_id": idents[0],
            "thread_name": "in-transaction",
            "request": None,
            "state": "in use",
            "in_transaction": True,
            "pinned_by": (),
            "statement": "SELECT ?, ?",
            "where_checked_out": line_of("# begins", in_transaction),
            "where_began": line_of("# begins", in_transaction),
            "where_now": f"{__file__}:{_line_of_wait()} in wait",
            "kept_because": None,
        },
        {
            "alias": ALIAS,
            "server_pid": holders.pids[1],
            "thread_id": idents[1],
            "thread_name": "at-rest",
            "request": None,
            "state": "idle",
            "in_transaction": False,
            "pinned_by": (),
            "statement": "SELECT ?",
            "where_checked_out": f"{__file__}:{query.__code__.co_firstlineno + 1} in query",
            "where_began": None,
            "where_now": f"{__file__}:{_line_of_wait()} in wait",
            "kept_because": "no release scope is around",
        },
    ]
    facts = event.facts()
    del facts["holders"], facts["thread_id"]
    assert TIMEOUT <= facts.pop("waited_for") < 30
    assert facts == {
        "alias": ALIAS,
        "thread_name": "waiter_0",
        "request": None,
        "error": "PoolTimeout",
        "waiting": 0,
        "size": 2,
        "max_size": 2,
        "available": 0,
        "held": 2,
        "returning": 0,
        "connect_errors": 0,
    }
    assert event.unaccounted == 0
    assert note_of(error) == "\n".join(event.lines)
    first_line, *lines = event.lines
    assert first_line == (
        f"thread waiter_0 got no connection from the pool of '{ALIAS}' in {event.waited_for:.1f} s. It has 2 "
        "connections of at most 2: 2 held. Those who hold one, longest first:"
    )
    one, other = event.holders
    assert lines == [
        f"(1) thread in-transaction on '{ALIAS}' (server pid {one.server_pid}) for {one.held_for:.1f} s, idle in a "
        f"transaction for {one.idle_for:.1f} s. Its thread is at {one.where_now}. Its transaction began at "
        f"{one.where_began}. Its last statement was: SELECT ?, ?",
        f"(2) thread at-rest on '{ALIAS}' (server pid {other.server_pid}) for {other.held_for:.1f} s, idle for "
        f"{other.idle_for:.1f} s. Its thread is at {other.where_now}. It was checked out at "
        f"{other.where_checked_out}. It is kept because no release scope is around. Its last statement was: SELECT ?",
    ]


@pytest.mark.parametrize(
    ("scope", "sql", "state", "kept"),
    [
        (hold_connection(using=ALIAS), "SELECT 1", "idle", "hold_connection is around"),
        (release_between_queries(using=ALIAS), "SELECT pg_advisory_lock(7)", "pinned", None),
        (hold_connection(using=ALIAS), "SELECT pg_advisory_lock(8)", "pinned", "hold_connection is around"),
    ],
    ids=["held", "pinned", "both"],
)
def test_what_keeps_who_is_idle_is_named(
    scope: AbstractContextManager[Any], sql: str, state: str, kept: str | None, told: list[PoolExhausted]
) -> None:
    def hold(wait: Callable[[], None]) -> None:
        with scope:
            query(sql)
            wait()

    with of_size(1) as (_, holders):
        holders.add("holder", hold)
        fail()
    [[holder]] = [event.holders for event in told]
    pinned = ("advisory lock",) if state == "pinned" else ()
    assert (holder.state, holder.pinned_by, holder.kept_because) == (state, pinned, kept)
    reasons = f"{' It is pinned by advisory lock.' if pinned else ''}{f' It is kept because {kept}.' if kept else ''}"
    assert f"{holder.where_checked_out}.{reasons} Its last statement" in holder.message


def _line_of_wait() -> int:
    place = line_of("self.go_on.wait(30)", Holders.add)
    return int(place.split(":")[-1].split(" ")[0])


def test_a_request_is_named_and_the_debug_page_shows_it(settings: Any, told: list[PoolExhausted]) -> None:
    settings.DEBUG = True
    with of_size(1) as (_, holders):
        holders.add("holder", in_transaction)
        with impatient():
            response = Client(raise_request_exception=False).get("/view/")
        place = line_of("# begins", in_transaction)
    assert response.status_code == 500
    page = response.content.decode()
    assert f"Its transaction began at {place}." in page
    [event] = told
    assert event.request == "GET /view/"
    assert event.lines[0].startswith(f"GET /view/ got no connection from the pool of '{ALIAS}' in ")


async def test_an_async_request_is_told_as_well(told: list[PoolExhausted]) -> None:
    def hold() -> None:
        _, holders = stack.enter_context(of_size(1))
        holders.add("holder", in_transaction)
        stack.enter_context(impatient())

    stack = ExitStack()
    await sync_to_async(hold)()
    try:
        with pytest.raises(OperationalError) as caught:
            await AsyncClient().get("/async/")
    finally:
        await sync_to_async(stack.close)()
    [event] = told
    assert event.request == "GET /async/"
    assert [holder.thread_name for holder in event.holders] == ["holder"]
    assert note_of(caught.value) == "\n".join(event.lines)


def test_a_holder_of_another_pool_is_not_named(told: list[PoolExhausted]) -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT 1")
    with of_size(1) as (_, holders):
        holders.add("holder", idle)
        fail()
    connections["default"].close()
    [event] = told
    assert [holder.thread_name for holder in event.holders] == ["holder"]


def test_who_has_taken_one_past_django_is_counted(told: list[PoolExhausted]) -> None:
    with of_size(2) as (pool, holders):
        holders.add("holder", idle)
        with pool.connection():
            error = fail()
    [event] = told
    assert (event.held, event.unaccounted) == (1, 1)
    numbers = " It has 2 connections of at most 2: 1 held, 1 being opened or checked out past Django. Those who"
    assert numbers in note_of(error)


def test_a_long_list_is_cut(told: list[PoolExhausted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhausted, "MOST", 1)
    with of_size(3) as (_, holders):
        for name in ("one", "two", "three"):
            holders.add(name, idle)
        error = fail()
    [event] = told
    assert event.held == 3
    assert [holder.thread_name for holder in event.holders] == ["one"]
    assert note_of(error).endswith("SELECT ?\nAnd 2 more.")


def test_of_a_dead_thread_the_number_is_told(told: list[PoolExhausted], settings: Any) -> None:
    settings.CONN_HYGIENE = {"RECLAIM_DEAD_THREADS": False}
    with of_size(1):
        kept: list[Any] = []

        def leave() -> None:
            query()
            # Collected, it would go back.
            kept.append(connections[ALIAS])
            kept.append(threading.get_ident())

        thread = threading.Thread(target=leave)
        thread.start()
        thread.join()
        fail()
        [event] = told
        [holder] = event.holders
        assert (holder.thread_id, holder.thread_name, holder.where_now) == (kept[1], None, None)
        assert f"(1) thread {kept[1]} on '{ALIAS}'" in event.lines[1]
        kept[0].inc_thread_sharing()
        kept[0].close()


def test_what_is_on_its_way_back_is_counted(
    told: list[PoolExhausted], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0}
    begun, go_on = threading.Event(), threading.Event()
    usual = returns.pools.put_back

    def slow(connection: Any, giving: Any) -> Any:
        begun.set()
        go_on.wait(30)
        return usual(connection, giving)

    with of_size(1), monkeypatch.context() as patch:
        # The first release of all has the catalogue to ask.
        query()
        wait_until_released(ALIAS)
        patch.setattr(returns.pools, "put_back", slow)
        thread = threading.Thread(target=closing_connections(query))
        thread.start()
        assert begun.wait(10)
        try:
            error = fail()
        finally:
            go_on.set()
            thread.join()
    [event] = told
    assert (event.held, event.returning, event.unaccounted) == (0, 1, 0)
    assert note_of(error).endswith(
        " It has 1 connection of at most 1: 1 on the way back. None is checked out through Django."
    )


# ##### How it comes about #####


def test_a_queue_that_is_too_long_names_them_too(told: list[PoolExhausted]) -> None:
    with of_size(1, max_waiting=1) as (pool, holders), ThreadPoolExecutor(1) as executor:
        holders.add("holder", idle)
        # A thread's first connection.
        waits = executor.submit(closing_connections(query))
        wait_until(lambda: pool._waiting, "somebody waits")
        assert [info.waiting for info in conn_hygiene.pool_stats(ALIAS)] == [1]
        error = fail(match="requests waiting")
        holders.end()
        waits.result()
    [event] = told
    assert (event.error, event.waiting) == ("TooManyRequests", 1)
    assert note_of(error).startswith(
        f"thread MainThread got no connection from the pool of '{ALIAS}' and did not wait, since the pool's "
        "max_waiting is reached; 1 more waits. It has 1 connection of at most 1: 1 held."
    )
    assert [holder.thread_name for holder in event.holders] == ["holder"]


def test_who_has_given_up_does_not_wait(told: list[PoolExhausted]) -> None:
    with of_size(1) as (pool, holders):
        holders.add("holder", idle)
        for _ in range(2):
            exhausted._last = None
            fail()
        # Until a connection comes back, psycopg_pool has them in its queue.
        assert pool.get_stats()["requests_waiting"] == 2
        assert [info.waiting for info in conn_hygiene.pool_stats(ALIAS)] == [0]
    assert [event.waiting for event in told] == [0, 0]


def test_without_a_server_nobody_is_named(told: list[PoolExhausted]) -> None:
    with of_size(1) as (pool, _):
        with cut_off(pool):
            # It cannot be put back, and its pool tries to connect.
            with pool.connection() as connection:
                connection.close()
            wait_until(lambda: pool.get_stats().get("connections_errors"), "it was tried")
            error = fail()
        # Before the end of the test, which wants it whole.
        pool.wait(30)
    [event] = told
    assert (event.size, event.held, event.holders, event.unaccounted) == (1, 0, (), 1)
    number = event.connect_errors
    failed = "1 attempt to open one has" if number == 1 else f"{number} attempts to open one have"
    assert note_of(error).endswith(
        " It has 1 connection of at most 1: 1 being opened or checked out past Django. None is checked out through "
        f"Django. {failed} failed since the pool was opened; the logger 'psycopg.pool' has the errors."
    )


def test_the_pools_of_sqlalchemy_name_them(told: list[PoolExhausted]) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    pytest.importorskip("dj_db_conn_pool")
    holders = Holders()
    options = {"POOL_SIZE": 1, "MAX_OVERFLOW": 0, "TIMEOUT": TIMEOUT}
    with remade(ALIAS, ENGINE="dj_db_conn_pool.backends.postgresql", POOL_OPTIONS=options):
        try:
            holders.add("holder", in_transaction)
            with pytest.raises(sqlalchemy.exc.TimeoutError) as caught:
                query()
        finally:
            holders.end()
            importlib.import_module("dj_db_conn_pool.core").pool_container.pop(ALIAS).dispose()
    [event] = told
    assert (event.error, event.size, event.max_size, event.held, event.waiting) == ("TimeoutError", 1, 1, 1, 0)
    [holder] = event.holders
    assert (holder.thread_name, holder.where_began) == ("holder", line_of("# begins", in_transaction))
    assert note_of(caught.value) == "\n".join(event.lines)


# ##### Where it is told #####


def begin() -> None:
    transaction.atomic(using=ALIAS).__enter__()


def look() -> None:
    connections[ALIAS].connection.cursor().execute("SELECT 1")


def ensure() -> None:
    connections[ALIAS].ensure_connection()


@pytest.mark.parametrize("work", [query, begin, ensure])
def test_the_note_is_once_in_a_traceback_and_on_what_django_raises(work: Callable[[], None]) -> None:
    with of_size(1) as (_, holders):
        holders.add("holder", idle)
        error = fail(work)
    assert error.__cause__ is not None
    assert error.__cause__.__notes__ == []
    # Python 3.10 shows none by itself; the "exceptiongroup" that pytest brings along there has it show them.
    assert "".join(traceback.format_exception(error)).count("(1) thread holder on") == 1


def test_it_is_when_the_connection_is_read_for_a_use(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0}
    with of_size(1) as (pool, holders):
        query()
        wait_until(lambda: pool.get_stats()["pool_available"] == 1, "it is given back")
        settings.CONN_HYGIENE = {}
        holders.add("holder", in_transaction)
        error = fail(look)
    assert "(1) thread holder on" in note_of(error)


def test_it_is_where_somebody_has_replaced_ensure_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = BaseDatabaseWrapper.ensure_connection

    def replaced(wrapper: BaseDatabaseWrapper) -> None:
        usual(wrapper)

    monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", replaced)
    with of_size(1) as (_, holders):
        holders.add("holder", idle)
        error = fail()
    assert "(1) thread holder on" in note_of(error)


def test_who_connects_himself_has_the_note_on_the_pools_own_exception() -> None:
    with of_size(1) as (_, holders):
        holders.add("holder", idle)
        with impatient(), pytest.raises(Exception, match="couldn't get a connection") as caught:
            connections[ALIAS].connect()
    assert "(1) thread holder on" in note_of(caught.value)


def test_nothing_is_left_on_a_wrapper_that_has_connected() -> None:
    def look() -> list[bool]:
        made = connections[ALIAS]
        before = "ensure_connection" in vars(made)
        query()
        return [before, "ensure_connection" in vars(made)]

    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(closing_connections(look)).result() == [True, False]


def test_the_log_tells_of_it_once_a_minute(
    told: list[PoolExhausted], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    # Not the one of everybody.
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with of_size(1) as (_, holders):
        holders.add("holder", idle)
        for _ in range(3):
            fail()
        now[0] += 60
        fail()
    records = [record for record in caplog.records if record.name == "conn_hygiene.pools"]
    first, *_, last = told
    assert [(record.levelno, record.getMessage()) for record in records] == [
        (logging.WARNING, " ".join(first.lines)),
        (
            logging.WARNING,
            " ".join([*last.lines, "2 more checkouts have failed like this since the last report."]),
        ),
    ]
    facts = {name: getattr(records[0], name) for name in first.facts()}
    assert facts == first.facts() | {"holders": [asdict(first.holders[0])]}
    assert [record.count for record in records] == [1, 3]
    assert conn_hygiene.stats(ALIAS).pool_timeouts >= 4


def test_a_signal_is_sent_for_each(told: list[PoolExhausted]) -> None:
    got: list[dict[str, Any]] = []

    def receive(sender: Any, signal: Any, **facts: Any) -> None:
        got.append(facts)

    signals.pool_exhausted.connect(receive)
    try:
        with of_size(1) as (_, holders):
            holders.add("holder", idle)
            for _ in range(2):
                fail()
    finally:
        signals.pool_exhausted.disconnect(receive)
    assert got == [event.facts() for event in told]
    assert [facts["holders"][0].thread_name for facts in got] == ["holder"] * 2


def test_a_receiver_that_queries_is_not_called_for_its_own_query(told: list[PoolExhausted]) -> None:
    got: list[int] = []
    failures: list[OperationalError] = []

    def receive(sender: Any, **facts: Any) -> None:
        got.append(facts["thread_id"])
        assert len(got) < 10
        with pytest.raises(OperationalError) as caught:
            query()
        failures.append(caught.value)
        raise caught.value

    before = conn_hygiene.stats(ALIAS).pool_timeouts
    signals.pool_exhausted.connect(receive)
    try:
        with of_size(1) as (_, holders):
            holders.add("holder", idle)
            for _ in range(2):
                fail()
    finally:
        signals.pool_exhausted.disconnect(receive)
    # Its own are counted, and have their notes.
    assert got == [threading.get_ident()] * 2
    assert ["holder" in note_of(each) for each in failures] == [True, True]
    assert conn_hygiene.stats(ALIAS).pool_timeouts == before + 4
    assert len(told) == 4


def test_many_that_fail_at_once_look_once(told: list[PoolExhausted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhausted, "FRESH", 3600)
    with of_size(1) as (_, holders):
        holders.add("holder", idle)
        fail()
        fail()
    assert told[0].holders is told[1].holders
    # Of another pool, nothing of that is said.
    with of_size(1) as (_, holders):
        holders.add("another", idle)
        fail()
    assert [holder.thread_name for holder in told[2].holders] == ["another"]


# ##### What must not harm #####


@pytest.mark.parametrize("handler_fails", [False, True])
def test_what_fails_in_looking_leaves_the_exception_as_it_was(
    handler_fails: bool,
    told: list[PoolExhausted],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(exhausted, "describe", broken)
    if handler_fails:
        monkeypatch.setattr(exhausted.logger, "exception", broken)
    with of_size(1) as (_, holders):
        holders.add("holder", idle)
        error = fail()
    [event] = told
    assert (event.size, event.max_size, event.held, event.holders) == (0, 0, 0, ())
    assert note_of(error) == (
        f"thread MainThread got no connection from the pool of '{ALIAS}' in {event.waited_for:.1f} s."
    )
    failures = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    found = [f"It could not be found out who holds the connections of the pool of '{ALIAS}'."]
    assert failures == ([] if handler_fails else found)


def test_a_text_that_cannot_be_made_leaves_the_exception_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: PoolExhausted) -> list[str]:
        raise ZeroDivisionError

    monkeypatch.setattr(PoolExhausted, "lines", property(broken))
    with of_size(1) as (_, holders):
        holders.add("holder", idle)
        assert not hasattr(fail(), "__notes__")


def test_a_statement_whose_text_fails_is_left_out(told: list[PoolExhausted]) -> None:
    class Broken:
        def as_string(self, context: Any = None) -> str:
            raise ZeroDivisionError

    def work(wait: Callable[[], None]) -> None:
        query()
        conn_hygiene.leases.wrapper.lease_of(connections[ALIAS]).last_statement = (Broken(),)
        wait()

    with of_size(1) as (_, holders):
        holders.add("holder", work)
        error = fail()
    [event] = told
    assert event.holders[0].statement is None
    assert "Its last statement" not in note_of(error)


@pytest.mark.parametrize(("setting", "statement"), [("masked", "SELECT ?, ?"), ("raw", "SELECT 'Ada', 1815")])
def test_statements_are_told_as_the_setting_says(
    setting: str, statement: str, settings: Any, told: list[PoolExhausted]
) -> None:
    settings.CONN_HYGIENE = {"LOG_STATEMENTS": setting}
    with of_size(1) as (_, holders):
        holders.add("holder", in_transaction)
        error = fail()
    [event] = told
    assert event.holders[0].statement == statement
    assert note_of(error).endswith(f"Its last statement was: {statement}")


HOLDER = Holder(
    alias="default",
    server_pid=7,
    thread_id=8,
    thread_name="worker",
    request="GET /\x1b[31m\n/",
    state="pinned",
    held_for=2.25,
    idle_for=0.0,
    in_transaction=False,
    pinned_by=("temporary table", "advisory\nlock"),
    statement="SELECT\n" + "x" * 300,
    where_checked_out="/a\x1b.py:1 in a",
    where_began=None,
    where_now=None,
)


def test_no_text_of_others_steers_a_terminal() -> None:
    assert HOLDER.message == (
        "GET / [31m / in thread worker on 'default' (server pid 7) for 2.2 s, running a statement. It was checked out "
        f"at /a .py:1 in a. It is pinned by temporary table, advisory lock. Its last statement was: SELECT {'x' * 193}…"
    )


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ({}, ""),
        ({"size": 3, "held": 3}, " It has 3 connections: 3 held."),
        ({"max_size": 4}, " It has 0 connections of at most 4. None is checked out through Django."),
        (
            {"size": 4, "max_size": 4, "held": 3, "available": 1},
            " It has 4 connections of at most 4: 3 held, 1 idle in the pool.",
        ),
        # All that it may have is there: nothing was refused that matters now.
        ({"size": 4, "max_size": 4, "held": 4, "connect_errors": 9}, " It has 4 connections of at most 4: 4 held."),
        (
            {"size": 2, "max_size": 4, "held": 2, "connect_errors": 1},
            " It has 2 connections of at most 4: 2 held. 1 attempt to open one has failed since the pool was opened; "
            "the logger 'psycopg.pool' has the errors.",
        ),
        # Without a limit there is never all.
        (
            {"size": 2, "held": 2, "connect_errors": 2},
            " It has 2 connections: 2 held. 2 attempts to open one have failed since the pool was opened; the logger "
            "'psycopg.pool' has the errors.",
        ),
    ],
)
def test_the_numbers_of_a_pool_are_told(numbers: dict[str, Any], told: str) -> None:
    event = events.PoolExhausted(
        alias="default", thread_id=8, thread_name=None, request=None, waited_for=1.0, error="PoolTimeout", **numbers
    )
    assert event.lines == [f"thread 8 got no connection from the pool of 'default' in 1.0 s.{told}"]
