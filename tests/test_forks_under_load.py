"""Forks from a parent that is busy, children that are killed, and sessions that are encrypted."""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import psycopg
import pytest
from django.db import connections, transaction

from conn_hygiene import closing_connections
from example_project.processes import free_port
from tests.processes import run
from tests.test_forks import in_child, pid_of
from tests.testapp.models import Item
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.django_db(transaction=True),
    # The pool has threads, and forking beside them is what is tested.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.slow,
]


@contextlib.contextmanager
def busy_pool() -> Iterator[None]:
    """Have threads query all the while; fail if one of their queries does."""
    stop = threading.Event()

    @closing_connections
    def query() -> None:
        mine = pid_of("default")
        while not stop.is_set():
            assert pid_of("default") == mine

    with ThreadPoolExecutor(3) as executor:
        jobs = [executor.submit(query) for _ in range(3)]
        try:
            yield
        finally:
            stop.set()
    for job in jobs:
        job.result()


def descriptors() -> int:
    """Return how many this process has open when it holds no connection."""
    connections.close_all()
    connections["default"].close_pool()
    return len(os.listdir("/dev/fd"))


def first_query() -> tuple[int, float]:
    began = time.monotonic()
    return pid_of("default"), time.monotonic() - began


def check(children: list[tuple[int, float]], mine: int) -> None:
    assert mine not in {pid for pid, _ in children}
    # One that hangs waits for ever, or for the pool's timeout; a busy machine is slow.
    assert max(seconds for _, seconds in children) < 10


def two_hundred_children() -> None:
    before = descriptors()
    with busy_pool():
        mine = pid_of("default")
        check([in_child(first_query) for _ in range(200)], mine)
        assert pid_of("default") == mine
    wait_until(lambda: descriptors() == before, "no descriptor is left")


def test_two_hundred_children_one_after_another() -> None:
    # In a process that coverage leaves alone: it would take most of the time, for what other tests measure.
    # The parent holds its connection all the while, which is not to be told. Nor does it answer for itself, which
    # takes a descriptor from the first checkout on.
    script = f"""
import conn_hygiene, django
django.setup()
conn_hygiene.install(HELD_TOO_LONG_AFTER=None, STATUS_DIRECTORY=None)
from {__name__} import *
two_hundred_children()
"""
    process = run("-W", "ignore:.*multi-threaded:DeprecationWarning", "-c", script)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""


def test_twenty_children_at_once() -> None:
    before = descriptors()
    together = threading.Barrier(20)

    def fork() -> Any:
        together.wait()
        return in_child(first_query)

    with busy_pool():
        mine = pid_of("default")
        with ThreadPoolExecutor(20) as executor:
            jobs = [executor.submit(fork) for _ in range(20)]
        check([job.result() for job in jobs], mine)
        assert pid_of("default") == mine
    wait_until(lambda: descriptors() == before, "no descriptor is left")


def killed_in_transaction() -> None:
    """Return when a child has been killed in the middle of a transaction of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever goes wrong here, the child must not go on as a second run of the tests.
        with contextlib.suppress(BaseException), transaction.atomic():
            Item.objects.create(name="of the child")
            os.write(writing, b"in it")
            signal.pause()
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read(5)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert said == b"in it"


def test_children_killed_in_a_transaction_leave_connections_and_data_as_they_were() -> None:
    outside = pid_of("default")
    killed_in_transaction()
    assert pid_of("default") == outside
    with transaction.atomic():
        Item.objects.create(name="of the parent")
        for _ in range(5):
            killed_in_transaction()
        assert pid_of("default") == outside
    assert [item.name for item in Item.objects.all()] == ["of the parent"]


# ##### Encrypted sessions #####


def server_programs() -> Path:
    """Return the directory of a PostgreSQL that was built with OpenSSL; the embedded one is not."""
    found = shutil.which("postgres")
    directories = [*([Path(found).resolve().parent] if found else []), *Path("/usr/lib/postgresql").glob("*/bin")]
    for directory in directories:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            options = subprocess.check_output([directory / "pg_config", "--configure"], text=True)
            if "--with-openssl" in options or "--with-ssl" in options:
                return directory
    pytest.skip("no PostgreSQL server with OpenSSL is installed (on Debian: the package postgresql)")


def account() -> dict[str, Any]:
    """Return as whom to run the server, which refuses to be root's."""
    if os.geteuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def tls_server() -> Iterator[dict[str, str]]:
    """Start a server with a self-signed certificate, and return its URLs by transport."""
    programs = server_programs()
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, which makes the certificate")
    # Short: a socket's path has room for about 100 characters.
    with tempfile.TemporaryDirectory(prefix="conn-hygiene-", ignore_cleanup_errors=True) as name:
        directory, password, port = Path(name), secrets.token_urlsafe(), str(free_port())
        (directory / "password").write_text(password)
        options: dict[str, Any] = {"cwd": directory, "stdin": subprocess.DEVNULL, **account()}
        if "user" in options:
            for path in (directory, directory / "password"):
                os.chown(path, options["user"], options["group"])

        def execute(*command: str | Path) -> None:
            subprocess.run(command, check=True, capture_output=True, **options)

        execute(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"),
            *("-keyout", "server.key", "-out", "server.crt"),
        )
        (directory / "server.key").chmod(0o600)
        execute(
            programs / "initdb",
            *("--pgdata=data", "--username=postgres", "--pwfile=password", "--auth=scram-sha-256"),
            *("--locale=C", "--encoding=UTF8", "--no-sync"),
        )
        configuration = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": name,
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": f"{name}/server.crt",
            "ssl_key_file": f"{name}/server.key",
        }
        settings = [f"--{key}={value}" for key, value in configuration.items()]
        with (directory / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", "data", *settings], stdout=log, stderr=subprocess.STDOUT, **options
            )
        common = {"user": "postgres", "password": password, "port": port}
        urls = {
            "TLS": f"postgresql:///postgres?{urlencode({**common, 'host': '127.0.0.1', 'sslmode': 'require'})}",
            "Unix socket": f"postgresql:///postgres?{urlencode({**common, 'host': name})}",
        }

        def answers() -> bool:
            assert server.poll() is None, (directory / "log").read_text()
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(urls["TLS"]):
                return True
            return False

        try:
            wait_until(answers, "the server answers", seconds=30)
            yield urls
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait()


PARENT = """
import os, sys, django, psycopg
django.setup()
from django.db import connections
from tests.test_forks import ALIASES, in_child, pid_of

def is_encrypted():
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        return cursor.fetchone()[0]

def in_the_child():
    return [pid_of(alias) for alias in ALIASES]

before = in_the_child()
of_child = in_child(in_the_child)
assert not set(of_child) & set(before)
assert in_the_child() == before

# One that runs to its end, which closes what is left in it.
if (child := os.fork()) == 0:
    connections.close_all()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert in_the_child() == before
print(psycopg.pq.__impl__, is_encrypted())
"""


@pytest.mark.parametrize("transport", ["TLS", "Unix socket"])
@pytest.mark.parametrize("implementation", ["binary", "python"])
def test_the_parents_session_survives_its_children(
    implementation: str, transport: str, tls_server: dict[str, str]
) -> None:
    if implementation == "python" and ctypes.util.find_library("pq") is None:
        pytest.skip("psycopg in pure Python needs libpq, which is not installed")
    if implementation == "binary" and importlib.util.find_spec("psycopg_binary") is None:
        pytest.skip("psycopg-binary has no wheel for this Python")
    environment = {"DATABASE_URL": tls_server[transport], "PSYCOPG_IMPL": implementation}
    process = run("-W", "ignore:.*multi-threaded:DeprecationWarning", "-c", PARENT, **environment)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.split() == [implementation, str(transport == "TLS")]
