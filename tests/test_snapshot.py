"""What snapshot() and stats() tell, held against what really happens."""

from __future__ import annotations

import dataclasses
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

import conn_hygiene
from conn_hygiene import LeaseInfo, Stats
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.pools import base as pools
from conn_hygiene.reaper import reaper
from conn_hygiene.reports import counters
from conn_hygiene.reports.snapshot import held_by_alias
from tests.waiting import wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper
    from psycopg_pool import ConnectionPool

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "small", "unpooled", "persistent", "sqlite"]),
    pytest.mark.urls(__name__),
]


@pytest.fixture(autouse=True)
def nothing_is_held(transactional_db: None) -> None:
    connections.close_all()
    wait_until(lambda: not conn_hygiene.snapshot(), "nothing is held any more")


def query(alias: str = "default", sql: str = "SELECT pg_backend_pid()") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def only() -> LeaseInfo:
    [info] = conn_hygiene.snapshot()
    return info


@contextmanager
def another_thread(work: Any, name: str) -> Iterator[None]:
    """Run *work* in a thread, and keep the thread, with what it holds, until the end of the block."""
    ready, done = threading.Event(), threading.Event()

    def run() -> None:
        with conn_hygiene.closing_connections():
            work()
            ready.set()
            done.wait()

    thread = threading.Thread(target=run, name=name)
    thread.start()
    ready.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


# ##### snapshot() #####


def test_nothing_held_is_an_empty_snapshot() -> None:
    assert conn_hygiene.snapshot() == []


def test_another_vendors_connections_are_not_listed() -> None:
    query("sqlite", "SELECT 1")
    assert conn_hygiene.snapshot() == []


@pytest.mark.parametrize("alias", ["default", "unpooled", "persistent"])
def test_an_idle_connection(alias: str) -> None:
    pid = query(alias)
    info = only()
    assert (info.alias, info.state, info.server_pid) == (alias, "idle", pid)
    assert (info.thread_id, info.thread_name) == (threading.get_ident(), threading.current_thread().name)
    assert (info.open_cursors, info.in_transaction, info.pinned_by, info.request) == (0, False, {}, None)
    assert info.held_for >= info.in_use_for > 0
    assert info.held_for >= info.idle_for > 0


def test_a_connection_with_open_cursors() -> None:
    with connection.cursor() as outer:
        outer.execute("SELECT 1")
        info = only()
        assert (info.state, info.open_cursors) == ("in use", 1)
        # It counts from when the reaper has seen that nothing runs.
        assert info.idle_for < info.held_for
        with connection.cursor():
            assert only().open_cursors == 2
        assert only().open_cursors == 1
    assert (only().state, only().open_cursors) == ("idle", 0)


def test_a_connection_in_a_transaction_says_how_long_it_has_done_nothing() -> None:
    with transaction.atomic():
        query()
        info = only()
        assert (info.state, info.in_transaction, info.open_cursors) == ("in use", True, 0)
        assert only().idle_for > info.idle_for > 0
        idle = only().idle_for
        query()
        wait_until(lambda: only().idle_for > idle, "it has been idle for longer than the time before")
    assert (only().state, only().in_transaction) == ("idle", False)


def test_a_transaction_that_only_the_server_knows_of() -> None:
    query(sql="BEGIN")
    assert (only().state, only().in_transaction) == ("in use", True)
    assert only().transaction_for > 0
    query(sql="ROLLBACK")
    assert (only().state, only().in_transaction) == ("idle", False)


# The server's other databases have locks as well.
WAITING = """
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@contextmanager
def running(work: Callable[[], object], name: str) -> Iterator[LeaseInfo]:
    """Run *work*, which asks for a lock that this thread has, in a thread of its own; yield it while it waits."""

    wrappers: list[BaseDatabaseWrapper] = []

    def work_here() -> None:
        wrappers.append(connections["default"])
        work()

    def waits() -> bool:
        if not query(sql=WAITING):
            return False
        # libpq takes note of what it has sent when the server may have begun with it already.
        lease = lease_of(wrappers[0])
        return lease is not None and lease._connection is not None and pools.is_active(lease._connection)

    query(sql="SELECT pg_advisory_lock(1815)")
    thread = threading.Thread(target=conn_hygiene.closing_connections(work_here), name=name)
    thread.start()
    try:
        wait_until(waits, "the statement runs")
        [info] = [info for info in conn_hygiene.snapshot() if info.thread_name == name]
        yield info
    finally:
        query(sql="SELECT pg_advisory_unlock(1815)")
        thread.join()


def ask_for_the_lock() -> None:
    query(sql="SELECT pg_advisory_lock(1815)::text")


def test_a_statement_that_runs_by_itself_is_in_no_transaction() -> None:
    with running(ask_for_the_lock, "by itself") as info:
        assert (info.state, info.in_transaction, info.transaction_for) == ("in use", False, 0.0)
        assert (info.where_began, info.kept_because) == (None, None)


def test_nor_is_one_of_a_handle() -> None:
    def work() -> None:
        connections["default"].ensure_connection()
        connections["default"].connection.execute("SELECT pg_advisory_lock(1815)")

    with running(work, "on a handle") as info:
        assert (info.state, info.in_transaction, info.transaction_for) == ("in use", False, 0.0)


@pytest.mark.parametrize("way", ["atomic", "manual", "BEGIN"])
def test_one_of_a_transaction_is(way: str) -> None:
    def work() -> None:
        if way == "atomic":
            with transaction.atomic():
                ask_for_the_lock()
        elif way == "manual":
            transaction.set_autocommit(False)
            ask_for_the_lock()
            transaction.rollback()
            transaction.set_autocommit(True)
        else:
            query(sql="BEGIN")
            ask_for_the_lock()
            query(sql="ROLLBACK")

    with running(work, way) as info:
        assert (info.state, info.in_transaction, info.transaction_for > 0) == ("in use", True, True)


def test_a_broken_transaction_is_one() -> None:
    with transaction.atomic():
        with pytest.raises(Exception, match="division by zero"):
            query(sql="SELECT 1/0")
        assert only().in_transaction
        transaction.set_rollback(True)


def test_a_pinned_connection_says_why_and_where() -> None:
    query(sql="LISTEN activity")
    query(sql="CREATE TEMP TABLE t_activity (n int)")
    info = only()
    assert info.state == "pinned"
    assert list(info.pinned_by) == ["LISTEN", "temporary table"]
    assert all(f"{__file__}:" in where and where.endswith(" in query") for where in info.pinned_by.values())
    with connection.cursor():
        assert only().state == "in use"


def test_a_snapshot_is_a_copy() -> None:
    query(sql="LISTEN activity")
    only().pinned_by.clear()
    assert only().pinned_by
    with pytest.raises(dataclasses.FrozenInstanceError):
        only().alias = "other"  # type: ignore[misc]


def test_other_threads_are_named_and_the_longest_held_comes_first() -> None:
    query("unpooled")
    with another_thread(query, "first"), another_thread(transaction.atomic().__enter__, "holds nothing"):
        with another_thread(query, "second"):
            assert [(info.thread_name, info.alias) for info in conn_hygiene.snapshot()] == [
                (threading.current_thread().name, "unpooled"),
                ("first", "default"),
                ("holds nothing", "default"),
                ("second", "default"),
            ]
        held = [info.held_for for info in conn_hygiene.snapshot()]
        assert held == sorted(held, reverse=True)


def test_a_thread_that_has_ended_has_no_name(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RECLAIM_DEAD_THREADS": False}
    thread = threading.Thread(target=query, name="ended")
    thread.start()
    thread.join()
    found = conn_hygiene.snapshot()
    # Nobody else will: its wrapper is gone with its thread.
    assert reaper.running is not None
    for lease in reaper.running.leases():
        reaper.running.reclaim(lease)
    assert [(info.thread_name, info.alias) for info in found] == [(None, "default")]


def test_looking_takes_nothing_back_from_the_reaper(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0.05}
    query()
    wait_until(lambda: not conn_hygiene.snapshot(), "it is given back although somebody looks all the time")


def test_looking_opens_nothing_and_pins_nothing(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0}
    query()
    before = conn_hygiene.stats()
    for _ in range(3):
        assert conn_hygiene.snapshot() == []
        assert conn_hygiene.stats() == before


def view(request: HttpRequest, number: int) -> HttpResponse:
    query()
    query("persistent")
    return HttpResponse(" ".join(f"{info.alias}:{info.request}" for info in conn_hygiene.snapshot()))


urlpatterns = [path("orders/<int:number>/", view)]


def test_a_connection_is_labelled_with_the_request_that_it_serves() -> None:
    query("persistent")
    assert only().request is None
    response = Client().get("/orders/7/?secret=1")
    assert response.content.decode() == "persistent:GET /orders/7/ default:GET /orders/7/"
    assert {info.request for info in conn_hygiene.snapshot()} == {None}


# ##### stats() #####


def change(before: Stats) -> dict[str, float]:
    after = dataclasses.asdict(conn_hygiene.stats())
    return {name: after[name] - value for name, value in dataclasses.asdict(before).items()}


def counts(before: Stats) -> tuple[float, ...]:
    changed = change(before)
    return tuple(changed[name] for name in ("checkouts", "releases", "reclaimed", "pinned"))


@pytest.mark.parametrize("alias", ["default", "unpooled", "persistent"])
def test_each_query_is_a_checkout_and_a_release_without_a_grace(alias: str, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0, "UNPOOLED_RELEASE_AFTER": 0}
    before = conn_hygiene.stats()
    for number in range(1, 4):
        query(alias)
        assert counts(before) == (number, number, 0, 0)
    with transaction.atomic(using=alias):
        query(alias)
        query(alias)
        assert counts(before) == (4, 3, 0, 0)
    assert counts(before) == (4, 4, 0, 0)


@pytest.mark.parametrize("alias", ["default", "unpooled", "persistent"])
def test_what_is_held_to_the_end_is_a_checkout_and_no_release(alias: str) -> None:
    before = conn_hygiene.stats()
    for _ in range(2):
        query(alias)
        query(alias)
        connections[alias].close()
    assert counts(before) == (2, 0, 0, 0)


def test_releases_by_hand_count() -> None:
    before = conn_hygiene.stats()
    query()
    assert conn_hygiene.release_connections() == 1
    assert conn_hygiene.release_connections() == 0
    assert counts(before) == (1, 1, 0, 0)


def test_a_checkout_that_is_pinned_counts_once_however_many_the_reasons() -> None:
    before = conn_hygiene.stats()
    for _ in range(2):
        query(sql="LISTEN activity")
        query(sql="LISTEN another")
        query(sql="CREATE TEMP TABLE t_activity (n int)")
        connection.close()
    assert counts(before) == (2, 0, 0, 2)


def test_what_a_dead_thread_leaves_behind_counts_as_reclaimed() -> None:
    before = conn_hygiene.stats()
    for _ in range(3):
        thread = threading.Thread(target=query)
        thread.start()
        thread.join()
    wait_until(lambda: counts(before) == (3, 0, 3, 0), "three connections are reclaimed")


def test_a_checkout_that_fails_counts_for_nothing(settings: Any) -> None:
    pool = connections["default"].pool
    before = conn_hygiene.stats()
    taken = [pool.getconn() for _ in range(pool.max_size)]
    pool.timeout = 0.05
    try:
        with pytest.raises(Exception, match="couldn't get a connection"):
            query()
    finally:
        pool.timeout = 5
        for handle in taken:
            pool.putconn(handle)
    assert counts(before) == (0, 0, 0, 0)


def test_seconds_are_those_of_the_connections_held_now_and_before() -> None:
    before = conn_hygiene.stats()
    query(sql="SELECT pg_sleep(0.02)")
    so_far = change(before)
    assert so_far["seconds_held"] >= so_far["seconds_in_use"] >= 0.02
    info = only()
    connection.close()
    closed = change(before)
    assert closed["seconds_held"] >= info.held_for
    assert closed["seconds_in_use"] >= info.in_use_for
    # Closed: nothing grows any more.
    assert change(before) == closed


def test_use_that_ends_with_the_connection_counts() -> None:
    before = conn_hygiene.stats()
    cursor = connection.cursor()
    cursor.execute("SELECT pg_sleep(0.02)")
    connection.close()
    assert change(before)["seconds_in_use"] >= 0.02
    cursor.close()


def test_a_transaction_is_in_use_also_between_its_statements() -> None:
    before = conn_hygiene.stats()
    with transaction.atomic():
        query()
        used = change(before)["seconds_in_use"]
        wait_until(lambda: change(before)["seconds_in_use"] > used + 0.01, "the time in use grows without a statement")
    connection.close()


def test_seconds_do_not_fall_by_how_floats_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkouts are too short, each by itself, to count for anything beside what was counted before."""
    tally, told = counters.of("default"), counters.Told()
    monkeypatch.setattr(counters, "told", told)
    for name in ("_seconds_held", "_seconds_used"):
        monkeypatch.setattr(tally, name, float(2**58))
    assert reaper.running is not None
    with another_thread(query, "another"):
        query()
        for lease in reaper.running.leases():
            with lease._lock:
                # Of what is that large, floats know no less than 64.
                lease.checked_out_at -= 20
                lease._used += 20
        before = conn_hygiene.stats()
        assert before.seconds_held == before.seconds_in_use == 2**58 + 64
        connection.close()
    assert tally.read()["seconds_held"] == tally.read()["seconds_in_use"] == 2**58
    after = conn_hygiene.stats()
    assert (after.seconds_held, after.seconds_in_use) == (before.seconds_held, before.seconds_in_use)
    # Of one alias it is another sum, of which nobody has been told.
    assert conn_hygiene.stats("default").seconds_held == 2**58


def test_what_was_told_is_forgotten_where_all_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    told = counters.Told()
    monkeypatch.setattr(counters, "told", told)
    told.at_least(None, "seconds_held", 2.0**58)
    assert conn_hygiene.stats().seconds_held == 2**58
    monkeypatch.setattr(counters, "_tallies", {})
    counters.reset()
    assert conn_hygiene.stats().seconds_held == 0
    told = counters.told
    counters.after_fork_in_child()
    assert counters.told is not told


def test_numbers_only_grow_while_many_threads_query_and_somebody_looks(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0}
    before = conn_hygiene.stats()
    failures: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            with conn_hygiene.closing_connections():
                for number in range(60):
                    query()
                    if number % 10 == 0:
                        with transaction.atomic():
                            query()
        except BaseException as exc:  # noqa: BLE001 - the test has failed, whatever it is
            failures.append(exc)

    def look() -> None:
        last = dataclasses.astuple(before)
        try:
            while not stop.is_set():
                now = dataclasses.astuple(conn_hygiene.stats())
                assert all(new >= old for new, old in zip(now, last, strict=True))
                last = now
                for info in conn_hygiene.snapshot():
                    assert info.state in {"in use", "idle"}
                    assert min(info.held_for, info.idle_for, info.in_use_for) >= 0
                    assert info.in_use_for <= info.held_for
        except BaseException as exc:  # noqa: BLE001 - as above
            failures.append(exc)

    with ExitStack() as stack:
        looking = threading.Thread(target=look)
        looking.start()
        stack.callback(looking.join)
        stack.callback(stop.set)
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    checkouts, releases, reclaimed, pinned = counts(before)
    # 60 queries and 6 transactions in each of 8 threads, and nothing else to end a checkout.
    assert checkouts == releases == 8 * 66
    assert (reclaimed, pinned) == (0, 0)
    changed = change(before)
    assert changed["seconds_held"] >= changed["seconds_in_use"] > 0


def test_the_numbers_of_each_alias_are_those_of_that_alias(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0, "UNPOOLED_RELEASE_AFTER": 0}
    for each in connections.all():
        # Django's test classes leave plain methods on the wrappers that they had forbidden to connect, and past those
        # nobody measures the wait.
        vars(each).pop("connect", None)
    # A wrapper's first connection is measured in another way, and not where it was made without the toolkit.
    for alias in ("default", "unpooled"):
        query(alias)
    before, waits = conn_hygiene.stats_by_alias(), conn_hygiene.histograms_by_alias()
    for alias, times in {"default": 3, "unpooled": 2}.items():
        for _ in range(times):
            query(alias)
    after = conn_hygiene.stats_by_alias()
    # None of SQLite, and those without a query as well.
    assert list(after) == list(conn_hygiene.histograms_by_alias()) == ["default", "small", "unpooled", "persistent"]
    assert {alias: after[alias].checkouts - before[alias].checkouts for alias in after} == {
        "default": 3,
        "small": 0,
        "unpooled": 2,
        "persistent": 0,
    }
    assert after["unpooled"].seconds_waited > before["unpooled"].seconds_waited
    now = conn_hygiene.histograms_by_alias()
    assert [now[alias].waited.count - waits[alias].waited.count for alias in now] == [3, 0, 2, 0]
    assert after == {alias: conn_hygiene.stats(alias) for alias in after}


def test_what_is_held_by_alias_and_state() -> None:
    query("persistent")
    query(sql="LISTEN activity")
    with transaction.atomic("small"):
        query("small")
        held = held_by_alias()
    assert {alias: dict(states) for alias, states in held.items()} == {
        "default": {"pinned": 1},
        "small": {"in use": 1},
        "unpooled": {},
        "persistent": {"idle": 1},
    }


def test_a_released_connection_is_in_no_snapshot(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always"}
    query()
    wait_until_released()
    assert conn_hygiene.snapshot() == []


# ##### Pools #####


def pool_info(alias: str = "small") -> conn_hygiene.PoolInfo:
    (info,) = conn_hygiene.pool_stats(alias)
    return info


def test_a_pool_tells_its_size_and_who_waits(pool_of: Callable[[str], ConnectionPool]) -> None:
    query("small")
    connections["small"].close()
    pool = pool_of("small")
    pool.wait(60)
    taken = [pool.getconn() for _ in range(2)]
    found = pool_info()
    assert (found.size, found.available, found.waiting) == (3, 1, 0)
    assert (found.min_size, found.max_size, found.timeout) == (3, 3, 30)
    taken.append(pool.getconn())
    waiting = threading.Thread(target=conn_hygiene.closing_connections(lambda: query("small")))
    waiting.start()
    # Asked for while the pool is empty and somebody waits in it.
    wait_until(lambda: pool_info().waiting == 1, "somebody waits")
    for each in taken:
        pool.putconn(each)
    waiting.join()
    assert pool_info() == found.__class__("small", 3, 3, 0, 3, 3, 30)


def test_asking_for_pools_opens_none() -> None:
    connections["small"].close_pool()
    assert conn_hygiene.pool_stats("small") == []
    assert conn_hygiene.pool_stats("unpooled") == []
