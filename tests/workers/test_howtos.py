"""The how-to guides whose files are in docs/how-to/files: each file is run as it stands there."""

from __future__ import annotations

import re
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import psutil
import pytest

from example_project.processes import HOST, free_port
from tests.waiting import wait_until
from tests.workers.conftest import ask
from tests.workers.howtos import Project, the_project
from tests.workers.sockets import Socket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from example_project.processes import Child

pytestmark = pytest.mark.usefixtures("unmeasured")

# What is started has said so by then, on the busiest machine.
SECONDS = 90
# Requests or sockets at the same time, over a pool of 2 in each process.
CROWD = 6


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with the_project(tmp_path_factory.mktemp("howtos")) as project:
        yield project


@pytest.fixture(autouse=True)
def nothing_left(project: Project) -> Iterator[None]:
    """See to it that each test leaves no session, and no order's place."""
    yield
    project.wait_until_empty()
    project.rows("UPDATE orders_order SET place = '' RETURNING id")


def places(project: Project) -> dict[int, str]:
    return dict(project.rows("SELECT id, place FROM orders_order WHERE place <> '' ORDER BY id"))


def tracked(*orders: int) -> dict[int, str]:
    return {order: f"PARCEL-{order} is on its way" for order in orders}


# ##### Servers #####

ASGI, WSGI = "mysite.asgi:application", "mysite.wsgi:application"
# As on the page, and in how many processes they load the application, none of which is the one that was started.
SERVERS: dict[str, tuple[str, list[str], int]] = {
    "daphne": ("daphne", ["-b", HOST, "-p", "PORT", ASGI], 0),
    "uvicorn": ("uvicorn", ["--host", HOST, "--port", "PORT", ASGI], 0),
    "hypercorn": ("hypercorn", ["--bind", f"{HOST}:PORT", "--workers", "2", ASGI], 2),
    "granian": ("granian", ["--interface", "asgi", "--host", HOST, "--port", "PORT", "--workers", "2", ASGI], 2),
    "granian, WSGI": (
        "granian",
        ["--interface", "wsgi", "--host", HOST, "--port", "PORT", "--workers", "2", "--blocking-threads", "6", WSGI],
        2,
    ),
}
WITH_SOCKETS = [name for name, (_, arguments, _) in SERVERS.items() if arguments[-1] == ASGI]


class Served:
    def __init__(self, project: Project, port: int, child: Child) -> None:
        self.project = project
        self.port = port
        self.child = child

    def ask_all(self, path: str) -> dict[int, str]:
        """Ask for the orders at the same time, while none is answered before all have asked."""
        with self.project.carrier.together(CROWD), ThreadPoolExecutor(CROWD) as executor:
            orders = range(1, CROWD + 1)
            answers = executor.map(lambda order: ask(self.port, path.format(order)), orders)
            return {order: answer["place"] for order, answer in zip(orders, answers, strict=True)}


@contextmanager
def serving(project: Project, name: str) -> Iterator[Served]:
    module, arguments, processes = SERVERS[name]
    port = free_port()
    arguments = [argument.replace("PORT", str(port)) for argument in arguments]
    with project.running(module, *arguments) as child:
        child.wait_until_ready(port, "/orders/8/", seconds=SECONDS)
        yield Served(project, port, child)
        assert child.log is not None
        # Who loads the settings loads the application.
        loaded = {int(pid) for pid in re.findall(r"Loaded by (\d+)", child.log.read_text())}
        assert len(loaded) == (processes or 1)
        assert (child.process.pid in loaded) == (processes == 0)


def stop(served: Served) -> int:
    """Stop the server as a supervisor does, and return its exit status."""
    process = served.child.process
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        # A worker of granian's that has begun a moment before misses the signal that granian passes on to it: it comes
        # between Python's look at signals and the wait for one.
        for worker in psutil.Process(process.pid).children():
            worker.terminate()
    return process.wait(30)


@pytest.mark.parametrize("name", SERVERS)
def test_server(project: Project, name: str) -> None:
    processes = SERVERS[name][2] or 1
    with serving(project, name) as served:
        assert served.ask_all("/orders/{}/") == tracked(*range(1, CROWD + 1))
        with ExitStack() as stack:
            if name in WITH_SOCKETS:
                assert served.ask_all("/orders/{}/async/") == tracked(*range(1, CROWD + 1))
                use_sockets(served, stack)
            assert len(project.sessions()) <= 2 * processes
            # uvicorn ends by the signal that has stopped it.
            assert stop(served) in {0, -signal.SIGTERM}
            project.wait_until_empty()


def use_sockets(served: Served, stack: ExitStack) -> None:
    """Have as many sockets ask at the same time, of which one is left for the server to end."""
    orders = range(1, CROWD + 1)
    opened = [stack.enter_context(Socket(served.port, f"/ws/orders/{order}/")) for order in orders]
    assert [each.receive() for each in opened] == [f"PARCEL-{order}" for order in orders]
    with served.project.carrier.together(CROWD):
        for each in opened:
            each.send("track")
        assert [each.receive() for each in opened] == [*tracked(*orders).values()]
    for each in opened[1:]:
        each.close()


# ##### Schedulers and queues #####


def test_apscheduler(project: Project) -> None:
    """Four jobs wait at the same time over a pool of 2, and one runs in a process; a stop ends all of them."""
    with project.carrier.together(4), project.running("manage.py", "run_scheduler") as child:
        wait_until(lambda: places(project) == tracked(1, 2, 3, 4), "all jobs have run", SECONDS)
        child.wait_for_output("orders are on their way.", seconds=SECONDS)
        child.process.terminate()
        assert child.process.wait(SECONDS) == 0
        assert "Traceback" not in child.tail(), child.tail()


DEFER = """
from orders import tasks
for pk in range(1, 5):
    tasks.track.defer(pk=pk)
for pk in range(5, 9):
    tasks.atrack.defer(pk=pk)
"""


def test_procrastinate(project: Project) -> None:
    project.manage("shell", "-v0", "-c", DEFER)
    with (
        project.carrier.together(4),
        project.running("manage.py", "procrastinate", "worker", "--concurrency", "4") as child,
    ):
        wait_until(lambda: places(project) == tracked(*range(1, 9)), "all tasks have run", SECONDS)
        listening = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND query LIKE 'LISTEN%%'"
        assert project.watcher.execute(listening, [project.database]).fetchone() == (1,)
        # Django's pool, and one of procrastinate's own. The server may need a moment to end what was closed.
        wait_until(lambda: len(project.sessions()) <= 2 + 5, "no more sessions are there", SECONDS)
        child.process.terminate()
        assert child.process.wait(SECONDS) == 0
    assert project.rows("SELECT status::text, count(*) FROM procrastinate_jobs GROUP BY 1") == [("succeeded", 8)]


# ##### Tests #####


def test_the_test_database_goes_when_jobs_close(project: Project) -> None:
    told = project.manage("test", "orders.tests.OrderTests.test_closing", "--noinput")
    assert "Found 1 test" in told


def test_the_test_database_goes_when_all_is_released(project: Project) -> None:
    told = project.manage("test", "orders", "--settings=mysite.test_settings", "--noinput")
    assert "Found 2 test" in told


# ##### Failover #####

# What an application sees: a standby at first that nobody answers for, then a cut, and then a primary that is none yet.
FAIL_OVER = """
import threading
import psycopg
from django.db import connection
from orders.models import Order

admin = psycopg.connect(autocommit=True)
database = admin.info.dbname

def is_standby(yes):
    admin.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = {yes}")

Order.objects.get(pk=1)
print("on port", connection.connection.info.port)
pid = connection.connection.info.backend_pid
admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
Order.objects.get(pk=1)
print("after a cut: served")
connection.close()
connection.close_pool()
is_standby(True)
promotion = threading.Timer(0.2, is_standby, [False])
promotion.start()
Order.objects.filter(pk=1).update(place="")
promotion.join()
print("after the promotion: written")
connection.close()
connection.close_pool()
"""


def test_failover(project: Project) -> None:
    """One server in two parts: a port where nobody listens, and sessions that can only read until the promotion."""
    port = project.environment["PGPORT"]
    project.environment |= {"DATABASE_HOSTS": f"{HOST},{HOST}", "DATABASE_PORTS": f"{free_port()},{port}"}
    told = project.manage("shell", "-v0", "--settings=mysite.failover_settings", "-c", FAIL_OVER)
    assert told.splitlines()[-3:] == [
        f"on port {port}",
        "after a cut: served",
        "after the promotion: written",
    ]
