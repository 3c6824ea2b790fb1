"""The shop's commands that work in parallel, as its staff run them: in a terminal, with Ctrl-C, and with trouble."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import psutil
import psycopg
import pytest

from example_project.embedded import database_url
from example_project.processes import HOST, ROOT, environment, partner, shop_database
from example_project.shop.parallel import interrupts_deferred
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("unmeasured")

SECONDS = 60

MANAGE = ["example_project/manage.py"]
# The same, with more patience than the shop has.
MANAGE_PATIENTLY = [
    "-c",
    f"""
import sys
from django.core.management import execute_from_command_line
from example_project.shop import carrier
carrier.TIMEOUT = {SECONDS}
execute_from_command_line(sys.argv)
""",
]


class Shop:
    """A shop with 500 orders, and somebody who looks into its database."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env
        self.admin = psycopg.connect(env["DATABASE_URL"], autocommit=True)

    def count(self, query: str, *parameters: Any) -> int:
        row = self.admin.execute(f"SELECT count(*) FROM {query}", parameters).fetchone()
        assert row is not None
        return row[0]

    def sessions(self, condition: str = "true") -> int:
        return self.count(
            f"pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            f" AND backend_type = 'client backend' AND application_name <> 'locker' AND {condition}"
        )

    @contextlib.contextmanager
    def order_lines_locked(self) -> Iterator[psycopg.Connection]:
        """Keep everybody from reading the lines of orders, until the connection that this yields is rolled back."""
        with psycopg.connect(self.env["DATABASE_URL"], application_name="locker") as locker:
            locker.execute("LOCK TABLE shop_orderline")
            yield locker

    @contextlib.contextmanager
    def starting(self, *arguments: Any, manage: Sequence[str] = MANAGE, **env: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command in a process group of its own, as a terminal does."""
        with subprocess.Popen(
            [sys.executable, *manage, *map(str, arguments)],
            cwd=ROOT,
            # The shop logs what the toolkit tells, and so what its catalogue has.
            env=environment({"REPORTS": '{"FOLLOWED_SETTINGS": [], "CLEAN_SESSIONS": "seen"}'} | self.env | env),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def wait_until_waiting(self, workers: int) -> None:
        waiting = "wait_event_type = 'Lock'"
        wait_until(lambda: self.sessions(waiting) == workers, f"{workers} workers have begun", SECONDS)

    def run(self, *arguments: Any, **env: str) -> tuple[int, str, str]:
        with self.starting(*arguments, **env) as process:
            output, errors = process.communicate(timeout=SECONDS)
        self.check_left()
        return process.returncode, output, errors

    def check_left(self) -> None:
        wait_until(lambda: not self.sessions(), "the command's sessions are gone", SECONDS)


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    with shop_database(database_url()) as env:
        shop = Shop(env)
        with shop.admin:
            yield shop


def wait_until_stopping(process: subprocess.Popen[str]) -> None:
    """Return when the command has said that it begins no more."""
    assert process.stderr is not None
    assert any("Stopping" in line for line in process.stderr)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_comes_while_jobs_are_begun_waits_and_is_not_lost(number: signal.Signals) -> None:
    begun = []

    def begin() -> None:
        with interrupts_deferred():
            os.kill(os.getpid(), number)
            begun.append(1)

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert begun


# ##### Processes #####


def test_all_invoices_are_written(shop: Shop, tmp_path: Path) -> None:
    code, output, errors = shop.run("write_invoices", tmp_path / "new", "--workers=2")
    assert (code, output) == (0, "500 of 500 orders are done, 0 failed.\n"), errors
    assert "500/500" in errors
    assert len(list((tmp_path / "new").iterdir())) == 500
    assert "<h1>Invoice 7</h1>" in (tmp_path / "new" / "invoice-7.html").read_text()


def test_one_bad_order_spoils_no_other(shop: Shop, tmp_path: Path) -> None:
    shop.admin.execute(
        "INSERT INTO shop_order (id, customer_id, status, tracking_number, placed_at)"
        " SELECT 501, min(id), 'placed', '', now() FROM shop_customer"
    )
    try:
        code, output, errors = shop.run("write_invoices", tmp_path, "--workers=2", "--chunk=100", "--verbosity=0")
    finally:
        shop.admin.execute("DELETE FROM shop_order WHERE id = 501")
    assert (code, output) == (1, "")
    assert errors.splitlines() == ["Order 501 has no lines.", "CommandError: 500 of 501 orders are done, 1 failed."]
    assert len(list(tmp_path.iterdir())) == 500


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_has_begun_is_finished_when_processes_are_stopped(
    shop: Shop, tmp_path: Path, number: signal.Signals
) -> None:
    command = ["write_invoices", tmp_path, "--workers=2", "--chunk=10"]
    with shop.order_lines_locked() as lock, shop.starting(*command) as process:
        shop.wait_until_waiting(2)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        wait_until_stopping(process)
        lock.rollback()
        output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, output) == (130, "")
    found = re.search(r"CommandError: Stopped\. (\d+) of 500 orders are done, 0 failed\.", errors)
    assert found is not None, errors
    # Two that run, and what the executor has put before the workers: one more for each, and one.
    assert 20 <= int(found[1]) <= 50
    assert len(list(tmp_path.iterdir())) == int(found[1])
    assert "Traceback" not in errors
    shop.check_left()


def test_a_worker_that_is_killed(shop: Shop, tmp_path: Path) -> None:
    with shop.order_lines_locked(), shop.starting("write_invoices", tmp_path, "--workers=2") as process:
        shop.wait_until_waiting(2)
        children = psutil.Process(process.pid).children()
        workers = [child for child in children if any("spawn_main" in part for part in child.cmdline())]
        workers[0].kill()
        output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, output) == (1, "")
    assert errors.count("50 orders: BrokenProcessPool") == 10
    assert "CommandError: 0 of 500 orders are done, 500 failed." in errors
    assert not any(worker.is_running() for worker in workers)
    shop.check_left()


# ##### Threads #####


class Carrier(BaseHTTPRequestHandler):
    """A carrier that has delivered everything, and says so when it is allowed to."""

    server: Any

    def do_GET(self) -> None:
        self.server.asked.release()
        self.server.go_on.wait(SECONDS)
        body = json.dumps({"number": "", "place": "Home", "progress": 100}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def carrier() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer((HOST, 0), Carrier)
    server.asked, server.go_on = threading.Semaphore(0), threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_parcels_are_tracked(shop: Shop, tmp_path: Path) -> None:
    shipped = shop.count("shop_order WHERE status = 'shipped'")
    shop.admin.execute(
        "UPDATE shop_order SET tracking_number = 'no/such' WHERE id IN"
        " (SELECT min(id) FROM shop_order WHERE status = 'shipped')"
    )
    with partner(0, directory=tmp_path) as env:
        code, output, errors = shop.run("track_parcels", **env)
    assert (code, output) == (1, "")
    assert re.search(r"^Order \d+: GET /parcels/no/such: There is no such page\.$", errors, re.MULTILINE)
    assert f"CommandError: {shipped - 1} of {shipped} orders are done, 1 failed." in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_threads_that_wait_for_the_carrier_hold_no_connection(shop: Shop, carrier: Any, number: signal.Signals) -> None:
    shipped = shop.count("shop_order WHERE status = 'shipped'")
    with shop.starting(
        "track_parcels",
        "--workers=8",
        "--chunk=1",
        manage=MANAGE_PATIENTLY,
        CARRIER_URL=f"http://{HOST}:{carrier.server_port}",
    ) as process:
        # Twice as many at a time as the pool has connections.
        assert all(carrier.asked.acquire(timeout=SECONDS) for _ in range(8))
        assert shop.sessions() <= 4
        os.killpg(process.pid, number)
        wait_until_stopping(process)
        carrier.go_on.set()
        output, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, output) == (130, "")
    assert f"CommandError: Stopped. 8 of {shipped} orders are done, 0 failed." in errors
    assert shop.count("shop_order WHERE status = 'shipped'") == shipped - 8
    assert "Traceback" not in errors
    shop.check_left()


@pytest.mark.parametrize("option", ["--workers=0", "--chunk=many"])
def test_numbers_that_make_no_sense(shop: Shop, option: str) -> None:
    code, _, errors = shop.run("track_parcels", option)
    assert code == 2
    assert "is not a number above 0" in errors
