"""Dramatiq: a worker process with more threads than its pool has connections."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from example_project.processes import running
from tests.waiting import wait_until
from tests.workers.queues import SECONDS, Site, queue_site, redis_server
from tests.workers.site.queues.jobs import THREADS

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def site(server: Any, tmp_path: Path) -> Iterator[Site]:
    with redis_server(tmp_path) as url, queue_site(server, REDIS_URL=url) as site:
        yield site


@contextmanager
def workers(site: Site, log: Path, processes: int = 1, **environment: str) -> Iterator[None]:
    command: list[str | Path] = [
        Path(sys.executable).with_name("dramatiq"),
        f"--processes={processes}",
        f"--threads={THREADS}",
        "tests.workers.site.queues.dramatiq_app",
    ]
    with running("dramatiq", command, log=log, env=site.environment | environment):
        yield


def test_connections_go_round_among_threads(site: Site, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with workers(site, log):
        site.send("dramatiq", *["together"] * 2 * THREADS)
        reports = site.wait_for_reports(2 * THREADS, "together")
        assert len({report.thread for report in reports}) == THREADS
        # As many as the pool has.
        assert len({report.session for report in reports}) <= 2
        site.send("dramatiq", *["leave_open"] * THREADS)
        warning = "WARNING conn_hygiene.transactions: actor leave_open left a transaction open"
        wait_until(lambda: log.read_text().count(warning) == THREADS, "all are rolled back", SECONDS)
        site.wait_until_unlocked()
        site.send("dramatiq", *["wait_between_queries"] * THREADS)
        site.wait_for_reports(THREADS, "after the wait")
    site.wait_until_empty()


def test_killed_in_mid_transaction(site: Site, tmp_path: Path) -> None:
    with workers(site, tmp_path / "log", processes=2):
        site.send("dramatiq", "wait_in_transaction")
        os.kill(site.wait_for_lock(), signal.SIGKILL)
        site.wait_until_unlocked()
        # Dramatiq ends when one of its processes does, and takes the others with it.
        site.wait_until_empty()


def test_without_the_middleware_threads_keep_their_connections_until_somebody_waits(site: Site, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with workers(site, log, HYGIENE_MIDDLEWARE="off"):
        site.send("dramatiq", *["together"] * THREADS)
        reports = site.wait_for_reports(THREADS, "together")
        assert len({report.session for report in reports}) <= 2
