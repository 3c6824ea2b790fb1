"""PgBouncer in transaction mode, in front of the server under measurement."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import make_conninfo

from example_project.benchmarks.contenders import POOL_SIZE
from example_project.processes import free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from example_project.processes import Child

CONFIGURATION = """
[databases]
* = {server}
[pgbouncer]
listen_addr =
unix_socket_dir = {directory}
listen_port = {port}
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 2000
log_connections = 0
log_disconnections = 0
log_stats = 0
"""


def find() -> str | None:
    """Return where the program is. Debian has it where only root looks."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")


def version() -> str | None:
    if (program := find()) is None:
        return None
    printed = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    return match[1] if (match := re.search(r"PgBouncer (\S+)", printed)) else None


def configured(url: str, *, directory: Path) -> tuple[list[str], str]:
    """Write its configuration into *directory*; return its command line, and the URL that leads through it."""
    program = find()
    assert program is not None
    # A socket like the server's own: what is compared is not the network.
    own = directory / "pgbouncer"
    own.mkdir()
    port = free_port()
    with psycopg.connect(url) as connection:
        # With what libpq adds from the environment.
        server = {name: getattr(connection.info, name) for name in ("host", "port", "user", "password")}
    configuration = own / "pgbouncer.ini"
    configuration.write_text(
        CONFIGURATION.format(server=make_conninfo(**server), directory=own, port=port, pool_size=POOL_SIZE)
    )
    command = [program, str(configuration)]
    if os.geteuid() == 0:
        # It refuses to run as root. The server's socket is in a directory of this account, too.
        command.insert(1, "--user=nobody")
        directory.chmod(0o711)
        shutil.chown(own, "nobody")
        shutil.chown(configuration, "nobody")
    return command, make_conninfo(url, host=str(own), port=port)


@contextlib.contextmanager
def in_front_of(url: str, *, directory: Path) -> Iterator[tuple[Child, str]]:
    """Run PgBouncer; yield it, and the URL that leads through it."""
    command, through = configured(url, directory=directory)
    with running("PgBouncer", command, log=directory / "pgbouncer.log") as child:
        child.wait_for_output("process up")
        yield child, through
