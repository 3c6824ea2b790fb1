"""What is not ours runs under no lock of ours, and what hangs in it stops nothing else.

Not ours are the server's answers, psycopg_pool, a pool's ``configure``, logging handlers and receivers of signals.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import OperationalError, connections, transaction
from django.db.backends.signals import connection_created
from psycopg_pool import ConnectionPool

import conn_hygiene
from conn_hygiene import closing_connections, events, hold_connection, release_between_queries, signals
from conn_hygiene.leases import attaching, returns, wrapper
from conn_hygiene.reaper import reaper
from conn_hygiene.reaper.reaper import Reaper
from conn_hygiene.reports import counters, notices
from conn_hygiene.sessions import following
from example_project import embedded
from tests.test_forks import in_child
from tests.test_lease import query
from tests.waiting import let_the_reaper_look, wait_until, wait_until_released, wait_until_told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "small", "unpooled"])

SECONDS = 30


def running() -> Reaper:
    assert reaper.running is not None
    return reaper.running


def every_lock() -> Iterator[tuple[str, Any]]:
    keeper = running()
    for each in attaching.known():
        lease = wrapper.lease_of(each)
        if lease is not None:
            yield repr(lease), lease._lock
    yield "the registry's", keeper._registry_lock
    yield "the reaper's start lock", keeper._start_lock
    yield "the counters'", counters.of("default")._lock
    yield "the one of what was told", counters.told._lock
    yield "the one of those who listen", events._lock
    yield "the workers'", keeper._workers._lock
    for lane in keeper._workers._lanes.values():
        yield f"the one of lane {lane._name}", lane._changed
    yield "the one of wrappers", attaching._known_lock
    yield "the one for installing", reaper.installing


class Foreign:
    """Stands for code that is not ours: notes which of our locks another thread cannot have while it runs."""

    def __init__(self) -> None:
        self.calls = 0
        self.held: list[str] = []

    def __call__(self) -> None:
        self.calls += 1
        thread = threading.Thread(target=self._take_every_lock)
        thread.start()
        thread.join(SECONDS)

    def _take_every_lock(self) -> None:
        for name, lock in every_lock():
            if lock.acquire(timeout=2):
                lock.release()
            else:
                self.held.append(name)


class Hanging:
    """Stands for code that is not ours, and that does not return until it is allowed to."""

    def __init__(self) -> None:
        self.calls = 0
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> None:
        self.calls += 1
        self.begun.set()
        self.go_on.wait(SECONDS)


class Handler(logging.Handler):
    def __init__(self, called: Callable[[], None]) -> None:
        super().__init__()
        self.called = called

    def emit(self, record: logging.LogRecord) -> None:
        self.called()


# ##### What calls it #####


@contextmanager
def logged(name: str, called: Callable[[], None], level: int = logging.INFO) -> Iterator[None]:
    logger, handler = logging.getLogger(name), Handler(called)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextmanager
def before_each(owner: Any, name: str, called: Callable[[], None]) -> Iterator[None]:
    """Have *called* run ahead of each call of a method."""
    real = getattr(owner, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        called()
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, method)
        yield


@contextmanager
def received(name: str, called: Callable[[], None]) -> Iterator[None]:
    def receiver(**kwargs: Any) -> None:
        called()

    getattr(signals, name).connect(receiver)
    try:
        yield
    finally:
        getattr(signals, name).disconnect(receiver)


@contextmanager
def listened(kind: type[events.Event], called: Callable[[], None]) -> Iterator[None]:
    def listener(event: Any) -> None:
        if event.alias == "default":
            called()

    events.listen(kind, listener)
    try:
        yield
    finally:
        events.unlisten(kind, listener)


@contextmanager
def configured(called: Callable[[], None]) -> Iterator[None]:
    pool = connections["default"].pool
    real = pool._configure

    def configure(connection: Any) -> None:
        called()
        real(connection)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_configure", configure)
        yield


# ##### What leads to it #####


def in_thread(act: Callable[[], Any]) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(SECONDS)


@contextmanager
def soiling() -> Iterator[None]:
    """Have every checkout of the default database leave something to be cleaned."""

    def receiver(connection: Any, **kwargs: Any) -> None:
        if connection.alias == "default":
            query("default", "SET work_mem = '8MB'")

    connection_created.connect(receiver)
    try:
        yield
    finally:
        connection_created.disconnect(receiver)


def release() -> None:
    with release_between_queries():
        query()
        wait_until_released()


def release_soiled() -> None:
    with soiling():
        release()


def release_by_hand() -> None:
    query()
    assert conn_hygiene.release_connections("default") == 1


def hold_for_a_while() -> None:
    with release_between_queries(), hold_connection():
        query("default", "SET work_mem = '8MB'")


def close_soiled() -> None:
    query("default", "SET work_mem = '8MB'")
    connections["default"].close()


def die_in_transaction() -> None:
    in_thread(lambda: query("default", "BEGIN"))
    wait_until_released()


def idle_in_transaction() -> None:
    before = conn_hygiene.stats().idle_in_transaction
    with transaction.atomic():
        query()
        wait_until(lambda: conn_hygiene.stats().idle_in_transaction > before, "it is reported")


def hold_too_long() -> None:
    before = conn_hygiene.stats().held_too_long
    query("default", "SET work_mem = '8MB'")
    wait_until(lambda: conn_hygiene.stats().held_too_long > before, "it is reported")


def be_ended_in_transaction() -> None:
    with pytest.raises(OperationalError), transaction.atomic():  # noqa: PT012
        query()
        before = conn_hygiene.stats().idle_in_transaction
        wait_until(lambda: conn_hygiene.stats().idle_in_transaction > before, "it is reported")
        query()


def be_pinned() -> None:
    with release_between_queries():
        query("default", "LISTEN outside")


CALLS: dict[str, Callable[[Callable[[], None]], Any]] = {
    "putconn": lambda called: before_each(ConnectionPool, "putconn", called),
    "the pool's log": lambda called: logged("psycopg.pool", called),
    "configure": configured,
    "the cleaning": lambda called: before_each(following, "run", called),
    "a rollback": lambda called: before_each(psycopg.Connection, "rollback", called),
    "finish": lambda called: before_each(psycopg.Connection, "close", called),
    "our log": lambda called: logged("conn_hygiene", called),
    "a notice": lambda called: before_each(notices, "post", called),
    "idle_in_transaction_detected": lambda called: received("idle_in_transaction_detected", called),
    "connection_held_too_long": lambda called: received("connection_held_too_long", called),
    "connection_reclaimed": lambda called: received("connection_reclaimed", called),
    "CheckedOut": lambda called: listened(events.CheckedOut, called),
    "CheckedIn": lambda called: listened(events.CheckedIn, called),
    "Pinned": lambda called: listened(events.Pinned, called),
}

WAYS = [
    ("putconn", release),
    ("putconn", release_by_hand),
    ("putconn", release_soiled),
    ("putconn", die_in_transaction),
    ("putconn", close_soiled),
    ("the pool's log", release),
    ("the pool's log", release_by_hand),
    ("the pool's log", die_in_transaction),
    ("configure", release_soiled),
    ("configure", hold_for_a_while),
    ("configure", close_soiled),
    ("the cleaning", release_soiled),
    ("the cleaning", hold_for_a_while),
    ("the cleaning", close_soiled),
    ("a rollback", die_in_transaction),
    ("our log", idle_in_transaction),
    ("our log", hold_too_long),
    ("our log", be_ended_in_transaction),
    ("our log", die_in_transaction),
    ("our log", be_pinned),
    ("a notice", idle_in_transaction),
    ("a notice", hold_too_long),
    ("idle_in_transaction_detected", idle_in_transaction),
    ("idle_in_transaction_detected", be_ended_in_transaction),
    ("connection_held_too_long", hold_too_long),
    ("connection_reclaimed", die_in_transaction),
    ("CheckedOut", release),
    ("CheckedIn", release),
    ("CheckedIn", release_by_hand),
    ("CheckedIn", release_soiled),
    ("CheckedIn", close_soiled),
    ("CheckedIn", hold_for_a_while),
    ("CheckedIn", hold_too_long),
    ("CheckedIn", die_in_transaction),
    ("Pinned", be_pinned),
]


@pytest.fixture(params=[0, 0.001], ids=["at once", "after a grace"])
def prompt(request: pytest.FixtureRequest, settings: Any, tmp_path: Any) -> None:
    query()  # with a receiver or a handler, this would be the first of its calls
    connections.close_all()
    settings.CONN_HYGIENE = {
        "RELEASE_AFTER": request.param,
        "IDLE_IN_TRANSACTION_AFTER": 0.1,
        "HELD_TOO_LONG_AFTER": 0.1,
        "NOTICE_DIRECTORY": tmp_path,
    }


@pytest.fixture
def ending(request: pytest.FixtureRequest, settings: Any) -> None:
    if "be_ended" in request.node.name:
        settings.CONN_HYGIENE = settings.CONN_HYGIENE | {"IDLE_IN_TRANSACTION_ACTION": "terminate"}


@pytest.mark.slow
@pytest.mark.parametrize(("call", "way"), WAYS, ids=[f"{call}, {way.__name__}" for call, way in WAYS])
@pytest.mark.usefixtures("prompt", "ending")
def test_what_is_not_ours_is_called_under_no_lock(call: str, way: Callable[[], None]) -> None:
    foreign = Foreign()
    with CALLS[call](foreign):
        way()
        wait_until_told()
        connections.close_all()
    assert foreign.calls > 0
    assert foreign.held == []


HANGS = [
    ("putconn", release_soiled),
    ("the pool's log", release),
    ("configure", release_soiled),
    ("the cleaning", release_soiled),
    ("a rollback", die_in_transaction),
    ("our log", idle_in_transaction),
    ("our log", hold_too_long),
    ("a notice", idle_in_transaction),
    ("idle_in_transaction_detected", idle_in_transaction),
    ("connection_held_too_long", hold_too_long),
    ("connection_reclaimed", die_in_transaction),
    ("CheckedOut", release),
    ("CheckedIn", release),
    ("CheckedIn", hold_too_long),
    ("CheckedIn", die_in_transaction),
]


def answers(ask: Callable[[], Any]) -> bool:
    """Return whether *ask* returns, whatever hangs."""
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(5)
    return not thread.is_alive()


def is_released_elsewhere() -> None:
    with release_between_queries():
        query("small")
        wait_until_released("small")
    connections.close_all()


def is_ended_elsewhere() -> None:
    in_thread(lambda: query("small", "BEGIN"))
    wait_until_released("small")


@pytest.mark.parametrize(("call", "way"), HANGS, ids=[f"{call}, {way.__name__}" for call, way in HANGS])
@pytest.mark.usefixtures("prompt")
def test_what_hangs_stops_nothing_of_another_alias(call: str, way: Callable[[], None]) -> None:
    # What the catalogue says is known by then: sessions would be cleaned each time.
    is_released_elsewhere()
    hanging = Hanging()
    asked: list[Callable[[], Any]] = [conn_hygiene.snapshot, conn_hygiene.stats]
    # What is asked for must not come by there itself: no more would it answer without the toolkit.
    if call not in ("putconn", "the pool's log"):
        asked.append(is_released_elsewhere)
    if call not in ("putconn", "the pool's log", "a rollback"):
        asked.append(is_ended_elsewhere)
    with CALLS[call](hanging):
        hung = threading.Thread(target=closing_connections(way))
        hung.start()
        assert hanging.begun.wait(SECONDS)
        try:
            # Each in a thread of its own: who answers stands in the list.
            done = [ask.__name__ for ask in asked if answers(ask)]
        finally:
            hanging.go_on.set()
            hung.join(SECONDS)
    wait_until_told()
    assert done == [ask.__name__ for ask in asked]


@pytest.mark.parametrize("alias", ["reports", "events"])
@pytest.mark.usefixtures("prompt")
def test_what_is_told_hangs_no_alias_of_that_name(alias: str) -> None:
    hanging = Hanging()
    event = events.PoolExhausted(alias=alias, thread_id=0, request=None, waited_for=0.0, error="PoolTimeout")

    def die() -> None:
        query("default", "BEGIN")
        wrapper.lease_of(connections["default"]).alias = alias

    events.listen(events.PoolExhausted, listener := lambda event: hanging())
    try:
        running().publish_later(event)
        running().tell(hanging)
        wait_until(lambda: hanging.calls == 2, "both hang")
        in_thread(die)
        wait_until(lambda: not conn_hygiene.snapshot() and not running()._returning, "it is back")
    finally:
        hanging.go_on.set()
        events.unlisten(events.PoolExhausted, listener)
    wait_until_told()


class Unlocked(Handler):
    """Hangs with each record of a return, and lets other records pass meanwhile."""

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)  # without the handler's lock
        return True

    def emit(self, record: logging.LogRecord) -> None:
        if "returning" in record.getMessage():
            self.called()


def test_a_handler_that_hangs_stops_no_release_of_the_same_alias(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0.001}
    query()
    connections.close_all()
    hanging = Hanging()
    logger, handler = logging.getLogger("psycopg.pool"), Unlocked(hanging)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with release_between_queries():
            # More than there are workers of an alias.
            for _ in range(6):
                query()
                wait_until_released()
        assert hanging.calls == 1
    finally:
        hanging.go_on.set()
        wait_until_told()
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert hanging.calls == 6


# ##### A server that does not answer #####


own_server = pytest.mark.skipif(not embedded.is_own_server(), reason="Its processes are to be stopped by a signal.")


@pytest.fixture
def frozen() -> Iterator[Callable[[int], None]]:
    """Return what stops a server process, which goes on at the end of the test."""
    pids: list[int] = []

    def freeze(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        pids.append(pid)

    yield freeze
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def pid_of(alias: str = "default") -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid: int = cursor.fetchone()[0]
        return pid


@own_server
def test_a_dead_threads_transaction_on_a_server_that_hangs_is_given_up_after_a_limit(
    frozen: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, pool_of: Callable[[str], ConnectionPool]
) -> None:
    monkeypatch.setattr(returns, "TIME_LIMIT", 0.3)

    def die() -> None:
        query("default", "BEGIN")
        frozen(pid_of())

    before = conn_hygiene.stats().reclaimed
    in_thread(die)
    wait_until(lambda: conn_hygiene.stats().reclaimed == before + 1, "it is taken from the dead")
    is_released_elsewhere()
    pool = pool_of("default")
    wait_until(lambda: not running()._returning, "it is given up")
    wait_until(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"], "the pool is whole")


@own_server
def test_what_was_left_open_on_a_server_that_hangs_is_given_up_after_a_limit(
    frozen: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(returns, "TIME_LIMIT", 0.3)
    held: list[Any] = []

    def work() -> None:
        with conn_hygiene.closing_connections():
            query("default", "BEGIN")
            frozen(pid_of())
            held.append(connections["default"].connection)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert held[0].closed


@own_server
def test_a_session_that_cannot_be_cleaned_in_time_is_closed(
    frozen: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, pool_of: Callable[[str], ConnectionPool]
) -> None:
    monkeypatch.setattr(returns, "TIME_LIMIT", 0.3)
    query("default", "SET work_mem = '8MB'")
    pid = pid_of()
    frozen(pid)
    connections["default"].close()
    pool = pool_of("default")
    wait_until(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"], "the pool is whole")
    assert pid not in {connection.info.backend_pid for connection in list(pool._pool)}


def test_a_cleaning_that_is_in_time_leaves_no_trace_of_its_limit(
    monkeypatch: pytest.MonkeyPatch, pool_of: Callable[[str], ConnectionPool]
) -> None:
    monkeypatch.setattr(returns, "TIME_LIMIT", 0.05)
    query("default", "SET work_mem = '8MB'")
    pid = pid_of()
    connections["default"].close()
    # It is forgotten when it is over, so that the timer need not wake for it.
    let_the_reaper_look()
    assert running()._limits == []
    time.sleep(0.1)
    assert pid in {connection.info.backend_pid for connection in list(pool_of("default")._pool)}


# ##### Who waits for what is on its way back #####


@pytest.mark.parametrize("close", ["close", "close_pool"])
def test_who_closes_waits_until_the_connection_is_where_it_belongs(close: str, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0.001}
    hanging = Hanging()
    query()
    connections.close_all()
    with configured(hanging), soiling(), release_between_queries():
        query()
        assert hanging.begun.wait(SECONDS)
        waiting = threading.Timer(0.1, hanging.go_on.set)
        waiting.start()
        getattr(connections["default"], close)()
        assert hanging.go_on.is_set()
        assert not running()._returning
        waiting.join()
    connections.close_all()


def test_who_closes_waits_for_nobody_elses_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0.001}
    monkeypatch.setattr(returns, "RETURN_TIMEOUT", 0.05)
    hanging = Hanging()
    query()
    connections.close_all()
    with configured(hanging), soiling(), release_between_queries():
        query()
        assert hanging.begun.wait(SECONDS)
        query("small")
        connections["small"].close()
        assert caplog.messages == []
        connections["default"].close()
        hanging.go_on.set()
    assert caplog.messages == [
        "A connection of 'default' was still on its way back after 0 s, so that close() or close_pool() goes on "
        "without it. Look for a logging handler, or a pool's `configure` or `reset`, that hangs."
    ]
    wait_until_told()


def test_who_closes_does_not_wait_for_those_who_are_told(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0.001}
    hanging = Hanging()
    query("small")
    with release_between_queries(), logged("psycopg.pool", hanging):
        query("small")
        assert hanging.begun.wait(SECONDS)
        connections["small"].close()
        assert not hanging.go_on.is_set()
        hanging.go_on.set()
        wait_until_told()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_discards_what_is_on_its_way_back_in_its_parent(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0.001}
    hanging = Hanging()
    query()
    connections.close_all()
    with configured(hanging), soiling(), release_between_queries():
        query()
        assert hanging.begun.wait(SECONDS)
        (returning,) = running()._returning
        pid = returning.connection.info.backend_pid

        def look() -> tuple[bool, int]:
            return returning.connection.closed, len(running()._returning)

        assert in_child(look) == (True, 0)
        hanging.go_on.set()
        wait_until_told()
    pool = connections["default"].pool
    assert pid in {connection.info.backend_pid for connection in list(pool._pool)}
    assert all(connection.execute("SELECT 1").fetchone() == (1,) for connection in list(pool._pool))
    connections["default"].close_pool()


# ##### Handlers that query #####


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("narrow", [1], indirect=True)
@pytest.mark.parametrize("grace", [0, 0.001])
def test_what_the_pool_logs_is_told_when_the_connection_is_there(grace: float, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": grace}
    available: list[int] = []

    def look() -> None:
        available.append(connections["small"].pool.get_stats()["pool_available"])

    query("small")
    connections["small"].close()
    with release_between_queries():
        query("small")
        cursor = connections["small"].cursor()
        with logged("psycopg.pool", look):
            # All that is logged here is about its return.
            cursor.close()
            wait_until_released("small")
            wait_until_told()
    assert available == [1]


class DatabaseHandler(logging.Handler):
    """Writes records into the database, but for those of its own writing."""

    def __init__(self) -> None:
        super().__init__()
        self.local = threading.local()
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(self.local, "is_busy", False):
            return
        self.local.is_busy = True
        try:
            query("small", "SELECT 'looked up'")
            query("small", "SELECT 'written'")
        except Exception as error:  # noqa: BLE001 - whatever it is, the test says it
            self.errors.append(error)
        finally:
            self.local.is_busy = False


@pytest.fixture
def narrow(pool_of: Callable[[str], ConnectionPool], request: pytest.FixtureRequest) -> Iterator[None]:
    """Have the pool of "small" have only so many connections that can be checked out."""
    query("small")  # opens it
    connections["small"].close()
    pool = pool_of("small")
    pool.wait(SECONDS)  # its own threads would log meanwhile, too
    others = [pool.getconn() for _ in range(pool.max_size - request.param)]
    yield
    for each in others:
        pool.putconn(each)


# One is asked for, one is what the handler gets meanwhile, and one is for the handler in the thread of reports.
@pytest.mark.parametrize("narrow", [3], indirect=True)
@pytest.mark.parametrize("grace", [0, 0.001])
@pytest.mark.usefixtures("narrow")
def test_a_handler_may_write_what_the_pool_logs_into_the_database(grace: float, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": grace}
    handler = DatabaseHandler()
    logger = logging.getLogger("psycopg.pool")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        for number in range(20):
            query("small")
            logger.info("Record %d", number)
        wait_until_told()
        assert answers(lambda: query("small"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert handler.errors == []
    connections.close_all()
    # Nothing goes on for ever.
    wait_until_released("small")
    wait_until_told()


@pytest.mark.parametrize("is_whole", [True, False], ids=["by way of connect()", "out of the pool"])
def test_what_a_handler_has_checked_out_meanwhile_is_not_lost(
    is_whole: bool, pool_of: Callable[[str], ConnectionPool]
) -> None:
    query("small")
    connections["small"].close()
    pool = pool_of("small")
    nested: list[int] = []

    def query_once() -> None:
        if not nested:
            nested.append(1)
            query("small")

    def receiver(**kwargs: Any) -> None:
        """Have all of Django's connect() run."""

    if is_whole:
        connection_created.connect(receiver)
    try:
        with logged("psycopg.pool", query_once):
            query("small")
    finally:
        connection_created.disconnect(receiver)
    connections["small"].close()
    assert nested == [1]
    wait_until(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"], "the pool is whole")


@pytest.mark.parametrize("narrow", [1], indirect=True)
@pytest.mark.usefixtures("narrow")
def test_a_report_that_needs_a_connection_does_not_keep_others_from_theirs(settings: Any) -> None:
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": 0.05, "RELEASE_AFTER": 0.001}
    handler = DatabaseHandler()
    logger = logging.getLogger("conn_hygiene.transactions")
    logger.addHandler(handler)
    before = conn_hygiene.stats().idle_in_transaction
    try:
        with release_between_queries():
            with transaction.atomic("small"):
                query("small")
                wait_until(lambda: conn_hygiene.stats().idle_in_transaction > before, "it is reported")
            # It is over, and its connection free: for the handler that waits, and for another.
            assert answers(closing_connections(lambda: query("small")))
            wait_until_told()
    finally:
        logger.removeHandler(handler)
    assert handler.errors == []
    connections.close_all()


def test_reports_that_come_faster_than_they_are_made_are_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reaper, "_MOST_REPORTS", 2)
    keeper, hanging = Reaper(counters.of), Hanging()
    keeper.tell(hanging)
    assert hanging.begun.wait(SECONDS)
    for _ in range(5):
        keeper.tell(lambda: None)
    hanging.go_on.set()
    wait_until(lambda: not keeper._workers._lanes["reports"]._calls, "there is room again")
    keeper.tell(lambda: None)
    keeper.stop()
    assert caplog.messages == [
        "3 reports (log records, signals, events) were dropped: too many waited for a slow logging handler, signal "
        "receiver or event listener."
    ]
