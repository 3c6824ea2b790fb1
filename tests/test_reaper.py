"""The background thread: what it gives back, what it mends, and that nothing stops it."""

from __future__ import annotations

import contextlib
import gc
import inspect
import logging
import math
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connection, connections, transaction

import conn_hygiene
from conn_hygiene.leases.lease import Lease
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.reaper import reaper
from conn_hygiene.reports import counters
from conn_hygiene.signals import connection_reclaimed, idle_in_transaction_detected
from conn_hygiene.transactions import left_open
from tests.test_forks import in_child
from tests.testapp.models import Item
from tests.waiting import holds, let_the_reaper_look, wait_until, wait_until_released, wait_until_told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg_pool import ConnectionPool

ALIASES = ["default", "unpooled", "persistent"]

pytestmark = pytest.mark.django_db(transaction=True, databases=ALIASES)

every_alias = pytest.mark.parametrize("alias", ALIASES)
every_grace = pytest.mark.parametrize("grace", [0, 0.001, 0.02])


@pytest.fixture
def always(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "UNPOOLED_RELEASE_AFTER": 0.001}


@pytest.fixture
def events() -> Iterator[list[dict[str, Any]]]:
    """Return what the signal `connection_reclaimed` says during the test."""
    received: list[dict[str, Any]] = []

    def receive(signal: Any, **event: Any) -> None:
        received.append(event)

    connection_reclaimed.connect(receive)
    yield received
    connection_reclaimed.disconnect(receive)


@pytest.fixture
def whole_pool(pool_of: Callable[[str], ConnectionPool]) -> Callable[[], bool]:
    """Return a function that tells whether no connection is missing from the pool."""

    def whole() -> bool:
        stats = pool_of("default").get_stats()
        return stats["pool_available"] == stats["pool_size"]

    return whole


def query(alias: str = "default", sql: str = "SELECT pg_backend_pid()") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def run(work: Callable[[], Any]) -> Any:
    """Return what *work* returns in a thread that ends without closing anything."""
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(work()), name="forgetful")
    thread.start()
    thread.join()
    return result[0]


def place(function: Callable[..., Any], text: str, name: str) -> str:
    """Return the place of the one line of *function* that has *text*, as of the function *name*."""
    lines, first = inspect.getsourcelines(function)
    [line] = [first + offset for offset, line in enumerate(lines) if text in line]
    return f"{__file__}:{line} in {name}"


def begin(alias: str = "default") -> Any:
    """Leave a transaction open, with a row in it."""
    transaction.set_autocommit(False, using=alias)
    Item.objects.using(alias).create(name="lost")
    return query(alias)


# ##### Idle leases #####


@pytest.fixture(autouse=True)
def nothing_held() -> None:
    """What the database's fixtures have used is not this thread's any more when a test begins."""
    connections.close_all()


@every_alias
@every_grace
def test_an_idle_connection_goes_back_after_its_grace(alias: str, grace: float, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": grace, "UNPOOLED_RELEASE_AFTER": grace}
    before = conn_hygiene.stats().releases
    for number in range(1, 4):
        query(alias)
        wait_until_released(alias)
        assert conn_hygiene.stats().releases - before == number


def test_a_long_grace_does_not_hold_up_a_short_one(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "UNPOOLED_RELEASE_AFTER": 60}
    query("unpooled")
    let_the_reaper_look()
    query()
    wait_until_released()
    assert holds("unpooled")
    assert conn_hygiene.release_connections() == 1


def test_a_thread_that_has_ended_leaves_nothing_for_the_length_of_a_grace(settings: Any) -> None:
    """As each request's does under ASGI."""
    settings.CONN_HYGIENE = {"RELEASE": "always", "UNPOOLED_RELEASE_AFTER": 60}
    leases: list[weakref.ref[Lease]] = []

    def serve() -> None:
        query("unpooled")
        lease = lease_of(connections["unpooled"])
        assert lease is not None
        leases.append(weakref.ref(lease))
        connections["unpooled"].close()

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    let_the_reaper_look()
    wait_until_told()
    gc.collect()
    assert leases[0]() is None


def test_what_is_parked_goes_by_the_grace_of_today(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "UNPOOLED_RELEASE_AFTER": 60}
    query("unpooled")
    let_the_reaper_look()
    assert holds("unpooled")
    settings.CONN_HYGIENE = {"RELEASE": "always", "UNPOOLED_RELEASE_AFTER": 0.001}
    wait_until_released("unpooled")


# ##### Cursors that nobody closed #####


@pytest.mark.usefixtures("always")
@every_alias
def test_a_cursor_that_is_collected_lets_go(alias: str) -> None:
    cursor = connections[alias].cursor()
    cursor.execute("SELECT 1")
    let_the_reaper_look()
    assert holds(alias)
    del cursor
    gc.collect()
    wait_until_released(alias)


@pytest.mark.usefixtures("always")
@every_alias
def test_a_cursor_that_is_collected_in_another_thread_lets_go(alias: str) -> None:
    cursors = [connections[alias].cursor()]
    cursors[0].execute("SELECT 1")

    def drop() -> None:
        cursors.clear()
        gc.collect()

    let_the_reaper_look()
    assert holds(alias)
    run(drop)
    wait_until_released(alias)
    assert query(alias)


@pytest.mark.usefixtures("always")
def test_a_cursor_that_is_collected_in_a_transaction_changes_nothing() -> None:
    with transaction.atomic():
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        del cursor
        gc.collect()
        let_the_reaper_look()
        assert holds("default")
        Item.objects.create(name="a")
    wait_until_released()
    assert Item.objects.count() == 1


@pytest.mark.usefixtures("always")
def test_a_server_side_cursor_that_is_collected_lets_go() -> None:
    Item.objects.bulk_create(Item(name="n") for _ in range(5))
    rows = Item.objects.iterator(chunk_size=2)
    next(rows)
    let_the_reaper_look()
    assert holds("default")
    del rows
    gc.collect()
    wait_until_released()


# ##### Threads that end #####


def test_a_hundred_threads_that_never_close_leave_the_pool_whole(whole_pool: Callable[[], bool]) -> None:
    assert len({run(query) for _ in range(100)}) <= 4
    wait_until(whole_pool, "the pool is whole")


def test_a_hundred_jobs_of_short_lived_executors_leave_the_pool_whole(whole_pool: Callable[[], bool]) -> None:
    for _ in range(25):
        with ThreadPoolExecutor(4) as executor:
            assert all(executor.map(lambda _: query(), range(4)))
    wait_until(whole_pool, "the pool is whole")


@every_alias
def test_the_connection_of_a_dead_thread_goes_back(alias: str, events: list[dict[str, Any]], caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="conn_hygiene"):
        pid, ident = run(lambda: (query(alias), threading.get_ident()))
        wait_until(lambda: events, "it is reclaimed")
    [event] = events
    assert event.pop("held_for") > 0
    assert event.pop("sender") is Lease
    ran, where = place(run, "result.append(work())", "<lambda>"), event["where_checked_out"]
    assert where.endswith(" in query")
    assert event == {
        "alias": alias,
        "thread_id": ident,
        "thread_name": "forgetful",
        "request": None,
        "server_pid": pid,
        "in_transaction": False,
        "thread_runs": ran,
        "where_checked_out": where,
        "where_began": None,
        "stack_checked_out": None,
        "stack_began": None,
    }
    [record] = [record for record in caplog.records if record.name == "conn_hygiene.threads"]
    assert record.levelno == logging.INFO
    assert record.getMessage() == (
        f"Reclaimed connection {alias!r} (server pid {pid}) from thread forgetful, which ended with it checked out. "
        f"The thread ran {ran}. It was checked out at {where}."
    )
    assert (record.alias, record.server_pid, record.thread_id) == (alias, pid, ident)
    assert not holds(alias)


def test_a_dead_threads_report_names_its_request(events: list[dict[str, Any]], caplog: Any) -> None:
    def serve() -> None:
        left_open.request_started(environ={"REQUEST_METHOD": "GET", "PATH_INFO": "/stock/"})
        query()

    with caplog.at_level(logging.INFO, logger="conn_hygiene"):
        run(serve)
        wait_until(lambda: events, "it is reclaimed")
    assert events[0]["request"] == "GET /stock/"
    [record] = [record for record in caplog.records if record.name == "conn_hygiene.threads"]
    assert "which ended with it checked out. It served GET /stock/. The thread ran " in record.getMessage()


def test_no_job_of_an_executor_is_what_its_thread_ran(events: list[dict[str, Any]]) -> None:
    with ThreadPoolExecutor(1, thread_name_prefix="executor") as executor:
        executor.submit(query).result()
    wait_until(lambda: events, "it is reclaimed")
    assert (events[0]["thread_name"], events[0]["thread_runs"]) == ("executor_0", None)


@pytest.mark.parametrize("alias", ["unpooled", "persistent"])
def test_the_session_of_a_dead_thread_ends_on_the_server(alias: str, alive: Callable[..., set[int]]) -> None:
    pids = [run(lambda: query(alias)) for _ in range(5)]
    wait_until(lambda: not alive(*pids), "the sessions have ended")


@every_alias
def test_the_transaction_of_a_dead_thread_is_rolled_back_and_reported(
    alias: str, events: list[dict[str, Any]], caplog: Any
) -> None:
    pid, ident = run(lambda: (begin(alias), threading.get_ident()))
    wait_until(lambda: events, "it is reclaimed")
    assert events[0]["in_transaction"]
    assert events[0]["thread_id"] == ident
    began = place(begin, "set_autocommit", "begin")
    assert (events[0]["where_began"], events[0]["where_checked_out"]) == (began, began)
    [record] = [record for record in caplog.records if record.name == "conn_hygiene.threads"]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"Reclaimed connection {alias!r} (server pid {pid}) from thread forgetful, which ended with it checked out; "
        f"its open transaction was rolled back. The thread ran {place(run, 'result.append(work())', '<lambda>')}. "
        f"It was checked out at {began}. Its transaction began at {began}."
    )
    wait_until_released(alias)
    assert not Item.objects.exists()


def test_what_a_dead_thread_has_left_running_is_no_transaction(events: list[dict[str, Any]], caplog: Any) -> None:
    left = ExitStack()

    def work() -> None:
        cursor = left.enter_context(connections["default"].cursor())
        left.enter_context(cursor.copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT"))

    run(work)
    wait_until(lambda: events, "it is reclaimed")
    assert (events[0]["in_transaction"], events[0]["where_began"]) == (False, None)
    assert "transaction" not in caplog.text
    left.close()


def test_a_broken_transaction_of_a_dead_thread_is_rolled_back(whole_pool: Callable[[], bool], events: Any) -> None:
    def work() -> None:
        begin()
        with pytest.raises(Exception, match="division by zero"):
            query(sql="SELECT 1/0")

    for _ in range(6):
        run(work)
    wait_until(lambda: len(events) == 6 and whole_pool(), "all are reclaimed")
    assert not Item.objects.exists()


def test_the_session_of_a_dead_thread_is_nobody_elses_while_its_handle_is_in_somebodys_hands(
    events: list[dict[str, Any]], pool_of: Callable[[str], ConnectionPool]
) -> None:
    def hand_on() -> Any:
        query()
        return connection.connection

    handle = run(hand_on)
    with contextlib.suppress(psycopg.Error):
        handle.execute("SET app.tenant = 'A'")
    wait_until(lambda: events, "it is reclaimed")
    with contextlib.suppress(psycopg.Error):
        handle.execute("SET app.tenant = 'A'")
    pool = pool_of("default")
    everything = [pool.getconn() for _ in range(pool.max_size)]
    try:
        # Where an earlier owner's was reset, it is empty in place of null.
        look = "SELECT nullif(current_setting('app.tenant', true), '')"
        assert {each.execute(look).fetchone() for each in everything} == {(None,)}
        assert handle.closed
    finally:
        for each in everything:
            pool.putconn(each)


@pytest.mark.skipif(
    not hasattr(psycopg.Cursor, "__next__"),
    reason="In psycopg 3.2, a copy() that is collected without its connection fails in its finaliser.",
)
def test_a_dead_thread_with_an_open_cursor_or_a_copy_or_a_pipeline(whole_pool: Callable[[], bool], events: Any) -> None:
    kept: list[Any] = []

    def cursor() -> None:
        kept.append(connection.cursor())
        kept[-1].execute("SELECT 1")

    def copy() -> None:
        context = connection.cursor().cursor.copy("COPY testapp_item FROM STDIN")
        context.__enter__()
        kept.append(context)

    def pipeline() -> None:
        connection.ensure_connection()
        handle: Any = connection.connection
        context = handle.pipeline()
        context.__enter__()
        handle.execute("SELECT 1")
        kept.append(context)

    for work in (cursor, copy, pipeline):
        run(work)
    wait_until(lambda: len(events) == 3 and whole_pool(), "all are reclaimed")
    assert query()


def test_a_dead_threads_parked_connection_is_no_news(settings: Any, events: Any, whole_pool: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 60}
    run(query)
    wait_until(whole_pool, "it is given back")
    assert events == []


def test_a_thread_that_closed_is_no_news(events: Any) -> None:
    def work() -> None:
        query()
        connection.close()

    run(work)
    let_the_reaper_look()
    assert events == []


def test_a_thread_that_lives_keeps_its_connection(events: Any) -> None:
    ready, done = threading.Event(), threading.Event()

    def work() -> tuple[Any, Any]:
        before = begin()
        ready.set()
        done.wait()
        after = query()
        connection.close()
        return before, after

    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(work)
        ready.wait()
        try:
            for _ in range(3):
                run(query)
            wait_until(lambda: len(events) >= 3, "the others are reclaimed")
        finally:
            done.set()
        before, after = future.result()
    assert len(events) == 3
    assert before == after


def test_reclaiming_can_be_turned_off(settings: Any, events: Any, alive: Callable[..., set[int]]) -> None:
    settings.CONN_HYGIENE = {"RECLAIM_DEAD_THREADS": False}
    handles = [run(lambda: (query(), connections["default"].connection)[1]) for _ in range(3)]
    pids = {handle.info.backend_pid for handle in handles}
    gc.collect()
    let_the_reaper_look()
    assert len(pids) == 3
    assert events == []
    # Plain Django loses them for good; the pool is replaced.
    connections["default"].close_pool()
    for lease in running().leases():
        running().reclaim(lease)
    # The leases of those whose wrappers are gone are known to nobody.
    for handle in handles:
        handle.close()
    wait_until(lambda: not alive(*pids), "the sessions have ended")


def test_with_reclaiming_turned_off_python_closes_unpooled_sessions_as_in_plain_django(
    settings: Any, alive: Callable[..., set[int]]
) -> None:
    settings.CONN_HYGIENE = {"RECLAIM_DEAD_THREADS": False}

    def strand() -> None:
        pids = [run(lambda: query("unpooled")) for _ in range(3)]
        wait_until(lambda: gc.collect() is not None and not alive(*pids), "the sessions have ended")

    with pytest.warns(ResourceWarning, match="was deleted while still open"):
        strand()


def test_a_connection_that_a_dead_thread_has_shared_stays_with_those_who_use_it() -> None:
    made: list[Any] = []

    def work() -> None:
        wrapper: Any = connections["default"]
        wrapper.inc_thread_sharing()
        query()
        made.append(wrapper)

    run(work)
    wrapper = made[0]
    mine = connections["default"]
    connections["default"] = wrapper
    try:
        with transaction.atomic():
            Item.objects.create(name="a")
            let_the_reaper_look()
            Item.objects.create(name="b")
    finally:
        wrapper.close()
        connections["default"] = mine
    assert Item.objects.count() == 2


def test_a_wrapper_that_is_collected_in_a_living_thread_gives_back(whole_pool: Any, events: Any) -> None:
    for _ in range(6):
        wrapper: Any = connections["default"].copy()
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
        del wrapper, cursor
        gc.collect()
        wait_until(whole_pool, "it is reclaimed")
    wait_until_told()
    assert len(events) == 6


# ##### Whatever happens in it #####


def running() -> Any:
    assert reaper.running is not None
    return reaper.running


@contextmanager
def receiving(receiver: Callable[..., Any]) -> Iterator[None]:
    connection_reclaimed.connect(receiver)
    try:
        yield
    finally:
        connection_reclaimed.disconnect(receiver)


def test_a_receiver_that_raises_is_logged_and_harms_nobody(caplog: Any, events: Any, whole_pool: Any) -> None:
    def receiver(**kwargs: Any) -> None:
        raise ZeroDivisionError

    with receiving(receiver):
        run(query)
        wait_until(lambda: events and whole_pool(), "it is reclaimed")
        wait_until(lambda: "conn_hygiene.signals" in [record.name for record in caplog.records], "it is logged")
    [record] = [record for record in caplog.records if record.name == "conn_hygiene.signals"]
    assert record.levelno == logging.ERROR
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.usefixtures("always")
def test_a_receiver_that_queries_gets_its_own_connection_which_goes_back(events: Any, whole_pool: Any) -> None:
    seen: list[Any] = []

    def receiver(**kwargs: Any) -> None:
        seen.append(query())

    with receiving(receiver):
        run(begin)
        wait_until(lambda: seen and whole_pool(), "the receiver's connection is given back")
    assert events


def test_an_error_is_logged_and_the_reaper_goes_on(caplog: Any, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always"}

    def fail() -> None:
        raise ZeroDivisionError

    running()._bell.put(fail)
    wait_until(lambda: caplog.records, "it is logged")
    [record] = caplog.records
    assert (record.name, record.levelno) == ("conn_hygiene.reaper", logging.ERROR)
    query()
    wait_until_released()


@contextmanager
def failing_handler() -> Iterator[list[Any]]:
    """Have every log record of the toolkit raise where it is written."""
    raised: list[Any] = []

    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raised.append(record)
            raise ZeroDivisionError

    handler = Failing()
    logger = logging.getLogger("conn_hygiene")
    logger.addHandler(handler)
    try:
        yield raised
    finally:
        logger.removeHandler(handler)


def test_a_logging_handler_that_raises_does_not_end_the_reaper(settings: Any, whole_pool: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always"}
    with failing_handler() as raised:
        for _ in range(6):
            run(begin)
        wait_until(lambda: raised, "somebody logs")
        query()
        wait_until_released()
        wait_until(whole_pool, "the pool is whole")


def test_a_report_that_cannot_be_written_does_not_keep_the_reaper_busy(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "IDLE_IN_TRANSACTION_AFTER": 0.02, "HELD_TOO_LONG_AFTER": None}
    with failing_handler() as raised, transaction.atomic():
        query()
        wait_until(lambda: raised, "it is reported")
        with conn_hygiene.hold_connection(using="unpooled"):
            let_the_reaper_look()
        # Reported again whenever it is twice as old, and its failure along with it; not in a loop without a pause.
        assert len(raised) < 20


def test_a_receiver_that_exits_does_not_end_the_reaper(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "IDLE_IN_TRANSACTION_AFTER": 0.02, "HELD_TOO_LONG_AFTER": None}
    exits: list[Any] = []

    def receiver(**facts: Any) -> None:
        exits.append(facts)
        raise SystemExit

    idle_in_transaction_detected.connect(receiver)
    try:
        with transaction.atomic():
            query()
            wait_until(lambda: exits, "it is reported")
    finally:
        idle_in_transaction_detected.disconnect(receiver)
    query()
    wait_until_released()


def test_a_logging_handler_that_queries_leaves_no_connection_with_the_reaper(settings: Any) -> None:
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": 0.02, "HELD_TOO_LONG_AFTER": None}
    written: list[Any] = []

    class Handler(logging.Handler):
        """Writes records into the database, as some projects' do."""

        def emit(self, record: logging.LogRecord) -> None:
            written.append(query())

    handler = Handler(logging.WARNING)
    logging.getLogger("conn_hygiene").addHandler(handler)
    try:
        with transaction.atomic():
            query()
            wait_until(lambda: written, "it is reported")
            # It is reported again and again, and each time the handler has a connection for a moment.
            wait_until(
                lambda: [info.thread_id for info in conn_hygiene.snapshot()] == [threading.get_ident()],
                "the reaper's thread has none",
            )
    finally:
        logging.getLogger("conn_hygiene").removeHandler(handler)


def test_the_thread_is_a_daemon_and_the_only_one() -> None:
    query()
    threads = [thread for thread in threading.enumerate() if thread.name == "conn-hygiene-reaper"]
    assert len(threads) == 1
    assert threads[0].daemon


def test_the_reaper_sleeps_when_nothing_is_held(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "IDLE_IN_TRANSACTION_AFTER": 0.04, "HELD_TOO_LONG_AFTER": None}
    query()
    wait_until_released()
    # Without an end, and not only for a short while: there is nothing that would wake it.
    wait_until(lambda: running()._wake_at == math.inf, "the reaper sleeps until it is called")


def test_the_reaper_sleeps_when_what_is_held_needs_no_watch(settings: Any) -> None:
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": None, "HELD_TOO_LONG_AFTER": None}
    with transaction.atomic():
        query()
        wait_until(lambda: running()._wake_at == math.inf, "the reaper sleeps until it is called")


def test_a_checkout_while_the_watch_goes_to_rest_is_watched(settings: Any, monkeypatch: Any) -> None:
    """The watch finds nothing held; before it has laid itself to rest, something is checked out."""
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": 0.04, "HELD_TOO_LONG_AFTER": None}
    query()
    keeper = running()
    leases, seen, go = keeper.leases, threading.Event(), threading.Event()

    def slow() -> Any:
        found = leases()
        if not found and threading.current_thread().name == "conn-hygiene-reaper" and not seen.is_set():
            seen.set()
            go.wait(10)
        return found

    monkeypatch.setattr(keeper, "leases", slow, raising=False)
    connection.close()
    assert seen.wait(10)
    with transaction.atomic():
        query()
        go.set()
        wait_until(lambda: keeper._watch_at != math.inf, "it is looked at")
        let_the_reaper_look()
        assert keeper._watch_at != math.inf


# ##### Forks #####


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.usefixtures("always")
def test_a_forked_child_has_a_reaper_of_its_own_when_it_needs_one() -> None:
    mine = query()

    def child() -> tuple[Any, int]:
        pid = query()
        wait_until_released()
        run(query)
        wait_until(lambda: not conn_hygiene.snapshot(), "what the thread left is given back")
        return pid, conn_hygiene.stats().checkouts

    pid, checkouts = in_child(child)
    assert pid != mine
    assert checkouts == 2
    query()
    wait_until_released()


# ##### What fails for one lease #####


def test_a_timer_that_was_stopped_is_started_by_whoever_parks_next(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 60}
    query()
    query()
    lease = lease_of(connections["default"])
    assert lease is not None
    assert lease.look_at < math.inf
    assert reaper.running is not None
    reaper.running.stop(for_good=False)
    assert lease.look_at == math.inf
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0.001}
    query()
    wait_until_released("default")


def test_a_timer_that_cannot_be_started_is_tried_again_by_whoever_parks_next(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 60}
    query()
    assert reaper.running is not None
    reaper.running.stop(for_good=False)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        query()
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0.001}
    query()
    wait_until_released("default")


def test_what_one_lease_meets_does_not_keep_the_others(
    settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    query("unpooled")
    failing = lease_of(connections["unpooled"])
    ended: list[Lease] = []
    real = Lease.end_if_parked

    def end_if_parked(lease: Lease, now: float, *, here: bool = False) -> float | None:
        if lease is failing and not ended:
            ended.append(lease)
            raise OSError("out of descriptors")
        return real(lease, now, here=here)

    monkeypatch.setattr(Lease, "end_if_parked", end_if_parked)
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0.001, "UNPOOLED_RELEASE_AFTER": 0.001}
    query("unpooled")
    query("default")
    wait_until_released("default")
    # It has its turn again.
    wait_until_released("unpooled")
    wait_until_told()
    assert ended == [failing]
    assert [record.getMessage() for record in caplog.records] == ["The reaper met an error and goes on."]


def test_an_age_that_is_longer_than_python_can_wait_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    keeper = reaper.Reaper(counters.of)
    keeper.ensure_running()
    keeper._bell.put(lambda: keeper._watch_by(1e300))
    assert keeper.flush(10)
    assert keeper.flush(10)
    keeper.stop()
    assert caplog.records == []
