"""The example project as its users run it: by its commands, in processes of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest

from example_project.embedded import ROOT, database_url
from example_project.processes import HOST, free_port, get, temporary_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Not by importing them: locust patches the standard library when it is imported.
MISSING = [name for name in ("gunicorn", "httpx", "locust", "rich", "uvicorn") if not importlib.util.find_spec(name)]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"The demo's packages are not installed: {', '.join(MISSING)}"),
    pytest.mark.usefixtures("unmeasured"),
    pytest.mark.slow,
]

MARK = "CONN_HYGIENE_TEST_RUN"
PATIENCE = 170


def marked(mark: str) -> list[str]:
    """Return the command lines of all processes whose environment has `mark`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            pass  # It has ended, or belongs to somebody else.
    return found


def leftover_databases() -> list[str]:
    with psycopg.connect(database_url()) as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE datname LIKE 'conn_hygiene_example_%'")
        return [name for (name,) in rows]


@pytest.fixture
def env() -> Iterator[dict[str, str]]:
    """An environment for child processes, none of which may outlive the test, nor their databases."""
    mark = uuid.uuid4().hex
    # pytest-django has exported the settings of the tests.
    yield {**os.environ, "DJANGO_SETTINGS_MODULE": "example_project.settings", MARK: mark, "COLUMNS": "100"}
    assert marked(mark) == []
    assert leftover_databases() == []


@pytest.fixture
def own_server(env: dict[str, str]) -> dict[str, str]:
    """Let the command start its own PostgreSQL, as it does for its users."""
    return {name: value for name, value in env.items() if name != "DATABASE_URL"}


def run(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        check=False,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize("toolkit", ["on", "off"])
def test_every_page_answers(env: dict[str, str], toolkit: str) -> None:
    # Django derives the name of its test database from this one, so it does not meet that of the running tests.
    with temporary_database(database_url()) as url:
        env |= {"DATABASE_URL": url, "CONN_HYGIENE": toolkit}
        finished = run("example_project/manage.py", "test", "--noinput", "example_project", env=env)
    assert finished.returncode == 0, finished.stdout
    assert "\nOK\n" in finished.stdout


@pytest.mark.parametrize("toolkit", ["on", "off"])
def test_checks_find_nothing(env: dict[str, str], toolkit: str) -> None:
    finished = run("example_project/manage.py", "check", "--fail-level=INFO", env={**env, "CONN_HYGIENE": toolkit})
    assert finished.returncode == 0, finished.stdout


def test_migrations_are_complete(env: dict[str, str]) -> None:
    finished = run("example_project/manage.py", "makemigrations", "--check", "--dry-run", env=env)
    assert finished.returncode == 0, finished.stdout


def test_demo(own_server: dict[str, str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    finished = run("-m", "example_project.demo", "--seconds=3", f"--json={report}", env=own_server)
    assert finished.returncode == 0, finished.stdout
    for expected in ("Requests", "Median", "percentile", "timeouts", "connections", "times the requests", "make serve"):
        assert expected in finished.stdout
    acts = json.loads(report.read_text())["acts"]
    assert acts["preloaded_master"]["without"]["answered"] == 0
    assert acts["preloaded_master"]["with"]["answered"] == 60
    act = acts["slow_partner"]
    assert act["with"]["pool_timeouts"] == act["with"]["other_errors"] == 0
    tenants = acts["tenants"]
    assert [tenants["with"][name] for name in ("foreign", "pool_timeouts", "other_errors")] == [0, 0, 0]
    assert tenants["with"]["most_connections"] <= 4
    # How much faster is for a quiet machine to say; this one has tests to run.
    assert act["with"]["requests_per_second"] > act["without"]["requests_per_second"]
    assert act["with"]["most_connections"] <= 4


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("Filling the shop", signal.SIGINT),
        ("starting gunicorn", signal.SIGTERM),
        ("customers", signal.SIGINT),
        ("60 requests", signal.SIGINT),
    ],
)
def test_demo_stops_what_it_started(own_server: dict[str, str], moment: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "example_project.demo", "--seconds=3"],
        cwd=ROOT,
        env={**own_server, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as demo:
        assert demo.stdout is not None
        seen = ""
        for line in demo.stdout:
            seen += line
            if moment in line:
                break
        time.sleep(0.5)
        assert len(marked(own_server[MARK])) > 1, seen
        demo.send_signal(number)
        rest, _ = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 128 + number, seen + rest


def test_demo_explains_what_is_wrong(env: dict[str, str]) -> None:
    finished = run("-m", "example_project.demo", env={**env, "DATABASE_URL": "postgresql://127.0.0.1:1/none"})
    assert finished.returncode == 1
    assert "The demo could not be run. No database could be created" in finished.stdout
    assert "Traceback" not in finished.stdout


@pytest.mark.parametrize("arguments", [[], ["--gunicorn"]], ids=["uvicorn", "gunicorn"])
def test_serve(env: dict[str, str], arguments: list[str]) -> None:
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "example_project.serve", f"--port={port}", *arguments],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as serve:
        assert serve.stdout is not None
        seen = ""
        for line in serve.stdout:
            seen += line
            if line.lstrip().startswith("export "):
                break
        try:
            assert f"The shop is open at http://{HOST}:{port}/" in seen
            assert re.search(r"export DJANGO_SETTINGS_MODULE=\S+ DATABASE_URL='.+' CARRIER_URL=http://\S+\n", seen)
            for path in ("/", "/orders/1/", "/orders/1/async/"):
                assert get(port, path) == 200, seen
        finally:
            serve.send_signal(signal.SIGINT)
            rest, _ = serve.communicate(timeout=PATIENCE)
    assert serve.returncode == 128 + signal.SIGINT, seen + rest


def test_serve_on_a_port_that_is_taken(env: dict[str, str]) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        finished = run("-m", "example_project.serve", f"--port={port}", env=env)
    assert finished.returncode == 1
    assert f"Port {port} cannot be used" in finished.stdout


def test_runserver_script(env: dict[str, str]) -> None:
    finished = run("-m", "example_project.runserver_persistent", env=env)
    assert finished.returncode == 0, finished.stdout
    # Requests on one client connection share a thread, and so a session; others have their own.
    assert "3 requests used 1 session;" in finished.stdout
    assert finished.stdout.count("requests used 3 sessions;") == 2
    assert "sessions after the reload: none" in finished.stdout
