"""What the reaper watches for and the toolkit mends: idle transactions, abandoned and broken connections, cursors."""

from __future__ import annotations

import asyncio
import gc
import inspect
import math
import os
import sys
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import DatabaseError, OperationalError, connection, connections, transaction

import conn_hygiene
from conn_hygiene import callsite, signals
from conn_hygiene.leases.backoff import SLACK
from conn_hygiene.reaper import limits, reaper
from conn_hygiene.sessions import known
from tests.test_left_open import Events, asgi, events_of, pid_of, query, wsgi
from tests.testapp.models import Item
from tests.waiting import end_sessions, holds, let_the_reaper_look, wait_until, wait_until_released, wait_until_told
from tests.webapp import urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg_pool import ConnectionPool

ALIASES = ["default", "unpooled", "persistent"]

pytestmark = pytest.mark.django_db(transaction=True, databases=ALIASES)

every_alias = pytest.mark.parametrize("alias", ALIASES)


@pytest.fixture
def idle(settings: Any) -> Iterator[Events]:
    """Return what is said of idle transactions, which is soon."""
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": 0.05, "HELD_TOO_LONG_AFTER": None}
    connections.close_all()
    with events_of(signals.idle_in_transaction_detected) as events:
        yield events


@pytest.fixture
def held(settings: Any) -> Iterator[Events]:
    """Return what is said of connections that are held without use, which is soon."""
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": None, "HELD_TOO_LONG_AFTER": 0.05}
    connections.close_all()
    with events_of(signals.connection_held_too_long) as events:
        yield events


@pytest.fixture
def replaced() -> Iterator[Events]:
    with events_of(signals.connection_replaced) as events:
        yield events


def line_after(frame: Any) -> str:
    """Return the place below the caller's, as reports name it."""
    return f"{__file__}:{frame.f_lineno + 1} in {frame.f_code.co_name}"


def test_limits_that_are_set_while_connections_are_held_are_watched(settings: Any) -> None:
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": None, "HELD_TOO_LONG_AFTER": None}
    connections.close_all()
    with events_of(signals.idle_in_transaction_detected) as events, transaction.atomic():
        Item.objects.count()
        running: Any = reaper.running
        wait_until(lambda: running._watch_at == math.inf, "the watch rests")
        settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": 0.05}
        wait_until(lambda: events, "it is reported")


# ##### Where a transaction began, and where its thread is #####


def test_a_report_names_the_lines_where_the_transaction_began_and_where_its_thread_waits(idle: Events) -> None:
    reported = threading.Event()
    signals.idle_in_transaction_detected.connect(done := lambda **event: reported.set())
    try:
        began = line_after(inspect.currentframe())
        with transaction.atomic():
            Item.objects.filter(name="secret").count()
            waits = line_after(inspect.currentframe())
            assert reported.wait(10)
    finally:
        signals.idle_in_transaction_detected.disconnect(done)
    event = idle[0]
    assert event["where_began"] == began
    assert event["where_now"] == waits
    assert event["statement"].startswith('SELECT COUNT(*) AS "__count" FROM "testapp_item"')
    assert "secret" not in event["statement"]


def test_a_generator_that_sits_in_atomic_between_two_yields_is_found(idle: Events, settings: Any) -> None:
    def rows() -> Iterator[int]:
        with transaction.atomic():
            yield Item.objects.count()

    generator = rows()
    soon = settings.CONN_HYGIENE
    settings.CONN_HYGIENE = {}
    next(generator)
    # Not before this thread is where it waits.
    settings.CONN_HYGIENE = soon
    wait_until(lambda: idle, "it is reported")
    generator.close()
    assert idle[0]["where_began"].endswith(" in rows")
    assert idle[0]["where_now"].endswith(" in wait_until")


async def test_a_transaction_in_sync_to_async_that_a_task_awaits_in_is_found(idle: Events) -> None:
    def begin() -> None:
        transaction.set_autocommit(False)
        query()

    await sync_to_async(begin)()
    try:
        await asyncio.to_thread(wait_until, lambda: idle, "it is reported")
    finally:
        await sync_to_async(transaction.rollback)()
        await sync_to_async(transaction.set_autocommit)(True)
    assert idle[0]["where_began"].endswith(" in begin")


def wsgi_in_a_new_thread(url: str) -> bytes:
    """Serve a request in a thread whose first connection is made by the transaction itself."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(wsgi, url).result()


@pytest.mark.urls("tests.webapp.urls")
@pytest.mark.parametrize("atomic_requests", [True, False])
@pytest.mark.parametrize("serve", [wsgi, wsgi_in_a_new_thread, asgi])
def test_a_report_says_whether_atomic_requests_opened_the_transaction(
    serve: Callable[[str], bytes], atomic_requests: bool, idle: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(alias: str) -> None:
        with transaction.atomic():
            query()
            wait_until(lambda: idle, "it is reported")

    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", atomic_requests)
    monkeypatch.setitem(urls.WAYS, "wait", wait)
    serve("/leave-open/wait/default/")
    assert idle[0]["by_atomic_requests"] is atomic_requests
    assert idle[0]["request"] == "GET /leave-open/wait/default/"


def test_snapshot_tells_the_same(settings: Any) -> None:
    with transaction.atomic():
        Item.objects.count()
        [info] = conn_hygiene.snapshot()
        assert f"in {inspect.currentframe().f_code.co_name}" in str(info.where_began)
        assert f"in {inspect.currentframe().f_code.co_name}" in str(info.where_now)
        assert info.where_checked_out is not None
        assert info.statement.startswith("SELECT COUNT(*)")
        assert info.transaction_for >= 0
    connections.close_all()
    settings.CONN_HYGIENE = {"CAPTURE_STACKS": False}
    with transaction.atomic():
        query()
        [info] = conn_hygiene.snapshot()
        assert (info.where_began, info.where_checked_out) == (None, None)


def test_a_place_is_the_applications_own_where_there_is_one() -> None:
    here = callsite.here()
    assert str(here) == f"{__file__}:{here.line} in {inspect.currentframe().f_code.co_name}"
    assert callsite.of_thread(threading.get_ident()).code is inspect.currentframe().f_code
    assert callsite.of_thread(-1) is None
    assert callsite.kind_of(threading.__file__) == callsite._STANDARD
    assert callsite.kind_of(psycopg.__file__) == callsite._PLUMBING
    assert callsite.kind_of(pytest.__file__) == callsite._LIBRARY


def test_an_installed_command_is_no_line_of_the_applications() -> None:
    assert callsite.kind_of(os.path.join(sysconfig.get_path("scripts"), "gunicorn")) == callsite._LIBRARY


@pytest.mark.parametrize("module", [threading, psycopg])
def test_a_thread_without_a_line_of_the_applications_is_in_django_or_at_rest(module: Any) -> None:
    done, waiting = threading.Event(), threading.Event()
    # A function of the module's file.
    code = compile("def wait(done, waiting):\n    waiting.set()\n    done.wait()\n", module.__file__, "exec")
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    thread = threading.Thread(target=namespace["wait"], args=(done, waiting))
    thread.start()
    ident = thread.ident
    assert ident is not None
    try:
        assert waiting.wait(10)
        wait_until(lambda: sys._current_frames()[ident].f_code.co_filename == threading.__file__, "it waits")
        at_rest = module is threading
        assert callsite.is_at_rest(ident) is at_rest
        place = callsite.of_thread(ident)
        assert place is None if at_rest else place.code.co_filename == threading.__file__
    finally:
        done.set()
        thread.join()
    assert not callsite.is_at_rest(ident)


def test_an_awaited_query_has_no_place_that_is_known() -> None:
    async def count() -> list[Any]:
        # As Django's ASGI handler does for each request: the query runs in a thread of its own.
        async with ThreadSensitiveContext():
            await Item.objects.acount()
            return conn_hygiene.snapshot()

    with ThreadPoolExecutor(1) as executor:
        [info] = executor.submit(asyncio.run, count()).result()
    assert (info.where_checked_out, info.where_now) == (None, None)


# ##### Ended on the server, and said to the owner #####


@every_alias
def test_the_owner_of_an_ended_session_is_told_why_at_commit_too(alias: str, settings: Any, idle: Events) -> None:
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": 0.05, "IDLE_IN_TRANSACTION_ACTION": "terminate"}

    def forget() -> None:
        with transaction.atomic(using=alias):
            Item.objects.using(alias).create(name="never")
            wait_until(lambda: idle, "it is reported")

    with pytest.raises(OperationalError, match=r"conn_hygiene ended this session\..*It began at .* in forget\."):
        forget()
    assert not Item.objects.using(alias).exists()
    assert not connections[alias].in_atomic_block


# Where it was reported before, another session was ended by us.
@pytest.mark.parametrize(("action", "said_before"), [("log", True), ("log", False), ("terminate", False)])
def test_what_the_server_has_ended_is_said_once_and_by_whom_to_its_owner(
    action: str, said_before: bool, settings: Any, idle: Events, admin: psycopg.Connection
) -> None:
    """Its idle_in_transaction_session_timeout, for one."""
    limits = {"IDLE_IN_TRANSACTION_AFTER": 0.05 if said_before else 0.3, "IDLE_IN_TRANSACTION_ACTION": action}
    settings.CONN_HYGIENE = {**limits, "HELD_TOO_LONG_AFTER": None}

    def forget() -> None:
        with transaction.atomic():
            pid = pid_of("default")
            if said_before:
                wait_until(lambda: idle, "it is reported")
            end_sessions(admin, pid)
            wait_until(lambda: idle, "it is reported")
            let_it_be_looked_at_again()
            query()

    with pytest.raises(OperationalError) as raised:
        forget()
    assert "terminating connection due to administrator command" in str(raised.value)
    assert [event["action"] for event in idle] == ["log"]


def let_it_be_looked_at_again() -> None:
    """Wait for as long as it takes until a report would be made again, several times over."""
    running: Any = reaper.running
    for _ in range(10):
        watched_at = running._watch_at
        wait_until(lambda watched_at=watched_at: running._watch_at != watched_at, "it is looked at")  # type: ignore[misc]


# ##### Held too long #####


def test_a_thread_that_idles_between_jobs_gives_back_what_it_holds(held: Events) -> None:
    with ThreadPoolExecutor(1) as executor:
        executor.submit(query).result()
        [info] = conn_hygiene.snapshot()
        wait_until(lambda: held, "it is reported")
        assert (held[0]["server_pid"], held[0]["action"], held[0]["where_now"]) == (info.server_pid, "release", None)
        assert not holds("default")
        executor.submit(query).result()
    assert conn_hygiene.stats().held_too_long >= 1


def test_code_that_nobody_has_told_of_releases_keeps_what_cannot_be_seen(held: Events) -> None:
    item, pid = Item.objects.create(), pid_of("default")
    wait_until(lambda: len(held) >= 2, "it is reported, and again")
    assert {event["action"] for event in held} == {"log"}
    assert pid_of("default") == pid
    with connection.cursor() as cursor:
        # Of this session, and nothing that libpq would know of.
        cursor.execute("SELECT currval(pg_get_serial_sequence('testapp_item', 'id'))")
        assert cursor.fetchone() == (item.pk,)


def test_inside_of_a_scope_a_connection_that_was_missed_goes_back_after_all(held: Events) -> None:
    with conn_hygiene.release_between_queries():
        query()
        lease: Any = connections["default"].__dict__["_conn_hygiene_lease"]
        # As where the reaper's thread has met an error.
        lease.take()
        lease.handle = None
        wait_until(lambda: held, "it is reported")
        assert held[0]["action"] == "release"


@pytest.mark.parametrize("run", [asyncio.to_thread, lambda work: sync_to_async(work, thread_sensitive=False)()])
async def test_so_does_an_executors_thread_that_asyncio_keeps(run: Any, held: Events) -> None:
    await run(query)
    # Not in an executor's thread, which might be the same one.
    for _ in range(1000):
        if holds("default"):
            await asyncio.sleep(0.01)
    assert not holds("default")
    wait_until_told()
    assert {event["action"] for event in held} == {"release"}


@pytest.mark.urls("tests.webapp.urls")
def test_a_single_use_thread_of_asgi_strands_no_persistent_connection() -> None:
    for _ in range(5):
        asgi("/commit/persistent/")
    wait_until(lambda: not holds("persistent"), "what the threads left is given back")


@pytest.mark.parametrize("why", ["hold", "pin", "transaction", "handle", "never", "unpooled"])
def test_what_somebody_relies_on_is_not_given_back_even_in_a_scope(why: str, held: Events, settings: Any) -> None:
    alias = "unpooled" if why == "unpooled" else "default"
    if why == "never":
        settings.CONN_HYGIENE = settings.CONN_HYGIENE | {"RELEASE": "never"}

    def rely() -> None:
        before = pid_of(alias)
        if why == "pin":
            query(alias, "LISTEN watched")
        if why == "handle":
            handle: Any = connections[alias].connection
            # It may have gone back since the query, where the machine is slow.
            before = handle.info.backend_pid
        wait_until(lambda: len(held) >= 2, "another connection is reported")
        let_the_reaper_look()
        assert holds(alias)
        assert pid_of(alias) == before

    # One that is reported in any case, and stays: it serves a request, and has no pool.
    query("persistent")
    connections["persistent"].__dict__["_conn_hygiene_lease"].request = "GET /"
    around = {"hold": conn_hygiene.hold_connection(), "transaction": transaction.atomic(using=alias)}
    with conn_hygiene.release_between_queries(), around.get(why, nullcontext()):
        rely()


# ##### Broken #####


@every_alias
def test_a_connection_that_the_server_closed_is_replaced_at_its_next_use(
    alias: str, admin: psycopg.Connection, replaced: Events
) -> None:
    pid = pid_of(alias)
    before = conn_hygiene.stats().replaced
    end_sessions(admin, pid)
    connections[alias].__dict__["_conn_hygiene_lease"].idle_since -= 1
    assert Item.objects.using(alias).count() == 0
    assert [event["server_pid"] for event in replaced] == [pid]
    assert conn_hygiene.stats().replaced - before == 1
    assert pid_of(alias) != pid


@every_alias
def test_so_is_one_at_the_beginning_of_a_transaction(alias: str, admin: psycopg.Connection, replaced: Events) -> None:
    end_sessions(admin, pid_of(alias))
    connections[alias].__dict__["_conn_hygiene_lease"].idle_since -= 1
    with transaction.atomic(using=alias):
        Item.objects.using(alias).create(name="kept")
    assert Item.objects.using(alias).count() == 1
    assert len(replaced) == 1


def test_a_pool_full_of_closed_connections_fails_nobody(
    admin: psycopg.Connection, replaced: Events, pool_of: Callable[[str], ConnectionPool]
) -> None:
    pool = pool_of("default")
    taken = [pool.getconn() for _ in range(4)]
    pids = [each.info.backend_pid for each in taken]
    for each in taken:
        pool.putconn(each)
    end_sessions(admin, *pids)
    assert Item.objects.count() == 0
    assert {event["server_pid"] for event in replaced} <= set(pids)
    assert replaced
    wait_until(lambda: pool.get_stats()["pool_size"] >= 1, "the pool has mended itself")


@every_alias
@pytest.mark.parametrize("begin", ["atomic", "by hand", "literal"])
def test_inside_a_transaction_the_error_goes_through(
    alias: str, begin: str, admin: psycopg.Connection, replaced: Events
) -> None:
    wrapper: Any = connections[alias]

    def work() -> None:
        Item.objects.using(alias).create(name="lost")
        end_sessions(admin, pid_of(alias))
        wrapper.__dict__["_conn_hygiene_lease"].idle_since -= 1
        Item.objects.using(alias).create(name="never")

    def run() -> None:
        if begin == "atomic":
            with transaction.atomic(using=alias):
                work()
        elif begin == "by hand":
            transaction.set_autocommit(False, using=alias)
            work()
        else:
            query(alias, "BEGIN")
            work()

    with pytest.raises(OperationalError):
        run()
    conn_hygiene.reset_connections(alias)
    assert replaced == []
    assert not Item.objects.using(alias).exists()


def test_nor_does_it_go_unnoticed_when_it_has_been_said_once(admin: psycopg.Connection, replaced: Events) -> None:
    query("default", "BEGIN")
    end_sessions(admin, pid_of("default"))
    for _ in range(2):
        connections["default"].__dict__["_conn_hygiene_lease"].idle_since -= 1
        with pytest.raises(DatabaseError):
            query()
    conn_hygiene.reset_connections()
    assert replaced == []


def assert_that_the_end_is_noticed(admin: psycopg.Connection) -> None:
    """End the session of this thread's connection, which must not be replaced in silence."""
    end_sessions(admin, pid_of("default"))
    connections["default"].__dict__["_conn_hygiene_lease"].idle_since -= 1
    with pytest.raises(OperationalError):
        query()
    conn_hygiene.reset_connections()


def test_session_state_is_not_lost_in_silence(admin: psycopg.Connection, replaced: Events) -> None:
    query("default", "LISTEN watched")
    assert_that_the_end_is_noticed(admin)
    assert replaced == []


@pytest.mark.parametrize("how", ["held", "reported"])
def test_nor_is_state_that_only_the_server_knows(
    how: str, admin: psycopg.Connection, replaced: Events, settings: Any
) -> None:
    settings.CONN_HYGIENE = {"HELD_TOO_LONG_AFTER": None}
    name, value = {"held": ("app.tenant", "7"), "reported": ("TimeZone", "Asia/Tokyo")}[how]
    query(
        "default",
        "CREATE OR REPLACE FUNCTION prepare_session(name text, value text) RETURNS text LANGUAGE plpgsql "
        "AS $$ BEGIN RETURN set_config(name, value, false); END $$",
    )
    around = conn_hygiene.hold_connection() if how == "held" else nullcontext()
    with around:
        query("default", f"SELECT prepare_session('{name}', '{value}')")
        assert_that_the_end_is_noticed(admin)
    assert replaced == []
    admin.execute("DROP FUNCTION prepare_session(text, text)")


@every_alias
def test_nothing_is_replaced_where_that_is_turned_off(
    alias: str, admin: psycopg.Connection, replaced: Events, settings: Any
) -> None:
    settings.CONN_HYGIENE = {"REPLACE_BROKEN": False}
    end_sessions(admin, pid_of(alias))
    connections[alias].__dict__["_conn_hygiene_lease"].idle_since -= 1
    with pytest.raises(OperationalError):
        query(alias)
    conn_hygiene.reset_connections()
    assert replaced == []


@every_alias
@pytest.mark.parametrize(
    "says", [{"FOLLOWED_SETTINGS": ["app.tenant"]}, {"CLEAN_SESSIONS": "always"}], ids=lambda says: next(iter(says))
)
def test_nor_where_the_settings_say_that_state_matters(
    alias: str, says: Any, admin: psycopg.Connection, replaced: Events, settings: Any
) -> None:
    settings.CONN_HYGIENE = says
    end_sessions(admin, pid_of(alias))
    connections[alias].__dict__["_conn_hygiene_lease"].idle_since -= 1
    with pytest.raises(OperationalError):
        query(alias)
    conn_hygiene.reset_connections()
    assert replaced == []


@every_alias
@pytest.mark.parametrize("asked", [True, False], ids=["known", "not known yet"])
def test_nor_where_the_catalogue_says_so(
    alias: str, asked: bool, admin: psycopg.Connection, replaced: Events, settings: Any
) -> None:
    """Nobody may have asked it: then it is asked in the new session, which its owner does not get without an error."""
    settings.CONN_HYGIENE = {}
    admin.execute(
        "CREATE FUNCTION become_somebody() RETURNS text LANGUAGE sql AS $$SELECT set_config('app.tenant', '7', false)$$"
    )
    try:
        known.reset()
        if asked:
            query(alias)
            connections[alias].close()
            assert known.followed(alias) == {"app.tenant"}
        pid = pid_of(alias)
        end_sessions(admin, pid)
        connections[alias].__dict__["_conn_hygiene_lease"].idle_since -= 1
        with pytest.raises(OperationalError):
            query(alias)
        assert replaced == []
        connections[alias].close()
        assert pid_of(alias) != pid
    finally:
        admin.execute("DROP FUNCTION become_somebody()")
        connections[alias].close()
        known.reset()


def test_what_was_not_used_yet_is_replaced_in_a_hold_too(admin: psycopg.Connection, replaced: Events) -> None:
    connection.ensure_connection()
    end_sessions(admin, connection.connection.info.backend_pid)
    with conn_hygiene.hold_connection():
        query()
    assert len(replaced) == 1


def test_a_notification_that_waits_to_be_read_is_no_hang_up(admin: psycopg.Connection, replaced: Events) -> None:
    query("default", "LISTEN news")
    lease: Any = connections["default"].__dict__["_conn_hygiene_lease"]
    lease.session_state.pins.clear()
    admin.execute("NOTIFY news, 'read me'")
    lease.idle_since -= 1
    query()
    assert replaced == []
    handle: Any = connection.connection
    assert [note.payload for note in handle.notifies(timeout=10, stop_after=1)] == ["read me"]
    query("default", "UNLISTEN *")
    conn_hygiene.reset_connections()


# ##### Cursors that nobody closed #####


@pytest.mark.parametrize("asked", [True, None, False])
def test_a_cursor_that_is_never_closed_is_named(asked: bool | None, settings: Any, caplog: Any) -> None:
    settings.CONN_HYGIENE = {"REPORT_UNCLOSED_CURSORS": asked, "RELEASE": "always"}
    with events_of(signals.unclosed_cursor_detected) as events:
        opened = line_after(inspect.currentframe())
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        del cursor
        gc.collect()
        wait_until_released()
        let_the_reaper_look()
    assert [event["where_opened"] for event in events] == ([opened] if asked else [])
    records = [record for record in caplog.records if record.name == "conn_hygiene.cursors"]
    assert len(records) == len(events)


def test_in_debug_it_is_named_without_asking(settings: Any) -> None:
    settings.DEBUG = True
    with events_of(signals.unclosed_cursor_detected) as events:
        connection.cursor()
        gc.collect()
        wait_until(lambda: events, "it is reported")
    connection.close()


def test_a_limit_of_a_microsecond_keeps_no_processor_busy(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def interval() -> float:
        looks.append(real())
        return looks[-1]

    real = limits.interval
    monkeypatch.setattr(limits, "interval", interval)
    settings.CONN_HYGIENE = {"HELD_TOO_LONG_AFTER": 0.000001}
    query("default")
    wait_until(lambda: looks, "it has been asked")
    assert set(looks) == {SLACK}
    connections["default"].close()
