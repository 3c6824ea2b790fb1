"""Threads that are gevent's or eventlet's greenlets: patched in time, too late, forked, killed. Each in a process."""

from __future__ import annotations

import os
import re

import pytest

from tests.processes import run

pytestmark = pytest.mark.slow

PATCHES = {
    "gevent": """
from gevent import monkey; monkey.patch_all()
import gevent
spawn, sleep, join = gevent.spawn, gevent.sleep, lambda greenlet: greenlet.join()
""",
    "eventlet": """
import warnings; warnings.simplefilter("ignore")
import eventlet; eventlet.monkey_patch()
spawn, sleep, join = eventlet.spawn, eventlet.sleep, lambda greenlet: greenlet.wait()
""",
}
both = pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)

SETUP = """
import gc, os, threading
import django
django.setup()
import conn_hygiene
from conn_hygiene.leases.wrapper import lease_of
from django.db import connection, connections, transaction
from tests.waiting import wait_until

conn_hygiene.install(RELEASE="always")

def pid():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]

def released():
    return conn_hygiene.stats().releases
"""


def output_of(*parts: str, **environment: str) -> str:
    """Return what a script of those *parts* prints; fail if it says anything else."""
    # Python's, of a fork beside threads.
    process = run(
        "-W", "ignore::DeprecationWarning", "-W", "ignore::ResourceWarning", "-c", "\n".join(parts), **environment
    )
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


IMPORTED = """
import sys
import conn_hygiene
from conn_hygiene.contrib.gunicorn import post_fork, pre_fork, worker_exit
for hook in (pre_fork, post_fork, worker_exit):
    hook(None, None)
print(sorted({name.partition(".")[0] for name in sys.modules} & {"asgiref", "django", "psycopg", "psycopg_pool"}))
print(sorted(name for name in sys.modules if name.startswith("conn_hygiene.")))
print(set(conn_hygiene.__all__) <= set(dir(conn_hygiene)), hasattr(conn_hygiene, "no_such_name"))
"""


def test_the_hooks_for_gunicorn_import_nothing_that_would_be_there_before_the_patching() -> None:
    modules = ["conn_hygiene.contrib", "conn_hygiene.contrib.gunicorn", "conn_hygiene.home"]
    assert output_of(IMPORTED) == f"[]\n{modules}\nTrue False\n"


DISCARDS_WHAT_WAS_OPEN_BEFORE_ITS_OWN_IMPORT = """
import conn_hygiene, django, os
from django.conf import settings
settings.INSTALLED_APPS.remove("conn_hygiene")
django.setup()
from django.db import connection

connection.ensure_connection()
child = os.fork()
if child == 0:
    os._exit(10 + conn_hygiene.close_all_after_fork())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) > 10)
connection.close()
connection.close_pool()
"""


def test_the_process_that_imports_the_package_is_the_first_also_if_nothing_of_it_was_used() -> None:
    assert output_of(DISCARDS_WHAT_WAS_OPEN_BEFORE_ITS_OWN_IMPORT) == "True\n"


# Eight on four connections meet between their queries, which they could not if they kept what they have.
MEET = """
met = []

def work():
    pid()
    met.append(lease_of(connections["default"]).thread_id)
    while len(met) < 8:
        sleep(0.001)
    pid()

for greenlet in [spawn(work) for _ in range(8)]:
    join(greenlet)
print(len(set(met)))
"""


@both
def test_each_greenlet_has_a_lease_and_gives_back_between_its_queries(patch: str) -> None:
    assert output_of(patch, SETUP, MEET, CONN_HYGIENE_DEBUG="1") == "8\n"


GONE = """
import logging
from conn_hygiene.leases import ended

# It says that it discards the connection.
logging.getLogger("psycopg.pool").setLevel("ERROR")

def transact():
    with transaction.atomic():
        left, handle = pid(), connections["default"].connection
        seen = [ended.is_left(handle)]
        other = connections["default"].copy()
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [left])
        other.close()
        print(*seen, ended.is_left(handle))
        transaction.set_rollback(True)

transact()
"""


@both
def test_the_end_of_a_session_is_seen(patch: str) -> None:
    assert output_of(patch, SETUP, GONE) == "False True\n"


KILLED = """
began = []

def transact():
    with transaction.atomic():
        pid()
        began.append(conn_hygiene.snapshot()[0].in_transaction)
        sleep(30)

greenlet = spawn(transact)
wait_until(lambda: began, "it is in its transaction")
greenlet.kill()
del greenlet
wait_until(lambda: not conn_hygiene.snapshot(), "its connection is back")
wait_until(lambda: conn_hygiene.pool_stats()[0].available == conn_hygiene.pool_stats()[0].size, "in the pool")
print(began)
"""


@both
def test_a_greenlet_that_is_killed_in_a_transaction_gives_back(patch: str) -> None:
    assert output_of(patch, SETUP, KILLED) == "[True]\n"


LEFT = """
import logging
logging.disable()

def leave_open():
    transaction.set_autocommit(False)
    pid()

join(spawn(leave_open))

def is_reclaimed():
    # eventlet keeps a greenlet's locals until the next one uses them.
    join(spawn(pid))
    gc.collect()
    return conn_hygiene.stats().reclaimed == 1

wait_until(is_reclaimed, "its connection was reclaimed")
print(conn_hygiene.stats().reclaimed)
"""


@both
def test_what_a_greenlet_leaves_behind_is_reclaimed(patch: str) -> None:
    assert output_of(patch, SETUP, LEFT) == "1\n"


# ##### Too late #####

LATE = """
# Of the main greenlet, which may go on. The reaper was a thread, and is another thread from here on.
del connections["default"]
before = released()
for _ in range(2):
    pid()
    wait_until(lambda: released() > before, "it was released")
    before = released()

def work():
    try:
        pid()
    except Exception as error:
        print(type(error).__name__, error)

connections["default"].close()
del connections["default"]
join(spawn(work))
"""
USED_BEFORE = """
from conn_hygiene import closing_connections
thread = threading.Thread(target=closing_connections(lambda: (pid(), wait_until(released, "it was released"))))
thread.start()
thread.join()
"""


def test_patched_too_late_a_greenlet_is_refused_and_the_main_one_is_not() -> None:
    said = output_of(SETUP, USED_BEFORE, PATCHES["gevent"], LATE)
    assert said == (
        "ImproperlyConfigured Django was imported before gevent patched threading: all greenlets share one connection. "
        "Patch before anything imports Django: `from gevent import monkey; monkey.patch_all()` as the first line of "
        "the program, or of gunicorn.conf.py with preload_app. For eventlet it is `import eventlet; "
        "eventlet.monkey_patch()`.\n"
    )


def test_patched_before_the_toolkit_and_after_django_that_is_said_at_its_start() -> None:
    process = run("-W", "ignore::DeprecationWarning", "-c", "import django.db\n" + PATCHES["gevent"] + SETUP)
    assert process.returncode == 0
    assert "Django was imported before gevent patched threading" in process.stderr


# ##### Forks: greenlets survive in the child, wherever they stand #####

BUSY = """
import logging
from django.db import OperationalError

# In a child, the pool tells of what has been given back there.
logging.disable()

failed, used = [], set()

def be_busy():
    mine = os.getpid()
    while not failed or os.getpid() != mine:
        with connection.cursor() as cursor:
            used.add(cursor.connection)
            try:
                cursor.execute("SELECT pg_sleep(0.005), repeat('x', 20000)")
            except OperationalError:
                # In a child, the server has hung up.
                failed.append(os.getpid())
                return

busy = [spawn(be_busy) for _ in range(3)]
pid()
connection.close()
wait_until(lambda: len(conn_hygiene.snapshot()) == 3, "all are busy")
"""
FORKED = """
def fork():
    waited_for = [each for each in used if each.lock.locked()]
    child = os.fork()
    if child == 0:
        # What is freed under a greenlet that waits for it may end the process, and need not.
        if any(each.closed for each in waited_for):
            os._exit(2)
        mine = [pid() for _ in range(3)][0]
        for _ in range(1000):
            if len(failed) < 3:
                sleep(0.01)
        # As the interpreter does, in the end.
        gc.collect()
        os._exit(0 if mine not in of_parent and len(failed) == 3 else 1)
    sleep(0.02)
    return os.waitpid(child, 0)[1]

of_parent = {each.server_pid for each in conn_hygiene.snapshot()}
statuses = {fork() for _ in range(8)}
print(statuses, len(of_parent) > 2, failed, any(each.dead for each in busy), flush=True)
os._exit(0)
"""


GROWING = """
import logging, time
from django.db import OperationalError

logging.disable()
home, failed = os.getpid(), []

def be_busy():
    # In a child, each of these is one of its own: nobody else has queries on the parent's.
    while not failed or os.getpid() != home:
        try:
            with connection.cursor() as cursor:
                if os.getpid() != home and socket_of(cursor.connection) in inherited:
                    os.write(1, b"the child has a session of its parent's\\n")
                cursor.execute("SELECT pg_sleep(0.005), repeat('x', 20000)")
        except OperationalError:
            failed.append(os.getpid())

def socket_of(session):
    return os.readlink(f"/proc/self/fd/{session.pgconn.socket}")

def sockets():
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            pass
    return {link for link in links if link.startswith("socket")}

pid()
busy = [spawn(be_busy) for _ in range(3)]
# At one moment or another of its making.
seen, until = 0, time.monotonic() + 3
while seen < TURNS and time.monotonic() < until:
    sleep(0)
    seen += bool(connection.pool._growing and connection.pool._waiting)
inherited = sockets()
child = os.fork()
if child == 0:
    # Where a thread has been started, and has yet to run, Python complains of it in the child.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    sleep(0.5)
    os._exit(0)
sleep(0.7)
print(os.waitpid(child, 0)[1], failed, any(each.dead for each in busy), flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="the system does not tell whose a descriptor is")
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_session_that_a_greenlet_is_about_to_have_as_its_process_forks_stays_the_parents(turns: int) -> None:
    assert output_of(PATCHES["gevent"], SETUP, GROWING.replace("TURNS", str(turns))) == "0 [] False\n"


def test_what_a_greenlet_uses_as_its_process_forks_is_not_freed_in_the_child() -> None:
    assert output_of(PATCHES["gevent"], SETUP, BUSY, FORKED) == "{0} True [] False\n"


EXECS = """
import logging, subprocess, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
before = pid()
subprocess.run(["true"], preexec_fn=lambda: None)
print("from here on it is a process of its own", flush=True)
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
# Whatever the first has done to it, the parent goes on in its session.
print(pid() == before)
"""


@pytest.mark.parametrize("patch", ["", PATCHES["gevent"]], ids=["threads", "gevent"])
def test_a_child_that_becomes_another_program_discards_nothing(patch: str) -> None:
    said = output_of(patch, SETUP, "hold = conn_hygiene.hold_connection(); hold.__enter__()", EXECS)
    first, rest = said.split("from here on it is a process of its own\n")
    assert first == ""
    assert re.fullmatch(r"Discarded \d inherited connections? of default after a fork.\nTrue\n", rest), rest
