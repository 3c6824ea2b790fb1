"""Start and stop the servers of the example, and leave none behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from example_project.embedded import database_url, server_variables

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
CONNECT_TIMEOUT = 5  # seconds, for each address of a server that is named by the environment
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Trouble(Exception):
    """Something that the user can understand, and perhaps mend."""


class Child:
    """A running process in a group of its own; its output goes to a file, or where its parent's goes."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path | None) -> None:
        self.name = name
        self.process = process
        self.log = log

    def wait_until_ready(self, port: int, path: str = "/", *, seconds: float = 30) -> None:
        """Return once the process answers `path` with success."""
        deadline = time.monotonic() + seconds
        outcome = "no answer"
        while time.monotonic() < deadline:
            self.check()
            try:
                status = get(port, path)
            except (OSError, http.client.HTTPException) as error:
                outcome = str(error)
            else:
                if status == 200:
                    return
                outcome = f"status {status}"
            time.sleep(0.05)
        raise Trouble(f"{self.name} was not ready after {seconds:.0f} seconds: {outcome}. {self.tail()}")

    def wait_for_output(self, text: str, *, times: int = 1, seconds: float = 30) -> None:
        """Return once the process has printed `text` so many times."""
        assert self.log is not None
        deadline = time.monotonic() + seconds
        while self.log.read_text(errors="replace").count(text) < times:
            self.check()
            if time.monotonic() > deadline:
                raise Trouble(f"{self.name} has not come to {text!r} in {seconds:.0f} seconds. {self.tail()}")
            time.sleep(0.05)

    def check(self) -> None:
        """Complain if the process has ended by itself."""
        if (code := self.process.poll()) is not None:
            raise Trouble(f"{self.name} ended with exit status {code}. {self.tail()}")

    def tail(self, lines: int = 15) -> str:
        if self.log is None:
            return "Its output is above."
        text = self.log.read_text(errors="replace").strip()
        if not text:
            return "It printed nothing."
        return "The end of its output:\n\n" + "\n".join(text.splitlines()[-lines:])

    def stop(self, *, patience: float = 5) -> None:
        """Ask the process to end, and after a while end its whole group."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience)
        # Workers may have outlived it. The group's number is not given to
        # anybody else while one of them lives.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    *,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Child]:
    """Run a program for as long as the block lasts.

    It has a process group of its own, which is stopped as a whole. That also
    keeps a Ctrl-C in the terminal away from it: the parent decides in which
    order its children end.
    """
    child = None
    try:
        # A signal that came in between would leave a process without an owner.
        with uninterrupted(), log.open("wb") if log else contextlib.nullcontext() as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
            )
            child = Child(name, process, log)
        yield child
    finally:
        if child is not None:
            child.stop()


def end_on_signals() -> None:
    """Turn the signals that end a process into `SystemExit`, so that ``finally`` blocks run."""

    def leave(number: int, frame: FrameType | None) -> None:
        # Once is enough: a second Ctrl-C must not interrupt the cleaning up.
        for ending in ENDING_SIGNALS:
            signal.signal(ending, signal.SIG_IGN)
        # Not print(): the signal may have come in the middle of one.
        os.write(sys.stderr.fileno(), b"\nStopping ...\n")
        raise SystemExit(128 + number)

    for ending in ENDING_SIGNALS:
        # nohup, and a shell's background jobs, ignore some of them on purpose.
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, leave)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Put the ending signals off until the block is done."""
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    handlers = {ending: signal.signal(ending, remember) for ending in ENDING_SIGNALS}
    try:
        yield
    finally:
        for ending, handler in handlers.items():
            signal.signal(ending, handler)
        for number in received[:1]:
            signal.raise_signal(number)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child: this one's, but for the shop and not for the user's own project."""
    return {**os.environ, "DJANGO_SETTINGS_MODULE": "example_project.settings", **extra}


def get(port: int, path: str, *, timeout: float = 10) -> int:
    """Return the status of a GET request."""
    return _get(port, path, timeout)[0]


def ask(port: int, path: str, *, timeout: float = 10) -> Any:
    """Return what the answer to a GET request says, as JSON."""
    status, body = _get(port, path, timeout)
    if status != 200:
        raise http.client.HTTPException(f"{path}: status {status}")
    return json.loads(body)


def _get(port: int, path: str, timeout: float) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def check_port(port: int) -> None:
    """Complain at once, and in plain words, if somebody else has the port."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        another = port + 1 if port < 2**16 - 1 else port - 1
        raise Trouble(f"Port {port} cannot be used: {reason}. Choose another one: make serve PORT={another}") from error


def manage(*arguments: str, env: Mapping[str, str]) -> None:
    """Run a management command of the example project."""
    finished = subprocess.run(
        [sys.executable, "example_project/manage.py", *arguments],
        check=False,
        cwd=ROOT,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if finished.returncode:
        raise Trouble(f"manage.py {arguments[0]} failed:\n\n{finished.stdout.strip()}")


@contextlib.contextmanager
def temporary_database(url: str) -> Iterator[str]:
    """Create a database for one run, and drop it after: the server may be the user's own."""
    name = f"conn_hygiene_example_{secrets.token_hex(4)}"
    try:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.Error as error:
        raise Trouble(f"No database could be created on the server: {error}") from error
    try:
        yield make_conninfo(url, dbname=name)
    finally:
        # A server that is gone has no database to drop.
        with (
            contextlib.suppress(psycopg.OperationalError),
            psycopg.connect(url, autocommit=True) as admin,
        ):
            admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def postgresql() -> str:
    """Return the URL of the server to use; it may be started for the purpose."""
    named_by = server_variables()
    try:
        url = database_url()
    except RuntimeError as error:
        raise Trouble(str(error)) from error
    if named_by:
        check_server(url, named_by)
    return url


def readable(url: str) -> dict[str, Any] | None:
    """Return what a connection string says, if it may be shown apart from the password.

    A password with a "/" or an "@" that is not escaped ends up in other places, as in "postgresql://shop:a/b@host/".
    """
    try:
        parameters: dict[str, Any] = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return None
    ports = str(parameters.get("port", "")).replace(",", "")
    names = f"{parameters.get('host', '')}{parameters.get('dbname', '')}"
    return parameters if (ports.isdecimal() or not ports) and "@" not in names else None


def check_server(url: str, named_by: Sequence[str]) -> None:
    """Complain of a server that the environment names, perhaps since long ago, and that is not there or not for us."""
    variables = f"{' and '.join(named_by)} {'name' if len(named_by) > 1 else 'names'}"
    remedy = f"unset {' '.join(named_by)} to use the embedded server"
    parameters = readable(url)
    if parameters is None:
        raise Trouble(f"{variables} no server that libpq understands: {remedy}.")
    masked = {name: "***" if "password" in name else value for name, value in parameters.items()}
    try:
        psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT).close()
    except psycopg.OperationalError as error:
        # Only a server's own answer has a severity.
        what = "refuses us" if "FATAL: " in str(error) else "does not answer"
        reason = str(error).strip()
        raise Trouble(f"{variables} {make_conninfo(**masked)}, which {what}: {remedy}.\n\n{reason}") from error


@contextlib.contextmanager
def shop_database(
    url: str, *, tenants: bool = True, settings: Mapping[str, str] | None = None
) -> Iterator[dict[str, str]]:
    """Yield the environment of a shop that has its tables, and some orders; *tenants*, with policies, if wanted.

    The tables are those of a shop with these *settings*, by their variables.
    """
    with temporary_database(url) as database_url:
        env = {"DATABASE_URL": database_url}
        installed = {**env, **(settings or {})}
        manage("migrate", "--verbosity=0", *([] if tenants else ["shop", "0001"]), env=installed)
        manage("seed", "--verbosity=0", env=env)
        yield env


@contextlib.contextmanager
def partner(delay: float, *, directory: Path) -> Iterator[dict[str, str]]:
    """Run the stand-in carrier, and yield the environment that finds it."""
    port = free_port()
    command = [sys.executable, "-m", "example_project.partner", f"--port={port}", f"--delay={delay}"]
    with running("The stand-in carrier", command, log=directory / "partner.log") as child:
        child.wait_until_ready(port, "/health")
        yield {"CARRIER_URL": f"http://{HOST}:{port}"}
