"""A forked child lets go of what it inherits, and its parent notices nothing."""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, connections, transaction
from django.db.transaction import TransactionManagementError

import conn_hygiene
from conn_hygiene import close_all_after_fork, close_all_before_fork
from conn_hygiene.signals import connections_discarded
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg
    from psycopg_pool import ConnectionPool

ALIASES = ["default", "unpooled", "persistent"]

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=[*ALIASES, "sqlite"]),
    # The pool has threads, and forking beside them is what is tested.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


def pid_of(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def in_child(work: Callable[[], Any]) -> Any:
    """Return what *work* returns in a forked child; fail with the child's traceback if it raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result: Any = (True, work())
        except BaseException:  # noqa: BLE001 - all of it is for the parent to see
            result = (False, traceback.format_exc())
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        done, value = pickle.load(pipe)
    os.waitpid(child, 0)
    if not done:
        pytest.fail(f"In the child:\n{value}")
    return value


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
            assert in_child(lambda: pid_of("default")) != mine
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
    assert told == [(first, sorted(ALIASES))]
    assert [pid_of(alias) for alias in ALIASES] == before


def test_it_is_a_no_op_in_the_parent() -> None:
    before = pid_of("default")
    assert close_all_after_fork() == 0
    assert pid_of("default") == before


def test_another_vendor_is_left_as_it_is() -> None:
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
        in_child(lambda: pid_of("default"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_before_a_fork_all_is_closed_and_no_thread_is_left() -> None:
    for alias in ALIASES:
        pid_of(alias)
    assert close_all_before_fork() >= len(ALIASES)
    ours = ("pool", "conn-hygiene")
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(ours)] == []
    assert in_child(lambda: pid_of("default")) != pid_of("default")


def test_before_a_fork_atomic_is_refused_by_name() -> None:
    with transaction.atomic():
        mine = pid_of("default")
        with pytest.raises(TransactionManagementError, match="'default'"):
            close_all_before_fork()
        assert pid_of("default") == mine
