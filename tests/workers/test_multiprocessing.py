"""Processes that Python's own modules start from a parent that is in a transaction, with cursors and threads."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.processes import ROOT, run
from tests.waiting import wait_until

METHODS = [method for method in ("fork", "forkserver", "spawn") if method in multiprocessing.get_all_start_methods()]
# Python warns about a fork beside threads, of which a parent with a pool has some.
THREADS = ["-W", "ignore:.*multi-threaded, use of fork:DeprecationWarning"]


def start(server: Any, *way: str, **environment: str) -> dict[str, list[int]]:
    """Run tests/workers/forking.py and return what it has seen."""
    process = run(*THREADS, "-m", "tests.workers.forking", *way, **server.environment, **environment)
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr, process.stderr
    told: dict[str, list[int]] = json.loads(process.stdout)
    return told


def check(server: Any, told: dict[str, list[int]]) -> None:
    assert told["after"] == told["before"]
    assert len(set(told["before"])) == 2
    assert not set(told["before"]) & set(told["children"])
    wait_until(lambda: not server.sessions(), "all sessions are gone")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ["Process", "Pool", "ProcessPoolExecutor", "futures.ProcessPoolExecutor"])
def test_start_methods(server: Any, way: str, method: str) -> None:
    told = start(server, way, method)
    check(server, told)
    if way == "Process":
        assert len(set(told["children"])) == 2
    if way == "futures.ProcessPoolExecutor":
        # The server counts sessions whose client went away without a word, and logs each.
        abandoned = "SELECT sum(sessions_abandoned) FROM pg_stat_database WHERE datname = %s"
        name = conninfo_to_dict(server.environment["DATABASE_URL"])["dbname"]
        assert server.watcher.execute(abandoned, [name]).fetchone() == (0,)


@pytest.mark.parametrize(
    ("method", "beside"),
    [*((method, False) for method in METHODS), *((method, True) for method in METHODS if method != "forkserver")],
)
def test_workers_whose_parent_is_killed_finish_their_jobs_and_end(server: Any, method: str, beside: bool) -> None:
    script = f"from tests.workers import forking; forking.killed({method!r}, beside={beside})"
    with psycopg.connect(server.environment["DATABASE_URL"]) as other:
        other.execute("CREATE TABLE written (n int)")
        other.commit()
        other.execute("LOCK TABLE written")
        with subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=os.environ | server.environment,
            stdin=subprocess.PIPE,
            start_new_session=True,
        ) as parent:
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"
            name = other.info.dbname
            wait_until(lambda: server.watcher.execute(waiting, [name]).fetchone() == (1,), "a worker waits", 60)
            parent.communicate(timeout=60)
        assert parent.returncode == -signal.SIGKILL
        other.rollback()
        try:
            wait_until(lambda: len(server.sessions()) == 1, "the workers' sessions are gone")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)
        assert other.execute("SELECT n FROM written").fetchall() == [(2,)]


@pytest.mark.parametrize("leaving", ["os._exit", "sys.exit"])
def test_plain_forks(server: Any, leaving: str) -> None:
    told = start(server, leaving)
    check(server, told)
    assert len(set(told["children"])) == 2


@pytest.mark.parametrize("way", ["Pool", "ProcessPoolExecutor", "futures.ProcessPoolExecutor"])
def test_by_hand_without_the_application(server: Any, way: str) -> None:
    check(server, start(server, way, "fork", CONN_HYGIENE="off"))
