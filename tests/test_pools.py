"""What pools do: their checks, the way back to a server that was away, and pools that keep nothing."""

from __future__ import annotations

import json
import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import django
import psycopg
import psycopg_pool.pool
import pytest
from django.db import OperationalError, connections
from django.db.backends.postgresql.base import DatabaseWrapper
from django.test import override_settings
from psycopg_pool import ConnectionPool, NullConnectionPool

import conn_hygiene
from conn_hygiene import closing_connections, internals, release_between_queries
from conn_hygiene.events import PoolExhausted, listen, unlisten
from conn_hygiene.leases.lease import Lease
from conn_hygiene.leases.states import GIVEN_BACK
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.pools import base as pools
from conn_hygiene.pools import checking, keeping, reconnecting, waiting
from conn_hygiene.pools.configuring import LAST_USED
from conn_hygiene.reports import answering, live
from conn_hygiene.sessions.following import SessionGone
from tests.test_forks import remade
from tests.waiting import end_sessions, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled"])

SIZE = 3


def pid(alias: str = "unpooled") -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        found: int = cursor.fetchone()[0]
        return found


@contextmanager
def pooled(**entry: Any) -> Iterator[ConnectionPool]:
    """Give "unpooled" a pool, which is whole and in which nobody has a connection."""
    pool = {"min_size": SIZE, "max_size": SIZE, "timeout": 5, **entry.pop("pool", {})}
    with remade("unpooled", OPTIONS={"pool": pool}, **entry):
        wrapper: Any = connections["unpooled"]
        try:
            wrapper.ensure_connection()
            opened: ConnectionPool = wrapper.pool
            wrapper.close()
            opened.wait()
            yield opened
        finally:
            wrapper.close()
            wrapper.close_pool()


# ##### Its numbers #####


@pytest.mark.parametrize(
    ("least", "most", "told"),
    # Another one is opened while there are less than 3.5.
    [(0, math.inf, (0, 0)), (0, math.nan, (0, 0)), (2, 8.0, (2, 8)), (True, 3.5, (1, 4))],
)
def test_sizes_are_whole_numbers_whatever_psycopg_pool_takes(least: Any, most: Any, told: tuple[int, int]) -> None:
    with pooled(pool={"min_size": least, "max_size": most}) as pool:
        # What it opens by itself is its own before it is there, and the two looks are to find the same.
        wait_until(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"], "the pool is whole")
        [found] = conn_hygiene.pool_stats("unpooled")
        assert (found.min_size, found.max_size) == told
        assert {type(size) for size in (found.size, found.min_size, found.max_size)} == {int}
        # So a process that has such a pool answers.
        answer = live._process(json.loads(answering.encoded(answering.about_process())))
        assert [pool for pool in answer.pools if pool.alias == "unpooled"] == [found]


# ##### Checks #####


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody wait between one dead connection and the next."""

    def sleep(seconds: float) -> None:
        pytest.fail(f"psycopg_pool backs off for {seconds} s")

    monkeypatch.setattr(psycopg_pool.pool, "sleep", sleep, raising=False)


class Checks:
    """Counts the questions of psycopg_pool's own check, by the server's pid; those of ``lost`` have no answer."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.lost: set[int] = set()

    def __call__(self, connection: psycopg.Connection) -> None:
        self.asked.append(connection.pgconn.backend_pid)
        if connection.pgconn.backend_pid in self.lost:
            raise psycopg.OperationalError("no answer")
        connection.execute("")


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    checks = Checks()
    monkeypatch.setattr(ConnectionPool, "check_connection", staticmethod(checks))
    return checks


@pytest.fixture
def checked(checks: Checks) -> Iterator[ConnectionPool]:
    """Return the pool of "unpooled" with CONN_HEALTH_CHECKS, none of whose connections was used for long."""
    with pooled(CONN_HEALTH_CHECKS=True) as pool:
        leave_unused(pool)
        yield pool


def leave_unused(pool: ConnectionPool) -> None:
    """Have each connection of *pool* be one that nobody has used for an hour."""
    for connection in pool._pool:
        setattr(connection, LAST_USED, time.monotonic() - 3600)


def page() -> set[int]:
    """Query nine times, each over a checkout of its own; return the server's pids."""
    with override_settings(CONN_HYGIENE={"RELEASE_AFTER": 0}), release_between_queries():
        return {pid() for _ in range(9)}


def test_what_was_used_a_moment_ago_is_not_asked(checked: ConnectionPool, checks: Checks) -> None:
    pids = page()
    # Each of the pool once, since it gives them out in turn, and nine times without us.
    assert len(checks.asked) == len(pids) == SIZE
    page()
    assert len(checks.asked) == SIZE
    # Nor is what is new.
    assert set(checks.asked) == pids


def test_what_was_used_longer_ago_is(checked: ConnectionPool, checks: Checks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "ALIVE_FOR", 0.0)
    page()
    assert len(checks.asked) == 9


def terminate(pool: ConnectionPool, admin: psycopg.Connection) -> set[int]:
    """End the session of each connection in *pool*; return their pids."""
    pids = {connection.pgconn.backend_pid for connection in pool._pool}
    end_sessions(admin, *pids)
    return pids


@pytest.mark.usefixtures("no_backoff")
@pytest.mark.parametrize("used", [False, True], ids=["long ago", "a moment ago"])
def test_connections_that_the_server_has_ended_are_passed_over(
    used: bool, checked: ConnectionPool, checks: Checks, admin: psycopg.Connection
) -> None:
    if used:
        page()
        checks.asked.clear()
    ended = terminate(checked, admin)
    assert pid() not in ended
    # It can be seen, so nobody asked; and what is new was not asked either.
    assert checks.asked == []
    connections["unpooled"].close()
    wait_until(lambda: checked.get_stats()["pool_available"] == SIZE, "the pool is whole")
    assert checked.get_stats()["connections_lost"] == SIZE


@pytest.mark.usefixtures("no_backoff")
def test_of_connections_that_a_network_has_lost_one_is_asked(checked: ConnectionPool, checks: Checks) -> None:
    checks.lost = {connection.pgconn.backend_pid for connection in checked._pool}
    assert pid() not in checks.lost
    assert len(checks.asked) == 1
    connections["unpooled"].close()
    wait_until(lambda: checked.get_stats()["pool_available"] == SIZE, "the pool is whole")


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Until 6.1, Django refuses a pool with a check of one's own.")
@pytest.mark.usefixtures("no_backoff")
def test_a_check_of_the_projects_own_is_asked_each_time(admin: psycopg.Connection) -> None:
    own = Checks()
    with pooled(pool={"check": own}) as pool:
        own.asked.clear()
        ended = terminate(pool, admin)
        assert page().isdisjoint(ended)
        assert len(own.asked) == 9


def test_without_a_check_nobody_looks() -> None:
    with pooled() as pool:
        assert "_getconn_unchecked" not in vars(pool)


def test_a_checkout_that_is_interrupted_gives_back_what_it_has(
    checked: ConnectionPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(connection: psycopg.Connection) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checking.pools, "is_hung_up", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pid()
    assert checked.get_stats()["pool_available"] == SIZE


def test_a_pool_is_what_it_was_after_uninstall(checked: ConnectionPool) -> None:
    pool: Any = checked
    assert {"_getconn_unchecked", "schedule_task"} <= vars(pool).keys()
    conn_hygiene.uninstall()
    try:
        assert pool._check is ConnectionPool.check_connection
        assert {name for name in vars(pool) if name.startswith("_conn_hygiene")} == set()
        assert vars(pool).keys().isdisjoint({"_getconn_unchecked", "schedule_task"})
    finally:
        conn_hygiene.install()


# ##### A server that was away #####


def test_a_pool_connects_anew_as_soon_as_its_server_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # In earlier releases of psycopg_pool it goes by another name.
    attempt = getattr(psycopg_pool.pool, "AttemptWithBackoff", None) or psycopg_pool.pool.ConnectionAttempt
    monkeypatch.setattr(attempt, "INITIAL_DELAY", 1000.0)
    monkeypatch.setattr(reconnecting, "RETRY_AFTER", 0.05)
    kwargs = {**connections["default"].get_connection_params(), "autocommit": True}
    with pooled() as pool:
        usual, pool.kwargs = pool.kwargs, {**kwargs, "host": "/nowhere", "connect_timeout": 1}
        admin = psycopg.connect(**kwargs)
        try:
            ended = terminate(pool, admin)
            threads = [threading.Thread(target=look) for _ in range(SIZE)]
            for thread in threads:
                thread.start()
            # One of them is tried over and over, and the others wait.
            wait_until(lambda: pool.get_stats().get("connections_errors", 0) >= SIZE + 2, "it was tried")
            assert len(pool.schedule_task._failed) in (SIZE - 1, SIZE)
            pool.kwargs = usual
            for thread in threads:
                thread.join()
            wait_until(lambda: pool.get_stats()["pool_available"] == SIZE, "the pool is whole")
            assert {connection.pgconn.backend_pid for connection in pool._pool}.isdisjoint(ended)
            assert pool.schedule_task._failed == {}
        finally:
            admin.close()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have who asks a pool again find that its timeout has passed meanwhile."""
    monkeypatch.setattr(waiting, "monotonic", lambda: time.monotonic() + 3600)


@contextmanager
def cut_off(pool: ConnectionPool) -> Iterator[None]:
    """Have *pool* connect to nothing new."""
    usual = pool.kwargs
    pool.kwargs = {**connections["default"].get_connection_params(), "host": "/nowhere"}
    try:
        yield
    finally:
        pool.kwargs = usual


@contextmanager
def exhausted() -> Iterator[list[PoolExhausted]]:
    """Give what is told of pools that had no connection in time."""
    told: list[PoolExhausted] = []
    listener = told.append
    listen(PoolExhausted, listener)
    try:
        yield told
    finally:
        unlisten(PoolExhausted, listener)


@pytest.mark.usefixtures("late")
def test_a_checkout_takes_no_longer_than_the_timeout_however_many_are_broken(admin: psycopg.Connection) -> None:
    with pooled() as pool, cut_off(pool), exhausted() as told:
        terminate(pool, admin)
        leave_unused(pool)
        with pytest.raises(OperationalError):
            pid()
        # All of them were looked at, and nobody has waited another timeout.
        assert pool.get_stats()["returns_bad"] == SIZE
        assert [event.waited_for < pool.timeout for event in told] == [True]


def test_one_that_is_given_back_twice_is_replaced_once() -> None:
    with pooled() as pool:
        broken = pool.getconn()
        broken.pgconn.finish()
        for _ in range(2):
            pools.give_back(broken)
        assert pool.get_stats()["returns_bad"] == 1


@pytest.mark.usefixtures("late")
def test_nor_does_one_whose_settings_cannot_be_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def gone(lease: Any) -> None:
        tried.append(lease._connection)
        lease._connection.pgconn.finish()
        raise SessionGone

    with pooled() as pool, override_settings(CONN_HYGIENE={"RELEASE_AFTER": 0}), release_between_queries():
        with connections["unpooled"].cursor() as cursor:
            cursor.execute("SET application_name = 'followed'")
        wait_until(lambda: pool.get_stats()["pool_available"] == SIZE, "the pool is whole")
        with cut_off(pool), monkeypatch.context() as patch, exhausted() as told:
            patch.setattr(Lease, "set_again", gone)
            with pytest.raises(OperationalError):
                pid()
        assert len(tried) == SIZE
        assert [event.waited_for < pool.timeout for event in told] == [True]


@pytest.mark.parametrize("checks", [False, True], ids=["unchecked", "checked"])
def test_who_asks_again_waits_for_what_is_left_of_the_timeout(checks: bool) -> None:
    with pooled(CONN_HEALTH_CHECKS=checks) as pool:
        out = [pool.getconn() for _ in range(SIZE)]
        long_ago = time.monotonic() - pool.timeout
        with waiting.since(long_ago, pool):
            began = time.monotonic()
            with pytest.raises(psycopg_pool.PoolTimeout):
                pool.getconn()
            assert time.monotonic() - began < pool.timeout
            # What is there is given.
            pool.putconn(out.pop())
            out.append(pool.getconn())
        for each in out:
            pool.putconn(each)


def test_what_is_left_is_of_the_first_time_and_of_one_pool() -> None:
    with pooled() as pool:
        assert waiting.shortened(5, pool) == 5
        with waiting.since(time.monotonic() - pool.timeout, pool):
            with waiting.since(time.monotonic(), pool):
                assert waiting.shortened(5, pool) == waiting.MIN_TIMEOUT
            with waiting.since(time.monotonic(), None):
                assert waiting.shortened(5, pool) == waiting.MIN_TIMEOUT
            assert waiting.shortened(5, object()) == 5
        assert waiting.shortened(5, pool) == 5
        conn_hygiene.uninstall()
        try:
            assert "_getconn_unchecked" not in vars(pool)
        finally:
            conn_hygiene.install()


def look() -> None:
    with closing_connections():
        pid()


# ##### Pools that keep nothing #####


class OwnNullPool(NullConnectionPool):
    """A subclass, of a module that is not psycopg_pool's."""


class OwnPool:
    """A pool of a project's own, which takes connections back to close them."""

    def __init__(self, *, kwargs: dict[str, Any], **_: Any) -> None:
        self.kwargs = kwargs

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def getconn(self) -> psycopg.Connection:
        connection: Any = psycopg.connect(**self.kwargs)
        connection._pool = self
        return connection

    def putconn(self, connection: psycopg.Connection) -> None:
        connection.close()


@contextmanager
def pool_of(cls: type[Any], **options: Any) -> Iterator[Any]:
    wrapper: Any = connections["unpooled"]
    kwargs = {**wrapper.get_connection_params(), "autocommit": True}
    with remade("unpooled", OPTIONS={"pool": True}):
        wrapper = connections["unpooled"]
        pool = cls(kwargs=kwargs, open=False, configure=wrapper._configure_connection, timeout=5, **options)
        DatabaseWrapper._connection_pools["unpooled"] = pool
        try:
            yield pool
        finally:
            wrapper.close()
            keeping._closing.clear()
            # One of somebody's own does not show who waits.
            internals.TURNS.update(found=internals.TURNS.missing)
            wrapper.close_pool()


def pauses(times: int = 3) -> list[int]:
    """Query with pauses in between that are longer than RELEASE_AFTER; return the server's pids."""
    pids = []
    with release_between_queries():
        for _ in range(times):
            pids.append(pid())
            time.sleep(0.01)
    return pids


@pytest.mark.parametrize("cls", [NullConnectionPool, OwnNullPool])
def test_a_pool_that_keeps_nothing_is_no_reason_to_give_back(cls: type[Any]) -> None:
    with pool_of(cls, max_size=2) as pool, override_settings(CONN_HYGIENE={"UNPOOLED_RELEASE_AFTER": 60}):
        assert len(set(pauses())) == 1
        assert pool.get_stats()["connections_num"] == 1


def test_its_connections_go_back_as_those_without_a_pool_do() -> None:
    with (
        pool_of(NullConnectionPool, max_size=2),
        override_settings(CONN_HYGIENE={"UNPOOLED_RELEASE_AFTER": 0.001}),
        release_between_queries(),
    ):
        first = pid()
        wait_until_released("unpooled")
        assert pid() != first


def test_a_pool_of_somebodys_own_is_known_by_what_it_does() -> None:
    with pool_of(OwnPool), override_settings(CONN_HYGIENE={"UNPOOLED_RELEASE_AFTER": 60}):
        # The very first may be closed by the toolkit, which asks the catalogue then.
        first = pauses()
        wait_until(lambda: OwnPool in keeping._closing, "it is seen what the pool does")
        connections["unpooled"].close()
        pids = pauses()
        assert set(first).isdisjoint(pids)
        assert len(set(pids)) == 1


class Waiter:
    """Another thread, which asks for a connection when it is told to, and not for the first time."""

    def __init__(self, sql: str = "SELECT pg_backend_pid()") -> None:
        self._sql = sql
        self._go = threading.Event()
        self._ready = threading.Event()
        self._found: list[Any] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        with closing_connections():
            pid()
        self._ready.set()
        self._go.wait(10)
        with closing_connections(), connections["unpooled"].cursor() as cursor:
            cursor.execute(self._sql)
            self._found.append(cursor.fetchone()[0])

    def found(self) -> Any:
        self._go.set()
        self._thread.join()
        return self._found.pop()


@pytest.mark.parametrize("max_size", [1, 2])
def test_who_waits_for_a_full_pool_gets_what_is_idle(max_size: int) -> None:
    with (
        pool_of(NullConnectionPool, max_size=max_size),
        override_settings(CONN_HYGIENE={"UNPOOLED_RELEASE_AFTER": 60}),
        release_between_queries(),
    ):
        waiter = Waiter()
        first = pid()
        # Whether it is handed over, or closed to make room: the pool has a timeout, and nobody waits for 60 seconds.
        assert waiter.found()
        # Where there was room, it was left with its owner.
        assert (pid() == first) is (max_size == 2)


def test_no_other_alias_waits_while_such_a_pool_connects() -> None:
    with (
        pool_of(NullConnectionPool, max_size=2) as pool,
        override_settings(CONN_HYGIENE={"UNPOOLED_RELEASE_AFTER": 0.001, "RELEASE_AFTER": 0.001}),
        release_between_queries(),
    ):
        # After the first ones, nothing is left to be asked of the database.
        pauses()
        pid("default")
        wait_until_released("default")
        # As whoever asks the pool for a connection has it, until the server answers.
        with pool._lock:
            pid()
            lease: Any = lease_of(connections["unpooled"])
            wait_until(lambda: lease.state == GIVEN_BACK, "it is on its way back")
            pid("default")
            wait_until_released("default")


def test_what_is_handed_over_is_clean() -> None:
    with (
        pool_of(NullConnectionPool, max_size=1),
        override_settings(CONN_HYGIENE={"UNPOOLED_RELEASE_AFTER": 60}),
        release_between_queries(),
    ):
        waiter = Waiter("SELECT coalesce(current_setting('app.tenant', true), '')")
        with connections["unpooled"].cursor() as cursor:
            cursor.execute("SELECT set_config('app.tenant', 'acme', false)")
        assert waiter.found() == ""
