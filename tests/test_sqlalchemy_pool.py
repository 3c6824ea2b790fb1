"""The pools of django-db-connection-pool, which are SQLAlchemy's: released, cleaned, reclaimed as native ones."""

from __future__ import annotations

import copy
import gc
import importlib
import json
import logging
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core import signals as core_signals
from django.db import OperationalError, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper

import conn_hygiene
from conn_hygiene import internals
from conn_hygiene.events import PoolExhausted, TransactionRetried, listen, unlisten
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.management import rendering
from conn_hygiene.pools import backends
from conn_hygiene.pools import sqlalchemy as adapter
from conn_hygiene.reports import answering, live
from conn_hygiene.server import capacity, doctor
from conn_hygiene.server.doctor import Level
from conn_hygiene.sessions import cleaning
from tests.test_doctor import TODAY, diagnosed, facts, project
from tests.test_forks import in_child, remade
from tests.test_unseen_state import OF_LOGINS, triggers_on_login
from tests.testapp.models import Item
from tests.waiting import end_sessions, holds, let_the_reaper_look, wait_until, wait_until_released, wait_until_told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

sqlalchemy = pytest.importorskip("sqlalchemy")
container = pytest.importorskip("dj_db_conn_pool.core").pool_container

ENGINE = "dj_db_conn_pool.backends.postgresql"
ALIAS = "unpooled"

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", ALIAS]),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.fixture(params=[0, 0.001], ids=["at once", "after a grace"])
def grace(request: pytest.FixtureRequest) -> float:
    return request.param


@pytest.fixture
def releasing(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0.001}


@pytest.fixture
def pooled() -> Iterator[Callable[..., None]]:
    """Return a function that puts the alias behind a pool of its own; at the end it must be whole."""
    with remade(ALIAS, ENGINE=ENGINE):

        def make(size: int = 1, **options: Any) -> None:
            connections.settings[ALIAS]["POOL_OPTIONS"] = {
                "POOL_SIZE": size,
                "MAX_OVERFLOW": 0,
                "TIMEOUT": 5,
                **options,
            }

        yield make
        connections[ALIAS].close()
        wait_until_told()
        pool = container.pop(ALIAS, None)
        if pool is not None:
            assert pool.checkedout() == 0
            pool.dispose()


def pool() -> Any:
    return container.get(ALIAS)


def query(sql: str, *params: Any) -> Any:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()[0] if cursor.description else None


def pid() -> int:
    found: int = query("SELECT pg_backend_pid()")
    return found


def test_who_closes_leaves_alone_who_has_got_the_connection_since(
    pooled: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the pool before its owner has forgotten it, and somebody else may be that fast."""
    pooled()
    before = pid()
    give_back, done = adapter.give_back, threading.Event()
    found: list[int] = []

    def work() -> None:
        with transaction.atomic(using=ALIAS):
            found.append(pid())
            is_taken.set()
            assert done.wait(10)
            gc.collect()
            found.append(pid())
        connections[ALIAS].close()

    def slowly(connection: psycopg.Connection[Any]) -> None:
        monkeypatch.setattr(adapter, "give_back", give_back)
        give_back(connection)
        thread.start()
        assert is_taken.wait(10)

    is_taken = threading.Event()
    thread = threading.Thread(target=work)
    monkeypatch.setattr(adapter, "give_back", slowly)
    connections[ALIAS].close()
    done.set()
    thread.join()
    assert found == [before, before]


def in_thread(work: Callable[[], Any]) -> Any:
    """Return what *work* returns in a thread of its own, which closes what it has used."""

    def closing() -> Any:
        try:
            return work()
        finally:
            connections[ALIAS].close()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(closing).result()


# ##### Between queries #####


def test_twelve_threads_that_wait_for_each_other_share_two_connections(
    pooled: Callable[..., None], settings: Any, grace: float
) -> None:
    """Each has queried and is to query again when all have met: none would get there who kept a connection."""
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": grace}
    pooled(2)
    met = threading.Barrier(12)
    begun = conn_hygiene.stats(ALIAS)

    def work(number: int) -> list[int]:
        seen = []
        try:
            for _ in range(3):
                seen.append(query("SELECT %s::int", number))
                met.wait(20)
        finally:
            connections[ALIAS].close()
        return seen

    with ThreadPoolExecutor(12) as executor:
        assert list(executor.map(work, range(12))) == [[number] * 3 for number in range(12)]
    ended = conn_hygiene.stats(ALIAS)
    assert (ended.pinned, ended.pool_timeouts) == (begun.pinned, begun.pool_timeouts)
    assert pool().checkedin() <= 2


def test_without_the_toolkit_they_would_starve(pooled: Callable[..., None]) -> None:
    conn_hygiene.uninstall()
    try:
        pooled(1, TIMEOUT=0.05)
        query("SELECT 1")
        with pytest.raises(sqlalchemy.exc.TimeoutError):
            in_thread(pid)
    finally:
        connections[ALIAS].close()
        conn_hygiene.install()


@pytest.mark.usefixtures("releasing")
def test_the_handle_is_the_pools_proxy_and_is_checked_out_for_a_use_only(pooled: Callable[..., None]) -> None:
    pooled(2)
    wrapper: Any = connections[ALIAS]
    first = pid()
    wait_until_released(ALIAS)
    # Not in the assertion, which pytest rewrites into a use.
    is_there = wrapper.connection is not None
    assert is_there
    assert repr(wrapper) == f"<DatabaseWrapper vendor='postgresql' alias='{ALIAS}'>"
    assert (holds(ALIAS), pool().checkedout()) == (False, 0)
    handle = wrapper.connection
    assert isinstance(handle, sqlalchemy.pool.PoolProxiedConnection)
    assert handle is wrapper.connection
    assert handle.driver_connection.info.backend_pid == first
    assert str(wrapper) == f"postgresql connection to {ALIAS}: {handle.driver_connection!r}"
    assert (holds(ALIAS), pool().checkedout()) == (True, 1)
    # The use is over with the next cursor's.
    assert pid() == first
    wait_until_released(ALIAS)
    assert handle.dbapi_connection is None


def roll_back_an_item() -> None:
    with suppress(ZeroDivisionError), transaction.atomic(using=ALIAS):
        Item.objects.using(ALIAS).create(name="rolled back")
        raise ZeroDivisionError


@pytest.mark.usefixtures("releasing")
def test_transactions_keep_the_connection_to_their_end(pooled: Callable[..., None]) -> None:
    pooled(2)
    with transaction.atomic(using=ALIAS):
        mine = pid()
        Item.objects.using(ALIAS).create(name="outer")
        roll_back_an_item()
        let_the_reaper_look()
        assert in_thread(pid) != mine
        assert pid() == mine
        # Past the transaction, though it is not over for Django.
        transaction.on_commit(lambda: wait_until_released(ALIAS), using=ALIAS)
    assert [item.name for item in Item.objects.using(ALIAS).all()] == ["outer"]
    roll_back_an_item()
    wait_until_released(ALIAS)
    transaction.set_autocommit(False, using=ALIAS)
    Item.objects.using(ALIAS).create(name="by hand")
    let_the_reaper_look()
    assert holds(ALIAS)
    transaction.rollback(using=ALIAS)
    wait_until_released(ALIAS)
    # Given back in between, and still with autocommit off.
    Item.objects.using(ALIAS).create(name="by hand, again")
    assert in_thread(Item.objects.using(ALIAS).count) == 1
    transaction.commit(using=ALIAS)
    transaction.set_autocommit(True, using=ALIAS)
    wait_until_released(ALIAS)
    assert Item.objects.using(ALIAS).count() == 2


@pytest.mark.usefixtures("releasing")
def test_a_server_side_cursor_keeps_the_connection_until_it_is_exhausted(pooled: Callable[..., None]) -> None:
    pooled(2)
    Item.objects.using(ALIAS).bulk_create(Item(name="a", value=n) for n in range(5))
    rows = Item.objects.using(ALIAS).order_by("value").iterator(chunk_size=2)
    assert next(rows).value == 0
    let_the_reaper_look()
    assert holds(ALIAS)
    assert [item.value for item in rows] == [1, 2, 3, 4]
    wait_until_released(ALIAS)
    with connections[ALIAS].chunked_cursor() as cursor:
        assert isinstance(cursor.cursor.connection, psycopg.Connection)


# ##### Session state #####


@pytest.mark.usefixtures("releasing")
def test_settings_follow_their_owner_and_nobody_else(pooled: Callable[..., None]) -> None:
    pooled(1)
    query("SELECT set_config('app.tenant', 'acme', false)")
    query("SET TIME ZONE 'Europe/Oslo'")
    mine = pid()
    wait_until_released(ALIAS)
    tenant = "SELECT coalesce(current_setting('app.tenant', true), '') || ' ' || current_setting('TimeZone')"
    assert in_thread(lambda: (query(tenant), pid())) == (" UTC", mine)
    assert query(tenant) == "acme Europe/Oslo"
    assert pid() == mine
    connections[ALIAS].close()
    # With its request it is over.
    assert (query(tenant), pid()) == (" UTC", mine)


@pytest.mark.usefixtures("releasing")
@pytest.mark.parametrize("given_back", [True, False])
def test_nothing_of_a_request_reaches_the_next_where_connections_outlive_both(
    pooled: Callable[..., None], given_back: bool
) -> None:
    connections.settings[ALIAS]["CONN_MAX_AGE"] = None
    pooled(1)
    core_signals.request_started.send(sender=None)
    query("SELECT set_config('app.tenant', 'acme', false)")
    if given_back:
        wait_until_released(ALIAS)
    core_signals.request_finished.send(sender=None)
    core_signals.request_started.send(sender=None)
    assert query("SELECT coalesce(current_setting('app.tenant', true), '')") == ""
    core_signals.request_finished.send(sender=None)


@pytest.mark.usefixtures("releasing")
def test_what_cannot_follow_keeps_the_connection_and_is_gone_after_it(pooled: Callable[..., None]) -> None:
    pooled(2)
    query("CREATE TEMP TABLE t_mine (n int)")
    mine = pid()
    let_the_reaper_look()
    assert [info.pinned_by.keys() for info in conn_hygiene.snapshot()] == [{"temporary table"}]
    assert in_thread(pid) != mine
    connections[ALIAS].close()
    assert sorted(in_both(lambda: (pid() == mine, query("SELECT to_regclass('t_mine')")))) == [
        (False, None),
        (True, None),
    ]


def in_both(work: Callable[[], Any]) -> list[Any]:
    """Return what *work* returns on each of the two connections of a pool."""
    with transaction.atomic(using=ALIAS):
        return [work(), in_thread(work)]


@pytest.mark.usefixtures("releasing")
def test_only_what_was_set_is_reset(pooled: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The time zone, which Django sets in each new session, is not taken for a change of the owner's."""
    cleaned: list[Any] = []
    original = cleaning.clean

    def clean(connection: Any, plan: Any, *args: Any, **kwargs: Any) -> Any:
        cleaned.append(plan)
        return original(connection, plan, *args, **kwargs)

    monkeypatch.setattr(cleaning, "clean", clean)
    connections.settings[ALIAS]["TIME_ZONE"] = "Asia/Tokyo"
    pooled(1)
    for _ in range(2):
        assert query("SHOW TimeZone") == "Asia/Tokyo"
        connections[ALIAS].close()
    assert cleaned == []
    query("SET app.tenant = 'acme'")
    connections[ALIAS].close()
    assert [(plan.resets, plan.left) for plan in cleaned] == [({"app.tenant"}, frozenset())]


@pytest.mark.usefixtures("releasing")
def test_what_a_trigger_on_login_has_set_is_set_again(pooled: Callable[..., None], admin: psycopg.Connection) -> None:
    with triggers_on_login(admin) as trigger:
        trigger("PERFORM set_config('app.greeted', 'hello', false)")
        connections.settings[ALIAS]["NAME"] = OF_LOGINS
        pooled(1)
        seen = []
        for _ in range(3):
            seen.append((pid(), query("SELECT current_setting('app.greeted', true)")))
            query("CREATE TEMP TABLE t_mine (n int)")
            connections[ALIAS].close()
        # The first one was begun before anybody knew.
        assert [greeted for _, greeted in seen] == ["hello"] * 3
        assert seen[0] != seen[1] == seen[2]
        container[ALIAS].dispose()


@pytest.mark.usefixtures("releasing")
def test_what_psycopg_keeps_goes_back_with_the_proxy(pooled: Callable[..., None]) -> None:
    pooled(1)
    before = pid()
    handle = connections[ALIAS].connection
    handle.driver_connection.row_factory = psycopg.rows.dict_row
    handle.driver_connection.add_notice_handler(print)
    connections[ALIAS].close()
    handle = connections[ALIAS].connection or connections[ALIAS].cursor().connection.connection
    assert pid() == before
    driver = connections[ALIAS].connection.driver_connection
    assert (driver.row_factory, driver._notice_handlers) == (psycopg.rows.tuple_row, [])
    assert driver.cursor_factory is psycopg.ClientCursor or driver.cursor_factory.__module__.startswith("django")


@pytest.mark.usefixtures("releasing")
def test_a_session_that_a_listener_has_set_up_is_closed_and_not_reset(pooled: Callable[..., None]) -> None:
    pooled(1)
    first = pid()

    def set_up(connection: Any, record: Any) -> None:
        connection.execute("SELECT set_config('app.set_up', 'yes', false)")
        connection.commit()

    sqlalchemy.event.listen(pool(), "connect", set_up)
    query("SET app.tenant = 'acme'")
    connections[ALIAS].close()
    second = pid()
    assert second != first
    assert query("SELECT current_setting('app.set_up')") == "yes"
    # Nothing that was the owner's, nothing to be reset.
    connections[ALIAS].close()
    assert (pid(), query("SELECT current_setting('app.set_up')")) == (second, "yes")


@pytest.mark.usefixtures("releasing")
def test_an_assumed_role_is_there_at_each_checkout(pooled: Callable[..., None]) -> None:
    connections.settings[ALIAS]["OPTIONS"] = connections.settings[ALIAS]["OPTIONS"] | {"assume_role": "pg_monitor"}
    pooled(1)
    for _ in range(3):
        assert query("SELECT current_user") == "pg_monitor"
        wait_until_released(ALIAS)
    query("RESET ROLE")
    connections[ALIAS].close()
    assert query("SELECT current_user") == "pg_monitor"


# ##### Past the toolkit #####


@pytest.mark.usefixtures("releasing")
@pytest.mark.parametrize("end", ["close", "invalidate", "detach"])
def test_a_proxy_that_the_application_ends_takes_no_state_along(pooled: Callable[..., None], end: str) -> None:
    pooled(1)
    query("SET app.tenant = 'acme'")
    with conn_hygiene.hold_connection():
        handle = connections[ALIAS].connection
        # It takes its own `info` for SQLAlchemy's, and django-db-connection-pool puts psycopg's there.
        with pytest.raises(AttributeError) if end == "detach" else nullcontext():
            getattr(handle, end)()
        if end == "detach":
            assert query("SELECT current_setting('app.tenant')") == "acme"
        assert in_thread(lambda: query("SELECT coalesce(current_setting('app.tenant', true), '')")) == ""
        # The session is another's by now, and nothing is done to it.
        theirs = threading.Event()
        done = threading.Event()

        def transact() -> str:
            with transaction.atomic(using=ALIAS):
                query("SELECT set_config('app.tenant', 'other', false)")
                theirs.set()
                done.wait(10)
                return str(query("SELECT current_setting('app.tenant')"))

        with ThreadPoolExecutor(1) as executor:
            other = executor.submit(in_thread, transact)
            theirs.wait(10)
            connections[ALIAS].close()
            done.set()
            assert other.result() == "other"
    assert query("SELECT coalesce(current_setting('app.tenant', true), '')") == ""


@pytest.mark.usefixtures("releasing")
def test_listeners_of_the_pool_see_every_checkout_and_return(pooled: Callable[..., None]) -> None:
    pooled(1)
    first = pid()
    wait_until_released(ALIAS)
    seen: list[str] = []
    for name in ("checkout", "checkin"):
        sqlalchemy.event.listen(pool(), name, lambda *_, name=name: seen.append(name))
    for _ in range(2):
        assert pid() == first
        wait_until_released(ALIAS)
    assert seen == ["checkout", "checkin"] * 2


def test_a_shallow_copy_shares_the_proxy(pooled: Callable[..., None], releasing: None) -> None:
    pooled(1)
    with connections[ALIAS].cursor():
        # Meanwhile it is not given back.
        other: Any = copy.copy(connections[ALIAS])
        assert other.connection is connections[ALIAS].connection
    query("SELECT 1")
    let_the_reaper_look()
    assert holds(ALIAS)
    other.connection = None


def test_uninstalled_it_is_what_it_was(pooled: Callable[..., None], releasing: None) -> None:
    pooled(1)
    query("SELECT 1")
    wait_until_released(ALIAS)
    with transaction.atomic(using=ALIAS):
        mine = pid()
        handle = connections[ALIAS].connection
        connection = handle.driver_connection
        conn_hygiene.uninstall()
        try:
            wrapper: Any = connections[ALIAS]
            assert type(wrapper) is importlib.import_module(f"{ENGINE}.base").DatabaseWrapper
            assert wrapper.__dict__["connection"] is handle
            assert adapter.proxy_of(connection) is None
            assert not pool().dispatch.checkin
            assert pid() == mine
        finally:
            conn_hygiene.install()
    connections[ALIAS].close()
    assert pool().checkedin() == 1


# ##### Broken connections #####


@pytest.mark.parametrize("ping", [True, False], ids=["with a ping", "without"])
@pytest.mark.parametrize("where", ["given back", "closed", "held"])
def test_what_the_server_has_ended_is_replaced_and_the_pool_is_whole(
    pooled: Callable[..., None],
    settings: Any,
    admin: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
    ping: bool,
    where: str,
) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 3600 if where == "held" else 0.001}
    pooled(1, PRE_PING=ping)
    caplog.set_level(logging.INFO, "sqlalchemy")
    before = pid()
    if where == "closed":
        connections[ALIAS].close()
    elif where == "given back":
        wait_until_released(ALIAS)
    assert holds(ALIAS) == (where == "held")
    end_sessions(admin, before)
    after = pid()
    assert after != before
    conn_hygiene.release_connections(ALIAS)
    assert in_thread(pid) == after
    assert pool().status().startswith("Pool size: 1  Connections in pool: 1 ")
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.usefixtures("releasing")
def test_one_that_breaks_in_a_transaction_fails_it_and_goes_back_as_broken(
    pooled: Callable[..., None], admin: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    pooled(1, PRE_PING=False)
    caplog.set_level(logging.INFO, "sqlalchemy")
    with suppress(OperationalError), transaction.atomic(using=ALIAS):
        before = pid()
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [before])
        with pytest.raises(OperationalError):
            pid()
        transaction.set_rollback(True, using=ALIAS)
    connections[ALIAS].close()
    assert pid() != before
    wait_until_released(ALIAS)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.usefixtures("releasing")
def test_a_pool_with_no_connection_left_raises_what_it_always_did_and_that_is_told(
    pooled: Callable[..., None],
) -> None:
    pooled(1, TIMEOUT=0.05)
    told: list[PoolExhausted] = []
    PoolExhausted.listeners += (told.append,)
    begun = conn_hygiene.stats(ALIAS).pool_timeouts
    try:
        with transaction.atomic(using=ALIAS):
            pid()
            for _ in range(2):
                with pytest.raises(sqlalchemy.exc.TimeoutError):
                    in_thread(pid)
    finally:
        PoolExhausted.listeners = tuple(each for each in PoolExhausted.listeners if each != told.append)
    assert [(each.alias, each.error) for each in told] == [(ALIAS, "TimeoutError")] * 2
    assert all(each.waited_for >= 0.05 for each in told)
    assert conn_hygiene.stats(ALIAS).pool_timeouts - begun == 2


@pytest.mark.usefixtures("releasing")
def test_who_waits_is_seen_and_the_owner_lets_go_at_once(pooled: Callable[..., None], settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 3600, "HELD_TOO_LONG_AFTER": None}
    pooled(1)
    mine = pid()
    lease = lease_of(connections[ALIAS])
    assert lease is not None
    with ThreadPoolExecutor(1) as executor:
        with transaction.atomic(using=ALIAS):
            pid()
            other = executor.submit(in_thread, pid)
            wait_until(lambda: lease.queue, "the other waits for the pool")
            # The owner's turn is over.
            with lease._lock:
                lease.checked_out_at -= 1
        assert other.result() == mine
    assert pid() == mine


def test_what_a_thread_at_rest_holds_goes_to_who_waits(pooled: Callable[..., None], settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "scoped"}
    pooled(1, TIMEOUT=10)
    with ThreadPoolExecutor(1) as executor:
        held = executor.submit(pid).result()
        assert in_thread(pid) == held
        assert executor.submit(pid).result() == held
        executor.submit(connections.close_all).result()


def test_a_proxy_that_its_owner_forgets_goes_back_when_nobody_has_it(pooled: Callable[..., None]) -> None:
    pooled(1)
    mine = pid()
    query("SET app.tenant = 'acme'")
    kept = connections[ALIAS].connection
    connections[ALIAS].connection = None
    connections[ALIAS].connection = kept
    assert (pid(), query("SELECT current_setting('app.tenant')")) == (mine, "acme")
    del kept
    connections[ALIAS].connection = None
    assert query("SELECT current_setting('app.tenant', true)") is None
    assert pid() != mine


# ##### Threads that end, and forks #####


@pytest.mark.usefixtures("releasing")
@pytest.mark.parametrize("in_transaction", [False, True])
def test_what_a_thread_that_has_ended_held_is_reclaimed(pooled: Callable[..., None], in_transaction: bool) -> None:
    pooled(1)

    def leave() -> int:
        # The first of all: the pool keeps its wrapper to make connections with.
        with_hold = conn_hygiene.hold_connection()
        with_hold.__enter__()
        query("SELECT set_config('app.tenant', 'acme', false)")
        if in_transaction:
            transaction.set_autocommit(False, using=ALIAS)
            Item.objects.using(ALIAS).create(name="lost")
        return pid()

    begun = conn_hygiene.stats(ALIAS).reclaimed
    with ThreadPoolExecutor(1) as executor:
        theirs = executor.submit(leave).result()
        assert holds(ALIAS)
    wait_until(lambda: conn_hygiene.stats(ALIAS).reclaimed == begun + 1, "it is reclaimed")
    assert pid() == theirs
    assert query("SELECT coalesce(current_setting('app.tenant', true), '')") == ""
    assert not Item.objects.using(ALIAS).exists()


@pytest.mark.usefixtures("releasing")
def test_a_child_has_a_pool_of_its_own_and_its_parents_is_whole(
    pooled: Callable[..., None], admin: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """One is checked out here, one on hold in another thread, and one is idle."""
    pooled(3)
    ready, forked = threading.Event(), threading.Event()

    def transact() -> bool:
        with transaction.atomic(using=ALIAS):
            before = pid()
            ready.set()
            forked.wait(10)
            return pid() == before

    def child() -> tuple[int, int, list[str]]:
        gc.collect()
        seen = pid()
        gc.collect()
        return seen, pool().checkedin() + pool().checkedout(), [record.message for record in caplog.records]

    with ThreadPoolExecutor(1) as executor:
        other = executor.submit(in_thread, transact)
        ready.wait(10)
        with conn_hygiene.hold_connection():
            mine = pid()
            idle = in_thread(pid)
            caplog.set_level(logging.WARNING, "sqlalchemy")
            caplog.clear()
            try:
                of_child, connected, logged = in_child(child)
            finally:
                forked.set()
            assert pid() == mine
        assert other.result()
    assert of_child not in (mine, idle)
    assert (connected, logged) == (1, [])
    alive = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", [[mine, idle]]).fetchone()
    assert alive == (2,)


def test_closed_before_a_fork_no_connection_is_left(pooled: Callable[..., None], releasing: None) -> None:
    pooled(2)
    query("SELECT 1")
    wait_until_released(ALIAS)
    assert pool().checkedin() == 1
    assert conn_hygiene.close_all_before_fork() >= 1
    assert pool().checkedin() == 0
    assert query("SELECT 1") == 1


# ##### What is said of it #####


def test_its_numbers_are_those_of_the_pool(pooled: Callable[..., None], releasing: None) -> None:
    pooled(2, MAX_OVERFLOW=3, TIMEOUT=7)
    with transaction.atomic(using=ALIAS):
        pid()
        in_thread(pid)
        [info] = conn_hygiene.pool_stats(ALIAS)
        assert (info.alias, info.size, info.available, info.waiting) == (ALIAS, 2, 1, 0)
        assert (info.min_size, info.max_size, info.timeout) == (0, 5, 7)


def test_one_that_lets_wait_for_ever_says_so(pooled: Callable[..., None], releasing: None) -> None:
    """And JSON, which has no such number, has none."""
    pooled(2, TIMEOUT=None)
    pid()
    [info] = conn_hygiene.pool_stats(ALIAS)
    assert info.timeout == math.inf
    process = live._process(json.loads(answering.encoded(answering.about_process())))
    [told] = rendering.status_json(rendering.Status([], [], processes=[process]))["processes"]
    assert [pool["timeout"] for pool in told["pools"] if pool["alias"] == ALIAS] == [None]


def test_it_is_served_and_the_checks_have_nothing_to_say(pooled: Callable[..., None]) -> None:
    pooled(1)
    assert backends.why_left_alone(ALIAS) is None


def test_what_the_doctor_takes_for_its_defaults_are_the_pools() -> None:
    defaults = {name.upper(): value for name, value in container.pool_default_params.items()}
    assert {name: defaults[name] for name in adapter.DEFAULTS} == adapter.DEFAULTS


@pytest.mark.parametrize(
    ("options", "found", "most"),
    [
        ({}, Level.NOTE, 20),
        ({"PRE_PING": False, "POOL_SIZE": 4, "MAX_OVERFLOW": 1}, None, 5),
        ({"PRE_PING": False, "POOL_SIZE": 0}, None, 8),
        ({"PRE_PING": False, "MAX_OVERFLOW": -1}, None, 8),
    ],
)
def test_the_doctor_counts_its_connections_and_minds_the_ping(
    options: dict[str, Any], found: Level | None, most: int
) -> None:
    changes = {"ENGINE": ENGINE, "POOL_OPTIONS": options, "OPTIONS": {}, "CONN_HEALTH_CHECKS": False}
    of_doctor = project(threads=8, **changes)
    assert capacity._Fleet(of_doctor, 1, "", seen=False).of_each(facts()) == most
    assert "no-health-checks" not in diagnosed(of_doctor)
    assert diagnosed(of_doctor).get("pre-ping") == found
    assert "pre-ping" not in diagnosed(of_doctor, facts(left_alone="so"))


@pytest.mark.parametrize(
    ("options", "threads", "remedy"),
    [
        (
            {"POOL_SIZE": 30},
            set(),
            "Lower POOL_SIZE plus MAX_OVERFLOW to 24 at most, which giving back between queries allows, or run fewer "
            "processes; or raise max_connections to 163.",
        ),
        ({"POOL_SIZE": 0}, {"threads-unknown"}, None),
    ],
)
def test_the_doctor_says_what_of_its_pool_to_lower(
    options: dict[str, int], threads: set[str], remedy: str | None
) -> None:
    of_doctor = project(threads=None, ENGINE=ENGINE, POOL_OPTIONS={"PRE_PING": False, **options}, OPTIONS={})
    found = {each.id: each.remedy for each in doctor.diagnose(of_doctor, [facts()], TODAY)}
    assert (found.get("too-many-connections"), found.keys() & {"threads-unknown"}) == (remedy, threads)


def test_a_transaction_that_is_to_be_repeated_holds_none_of_its_connections_meanwhile(
    pooled: Callable[..., None],
) -> None:
    pooled(1)
    held: list[bool] = []

    def note(event: TransactionRetried) -> None:
        held.append(holds(ALIAS))

    @conn_hygiene.retry_transaction(using=ALIAS, attempts=2, delay=0.001)
    def work() -> None:
        query("SELECT 1")
        if not held:
            raise psycopg.errors.SerializationFailure

    listen(TransactionRetried, note)
    try:
        work()
    finally:
        unlisten(TransactionRetried, note)
    assert held == [False]


def test_a_release_of_sqlalchemy_that_is_not_known_is_left_alone(
    pooled: Callable[..., None], releasing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter.is_known()
    monkeypatch.setattr(internals.SQLALCHEMY, "available", False)
    pooled(1)
    query("SELECT 1")
    assert lease_of(connections[ALIAS]) is None
    assert backends.why_left_alone(ALIAS) == "its connections are SQLAlchemy's, of a release that is not known here"
    # What was seen is remembered.
    backends.reset()


# ##### What django-db-connection-pool does not do #####


def test_its_pool_goes_on_with_the_parameters_of_the_first_connection(
    pooled: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password that changes, as a token does, is not asked for again: with this pool that cannot be had."""
    pooled(2)
    query("SELECT 1")
    original = DatabaseWrapper.get_connection_params
    monkeypatch.setattr(
        DatabaseWrapper, "get_connection_params", lambda self: original(self) | {"application_name": "new"}
    )
    name = "SELECT current_setting('application_name')"
    with transaction.atomic(using=ALIAS):
        query("SELECT 1")
        # A new connection of the same pool.
        assert in_thread(lambda: query(name)) == ""
