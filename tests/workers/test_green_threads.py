"""Servers and workers whose threads are greenlets: gunicorn, uWSGI and Celery, by gevent and by eventlet."""

from __future__ import annotations

import re
import signal
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
from tests.workers.queues import redis_server
from tests.workers.test_celery import worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.workers.conftest import Server

pytest.importorskip("gevent", reason="it is in the dependency group of the workers' tests")

UWSGI = Path(sys.executable).with_name("uwsgi")
PAGE = ROOT / "docs" / "how-to" / "green-threads.rst"
# Fewer connections than requests that wait with one.
CROWD = 6
ENVIRONMENT = {"CONN_HYGIENE": '{"RELEASE": "always"}', "DATABASE_POOL": "2"}

HOOKS = "from conn_hygiene.contrib.gunicorn import post_fork, pre_fork, worker_exit\n"


def documented(caption: str) -> str:
    """Return the file of the page that has this *caption*."""
    found = re.search(rf":caption: {re.escape(caption)}\n\n(.*?)\n\n(?=\S)", PAGE.read_text("utf-8"), re.DOTALL)
    assert found, caption
    return textwrap.dedent(found[1]) + "\n"


@contextmanager
def gunicorn(server: Server, tmp_path: Path, config: str, *arguments: str, **environment: str) -> Iterator[Any]:
    """Run a gunicorn with one gevent worker and that *config*; yield its process and its port."""
    (tmp_path / "gunicorn.conf.py").write_text(config)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "tests.workers.site.wsgi:application", f"--bind={HOST}:{port}"]
    command += [f"--config={tmp_path / 'gunicorn.conf.py'}", "--no-control-socket", "--worker-class=gevent", *arguments]
    environment = server.environment | ENVIRONMENT | environment
    with running("gunicorn", command, log=tmp_path / "log", env=environment) as child:
        yield child, port


def meet(port: int) -> None:
    """Have a crowd of requests wait for each other between their queries, each in a greenlet of its own."""
    with ThreadPoolExecutor(CROWD) as executor:
        answers = list(executor.map(lambda _: ask(port, f"/meet/{CROWD}/", seconds=30), range(CROWD)))
    assert len({answer["thread"] for answer in answers}) == CROWD
    assert len({answer["session"] for answer in answers}) <= int(ENVIRONMENT["DATABASE_POOL"])


@pytest.mark.parametrize(
    ("config", "arguments"),
    [(HOOKS, []), ("documented", ["--preload"])],
    ids=["loaded by each", "patched by the config file, and preloaded"],
)
def test_gunicorn_serves_and_stops(server: Server, tmp_path: Path, config: str, arguments: list[str]) -> None:
    config = documented("gunicorn.conf.py") if config == "documented" else config
    loaded = "1" * bool(arguments)
    with gunicorn(server, tmp_path, config, "--workers=1", *arguments, QUERY_ON_LOAD=loaded) as (child, port):
        child.wait_until_ready(port, "/alive/")
        meet(port)
        child.process.send_signal(signal.SIGTERM)
        # It looks once a second whether all is done.
        assert child.process.wait(20) == 0
    assert "Traceback" not in (log := (tmp_path / "log").read_text()), log
    wait_until(lambda: not server.sessions(), "all sessions are gone")


@pytest.mark.parametrize("config", ["", HOOKS], ids=["no hooks", "hooks"])
def test_a_master_that_loads_the_application_unpatched_says_so_and_ends(
    server: Server, tmp_path: Path, config: str
) -> None:
    with gunicorn(server, tmp_path, config, "--preload") as (child, _):
        assert child.process.wait(30) == 1
    assert (
        "a gevent worker will patch threading after it. Patch before anything imports Django"
        in (tmp_path / "log").read_text()
    )


def test_a_config_file_that_imports_django_is_refused_as_well(server: Server, tmp_path: Path) -> None:
    with gunicorn(server, tmp_path, "import django.db\n" + HOOKS) as (child, _):
        assert child.process.wait(30) != 0
    assert "a gevent worker will patch threading after it" in (tmp_path / "log").read_text()


@pytest.mark.skipif(not UWSGI.exists(), reason="uWSGI is not installed")
@pytest.mark.parametrize("preloaded", [True, False], ids=["preloaded", "lazy-apps"])
def test_uwsgi_serves_and_stops(server: Server, tmp_path: Path, preloaded: bool) -> None:
    port = free_port()
    (tmp_path / "uwsgi.ini").write_text(documented("uwsgi.ini"))
    command: list[str | Path] = [UWSGI, f"--http-socket={HOST}:{port}", "--module=tests.workers.site.wsgi"]
    command += [f"--ini={tmp_path / 'uwsgi.ini'}", *["--lazy-apps"] * (not preloaded)]
    environment = server.environment | ENVIRONMENT | {"QUERY_ON_LOAD": "1" * preloaded}
    with running("uWSGI", command, log=tmp_path / "log", env=environment) as child:
        child.wait_until_ready(port, "/alive/")
        meet(port)
        child.process.terminate()
        child.process.wait(20)
    assert "Traceback" not in (log := (tmp_path / "log").read_text()), log
    wait_until(lambda: not server.sessions(), "all sessions are gone")


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_celery_runs_tasks_and_stops(server: Server, tmp_path: Path, pool: str) -> None:
    pytest.importorskip(pool)
    # As the page says: psycopg waits for gevent by itself.
    environment = {"PSYCOPG_WAIT_FUNC": "wait_select"} if pool == "eventlet" else {}
    options = [f"--pool={pool}", f"--concurrency={CROWD}"]
    with (
        redis_server(tmp_path) as broker,
        worker(server, broker, tmp_path / "log", *options, **ENVIRONMENT | environment) as site,
    ):
        ran = site.meet(tmp_path / "place", CROWD)
        assert len({each["thread"] for each in ran}) == CROWD
        assert len({each["session"] for each in ran}) <= int(ENVIRONMENT["DATABASE_POOL"])
        session = site.run("leave_open")
        assert session in server.sessions()
        wait_until(lambda: site.run("held") == [], "what was left open is back")
    assert "Traceback" not in (log := (tmp_path / "log").read_text()), log
