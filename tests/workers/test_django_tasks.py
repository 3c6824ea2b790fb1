"""Django's own tasks, in a backend whose worker is a process of its own: Huey's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.waiting import wait_until
from tests.workers.queues import SECONDS, Site, assert_no_session_is_shared, queue_site, run_huey
from tests.workers.site.queues.jobs import THREADS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("unmeasured")
pytest.importorskip("django.tasks", reason="Django has tasks from 6.0 on")


@pytest.fixture
def site(server: Any, tmp_path: Path) -> Iterator[Site]:
    with queue_site(server, HUEY_FILE=str(tmp_path / "huey.db")) as site:
        yield site


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_a_worker_process(site: Site, tmp_path: Path, kind: str) -> None:
    log = tmp_path / "log"
    with run_huey(site, log, kind, QUERY_ON_LOAD="1"):
        site.send("django_tasks", *["leave_open_inside"] * THREADS, *["report"] * THREADS)
        reports = site.wait_for_reports(THREADS)
        (parent,) = site.reports("load")
        if kind == "process":
            assert_no_session_is_shared([*reports, parent])
        wait_until(lambda: log.read_text().count("left a transaction open") == THREADS, "all are rolled back", SECONDS)
        site.wait_until_unlocked()
    site.wait_until_empty()
