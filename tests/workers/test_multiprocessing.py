"""Processes that Python's own modules start from a parent that is in a transaction, with cursors and threads."""

from __future__ import annotations

import json
import multiprocessing
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.processes import run
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


@pytest.mark.parametrize("method", METHODS)
def test_workers_take_leave_of_the_server(server: Any, method: str) -> None:
    """The server counts sessions whose client went away without a word, and logs each."""
    check(server, start(server, "futures.ProcessPoolExecutor", method))
    abandoned = "SELECT sum(sessions_abandoned) FROM pg_stat_database WHERE datname = %s"
    assert server.watcher.execute(
        abandoned, [conninfo_to_dict(server.environment["DATABASE_URL"])["dbname"]]
    ).fetchone() == (0,)


@pytest.mark.parametrize("leaving", ["os._exit", "sys.exit"])
def test_plain_forks(server: Any, leaving: str) -> None:
    told = start(server, leaving)
    check(server, told)
    assert len(set(told["children"])) == 2


@pytest.mark.parametrize("way", ["Pool", "ProcessPoolExecutor", "futures.ProcessPoolExecutor"])
def test_by_hand_without_the_application(server: Any, way: str) -> None:
    check(server, start(server, way, "fork", CONN_HYGIENE="off"))
