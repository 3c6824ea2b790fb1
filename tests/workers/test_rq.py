"""RQ: a worker that forks a work horse for each job, and has used the database before."""

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
from tests.workers.queues import SECONDS, Site, assert_no_session_is_shared, queue_site, redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("unmeasured")


@pytest.fixture
def site(server: Any, tmp_path: Path) -> Iterator[Site]:
    with redis_server(tmp_path) as url, queue_site(server, REDIS_URL=url) as site:
        yield site


@contextmanager
def worker(site: Site, log: Path, kind: str = "Worker", **environment: str) -> Iterator[None]:
    command: list[str | Path] = [
        Path(sys.executable).with_name("rq"),
        "worker",
        f"--url={site.environment['REDIS_URL']}",
        f"--worker-class=tests.workers.site.queues.rq_worker.{kind}",
    ]
    with running("rq", command, log=log, env=site.environment | environment):
        yield


def test_a_session_for_each_job_beside_the_workers_own(site: Site, tmp_path: Path) -> None:
    with worker(site, tmp_path / "log"):
        site.send("rq", *["report"] * 4)
        jobs = site.wait_for_reports(4)
        parent = site.wait_for_reports(8, "parent")
        assert len({job.process for job in jobs}) == 4
        assert len({each.process for each in parent}) == len({each.session for each in parent}) == 1
        assert_no_session_is_shared([*jobs, *parent])
    site.wait_until_empty()


def test_a_transaction_ends_with_its_job(site: Site, tmp_path: Path) -> None:
    with worker(site, tmp_path / "log"):
        site.send("rq", "leave_open", "report")
        site.wait_for_reports(1)
        site.wait_until_unlocked()
        site.send("rq", "wait_in_transaction", "report")
        os.kill(site.wait_for_lock(), signal.SIGKILL)
        site.wait_for_reports(2)
        site.wait_until_unlocked()
        assert len({each.session for each in site.wait_for_reports(8, "parent")}) == 1
    site.wait_until_empty()


def test_without_the_toolkit_a_transaction_stays_with_the_worker(site: Site, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with worker(site, log, CONN_HYGIENE="off"):
        site.send("rq", "wait_in_transaction", "report")
        # By then it has read all that the server has to say.
        wait_until(lambda: "waiting with a lock" in log.read_text(), "the job is in its transaction", SECONDS)
        os.kill(site.wait_for_lock(), signal.SIGKILL)
        # RQ takes the second job for done. It is part of a transaction that nobody will ever commit.
        wait_until(lambda: "jobs.report() job" in log.read_text(), "the second job is done", SECONDS)
        (parent,) = site.reports("parent")
        assert set(site.locks().values()) == {parent.session}
        assert site.reports() == []


def test_in_one_process_closing_connections_ends_it(site: Site, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with worker(site, log, "SimpleWorker"):
        site.send("rq", "leave_open_inside", "report")
        site.wait_for_reports(1)
        assert not site.locks()
        assert "left a transaction open" in log.read_text()
    site.wait_until_empty()
