"""What the tests of how-to guides share: the project in docs/how-to/files as it stands there, and its carrier."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from example_project.embedded import database_url
from example_project.processes import HOST, ROOT, environment, running, temporary_database
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from example_project.processes import Child

FILES = ROOT / "docs/how-to/files"
_LIBPQ = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}


class Carrier:
    """The partner's API: answers at once, or nobody before so many wait for it."""

    def __init__(self) -> None:
        self.gate = threading.Barrier(1)
        carrier = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                try:
                    carrier.gate.wait()
                except threading.BrokenBarrierError:
                    self.send_error(504, "not all have come")
                    return
                body = f"{self.path[1:]} is on its way".encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self.server.server_port}"

    @contextmanager
    def together(self, number: int, seconds: float = 20) -> Iterator[None]:
        """Inside, have each answer wait until so many are asked for, all at the same time."""
        self.gate = threading.Barrier(number, timeout=seconds)
        try:
            yield
        finally:
            self.gate.abort()
            self.gate = threading.Barrier(1)


@contextmanager
def carrier() -> Iterator[Carrier]:
    carrier = Carrier()
    thread = threading.Thread(target=carrier.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield carrier
    finally:
        carrier.gate.abort()
        carrier.server.shutdown()
        carrier.server.server_close()
        thread.join()


class Project:
    """The project of the guides, with a database that has its tables."""

    def __init__(self, url: str, watcher: psycopg.Connection[Any], carrier: Carrier, directory: Path) -> None:
        parts = conninfo_to_dict(url)
        libpq = {_LIBPQ[name]: str(value) for name, value in parts.items() if name in _LIBPQ}
        self.carrier = carrier
        self.directory = directory
        self.watcher = watcher
        self.database = parts["dbname"]
        # The settings as they are, from which it can be seen who loads them.
        (directory / "says_so.py").write_text(
            "import os\n\nfrom mysite.settings import *\n\nprint('Loaded by', os.getpid(), flush=True)\n"
        )
        self.environment = {
            **libpq,
            "CARRIER_URL": carrier.url,
            "DJANGO_SETTINGS_MODULE": "says_so",
            "PYTHONPATH": f"{FILES}:{directory}:{ROOT}",
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": HOST,
        }

    def manage(self, *arguments: str) -> str:
        finished = subprocess.run(
            [sys.executable, str(FILES / "manage.py"), *arguments],
            env=environment(self.environment),
            cwd=FILES,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    @contextmanager
    def running(self, name: str, *arguments: str, **environment: str) -> Iterator[Child]:
        """Run a Python module (``-m name``) or manage.py for as long as the block lasts."""
        program = [str(FILES / "manage.py")] if name == "manage.py" else ["-m", name]
        command = [sys.executable, *program, *arguments]
        log = self.directory / f"{name}.log"
        with running(name, command, log=log, env=self.environment | environment) as child:
            yield child

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(**self._parameters()) as connection:
            return connection.execute(query, parameters).fetchall()

    def _parameters(self) -> dict[str, Any]:
        return {name: self.environment[variable] for name, variable in _LIBPQ.items() if variable in self.environment}

    def sessions(self) -> set[int]:
        query = (
            "SELECT pid FROM pg_stat_activity"
            " WHERE datname = %s AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return {pid for (pid,) in self.watcher.execute(query, [self.database])}

    def wait_until_empty(self) -> None:
        """Return when no session of the project is left on the server."""
        wait_until(lambda: not self.sessions(), "all sessions are gone", 30)


@contextmanager
def the_project(directory: Path) -> Iterator[Project]:
    url = database_url()
    with (
        carrier() as partner,
        temporary_database(url) as site,
        psycopg.connect(url, autocommit=True) as watcher,
    ):
        project = Project(site, watcher, partner, directory)
        project.manage("migrate", "--verbosity=0")
        yield project
