from __future__ import annotations

import inspect
import os
import shutil
import signal
import tempfile
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from asgiref.sync import async_to_sync
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper
from django.test import SimpleTestCase
from django.test.testcases import _DatabaseFailure

import conn_hygiene
from conn_hygiene.leases.djangos import ENSURE_CONNECTION
from conn_hygiene.sessions import known
from conn_hygiene.work import serving
from example_project import embedded
from tests.leftovers import Leftovers

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from psycopg_pool import ConnectionPool


# Where the run keeps what it knows of what tests may leave.
_LEFTOVERS = pytest.StashKey[Leftovers]()


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes "-n auto" means: most tests wait, so twice as many as there are processors.

    One process, this one, on a server that the environment names: tests create roles there, which all would share.
    """
    return 2 * (os.cpu_count() or 1) if embedded.is_own_server() else 0


def pytest_xdist_setupnodes() -> None:
    """Have each process start a server of its own: it would inherit the one that loading the settings has started."""
    embedded.stop_own_server()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Take note of what was there before the tests."""
    session.config.stash[_LEFTOVERS] = Leftovers()


def pytest_configure() -> None:
    """Have Ctrl-C work where the tests are run in the background of a shell, which ignores it.

    Tests send it to commands that they start, and those inherit what is ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Where processes answer for themselves: none but this one and those that it starts, however many run beside it.
    os.environ["XDG_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="tests-")


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(os.environ.pop("XDG_RUNTIME_DIR"), ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Run an async test the way Django's own test classes do.

    Under `async_to_sync`, thread-sensitive code runs in the main thread, and so on the connections of the fixtures.
    A plugin that runs the loop itself would send it to a thread with connections of its own.
    """
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = async_to_sync(pyfuncitem.obj)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
    """Fail every test after which a connection is missing from a pool, and a module's last one for what is left.

    A hook and not a fixture: only here has every fixture, the database's included, given back its own. And around all
    others: pytest keeps what was logged until then, and a logged exception its stack, threads included.
    """
    try:
        result = yield
    except BaseException:
        if item.cls is None:
            _allow_all_databases()
        raise
    _check_pools()
    # Of functions and policies that are gone with their test.
    if any(each.findings is None or each.findings.leaves_state for each in known._known.values()):
        known.reset()
    # AsyncClient ends its requests in another thread than they began in, so that they seem to be served for ever.
    serving.label = serving.request = None
    if nextitem is None or nextitem.path != item.path:
        left = item.config.stash[_LEFTOVERS].found()
        if left:
            pytest.fail("\n".join([f"The tests of {item.path.name} leave behind:", *left]), pytrace=False)
    return result


def _allow_all_databases() -> None:
    """Undo what pytest-django leaves where its teardown fails: later tests would be refused what that one was."""
    for each in connections.all(initialized_only=True):
        for name in [name for name, value in vars(each).items() if isinstance(value, _DatabaseFailure)]:
            delattr(each, name)


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    """Check the pools after the last test too, before the test database goes, and its pool with it."""
    # Making the database leaves a connection to it open, which whichever test is the first would find.
    connections.close_all()
    yield
    _check_pools()
    # Django closes the pool of the alias that the database was made for, and none of its mirrors'.
    for alias in list(DatabaseWrapper._connection_pools):
        connections[alias].close_pool()


def _check_pools() -> None:
    if any(wrapper.in_atomic_block for wrapper in connections.all(initialized_only=True)):
        # Between the tests of one of Django's TestCases, all of which are in one transaction.
        return
    connections.close_all()
    # A thread that has just ended, or a new connection on its way into the pool, may need a moment.
    deadline = time.monotonic() + 2
    while left := [*_not_in_their_pools(), *conn_hygiene.snapshot()]:
        if time.monotonic() > deadline:
            pytest.fail(f"A connection was not given back: {left}", pytrace=False)
        time.sleep(0.01)


def _not_in_their_pools() -> Iterator[str]:
    for alias, pool in DatabaseWrapper._connection_pools.items():
        stats = pool.get_stats()
        if stats["pool_available"] < stats["pool_size"]:
            yield f"{alias!r}, {stats}"


@pytest.fixture(autouse=True)
def djangos_own_way_to_a_connection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo that Django's test classes replace its `ensure_connection()`, which nobody does in a server.

    The toolkit goes another way where somebody has done that. Tests that are such classes go that one.
    """
    of_a_class = request.cls is not None and issubclass(request.cls, SimpleTestCase)
    # Not pytest-django's, which refuses connections to tests that have not asked for any.
    if not of_a_class and BaseDatabaseWrapper.ensure_connection.__name__ == "patched_ensure_connection":
        monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", ENSURE_CONNECTION)


@pytest.fixture(scope="module")
def unmeasured() -> Iterator[None]:
    """Have coverage leave the processes alone that a module's tests start: what they run is measured elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture
def admin(transactional_db: None) -> Iterator[psycopg.Connection]:
    """Return a connection that looks on: to the test database, but through neither Django nor a pool."""
    parameters = connections["default"].get_connection_params() | {"application_name": "admin", "autocommit": True}
    with psycopg.connect(**parameters) as connection:
        yield connection


@pytest.fixture
def alive(admin: psycopg.Connection) -> Callable[..., set[int]]:
    """Return a function that tells which of some sessions the server still has."""

    def which(*pids: int) -> set[int]:
        return {pid for (pid,) in admin.execute("SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)", [list(pids)])}

    return which


@pytest.fixture
def pool_of() -> Callable[[str], ConnectionPool]:
    """Return a function that gives the native pool of an alias."""
    return lambda alias: connections[alias].pool
