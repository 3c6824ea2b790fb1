"""Sites with tenants: what the how-to guide has them paste, and many threads over few connections."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction

from conn_hygiene import release_between_queries, session_settings
from conn_hygiene.middleware import ConnectionHygieneMiddleware
from conn_hygiene.sessions import known
from example_project.embedded import ROOT
from tests.waiting import wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

pytestmark = pytest.mark.django_db(transaction=True)

GUIDE = (ROOT / "docs" / "how-to" / "tenants.rst").read_text()
_BLOCK = re.compile(r"\.\. code-block:: \w+\n   :name: tenants-([\w-]+)\n\n((?:   .*\n|\n)+)")
BLOCKS = {name: re.sub("^   ", "", text, flags=re.M) for name, text in _BLOCK.findall(GUIDE)}

MINE = "SELECT tenant_id FROM invoice ORDER BY tenant_id"


def run(statement: str, params: Any = None) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement, params)
        return cursor.fetchall() if cursor.description else None


@pytest.fixture
def database(admin: psycopg.Connection) -> Iterator[None]:
    """The guide's table, policy and function, as a role that policies bind."""
    admin.execute("CREATE TABLE invoice (tenant_id int NOT NULL)")
    admin.execute("INSERT INTO invoice SELECT generate_series(1, 48)")
    admin.execute(BLOCKS["policy"])
    admin.execute(BLOCKS["function"])
    # As in a process that has just begun.
    known.reset()
    yield
    connections.close_all()
    known.reset()
    admin.execute("DROP TABLE invoice")
    admin.execute("DROP FUNCTION become_tenant")


@pytest.fixture
def releasing(settings: Any) -> Iterator[None]:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}
    connections.close_all()
    with release_between_queries():
        yield
    connections.close_all()


@pytest.fixture
def guide() -> dict[str, Any]:
    """What the guide's Python defines, where a request is its tenant's number."""
    found: dict[str, Any] = {"tenant_id_of": int, "build_report": read_twice}
    for name in ("session-settings", "task", "set", "set-async"):
        exec(BLOCKS[name], found)
    return found


def read_twice() -> list[Any]:
    """Read as a view would that policies bind, and that gives its connection back in between."""
    found = []
    for _ in range(2):
        found.append(read())
        wait_until_released()
    return found


def read() -> Any:
    with session_settings({"role": "pg_read_all_data"}):
        return run(MINE)


def test_all_blocks_of_the_guide_are_found() -> None:
    expected = "session-settings task set set-async function policy schema role pgbouncer"
    assert list(BLOCKS) == expected.split()


@pytest.mark.usefixtures("releasing", "database")
@pytest.mark.parametrize("middleware", ["TenantMiddleware", "SettingMiddleware"])
def test_the_middleware_of_the_guide(guide: dict[str, Any], middleware: str) -> None:
    answer = guide[middleware](lambda request: read_twice())
    for tenant in (7, 8):
        assert answer(tenant) == [[(tenant,)], [(tenant,)]]
        # As at the end of a request.
        connection.close()
    assert read_twice() == [[], []]


@pytest.mark.usefixtures("releasing", "database")
@pytest.mark.parametrize("middleware", ["TenantMiddleware", "AsyncSettingMiddleware"])
async def test_the_middleware_of_the_guide_in_async_code(guide: dict[str, Any], middleware: str) -> None:
    async def view(request: int) -> list[Any]:
        return await sync_to_async(read_twice)()

    answer = guide[middleware](view)
    for tenant in (7, 8):
        assert await answer(tenant) == [[(tenant,)], [(tenant,)]]
        await sync_to_async(connections.close_all)()


@pytest.mark.usefixtures("releasing", "database")
@pytest.mark.parametrize(("middleware", "found"), [("TenantMiddleware", [7, 8]), ("AsyncSettingMiddleware", [8])])
async def test_what_requests_find_that_are_served_at_the_same_time_in_one_thread(
    guide: dict[str, Any], middleware: str, found: list[int]
) -> None:
    begun: set[int] = set()
    both = asyncio.Event()

    async def view(request: int) -> list[int]:
        begun.add(request)
        if len(begun) == 2:
            both.set()
        await both.wait()
        return [tenant for (tenant,) in await sync_to_async(read)()]

    answer: Any = ConnectionHygieneMiddleware(guide[middleware](view))
    first, second = await asyncio.gather(answer(7), answer(8))
    assert first + second == found
    await sync_to_async(connections.close_all)()


@pytest.mark.usefixtures("releasing", "database")
def test_the_task_of_the_guide(guide: dict[str, Any]) -> None:
    assert guide["monthly_report"](7) == [[(7,)], [(7,)]]
    assert read_twice() == [[], []]


@pytest.mark.usefixtures("releasing", "database")
def test_what_a_block_sets_ends_with_it_though_the_catalogue_is_asked_meanwhile() -> None:
    with session_settings({"app.tenant_id": 7}):
        run("SELECT 1")
        wait_until_released()
    assert run("SELECT nullif(current_setting('app.tenant_id', true), '')") == [(None,)]


@pytest.mark.usefixtures("releasing", "database")
def test_the_function_of_the_guide_is_followed_without_being_named() -> None:
    run("SELECT become_tenant(7)")
    assert read_twice() == [[(7,)], [(7,)]]
    connection.close()
    assert read_twice() == [[], []]


@pytest.mark.usefixtures("releasing")
def test_the_settings_of_the_guide_s_schemas_and_roles() -> None:
    names = {"session_settings": session_settings, "schema": "information_schema", "tenant_id": 7}
    with eval(BLOCKS["schema"], names):
        assert run("SELECT current_schemas(false)::text[]") == [(["information_schema", "public"],)]
    run("CREATE ROLE tenant_7")
    try:
        with eval(BLOCKS["role"], names):
            assert run("SELECT current_user::text") == [("tenant_7",)]
    finally:
        run("DROP ROLE tenant_7")


@pytest.mark.usefixtures("releasing", "database")
def test_the_guide_s_way_through_pgbouncer_sets_nothing_in_the_session() -> None:
    class Invoice:
        class objects:
            @staticmethod
            def all() -> Any:
                return [run(MINE), run("SELECT current_setting('app.tenant_id')")]

    names = {"session_settings": session_settings, "Invoice": Invoice}
    exec(BLOCKS["pgbouncer"], names)
    with session_settings({"role": "pg_read_all_data"}):
        assert names["invoices_of"](7) == [[(7,)], [("7",)]]  # type: ignore[operator]
    with transaction.atomic():
        assert run("SELECT nullif(current_setting('app.tenant_id', true), '')") == [(None,)]


# ##### Many threads, few connections #####

JOBS, THREADS, CONNECTIONS = 48, 12, 2


def by_set(tenant: int, work: Callable[[], None]) -> None:
    run(f"SET app.tenant_id = '{tenant}'")
    work()


def by_set_config(tenant: int, work: Callable[[], None]) -> None:
    run("SELECT set_config('app.tenant_id', %s, false)", [str(tenant)])
    work()


def by_role(tenant: int, work: Callable[[], None]) -> None:
    run(f"SET ROLE tenant_{tenant}")
    work()


def by_session_settings(tenant: int, work: Callable[[], None]) -> None:
    with session_settings({"app.tenant_id": tenant}):
        work()


def by_function(tenant: int, work: Callable[[], None]) -> None:
    run("SELECT become_tenant(%s)", [tenant])
    work()


WHOSE = "SELECT current_setting('app.tenant_id', true)"


@pytest.fixture
def few_connections(settings: Any) -> Iterator[None]:
    connections.close_all()
    options = connection.settings_dict["OPTIONS"]
    with pytest.MonkeyPatch.context() as patch:
        connection.close_pool()
        patch.setitem(options, "pool", {"min_size": CONNECTIONS, "max_size": CONNECTIONS, "timeout": 20})
        yield
        connections.close_all()
        connection.close_pool()


@pytest.fixture
def roles(admin: psycopg.Connection) -> Iterator[None]:
    for tenant in range(1, JOBS + 1):
        admin.execute(f"CREATE ROLE tenant_{tenant}")
    yield
    for tenant in range(1, JOBS + 1):
        admin.execute(f"DROP ROLE tenant_{tenant}")


@pytest.mark.usefixtures("database", "few_connections", "roles")
@pytest.mark.parametrize("cleaning", ["auto", "seen", "always"])
@pytest.mark.parametrize(
    ("way", "look", "expected"),
    [
        (by_set, WHOSE, "{}"),
        (by_set_config, WHOSE, "{}"),
        (by_role, "SELECT current_user::text", "tenant_{}"),
        (by_session_settings, WHOSE, "{}"),
        (by_function, WHOSE, "{}"),
    ],
)
def test_each_of_many_jobs_finds_its_own_tenant(
    settings: Any, way: Callable[[int, Callable[[], None]], None], look: str, expected: str, cleaning: str
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0.001, "CLEAN_SESSIONS": cleaning}
    wrong: list[tuple[int, Any]] = []
    todo = iter(range(1, JOBS + 1))
    # Each job waits at a barrier, so that more of them are under way than there are connections.
    meeting = threading.Barrier(THREADS)

    def job(tenant: int) -> None:
        def work() -> None:
            meeting.wait(20)
            found = run(look)
            if found != [(expected.format(tenant),)]:
                wrong.append((tenant, found))

        with release_between_queries():
            way(tenant, work)

    def worker() -> None:
        for tenant in todo:
            try:
                job(tenant)
            finally:
                connections.close_all()

    threads = [threading.Thread(target=worker) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert left_in_the_pool() == {(None, "postgres")}


def left_in_the_pool() -> set[tuple[Any, ...]]:
    pool = connection.pool
    handles = [pool.getconn() for _ in range(CONNECTIONS)]
    try:
        look = "SELECT nullif(current_setting('app.tenant_id', true), ''), current_user::text"
        return {handle.execute(look).fetchone() for handle in handles}
    finally:
        for handle in handles:
            handle.rollback()
            pool.putconn(handle)
