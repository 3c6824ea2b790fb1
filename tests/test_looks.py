"""What a look at a wrapper changes, which is nothing, and what it says where there is no connection to be had."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import OperationalError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper

import conn_hygiene
from conn_hygiene import closing_connections, release_between_queries
from conn_hygiene.leases.djangos import CREATE_CURSOR, CURSOR, ENSURE_CONNECTION
from conn_hygiene.leases.states import CLOSED, GIVEN_BACK, HELD, PARKED, State
from conn_hygiene.leases.wrapper import lease_of
from tests.waiting import end_sessions, holds, let_the_reaper_look, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg_pool import ConnectionPool

    from conn_hygiene.leases.lease import Lease

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "small", "unpooled", "persistent"])

ALIASES = ["default", "unpooled", "persistent"]


def query(alias: str = "small", sql: str = "SELECT 1") -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)


def lease(alias: str = "small") -> Lease:
    found = lease_of(connections[alias])
    assert found is not None
    return found


def given_back(alias: str = "small") -> Any:
    """Query, wait until the connection is given back, and return the wrapper."""
    query(alias)
    wait_until_released(alias)
    assert lease(alias).state == GIVEN_BACK
    return connections[alias]


@pytest.fixture(autouse=True)
def releasing() -> Iterator[None]:
    # Django's test classes leave plain methods on the wrappers that they had forbidden to connect.
    for alias in ("default", "small", "unpooled", "persistent"):
        vars(connections[alias]).pop("connect", None)
    with release_between_queries():
        yield
    connections.close_all()


@pytest.fixture
def nothing_left(pool_of: Callable[[str], ConnectionPool], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give this thread's connection back, and have other threads hold all that the pool has, until the test ends."""
    given_back()
    pool = pool_of("small")
    ready, end = threading.Barrier(pool.max_size + 1), threading.Event()

    @closing_connections
    def hold() -> None:
        with connections["small"].cursor() as cursor:
            cursor.execute("SELECT 1")
            ready.wait(10)
            end.wait(30)

    threads = [threading.Thread(target=hold) for _ in range(pool.max_size)]
    for thread in threads:
        thread.start()
    ready.wait(10)
    monkeypatch.setattr(pool, "timeout", 0.05)
    yield
    end.set()
    for thread in threads:
        thread.join()


def is_there(wrapper: Any) -> bool:
    if wrapper.connection:
        found = True
    else:
        found = False
    return found


def is_there_in_a_loop(wrapper: Any) -> bool:
    found = True
    while wrapper.connection is None and found:
        found = False
    return found


def is_there_and_open(wrapper: Any) -> bool:
    return wrapper.connection is not None and not wrapper.connection.closed and not wrapper.connection.broken


# Each tells whether there is a connection, in a way that public code does.
LOOKS: dict[str, Callable[[Any], bool]] = {
    "if": is_there,
    "while": is_there_in_a_loop,
    "closed": is_there_and_open,
    "is None": lambda wrapper: not (wrapper.connection is None),  # noqa: E714
    "is not None": lambda wrapper: wrapper.connection is not None,
    "if is None": lambda wrapper: False if wrapper.connection is None else True,  # noqa: SIM211
    "== None": lambda wrapper: not (wrapper.connection == None),  # noqa: E711, SIM201
    "not": lambda wrapper: not (not wrapper.connection),  # noqa: SIM208
    "and": lambda wrapper: bool(wrapper and wrapper.connection is not None),
    "if and": lambda wrapper: True if wrapper and wrapper.connection else False,  # noqa: SIM210
    "bool()": lambda wrapper: bool(wrapper.connection),
    "bool() of an item": lambda wrapper: bool([wrapper][0].connection),
    "comprehension": lambda wrapper: bool([each for each in [wrapper] if each.connection]),
}

# Each returns the handle, or what only a handle can tell.
USES: dict[str, Callable[[Any], Any]] = {
    "returned": lambda wrapper: wrapper.connection,
    "or": lambda wrapper: wrapper.connection or None,
    "assigned": lambda wrapper: [handle := wrapper.connection, handle is None],
    "an attribute": lambda wrapper: wrapper.connection.info,
    "an argument": lambda wrapper: isinstance(wrapper.connection, psycopg.Connection),
    "bool() of more": lambda wrapper: bool([wrapper.connection]),
    "compared": lambda wrapper: wrapper.connection is wrapper,
    "by name": lambda wrapper: getattr(wrapper, "connection", None),
    "a method": lambda wrapper: wrapper.connection.cursor(),
}


@pytest.mark.parametrize("proxied", [False, True], ids=["wrapper", "proxy"])
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_look_finds_what_was_given_back_without_a_checkout(look: Callable[[Any], bool], proxied: bool) -> None:
    wrapper = given_back("default")
    checkouts = conn_hygiene.stats().checkouts
    assert look(connection if proxied else wrapper) is True
    assert (lease("default").state, conn_hygiene.stats().checkouts) == (GIVEN_BACK, checkouts)


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_look_is_one_also_where_it_is_repeated(look: Callable[[Any], bool]) -> None:
    """Python runs another instruction than the compiler's where one is repeated."""
    wrapper = given_back("default")
    checkouts = conn_hygiene.stats().checkouts
    assert [look(wrapper) for _ in range(100)] == [True] * 100
    assert (lease("default").state, conn_hygiene.stats().checkouts) == (GIVEN_BACK, checkouts)


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_look_finds_nothing_where_there_is_nothing(look: Callable[[Any], bool]) -> None:
    wrapper = given_back("default")
    wrapper.close()
    assert look(wrapper) is False


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_look_finds_what_is_held(look: Callable[[Any], bool]) -> None:
    with transaction.atomic():
        query("default")
        assert look(connection) is True


@pytest.mark.parametrize("proxied", [False, True], ids=["wrapper", "proxy"])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_use_checks_out(use: Callable[[Any], Any], proxied: bool) -> None:
    wrapper = given_back("default")
    checkouts = conn_hygiene.stats().checkouts
    use(connection if proxied else wrapper)
    assert (lease("default").state, conn_hygiene.stats().checkouts) == (HELD, checkouts + 1)


def test_a_function_that_is_called_bool_may_use_what_it_gets() -> None:
    namespace: dict[str, Any] = {"bool": lambda handle: handle.info.backend_pid}
    exec("def use(wrapper): return bool(wrapper.connection)", namespace)
    assert namespace["use"](given_back("default")) == connection.connection.info.backend_pid


def test_nor_is_it_what_stands_before_the_function() -> None:
    namespace: dict[str, Any] = {"pid_of": lambda handle: handle.info.backend_pid}
    exec("def use(wrapper): return [bool, pid_of(wrapper.connection)]", namespace)
    assert namespace["use"](given_back("default"))[1] == connection.connection.info.backend_pid


def test_a_look_far_down_in_a_long_function_is_one() -> None:
    """Its instructions are preceded by others, which extend their arguments."""
    lines = "\n".join(f"    name_{n} = wrapper.attribute_{n} if wrapper is None else 0" for n in range(300))
    namespace: dict[str, Any] = {}
    exec(f"def look(wrapper):\n{lines}\n    return wrapper.connection is not None", namespace)
    assert namespace["look"](given_back("default")) is True
    assert lease("default").state == GIVEN_BACK


# ##### With a pool that has none left #####


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_look_neither_waits_nor_raises(look: Callable[[Any], bool]) -> None:
    assert look(connections["small"]) is True
    assert lease().state == GIVEN_BACK


@pytest.mark.usefixtures("nothing_left")
def test_what_was_given_back_is_usable() -> None:
    wrapper = connections["small"]
    if wrapper.connection and not wrapper.is_usable():
        wrapper.close()
    assert wrapper.is_usable()
    assert lease().state == GIVEN_BACK


@pytest.mark.usefixtures("nothing_left")
def test_what_tells_the_server_nothing_needs_no_connection() -> None:
    wrapper = connections["small"]
    wrapper.commit()
    wrapper.rollback()
    wrapper.set_autocommit(True)
    wrapper.close_if_health_check_failed()
    wrapper.validate_thread_sharing()
    wrapper.clean_savepoints()
    wrapper.savepoint_commit("none")
    wrapper.on_commit(lambda: None)
    assert (wrapper.savepoint(), wrapper.get_autocommit()) == (None, True)
    assert wrapper.features.is_postgresql_16 == (wrapper.pg_version >= 160000)
    assert lease().state == GIVEN_BACK


@pytest.mark.usefixtures("nothing_left")
def test_a_request_that_ends_needs_none_and_closes_what_django_would_close() -> None:
    wrapper: Any = connections["small"]
    wrapper.close_at += 60
    wrapper.close_if_unusable_or_obsolete()
    assert lease().state == GIVEN_BACK
    wrapper.close_at -= 60
    wrapper.close_if_unusable_or_obsolete()
    assert (lease().state, wrapper.connection) == (CLOSED, None)


def test_what_is_closed_in_any_case_is_not_asked_whether_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper: Any = connections["small"]
    query("small")
    wrapper.errors_occurred = True
    asked: list[object] = []

    def is_usable() -> bool:
        asked.append(wrapper)
        return True

    monkeypatch.setattr(wrapper, "is_usable", is_usable)
    wrapper.close_if_unusable_or_obsolete()
    assert (lease().state, asked) == (CLOSED, [])


def test_what_is_being_closed_is_in_use_until_then(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 60}
    with release_between_queries():
        query("small")
        assert lease().state == PARKED
        found: list[Any] = []

        def close(self: Any) -> None:
            found.append((lease().state, self.connection is lease()._connection, lease().handle is not None))

        with monkeypatch.context() as patch:
            patch.setattr(connections["small"]._conn_hygiene_class, "close", close)
            connections["small"].close()
        assert found == [(HELD, True, True)]
        # It was not closed.
        assert lease().state == PARKED


def test_a_backend_that_closes_what_is_old_in_its_own_way_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper: Any = connections["small"]
    query("small")
    asked: list[object] = []
    own = wrapper._conn_hygiene_class
    monkeypatch.setattr(own, "close_if_unusable_or_obsolete", lambda self: asked.append(self))  # noqa: PLW0108
    wrapper.close_if_unusable_or_obsolete()
    assert asked == [wrapper]
    assert lease().state != CLOSED


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    "use",
    [
        lambda wrapper: wrapper.connection,
        lambda wrapper: wrapper.ensure_connection(),
        lambda wrapper: wrapper.cursor(),
        lambda wrapper: wrapper.set_autocommit(False),
        lambda wrapper: wrapper.ops.compose_sql("SELECT %s", [1]),
    ],
    ids=["connection", "ensure_connection", "cursor", "set_autocommit", "compose_sql"],
)
def test_a_use_waits_and_raises_djangos_error(use: Callable[[Any], Any]) -> None:
    with pytest.raises(OperationalError, match="couldn't get a connection"):
        use(connections["small"])
    assert lease().state == GIVEN_BACK


# ##### In other states #####


@pytest.fixture
def long_grace(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 60, "UNPOOLED_RELEASE_AFTER": 60}


@pytest.mark.usefixtures("long_grace")
@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_look_leaves_what_is_parked(look: Callable[[Any], bool], alias: str) -> None:
    query(alias)
    parked_since = lease(alias).idle_since
    assert look(connections[alias]) is True
    assert (lease(alias).state, lease(alias).idle_since) == (PARKED, parked_since)
    lease(alias).end_if_parked(parked_since + 60)
    assert not holds(alias)


@pytest.mark.usefixtures("long_grace")
def test_a_look_at_what_is_parked_tells_whether_it_is_open() -> None:
    query("default")
    handle: Any = connection.connection
    query("default")
    handle.close()
    assert not is_there_and_open(connection)
    connection.close()


@pytest.mark.usefixtures("long_grace")
@pytest.mark.parametrize("alias", ALIASES)
def test_a_test_of_what_is_parked_asks_the_server_and_leaves_it_parked(
    alias: str, alive: Callable[..., set[int]], admin: psycopg.Connection
) -> None:
    query(alias)
    pid = lease(alias).server_pid
    assert connections[alias].is_usable()
    assert (lease(alias).state, lease(alias).in_use_since) == (PARKED, None)
    end_sessions(admin, pid)
    assert not connections[alias].is_usable()
    connections[alias].close()


@pytest.mark.parametrize("alias", ALIASES)
def test_a_test_leaves_a_handle_out_that_was_read_before(alias: str) -> None:
    query(alias)
    handle: Any = connections[alias].connection
    assert connections[alias].is_usable()
    let_the_reaper_look()
    assert handle.execute("SELECT 1").fetchone() == (1,)
    assert holds(alias)
    query(alias)
    wait_until_released(alias)


def test_a_test_in_a_transaction_leaves_it_open() -> None:
    with transaction.atomic():
        query("default")
        assert connection.is_usable()
        query("default", "SELECT pg_backend_pid()")
    wait_until_released()


def test_another_thread_looks_and_changes_nothing() -> None:
    wrapper = given_back("default")
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.extend([wrapper.connection is not None, wrapper.is_usable()]))
    thread.start()
    thread.join()
    assert (seen, lease("default").state) == ([False, False], GIVEN_BACK)


@pytest.mark.parametrize(("grace", "state"), [(0, GIVEN_BACK), (60, PARKED)], ids=["given back", "parked"])
def test_a_coroutine_may_look_and_not_use(settings: Any, grace: float, state: State) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": grace}
    query("default")
    wrapper = connections["default"]

    async def look_and_use() -> bool:
        found = wrapper.connection is not None
        with pytest.raises(SynchronousOnlyOperation):
            wrapper.ensure_connection()
        return found

    assert (asyncio.run(look_and_use()), lease("default").state) == (True, state)


# ##### Autocommit #####


@pytest.mark.parametrize("alias", ALIASES)
def test_autocommit_is_turned_on_again_without_a_checkout(alias: str) -> None:
    wrapper = connections[alias]
    wrapper.set_autocommit(False)
    query(alias)
    wrapper.commit()
    wait_until_released(alias)
    checkouts = conn_hygiene.stats().checkouts
    wrapper.commit()
    wrapper.rollback()
    wrapper.set_autocommit(True)
    assert (wrapper.get_autocommit(), conn_hygiene.stats().checkouts) == (True, checkouts)
    query(alias)
    wait_until_released(alias)
    assert wrapper.get_autocommit()


# ##### Somebody else's ensure_connection() #####


def test_what_is_put_in_its_place_may_call_the_one_that_it_has_found(monkeypatch: pytest.MonkeyPatch) -> None:
    query("default")
    found = connection.ensure_connection
    connection.close()
    opening: list[bool] = []

    def ensure_connection(self: Any) -> None:
        opening.append(connection.connection is None)
        found()
        if opening == [True]:
            query("default", "SELECT 'what the connection needs'")

    monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", ensure_connection)
    query("default")
    assert opening == [True]
    connection.close()


def test_one_that_was_put_in_the_place_of_djangos_is_called_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    djangos = BaseDatabaseWrapper.ensure_connection

    def ensure_connection(self: Any) -> None:
        calls.append(self.connection is None)
        djangos(self)

    monkeypatch.setattr(BaseDatabaseWrapper, "ensure_connection", ensure_connection)
    query("default")
    wait_until_released()
    query("default")
    wait_until_released()
    assert calls == [True, False]
    # What was Django's is called by it, looks, and connects all the same.
    connection.ensure_connection()
    assert lease("default").state == HELD


def test_the_way_of_these_tests_is_that_of_a_server() -> None:
    assert BaseDatabaseWrapper.ensure_connection is ENSURE_CONNECTION
    assert BaseDatabaseWrapper._cursor is CURSOR
    assert PostgreSQLWrapper.create_cursor is CREATE_CURSOR


# ##### Somebody else's way to a cursor #####


@pytest.mark.parametrize("name", ["_cursor", "create_cursor", "ensure_connection", "_prepare_cursor"])
@pytest.mark.parametrize("place", ["the class", "the wrapper"])
def test_what_somebody_has_put_on_the_way_to_a_cursor_is_called(
    name: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    query("default")
    calls: list[str] = []
    owner: Any = PostgreSQLWrapper if place == "the class" else connections["default"]
    found = getattr(owner, name)

    def instead(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return found(*args, **kwargs)

    monkeypatch.setattr(owner, name, instead)
    query("default")
    assert calls == [name]


@pytest.mark.parametrize("way", ["cursor", "chunked_cursor", "_cursor", "create_cursor"])
@pytest.mark.usefixtures("long_grace")
def test_a_coroutine_is_refused_a_cursor_by_any_way(way: str) -> None:
    async def ask() -> None:
        with pytest.raises(SynchronousOnlyOperation):
            getattr(wrapper, way)()

    wrapper: Any = connections["default"]
    query("default")
    wrapper.inc_thread_sharing()
    try:
        asyncio.run(ask())
    finally:
        wrapper.dec_thread_sharing()


def test_an_error_on_the_way_to_a_cursor_is_djangos(monkeypatch: pytest.MonkeyPatch) -> None:
    def cursor(self: Any, *args: Any, **kwargs: Any) -> None:
        raise psycopg.OperationalError("no cursor today")

    query("default")
    monkeypatch.setattr(psycopg.Connection, "cursor", cursor)
    with pytest.raises(OperationalError, match="no cursor today") as caught, connection.cursor():
        pass
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
