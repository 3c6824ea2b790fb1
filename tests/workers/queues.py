"""What the tests of task queues share: a Redis of one's own, and a site whose jobs say who ran them."""

from __future__ import annotations

import shutil
import socket
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest

from example_project.processes import HOST, free_port, running
from tests.processes import run
from tests.waiting import wait_until
from tests.workers.site.queues.jobs import THREADS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.workers.conftest import Server

# A job that ran has said so by then, on the busiest machine; one that is lost is waited for as long.
SECONDS = 30


@contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """Run a Redis server that keeps what it has in memory, and yield its URL. Skip the test where there is none."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not on PATH")
    port = free_port()
    command = [program, "--bind", HOST, "--port", str(port), "--dir", str(directory), "--save", ""]
    with running("redis-server", command, log=directory / "redis.log") as child:

        def answers() -> bool:
            child.check()
            with suppress(OSError), socket.create_connection((HOST, port), timeout=1) as client:
                client.sendall(b"PING\r\n")
                return client.recv(7) == b"+PONG\r\n"
            return False

        wait_until(answers, "redis-server answers")
        yield f"redis://{HOST}:{port}/0"


class Report(NamedTuple):
    """Who did a job."""

    job: str
    process: int
    thread: int
    session: int


def assert_no_session_is_shared(reports: list[Report]) -> None:
    """A process may have several sessions; a session has one process."""
    processes = {(report.session, report.process) for report in reports}
    assert len(processes) == len({report.session for report in reports}), reports


class Site:
    """The site in tests/workers/site/queues: puts jobs into its queues, and reads what they report."""

    def __init__(self, server: Server, connection: psycopg.Connection[Any], environment: dict[str, str]) -> None:
        self.environment = environment
        self._server = server
        self._connection = connection

    def send(self, queue: str, *jobs: str) -> None:
        """Put *jobs* into *queue*, from a process of the site's own."""
        process = run("-m", "tests.workers.site.queues.send", queue, *jobs, **self.environment)
        assert process.returncode == 0, process.stderr

    def reports(self, job: str = "report") -> list[Report]:
        """Return what *job* has reported so far, oldest first."""
        rows = self._connection.execute("SELECT * FROM report WHERE job = %s", [job])
        return [Report(*row) for row in rows]

    def wait_for_reports(self, count: int, job: str = "report") -> list[Report]:
        """Return the reports of *job* as soon as there are *count*."""
        wait_until(lambda: len(self.reports(job)) >= count, f"{job!r} has reported {count} times", SECONDS)
        found = self.reports(job)
        assert len(found) == count
        return found

    def locks(self) -> dict[int, int]:
        """Return the locks that jobs hold in their transactions: the session that has it, by the job's process."""
        query = (
            "SELECT objid::int, pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return dict(self._connection.execute(query).fetchall())

    def sessions(self) -> set[int]:
        """Return the server's process ids of the site's sessions."""
        return self._server.sessions() - {self._connection.info.backend_pid}

    def wait_for_lock(self) -> int:
        """Return the id of the process that holds a lock as soon as there is one."""
        wait_until(self.locks, "a job has its lock", SECONDS)
        (process,) = self.locks()
        return process

    def wait_until_unlocked(self) -> None:
        """Return when no job holds a lock."""
        wait_until(lambda: not self.locks(), "no job has a lock", SECONDS)

    def wait_until_empty(self) -> None:
        """Return when no session of the site is left on the server."""
        wait_until(lambda: not self.sessions(), "all sessions are gone", SECONDS)


@contextmanager
def queue_site(server: Server, **environment: str) -> Iterator[Site]:
    """Yield a site in *server*'s database, with *environment* besides."""
    settings = "tests.workers.site.queues.settings"
    environment = {**server.environment, "DJANGO_SETTINGS_MODULE": settings, **environment}
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("CREATE TABLE report (job text, process int, thread bigint, session int)")
        yield Site(server, connection, environment)


@contextmanager
def run_huey(site: Site, log: Path, kind: str, **environment: str) -> Iterator[None]:
    """Run Huey's consumer, whose workers are of *kind*: "process" or "thread"."""
    command = [sys.executable, "-m", "django", "run_huey", f"--workers={THREADS}", f"--worker-type={kind}"]
    with running("run_huey", command, log=log, env=site.environment | environment):
        yield
