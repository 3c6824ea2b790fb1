"""Whatever happens is published once, with the right facts, to those who listen, and costs nothing without them."""

from __future__ import annotations

import gc
import inspect
import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

import conn_hygiene
from conn_hygiene import closing_connections, events, release_between_queries, retry_transaction
from conn_hygiene.reaper import reaper
from conn_hygiene.reports.counters import BOUNDS, Tally
from conn_hygiene.reports.snapshot import _histogram
from conn_hygiene.work import serving
from tests.test_forks import in_child
from tests.test_lease import query
from tests.testapp.models import Item
from tests.waiting import end_sessions, let_the_reaper_look, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg
    from psycopg_pool import ConnectionPool

ALIASES = ["default", "unpooled", "persistent"]

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=ALIASES),
    pytest.mark.urls(__name__),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

every_alias = pytest.mark.parametrize("alias", ALIASES)


class Published(list[Any]):
    """The events that were published, in their order."""

    def of(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self if type(event) is kind]

    def only(self, kind: type[events.Event]) -> Any:
        [event] = self.of(kind)
        return event

    def kinds(self) -> list[type]:
        return [type(event) for event in self]


@contextmanager
def heard(*kinds: type[events.Event]) -> Iterator[Published]:
    published = Published()
    # The same object for listen() and unlisten().
    listener = published.append
    for kind in kinds:
        events.listen(kind, listener)
    try:
        yield published
    finally:
        for kind in kinds:
            events.unlisten(kind, listener)


@pytest.fixture
def published(transactional_db: None) -> Iterator[Published]:
    connections.close_all()
    with heard(events.Event) as found:
        yield found
        connections.close_all()


@pytest.fixture
def at_once(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0, "UNPOOLED_RELEASE_AFTER": 0}


def pid_of(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def line_after(frame: Any) -> str:
    """Return the place below the caller's, as events name it."""
    return f"{__file__}:{frame.f_lineno + 1} in {frame.f_code.co_name}"


def facts(event: events.Event, *without: str) -> dict[str, Any]:
    """Return the facts of *event* but for those *without* which it is compared: how long something took."""
    return {name: value for name, value in event.facts().items() if name not in without}


# ##### What is published #####


def test_a_connection_that_a_pool_opens_is_told_with_its_time() -> None:
    connections["default"].close_pool()
    with heard(events.ConnectionOpened) as published:
        pid = pid_of("default")
    # A pool that has given its last one away opens another.
    [opened] = [event for event in published if event.server_pid == pid]
    assert facts(opened, "opened_in") == {"alias": "default", "server_pid": pid}
    assert 0 < opened.opened_in < 60


def test_a_pool_has_its_own_class_back_after_uninstall() -> None:
    pid_of("default")
    pool: Any = connections["default"].pool
    connections.close_all()
    own = pool.connection_class.connection_class
    conn_hygiene.uninstall()
    try:
        assert pool.connection_class is own
    finally:
        conn_hygiene.install()


def test_a_connection_without_a_pool_is_told_as_a_checkout_alone() -> None:
    connections["unpooled"].close()
    with heard(events.ConnectionOpened, events.CheckedOut) as published:
        pid_of("unpooled")
    assert published.kinds() == [events.CheckedOut]


@every_alias
@pytest.mark.usefixtures("at_once")
def test_a_query_is_a_checkout_and_a_release(alias: str, published: Published) -> None:
    pid = pid_of(alias)
    out, back = published
    owner = {"alias": alias, "server_pid": pid, "thread_id": threading.get_ident(), "request": None}
    pooled = {"pooled": alias == "default"}
    assert type(out) is events.CheckedOut
    assert facts(out, "waited_for") == owner | pooled
    assert type(back) is events.CheckedIn
    assert facts(back, "held_for", "used_for") == owner | pooled | {"reason": "release"}
    assert back.held_for >= back.used_for > 0


@every_alias
def test_a_connection_that_its_owner_closes_is_closed(alias: str, published: Published) -> None:
    query(alias)
    connections[alias].close()
    assert published.kinds() == [events.CheckedOut, events.CheckedIn]
    assert published[1].reason == "close"


def test_what_the_reaper_gives_back_is_published_by_it(published: Published, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always"}
    threads: list[int] = []
    events.listen(events.CheckedIn, note := lambda event: threads.append(threading.get_ident()))
    try:
        query()
        wait_until(lambda: threads, "it is given back")
    finally:
        events.unlisten(events.CheckedIn, note)
    assert threads != [threading.get_ident()]
    assert published.only(events.CheckedIn).thread_id == threading.get_ident()


def test_what_is_given_back_by_hand_is_a_release(published: Published) -> None:
    query()
    conn_hygiene.release_connections()
    assert published.only(events.CheckedIn).reason == "release"


def test_a_hold_that_ends_gives_back_too(published: Published, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 60}
    with release_between_queries():
        with conn_hygiene.hold_connection():
            query("default", "LISTEN news")
        assert published.kinds() == [events.CheckedOut, events.Pinned, events.CheckedIn]
    assert published[2].reason == "release"


@every_alias
@pytest.mark.parametrize("in_transaction", [False, True])
def test_what_a_dead_thread_held_is_reclaimed(alias: str, in_transaction: bool, published: Published) -> None:
    before = conn_hygiene.stats(alias).reclaimed
    sessions: list[tuple[int, int]] = []

    def leave() -> None:
        if in_transaction:
            transaction.set_autocommit(False, using=alias)
        sessions.append((pid_of(alias), threading.get_ident()))

    thread = threading.Thread(target=leave, name="forgetful")
    thread.start()
    thread.join()
    wait_until(lambda: len(published) == 3, "it is reclaimed")
    [(pid, ident)] = sessions
    where = published.only(events.Reclaimed).where_checked_out
    assert where.endswith(" in leave" if in_transaction else " in pid_of")
    assert facts(published.only(events.Reclaimed), "held_for") == {
        "alias": alias,
        "server_pid": pid,
        "thread_id": ident,
        "thread_name": "forgetful",
        "request": None,
        "in_transaction": in_transaction,
        "thread_runs": f"{__file__}:{leave.__code__.co_firstlineno} in leave",
        "where_checked_out": where,
        "where_began": where if in_transaction else None,
        "stack_checked_out": None,
        "stack_began": None,
    }
    assert published[0] is published.only(events.CheckedOut)
    back = published.only(events.CheckedIn)
    assert (back.reason, back.server_pid) == ("reclaim", pid)
    assert conn_hygiene.stats(alias).reclaimed - before == 1


def test_each_reason_to_pin_is_published_and_the_first_one_says_so(published: Published) -> None:
    pid = pid_of("default")
    before = conn_hygiene.stats().pinned
    query("default", "LISTEN events")
    query("default", "CREATE TEMP TABLE t_events (n int)")
    query("default", "LISTEN others")
    first, second = published.of(events.Pinned)
    assert facts(first, "where") == {
        "alias": "default",
        "server_pid": pid,
        "thread_id": threading.get_ident(),
        "request": None,
        "pinned_by": "LISTEN",
        "first": True,
    }
    assert (second.pinned_by, second.first) == ("temporary table", False)
    assert first.where == second.where
    assert first.where.endswith(" in query")
    assert conn_hygiene.stats().pinned - before == 1


@every_alias
def test_a_connection_that_the_server_closed_is_replaced(
    alias: str, published: Published, admin: psycopg.Connection
) -> None:
    pid = pid_of(alias)
    before = conn_hygiene.stats().replaced
    end_sessions(admin, pid)
    connections[alias].__dict__["_conn_hygiene_lease"].idle_since -= 1
    query(alias)
    event = published.only(events.Replaced)
    assert facts(event, "idle_for") == {
        "alias": alias,
        "server_pid": pid,
        "thread_id": threading.get_ident(),
        "request": None,
        "could_not_write": False,
    }
    assert event.idle_for > 1
    assert conn_hygiene.stats().replaced - before == 1


@pytest.mark.parametrize("alias", ["default", "unpooled"])
def test_settings_that_follow_are_published_by_name_for_each_session(
    alias: str, published: Published, settings: Any
) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 60, "UNPOOLED_RELEASE_AFTER": 60}
    query(alias, "SET app.b TO 'a secret'")
    query(alias, "SET app.a TO '1'")
    assert published.of(events.Followed) == []
    for _ in range(2):
        conn_hygiene.release_connections()
        pid = pid_of(alias)
    first, second = published.of(events.Followed)
    assert facts(second) == {
        "alias": alias,
        "server_pid": pid,
        "thread_id": threading.get_ident(),
        "request": None,
        "settings": ("app.a", "app.b"),
    }
    assert first.settings == second.settings


@pytest.mark.parametrize("action", ["log", "terminate"])
def test_an_idle_transaction_is_published_as_often_as_it_is_counted(
    action: str, published: Published, settings: Any, caplog: Any
) -> None:
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": 0.05, "IDLE_IN_TRANSACTION_ACTION": action}
    before = conn_hygiene.stats()
    with (
        pytest.raises(OperationalError, match="conn_hygiene ended") if action == "terminate" else released(),
        transaction.atomic(),
    ):
        pid = pid_of("default")
        wait_until(lambda: published.of(events.IdleInTransaction), "it is reported")
        query()
    reports = published.of(events.IdleInTransaction)
    assert reports[0].action == action
    assert (reports[0].server_pid, reports[0].thread_id) == (pid, threading.get_ident())
    assert reports[0].statement == "SELECT pg_backend_pid()"
    assert reports[0].idle_for >= 0.05
    assert reports[0].where_began.startswith(f"{__file__}:")
    # Each is one record, and counts once.
    records = [record for record in caplog.records if record.name == "conn_hygiene.transactions"]
    assert len(reports) == len(records) == conn_hygiene.stats().idle_in_transaction - before.idle_in_transaction
    connection.close()


@contextmanager
def released() -> Iterator[None]:
    """Stand where something else stands in another case."""
    yield


def test_a_transaction_that_is_left_open_is_told_when_it_is_over(published: Published) -> None:
    """Whoever is told may write it down, by the same wrapper, and keeps what it wrote."""
    before = conn_hygiene.stats()

    def write_down(event: events.LeftOpen) -> None:
        Item.objects.create(name=event.alias)

    events.listen(events.LeftOpen, write_down)
    try:
        with closing_connections():
            transaction.set_autocommit(False)
            pid = pid_of("default")
            Item.objects.create(name="lost")
    finally:
        events.unlisten(events.LeftOpen, write_down)
    event = published.only(events.LeftOpen)
    assert (event.alias, event.server_pid) == ("default", pid)
    assert event.left_by == "The job that closing_connections covers"
    assert list(Item.objects.values_list("name", flat=True)) == ["default"]
    after = conn_hygiene.stats()
    assert (after.left_open - before.left_open, after.idle_in_transaction - before.idle_in_transaction) == (1, 0)


def test_a_connection_that_is_held_too_long_is_published(published: Published, settings: Any) -> None:
    settings.CONN_HYGIENE = {"HELD_TOO_LONG_AFTER": 0.05}
    before = conn_hygiene.stats().held_too_long
    pid = pid_of("default")
    query("default", "LISTEN events")
    wait_until(lambda: published.of(events.HeldTooLong), "it is reported")
    connection.close()
    let_the_reaper_look()
    event = published.of(events.HeldTooLong)[0]
    assert (event.server_pid, event.action, list(event.pins)) == (pid, "log", ["LISTEN"])
    assert event.held_for >= event.idle_for >= 0.05
    assert conn_hygiene.stats().held_too_long - before == len(published.of(events.HeldTooLong))


def test_a_cursor_that_is_never_closed_is_published(published: Published, settings: Any) -> None:
    settings.CONN_HYGIENE = {"REPORT_UNCLOSED_CURSORS": True, "RELEASE": "always"}
    before = conn_hygiene.stats().unclosed_cursors
    opened = line_after(inspect.currentframe())
    connection.cursor()
    gc.collect()
    wait_until(lambda: published.of(events.UnclosedCursor), "it is reported")
    assert facts(published.only(events.UnclosedCursor)) == {
        "alias": "default",
        "thread_id": threading.get_ident(),
        "request": None,
        "where_opened": opened,
        "stack_opened": None,
    }
    assert conn_hygiene.stats().unclosed_cursors - before == 1
    wait_until_released()


def test_an_unclosed_cursor_is_that_of_the_request_that_opened_it(published: Published, settings: Any) -> None:
    """The reaper, which makes the report, comes late: after the next request has the connection."""
    settings.CONN_HYGIENE = {"REPORT_UNCLOSED_CURSORS": True}
    pid_of("default")
    gate = threading.Event()

    def wait() -> None:
        gate.wait(10)

    reaper.running._bell.put(wait)
    try:
        serving.label = "GET /first/"
        connections.close_all()
        opened = line_after(inspect.currentframe())
        connection.cursor()
        gc.collect()
        connections.close_all()
        serving.label = "GET /second/"
        pid_of("default")
    finally:
        serving.label = None
        gate.set()
    wait_until(lambda: published.of(events.UnclosedCursor), "it is reported")
    event = published.only(events.UnclosedCursor)
    assert (event.request, event.where_opened) == ("GET /first/", opened)


def test_a_transaction_that_is_run_again_is_published(published: Published, admin: psycopg.Connection) -> None:
    before = conn_hygiene.stats("default").transactions_retried
    item = Item.objects.create(name="contested")
    attempts: list[int] = []

    @retry_transaction(delay=0.001)
    def contend() -> None:
        attempts.append(1)
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT * FROM testapp_item")
        if len(attempts) == 1:
            admin.execute("UPDATE testapp_item SET value = 7 WHERE id = %s", [item.pk])
        Item.objects.filter(pk=item.pk).update(value=8)

    contend()
    event = published.only(events.TransactionRetried)
    assert facts(event, "delay") == {
        "alias": "default",
        "function": contend.__qualname__,
        "attempt": 1,
        "sqlstate": "40001",
    }
    assert 0 <= event.delay <= 0.001
    assert conn_hygiene.stats("default").transactions_retried - before == 1


def test_inherited_connections_that_are_discarded_are_published_and_counted_in_the_child() -> None:
    connections["small"].close_pool()  # which other tests may have opened
    for alias in ("default", "unpooled"):
        query(alias)

    with heard(events.ConnectionsDiscarded) as published:

        def look() -> Any:
            counts = [conn_hygiene.stats(alias) for alias in ALIASES]
            return [(dict(event.discarded), dict(event.left_open)) for event in published], counts

        told, counts = in_child(look)
    [(discarded, left)] = told
    assert (sorted(discarded), left) == (["default", "unpooled"], {})
    # Those of the pool that nobody had checked out are among them.
    assert [each.discarded for each in counts] == [discarded["default"], discarded["unpooled"], 0]
    # What happened before is the parent's.
    assert {each.checkouts for each in counts} == {0}
    assert published == []
    connections.close_all()


def test_checkouts_that_the_toolkit_did_not_see_begin_have_no_wait() -> None:
    connections.close_all()
    conn_hygiene.uninstall()
    try:
        query("persistent")
        with heard(events.Event) as published:
            conn_hygiene.install()
            assert published.kinds() == [events.CheckedOut, events.Pinned]
            assert published[0].waited_for is None
            conn_hygiene.uninstall()
            assert published.only(events.CheckedIn).reason == "uninstall"
        assert conn_hygiene.histograms().waited.count == 0
    finally:
        conn_hygiene.install()
        connections.close_all()


# ##### Waiting for a connection #####


@contextmanager
def exhausted(pool: ConnectionPool, timeout: float = 5) -> Iterator[list[Any]]:
    """Take all that *pool* has; whoever needs one waits for *timeout* seconds, or until one of the list is put back."""
    taken = [pool.getconn() for _ in range(pool.max_size)]
    before, pool.timeout = pool.timeout, timeout
    try:
        yield taken
    finally:
        pool.timeout = before
        for handle in taken:
            pool.putconn(handle)


def in_thread(work: Callable[[], object]) -> Any:
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(closing_connections(work))


def wait_for(pool: ConnectionPool, seconds: float, work: Callable[[], object]) -> None:
    """Have *work* wait for a connection of *pool* for *seconds* at least, in this thread."""
    waited = threading.Event()

    with exhausted(pool) as taken:

        def free() -> None:
            wait_until(lambda: pool._waiting, "somebody waits")
            waited.wait(seconds)
            pool.putconn(taken.pop())

        thread = threading.Thread(target=free)
        thread.start()
        try:
            work()
        finally:
            thread.join()


SECONDS = 0.1


@pytest.mark.parametrize("first", [True, False])
def test_a_wait_for_the_pool_is_measured(first: bool, published: Published, pool_of: Any) -> None:
    """Of a thread's first checkout, for which Django's own method runs, as of any other."""
    pool = pool_of("default")

    def work() -> None:
        if not first:
            query()
            connection.close()
        wait_for(pool, SECONDS, query)
        connection.close()
        query()
        connection.close()

    before, histogram = conn_hygiene.stats("default").seconds_waited, conn_hygiene.histograms("default").waited
    with ThreadPoolExecutor(1) as executor:
        executor.submit(work).result()
    *_, waited, at_once = published.of(events.CheckedOut)
    assert waited.waited_for >= SECONDS > at_once.waited_for >= 0
    assert conn_hygiene.stats("default").seconds_waited - before == pytest.approx(
        sum(event.waited_for for event in published.of(events.CheckedOut))
    )
    after = conn_hygiene.histograms("default").waited
    assert after.count - histogram.count == len(published.of(events.CheckedOut))
    # One of them is above the bound of the wait, and the others are not.
    assert [new - old for (bound, new), (_, old) in zip(after.buckets, histogram.buckets, strict=True) if bound < 0.1][
        -1
    ] == after.count - histogram.count - 1


def test_a_connection_that_is_opened_is_waited_for(published: Published) -> None:
    # Another test may have left one that the toolkit has not seen being made.
    connections["unpooled"].close()
    del connections["unpooled"]
    query("unpooled")
    connections["unpooled"].close()
    query("unpooled")
    first, second = published.of(events.CheckedOut)
    assert first.waited_for > 0
    assert second.waited_for > 0


@pytest.mark.parametrize("first", [True, False])
def test_a_pool_that_has_none_in_time_is_counted(first: bool, published: Published, pool_of: Any) -> None:
    before = conn_hygiene.stats("default")
    idents: list[int] = []

    def work() -> None:
        idents.append(threading.get_ident())
        if not first:
            query()
            connection.close()
        with exhausted(pool_of("default"), SECONDS), pytest.raises(OperationalError, match="couldn't get a connection"):
            query()

    with ThreadPoolExecutor(1) as executor:
        executor.submit(work).result()
    event = published.only(events.PoolExhausted)
    size = pool_of("default").max_size
    assert facts(event, "waited_for", "thread_name") == {
        "alias": "default",
        "thread_id": idents[0],
        "request": None,
        "error": "PoolTimeout",
        "waiting": 0,
        "size": size,
        "max_size": size,
        "available": 0,
        "held": 0,
        "returning": 0,
        "connect_errors": 0,
        "holders": (),
    }
    assert event.waited_for >= SECONDS
    after = conn_hygiene.stats("default")
    assert after.pool_timeouts - before.pool_timeouts == 1
    assert after.seconds_waited - before.seconds_waited >= event.waited_for
    assert after.checkouts - before.checkouts == (0 if first else 1)


def test_a_queue_that_is_too_long_is_counted(published: Published, pool_of: Any, monkeypatch: Any) -> None:
    pool = pool_of("default")
    query()
    connection.close()
    before = conn_hygiene.stats("default").pool_timeouts
    monkeypatch.setattr(pool, "max_waiting", 1)
    with exhausted(pool) as taken, ThreadPoolExecutor(1) as executor:
        waits = executor.submit(closing_connections(query))
        wait_until(lambda: pool._waiting, "somebody waits")
        with pytest.raises(OperationalError, match="requests waiting"):
            query()
        pool.putconn(taken.pop())
        waits.result()
    assert published.only(events.PoolExhausted).error == "TooManyRequests"
    assert conn_hygiene.stats("default").pool_timeouts - before == 1


def test_a_server_that_refuses_is_no_pool_that_is_exhausted(published: Published, monkeypatch: Any) -> None:
    monkeypatch.setitem(connections["unpooled"].settings_dict, "PORT", "1")
    with pytest.raises(OperationalError):
        query("unpooled")
    assert published == []


def test_the_first_connection_leaves_no_trace_on_its_wrapper() -> None:
    def look() -> tuple[bool, bool]:
        made = "get_new_connection" in vars(connections["default"])
        query()
        return made, "get_new_connection" in vars(connections["default"])

    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(closing_connections(look)).result() == (True, False)


# ##### Numbers #####


def test_numbers_are_those_of_the_aliases_that_are_asked_for() -> None:
    names = ("default", "unpooled", "persistent")
    before = {alias: conn_hygiene.stats(alias) for alias in names}
    whole = conn_hygiene.stats()
    for number, alias in enumerate(names, start=1):
        for _ in range(number):
            query(alias)
            connections[alias].close()
    counts = {alias: conn_hygiene.stats(alias).checkouts - before[alias].checkouts for alias in names}
    assert counts == {"default": 1, "unpooled": 2, "persistent": 3}
    both = conn_hygiene.stats(using=["default", "persistent"]).checkouts
    assert both == sum(conn_hygiene.stats(alias).checkouts for alias in ("default", "persistent"))
    assert conn_hygiene.stats().checkouts - whole.checkouts == 6
    assert conn_hygiene.histograms("persistent").held.count == conn_hygiene.stats("persistent").checkouts


def test_what_is_held_now_counts_for_its_alias() -> None:
    before = conn_hygiene.stats("default").seconds_held
    query("unpooled")
    assert conn_hygiene.stats("default").seconds_held == before
    connections.close_all()


@pytest.mark.parametrize("ask", [conn_hygiene.stats, conn_hygiene.histograms])
def test_an_alias_that_is_not_there_is_refused(ask: Any) -> None:
    with pytest.raises(connections.exception_class, match="there is no connection 'other'"):
        ask("other")
    with pytest.raises(TypeError, match="takes an alias"):
        ask(using=7)


def test_a_histogram_counts_up_to_each_bound_and_the_bound_itself() -> None:
    tally = Tally()
    for waited in (0.0, 0.001, 0.0011, 30.0, 31.0):
        tally.checked_out(waited)
    tally.checked_out(None)
    tally.checked_in(0.3, 0.002, released=True)
    tally.exhausted(5.0)
    assert tally.read() == dict.fromkeys(tally.read(), 0) | {
        "checkouts": 6,
        "releases": 1,
        "seconds_held": 0.3,
        "seconds_in_use": 0.002,
        "pool_timeouts": 1,
        "seconds_waited": pytest.approx(66.0021),
    }
    series = tally.series()
    waits = _histogram([series["waited"]])
    expected = {0.0005: 1, 0.001: 2, 0.0025: 3, 10.0: 3, 30.0: 4, float("inf"): 5}
    assert {bound: number for bound, number in waits.buckets if bound in expected} == expected
    assert tuple(bound for bound, _ in waits.buckets) == BOUNDS
    assert waits.count == 5
    assert waits.sum == pytest.approx(61.0021)
    twice = _histogram([series["held"], series["held"]])
    assert {bound: number for bound, number in twice.buckets if bound in (0.25, 0.5)} == {0.25: 0, 0.5: 2}
    assert twice.sum == 0.6


# ##### Those who listen #####


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("nobody listens to it")


@pytest.mark.usefixtures("at_once")
def test_what_nobody_listens_to_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (events.CheckedOut, events.CheckedIn):
        assert not events.wants(kind)
        monkeypatch.setattr(kind, "__init__", refuse)
    for alias in ALIASES:
        query(alias)
        connections[alias].close()
    query("default", "LISTEN news")
    connection.close()


def test_a_listener_is_called_once_until_it_does_not_listen_any_more() -> None:
    with heard(events.CheckedOut, events.CheckedOut, events.Event) as published:
        assert events.wants(events.CheckedOut)
        assert events.wants(events.Event)
        query()
        connection.close()
        assert published.kinds() == [events.CheckedOut, events.CheckedIn]
    assert not events.wants(events.CheckedOut)
    query()
    connection.close()
    assert len(published) == 2
    events.unlisten(events.CheckedOut, published.append)


@pytest.mark.parametrize("what", [int, object, events, None])
def test_what_is_no_event_is_refused(what: Any) -> None:
    for function in (events.listen, events.unlisten):
        with pytest.raises(TypeError, match="is no kind of event"):
            function(what, print)


@pytest.mark.parametrize("what", ["print", None])
def test_what_cannot_be_called_is_refused(what: Any) -> None:
    with pytest.raises(TypeError, match="takes what can be called"):
        events.listen(events.CheckedOut, what)
    assert not events.wants(events.CheckedOut)


def test_every_kind_is_listed() -> None:
    found = [value for value in vars(events).values() if isinstance(value, type) and issubclass(value, events.Event)]
    assert {kind for kind in found if not kind.__name__.startswith("_")} - {events.Event} == set(events.ALL)


def test_a_listener_that_fails_is_logged_and_stops_nobody(caplog: Any) -> None:
    def fail(event: events.CheckedOut) -> None:
        raise LookupError("the listener's own")

    events.listen(events.CheckedOut, fail)
    try:
        with heard(events.CheckedOut) as published:
            query()
    finally:
        events.unlisten(events.CheckedOut, fail)
    connection.close()
    assert published.kinds() == [events.CheckedOut]
    [record] = [record for record in caplog.records if record.name == "conn_hygiene.events"]
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("A listener of CheckedOut failed: <function")
    assert "the listener's own" in caplog.text


def test_a_logging_handler_that_fails_stops_nobody(published: Published) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise LookupError("the handler's own")

    handler, logger = Failing(level=logging.INFO), logging.getLogger("conn_hygiene")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        query("default", "LISTEN news")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert published.only(events.Pinned).pinned_by == "LISTEN"


def test_ctrl_c_in_a_listener_is_no_failure_of_it() -> None:
    def interrupt(event: events.CheckedIn) -> None:
        raise KeyboardInterrupt

    query()
    events.listen(events.CheckedIn, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            connection.close()
    finally:
        events.unlisten(events.CheckedIn, interrupt)
    assert conn_hygiene.snapshot() == []


@pytest.mark.usefixtures("at_once")
def test_no_lock_of_a_lease_is_held_while_somebody_is_told(published: Published) -> None:
    """Whatever a listener waits for may itself need the lease, or the list of leases."""
    free: list[tuple[type, bool]] = []

    def look(event: events.Event) -> None:
        lease = connections["default"].__dict__.get("_conn_hygiene_lease")
        if lease is not None:
            with ThreadPoolExecutor(1) as executor:
                looked = executor.submit(lease.holds_connection)
                done = looked.exception(timeout=2) is None
            free.append((type(event), done))

    events.listen(events.Event, look)
    try:
        query()
        query("default", "LISTEN news")
        connection.close()
        transaction.set_autocommit(False)
        query()
        connection.close()
        transaction.set_autocommit(True)
        query()
        conn_hygiene.release_connections()
    finally:
        events.unlisten(events.Event, look)
    assert {kind for kind, _ in free} == {events.CheckedOut, events.CheckedIn, events.Pinned}
    assert {done for _, done in free} == {True}


def test_a_listener_that_hangs_delays_no_release(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "UNPOOLED_RELEASE_AFTER": 0.001}
    hangs, done = threading.Event(), threading.Event()

    def hang(event: events.CheckedIn) -> None:
        hangs.set()
        done.wait()

    events.listen(events.CheckedIn, hang)
    try:
        query("unpooled")
        assert hangs.wait(10)
        for alias in ALIASES:
            query(alias)
            wait_until_released(alias)
        assert conn_hygiene.snapshot() == []
    finally:
        done.set()
        events.unlisten(events.CheckedIn, hang)


def test_a_child_listens_although_another_thread_was_about_to_at_the_fork() -> None:
    about, done = threading.Event(), threading.Event()

    def hold() -> None:
        with events._lock:
            about.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    about.wait()

    def listen() -> list[str]:
        with heard(events.CheckedOut) as published:
            query()
        return [event.alias for event in published]

    def fork() -> int:
        if child := os.fork():
            # Without a limit, one in which the lock is held for ever would hang the test; it may do so as it begins.
            limit = threading.Timer(10, os.kill, [child, signal.SIGKILL])
            ends.callback(limit.cancel)
            limit.start()
        return child

    with ExitStack() as ends:
        ends.callback(thread.join)
        ends.callback(done.set)
        assert in_child(listen, fork=fork) == ["default"]


# ##### In a response #####


def waits(request: HttpRequest) -> HttpResponse:
    wait_for(connections["default"].pool, SECONDS, query)
    connection.close()
    return HttpResponse()


def waits_in_vain(request: HttpRequest) -> HttpResponse:
    with exhausted(connections["default"].pool, SECONDS), pytest.raises(OperationalError):
        query()
    return HttpResponse()


urlpatterns = [path("waits/", waits), path("waits-in-vain/", waits_in_vain)]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("url", ["/waits/", "/waits-in-vain/"])
def test_a_response_tells_how_long_it_waited(url: str, first: bool, settings: Any) -> None:
    settings.CONN_HYGIENE = {"SERVER_TIMING": True}
    settings.MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware"]

    def serve() -> str:
        if not first:
            query()
            connection.close()
        return str(Client().get(url)["Server-Timing"])

    with ThreadPoolExecutor(1) as executor:
        header = executor.submit(closing_connections(serve)).result()
    waited = float(header.partition("db-wait;dur=")[2].partition(";")[0])
    assert waited >= SECONDS * 1000
    if url == "/waits-in-vain/":
        assert "db-held;dur=0.0" in header
