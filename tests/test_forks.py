"""A forked child lets go of what it inherits, and its parent notices nothing."""

from __future__ import annotations

import contextvars
import ctypes
import gc
import importlib
import os
import pickle
import posix
import resource
import sys
import threading
import traceback
import weakref
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connection, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.transaction import TransactionManagementError

import conn_hygiene
from conn_hygiene import (
    close_all_after_fork,
    close_all_before_fork,
    closing_connections,
    events,
    hold_connection,
    release_connections,
    session_settings,
)
from conn_hygiene.forks import hooks as forks
from conn_hygiene.forks.discarding import bury, discard
from conn_hygiene.leases import attaching, wrapper
from conn_hygiene.leases.returns import TimeLimit
from conn_hygiene.reaper import reaper
from conn_hygiene.reports import log
from conn_hygiene.signals import connections_discarded
from tests.processes import run
from tests.testapp.models import Item
from tests.waiting import wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path
    from types import FrameType

    from psycopg_pool import ConnectionPool

ALIASES = ["default", "unpooled", "persistent"]

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=[*ALIASES, "small", "sqlite"]),
    # The pool has threads, and forking beside them is what is tested.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def pid_of(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def in_child(work: Callable[[], Any], *, fork: Callable[[], int] = os.fork, measured: bool = True) -> Any:
    """Return what *work* returns in a forked child; fail with the child's traceback if it raises.

    Unless *measured*, the child writes no file for coverage, which takes longer than all the rest.
    """
    reading, writing = os.pipe()
    child = fork()
    if child == 0:
        try:
            result: Any = (True, work())
        except BaseException:  # noqa: BLE001 - all of it is for the parent to see
            result = (False, traceback.format_exc())
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(result, pipe)
        (os._exit if measured else posix._exit)(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        done, value = pickle.load(pipe)
    os.waitpid(child, 0)
    if not done:
        pytest.fail(f"In the child:\n{value}")
    return value


@pytest.mark.parametrize("is_waiting", [True, False], ids=["for the timer", "seen by it"])
def test_the_copy_of_a_socket_whose_session_is_being_cleaned_stays_the_parents(is_waiting: bool) -> None:
    connection = connections["default"]
    connection.ensure_connection()
    keeper = reaper.running
    assert keeper is not None
    limit = TimeLimit(connection.connection, keeper, 600.0)

    def is_open() -> bool:
        with suppress(OSError):
            return os.fstat(descriptor).st_ino == inode
        return False

    with limit:
        if not is_waiting:
            wait_until(lambda: not keeper._new_limits, "the timer has seen it")
        assert limit._copy is not None
        descriptor = limit._copy.fileno()
        inode = os.fstat(descriptor).st_ino
        assert in_child(is_open) is False
        assert is_open()
    assert connection.connection.execute("SELECT 1").fetchone() == (1,)


@pytest.fixture
def by_hand(settings: Any) -> None:
    settings.CONN_HYGIENE = {"DISCARD_AFTER_FORK": False}


def test_parent_and_child_have_sessions_of_their_own() -> None:
    before = [pid_of(alias) for alias in ALIASES]
    in_the_child = in_child(lambda: [pid_of(alias) for alias in ALIASES])
    assert not set(before) & set(in_the_child)
    assert [pid_of(alias) for alias in ALIASES] == before


def test_nothing_of_a_child_is_left(admin: psycopg.Connection) -> None:
    for alias in ALIASES:
        pid_of(alias)
    of_child = in_child(lambda: [pid_of(alias) for alias in ALIASES])
    alive = "SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)"
    wait_until(lambda: not admin.execute(alive, [of_child]).fetchall(), "the child's sessions are gone")


@pytest.mark.slow
def test_a_child_of_a_busy_parent_does_not_hang_and_harms_no_query(pool_of: Callable[[str], ConnectionPool]) -> None:
    stop, failures = threading.Event(), []

    def query() -> None:
        try:
            with conn_hygiene.closing_connections():
                while not stop.is_set():
                    pid_of("default")
        except BaseException as exc:  # noqa: BLE001 - the test has failed, whatever it is
            failures.append(exc)

    threads = [threading.Thread(target=query) for _ in range(3)]
    for thread in threads:
        thread.start()
    mine = pid_of("default")
    try:
        for _ in range(30):
            assert in_child(lambda: pid_of("default"), measured=False) != mine
            assert pid_of("default") == mine
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_child_starts_outside_of_the_parents_transaction() -> None:
    ran: list[int] = []

    def child() -> tuple[bool, list[int]]:
        inside = connection.in_atomic_block
        with transaction.atomic():
            pid_of("default")
        return inside, ran

    with transaction.atomic():
        mine = pid_of("default")
        transaction.on_commit(lambda: ran.append(1))
        assert in_child(child) == (False, [])
        assert pid_of("default") == mine
    assert ran == [1]


def test_a_lock_that_was_held_at_the_fork_does_not_stop_the_child(pool_of: Callable[[str], ConnectionPool]) -> None:
    pid_of("default")
    held, done = threading.Event(), threading.Event()

    pool = pool_of("default")
    thread = threading.Thread(target=lambda: _hold_lock(pool, held, done))
    thread.start()
    held.wait()
    try:
        assert in_child(lambda: pid_of("default"))
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("has_its_wrapper", [True, False])
def test_nothing_runs_in_a_child_before_the_toolkit_has_begun_anew(has_its_wrapper: bool) -> None:
    """Python collects what other threads had before it calls a hook. Whatever traces a finaliser may block for ever."""
    package = os.path.dirname(conn_hygiene.__file__)
    calls: list[tuple[int, str]] = []
    connected, done = threading.Event(), threading.Event()

    def note(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            calls.append((os.getpid(), frame.f_code.co_name))

    @closing_connections
    def connect() -> None:
        pid_of("default")
        if not has_its_wrapper:
            connections["default"].close()
            del connections["default"]
            gc.collect()
        connected.set()
        done.wait()

    def child() -> str:
        sys.setprofile(None)
        return next(name for pid, name in calls if pid == os.getpid())

    thread = threading.Thread(target=connect)
    thread.start()
    connected.wait()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        assert in_child(child) == "after_fork_in_child"
    finally:
        sys.setprofile(before)
        done.set()
        thread.join()


def _hold_lock(pool: ConnectionPool, held: threading.Event, done: threading.Event) -> None:
    with pool._lock:
        held.set()
        done.wait()


@pytest.mark.usefixtures("by_hand")
def test_discarding_by_hand_says_what_it_did_and_does_it_once() -> None:
    before = [pid_of(alias) for alias in ALIASES]

    def child() -> tuple[list[Any], int, int]:
        told: list[Any] = []
        connections_discarded.connect(lambda **facts: told.append((facts["count"], facts["aliases"])), weak=False)
        first, second = close_all_after_fork(), close_all_after_fork()
        assert not set(before) & {pid_of(alias) for alias in ALIASES}
        return told, first, second

    told, first, second = in_child(child)
    assert first >= len(ALIASES)
    assert second == 0
    [(count, aliases)] = told
    assert count == first
    # There may be others, idle in pools that other tests have used.
    assert aliases == sorted({*aliases, *ALIASES})
    assert [pid_of(alias) for alias in ALIASES] == before


@pytest.mark.usefixtures("by_hand")
def test_what_the_parent_holds_is_in_no_list_of_the_child() -> None:
    pid_of("default")
    assert in_child(lambda: len(conn_hygiene.snapshot())) == 0
    assert len(conn_hygiene.snapshot()) == 1


def test_a_child_waits_for_no_block_of_the_parents_to_close() -> None:
    """As when a coroutine forks, while others query in the same thread, each in a block of its own."""

    def closes() -> int:
        closing_connections(lambda: pid_of("default"))()
        return len(conn_hygiene.snapshot())

    other = contextvars.copy_context()
    block = closing_connections()
    other.run(block.__enter__)
    try:
        assert in_child(closes) == 0
        assert closes() == 1
    finally:
        other.run(block.__exit__, None, None, None)
    assert conn_hygiene.snapshot() == []


def test_no_hold_of_the_parents_holds_in_a_child() -> None:
    """But the one in which it was forked: its own code is in there."""

    def releases() -> int:
        pid_of("default")
        return release_connections()

    other, hold = contextvars.copy_context(), hold_connection()
    other.run(hold.__enter__)
    try:
        assert in_child(releases) == 1
        assert other.run(in_child, releases) == 0
        assert releases() == 0
    finally:
        other.run(hold.__exit__, None, None, None)
    assert releases() == 1


@pytest.mark.parametrize("discards", ["automatic", "by hand"])
def test_a_child_goes_on_in_the_blocks_that_it_was_forked_in(discards: str, request: pytest.FixtureRequest) -> None:
    if discards == "by hand":
        request.getfixturevalue("by_hand")

    def tenant() -> str:
        close_all_after_fork()
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('app.tenant_id', true)")
            return cursor.fetchone()[0]

    with session_settings({"app.tenant_id": 42}):
        assert in_child(tenant) == "42"
        assert tenant() == "42"
        assert in_child(tenant) == "42"


def test_what_tells_of_a_threads_end_is_forgotten_with_it() -> None:
    together = threading.Barrier(3, timeout=30)

    @closing_connections
    def work() -> None:
        pid_of("default")
        # So that none has the ident of one that has ended.
        together.wait()

    pid_of("default")
    before = len(forks._thread_ends)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(forks._thread_ends) <= before


def test_a_child_may_leave_the_parents_atomic_block() -> None:
    """As when a child is forked below a view, and its function returns."""
    ran: list[int] = []
    reading, writing = os.pipe()
    with transaction.atomic():
        mine = pid_of("default")
        transaction.on_commit(lambda: ran.append(1))
        child = os.fork()
    if child == 0:
        # Out of a block that was never entered here.
        done = "fine" if not ran and pid_of("default") != mine else "not fine"
        os.write(writing, done.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "fine"
    os.waitpid(child, 0)
    assert ran == [1]
    assert pid_of("default") == mine


def test_a_fork_that_calls_no_hooks_is_made_good_by_hand() -> None:
    """uWSGI forks in C, and Python does not know."""
    libc = ctypes.PyDLL(None)
    before = [pid_of(alias) for alias in ALIASES]

    def child() -> bool:
        discarded = close_all_after_fork()
        own = {pid_of(alias) for alias in ALIASES}
        with conn_hygiene.release_between_queries():
            pid_of("default")
            wait_until_released()
        return discarded >= len(ALIASES) and not own & set(before)

    assert in_child(child, fork=libc.fork)
    assert [pid_of(alias) for alias in ALIASES] == before


@pytest.mark.parametrize("lock", ["own lease", "leases", "wrappers", "installing", "what was said"])
def test_a_lock_of_ours_that_was_held_at_the_fork_does_not_stop_the_child(lock: str) -> None:
    mine = pid_of("default")
    locks = {
        "own lease": wrapper.lease_of(connections["default"])._lock,
        "leases": reaper.running._registry_lock,
        "wrappers": attaching._known_lock,
        "installing": reaper.installing,
        "what was said": log.unclosed_cursors._lock,
    }
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with locks[lock]:
            held.set()
            done.wait()

    def child() -> int:
        conn_hygiene.install()
        log.unclosed_cursors.count(("default", "here"), 0)
        return pid_of("default")

    # Before anybody holds them: taking them over the fork is not asked of the parent.
    wrappers = attaching.known()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attaching, "known", lambda: wrappers)
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        try:
            assert in_child(child) != mine
        finally:
            done.set()
            thread.join()


@pytest.mark.parametrize("name", ["execute", "copy"])
def test_an_inherited_cursor_is_refused(name: str) -> None:
    with connections["default"].cursor() as cursor:
        use = {"execute": lambda: cursor.cursor.execute("SELECT 1"), "copy": lambda: cursor.copy("").__enter__()}[name]

        def child() -> str:
            with pytest.raises(psycopg.OperationalError) as caught:
                use()
            return str(caught.value)

        assert in_child(child) == "the connection is closed"


@pytest.mark.parametrize("name", ["copy", "stream"])
def test_what_the_parent_is_reading_is_not_cancelled_by_a_child_that_leaves_it(name: str) -> None:
    def read(cursor: Any) -> Generator[Any, None, None]:
        if name == "stream":
            yield from cursor.stream("SELECT generate_series(1, 300000)")
        else:
            with cursor.copy("COPY (SELECT generate_series(1, 300000)) TO STDOUT") as copy:
                yield from copy.rows()

    with connections["default"].cursor() as cursor, closing(read(cursor.cursor)) as rows:
        next(rows)

        def child() -> None:
            # psycopg 3.2 finds that what is there in the socket's place is none, and says so.
            with suppress(LookupError, psycopg.OperationalError):
                rows.throw(LookupError())

        in_child(child)
        assert sum(1 for _ in rows) == 299_999


# ##### Other pools, other drivers, other databases #####


@contextmanager
def remade(alias: str, **entry: Any) -> Iterator[str]:
    """Give *alias* other settings for a while: Django's test classes refuse one that was not there when they began."""
    settings, usual = connections.settings[alias], connections[alias]
    connections.settings[alias] = settings | entry
    del connections[alias]
    try:
        yield alias
    finally:
        connections[alias].close()
        connections.settings[alias] = settings
        connections[alias] = usual


@pytest.fixture
def sqlalchemy_pool() -> Iterator[str]:
    """Return the alias of a database behind django-db-connection-pool."""
    options = {"POOL_SIZE": 3, "MAX_OVERFLOW": 0}
    with remade("unpooled", ENGINE="dj_db_conn_pool.backends.postgresql", POOL_OPTIONS=options) as alias:
        yield alias
    importlib.import_module("dj_db_conn_pool.core").pool_container.pop(alias).dispose()


def test_a_sqlalchemy_pool_is_left_to_the_parent(
    sqlalchemy_pool: str, admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection of it is checked out here, one in a transaction of another thread, and one idle in the pool."""
    # The worst moment for it: the other thread is gone, and its connection not yet discarded.
    renew_state = forks.renew_state
    monkeypatch.setattr(forks, "renew_state", lambda: (gc.collect(), renew_state()))
    ready, forked = threading.Event(), threading.Event()

    def transact() -> None:
        with transaction.atomic(using=sqlalchemy_pool):
            Item.objects.using(sqlalchemy_pool).create(name="of the parent")
            ready.set()
            forked.wait()
        connections[sqlalchemy_pool].close()

    def idle() -> None:
        pid_of(sqlalchemy_pool)
        connections[sqlalchemy_pool].close()

    mine = pid_of(sqlalchemy_pool)
    threads = [threading.Thread(target=transact)]
    threads[0].start()
    ready.wait()
    threads.append(threading.Thread(target=idle))
    threads[1].start()
    threads[1].join()
    in_parent = {pid for (pid,) in admin.execute("SELECT pid FROM pg_stat_activity WHERE query LIKE '%backend_pid%'")}
    try:
        of_child = in_child(lambda: pid_of(sqlalchemy_pool))
    finally:
        forked.set()
        threads[0].join()
    assert of_child not in in_parent
    assert pid_of(sqlalchemy_pool) == mine
    assert Item.objects.count() == 1


CHILD_THAT_EXITS = """
import os, sys, django
from django.conf import settings

settings.DATABASES["unpooled"]["ENGINE"] = "dj_db_conn_pool.backends.postgresql"
django.setup()
from django.db import connections
from tests.test_forks import ALIASES, pid_of

before = [pid_of(alias) for alias in ALIASES]
if (child := os.fork()) == 0:
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert [pid_of(alias) for alias in ALIASES] == before
"""


@pytest.mark.slow
def test_a_child_that_runs_to_its_end_does_no_harm_as_it_exits() -> None:
    """What it inherited would be collected as the interpreter ends, after all hooks."""
    process = run("-W", "ignore:.*multi-threaded:DeprecationWarning", "-c", CHILD_THAT_EXITS)
    assert (process.returncode, process.stderr) == (0, "")


def test_what_is_buried_is_never_collected() -> None:
    class Thing:
        pass

    thing = Thing()
    bury(thing)
    alive = weakref.ref(thing)
    del thing
    gc.collect()
    assert alive() is not None


def test_psycopg2_is_discarded_too(admin: psycopg.Connection) -> None:
    psycopg2 = pytest.importorskip("psycopg2", reason="it is in the dependency group of the workers' tests")
    other = psycopg2.connect(admin.info.dsn, password=admin.info.password)
    try:

        def child() -> bool:
            return discard(other) and other.closed != 0

        assert in_child(child)
        with other.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
    finally:
        other.close()


def test_a_file_of_sqlite_is_opened_anew_by_the_child(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with remade("sqlite", NAME=str(tmp_path / "db.sqlite3")) as alias:
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE TABLE here (n int)")
        handle = connections[alias].connection

        def child() -> tuple[bool, list[str]]:
            with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
                cursor.execute("INSERT INTO here VALUES (1)")
            return connections[alias].connection is not handle, [record.getMessage() for record in caplog.records]

        with caplog.at_level("INFO", logger="conn_hygiene.forks"):
            is_new, messages = in_child(child)
        assert is_new
        assert "1 of them, of sqlite, cannot be closed here without harm" in messages[1]
        with connections[alias].cursor() as cursor:
            assert cursor.execute("SELECT count(*) FROM here").fetchone() == (1,)


def test_it_is_a_no_op_in_the_parent() -> None:
    before = pid_of("default")
    assert close_all_after_fork() == 0
    assert pid_of("default") == before


def test_a_database_in_memory_is_left_as_it_is() -> None:
    with connections["sqlite"].cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE here (n int)")

    def child() -> int:
        with connections["sqlite"].cursor() as cursor:
            return cursor.execute("SELECT count(*) FROM here").fetchone()[0]

    assert in_child(child) == 0


def test_a_child_of_a_child() -> None:
    mine = pid_of("default")

    def child() -> tuple[int, int]:
        own = pid_of("default")
        grandchild = in_child(lambda: pid_of("default"))
        assert pid_of("default") == own
        return own, grandchild

    assert len({mine, *in_child(child)}) == 3
    assert pid_of("default") == mine


@pytest.mark.usefixtures("by_hand")
def test_a_child_that_forks_before_it_discards_keeps_what_other_threads_of_its_parent_had() -> None:
    """Collected, their connections would say goodbye to the server by the parent's sockets."""

    def child() -> bool:
        before = forks._kept_at_fork.keys()
        in_child(lambda: None)
        return bool(before) and forks._kept_at_fork.keys() == before

    assert in_child(child)
    assert not forks._kept_at_fork


@pytest.mark.usefixtures("by_hand")
def test_without_a_descriptor_to_spare_the_rest_is_discarded_all_the_same() -> None:
    before = [pid_of(alias) for alias in ALIASES]
    heard: list[events.ConnectionsDiscarded] = []

    def child() -> tuple[int, dict[str, int], dict[str, int], list[int]]:
        events.listen(events.ConnectionsDiscarded, heard.append)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            found = close_all_after_fork()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        (event,) = heard
        return found, dict(event.discarded), dict(event.left_open), [pid_of(alias) for alias in ALIASES]

    found, discarded, left_open, own = in_child(child)
    assert found == sum(discarded.values())
    assert left_open == discarded
    assert not set(before) & set(own)
    assert [pid_of(alias) for alias in ALIASES] == before


def test_killed_children_leave_the_parent_as_it_was() -> None:
    with transaction.atomic():
        mine = pid_of("default")
        child = os.fork()
        if child == 0:
            with transaction.atomic():
                pid_of("default")
                os.kill(os.getpid(), 9)
        os.waitpid(child, 0)
        assert pid_of("default") == mine


def test_descriptors_of_the_parent_stay_as_many() -> None:
    pid_of("default")
    in_child(lambda: pid_of("default"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        in_child(lambda: pid_of("default"), measured=False)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("sqlalchemy_pool")
def test_before_a_fork_all_is_closed_and_no_thread_is_left() -> None:
    for alias in ALIASES:
        pid_of(alias)
    # The pool of an alias that this thread has not used.
    thread = threading.Thread(target=closing_connections(pid_of), args=["small"])
    thread.start()
    thread.join()
    assert close_all_before_fork() >= len(ALIASES) + 2
    assert not DatabaseWrapper._connection_pools
    ours = ("pool", "conn-hygiene")
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(ours)] == []
    assert in_child(lambda: pid_of("default")) != pid_of("default")


def test_before_a_fork_atomic_is_refused_by_name() -> None:
    with transaction.atomic():
        mine = pid_of("default")
        with pytest.raises(TransactionManagementError, match="'default'"):
            close_all_before_fork()
        assert pid_of("default") == mine


def test_what_is_parked_after_that_is_looked_at(settings: Any) -> None:
    """Another thread's cursor is open while the reaper is stopped."""
    settings.CONN_HYGIENE = {"RELEASE": "always", "UNPOOLED_RELEASE_AFTER": 0.01}
    ready, stopped, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        with connections["unpooled"].cursor() as cursor:
            cursor.execute("SELECT 1")
            ready.set()
            stopped.wait()
        done.wait()
        connections["unpooled"].close()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    close_all_before_fork()
    stopped.set()
    try:
        wait_until_released("unpooled")
    finally:
        done.set()
        thread.join()
