"""A checkout from a native pool by a wrapper that has been connected before: the rest of connect(), and no more."""

from __future__ import annotations

import asyncio
import time
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.psycopg_any import IsolationLevel
from django.db.backends.signals import connection_created
from psycopg_pool import ConnectionPool

import conn_hygiene
from conn_hygiene import release_between_queries
from conn_hygiene.leases.lease import Lease
from conn_hygiene.leases.wrapper import lease_of, plain_class_of
from tests.processes import run
from tests.test_forks import remade
from tests.waiting import wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "small", "unpooled"])


def query(alias: str = "default") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


@pytest.fixture
def connects() -> Iterator[list[str]]:
    """Return a list that grows whenever the whole of Django's connect() runs, in which each alias has been once."""
    found: list[str] = []
    wrappers: list[Any] = [connections[alias] for alias in ("default", "unpooled")]

    def parameters(wrapper: Any) -> Any:
        # The shortcut has no use for them.
        found.append(wrapper.alias)
        return type(wrapper).get_connection_params(wrapper)

    for wrapper in wrappers:
        # Django's test classes leave plain methods on the wrappers that they had forbidden to connect.
        vars(wrapper).pop("connect", None)
        query(wrapper.alias)
        wrapper.close()
        wrapper.get_connection_params = partial(parameters, wrapper)
    yield found
    for wrapper in wrappers:
        wrapper.close()
        del wrapper.get_connection_params


def test_a_closed_wrapper_checks_out_and_no_more(connects: list[str]) -> None:
    before = conn_hygiene.stats().checkouts
    for _ in range(3):
        query()
        connections["default"].close()
    assert conn_hygiene.stats().checkouts == before + 3
    assert connects == []


def test_one_whose_connection_was_released_does_too(connects: list[str]) -> None:
    with release_between_queries():
        for _ in range(3):
            query()
            wait_until_released()
    assert connects == []


def test_without_a_pool_all_of_it_runs(connects: list[str]) -> None:
    query("unpooled")
    assert connects == ["unpooled"]


def test_receivers_of_connection_created_are_called_each_time(connects: list[str]) -> None:
    seen: list[str] = []

    def receive(*, connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
        seen.append(connection.alias)

    connection_created.connect(receive)
    try:
        for _ in range(2):
            query()
            connections["default"].close()
    finally:
        connection_created.disconnect(receive)
    assert seen == connects == ["default", "default"]


def test_what_has_replaced_connect_is_called(connects: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = BaseDatabaseWrapper.connect

    def connect(self: BaseDatabaseWrapper) -> None:
        seen.append(self.alias)
        real(self)

    monkeypatch.setattr(BaseDatabaseWrapper, "connect", connect)
    query()
    assert seen == connects == ["default"]


def test_what_has_replaced_connect_before_the_toolkit_came_is_called() -> None:
    script = """
import django
from django.db.backends.base.base import BaseDatabaseWrapper
real, seen = BaseDatabaseWrapper.connect, []
def connect(self):
    seen.append(self.alias)
    real(self)
BaseDatabaseWrapper.connect = connect
django.setup()
from django.db import connection
for _ in range(3):
    connection.ensure_connection()
    connection.close()
connection.close_pool()
print(len(seen))
"""
    finished = run("-c", script)
    assert (finished.stdout.strip(), finished.stderr) == ("3", "")


@pytest.mark.usefixtures("connects")
def test_a_connect_inside_of_another_one_does_not_end_it() -> None:
    """What a receiver sets does not pin, since it is set at every checkout."""
    calls: list[BaseDatabaseWrapper] = []

    def receive(*, connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
        calls.append(connection)
        if len(calls) == 1:
            connection.close()
            connection.connect()
            with connection.cursor() as cursor:
                cursor.execute("SET statement_timeout = '11s'")
                cursor.execute("LISTEN checkout")

    connection_created.connect(receive)
    try:
        query("unpooled")
    finally:
        connection_created.disconnect(receive)
    lease = lease_of(connections["unpooled"])
    assert lease is not None
    assert len(calls) == 2
    assert (lease.pins, lease.session_state.follows) == ({}, set())


@pytest.mark.parametrize("part", ["get_new_connection", "init_connection_state"])
def test_a_part_that_a_backend_overrides_is_called(
    part: str, connects: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    wrapper = connections["default"]
    plain = plain_class_of(wrapper)  # type: ignore[arg-type]
    real = getattr(plain, part)

    def override(self: Any, *args: Any) -> Any:
        seen.append(part)
        return real(self, *args)

    monkeypatch.setattr(plain, part, override)
    query()
    assert seen == [part]
    assert connects == ["default"]


def test_a_part_that_stands_on_the_wrapper_is_called(connects: list[str]) -> None:
    wrapper: Any = connections["default"]
    seen: list[str] = []
    wrapper.init_connection_state = lambda: seen.append("called")
    query()
    del wrapper.init_connection_state
    assert seen == ["called"]


REMEMBERED = [
    *("autocommit", "in_atomic_block", "savepoint_ids", "atomic_blocks", "needs_rollback", "closed_in_transaction"),
    *("errors_occurred", "run_on_commit", "run_commit_hooks_on_set_autocommit_on"),
    *("health_check_enabled", "health_check_done"),
]


def state() -> dict[str, Any]:
    return {name: copy(getattr(connections["default"], name)) for name in REMEMBERED}


def fail() -> None:
    with pytest.raises(OperationalError), connections["default"].cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def commit() -> None:
    query()
    connections["default"].commit()


def leave_hooks() -> None:
    query()
    with transaction.atomic():
        transaction.on_commit(lambda: None)
        transaction.set_rollback(True)


@pytest.mark.parametrize("before", [query, fail, commit, leave_hooks])
def test_the_wrapper_is_what_connect_would_have_made_of_it(before: Callable[[], Any], connects: list[str]) -> None:
    connections["default"].close()
    BaseDatabaseWrapper.connect(connections["default"])
    whole = state()
    connects.clear()
    before()
    connections["default"].close()
    query()
    assert state() == whole
    assert connects == []


def test_autocommit_off_in_the_settings_is_off_again() -> None:
    with remade("small", AUTOCOMMIT=False):
        wrapper = connections["small"]
        query("small")
        transaction.rollback(using="small")
        transaction.set_autocommit(True, using="small")
        wrapper.close()
        query("small")
        assert not wrapper.get_autocommit()
        transaction.rollback(using="small")


def test_a_connection_that_came_back_without_autocommit_has_it_again(pool_of: Callable[[str], ConnectionPool]) -> None:
    query()
    connections["default"].close()
    pool = pool_of("default")
    taken = [pool.getconn() for _ in range(pool.get_stats()["pool_size"])]
    for each in taken:
        each.autocommit = False
        pool.putconn(each)
    query()
    assert connections["default"].connection.autocommit


def test_a_pools_getconn_of_somebodys_own_is_called_as_django_calls_it(
    pool_of: Callable[[str], ConnectionPool], connects: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ConnectionPool.getconn

    def getconn(pool: Any, timeout: float = 1.0) -> Any:
        return plain(pool, timeout)

    monkeypatch.setattr(ConnectionPool, "getconn", getconn)
    query()
    connections["default"].close()
    taken = [plain(pool_of("default")) for _ in range(pool_of("default").max_size)]
    began = time.monotonic()
    with pytest.raises(OperationalError, match=r"after 1\.00 sec"):
        query()
    assert time.monotonic() - began < pool_of("default").timeout
    for each in taken:
        pool_of("default").putconn(each)

    def without_a_timeout(pool: Any) -> Any:
        return plain(pool)

    monkeypatch.setattr(ConnectionPool, "getconn", without_a_timeout)
    query()
    assert connects == []


def test_a_helper_of_a_backend_is_its_own() -> None:
    with remade("unpooled", ENGINE="tests.helper_backend") as alias:
        for _ in range(2):
            assert query(alias)
            connections[alias].close()


def test_an_isolation_level_that_was_set_on_the_wrapper_is_not_the_next_ones(connects: list[str]) -> None:
    query()
    wrapper: Any = connections["default"]
    usual = wrapper.isolation_level
    wrapper.isolation_level = IsolationLevel.SERIALIZABLE
    wrapper.close()
    query()
    assert wrapper.isolation_level == usual
    assert connects == []


def test_what_the_reaper_has_just_given_back_is_checked_out_again_for_who_reads_the_handle(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    # It is parked, and stays so until then.
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 60}
    with release_between_queries():
        with connections["default"].cursor() as cursor:
            cursor.execute("DISCARD ALL")
        lease = lease_of(connections["default"])
        assert lease is not None
        plain = Lease.take

        def take(self: Lease) -> Any:
            # In the moment between two looks at it.
            monkeypatch.setattr(Lease, "take", plain)
            conn_hygiene.release_connections("default")
            return plain(self)

        monkeypatch.setattr(Lease, "take", take)
        assert connections["default"].connection is not None
        assert query()


def test_on_an_event_loop_it_is_refused_and_changes_nothing(connects: list[str]) -> None:
    async def connect() -> None:
        connections["default"].connect()

    with pytest.raises(SynchronousOnlyOperation):
        asyncio.run(connect())
    query()
    assert connects == []


def test_a_timeout_is_djangos_error_and_the_next_use_tries_again(
    pool_of: Callable[[str], ConnectionPool], connects: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of("default")
    taken = [pool.getconn() for _ in range(pool.max_size)]
    monkeypatch.setattr(pool, "timeout", 0.05)
    try:
        for _ in range(2):
            with pytest.raises(OperationalError, match="couldn't get a connection"):
                query()
    finally:
        for each in taken:
            pool.putconn(each)
    query()
    assert connects == []


def test_one_that_nobody_used_is_no_proof_that_it_lives(pool_of: Callable[[str], ConnectionPool]) -> None:
    """Else a look at a connection that has died in the pool would vouch for it to whoever gets it next."""
    query()
    connections["default"].close()
    pool = pool_of("default")
    with pool.connection() as handle:
        before = vars(handle).get("_conn_hygiene_last_used")
    for _ in range(pool.get_stats()["pool_size"]):
        connections["default"].ensure_connection()
        assert lease_of(connections["default"]) is not None
        if connections["default"].connection is handle:
            connections["default"].close()
            assert vars(handle).get("_conn_hygiene_last_used") == before
            return
        connections["default"].close()
    pytest.fail("The pool did not hand out its own.")
