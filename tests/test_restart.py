"""A PostgreSQL server that restarts in the middle of traffic."""

from __future__ import annotations

import signal
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.db import DatabaseError, connections, transaction
from psycopg.conninfo import conninfo_to_dict

from conn_hygiene import closing_connections, signals
from example_project.embedded import _Server
from tests.test_forks import remade
from tests.test_left_open import events_of
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# One with a pool, and one that keeps its connections without.
ALIASES = ["small", "persistent"]

pytestmark = [pytest.mark.django_db(transaction=True, databases=ALIASES), pytest.mark.slow]

every_alias = pytest.mark.parametrize("alias", ALIASES)


class RestartableServer(_Server):
    """A server of the test's own, which comes back under the same address and with the same data."""

    def restart(self) -> None:
        """Restart as ``pg_ctl restart`` does by default: sessions are ended, and told so."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait()
        assert self._start_on(int(self.address["PORT"]))

    @property
    def address(self) -> dict[str, str]:
        parts: dict[str, Any] = conninfo_to_dict(self.url)
        return {"HOST": parts["host"], "PORT": parts["port"], "USER": parts["user"], "NAME": parts["dbname"]}

    def start(self) -> str:
        self.url = super().start()
        return self.url


@pytest.fixture
def server(transactional_db: None) -> Iterator[RestartableServer]:
    """Return the server behind both aliases while the test runs."""
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="conn-hygiene-", ignore_cleanup_errors=True) as directory:
        server = RestartableServer(Path(directory))
        server.start()
        try:
            with behind("small", server), behind("persistent", server):
                run("small", "CREATE TABLE entries (n int)")
                yield server
        finally:
            server.stop()


@contextmanager
def behind(alias: str, server: RestartableServer) -> Iterator[None]:
    usual: Any = connections[alias]
    usual.close()
    usual.close_pool()
    with remade(alias, **server.address, PASSWORD=""):
        yield
        remade_one: Any = connections[alias]
        remade_one.close()
        remade_one.close_pool()


def run(alias: str, sql: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


@every_alias
def test_a_thread_that_was_idle_meanwhile_does_not_notice(alias: str, server: RestartableServer) -> None:
    before = run(alias, "SELECT pg_backend_pid()")
    with connections[alias].cursor() as cursor:
        # Those that the pool opens, or somebody looks at, are in nobody's list for that moment.
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
        there = {pid for (pid,) in cursor}
    with events_of(signals.connection_replaced) as events:
        server.restart()
        assert run(alias, "SELECT pg_backend_pid()") != before
    # The first may be another one, if the reaper has seen the end of the thread's own before the thread did.
    assert [event["server_pid"] in there for event in events][:1] == [True]


@every_alias
def test_a_transaction_fails_and_leaves_nothing_half_done(alias: str, server: RestartableServer) -> None:
    def write_twice() -> None:
        with transaction.atomic(using=alias):
            run(alias, "INSERT INTO entries VALUES (1)")
            server.restart()
            run(alias, "INSERT INTO entries VALUES (2)")

    with pytest.raises(DatabaseError):
        write_twice()
    assert run(alias, "SELECT count(*) FROM entries") == 0


class Traffic:
    """Threads that do the same over and over, until they are told to stop."""

    def __init__(self, *work: Callable[[], object]) -> None:
        self.back = threading.Event()
        self.stop = threading.Event()
        self.done = [0] * len(work)
        # What failed though it began when the server was back.
        self.failures: list[BaseException] = []
        self.threads = [threading.Thread(target=self._run, args=each) for each in enumerate(work)]
        for thread in self.threads:
            thread.start()

    def _run(self, number: int, work: Callable[[], object]) -> None:
        with closing_connections():
            while not self.stop.is_set():
                began_late = self.back.is_set()
                try:
                    work()
                    self.done[number] += 1
                except DatabaseError as error:
                    if began_late:
                        self.failures.append(error)

    def wait_for_more(self) -> None:
        """Return when each thread has got its work done a few more times."""
        goal = [number + 5 for number in self.done]
        wait_until(lambda: all(now >= then for now, then in zip(self.done, goal, strict=True)), "all go on", seconds=60)

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


def test_traffic_goes_on_when_the_server_is_back(server: RestartableServer) -> None:
    def query(alias: str) -> Callable[[], object]:
        return lambda: run(alias, "SELECT count(*) FROM entries")

    def transact(alias: str) -> Callable[[], object]:
        def work() -> None:
            with transaction.atomic(using=alias):
                run(alias, "INSERT INTO entries VALUES (1)")
                run(alias, "INSERT INTO entries VALUES (-1)")

        return work

    traffic = Traffic(*(kind(alias) for kind in (query, transact) for alias in ALIASES))
    try:
        traffic.wait_for_more()
        server.restart()
        traffic.back.set()
        traffic.wait_for_more()
    finally:
        traffic.end()
    assert traffic.failures == []
    assert run("persistent", "SELECT sum(n) FROM entries") == 0
    pool: Any = connections["small"].pool
    run("small", "SELECT 1")
    connections["small"].close()
    wait_until(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"], "the pool is whole")
