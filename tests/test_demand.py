"""What threads at rest hold goes to those who wait for it, and nothing else does."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from django.db import OperationalError, connections, transaction
from psycopg_pool.pool import WaitingClient

import conn_hygiene
from conn_hygiene import hold_connection
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.pools import base as pools
from conn_hygiene.reaper import demand, reaper
from conn_hygiene.work import serving
from tests.test_forks import remade
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled"])

ALIAS = "unpooled"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "REST", 0.1)


@contextlib.contextmanager
def pool(size: int = 1, timeout: float = 10) -> Iterator[None]:
    """Give the alias a pool for a while."""
    options = connections.settings[ALIAS]["OPTIONS"]
    native = {"pool": {"min_size": size, "max_size": size, "timeout": timeout}}
    with remade(ALIAS, OPTIONS=options | native):
        try:
            yield
        finally:
            connections[ALIAS].close()
            connections[ALIAS].close_pool()


@contextlib.contextmanager
def threads(number: int) -> Iterator[list[ThreadPoolExecutor]]:
    """Yield executors of one thread each, whose connections are closed in the end."""
    with contextlib.ExitStack() as stack:
        executors = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(number)]
        yield executors
        for executor in executors:
            executor.submit(connections.close_all).result()


def pid(statement: str = "SELECT pg_backend_pid()") -> int:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute(statement)
        return int(cursor.fetchone()[0])


def setting(name: str) -> str:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT current_setting(%s)", [name])
        return str(cursor.fetchone()[0])


def pid_after_closing() -> int:
    connections[ALIAS].close()
    return pid()


def releases() -> int:
    return conn_hygiene.stats(ALIAS).releases


# ##### Who waits #####


def test_a_thread_that_queries_for_the_first_time_gets_what_another_one_is_done_with(settings: Any) -> None:
    # No watch comes by in time that would find who waits.
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": None, "HELD_TOO_LONG_AFTER": 600}
    with pool(), threads(2) as (idle, first):
        held = idle.submit(pid).result()
        before = releases()
        assert first.submit(pid).result() == held
        assert releases() - before == 1


def test_who_has_asked_and_is_not_in_the_queue_yet_is_not_forgotten_at_once() -> None:
    """It may have had no turn of the processor since."""
    with pool(), threads(1) as (idle,):
        idle.submit(pid).result()
        lease = idle.submit(lambda: lease_of(connections[ALIAS])).result()
        assert lease is not None
        demands = demand.Demands()
        demands.begin(lease, 100.0)
        demands.see_to([lease], [], 100.0 + demand.REST / 2)
        assert 100.0 < demands.look_at < 100.0 + demand.REST
        demands.see_to([lease], [], 100.0 + demand.REST * 2)
        assert demands.look_at == math.inf


def test_a_thread_that_has_queried_before_gets_it_too() -> None:
    with pool(), threads(2) as (idle, again):
        again.submit(pid_after_closing).result()
        again.submit(connections.close_all).result()
        held = idle.submit(pid).result()
        assert again.submit(pid).result() == held
        # And back again, without a close in between.
        assert idle.submit(pid).result() == held


def test_jobs_that_end_while_others_wait() -> None:
    with pool(2), threads(4) as executors:
        jobs = [executor.submit(pid, "SELECT pg_backend_pid() FROM pg_sleep(0.2)") for executor in executors]
        pids = [job.result() for job in jobs]
    assert len(set(pids)) == 2


def test_who_waits_unheard_is_found_by_the_watch(settings: Any) -> None:
    settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": 0.2}
    with pool(), threads(1) as [idle]:
        held = idle.submit(pid).result()
        # Past Django.
        native = connections[ALIAS].pool
        with native.connection() as connection:
            assert connection.info.backend_pid == held


def let_time_pass() -> None:
    lease = lease_of(connections[ALIAS])
    assert lease is not None
    lease.idle_since -= 10


def test_the_one_that_is_idle_for_longest_goes_and_no_more_than_are_wanted() -> None:
    with pool(3), threads(4) as executors:
        *idle, waiter = executors
        held = [executor.submit(pid).result() for executor in idle]
        # The first one works once more; all of them have been idle for long enough.
        assert idle[0].submit(pid).result() == held[0]
        for executor in idle:
            executor.submit(let_time_pass).result()
        assert waiter.submit(pid).result() == held[1]
        keeper = reaper.running
        assert keeper is not None
        wait_until(lambda: not keeper._demands._demands, "nobody is known to wait")
        still = {info.server_pid for info in conn_hygiene.snapshot() if info.alias == ALIAS}
        assert still == set(held)
        assert idle[2].submit(pid).result() == held[2]


def test_what_it_has_set_follows() -> None:
    def set_something() -> None:
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SET app.tenant_id = '42'")

    def nothing_is_set() -> bool:
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SELECT coalesce(current_setting('app.tenant_id', true), '') = ''")
            return bool(cursor.fetchone()[0])

    with pool(), threads(2) as (idle, other):
        idle.submit(set_something).result()
        assert other.submit(nothing_is_set).result()
        assert idle.submit(setting, "app.tenant_id").result() == "42"


# ##### What stays #####


def in_transaction() -> None:
    transaction.set_autocommit(False, using=ALIAS)
    pid()


def pinned() -> None:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE kept (n int)")


def with_a_cursor_open() -> None:
    cursor = connections[ALIAS].cursor()
    cursor.execute("SELECT 1")
    kept.append(cursor)


def with_a_handle() -> None:
    pid()
    kept.append(connections[ALIAS].connection)


def with_commit_hooks() -> None:
    pid()
    connections[ALIAS].run_on_commit.append((set(), lambda: None, False))  # type: ignore[arg-type]


def of_a_request() -> None:
    serving.label = "GET /"
    pid()


def of_a_hold() -> None:
    hold = hold_connection()
    kept.append(hold)
    hold.__enter__()
    pid()


kept: list[Any] = []


@contextlib.contextmanager
def somebody_waits_for(job: Callable[[], Any]) -> Iterator[tuple[ThreadPoolExecutor, Future[int]]]:
    """Have a thread do *job*, and another one wait for its connection in vain."""
    with pool(timeout=0.4), threads(2) as (idle, waiter):
        try:
            idle.submit(job).result()
            waiting = waiter.submit(pid)
            yield idle, waiting
        finally:
            kept.clear()


@pytest.mark.parametrize(
    "job",
    [in_transaction, pinned, with_a_cursor_open, with_a_handle, with_commit_hooks, of_a_request, of_a_hold],
)
def test_what_is_in_use_or_must_stay(job: Callable[[], Any]) -> None:
    before = releases()
    with somebody_waits_for(job) as (idle, waiting):
        assert isinstance(waiting.exception(), OperationalError)
        assert releases() == before
        # Nor when nobody waits any more.
        assert idle.submit(lambda: lease_of(connections[ALIAS]).holds_connection()).result()
        serving.label = None


def test_what_it_keeps_for_a_request_that_has_begun_meanwhile() -> None:
    with pool(), threads(1) as [idle]:
        idle.submit(pid).result()
        lease = idle.submit(lambda: lease_of(connections[ALIAS])).result()
        assert lease is not None
        lease.request = "GET /"
        assert not lease.give_back_on_demand(time.monotonic())
        lease.request = None
        # It has been used since.
        assert not lease.give_back_on_demand(lease.idle_since - 1)
        wait_until(lambda: lease.give_back_on_demand(time.monotonic()), "its thread is at rest")


def test_no_request_is_looked_at() -> None:
    with pool(), threads(1) as [idle]:
        idle.submit(pid).result()
        lease = idle.submit(lambda: lease_of(connections[ALIAS])).result()
        assert lease is not None
        assert demand.may_rest(lease)
        lease.request = "GET /"
        assert not demand.may_rest(lease)


@pytest.mark.parametrize("settings_", [{"RELEASE": "never"}, {"HELD_TOO_LONG_AFTER": None}], ids=str)
def test_settings_that_let_nothing_go(settings_: dict[str, Any], settings: Any) -> None:
    settings.CONN_HYGIENE = settings_
    with somebody_waits_for(pid) as (_, waiting):
        assert isinstance(waiting.exception(), OperationalError)


def test_a_thread_in_the_middle_of_the_applications_code() -> None:
    go_on = threading.Event()

    def job() -> None:
        pid()
        queried.set()
        go_on.wait(10)

    queried = threading.Event()
    with pool(timeout=0.4), threads(2) as (busy, waiter):
        job_done = busy.submit(job)
        assert queried.wait(10)
        assert isinstance(waiter.submit(pid).exception(), OperationalError)
        go_on.set()
        job_done.result()
        assert isinstance(waiter.submit(pid).result(), int)


# ##### How long #####


def test_half_of_what_the_pool_lets_anybody_wait_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "REST", 1.0)
    for timeout, rest in ((30, 1.0), (2, 1.0), (0.5, 0.25)):
        with pool(timeout=timeout):
            pid()
            lease = lease_of(connections[ALIAS])
            assert lease is not None
            assert demand._rest(lease) == rest


def test_who_has_given_up_does_not_wait() -> None:
    queue: deque[Any] = deque(WaitingClient() for _ in range(3))
    assert pools.waiting_in(queue) == 3
    queue[1].fail(TimeoutError())
    assert pools.waiting_in(queue) == 2
    assert pools.waiting_in(()) == 0


def test_nothing_is_looked_at_when_nobody_waits() -> None:
    keeper = reaper.running
    assert keeper is not None
    with pool(timeout=0.4), threads(2) as (held, waiter):
        held.submit(in_transaction).result()
        assert isinstance(waiter.submit(pid).exception(), OperationalError)
        wait_until(lambda: not keeper._demands._demands, "the demand is forgotten")
