"""The example project as its users run it: by its commands, in processes of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from example_project import embedded
from example_project.embedded import ROOT, database_url
from example_project.processes import HOST, Trouble, check_server, free_port, get, postgresql, temporary_database

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

# Not by importing them: locust patches the standard library when it is imported.
MISSING = [
    name
    for name in ("debug_toolbar", "gunicorn", "httpx", "locust", "rich", "uvicorn")
    if not importlib.util.find_spec(name)
]

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


@pytest.mark.parametrize(("toolkit", "tools"), [("on", ""), ("off", ""), ("on", "1")])
def test_checks_find_nothing(env: dict[str, str], toolkit: str, tools: str) -> None:
    env |= {"CONN_HYGIENE": toolkit, "TOOLS": tools}
    finished = run("example_project/manage.py", "check", "--fail-level=INFO", env=env)
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


def without_server(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name != "DATABASE_URL" and not name.startswith("PG")}


@pytest.mark.parametrize(
    ("module", "beginning"),
    [("demo", "The demo could not be run. "), ("serve", "The shop could not be opened. ")],
)
def test_a_server_that_is_not_there_is_named(env: dict[str, str], module: str, beginning: str) -> None:
    url = "postgresql://shop:secret@127.0.0.1:1/none"
    finished = run("-m", f"example_project.{module}", env={**env, "DATABASE_URL": url})
    assert finished.returncode == 1
    assert (
        f"{beginning}DATABASE_URL names user=shop password=*** dbname=none host=127.0.0.1 port=1, "
        "which does not answer: unset DATABASE_URL to use the embedded server.\n"
    ) in finished.stdout
    assert "secret" not in finished.stdout
    assert "Traceback" not in finished.stdout


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PGHOST": "127.0.0.1", "PGPORT": "1"}, ["PGHOST and PGPORT name dbname=postgres", "which does not answer"]),
        ({"DATABASE_URL": "postgresql://shop:secret@[127.0.0.1/"}, ["DATABASE_URL names no server that libpq"]),
        ({"DATABASE_URL": "postgresql://shop:/secret@127.0.0.1/"}, ["DATABASE_URL names no server that libpq"]),
        ({"DATABASE_URL": "postgresql://shop:1@secret@127.0.0.1/"}, ["DATABASE_URL names no server that libpq"]),
    ],
)
def test_variables_that_name_no_server(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: list[str]
) -> None:
    for name in os.environ.keys() - without_server(dict(os.environ)).keys():
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(embedded, "_stop_keeper", None)
    with pytest.raises(Trouble) as caught:
        postgresql()
    for text in (*expected, f"unset {' '.join(variables)} to use the embedded server"):
        assert text in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_refuses_is_named() -> None:
    url = make_conninfo(database_url(), host=HOST, password="secret")
    with pytest.raises(Trouble, match=r"^DATABASE_URL names .*password=\*\*\* .*, which refuses us: ") as caught:
        check_server(url, ["DATABASE_URL"])
    assert "secret" not in str(caught.value)


def visits(port: int, side: str) -> Generator[tuple[str, dict[str, Any]]]:
    """Do what the first page's button does, and yield the events that come back."""
    with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=PATIENCE, trust_env=False) as client:
        client.get("/")
        headers = {"X-CSRFToken": client.cookies["csrftoken"]}
        with client.stream("POST", f"/compare/{side}/", headers=headers) as response:
            name = ""
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, json.loads(value)


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
            *_, (name, last) = visits(port, "with")
            assert (name, last["served"], last["timeouts"]) == ("done", 40, 0)
            # Ctrl-C comes in the middle of the next one.
            under_way = visits(port, "without")
            assert next(under_way)[0] == "begin"
        finally:
            serve.send_signal(signal.SIGINT)
            rest, _ = serve.communicate(timeout=PATIENCE)
    under_way.close()
    assert serve.returncode == 128 + signal.SIGINT, seen + rest


def test_serve_on_a_port_that_is_taken(env: dict[str, str]) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        finished = run("-m", "example_project.serve", f"--port={port}", env=env)
    assert finished.returncode == 1
    expected = f"The shop could not be opened. Port {port} cannot be used: Address already in use. Choose another one: "
    assert f"{expected}make serve PORT={port + 1}" in finished.stdout


def test_serve_on_what_is_no_port(env: dict[str, str]) -> None:
    finished = run("-m", "example_project.serve", "--port=70000", env=env)
    assert finished.returncode == 2
    assert "'70000' is no port: a number from 1 to 65535" in finished.stdout


def test_make_serve_has_a_port() -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for arguments, port in (([], 8000), (["PORT=8123"], 8123)):
        # What it would do; "-o" takes the environment's packages for installed.
        command = ["make", "--dry-run", "--no-print-directory", "--old-file=.venv/.demo", "serve", *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "PORT"}
        printed = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, env=environment).stdout
        assert printed.splitlines()[-1] == f".venv/bin/python -m example_project.serve --port={port}"


def test_runserver_script(env: dict[str, str]) -> None:
    finished = run("-m", "example_project.runserver_persistent", env=env)
    assert finished.returncode == 0, finished.stdout
    # Requests on one client connection share a thread, and so a session; others have their own.
    assert "3 requests used 1 session;" in finished.stdout
    assert finished.stdout.count("requests used 3 sessions;") == 2
    assert "sessions after the reload: none" in finished.stdout
