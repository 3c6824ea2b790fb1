"""uWSGI: workers, mules and spoolers that inherit what the master has used, or have nothing to inherit."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from example_project.processes import HOST, free_port, running
from tests.waiting import wait_until
from tests.workers.conftest import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.workers.conftest import Server

UWSGI = Path(sys.executable).with_name("uwsgi")
if not UWSGI.exists():
    pytest.skip("uWSGI is not installed.", allow_module_level=True)


class Site:
    """The site, served by a uWSGI."""

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

    def session_said(self, by: str) -> int:
        """Return the session that a process other than a worker has queried in."""
        said = rf"{by} .*'session': (\d+)"
        self.child.wait_for_output(f"{by} ")
        wait_until(lambda: re.search(said, self.child.log.read_text()), f"the log has the session of {by!r}")
        found = re.search(said, self.child.log.read_text())
        assert found
        return int(found[1])


@pytest.fixture
def uwsgi(server: Server, tmp_path: Path) -> Any:
    """Return a context manager that runs uWSGI with the given arguments."""

    @contextmanager
    def run(*arguments: str, **environment: str) -> Iterator[Site]:
        port = free_port()
        command = [UWSGI, "--master", "--die-on-term", "--need-app", f"--http-socket={HOST}:{port}"]
        command += ["--module=tests.workers.site.wsgi", *arguments]
        with running("uWSGI", command, log=tmp_path / "log", env=server.environment | environment) as child:
            child.wait_until_ready(port, "/alive/")
            yield Site(port, child)

    return run


@pytest.mark.parametrize("hook", ["", "--py-call-uwsgi-fork-hooks"])
@pytest.mark.parametrize("lazy", [False, True], ids=["preloaded", "lazy-apps"])
def test_each_worker_has_sessions_of_its_own(uwsgi: Any, server: Server, lazy: bool, hook: str) -> None:
    arguments = ["--processes=2", *["--lazy-apps"] * lazy, *[hook] * bool(hook)]
    with uwsgi(*arguments, QUERY_ON_LOAD="" if lazy else "1") as site:
        first, second = list(site.ask_all(2).values())[:2]
        assert not first & second
        if not lazy:
            assert site.session_said("Loaded by") in server.sessions() - first - second
    wait_until(lambda: not server.sessions(), "all sessions are gone")
