"""Into a process and out of it again, without a trace."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core import signals as core_signals
from django.core.signals import setting_changed
from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper
from django.dispatch import Signal
from django.test.testcases import _DatabaseFailure

import conn_hygiene
from conn_hygiene import conf, installation
from conn_hygiene.leases.lease import Lease
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.reaper import reaper
from tests.processes import run
from tests.testapp.models import Item
from tests.waiting import holds, let_the_reaper_look, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg_pool import ConnectionPool

ALIASES = ["default", "unpooled", "persistent"]
SIGNALS = [connection_created, core_signals.request_started, core_signals.request_finished, setting_changed]
CLASSES: list[type] = [
    BaseDatabaseWrapper,
    DatabaseWrapper,
    CursorWrapper,
    psycopg.Connection,
    psycopg.Cursor,
    psycopg.ClientCursor,
    psycopg.ServerCursor,
]

pytestmark = pytest.mark.django_db(transaction=True, databases=[*ALIASES, "sqlite"])


@pytest.fixture
def plain() -> Iterator[None]:
    """Run the test without the toolkit, except where it installs it."""
    connections.close_all()
    conn_hygiene.uninstall()
    yield
    conn_hygiene.uninstall()
    connections.close_all()
    conn_hygiene.install()


def query(alias: str = "default", sql: str = "SELECT 1") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()


def pid(alias: str = "default") -> Any:
    return query(alias, "SELECT pg_backend_pid()")


def picture() -> dict[str, Any]:
    """Return all that the toolkit could leave a trace in."""
    wrappers = {alias: connections[alias] for alias in [*ALIASES, "sqlite"]}
    handles = {alias: wrapper.connection for alias, wrapper in wrappers.items()}
    return {
        "receivers": [list(signal.receivers) for signal in SIGNALS],
        "classes": [dict(vars(cls)) for cls in CLASSES],
        "wrappers": {alias: (wrapper, type(wrapper), set(vars(wrapper))) for alias, wrapper in wrappers.items()},
        "factories": {
            alias: (handle.cursor_factory, handle.server_cursor_factory)
            for alias, handle in handles.items()
            if isinstance(handle, psycopg.Connection)
        },
        "threads": {thread.name for thread in threading.enumerate() if not thread.name.startswith("pool-")},
    }


# ##### Installing and uninstalling #####


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("release_after", [0, 0.001, 60])
@pytest.mark.parametrize("mode", ["scoped", "always", "never"])
def test_uninstall_leaves_django_as_it_was(mode: str, release_after: float) -> None:
    use_everything()
    before = picture()
    conn_hygiene.install(RELEASE=mode, RELEASE_AFTER=release_after, UNPOOLED_RELEASE_AFTER=release_after)
    assert picture() != before
    with conn_hygiene.release_between_queries():
        use_everything()
    conn_hygiene.uninstall()
    # What was given back is opened again, by Django alone.
    use_everything()
    assert picture() == before


def use_everything() -> None:
    for alias in [*ALIASES, "sqlite"]:
        query(alias)
        # Django keeps it once somebody has asked.
        getattr(connections[alias], "pg_version", None)
        list(Item.objects.using("default").iterator())
        with transaction.atomic(using=alias):
            query(alias)


@pytest.mark.usefixtures("plain")
def test_installing_twice_is_installing_once() -> None:
    conn_hygiene.install()
    query()
    before, running, lease = picture(), reaper.running, lease_of(connections["default"])
    conn_hygiene.install()
    assert picture() == before
    assert reaper.running is running
    assert lease_of(connections["default"]) is lease


@pytest.mark.usefixtures("plain")
def test_a_method_that_a_test_class_has_forbidden_is_plain_when_it_comes_back() -> None:
    conn_hygiene.install()
    pid("default")
    wrapper: Any = connections["default"]
    wrapper.connect = _DatabaseFailure(wrapper.connect, "Not in this test.")
    conn_hygiene.uninstall()
    # As the test class does in the end.
    wrapper.connect = wrapper.connect.wrapped
    wrapper.close()
    try:
        assert query() == (1,)
    finally:
        del wrapper.connect


@pytest.mark.usefixtures("plain")
def test_uninstalling_twice_is_uninstalling_once() -> None:
    conn_hygiene.install()
    conn_hygiene.uninstall()
    before = picture()
    conn_hygiene.uninstall()
    assert picture() == before


@pytest.mark.usefixtures("plain")
def test_our_receivers_come_first_and_djangos_keep_their_order() -> None:
    before = [list(signal.receivers) for signal in SIGNALS]
    conn_hygiene.install()
    for signal, receivers in zip(SIGNALS[:3], before[:3], strict=True):
        assert signal.receivers[1:] == receivers


@pytest.mark.usefixtures("plain")
def test_settings_given_to_install_are_forgotten() -> None:
    conn_hygiene.install(RELEASE="always")
    conn_hygiene.uninstall()
    assert conf.current == conf.Settings()
    conn_hygiene.install()
    assert conf.current == conf.Settings()


@pytest.mark.usefixtures("plain")
def test_nothing_to_report_and_nothing_to_do_without_the_toolkit() -> None:
    query()
    assert conn_hygiene.snapshot() == []
    assert set(vars(conn_hygiene.stats()).values()) == {0}
    assert conn_hygiene.release_connections() == 0
    with conn_hygiene.release_between_queries(), conn_hygiene.hold_connection():
        query()
    assert connection.connection is not None


@pytest.mark.usefixtures("plain")
def test_the_reapers_thread_starts_with_the_first_checkout_and_ends_with_uninstall() -> None:
    def there() -> bool:
        return any(thread.name == "conn-hygiene-reaper" for thread in threading.enumerate())

    conn_hygiene.install()
    assert not there()
    query()
    assert there()
    conn_hygiene.uninstall()
    assert not there()


# ##### Connections across the boundary #####


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("alias", ALIASES)
def test_a_connection_that_is_checked_out_at_uninstall_goes_on(alias: str) -> None:
    conn_hygiene.install()
    before = pid(alias)
    conn_hygiene.uninstall()
    assert type(connections[alias]) is DatabaseWrapper
    assert pid(alias) == before
    assert Item.objects.using(alias).count() == 0


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("alias", ALIASES)
def test_a_connection_that_is_parked_at_uninstall_goes_on(alias: str) -> None:
    conn_hygiene.install(RELEASE="always", RELEASE_AFTER=60, UNPOOLED_RELEASE_AFTER=60)
    before = pid(alias)
    conn_hygiene.uninstall()
    assert pid(alias) == before


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("alias", ALIASES)
def test_a_connection_that_is_given_back_at_uninstall_is_opened_again(alias: str) -> None:
    conn_hygiene.install(RELEASE="always", RELEASE_AFTER=0, UNPOOLED_RELEASE_AFTER=0)
    query(alias)
    assert not holds(alias)
    conn_hygiene.uninstall()
    assert connections[alias].connection is None
    assert query(alias) == (1,)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("alias", ALIASES)
def test_a_transaction_goes_on_over_uninstall(alias: str) -> None:
    conn_hygiene.install(RELEASE="always", RELEASE_AFTER=0, UNPOOLED_RELEASE_AFTER=0)
    with transaction.atomic(using=alias):
        Item.objects.using(alias).create(name="a")
        conn_hygiene.uninstall()
        with transaction.atomic(using=alias):
            Item.objects.using(alias).create(name="b")
    assert Item.objects.using(alias).count() == 2


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("alias", ALIASES)
def test_a_connection_that_is_open_at_install_is_included(alias: str) -> None:
    before = pid(alias)
    conn_hygiene.install(RELEASE="always", UNPOOLED_RELEASE_AFTER=0.001)
    [info] = [info for info in conn_hygiene.snapshot() if info.alias == alias]
    assert info.server_pid == before[0]
    connections[alias].close()
    assert query(alias) == (1,)
    wait_until_released(alias)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("alias", ALIASES)
def test_installing_inside_a_transaction_does_not_harm_it(alias: str) -> None:
    with transaction.atomic(using=alias):
        Item.objects.using(alias).create(name="a")
        conn_hygiene.install(RELEASE="always", UNPOOLED_RELEASE_AFTER=0.001)
        query(alias)
        let_the_reaper_look()
        assert holds(alias)
        Item.objects.using(alias).create(name="b")
    connections[alias].close()
    assert Item.objects.using(alias).count() == 2
    wait_until_released(alias)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("alias", ALIASES)
def test_installing_in_manual_transaction_management_does_not_harm_it(alias: str) -> None:
    connections[alias].ensure_connection()
    transaction.set_autocommit(False, using=alias)
    Item.objects.using(alias).create(name="a")
    conn_hygiene.install(RELEASE="always", UNPOOLED_RELEASE_AFTER=0.001)
    query(alias)
    let_the_reaper_look()
    assert holds(alias)
    transaction.commit(using=alias)
    assert Item.objects.using(alias).count() == 1
    assert not transaction.get_autocommit(using=alias)
    transaction.rollback(using=alias)
    transaction.set_autocommit(True, using=alias)


@pytest.mark.usefixtures("plain")
def test_other_threads_connections_are_included_when_they_next_connect() -> None:
    opened, installed, looked, done = (threading.Event() for _ in range(4))
    seen: list[Any] = []

    def work() -> None:
        query()
        opened.set()
        installed.wait()
        seen.append(lease_of(connections["default"]))
        connection.close()
        query()
        seen.append(lease_of(connections["default"]))
        looked.set()
        done.wait()
        connection.close()

    thread = threading.Thread(target=work)
    thread.start()
    opened.wait()
    conn_hygiene.install()
    assert conn_hygiene.snapshot() == []
    installed.set()
    looked.wait()
    assert len(conn_hygiene.snapshot()) == 1
    done.set()
    thread.join()
    assert seen[0] is None
    assert isinstance(seen[1], Lease)


@pytest.mark.usefixtures("plain")
def test_installing_and_uninstalling_in_a_loop_leaks_nothing(pool_of: Callable[[str], ConnectionPool]) -> None:
    query()
    before = picture()
    reapers: list[Any] = []
    leases: list[Any] = []
    for number in range(30):
        conn_hygiene.install(RELEASE="always", RELEASE_AFTER=number % 3 * 0.0005)
        query()
        query("unpooled")
        reapers.append(weakref.ref(reaper.running))
        leases.append(weakref.ref(lease_of(connections["default"])))
        conn_hygiene.uninstall()
    query()
    connections["unpooled"].close()
    wait_until(lambda: gc.collect() >= 0 and not any(ref() for ref in leases), "all leases are collected")
    assert [ref() for ref in reapers] == [None] * 30
    before["wrappers"].pop("unpooled")
    after = picture()
    after["wrappers"].pop("unpooled")
    assert after == before
    connection.close()
    stats = pool_of("default").get_stats()
    assert stats["pool_available"] == stats["pool_size"]


@pytest.mark.usefixtures("plain")
def test_uninstalling_while_other_threads_are_between_queries() -> None:
    conn_hygiene.install(RELEASE="always", RELEASE_AFTER=0)
    ready, go = threading.Barrier(4), threading.Event()
    answers: list[Any] = []

    def work() -> None:
        query()
        ready.wait()
        go.wait()
        answers.append((query(), type(connections["default"])))
        connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.wait()
    conn_hygiene.uninstall()
    go.set()
    for thread in threads:
        thread.join()
    assert answers == [((1,), DatabaseWrapper)] * 3


@pytest.mark.usefixtures("plain")
def test_nothing_is_left_behind_the_lock() -> None:
    """Installing from a receiver, as a library might, must not wait for itself."""
    conn_hygiene.install()

    def receiver(**kwargs: Any) -> None:
        conn_hygiene.install()

    connection_created.connect(receiver)
    try:
        query()
    finally:
        connection_created.disconnect(receiver)
    assert reaper.installing.acquire(blocking=False)
    reaper.installing.release()


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("alias", ALIASES)
def test_cursors_that_are_open_at_uninstall_go_on(alias: str) -> None:
    Item.objects.bulk_create(Item(name="n", value=n) for n in range(4))
    conn_hygiene.install(RELEASE="always", RELEASE_AFTER=0, UNPOOLED_RELEASE_AFTER=0)
    rows = Item.objects.using(alias).order_by("value").iterator(chunk_size=2)
    assert next(rows).value == 0
    with connections[alias].cursor() as cursor:
        conn_hygiene.uninstall()
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
    assert [item.value for item in rows] == [1, 2, 3]
    assert query(alias) == (1,)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("alias", ALIASES)
def test_a_server_side_cursor_that_is_open_at_install_is_not_cut_off(alias: str) -> None:
    Item.objects.bulk_create(Item(name="n", value=n) for n in range(4))
    rows = Item.objects.using(alias).order_by("value").iterator(chunk_size=2)
    assert next(rows).value == 0
    conn_hygiene.install(RELEASE="always", UNPOOLED_RELEASE_AFTER=0.001)
    query(alias)
    let_the_reaper_look()
    assert [item.value for item in rows] == [1, 2, 3]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    ("statement", "look", "meanwhile", "afterwards"),
    [
        ("SET app.tenant = 'acme'", "SELECT coalesce(current_setting('app.tenant', true), '')", "", ""),
        ("SET TIME ZONE 'Asia/Tokyo'", "SHOW TimeZone", "UTC", "UTC"),
        ("CREATE TEMP TABLE t_before (n int)", "SELECT to_regclass('t_before')::text", None, None),
        ("SET ROLE pg_monitor", "SELECT current_user = session_user", True, True),
        ("SELECT pg_advisory_lock(4711)", "SELECT pg_try_advisory_xact_lock(4711)", False, True),
        ("LISTEN before_install", "SELECT count(*) FROM pg_listening_channels()", 0, 0),
    ],
)
def test_session_state_from_before_install_stays_with_its_owner_and_ends_with_it(
    statement: str, look: str, meanwhile: Any, afterwards: Any
) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
    conn_hygiene.install(RELEASE="always", RELEASE_AFTER=0)
    query()
    assert seen_by_another_thread(look) == {meanwhile}
    connection.close()
    assert seen_by_another_thread(look) == {afterwards}


def seen_by_another_thread(look: str) -> set[Any]:
    """Return what a query answers on every connection that the pool has to give."""
    seen: set[Any] = set()

    def work() -> None:
        left = connections["default"].pool.max_size - len(conn_hygiene.snapshot())
        wrappers = [connections["default"].copy() for _ in range(left)]
        with ExitStack() as stack:
            # Open cursors keep each on a connection of its own.
            for cursor in [stack.enter_context(wrapper.cursor()) for wrapper in wrappers]:
                cursor.execute(look)
                seen.add(cursor.fetchone()[0])
        for wrapper in wrappers:
            wrapper.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return seen


# ##### Scripts, and how they end #####

SCRIPT = """
import json, sys
from django.conf import settings
from tests.settings import DATABASES
settings.configure(DATABASES=DATABASES)
import conn_hygiene
conn_hygiene.install(**json.loads(sys.argv[1]))
import django
django.setup()
from django.db import connection, connections, transaction

def query(alias="default"):
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()[0]
"""


def script(text: str, **settings: Any) -> list[str]:
    """Run a script that has `query` and the toolkit with *settings*, and return what it prints; it must end cleanly."""
    process = run("-c", SCRIPT + text, json.dumps(settings))
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout.splitlines()


def test_a_script_needs_install_and_no_more() -> None:
    text = """
for alias in "default", "unpooled":
    print(query(alias), query(alias))
print(conn_hygiene.stats().releases, len(conn_hygiene.snapshot()))
"""
    assert script(text, RELEASE="always", RELEASE_AFTER=0, UNPOOLED_RELEASE_AFTER=0) == ["1 1", "1 1", "4 0"]


def test_a_script_that_never_releases() -> None:
    text = """
with conn_hygiene.release_between_queries():
    print(query(), query())
print(conn_hygiene.stats().releases, len(conn_hygiene.snapshot()))
"""
    assert script(text, RELEASE="never", RELEASE_AFTER=0) == ["1 1", "0 1"]


def test_installing_without_settings_says_so_and_installs_nothing() -> None:
    text = """
import conn_hygiene
from conn_hygiene.reaper import reaper
from django.core.exceptions import ImproperlyConfigured
try:
    conn_hygiene.install(RELEASE="always")
except ImproperlyConfigured as exc:
    print("settings are not configured" in str(exc), reaper.running)
"""
    process = run("-c", text, DJANGO_SETTINGS_MODULE="")
    assert (process.returncode, process.stderr, process.stdout) == (0, "", "True None\n")


def test_installing_reads_settings_that_nobody_has_read_yet() -> None:
    text = """
import conn_hygiene
conn_hygiene.install(RELEASE_AFTER=1)
from conn_hygiene import conf
print(conf.current.RELEASE, conf.current.RELEASE_AFTER)
"""
    process = run("-c", text, DJANGO_SETTINGS_MODULE="tests.settings_for_scripts")
    assert (process.returncode, process.stderr, process.stdout) == (0, "", "always 1\n")


EXITS = {
    "parked": 'query(); query("unpooled")',
    "in a transaction": "transaction.set_autocommit(False); query()",
    "in atomic": "transaction.atomic().__enter__(); query()",
    "with an open cursor": "cursor = connection.cursor(); cursor.execute('SELECT 1')",
    "with a cursor in a cycle": "cursor = connection.cursor(); cursor.me = cursor; del cursor",
    "from sys.exit": "query(); sys.exit()",
    "after a query at exit": "import atexit; atexit.register(query); query()",
    # Without a pool: psycopg_pool starts threads, which Python 3.12 forbids once it has begun to exit.
    "after a first query at exit": "import atexit; atexit.register(query, 'unpooled')",
    "uninstalled": "query(); conn_hygiene.uninstall()",
    "uninstalled at exit": "import atexit; atexit.register(conn_hygiene.uninstall); query()",
    "with a thread that goes on querying": """
import threading
query()
def work():
    for _ in range(200):
        query()
threading.Thread(target=work).start()
""",
    "with a thread that ends after the main one": """
import threading
query()
def work():
    query()
    threading.main_thread().join()
    query()
threading.Thread(target=work).start()
""",
    "with daemon threads that query": """
import threading
ready = threading.Barrier(4)
def work():
    query()
    ready.wait()
    while True:
        query()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
ready.wait()
""",
    "with daemon threads that hold": """
import threading
ready = threading.Barrier(4)
def work():
    query()
    transaction.set_autocommit(False)
    query()
    ready.wait()
    threading.Event().wait()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
ready.wait()
""",
    "with an executor": """
from concurrent.futures import ThreadPoolExecutor
executor = ThreadPoolExecutor(4)
print(sum(executor.map(lambda _: query(), range(100))))
""",
    "with dead threads": """
import threading
for _ in range(8):
    thread = threading.Thread(target=query)
    thread.start()
    thread.join()
""",
    "in async code": """
import asyncio
from asgiref.sync import sync_to_async
async def main():
    print(await asyncio.gather(*(asyncio.to_thread(query) for _ in range(3))), await sync_to_async(query)())
asyncio.run(main())
""",
    "with logging": "import logging; logging.basicConfig(stream=sys.stdout, level='DEBUG'); query()",
}


@pytest.mark.slow
@pytest.mark.parametrize("release_after", [0.001, 60])
@pytest.mark.parametrize("text", EXITS.values(), ids=EXITS)
def test_a_process_ends_quietly(text: str, release_after: float) -> None:
    script(text, RELEASE="always", RELEASE_AFTER=release_after, UNPOOLED_RELEASE_AFTER=release_after)


def test_its_receiver_comes_first_where_another_thread_connects_one_at_that_moment() -> None:
    def other(**kwargs: object) -> None:
        """The other thread's."""

    def own(**kwargs: object) -> None:
        """The toolkit's."""

    class Crowded(Signal):
        def connect(self, receiver: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
            super().connect(receiver, *args, **kwargs)
            if receiver is own:
                super().connect(other)

    signal = Crowded()
    signal.connect(other)
    installation._connect_first(signal, own)
    assert [receiver for receiver, _ in signal.send_robust(sender=None)] == [own, other]
