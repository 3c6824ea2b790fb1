"""django-q2 with its ORM broker: a cluster whose guard has queried before it forks each of its workers."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from example_project.processes import running
from tests.processes import run
from tests.workers.queues import Site, assert_no_session_is_shared, queue_site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("unmeasured")


@pytest.fixture
def site(server: Any) -> Iterator[Site]:
    with queue_site(server) as site:
        process = run("-m", "django", "migrate", "--verbosity=0", **site.environment)
        assert process.returncode == 0, process.stderr
        yield site


def test_each_process_has_sessions_of_its_own(site: Site, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "django", "qcluster"]
    environment = site.environment | {"QUERY_ON_LOAD": "1"}
    with running("qcluster", command, log=tmp_path / "log", env=environment):
        site.send("django_q", *["report"] * 8)
        reports = site.wait_for_reports(8)
        (parent,) = site.reports("load")
        # Each worker ends after two tasks.
        assert len({report.process for report in reports}) >= 4
        assert_no_session_is_shared([*reports, parent])
        site.send("django_q", "wait_in_transaction")
        os.kill(site.wait_for_lock(), signal.SIGKILL)
        site.wait_until_unlocked()
        site.send("django_q", *["leave_open_inside"] * 2, *["report"] * 4)
        site.wait_for_reports(12)
        site.wait_until_unlocked()
        assert parent.session in site.sessions()
    site.wait_until_empty()
