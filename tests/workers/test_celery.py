"""Celery: workers of each kind, started by its command line, with the fixup in conn_hygiene.contrib.celery."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import kombu.pools
import pytest
from asgiref.sync import sync_to_async
from celery import Celery  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry, generate_latest, multiprocess
from redis import Redis

from conn_hygiene.contrib import celery as contrib
from example_project.processes import running
from tests.test_prometheus_files import samples
from tests.waiting import wait_until
from tests.workers.queues import redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from example_project.processes import Child
    from tests.workers.conftest import Server

# A task that ran has said so by then, on the busiest machine; one that is lost is waited for as long.
SECONDS = 60
TASKS = "tests.workers.site.celery_tasks"


def test_what_a_task_leaves_running_in_an_event_loop_goes_on() -> None:
    loop, over = asyncio.new_event_loop(), threading.Event()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def late() -> int:
        await asyncio.to_thread(over.wait)
        return await sync_to_async(lambda: 42)()

    try:
        with contrib.jobs._thread_for_async("conn-hygiene-task", "task late", contrib.logger):
            late_on = asyncio.run_coroutine_threadsafe(late(), loop)
        over.set()
        assert late_on.result(SECONDS) == 42
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Worker:
    """A worker, as its clients see it, and who reads its log."""

    def __init__(self, child: Child, client: Celery, results: Redis, log: Path) -> None:
        self._child = child
        self._client = client
        self._results = results
        self._log = log

    def send(self, task: str, *arguments: Any) -> str:
        """Return the id of a new task."""
        task_id: str = self._client.send_task(f"{TASKS}.{task}", arguments).id
        return task_id

    def outcome(self, task_id: str) -> dict[str, Any]:
        """Wait until the task is done, and return what Celery keeps of it."""
        # Celery's own client subscribes to results, and complains when it is collected after the server has ended.
        key = f"celery-task-meta-{task_id}"

        def is_done() -> bool:
            self._child.check()
            return bool(self._results.exists(key))

        wait_until(is_done, f"{key} is there", SECONDS)
        outcome: dict[str, Any] = json.loads(self._results.get(key))  # type: ignore[arg-type]
        return outcome

    def result(self, task_id: str) -> Any:
        outcome = self.outcome(task_id)
        assert outcome["status"] == "SUCCESS", outcome
        return outcome["result"]

    def run(self, task: str) -> Any:
        return self.result(self.send(task))

    def meet(self, place: Path, number: int) -> list[dict[str, int]]:
        """Have *number* tasks run side by side; return who ran them."""
        place.mkdir()
        tasks = [self.send("meet", str(place), number) for _ in range(number)]
        return [self.result(task) for task in tasks]

    def found(self, pattern: str) -> list[str]:
        """Return what matches *pattern* in the log."""
        return re.findall(pattern, self._log.read_text())


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    with redis_server(tmp_path) as url:
        yield url


@contextmanager
def worker(server: Server, broker: str, log: Path, *options: str, **environment: str) -> Iterator[Worker]:
    """Run a worker, and shut it down warmly at the end; then nothing of it is left on the server."""
    command = [sys.executable, "-m", "celery", "-A", "tests.workers.site.celery_app", "worker", "--without-mingle"]
    environment = server.environment | {"REDIS_URL": broker, "DATABASE_POOL": "1"} | environment
    with (
        Celery("client", broker=broker, fixups=[], set_as_current=False) as client,
        Redis.from_url(broker) as results,
        running("celery", [*command, "--without-gossip", *options], log=log, env=environment) as child,
    ):
        yield Worker(child, client, results, log)
        child.process.terminate()
        assert child.process.wait(SECONDS) == 0
        wait_until(lambda: not server.sessions(), "all sessions are gone", SECONDS)
        # Closing the client leaves its connections to the garbage collector.
        client.pool.force_close_all()
        kombu.pools.reset()


def test_prefork(server: Server, broker: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = {"QUERY_BEFORE_FORK": "1", "QUERY_AFTER_FORK": "1"}
    with worker(server, broker, log, "--concurrency=2", **environment) as site:
        first, second = site.meet(tmp_path / "place", 2)
        sessions = {each["process"]: each["session"] for each in (first, second)}
        assert len(set(sessions.values())) == 2
        # All their tasks are served by one session, and so by one pool, which Celery would close after each.
        for each in [site.run("who") for _ in range(6)]:
            assert sessions[each["process"]] == each["session"]
        assert {int(session) for session in site.found(r"Started with session (\d+)")} == set(sessions.values())
        # What the parent has is its own, and lives on.
        (parent,) = {int(session) for session in site.found(r"Forked by session (\d+)")}
        assert server.sessions() == {parent, *sessions.values()}
    assert site.found(r"ends with pools (.*)") == ["[]"] * 3


def test_max_tasks_per_child(server: Server, broker: str, tmp_path: Path) -> None:
    options = ["--concurrency=1", "--max-tasks-per-child=2"]
    environment = {"QUERY_BEFORE_FORK": "1", "DISCARD_AFTER_FORK": "off"}
    with worker(server, broker, tmp_path / "log", *options, **environment) as site:
        ran = [site.run("who") for _ in range(3)]
        assert ran[0] == ran[1]
        assert ran[0]["process"] != ran[2]["process"]
        (parent,) = {int(session) for session in site.found(r"Forked by session (\d+)")}
        wait_until(lambda: server.sessions() == {parent, ran[2]["session"]}, "the first one's session is gone", SECONDS)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_its_processes_have_counted_stays(server: Server, broker: str, tmp_path: Path, method: str) -> None:
    files = tmp_path / "metrics"
    files.mkdir()
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(files), "START_METHOD": method}
    with worker(server, broker, tmp_path / "log", "--concurrency=1", **environment) as site:
        for _ in range(3):
            site.run("who")
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(files))
    left = samples(generate_latest(registry).decode())
    assert left["conn_hygiene_checkouts_total"]["default",] == left["conn_hygiene_hold_seconds_count"]["default",] == 3
    assert not any(value for name in left if "_pool_size" in name for value in left[name].values())


@pytest.mark.parametrize(
    ("pool", "environment"),
    [
        ("prefork", {}),
        ("prefork", {"START_METHOD": "spawn"}),
        ("threads", {}),
        # Without the application in INSTALLED_APPS.
        ("solo", {"CONN_HYGIENE": "off"}),
    ],
)
def test_what_a_task_leaves(
    server: Server, broker: str, tmp_path: Path, pool: str, environment: dict[str, str]
) -> None:
    options = [f"--pool={pool}", "--concurrency=1"]
    with worker(server, broker, tmp_path / "log", *options, **environment) as site:
        task = site.send("held_in_transaction")
        assert site.result(task) == [f"task {TASKS}.held_in_transaction[{task}]"]

        session = site.run("leave_open")
        assert site.outcome(site.send("fail"))["result"]["exc_message"] == [session]
        assert site.run("who")["session"] == session
        assert site.run("held") == []

        task = site.send("run_async")
        assert site.result(task) == [f"task {TASKS}.run_async[{task}]"]
        assert site.run("held") == []
        assert site.run("who")["session"] == session

        assert site.run("run_async_to_sync")
        assert site.run("run_eagerly")
    names = site.found(rf"WARNING conn_hygiene.transactions: task {TASKS}.(\w+)\[[\w-]+\] left a transaction open")
    assert names == ["leave_open", "run_async"]
    assert site.found(r"ends with pools (.*)") == ["[]"] * (2 if pool == "prefork" else 1)


def test_more_threads_than_connections(server: Server, broker: str, tmp_path: Path) -> None:
    with worker(server, broker, tmp_path / "log", "--pool=threads", "--concurrency=4") as site:
        ran = site.meet(tmp_path / "place", 4)
        assert len({each["thread"] for each in ran}) == 4
        assert len({each["session"] for each in ran}) == 1
