"""A scrape of gunicorn with two workers, in the multiprocess mode of prometheus_client."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest, multiprocess

from example_project.processes import HOST, free_port, running
from tests.test_prometheus_files import samples
from tests.waiting import wait_until
from tests.workers.conftest import ask

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.workers.conftest import Server

# As in docs/how-to/prometheus.rst.
CONFIG = """
from conn_hygiene.contrib.gunicorn import child_exit
"""

# The master has counted something itself, and has the thread that writes it.
PRELOADED = """
from tests.workers.site.wsgi import application
from tests.workers.site import metered, urls

urls.who()
"""


class Site:
    """A gunicorn, and what was asked of it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.processes: list[int] = []
        self.counted = 0

    def ask(self) -> None:
        with ThreadPoolExecutor(8) as executor:
            self.processes += executor.map(lambda _: ask(self.port)["process"], range(8))

    def scrape(self) -> Any:
        with urllib.request.urlopen(f"http://{HOST}:{self.port}/metrics/", timeout=20) as response:
            assert response.status == 200
            return samples(response.read().decode())

    def number(self, name: str) -> float:
        return float(self.scrape()[f"conn_hygiene_{name}"].get(("default",), 0))


@pytest.fixture(params=[True, False], ids=["preloaded", "loaded by each"])
def site(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    port, files = free_port(), tmp_path / "metrics"
    files.mkdir()
    (tmp_path / "gunicorn.conf.py").write_text(CONFIG)
    (tmp_path / "preloaded.py").write_text(PRELOADED)
    application = ["preloaded", "--preload"] if request.param else ["tests.workers.site.wsgi"]
    command = [sys.executable, "-m", "gunicorn", *application, f"--bind={HOST}:{port}", "--workers=2", "--threads=4"]
    command += [f"--pythonpath={tmp_path}", f"--config={tmp_path}/gunicorn.conf.py", "--no-control-socket"]
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(files), "URLS": "tests.workers.site.metered"}
    with running("gunicorn", command, log=tmp_path / "log", env=server.environment | environment) as child:
        child.wait_until_ready(port, "/alive/")
        site = Site(port)
        yield site
    # All have ended in good order: what they counted stays, and they have no pools.
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(files))
    left = samples(generate_latest(registry).decode())
    assert left["conn_hygiene_checkouts_total"]["default",] == site.counted
    # The master's own is held to the last.
    assert left["conn_hygiene_hold_seconds_count"]["default",] == site.counted - int(request.param)
    assert not any(value for name in left if "_pool_size" in name for value in left[name].values())
    assert "Traceback" not in (log := (tmp_path / "log").read_text()), log


@pytest.mark.usefixtures("unmeasured")
def test_a_scrape_gives_the_sums_and_the_dead_leave_their_counters(site: Site, request: pytest.FixtureRequest) -> None:
    def both() -> bool:
        site.ask()
        return len(set(site.processes)) == 2

    wait_until(both, "both workers have answered", seconds=30)
    # Preloaded, the master has checked out one itself, and keeps it.
    of_master = int("preloaded" in request.node.name)
    asked = len(site.processes) + of_master
    wait_until(lambda: site.number("checkouts_total") == asked, f"{asked} checkouts are counted", seconds=30)
    # Each process writes in a second of its own, and this is counted when a request's connection is back.
    wait_until(lambda: site.number("hold_seconds_count") == asked - of_master, "they are back", seconds=30)
    found = site.scrape()
    for times in ("wait", "hold"):
        assert found[f"conn_hygiene_{times}_seconds_count"]["default",] == len(site.processes) + of_master * (
            times == "wait"
        )
        assert (
            found[f"conn_hygiene_{times}_seconds_bucket"]["default", "+Inf"]
            == found[f"conn_hygiene_{times}_seconds_count"]["default",]
        )
    assert found["conn_hygiene_pool_max_size"]["default",] == 2 * (2 + of_master)
    assert found["conn_hygiene_connections_held"]["default", "idle"] == of_master

    os.kill(site.processes[0], signal.SIGKILL)
    wait_until(lambda: site.number("pool_max_size") == 2 * (1 + of_master), "the gauges of the dead worker are gone")
    assert site.number("checkouts_total") == asked

    # Its place is another's, with files of its own.
    site.processes.clear()
    wait_until(both, "both workers have answered", seconds=30)
    asked += len(site.processes)
    wait_until(lambda: site.number("checkouts_total") == asked, f"{asked} checkouts are counted", seconds=30)
    assert site.number("pool_max_size") == 2 * (2 + of_master)
    site.counted = asked
