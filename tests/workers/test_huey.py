"""Huey's consumer for Django, with processes and with threads."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.workers.queues import Site, assert_no_session_is_shared, queue_site, run_huey
from tests.workers.site.queues.jobs import THREADS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("unmeasured")


@pytest.fixture
def site(server: Any, tmp_path: Path) -> Iterator[Site]:
    with queue_site(server, HUEY_FILE=str(tmp_path / "huey.db")) as site:
        yield site


def test_processes_of_a_consumer_that_has_queried(site: Site, tmp_path: Path) -> None:
    with run_huey(site, tmp_path / "log", "process", QUERY_ON_LOAD="1"):
        site.send("huey", *["report"] * 8)
        reports = site.wait_for_reports(8)
        (parent,) = site.reports("load")
        assert_no_session_is_shared([*reports, parent])
        site.send("huey", "wait_in_transaction")
        os.kill(site.wait_for_lock(), signal.SIGKILL)
        site.wait_until_unlocked()
        assert parent.session in site.sessions()
    site.wait_until_empty()


def test_threads_that_are_more_than_the_pool_has(site: Site, tmp_path: Path) -> None:
    with run_huey(site, tmp_path / "log", "thread"):
        site.send("huey", *["together"] * 2 * THREADS)
        reports = site.wait_for_reports(2 * THREADS, "together")
        assert len({report.thread for report in reports}) == THREADS
    site.wait_until_empty()
