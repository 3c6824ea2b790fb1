"""Servers of our own, to be broken in every way: never the one that ``DATABASE_URL`` names."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from example_project.embedded import CONFIGURATION, _Server
from example_project.processes import Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator

# What was committed must be there after a crash of the server, though not after one of the machine.
DURABLE = {**CONFIGURATION, "synchronous_commit": "on", "full_page_writes": "on"}

# Who is asked about them, so that sessions of the site can be told from ours.
OWN = "chaos"


class Breakable(_Server):
    """A server that can be killed, frozen, restarted and replicated, and keeps its address."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, configuration=DURABLE)
        self.conninfo = ""
        self.frozen: list[int] = []

    def start(self) -> str:
        self.conninfo = make_conninfo(super().start())
        return self.conninfo

    @property
    def address(self) -> tuple[str, str]:
        found = conninfo_to_dict(self.conninfo)
        return str(found["host"]), str(found["port"])

    def connect(self, dbname: str = "postgres") -> psycopg.Connection[tuple[int, str]]:
        return psycopg.connect(self.conninfo, dbname=dbname, application_name=OWN, autocommit=True)

    def execute(self, *statements: str) -> None:
        with self.connect() as connection:
            for statement in statements:
                connection.execute(statement)

    def sessions(self) -> list[int]:
        """Return the processes that serve the site."""
        with self.connect() as connection:
            query = """
                SELECT pid, application_name FROM pg_stat_activity
                WHERE backend_type = 'client backend' AND application_name <> %s
            """
            return [pid for pid, _ in connection.execute(query, [OWN])]

    def processes(self) -> list[int]:
        """Return all its processes, the first of which starts the others."""
        assert self.process is not None
        with self.connect() as connection:
            found = connection.execute("SELECT pid, '' FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            return [self.process.pid, *(pid for pid, _ in found)]

    def cut(self) -> None:
        """End all sessions, as an administrator would."""
        with self.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name <> %s"
                " AND backend_type = 'client backend'",
                [OWN],
            )

    def kill(self) -> None:
        """Kill all its processes, as when the machine has crashed."""
        assert self.process is not None
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop_fast(self) -> None:
        """Stop as ``pg_ctl stop`` does by default: sessions are ended, and told so."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def start_again(self) -> None:
        """Start under the same address, and return once it takes connections."""
        deadline = time.monotonic() + 20
        # The sockets of one that was killed may live a moment longer than it.
        while not self._start_on(int(self.address[1])):
            if time.monotonic() > deadline:
                raise Trouble(f"PostgreSQL did not start again. Its log:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.1)

    def freeze(self) -> None:
        """Stop all its processes where they are: nothing is closed, and nothing is answered."""
        assert self.process is not None
        # Those that are started after they were listed would go on; the second list has them.
        with self.connect() as connection:
            first = self.process.pid
            os.kill(first, signal.SIGSTOP)
            self.frozen = [first]
            found = connection.execute("SELECT pid, '' FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            for pid, _ in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    self.frozen.append(pid)

    def thaw(self) -> None:
        while self.frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.frozen.pop(), signal.SIGCONT)

    def wait_for_writes(self, *, seconds: float = 20) -> None:
        """Return once it takes writes."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(psycopg.OperationalError), self.connect() as connection:
                row = connection.execute("SELECT 1, current_setting('transaction_read_only')").fetchone()
                if row and row[1] == "off":
                    return
            if time.monotonic() > deadline:
                raise Trouble(f"The server takes no writes. Its log:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def promote(self) -> None:
        self.execute("SELECT pg_promote(wait => true)")
        self.wait_for_writes()


class Replica(Breakable):
    """A streaming replica, without which its primary commits nothing."""

    def __init__(self, directory: Path, primary: Breakable) -> None:
        super().__init__(directory)
        self.primary = primary

    def start(self) -> str:
        host, port = self.primary.address
        self._run(
            "pg_basebackup",
            f"--pgdata={self.data}",
            f"--host={host}",
            f"--port={port}",
            "--username=postgres",
            "--write-recovery-conf",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
        )
        # The primary's own is in the copy of its configuration.
        with (self.data / "postgresql.auto.conf").open("a") as configuration:
            configuration.write(f"unix_socket_directories = '{self.directory}'\n")
        own = self._start_on_a_free_port()
        self.conninfo = make_conninfo(self.primary.conninfo, host=str(self.directory), port=own)
        self.primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        self._wait_until_synchronous()
        return self.conninfo

    def _wait_until_synchronous(self) -> None:
        with self.primary.connect() as connection:
            deadline = time.monotonic() + 10
            query = "SELECT 1, '' FROM pg_stat_replication WHERE sync_state = 'sync'"
            while not connection.execute(query).fetchall():
                if time.monotonic() > deadline:
                    raise Trouble("The replica does not follow its primary.")
                time.sleep(0.02)


@contextlib.contextmanager
def serving() -> Iterator[Breakable]:
    """Run a server while the block lasts."""
    with private_directory() as directory:
        server = Breakable(directory)
        try:
            server.start()
            yield server
        finally:
            server.thaw()
            server.stop()


@contextlib.contextmanager
def replicated(primary: Breakable) -> Iterator[Replica]:
    """Run a replica while the block lasts; after it the primary is on its own again, and takes writes."""
    with private_directory() as directory:
        replica = Replica(directory, primary)
        try:
            replica.start()
            yield replica
        finally:
            replica.stop()
            if primary.process and primary.process.poll() is not None:
                primary.start_again()
            primary.execute(
                "ALTER SYSTEM RESET synchronous_standby_names",
                "ALTER SYSTEM RESET default_transaction_read_only",
                "SELECT pg_reload_conf()",
            )
            primary.wait_for_writes()


@contextlib.contextmanager
def private_directory() -> Iterator[Path]:
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="conn-hygiene-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)
