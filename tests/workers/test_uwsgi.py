"""uWSGI: workers, mules and spoolers that inherit what the master has used, or have nothing to inherit."""

from __future__ import annotations

import re
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from example_project.processes import HOST, ROOT, free_port, running
from tests.waiting import wait_until
from tests.workers.conftest import ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.workers.conftest import Server

UWSGI = Path(sys.executable).with_name("uwsgi")
if not UWSGI.exists():
    pytest.skip("uWSGI is not installed.", allow_module_level=True)


# A new worker would wait for ever for the interpreter's lock if a thread of the master's had it at the moment of the
# fork, as one has that opens a connection for the pool; this takes the lock first, for workers.
FORK_HOOKS = "--py-call-uwsgi-fork-hooks"
# Else it takes a pool that is full, and time for its threads to fall asleep.
REST = """
import time

time.sleep(0.5)
"""


class Site:
    """The site, served by a uWSGI."""

    def __init__(self, port: int, child: Any) -> None:
        self.port = port
        self.child = child

    def ask(self, **options: Any) -> dict[str, Any]:
        return ask(self.port, **options)

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
        said = re.compile(rf"{by} .*'session': (\d+)")
        wait_until(lambda: said.search(self.child.log.read_text()), f"the log has the line of {by!r}", seconds=30)
        return int(said.findall(self.child.log.read_text())[0])


@pytest.fixture
def uwsgi(server: Server, tmp_path: Path) -> Any:
    """Return a context manager that runs uWSGI with the given arguments, and a module to load if it is not the site."""

    @contextmanager
    def run(*arguments: str, module: str = "", **environment: str) -> Iterator[Site]:
        port = free_port()
        (tmp_path / "served.py").write_text((module or "from tests.workers.site.wsgi import application\n") + REST)
        environment = {"DATABASE_POOL": "1", **environment}
        command: list[str | Path] = [UWSGI, "--master", "--die-on-term", "--need-app", f"--http-socket={HOST}:{port}"]
        command += [f"--pythonpath={tmp_path}", "--module=served", *arguments]
        with running("uWSGI", command, log=tmp_path / "log", env=server.environment | environment) as child:
            child.wait_until_ready(port, "/alive/")
            yield Site(port, child)

    return run


@pytest.mark.parametrize("hooks", [[], [FORK_HOOKS]], ids=["", "fork-hooks"])
@pytest.mark.parametrize("lazy", [False, True], ids=["preloaded", "lazy-apps"])
def test_each_worker_has_sessions_of_its_own(uwsgi: Any, server: Server, lazy: bool, hooks: list[str]) -> None:
    with uwsgi("--processes=2", *["--lazy-apps"] * lazy, *hooks, QUERY_ON_LOAD="" if lazy else "1") as site:
        first, second = list(site.ask_all(2).values())[:2]
        assert not first & second
        if not lazy:
            assert site.session_said("Loaded by") in server.sessions() - first - second
    wait_until(lambda: not server.sessions(), "all sessions are gone")


def test_the_master_keeps_its_session_while_workers_come_and_go(uwsgi: Any, server: Server) -> None:
    # uWSGI lets a worker live ten seconds at the least, else.
    arguments = ["--processes=2", "--max-requests=2", "--min-worker-lifetime=0", FORK_HOOKS]
    with uwsgi(*arguments, QUERY_ON_LOAD="1") as site:
        assert site.session_said("Loaded by") not in set().union(*site.ask_all(3).values())
        assert site.session_said("Loaded by") in server.sessions()
    wait_until(lambda: not server.sessions(), "all sessions are gone")


def test_a_preloaded_master_that_has_queried_stops_nobody_under_the_documented_ini(uwsgi: Any, tmp_path: Path) -> None:
    found = re.search(r"block:: ini\n\n(.*?)\n\n(?=\S)", (ROOT / "docs/how-to/uwsgi.rst").read_text(), re.DOTALL)
    assert found
    ini = tmp_path / "site.ini"
    # What to serve, and where, is this test's.
    ini.write_text(re.sub(r"(?m)^(module|http-socket) = .*\n", "", textwrap.dedent(found[1])))
    with uwsgi(f"--ini={ini}", QUERY_ON_LOAD="1", DATABASE_POOL="4") as site:
        with ThreadPoolExecutor(8) as executor:
            answers = list(executor.map(lambda _: site.ask(), range(60)))
        assert len(answers) == 60
        assert site.session_said("Loaded by") not in {answer["session"] for answer in answers}
    # The hook is called by C there.
    assert "Exception ignored" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("toolkit", ["off", '{"DISCARD_AFTER_FORK": false}'], ids=["without", "not wanted"])
def test_else_nobody_gets_a_session(uwsgi: Any, server: Server, toolkit: str) -> None:
    """A request waits in vain for a pool without threads, or worse, is let into a session of the master's."""
    with (
        uwsgi("--processes=2", "--threads=4", QUERY_ON_LOAD="1", CONN_HYGIENE=toolkit) as site,
        ThreadPoolExecutor(4) as executor,
    ):
        of_master = server.sessions()
        # Two processes that wait for the same session's answers may wait for ever.
        for attempt in [executor.submit(site.ask, seconds=7) for _ in range(4)]:
            assert attempt.exception() or attempt.result()["session"] in of_master


MASTER_THAT_CLOSES = """
from conn_hygiene import close_all_before_fork
from tests.workers.site.wsgi import application

close_all_before_fork()
"""


def test_a_master_that_closes_holds_nothing(uwsgi: Any, server: Server) -> None:
    with uwsgi("--processes=2", module=MASTER_THAT_CLOSES, QUERY_ON_LOAD="1") as site:
        first, second = list(site.ask_all(2).values())[:2]
        assert not first & second
        assert site.session_said("Loaded by") not in server.sessions()
    wait_until(lambda: not server.sessions(), "all sessions are gone")


# ##### Mules and spoolers #####

MULE = """
import django
import uwsgi

django.setup()

from tests.workers.site.urls import who

print("Mule asks", who(), flush=True)
while True:
    uwsgi.mule_get_msg()
"""


@pytest.mark.parametrize("lazy", [False, True], ids=["preloaded", "lazy-apps"])
def test_a_mule_has_a_session_of_its_own(uwsgi: Any, server: Server, lazy: bool, tmp_path: Path) -> None:
    program = tmp_path / "mule.py"
    program.write_text(MULE)
    with uwsgi(f"--mule={program}", *["--lazy-apps"] * lazy, QUERY_ON_LOAD="1") as site:
        mule, others = site.session_said("Mule asks"), {site.session_said("Loaded by"), site.ask()["session"]}
        assert mule not in others
        # With lazy-apps it is the worker that has loaded the site, and perhaps answers from the same session.
        assert lazy or len(others) == 2
        assert server.sessions() >= {mule, *others}
    wait_until(lambda: not server.sessions(), "all sessions are gone")


SPOOLER = """
import uwsgi
from tests.workers.site.urls import who
from tests.workers.site.wsgi import application
from uwsgidecorators import spool


@spool
def work(arguments):
    print("Spooler asks", who(), flush=True)
    return uwsgi.SPOOL_OK


work.spool(number="1")
"""


def test_a_spooler_has_a_session_of_its_own(uwsgi: Any, server: Server, tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    with uwsgi(f"--spooler={tmp_path / 'spool'}", module=SPOOLER, QUERY_ON_LOAD="1") as site:
        sessions = {site.session_said("Spooler asks"), site.session_said("Loaded by"), site.ask()["session"]}
        assert len(sessions) == 3
        assert server.sessions() >= sessions
    wait_until(lambda: not server.sessions(), "all sessions are gone")


# ##### The project's own hook #####

LOADED = "from tests.workers.site.wsgi import application\nfrom tests.workers.site.urls import who\n"
DECORATED = """
from uwsgidecorators import postfork

@postfork
def first():
    print("Hook asks", who(), flush=True)
"""
BY_HAND = """
import uwsgi

def hook():
    print("Hook asks", who(), flush=True)

uwsgi.post_fork_hook = hook
"""
WITH_HOOK = {
    "decorator": LOADED + DECORATED,
    "by hand, before": BY_HAND + LOADED,
}


@pytest.mark.parametrize("module", WITH_HOOK.values(), ids=WITH_HOOK)
def test_what_was_inherited_is_gone_when_the_projects_hook_runs(uwsgi: Any, server: Server, module: str) -> None:
    with uwsgi(module=module, QUERY_ON_LOAD="1") as site:
        loaded, asked = site.session_said("Loaded by"), site.session_said("Hook asks")
        assert loaded != asked
        assert server.sessions() >= {loaded, asked}
        assert site.ask()["session"] != loaded
