"""A project that uses MySQL beside PostgreSQL, and forks."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from example_project.processes import ROOT, Trouble, running
from tests.processes import run
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# PyMySQL stands in for mysqlclient, which is built from source; it answers for a version that Django accepts.
SCRIPT = """
import os, sys
import pymysql

pymysql.version_info = (2, 2, 8, "final", 0)
pymysql.install_as_MySQLdb()

import django
from django.conf import settings

settings.DATABASES["mysql"] = {
    "ENGINE": "django.db.backends.mysql", "NAME": "mysql", "USER": os.environ["MYSQL_USER"],
    "HOST": os.environ["MYSQL_SOCKET"], "CONN_MAX_AGE": None,
}
django.setup()
from django.db import connections, transaction


def thread_of_server():
    with connections["mysql"].cursor() as cursor:
        cursor.execute("SELECT connection_id()")
        return cursor.fetchone()[0]


mine = thread_of_server()
with connections["mysql"].cursor() as cursor:
    cursor.execute("CREATE TEMPORARY TABLE here (n int)")
with transaction.atomic(using="mysql"):
    child = os.fork()
    if child == 0:
        assert thread_of_server() != mine
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert thread_of_server() == mine
    with connections["mysql"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM here")
        assert cursor.fetchone()[0] == 0
connections.close_all()
"""


@pytest.fixture
def mariadb(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Run a server of the test's own, and return the environment that leads there."""
    programs = {name: shutil.which(name) for name in ("mariadbd", "mariadb-install-db", "mariadb-admin")}
    if None in programs.values():
        pytest.skip("needs MariaDB's server (Debian's package mariadb-server)")
    socket, user = str(tmp_path / "socket"), "root" if os.getuid() == 0 else os.environ["USER"]
    options = ["--no-defaults", f"--datadir={tmp_path / 'data'}", f"--user={user}"]
    install = [
        str(programs["mariadb-install-db"]),
        *options,
        "--auth-root-authentication-method=socket",
        "--skip-test-db",
    ]
    subprocess.run(install, check=True, capture_output=True, cwd=ROOT)
    server = [str(programs["mariadbd"]), *options, f"--socket={socket}", "--skip-networking", "--skip-grant-tables"]
    ping = [str(programs["mariadb-admin"]), "--no-defaults", f"--socket={socket}", "ping"]
    with running("MariaDB", server, log=tmp_path / "log") as child:

        def answers() -> bool:
            try:
                child.check()
            except Trouble as trouble:
                pytest.fail(str(trouble))
            return subprocess.run(ping, check=False, capture_output=True).returncode == 0

        wait_until(answers, "MariaDB answers", seconds=60)
        yield {"MYSQL_SOCKET": socket, "MYSQL_USER": user}


def test_the_parents_session_outlives_its_child(mariadb: dict[str, str]) -> None:
    process = run("-W", "ignore:.*multi-threaded:DeprecationWarning", "-c", SCRIPT, **mariadb)
    assert (process.returncode, process.stderr) == (0, "")
