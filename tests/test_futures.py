"""The executors leave nothing checked out, and are those of the standard library in all else."""

from __future__ import annotations

import contextvars
import functools
import multiprocessing
import sys
import threading
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import django
import psycopg
import pytest
from django.conf import settings as django_settings
from django.core.signals import request_finished, request_started
from django.db import connection

import conn_hygiene
from conn_hygiene.futures import ProcessPoolExecutor, ThreadPoolExecutor
from conn_hygiene.leases import usage
from tests.processes import in_fresh_process
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg_pool import ConnectionPool

FORK = multiprocessing.get_context("fork")

pytestmark = [
    pytest.mark.django_db(transaction=True),
    # The pool has threads, and forking beside them is what is tested.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


@pytest.fixture
def jobs() -> Any:
    """Return the module of jobs, which can be imported now that Django is set up."""
    from tests import jobs

    return jobs


@pytest.fixture
def by_hand(settings: Any) -> None:
    settings.CONN_HYGIENE = {"DISCARD_AFTER_FORK": False}


@contextmanager
def surrounded(pause: Callable[[], object]) -> Iterator[None]:
    """Be in a request, and in a block of each kind, each of which has a statement to its name."""
    measured = usage.current.set(usage.Timing())
    request_started.send(None, environ={"REQUEST_METHOD": "GET", "PATH_INFO": "/first"})
    try:
        with ExitStack() as stack:
            stack.enter_context(conn_hygiene.session_settings({"app.tenant_id": 1}))
            stack.enter_context(conn_hygiene.query_timeout(7))
            stack.enter_context(conn_hygiene.hold_connection())
            stack.enter_context(conn_hygiene.release_between_queries())
            stack.enter_context(conn_hygiene.closing_connections())
            pause()
            yield
    finally:
        request_finished.send(None)
        usage.current.reset(measured)


def outside_of_all(jobs: Any) -> dict[str, Any]:
    """Return what a job finds around it that nobody's code is around."""
    # The tests' own context may have an entry of a scope that another test has left in a context that is gone.
    found: dict[str, Any] = contextvars.Context().run(conn_hygiene.closing_connections(jobs.surroundings))
    return found


# ##### Threads #####


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    # The tests' own thread is not to hold anything that they would count.
    connection.close()
    with ThreadPoolExecutor(8) as executor:
        yield executor


def test_more_threads_than_the_pool_has_connections(
    threads: ThreadPoolExecutor, jobs: Any, pool_of: Callable[[str], ConnectionPool]
) -> None:
    together = threading.Barrier(8, timeout=30)

    def job(number: int) -> int:
        if number < 8:
            # All threads have begun before the first is done.
            together.wait()
        jobs.session()
        return number

    assert list(threads.map(job, range(100))) == list(range(100))
    assert conn_hygiene.snapshot() == []
    assert pool_of("default").get_stats()["pool_size"] <= 4


def test_jobs_of_the_standard_library_that_are_covered(jobs: Any) -> None:
    connection.close()
    with futures.ThreadPoolExecutor(8) as executor:
        assert len(list(executor.map(conn_hygiene.closing_connections(jobs.where), range(100)))) == 100
        assert conn_hygiene.snapshot() == []


def test_targets_of_threads_that_are_covered(jobs: Any) -> None:
    connection.close()
    held: list[int] = []

    def run() -> None:
        conn_hygiene.closing_connections(jobs.session)()
        # Not left to the reaper, which would mend it when the thread has ended.
        held.append(jobs.held())

    for _ in range(5):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert held == [0] * 5


def test_a_job_that_fails_gives_back_what_it_has(threads: ThreadPoolExecutor, jobs: Any) -> None:
    with pytest.raises(LookupError, match="as it was told"):
        threads.submit(jobs.fail).result()
    assert conn_hygiene.snapshot() == []


def test_a_transaction_that_a_job_leaves_open_is_rolled_back(
    threads: ThreadPoolExecutor, jobs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    threads.submit(jobs.leave_open).result()
    assert conn_hygiene.snapshot() == []
    assert "closing_connections" in caplog.text


def test_an_initializer_of_threads_keeps_no_connection(jobs: Any) -> None:
    started: list[int] = []
    with ThreadPoolExecutor(1, "named", lambda mark: started.append(mark + 0 * jobs.session()), (7,)) as threads:
        assert threads.submit(lambda: (threading.current_thread().name, jobs.held())).result() == ("named_0", 0)
    assert started == [7]


def test_an_initializer_of_threads_that_fails(jobs: Any) -> None:
    with ThreadPoolExecutor(1, initializer=jobs.fail) as threads, pytest.raises(BrokenThreadPool):
        threads.submit(jobs.where).result()


def test_threads_that_inherit_a_context_begin_outside_of_its_scopes(jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do from Python 3.14 on, where ``sys.flags.thread_inherit_context`` says so."""
    start = threading.Thread.start

    def inherit(thread: threading.Thread) -> None:
        monkeypatch.setattr(thread, "run", functools.partial(contextvars.copy_context().run, thread.run))
        start(thread)

    outside = outside_of_all(jobs)
    with ThreadPoolExecutor(1) as threads:
        with surrounded(jobs.session), monkeypatch.context() as inheriting:
            inheriting.setattr(threading.Thread, "start", inherit)
            assert threads.submit(jobs.surroundings).result() == outside
        assert threads.submit(jobs.surroundings).result() == outside


def test_cancelled_futures_never_run(jobs: Any) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def keep_busy() -> bool:
        begun.set()
        return go_on.wait(30)

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(keep_busy)
        waiting = [threads.submit(jobs.where) for _ in range(3)]
        begun.wait(30)
        assert waiting[0].cancel()
        threads.shutdown(wait=False, cancel_futures=True)
        go_on.set()
    assert running.result() is True
    assert all(future.cancelled() for future in waiting)


@pytest.mark.parametrize("executor", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_what_the_standard_library_refuses(executor: Any) -> None:
    assert issubclass(executor, getattr(futures, executor.__name__))
    with pytest.raises(TypeError, match="initializer must be a callable"):
        executor(1, initializer="set_up")
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        executor(0)


def test_any_callable_is_a_job(threads: ThreadPoolExecutor) -> None:
    assert threads.submit(dict, fn=1, self=2).result() == {"fn": 1, "self": 2}
    assert list(threads.map(pow, [2, 3], [3, 2])) == [8, 9]


# ##### Processes that are forked #####


@pytest.fixture(params=["automatic", "by hand"])
def processes(request: pytest.FixtureRequest) -> Iterator[ProcessPoolExecutor]:
    if request.param == "by hand":
        request.getfixturevalue("by_hand")
    with ProcessPoolExecutor(2, FORK) as executor:
        yield executor


def test_forked_workers_have_sessions_of_their_own(
    processes: ProcessPoolExecutor, jobs: Any, admin: psycopg.Connection
) -> None:
    mine = jobs.session()
    sessions = {session for _, session in processes.map(jobs.where, range(20), chunksize=3)}
    assert mine not in sessions
    processes.shutdown()
    assert jobs.session() == mine
    alive = "SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)"
    wait_until(lambda: not admin.execute(alive, [list(sessions)]).fetchall(), "the workers' sessions are gone")


def test_a_worker_holds_nothing_between_two_jobs(jobs: Any) -> None:
    with ProcessPoolExecutor(1, FORK, initializer=jobs.session) as processes:
        assert processes.submit(jobs.held).result() == 0
        # No more sessions than connections in the worker's pool, which lives across its jobs.
        assert len(set(processes.map(jobs.where, range(20)))) <= 4
        assert processes.submit(jobs.held).result() == 0
        with pytest.raises(LookupError, match="as it was told"):
            processes.submit(jobs.fail).result()
        assert processes.submit(jobs.held).result() == 0


def test_forked_workers_begin_outside_of_what_is_around_the_first_job(
    processes: ProcessPoolExecutor, jobs: Any
) -> None:
    """It is forked there, and does the jobs of others afterwards."""
    outside = outside_of_all(jobs)
    with surrounded(jobs.session):
        inside = conn_hygiene.closing_connections(jobs.surroundings)()
        assert processes.submit(jobs.surroundings).result() == outside
        assert conn_hygiene.closing_connections(jobs.surroundings)() == inside
    assert {name for name in outside if outside[name] != inside[name]} == {*outside}
    for _ in range(4):
        assert processes.submit(jobs.surroundings).result() == outside


def test_an_executor_that_is_made_inside_of_atomic(jobs: Any) -> None:
    from django.db import transaction

    with transaction.atomic(), ProcessPoolExecutor(1, FORK) as processes:
        mine = jobs.session()
        assert processes.submit(jobs.where).result()[1] != mine
        assert jobs.session() == mine


def test_a_worker_that_dies_breaks_the_pool_and_no_connection(jobs: Any) -> None:
    mine = jobs.session()
    with ProcessPoolExecutor(1, FORK) as processes:
        with pytest.raises(BrokenProcessPool):
            processes.submit(jobs.die).result()
        with pytest.raises(BrokenProcessPool):
            processes.submit(jobs.where)
    assert jobs.session() == mine


def test_an_initializer_of_processes_that_fails(jobs: Any) -> None:
    with ProcessPoolExecutor(1, FORK, jobs.fail) as processes, pytest.raises(BrokenProcessPool):
        processes.submit(jobs.where).result()


# ##### Processes that begin from nothing, and import what they need #####


def started_anew() -> dict[str, Any]:
    django.setup()
    from tests import jobs

    chosen: Any = django_settings
    context = multiprocessing.get_context(chosen.START_METHOD)
    workers = {"max_tasks_per_child": 2} if chosen.RECYCLE else {}
    started = context.Value("i", 0)
    mine = jobs.session()
    with ProcessPoolExecutor(2, context, jobs.count, (started,), **workers) as processes:
        held = processes.submit(jobs.held).result()
        sessions = {session for _, session in processes.map(jobs.where, range(5))}
    _wait_until_gone(sessions)
    assert jobs.session() == mine
    assert mine not in sessions
    connection.close_pool()
    return {"held": held, "started": started.value}


def _wait_until_gone(sessions: set[int]) -> None:
    query = "SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)"
    with psycopg.connect(**connection.get_connection_params(), autocommit=True) as admin:
        wait_until(lambda: not admin.execute(query, [list(sessions)]).fetchall(), "the workers' sessions are gone")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_django_is_set_up_in_workers_that_begin_anew(method: str) -> None:
    told = in_fresh_process(started_anew, START_METHOD=method, RECYCLE=False)
    assert told["held"] == 0
    assert told["started"] in (1, 2)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="max_tasks_per_child is new in Python 3.11")
def test_recycled_workers_leave_nothing() -> None:
    told = in_fresh_process(started_anew, START_METHOD="spawn", RECYCLE=True)
    assert told["held"] == 0
    # Six jobs, two for each worker.
    assert told["started"] >= 3
