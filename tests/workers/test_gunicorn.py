"""gunicorn, with and without the application loaded before the fork."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from example_project.processes import HOST, free_port, running
from tests.waiting import wait_until
from tests.workers.conftest import ask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.workers.conftest import Server

WORKERS = ["sync", "gthread", "asgi"]

# As in docs/how-to/gunicorn.rst.
HOOKS = """
from conn_hygiene.contrib.gunicorn import post_fork, pre_fork, worker_exit
"""

# One of a user's own, from which the toolkit's is called.
OWN_HOOK = """
import os
import time

from conn_hygiene.contrib import gunicorn as connections


def worker_exit(server, worker):
    connections.worker_exit(server, worker)
    deadline = time.monotonic() + 30
    while not os.path.exists(os.environ["LOOKED"]) and time.monotonic() < deadline:
        time.sleep(0.01)
"""


class Gunicorn:
    """A gunicorn that serves the site."""

    def __init__(self, port: int, child: Any) -> None:
        self.port = port
        self.child = child

    def ask(self) -> dict[str, Any]:
        return ask(self.port)

    def ask_all(self, workers: int) -> dict[int, set[int]]:
        """Return the sessions that each of so many worker processes has answered from."""
        sessions: dict[int, set[int]] = {}

        def crowd() -> bool:
            with ThreadPoolExecutor(8) as executor:
                for answer in executor.map(lambda _: self.ask(), range(8)):
                    sessions.setdefault(answer["process"], set()).add(answer["session"])
            return len(sessions) >= workers

        wait_until(crowd, f"{workers} workers have answered", seconds=30)
        return sessions

    def session_of_master(self) -> int:
        """Return the session in which the master queried while it loaded the application."""
        found = re.search(r"Loaded by .*'session': (\d+)", self.child.log.read_text())
        assert found, self.child.tail()
        return int(found[1])


@pytest.fixture
def gunicorn(server: Server, tmp_path: Path) -> Any:
    """Return a context manager that runs gunicorn with the given arguments."""

    @contextmanager
    def run(
        *arguments: str, worker: str = "gthread", application: str | None = None, **environment: str
    ) -> Iterator[Gunicorn]:
        port = free_port()
        application = application or f"tests.workers.site.{'asgi' if worker == 'asgi' else 'wsgi'}:application"
        command = [sys.executable, "-m", "gunicorn", application, f"--bind={HOST}:{port}"]
        command += [f"--worker-class={worker}", "--no-control-socket", "--graceful-timeout=5", *arguments]
        with running("gunicorn", command, log=tmp_path / "log", env=server.environment | environment) as child:
            child.wait_until_ready(port, "/alive/")
            yield Gunicorn(port, child)

    return run


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("preload", [True, False], ids=["preloaded", "loaded by each"])
def test_each_worker_has_sessions_of_its_own(gunicorn: Any, server: Server, worker: str, preload: bool) -> None:
    with gunicorn("--workers=2", *["--preload"] * preload, worker=worker, QUERY_ON_LOAD="1" * preload) as site:
        first, second = list(site.ask_all(2).values())[:2]
        assert not first & second
        if preload:
            assert site.session_of_master() in server.sessions() - first - second
    wait_until(lambda: not server.sessions(), "all sessions are gone")


def test_the_master_keeps_its_session_while_workers_come_and_go(gunicorn: Any, server: Server) -> None:
    with gunicorn("--workers=1", "--preload", "--max-requests=1", worker="sync", QUERY_ON_LOAD="1") as site:
        master = site.session_of_master()
        of_master = server.sessions()
        answers: list[dict[str, Any]] = []

        def again() -> bool:
            try:
                answers.append(site.ask())
            except OSError:
                # The one worker is on its way out, and the next one not there yet.
                return False
            return len({answer["process"] for answer in answers}) >= 4

        wait_until(again, "four workers have answered", seconds=60)
        assert not of_master & {answer["session"] for answer in answers}
        assert master in server.sessions()


def test_a_reload_leaves_no_session_of_the_old_workers(gunicorn: Any, server: Server) -> None:
    with gunicorn("--workers=2", "--preload", QUERY_ON_LOAD="1") as site:
        old = site.ask_all(2)
        site.child.process.send_signal(signal.SIGHUP)
        wait_until(lambda: site.ask()["process"] not in old, "a new worker answers", seconds=30)
        wait_until(lambda: not server.sessions() & set().union(*old.values()), "the old sessions are gone", seconds=30)
        assert site.session_of_master() in server.sessions()


@pytest.mark.parametrize("worker", WORKERS)
def test_with_the_hooks_the_master_holds_nothing(gunicorn: Any, server: Server, worker: str, tmp_path: Path) -> None:
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(HOOKS)
    arguments = [f"--config={config}", "--workers=2", "--preload"]
    with gunicorn(*arguments, worker=worker, QUERY_ON_LOAD="1", CONN_HYGIENE='{"DISCARD_AFTER_FORK": false}') as site:
        first, second = list(site.ask_all(2).values())[:2]
        assert not first & second
        assert site.session_of_master() not in server.sessions()
    assert "Traceback" not in (log := (tmp_path / "log").read_text()), log
    assert "multi-threaded" not in log
    wait_until(lambda: not server.sessions(), "all sessions are gone")


def test_a_worker_that_exits_closes_its_pool(gunicorn: Any, server: Server, tmp_path: Path) -> None:
    """Seen while the process is still there: its end would end the sessions, too."""
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(OWN_HOOK)
    looked = tmp_path / "looked"
    with gunicorn(f"--config={config}", "--workers=1", "--graceful-timeout=60", LOOKED=str(looked)) as site:
        process = site.ask()["process"]
        site.child.process.terminate()
        try:
            wait_until(lambda: not server.sessions(), "all sessions are gone")
            os.kill(process, 0)
        finally:
            looked.touch()
        site.child.process.wait(30)
    assert "Traceback" not in (log := (tmp_path / "log").read_text()), log
    assert server.abandoned() == 0


def test_a_preloaded_master_that_has_queried_stops_nobody(gunicorn: Any, server: Server) -> None:
    """With nothing but INSTALLED_APPS changed, all of 60 requests are answered, each worker from its own sessions."""
    with gunicorn("--workers=4", "--threads=4", "--preload", QUERY_ON_LOAD="1") as site:
        of_master = server.sessions()
        with ThreadPoolExecutor(12) as executor:
            answers = list(executor.map(lambda _: site.ask(), range(60)))
        assert len(answers) == 60
        owners = {answer["session"]: answer["process"] for answer in answers}
        assert all(owners[answer["session"]] == answer["process"] for answer in answers)
        assert not of_master & owners.keys()


def test_without_the_toolkit_nobody_gets_a_session(gunicorn: Any, server: Server) -> None:
    """A request waits in vain for a pool without threads, or worse, is let into a session of the master's."""
    with (
        gunicorn("--workers=2", "--threads=4", "--preload", QUERY_ON_LOAD="1", CONN_HYGIENE="off") as site,
        ThreadPoolExecutor(4) as executor,
    ):
        of_master = server.sessions()
        for attempt in [executor.submit(site.ask) for _ in range(4)]:
            assert attempt.exception() or attempt.result()["session"] in of_master


def test_post_fork_alone_discards_where_the_setting_is_off(gunicorn: Any, server: Server, tmp_path: Path) -> None:
    config = tmp_path / "gunicorn.conf.py"
    config.write_text("from conn_hygiene.contrib.gunicorn import post_fork")
    arguments = [f"--config={config}", "--workers=2", "--preload"]
    with gunicorn(*arguments, QUERY_ON_LOAD="1", CONN_HYGIENE='{"DISCARD_AFTER_FORK": false}') as site:
        of_master = site.session_of_master()
        first, second = list(site.ask_all(2).values())[:2]
        assert not first & second
        assert of_master in server.sessions() - first - second


def test_a_transaction_that_the_master_leaves_open_keeps_no_worker_from_its_start(
    gunicorn: Any, server: Server, tmp_path: Path
) -> None:
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(HOOKS)
    opening = "from django.db import transaction; transaction.atomic().__enter__()"
    module = tmp_path / "leaves_open.py"
    module.write_text(f"from tests.workers.site.wsgi import application\n{opening}\n")
    arguments = [f"--config={config}", f"--pythonpath={tmp_path}", "--workers=1", "--preload"]
    with gunicorn(*arguments, application="leaves_open") as site:
        assert site.ask()["session"] in server.sessions()
    assert (
        "stay open: close_all_before_fork() was called inside atomic() on 'default'" in (tmp_path / "log").read_text()
    )


_STATUS = (
    "import django; django.setup(); from django.core.management import call_command as c; c('connections', 'status')"
)


def test_status_names_the_request_in_each_worker(
    gunicorn: Any, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, from another process, and nothing of a worker that was killed."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def status() -> str:
        process = subprocess.run(
            [sys.executable, "-c", _STATUS],
            env=os.environ | server.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return process.stdout

    database = psycopg.conninfo.make_conninfo(server.environment["DATABASE_URL"])
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event = 'advisory'"
    with (
        gunicorn("--workers=2", "--preload", worker="sync", QUERY_ON_LOAD="1") as site,
        ThreadPoolExecutor(2) as executor,
        psycopg.connect(database, autocommit=True) as blocker,
    ):
        # Both workers have loaded the application: else, one of them would serve both.
        site.ask_all(2)
        blocker.execute("SELECT pg_advisory_lock(1)")
        answers = [executor.submit(ask, site.port, f"/wait/{name}/", seconds=60) for name in ("first", "second")]
        wait_until(
            lambda: server.watcher.execute(waiting, [server.database]).fetchone() == (2,), "both wait", seconds=30
        )
        told = status()
        about = re.findall(
            r"^\d+: GET /wait/(\w+)/; in use, held .*\n"
            r" +in thread MainThread of process (\d+) \(gunicorn .*\)\n"
            r" +its transaction began at .*/site/urls.py:\d+ in wait\n +its thread is at .*/site/urls.py:\d+ in wait$",
            told,
            re.MULTILINE,
        )
        assert sorted(name for name, _ in about) == ["first", "second"], told
        processes = {name: int(pid) for name, pid in about}
        assert len(set(processes.values())) == 2

        os.kill(processes["first"], signal.SIGKILL)
        wait_until(answers[0].done, "its client knows", seconds=30)
        told = status()
        assert "/wait/first/" not in told
        assert f"process {processes['first']}" not in told
        assert re.search(rf"GET /wait/second/; .*\n +in thread MainThread of process {processes['second']} \(", told)
        blocker.execute("SELECT pg_advisory_unlock(1)")
        assert answers[1].result()["process"] == processes["second"]
