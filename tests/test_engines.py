"""Backends made from Django's, other people's pools, and the options of Django's own backend."""

from __future__ import annotations

import asyncio
import copy
import importlib
import io
import json
import threading
from typing import TYPE_CHECKING, Any

import django
import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.signals import connection_created

import conn_hygiene
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.server.checks import check_databases
from tests.testapp.models import Item
from tests.waiting import end_sessions, holds, let_the_reaper_look, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Alias = str

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "persistent"])

POOL: dict[str, Any] = {"min_size": 1, "max_size": 4, "timeout": 5}


@pytest.fixture(params=[0, 0.001], ids=["at once", "after a grace"])
def releasing(request: pytest.FixtureRequest, settings: Any) -> None:
    settings.CONN_HYGIENE = {
        "RELEASE": "always",
        "RELEASE_AFTER": request.param,
        "UNPOOLED_RELEASE_AFTER": request.param,
    }


# Django's test classes refuse an alias that was not there when they began, so this one is made into another.
REMADE = "unpooled"


@pytest.fixture
def database(transactional_db: None, releasing: None) -> Iterator[Callable[..., Alias]]:
    """Return a function that makes an alias for the test database, with an ENGINE or OPTIONS of its own."""
    wrapper: Any = connections[REMADE]
    settings = connections.settings[REMADE]
    wrapper.close()

    def make(*, options: dict[str, Any] | None = None, **entry: Any) -> Alias:
        connections.settings[REMADE] = {**settings, "OPTIONS": settings["OPTIONS"] | (options or {}), **entry}
        del connections[REMADE]
        return REMADE

    yield make
    connections[REMADE].close()
    if REMADE in DatabaseWrapper._connection_pools:
        connections[REMADE].close_pool()
    connections.settings[REMADE] = settings
    connections[REMADE] = wrapper


def query(alias: Alias, sql: str = "SELECT 1", params: Any = None) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchall()


def use(alias: Alias) -> None:
    """Do what an application does, and see the connection go back each time."""
    before = conn_hygiene.stats()
    assert query(alias) == [(1,)]
    wait_until_released(alias)
    with transaction.atomic(using=alias):
        Item.objects.using(alias).bulk_create(Item(name="a", value=n) for n in range(5))
        let_the_reaper_look()
        assert holds(alias)
    wait_until_released(alias)
    rows = Item.objects.using(alias).order_by("value").iterator(chunk_size=2)
    assert next(rows).value == 0
    let_the_reaper_look()
    assert holds(alias)
    assert [item.value for item in rows] == [1, 2, 3, 4]
    wait_until_released(alias)
    after = conn_hygiene.stats()
    assert after.pinned == before.pinned
    assert after.releases - before.releases >= 3


# ##### Backends made from Django's #####


@pytest.mark.parametrize("options", [{}, {"pool": POOL}], ids=["unpooled", "pooled"])
def test_a_backend_that_counts_connections_and_cursors_goes_on_counting(
    database: Callable[..., Alias], options: dict[str, Any]
) -> None:
    from tests.counting_backend.base import counted

    counted.clear()
    before = conn_hygiene.stats()
    alias = database(ENGINE="tests.counting_backend", options=options)
    use(alias)
    assert connections[alias].__class__.__module__ == "tests.counting_backend.base"
    assert counted["connections"] == conn_hygiene.stats().checkouts - before.checkouts
    executed = counted["executed"]
    query(alias)
    query(alias)
    assert counted["executed"] >= executed + 2


@pytest.mark.parametrize("options", [{}, {"pool": POOL}], ids=["unpooled", "pooled"])
def test_django_prometheus_counts_every_connection_and_query(
    database: Callable[..., Alias], options: dict[str, Any]
) -> None:
    # Its newest release excludes Django 6.1, so not every environment has it.
    prometheus = pytest.importorskip("django_prometheus.db")
    alias = database(ENGINE="django_prometheus.db.backends.postgresql", options=options)
    made = prometheus.connections_total.labels(alias, "postgresql")._value
    before, made_before = conn_hygiene.stats(), made.get()
    use(alias)
    assert made.get() - made_before == conn_hygiene.stats().checkouts - before.checkouts
    executed = prometheus.execute_total.labels(alias, "postgresql")._value
    so_far = executed.get()
    query(alias)
    query(alias)
    assert executed.get() >= so_far + 2


@pytest.fixture
def postgis() -> str:
    """Return the ENGINE of PostGIS, where its C libraries are."""
    try:
        importlib.import_module("django.contrib.gis.db.backends.postgis.base")
    except ImproperlyConfigured:
        pytest.skip("needs the libraries GDAL and GEOS")
    return "django.contrib.gis.db.backends.postgis"


@pytest.mark.parametrize("options", [{}, {"pool": POOL}], ids=["unpooled", "pooled"])
def test_postgis_wrapper_releases(database: Callable[..., Alias], postgis: str, options: dict[str, Any]) -> None:
    # Without the extension in the database the wrapper finds no types to register, and works as PostgreSQL's.
    use(database(ENGINE=postgis, options=options))


@pytest.mark.parametrize("options", [{}, {"pool": POOL}], ids=["unpooled", "pooled"])
def test_postgis_types_are_there_after_each_checkout(
    database: Callable[..., Alias], postgis: str, options: dict[str, Any]
) -> None:
    from django.contrib.gis.db.backends.postgis.adapter import PostGISAdapter
    from django.contrib.gis.geos import Point

    if not query("default", "SELECT 1 FROM pg_available_extensions WHERE name = 'postgis'"):
        pytest.skip("needs a server with PostGIS")
    with connections["default"].cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS postgis")
    alias = database(ENGINE=postgis, options=options)
    for types in connections[alias]._type_infos.values():
        # Filled by the first connection of a process, before the extension was there.
        types.clear()
    for _ in range(3):
        point = PostGISAdapter(Point(1, 2, srid=4326))
        assert query(alias, "SELECT pg_typeof(%s)::text, ST_AsText(%s)", [point, point]) == [("geometry", "POINT(1 2)")]
        wait_until_released(alias)


# ##### A pool from before Django had one: left alone. For the other one, see test_sqlalchemy_pool #####


def close_geventpool(alias: Alias) -> None:
    gevent = importlib.import_module("gevent")
    connections[alias].close()
    connections[alias].closeall()
    # Its event loop would stay with this thread.
    gevent.get_hub().destroy(destroy_loop=True)


def test_geventpool_is_left_alone_and_works(database: Callable[..., Alias]) -> None:
    alias = database(ENGINE="django_db_geventpool.backends.postgresql_psycopg3")
    wrapper = connections[alias]
    cls = type(wrapper)
    checkouts = conn_hygiene.stats().checkouts
    with conn_hygiene.release_between_queries(using=alias):
        pid = query(alias, "SELECT pg_backend_pid()")
        handle = wrapper.connection
        let_the_reaper_look()
        assert wrapper.connection is handle
        with transaction.atomic(using=alias):
            Item.objects.using(alias).create(name="a")
        assert query(alias, "SELECT pg_backend_pid()") == pid
        assert conn_hygiene.release_connections(alias) == 0
    wrapper.close()
    # Back in its own pool, and out of it again.
    assert query(alias, "SELECT pg_backend_pid()") == pid
    assert Item.objects.using(alias).count() == 1
    assert lease_of(wrapper) is None
    assert type(wrapper) is cls
    assert not holds(alias)
    assert conn_hygiene.stats().checkouts == checkouts
    close_geventpool(alias)


def test_nor_does_the_doctor_take_its_options_for_libpqs(database: Callable[..., Alias]) -> None:
    alias = database(ENGINE="django_db_geventpool.backends.postgresql_psycopg3", options={"MAX_CONNS": 4})
    output = io.StringIO()
    call_command("connections", "doctor", f"--database={alias}", "--format=json", stdout=output)
    found = {finding["id"] for finding in json.loads(output.getvalue())["findings"]}
    assert "left-alone" in found
    assert "not-asked" not in found


class AsyncWrapper:
    """What backends for async code have beside Django's wrapper: of no class of Django's, and sends Django's signal."""

    vendor = "postgresql"

    def __init__(self, wrapper: Any) -> None:
        self.alias = wrapper.alias
        self.settings_dict = wrapper.settings_dict
        self.connection: Any = None

    async def connect(self) -> None:
        parameters = connections[self.alias].get_connection_params()
        for name in ("cursor_factory", "context"):
            parameters.pop(name, None)
        self.connection = await psycopg.AsyncConnection.connect(**parameters)
        connection_created.send(sender=type(self), connection=self)


class AsyncWrapperOfAThread(AsyncWrapper):
    """One that remembers the thread of its event loop, as that of django-async-backend does."""

    def __init__(self, wrapper: Any) -> None:
        super().__init__(wrapper)
        self._thread_ident = threading.get_ident()


@pytest.mark.parametrize("cls", [AsyncWrapper, AsyncWrapperOfAThread])
def test_a_wrapper_for_async_code_does_not_speak_for_its_alias(
    database: Callable[..., Alias], caplog: pytest.LogCaptureFixture, cls: type[AsyncWrapper]
) -> None:
    alias = database()

    async def query_async() -> list[tuple[Any, ...]]:
        wrapper = cls(connections[alias])
        await wrapper.connect()
        async with wrapper.connection, wrapper.connection.cursor() as cursor:
            await cursor.execute("SELECT 1")
            rows: list[tuple[Any, ...]] = await cursor.fetchall()
            return rows

    assert asyncio.run(query_async()) == [(1,)]
    assert [record.getMessage() for record in caplog.records if record.name.startswith("conn_hygiene")] == []
    assert [message.id for message in check_databases(None) if message.id == "conn_hygiene.W011"] == []
    use(alias)


# ##### Options of Django's own backend #####


class SlotsCursor(psycopg.ClientCursor[Any]):
    """A cursor without a dict of its own, as psycopg's are."""

    __slots__ = ()


OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "server_side_binding": {"server_side_binding": True},
    "client cursor": {"cursor_factory": psycopg.ClientCursor},
    "cursor with slots": {"cursor_factory": SlotsCursor},
    "isolation_level": {"isolation_level": psycopg.IsolationLevel.SERIALIZABLE},
    "prepare_threshold": {"prepare_threshold": 0},
    "libpq": {"application_name": "shop", "options": "-c statement_timeout=7s -c search_path=public"},
}
POOLS: dict[str, dict[str, Any]] = {"unpooled": {}, "pool=True": {"pool": True}, "pool": {"pool": POOL}}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_do_not_keep_a_connection(
    database: Callable[..., Alias], options: dict[str, Any], pool: dict[str, Any]
) -> None:
    use(database(options=options | pool))


@pytest.mark.parametrize("pool", [None, POOL], ids=["unpooled", "pooled"])
def test_a_cursor_factory_makes_the_cursors_of_every_checkout(database: Callable[..., Alias], pool: Any) -> None:
    alias = database(options={"cursor_factory": SlotsCursor, **({"pool": pool} if pool else {})})
    for _ in range(2):
        with connections[alias].cursor() as cursor:
            assert isinstance(cursor.cursor, SlotsCursor)
        wait_until_released(alias)


@pytest.mark.parametrize("pool", [None, POOL], ids=["unpooled", "pooled"])
def test_server_side_binding_binds_on_the_server_at_every_checkout(database: Callable[..., Alias], pool: Any) -> None:
    alias = database(options={"server_side_binding": True, **({"pool": pool} if pool else {})})
    for _ in range(2):
        assert query(alias, "SELECT %s::int + 1", [1]) == [(2,)]
        with connections[alias].cursor() as cursor:
            assert not isinstance(cursor.cursor, psycopg.ClientCursor)
        wait_until_released(alias)


@pytest.mark.parametrize("pool", [None, POOL], ids=["unpooled", "pooled"])
def test_isolation_level_holds_in_every_transaction(database: Callable[..., Alias], pool: Any) -> None:
    level = psycopg.IsolationLevel.SERIALIZABLE
    alias = database(options={"isolation_level": level, **({"pool": pool} if pool else {})})
    for _ in range(3):
        with transaction.atomic(using=alias):
            assert query(alias, "SHOW transaction_isolation") == [("serializable",)]
        wait_until_released(alias)


def pinned(alias: Alias) -> bool:
    return any(info.alias == alias and info.pinned_by for info in conn_hygiene.snapshot())


def soil(alias: Alias) -> None:
    """Leave state in the session, and close the connection, which has to be cleaned."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SET app.tenant = 'acme'")
        cursor.execute("SET TIME ZONE 'Europe/Oslo'")
        cursor.execute("SET ROLE postgres")
        cursor.execute("CREATE TEMP TABLE t_hygiene (n int)")
    assert pinned(alias)
    connections[alias].close()


# Django itself cannot connect with both a pool and assume_role: see DatabaseOperations.compose_sql(), which asks the
# pool for a connection while the pool is making it.
@pytest.mark.parametrize(
    "options",
    [{"assume_role": "pg_monitor"}, {"options": "-c role=pg_monitor", "pool": {**POOL, "max_size": 1}}],
    ids=["unpooled", "pooled"],
)
def test_assumed_role_is_back_after_cleaning(database: Callable[..., Alias], options: dict[str, Any]) -> None:
    alias = database(options=options)
    for _ in range(2):
        assert query(alias, "SELECT current_user") == [("pg_monitor",)]
        wait_until_released(alias)
    soil(alias)
    assert query(alias, "SELECT current_user, coalesce(current_setting('app.tenant', true), '')") == [
        ("pg_monitor", "")
    ]


@pytest.mark.parametrize("pool", [None, {**POOL, "max_size": 1}], ids=["unpooled", "pooled"])
def test_time_zone_of_the_alias_is_back_after_cleaning(database: Callable[..., Alias], pool: Any) -> None:
    alias = database(TIME_ZONE="Asia/Tokyo", options={"pool": pool} if pool else {})
    before = query(alias, "SELECT pg_backend_pid()")
    for _ in range(2):
        assert query(alias, "SHOW TimeZone") == [("Asia/Tokyo",)]
        wait_until_released(alias)
    soil(alias)
    assert query(alias, "SHOW TimeZone") == [("Asia/Tokyo",)]
    wait_until_released(alias)
    if pool:
        assert query(alias, "SELECT pg_backend_pid()") == before


@pytest.mark.parametrize("pool", [None, POOL], ids=["unpooled", "pooled"])
def test_health_checks_let_a_broken_connection_go(
    database: Callable[..., Alias], pool: Any, admin: psycopg.Connection
) -> None:
    alias = database(CONN_HEALTH_CHECKS=True, CONN_MAX_AGE=0 if pool else None, options={"pool": pool} if pool else {})
    for _ in range(3):
        [(pid,)] = query(alias, "SELECT pg_backend_pid()")
        wait_until_released(alias)
        end_sessions(admin, pid)
        # A request begins, which is what arms Django's own check.
        connections[alias].close_if_unusable_or_obsolete()
        assert query(alias) == [(1,)]
    assert not connections[alias].errors_occurred


@pytest.mark.parametrize("pool", [None, POOL], ids=["unpooled", "pooled"])
def test_health_checks_replace_a_broken_connection_that_is_held(
    database: Callable[..., Alias], pool: Any, admin: psycopg.Connection
) -> None:
    alias = database(CONN_HEALTH_CHECKS=True, CONN_MAX_AGE=0 if pool else None, options={"pool": pool} if pool else {})
    with conn_hygiene.hold_connection():
        [(pid,)] = query(alias, "SELECT pg_backend_pid()")
        end_sessions(admin, pid)
        connections[alias].close_if_unusable_or_obsolete()
        assert query(alias) == [(1,)]
    wait_until_released(alias)


def test_callbacks_of_the_pool_are_called(database: Callable[..., Alias]) -> None:
    checked: list[Any] = []
    reset: list[Any] = []
    pool = POOL | {"reset": reset.append}
    # Before 6.1 Django leaves no room for a check of one's own.
    if django.VERSION >= (6, 1):
        pool["check"] = checked.append
    alias = database(options={"pool": pool})
    before = conn_hygiene.stats().checkouts
    use(alias)
    checkouts = conn_hygiene.stats().checkouts - before
    assert checkouts >= 3
    # The last one is on its way back in a thread of the pool.
    wait_until(lambda: len(reset) == checkouts, "each connection was reset when it came back")
    assert len(checked) in (0, checkouts)
    assert bool(checked) == ("check" in pool)


def test_a_reset_that_fails_costs_the_connection_and_nothing_else(database: Callable[..., Alias]) -> None:
    def resetting(connection: psycopg.Connection[Any]) -> None:
        connection.execute("SELECT 1/0")

    alias = database(options={"pool": {**POOL, "reset": resetting}})
    for _ in range(3):
        assert query(alias) == [(1,)]
        wait_until_released(alias)


# ##### What Django calls a wrapper, and makes from it #####


@pytest.mark.usefixtures("releasing")
@pytest.mark.parametrize("alias", ["default", "unpooled"])
def test_the_wrapper_is_still_of_the_backends_own_class(alias: Alias) -> None:
    query(alias)
    wrapper = connections[alias]
    assert wrapper.__class__ is DatabaseWrapper
    assert isinstance(wrapper, DatabaseWrapper)
    assert type(wrapper).__name__ == "DatabaseWrapper"
    assert type(wrapper).__module__ == DatabaseWrapper.__module__
    assert repr(wrapper) == f"<DatabaseWrapper vendor='postgresql' alias='{alias}'>"
    assert type(wrapper).__doc__ == DatabaseWrapper.__doc__


@pytest.mark.usefixtures("releasing")
def test_connection_created_is_sent_by_the_backends_own_class() -> None:
    seen: list[Any] = []

    def receiver(sender: Any, connection: Any, **kwargs: Any) -> None:
        seen.append(connection)

    connection_created.connect(receiver, sender=DatabaseWrapper)
    try:
        for _ in range(2):
            query("default")
            wait_until_released()
    finally:
        connection_created.disconnect(receiver, sender=DatabaseWrapper)
    assert seen == [connections["default"]] * 2


@pytest.mark.usefixtures("releasing")
@pytest.mark.parametrize("alias", ["default", "unpooled"])
def test_wrapper_copy_is_a_plain_one_that_gets_a_lease_of_its_own(alias: Alias) -> None:
    query(alias)
    wrapper = connections[alias]
    other: Any = wrapper.copy()
    assert type(other) is DatabaseWrapper
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT 1")
        assert lease_of(other) is not lease_of(wrapper)
        wait_until_released(alias)
    finally:
        other.close()
    assert query(alias) == [(1,)]


@pytest.mark.usefixtures("releasing")
@pytest.mark.parametrize("alias", ["default", "unpooled"])
def test_a_shallow_copy_shares_the_connection_and_keeps_it(alias: Alias) -> None:
    connections[alias].ensure_connection()
    handle = connections[alias].connection
    other = copy.copy(connections[alias])
    assert type(other) is DatabaseWrapper
    assert other.connection is handle
    query(alias)
    let_the_reaper_look()
    assert holds(alias)
    with other.cursor() as cursor:
        cursor.execute("SELECT 1")
    other.connection = None
    connections[alias].close()
    assert not holds(alias)


@pytest.mark.usefixtures("releasing")
@pytest.mark.parametrize("alias", ["default", "unpooled"])
def test_the_cursor_without_a_database(alias: Alias) -> None:
    query(alias)
    with connections[alias]._nodb_cursor() as cursor:
        cursor.execute("SELECT current_database() <> %s", [connections[alias].settings_dict["NAME"]])
        assert cursor.fetchone() == (True,)
    wait_until_released(alias)
    assert not conn_hygiene.snapshot()


@pytest.mark.usefixtures("releasing")
@pytest.mark.parametrize("alias", ["default", "unpooled"])
def test_a_wrapper_that_threads_share_is_never_parked(alias: Alias) -> None:
    wrapper: Any = connections[alias]
    wrapper.inc_thread_sharing()
    pids: list[Any] = []

    def in_thread() -> None:
        connections[alias] = wrapper
        for _ in range(3):
            pids.append(query(alias, "SELECT pg_backend_pid()"))
            let_the_reaper_look()
            assert holds(alias)

    try:
        query(alias)
        threads = [threading.Thread(target=in_thread) for _ in range(3)]
        for thread in threads:
            thread.start()
            thread.join()
        assert len(pids) == 9
        assert len({str(pid) for pid in pids}) == 1
        assert conn_hygiene.snapshot()[0].thread_id == threading.get_ident()
    finally:
        wrapper.dec_thread_sharing()
    query(alias)
    wait_until_released(alias)
