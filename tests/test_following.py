"""What a request sets in its session follows it from connection to connection, and reaches nobody else."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.signals import request_finished, request_started
from django.db import Error, OperationalError, close_old_connections, connection, connections, transaction
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper
from django.db.backends.signals import connection_created
from psycopg import sql

from conn_hygiene import events, hold_connection, release_between_queries, release_connections
from conn_hygiene.leases.returns import Return
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.pools import base as pools
from conn_hygiene.reaper import reaper
from conn_hygiene.sessions import catalogue, cleaning, following, known, state
from conn_hygiene.sessions.effects import SETTING
from conn_hygiene.sessions.following import Carried
from conn_hygiene.sessions.plan import Plan
from tests.waiting import end_sessions, holds, let_the_reaper_look, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "persistent"])


@pytest.fixture(params=[0, 0.001], ids=["at once", "after a grace"])
def releasing(request: pytest.FixtureRequest, settings: Any) -> Iterator[None]:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": request.param, "UNPOOLED_RELEASE_AFTER": request.param}
    connections.close_all()
    with release_between_queries():
        yield
    connections.close_all()


def run(statement: Any, params: Any = None, alias: str = "default") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement, params)
        return cursor.fetchall() if cursor.description else None


@contextlib.contextmanager
def in_another_session(alias: str = "default") -> Iterator[None]:
    """Have the block run in another session than what was before it: somebody else has that one meanwhile."""
    wait_until_released(alias)
    pool = getattr(connections[alias], "pool", None)
    if pool is None:
        yield
        return
    lease = lease_of(connections[alias])
    assert lease is not None
    taken = []
    while pool.get_stats()["pool_available"]:
        taken.append(pool.getconn(timeout=1))
    # It knows its last session's still.
    last = [each for each in taken if each.info.backend_pid == lease.server_pid]
    for each in taken:
        if each not in last:
            pool.putconn(each)
    try:
        yield
    finally:
        for each in last:
            pool.putconn(each)


def seen_by_others(look: str, alias: str = "default") -> set[Any]:
    """Return what *look* gives in all sessions that are in the pool now."""
    wait_until_released(alias)
    pool = connections[alias].pool
    handles = [pool.getconn() for _ in range(4)]
    try:
        return {handle.execute(look).fetchone()[0] for handle in handles}
    finally:
        for handle in handles:
            handle.rollback()
            pool.putconn(handle)


TENANT = "SELECT current_setting('app.tenant', true)"


@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.parametrize("failing", ["get_connection_params", "init_connection_state"])
@pytest.mark.usefixtures("releasing")
def test_it_follows_through_a_backend_that_tries_again(
    alias: str, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a backend closes what has failed, be it before the session is there or while it is set up."""
    plain, works = PostgreSQLWrapper.connect, getattr(PostgreSQLWrapper, failing)
    failures: list[str] = []

    def fail_once(self: Any) -> Any:
        if not failures:
            failures.append(self.alias)
            raise OperationalError("the server is starting up")
        return works(self)

    def try_twice(self: Any) -> None:
        try:
            plain(self)
        except OperationalError:
            self.close()
            plain(self)

    run("SET app.tenant = 'acme'", alias=alias)
    wait_until_released(alias)
    monkeypatch.setattr(PostgreSQLWrapper, "connect", try_twice)
    monkeypatch.setattr(PostgreSQLWrapper, failing, fail_once)
    assert run(TENANT, alias=alias) == [("acme",)]
    assert failures == [alias]


# The server cuts a name off where it is written as one, and not where it is a string.
LONG = "app." + "t" * 64
LONG_BEYOND_ASCII = "app." + "日" * 22

# Ways to set something, with what shows it, and what it shows to somebody new; None where that is none or empty.
WAYS = {
    "SET": ("SET statement_timeout = '7s'", None, "SHOW statement_timeout", "0"),
    "SET SESSION": ("SET SESSION lock_timeout TO 7000", None, "SHOW lock_timeout", "0"),
    "of one's own": ("SET app.tenant = 'acme'", None, TENANT, None),
    "quotes in it": ("SET app.tenant = 'o''hara\\ \"q\"'", None, TENANT, None),
    "beyond ASCII": ("SET app.tenant = 'Grüße, 日本'", None, TENANT, None),
    "quoted name": ('SET "app"."tenant" = \'acme\'', None, TENANT, None),
    "search_path": ("SET search_path = pg_catalog, \"a, b\", 'public'", None, "SHOW search_path", '"$user", public'),
    "TIME ZONE": ("SET TIME ZONE 'Asia/Tokyo'", None, "SHOW TimeZone", "UTC"),
    "TIME ZONE as an interval": (
        "SET TIME ZONE INTERVAL '-08:30' HOUR TO MINUTE",
        None,
        "SELECT (now()::text ~ '-08:30$')::text",
        "false",
    ),
    "ROLE": ("SET ROLE pg_monitor", None, "SELECT (current_user = 'pg_monitor')::text", "false"),
    "SESSION AUTHORIZATION": (
        "SET SESSION AUTHORIZATION pg_monitor",
        None,
        "SELECT (session_user = 'pg_monitor')::text",
        "false",
    ),
    "set_config": ("SELECT set_config('app.tenant', 'acme', false)", None, TENANT, None),
    "set_config with a parameter": ("SELECT set_config('app.tenant', %s, false)", ["acme"], TENANT, None),
    "all of it parameters": ("SELECT set_config(%s, %s, %s)", ["app.tenant", "acme", False], TENANT, None),
    "long name": (
        f"SELECT set_config('{LONG}', 'acme', false)",
        None,
        f"SELECT current_setting('{LONG}', true)",
        None,
    ),
    "long name, as a parameter": (
        "SELECT set_config(%s, 'acme', false)",
        [LONG_BEYOND_ASCII],
        f"SELECT current_setting('{LONG_BEYOND_ASCII}', true)",
        None,
    ),
    "CHARACTERISTICS": (
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        None,
        "SHOW transaction_isolation",
        "read committed",
    ),
    "several": ("SELECT 1; SET app.tenant = 'acme'; SET lock_timeout = '3s'", None, TENANT, None),
}
ways = pytest.mark.parametrize(("statement", "params", "look", "clean"), WAYS.values(), ids=WAYS)


@ways
@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.usefixtures("releasing")
def test_what_is_set_follows_its_owner(alias: str, statement: str, params: Any, look: str, clean: Any) -> None:
    assert (run(look, alias=alias)[0][0] or None) == clean
    wait_until_released(alias)
    run(statement, params, alias=alias)
    with transaction.atomic(using=alias):
        expected, before = run(look, alias=alias), run("SELECT pg_backend_pid()", alias=alias)
    assert expected[0][0] != clean
    for _ in range(3):
        with in_another_session(alias), transaction.atomic(using=alias):
            now = run("SELECT pg_backend_pid()", alias=alias)
            assert (run(look, alias=alias), now == before) == (expected, False)
            before = now


@ways
@pytest.mark.usefixtures("releasing")
def test_what_is_set_is_seen_by_nobody_else(statement: str, params: Any, look: str, clean: Any) -> None:
    run(statement, params)
    assert {value or None for value in seen_by_others(look)} == {clean}
    run("SELECT 1")
    assert {value or None for value in seen_by_others(look)} == {clean}
    connection.close()
    assert {value or None for value in seen_by_others(look)} == {clean}
    assert (run(look)[0][0] or None) == clean


@ways
def test_pinning_is_still_to_be_had(settings: Any, statement: str, params: Any, look: str, clean: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0, "ON_SET": "pin"}
    with release_between_queries():
        run(statement, params)
        let_the_reaper_look()
        assert holds("default")
        assert run(look)[0][0] != clean
        connection.close()


@pytest.mark.usefixtures("releasing")
def test_all_that_is_set_follows_together() -> None:
    run("SET app.a = '1'")
    run("SET app.b = '2'")
    with in_another_session():
        run("SET app.a = '3'")
    run("SET search_path = pg_catalog")
    with in_another_session():
        run("SET ROLE pg_monitor")
    look = (
        "SELECT current_setting('app.a'), current_setting('app.b'), current_setting('search_path'), current_user::text"
    )
    with in_another_session():
        assert run(look) == [("3", "2", "pg_catalog", "pg_monitor")]


@pytest.mark.usefixtures("releasing")
@pytest.mark.parametrize(
    ("reset", "expected"),
    [
        ("RESET app.tenant", ""),
        ("SET app.tenant TO DEFAULT", ""),
        ("SET app.tenant = ''", ""),
        ("SELECT set_config('app.tenant', NULL, false)", ""),
    ],
)
def test_what_is_reset_stays_reset(reset: str, expected: str) -> None:
    run("SET app.tenant = 'acme'")
    with in_another_session():
        run(reset)
    with in_another_session():
        assert run(TENANT) == [(expected,)]


@pytest.mark.usefixtures("releasing")
def test_the_server_is_asked_what_a_transaction_has_left() -> None:
    run("SET app.tenant = 'acme'")
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        run("SET app.tenant = 'other'")
        run("SET LOCAL lock_timeout = '5s'")
        raise ZeroDivisionError
    with in_another_session():
        assert run(TENANT) == [("acme",)]
    with transaction.atomic():
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            run("SET app.tenant = 'savepoint'")
            raise ZeroDivisionError
        run("SET lock_timeout = '3s'")
        run("SET LOCAL lock_timeout = '5s'")
        assert run("SHOW lock_timeout") == [("5s",)]
    with in_another_session():
        assert run(TENANT) == [("acme",)]
        assert run("SHOW lock_timeout") == [("3s",)]


@pytest.mark.usefixtures("releasing")
def test_what_is_local_pins_nothing_and_does_not_follow() -> None:
    with transaction.atomic():
        run("SELECT set_config(%s, %s, %s)", ["app.tenant", "acme", True])
        assert run(TENANT) == [("acme",)]
    wait_until_released()
    with in_another_session():
        assert run(TENANT)[0][0] in (None, "")


@pytest.mark.usefixtures("releasing")
def test_what_follows_is_set_before_anything_else_runs_and_after_what_receivers_set() -> None:
    seen = []

    def receiver(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(TENANT)
            seen.append(cursor.fetchone()[0])
            cursor.execute("SET app.tenant = 'by the receiver'")

    run("SET app.tenant = 'acme'")
    wait_until_released()
    connection_created.connect(receiver)
    try:
        with in_another_session():
            assert run(TENANT) == [("acme",)]
    finally:
        connection_created.disconnect(receiver)
    assert seen[0] == "acme"
    connection.close()
    assert {value or None for value in seen_by_others(TENANT)} == {None}


@contextlib.contextmanager
def set_by_a_receiver(*statements: str) -> Iterator[None]:
    """Have *statements* executed at each checkout, as a receiver of ``connection_created`` does."""

    def receiver(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    connection_created.connect(receiver)
    try:
        yield
    finally:
        connection_created.disconnect(receiver)


def stays_as_the_server_has_it(alias: str, back: str, look: str) -> None:
    """Check that *back* undoes for the rest of its request what is set up in each session, and for nobody else."""
    with hold_connection():
        set_up = run(look, alias=alias)
        run(back, alias=alias)
        expected = run(look, alias=alias)
    assert expected != set_up
    for _ in range(3):
        with in_another_session(alias):
            assert run(look, alias=alias) == expected
    connections[alias].close()
    assert run(look, alias=alias) == set_up


# What a receiver sets, what brings back what the server has, and what shows it.
BACK = {
    "SET": ("SET statement_timeout = '7s'", "SET statement_timeout = 0", "SHOW statement_timeout"),
    "SET TO DEFAULT": ("SET search_path = pg_catalog", "SET search_path TO DEFAULT", "SHOW search_path"),
    "RESET": ("SET search_path = pg_catalog", "RESET search_path", "SHOW search_path"),
    "of one's own": ("SET app.tenant = 'acme'", "RESET app.tenant", TENANT),
    # The server's own is not UTC, which is what Django sets.
    "TIME ZONE": ("SET TIME ZONE 'Asia/Tokyo'", "SET TIME ZONE 'UTC'", "SHOW TimeZone"),
    "RESET ROLE": ("SET ROLE pg_monitor", "RESET ROLE", "SELECT current_user::text"),
    "SET ROLE NONE": ("SET ROLE pg_monitor", "SET ROLE NONE", "SELECT current_user::text"),
    "SESSION AUTHORIZATION": (
        "SET SESSION AUTHORIZATION pg_monitor",
        "RESET SESSION AUTHORIZATION",
        "SELECT session_user::text",
    ),
    "which takes the role back": (
        "SET ROLE pg_monitor",
        "SET SESSION AUTHORIZATION DEFAULT",
        "SELECT current_user::text",
    ),
    "a name that cannot be read": (
        "SELECT set_config('statement_' || 'timeout', '7s', false)",
        "RESET statement_timeout",
        "SHOW statement_timeout",
    ),
    "DISCARD ALL": ("SET statement_timeout = '7s'", "DISCARD ALL", "SHOW statement_timeout"),
}


@pytest.mark.parametrize(("statement", "back", "look"), BACK.values(), ids=BACK)
@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.usefixtures("releasing")
def test_the_servers_default_goes_over_what_a_receiver_sets(alias: str, statement: str, back: str, look: str) -> None:
    with set_by_a_receiver(statement):
        stays_as_the_server_has_it(alias, back, look)


# The same as nobody sees it: what a function does. Its names follow since the catalogue has them.
IN_A_FUNCTION = {
    "SET": ("SET statement_timeout = '7s'", "SET statement_timeout = 0", "SHOW statement_timeout"),
    "RESET": ("SET lock_timeout = '7s'", "RESET lock_timeout", "SHOW lock_timeout"),
    "of one's own": ("SET app.tenant = 'acme'", "PERFORM set_config('app.tenant', '', false)", TENANT),
    "RESET ROLE": ("SET ROLE pg_monitor", "RESET ROLE", "SELECT current_user::text"),
    "SET ROLE NONE": ("SET ROLE pg_monitor", "SET ROLE none", "SELECT current_user::text"),
}


@pytest.mark.parametrize(("statement", "back", "look"), IN_A_FUNCTION.values(), ids=IN_A_FUNCTION)
@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.usefixtures("releasing")
def test_so_does_that_of_a_function(
    alias: str, statement: str, back: str, look: str, admin: psycopg.Connection
) -> None:
    admin.execute(f"CREATE FUNCTION go_back() RETURNS void LANGUAGE plpgsql AS $$ BEGIN {back}; END $$")
    known.reset()
    try:
        with set_by_a_receiver(statement):
            stays_as_the_server_has_it(alias, "SELECT go_back()", look)
    finally:
        admin.execute("DROP FUNCTION go_back()")


@pytest.mark.usefixtures("releasing")
def test_a_reset_of_everything_stays_with_its_session() -> None:
    with set_by_a_receiver("SET statement_timeout = '7s'"):
        run("RESET ALL")
        let_the_reaper_look()
        assert (holds("default"), run("SHOW statement_timeout")) == (True, [("0",)])
        connection.close()
        assert run("SHOW statement_timeout") == [("7s",)]


@pytest.fixture
def reconfigured(monkeypatch: pytest.MonkeyPatch, releasing: None) -> Iterator[Callable[..., None]]:
    """Return a function that gives "unpooled" OPTIONS of its own, in a wrapper that has never connected."""
    entry, usual = connections.settings["unpooled"], connections["unpooled"]

    def reconfigure(**options: Any) -> None:
        monkeypatch.setitem(entry, "OPTIONS", {**entry["OPTIONS"], **options})
        connections["unpooled"] = connections.create_connection("unpooled")

    yield reconfigure
    connections["unpooled"].close()
    connections["unpooled"] = usual


@pytest.fixture
def assumed_role(reconfigured: Callable[..., None]) -> None:
    """Have Django assume a role: nobody sees the statement then."""
    reconfigured(assume_role="pg_monitor")


@pytest.mark.parametrize("back", ["RESET ROLE", "SET ROLE NONE", "SET SESSION AUTHORIZATION DEFAULT", "DISCARD ALL"])
@pytest.mark.usefixtures("assumed_role")
def test_an_assumed_role_that_was_given_up_is_not_assumed_again(back: str) -> None:
    stays_as_the_server_has_it("unpooled", back, "SELECT current_user::text")


def is_pinned_as_the_server_has_it(alias: str, look: str) -> None:
    set_up = run(look, alias=alias)
    run("DISCARD ALL", alias=alias)
    let_the_reaper_look()
    assert holds(alias)
    assert run(look, alias=alias) != set_up
    connections[alias].close()
    assert run(look, alias=alias) == set_up


@pytest.fixture
def pinning(settings: Any, releasing: None) -> None:
    settings.CONN_HYGIENE = {**settings.CONN_HYGIENE, "ON_SET": "pin"}


@pytest.mark.usefixtures("pinning")
def test_where_nothing_follows_it_pins_that_receivers_have_set_what_is_discarded(
    reconfigured: Callable[..., None],
) -> None:
    reconfigured(options="-c TimeZone=UTC")
    with set_by_a_receiver("SET statement_timeout = '7s'"):
        is_pinned_as_the_server_has_it("unpooled", "SHOW statement_timeout")


@pytest.mark.usefixtures("pinning")
def test_so_it_does_that_a_role_was_assumed(reconfigured: Callable[..., None]) -> None:
    # The rights are the same then, so that the server reports nothing.
    reconfigured(options="-c TimeZone=UTC", assume_role="postgres")
    is_pinned_as_the_server_has_it("unpooled", "SELECT current_setting('role')")


@pytest.mark.usefixtures("pinning")
def test_so_it_does_that_the_servers_time_zone_is_another(reconfigured: Callable[..., None]) -> None:
    reconfigured(options="-c TimeZone=Asia/Tokyo")
    is_pinned_as_the_server_has_it("unpooled", "SHOW TimeZone")


@pytest.mark.usefixtures("pinning")
def test_where_nothing_was_set_up_nothing_pins_that_was_discarded(reconfigured: Callable[..., None]) -> None:
    reconfigured(options="-c TimeZone=UTC")
    run("SET statement_timeout = '7s'", alias="unpooled")
    let_the_reaper_look()
    assert holds("unpooled")
    run("DISCARD ALL", alias="unpooled")
    wait_until_released("unpooled")


@pytest.fixture(
    params=[
        "_configure_connection",
        "_configure_role",
        "_configure_timezone",
        "get_new_connection",
        "init_connection_state",
    ]
)
def own_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, releasing: None) -> Iterator[None]:
    """Have the backend set something in each new session, in one of its methods, by statements that nobody sees."""
    plain: Any = type(connection.copy())
    own = getattr(plain, request.param)

    def set_up(self: Any, *args: Any) -> Any:
        result = own(self, *args)
        handle = args[0] if request.param.startswith("_configure") else self.connection
        if request.param == "get_new_connection":
            handle = result
        handle.execute("SET lock_timeout = '7s'")
        if not handle.autocommit:
            handle.commit()
        return result

    connections.close_all()
    connection.close_pool()
    monkeypatch.setattr(plain, request.param, set_up)
    yield
    connections.close_all()
    connection.close_pool()


@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.usefixtures("own_backend")
def test_the_servers_default_goes_over_what_a_backend_of_ones_own_sets(alias: str) -> None:
    stays_as_the_server_has_it(alias, "RESET lock_timeout", "SHOW lock_timeout")


@pytest.mark.usefixtures("own_backend")
def test_what_nobody_can_set_is_not_set_to_its_default() -> None:
    with pytest.raises(Error):
        run("SET server_version = '1'")
    run("RESET search_path")
    with in_another_session():
        assert run("SELECT 1") == [(1,)]


@pytest.mark.parametrize("seen", [True, False])
def test_the_default_follows_where_a_pool_may_set_another(admin: psycopg.Connection, seen: bool) -> None:
    names = frozenset({"lock_timeout"})
    plan = Plan(follow=names, unseen=frozenset() if seen else names, resets=names)
    fresh = state.reported_parameters(admin)
    for configure, expected in ((ignores, {"lock_timeout": None} if seen else {}), (None, {})):
        assert cleaning.clean(admin, plan, fresh, configure, configures_more=True) == expected


@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.usefixtures("releasing")
def test_the_default_does_not_follow_where_nothing_sets_another(alias: str) -> None:
    with set_by_a_receiver("SET lock_timeout = '7s'"):
        run("SET statement_timeout = '7s'", alias=alias)
        run("RESET statement_timeout", alias=alias)
        wait_until_released(alias)
        lease = lease_of(connections[alias])
        assert lease is not None
        assert lease.carried is not None
        assert lease.carried.result(5) == {}


@pytest.mark.parametrize("alias", ["default", "unpooled", "persistent"])
@pytest.mark.usefixtures("releasing")
def test_what_is_set_ends_with_its_request_also_if_all_is_given_back_by_then(alias: str) -> None:
    request_started.send(sender=None, environ={"REQUEST_METHOD": "GET", "PATH_INFO": "/"})
    run("SET app.tenant = 'acme'", alias=alias)
    wait_until_released(alias)
    request_finished.send(sender=None)
    assert run(TENANT, alias=alias)[0][0] in (None, "")


@pytest.mark.usefixtures("releasing")
def test_what_is_set_ends_where_django_closes_what_is_old() -> None:
    run("SET app.tenant = 'acme'")
    wait_until_released()
    close_old_connections()
    assert run(TENANT)[0][0] in (None, "")


@pytest.mark.usefixtures("releasing")
def test_what_follows_is_set_where_nobody_is_told_of_a_new_session() -> None:
    run("SET app.tenant = 'acme'")
    connection_created.connect(ignores)
    receivers, connection_created.receivers = connection_created.receivers, []
    connection_created.sender_receivers_cache.clear()
    try:
        for _ in range(2):
            with in_another_session():
                assert run(TENANT) == [("acme",)]
    finally:
        connection_created.receivers = receivers
        connection_created.disconnect(ignores)


def ignores(*args: Any, **kwargs: Any) -> None:
    """Have every checkout be a connect()."""


def test_what_is_on_its_way_back_is_waited_for(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0.001}
    on_its_way, goes_on = threading.Event(), threading.Event()
    scrub, found = pools.scrub, []

    def scrub_later(*args: Any) -> Any:
        on_its_way.set()
        assert goes_on.wait(10)
        return scrub(*args)

    monkeypatch.setattr(pools, "scrub", scrub_later)

    def work() -> None:
        with contextlib.closing(connection), release_between_queries():
            run("SET app.tenant = 'acme'")
            on_its_way.wait(10)
            with contextlib.suppress(OperationalError):
                found.extend(run(TENANT))

    thread = threading.Thread(target=work)
    thread.start()
    assert on_its_way.wait(10)
    wait_until(lambda: not thread.is_alive() or waits_for_what_is_carried(thread), "its owner waits")
    goes_on.set()
    thread.join()
    assert found == [("acme",)]


def waits_for_what_is_carried(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code is Carried.result.__code__:
            return True
        frame = frame.f_back
    return False


@pytest.fixture
def role(admin: psycopg.Connection) -> Iterator[str]:
    name = "role_that_goes"
    admin.execute(f"DROP ROLE IF EXISTS {name}")
    admin.execute(f"CREATE ROLE {name}")
    yield name
    admin.execute(f"DROP ROLE IF EXISTS {name}")


@pytest.mark.usefixtures("releasing")
def test_no_query_runs_without_what_cannot_be_set_again(admin: psycopg.Connection, role: str) -> None:
    run(f"SET ROLE {role}")
    wait_until_released()
    admin.execute(f"DROP ROLE {role}")
    for _ in range(3):
        with pytest.raises(Error, match=role):
            run("SELECT 1")
    with pytest.raises(Error, match=role), transaction.atomic():
        run("SELECT 1")
    connection.close()
    assert run("SELECT current_user = session_user") == [(True,)]


@pytest.mark.usefixtures("releasing")
def test_what_cannot_be_set_again_is_nothing_to_the_next_job(admin: psycopg.Connection, role: str) -> None:
    """Of a worker that closes what is old between its jobs."""
    run(f"SET ROLE {role}", alias="persistent")
    wait_until_released("persistent")
    admin.execute(f"DROP ROLE {role}")
    close_old_connections()
    with pytest.raises(Error, match=role):
        run("SELECT 1", alias="persistent")
    assert not connections["persistent"].is_usable()
    close_old_connections()
    assert run("SELECT current_user = session_user", alias="persistent") == [(True,)]


@pytest.mark.usefixtures("releasing")
def test_no_query_runs_without_what_could_not_be_read(admin: psycopg.Connection) -> None:
    with transaction.atomic():
        run("SET app.tenant = 'acme'")
        [(pid,)] = run("SELECT pg_backend_pid()")
        cursor = connection.cursor()
    cursor.execute("SELECT 1")
    end_sessions(admin, pid)
    cursor.close()
    wait_until_released()
    for _ in range(2):
        with pytest.raises(OperationalError, match=r"app\.tenant"):
            run("SELECT 1")
    connection.close()
    assert run(TENANT)[0][0] in (None, "")


@pytest.mark.usefixtures("releasing")
def test_broken_connections_of_the_pool_do_not_keep_it_from_following(admin: psycopg.Connection) -> None:
    run("SET app.tenant = 'acme'")
    wait_until_released()
    found = admin.execute(
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    end_sessions(admin, *(pid for (pid,) in found))
    assert run(TENANT) == [("acme",)]


@pytest.mark.usefixtures("releasing")
def test_one_thread_s_settings_are_never_another_s() -> None:
    wrong = []
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        try:
            barrier.wait()
            with release_between_queries():
                for turn in range(10):
                    mine = f"{number}-{turn}"
                    run("SELECT set_config('app.tenant', %s, false)", [mine])
                    for _ in range(3):
                        found = run(TENANT)[0][0]
                        if found != mine:
                            wrong.append((mine, found))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert {value or None for value in seen_by_others(TENANT)} == {None}


@pytest.mark.usefixtures("releasing")
def test_a_hold_ends_and_what_was_set_in_it_follows() -> None:
    with transaction.atomic(), hold_connection():
        run("SET app.tenant = 'acme'")
    run("SET app.other = 'B'")
    with hold_connection():
        run("SELECT 1")
    with in_another_session():
        assert run("SELECT current_setting('app.tenant'), current_setting('app.other')") == [("acme", "B")]


@pytest.mark.usefixtures("releasing")
def test_so_does_what_executemany_was_given_the_names_of() -> None:
    with hold_connection(), connection.cursor() as cursor:
        cursor.executemany("SELECT set_config(%s, %s, false)", [["app.tenant", "acme"], ["app.other", "B"]])
    with in_another_session():
        assert run("SELECT current_setting('app.tenant'), current_setting('app.other')") == [("acme", "B")]


@pytest.mark.usefixtures("releasing")
def test_names_that_executemany_takes_from_a_generator_are_left_to_it_and_pin() -> None:
    rows: Any = (row for row in [["app.tenant", "acme"]])
    with connection.cursor() as cursor:
        cursor.executemany("SELECT set_config(%s, %s, false)", rows)
    let_the_reaper_look()
    assert holds("default")
    assert run(TENANT) == [("acme",)]


@pytest.mark.usefixtures("releasing")
def test_a_pin_of_after_a_hold_is_not_of_the_next_hold() -> None:
    with transaction.atomic(), hold_connection():
        run("LISTEN one")
    run("CREATE TEMP TABLE t_hygiene (n int)")
    with hold_connection():
        run("SELECT 1")
    let_the_reaper_look()
    assert holds("default")
    assert run("SELECT to_regclass('t_hygiene')::text") == [("t_hygiene",)]


@pytest.mark.usefixtures("releasing")
def test_discard_all_leaves_the_owner_what_the_server_has() -> None:
    with transaction.atomic():
        default = run("SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'")
    run("SET app.tenant = 'acme'")
    run("DISCARD ALL")
    with in_another_session():
        assert run(TENANT) == [("",)]
        assert run("SHOW TimeZone") == default
    connection.close()
    assert run("SHOW TimeZone") == [("UTC",)]


@pytest.mark.usefixtures("releasing")
def test_statements_of_every_kind_are_read() -> None:
    for number, statement in enumerate(
        [
            b"SET app.tenant = '0'",
            sql.SQL("SET {} = '1'").format(sql.Identifier("app", "tenant")),
            sql.SQL("SET app.tenant = '2'"),
        ]
    ):
        run(statement)
        with in_another_session():
            assert run(TENANT) == [(str(number),)]
    with connection.cursor() as cursor:
        cursor.executemany("SELECT set_config('app.tenant', %s, false)", [["a"], ["b"]])
    with in_another_session():
        assert run(TENANT) == [("b",)]
    with connection.cursor() as cursor:
        assert list(cursor.stream("SELECT set_config('app.tenant', %s, false)", ["c"])) == [("c",)]
    with in_another_session():
        assert run(TENANT) == [("c",)]
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY (SELECT set_config('app.tenant', 'd', false)) TO STDOUT") as copy,
    ):
        assert [bytes(part) for part in copy] == [b"d\n"]
    with in_another_session():
        assert run(TENANT) == [("d",)]


@pytest.fixture
def become(admin: psycopg.Connection) -> Iterator[None]:
    admin.execute(
        "CREATE OR REPLACE FUNCTION become(t text) RETURNS void LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM set_config('app.tenant', t, false); END $$"
    )
    known.reset()
    yield
    admin.execute("DROP FUNCTION become(text)")


@pytest.mark.parametrize("clean", ["seen", "always"])
@pytest.mark.usefixtures("releasing", "become")
def test_declared_settings_follow_whatever_has_set_them(settings: Any, clean: str) -> None:
    settings.CONN_HYGIENE = {
        **settings.CONN_HYGIENE,
        "FOLLOWED_SETTINGS": ["App.Tenant", "lock_timeout"],
        "CLEAN_SESSIONS": clean,
    }
    run("SELECT become('acme')")
    assert {value or None for value in seen_by_others(TENANT)} == {None}
    with in_another_session():
        assert run(TENANT) == [("acme",)]
    with in_another_session():
        run("DO $$ BEGIN SET lock_timeout = '7s'; END $$")
        connection.close()
    assert {value or None for value in seen_by_others(TENANT)} == {None}


@pytest.mark.usefixtures("releasing", "become")
def test_what_the_catalogue_names_follows_from_the_first_release_on() -> None:
    for _ in range(2):
        connection.close()
        known.reset()
        run("SELECT become('acme')")
        with in_another_session():
            assert run(TENANT) == [("acme",)]
    connection.close()
    assert {value or None for value in seen_by_others(TENANT)} == {None}


def test_a_session_that_is_not_what_it_was_is_fit_for_nobody(admin: psycopg.Connection) -> None:
    fresh = state.reported_parameters(admin)
    plan = Plan(resets=frozenset({"app.tenant"}))
    assert cleaning.clean(admin, plan, fresh, None, configures_more=False) == {}
    admin.execute("SET application_name = 'seen by nobody'")
    assert cleaning.clean(admin, plan, fresh, None, configures_more=False) == {}
    assert admin.closed


@pytest.fixture
def reload(admin: psycopg.Connection) -> Iterator[Callable[[str], None]]:
    """Return a function that changes the server's configuration in one respect, for all of its sessions."""

    def change(setting: str) -> None:
        admin.execute(f"ALTER SYSTEM {setting}")
        admin.execute("SELECT pg_reload_conf()")

    yield change
    change("RESET ALL")


@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.usefixtures("releasing")
def test_what_the_servers_configuration_changes_is_not_the_requests(
    alias: str, reload: Callable[[str], None], admin: psycopg.Connection
) -> None:
    """It is reported by the session as what a request has set is."""
    run("SET app.tenant = 'acme'", alias=alias)
    with transaction.atomic(using=alias):
        assert run("SHOW IntervalStyle", alias=alias) == [("postgres",)]
        reload("SET IntervalStyle = 'iso_8601'")
        wait_until(lambda: run("SHOW IntervalStyle", alias=alias) == [("iso_8601",)], "the session has heard")
    wait_until_released(alias)
    reload("RESET IntervalStyle")
    wait_until(lambda: admin.execute("SHOW IntervalStyle").fetchone() == ("postgres",), "the server has heard")
    with in_another_session(alias):
        assert (run("SHOW IntervalStyle", alias=alias), run(TENANT, alias=alias)) == ([("postgres",)], [("acme",)])


@pytest.mark.parametrize(
    ("plan", "more", "expected"),
    [
        (Plan(left=frozenset({SETTING})), False, 1),
        (Plan(resets=frozenset({"role"})), False, 1),
        (Plan(resets=frozenset({"timezone", "app.tenant"})), False, 1),
        (Plan(resets=frozenset({"app.tenant"})), True, 1),
        (Plan(resets=frozenset({"app.tenant"})), False, 0),
        # What the server refuses to reset by its name is reset with all else.
        (Plan(resets=frozenset({"no_such_parameter"})), False, 1),
    ],
)
def test_a_cleaned_session_is_set_up_as_its_pool_does(
    admin: psycopg.Connection, plan: Plan, more: bool, expected: int
) -> None:
    configured: list[Any] = []
    cleaning.clean(admin, plan, state.reported_parameters(admin), configured.append, configures_more=more)
    assert configured == [admin] * expected


@pytest.mark.usefixtures("releasing", "become")
def test_always_cleaned_is_clean_of_what_nobody_has_seen(settings: Any) -> None:
    settings.CONN_HYGIENE = {**settings.CONN_HYGIENE, "FOLLOWED_SETTINGS": [], "CLEAN_SESSIONS": "always"}
    run("SELECT become('acme')")
    assert {value or None for value in seen_by_others(TENANT)} == {None}
    run("SELECT become('acme')")
    connection.close()
    assert {value or None for value in seen_by_others(TENANT)} == {None}


@pytest.mark.usefixtures("releasing")
@pytest.mark.parametrize(
    "statement",
    ["SET no_such_parameter = 1", "SET pg_catalog.x = 1", "SET server_version = '1'", "SET lock_timeout = 'long'"],
)
def test_what_could_not_be_set_fails_nothing_that_comes_later(statement: str) -> None:
    run("SET app.tenant = 'acme'")
    with contextlib.suppress(Error):
        run(statement)
    for _ in range(2):
        with in_another_session():
            assert run(TENANT) == [("acme",)]
    connection.close()
    assert {value or None for value in seen_by_others(TENANT)} == {None}


# What the server refuses at once, and what only its RESET is refused for, once the role that might is left.
REFUSED = {
    "no such name": ("SET no_such_parameter = 1",),
    "a right of the role": ("SET ROLE t_may_set", "SET log_min_duration_statement = 7"),
}
refused = pytest.mark.parametrize("statements", REFUSED.values(), ids=REFUSED)


@pytest.fixture
def login(admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, releasing: None) -> Iterator[None]:
    """Have the pool log in as a role that may little, and that is a member of one that may more."""
    if admin.info.server_version < 150000:
        pytest.skip("the right to set a parameter is new in PostgreSQL 15")
    connections.close_all()
    connection.close_pool()
    admin.execute("CREATE ROLE t_may_set; GRANT SET ON PARAMETER log_min_duration_statement TO t_may_set")
    admin.execute(
        "CREATE ROLE t_assumed; CREATE ROLE t_login NOINHERIT LOGIN PASSWORD 't' IN ROLE t_may_set, t_assumed"
    )
    entry = connection.settings_dict
    for key, value in {"USER": "t_login", "PASSWORD": "t"}.items():
        monkeypatch.setitem(entry, key, value)
    yield
    connections.close_all()
    connection.close_pool()
    admin.execute("REVOKE SET ON PARAMETER log_min_duration_statement FROM t_may_set")
    admin.execute("DROP ROLE t_login, t_may_set, t_assumed")


@pytest.fixture
def assuming(login: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it assume a role besides, by a backend that can: Django's own asks a connection how that is written."""
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "assume_role", "t_assumed")
    monkeypatch.setattr(type(connection.ops), "compose_sql", lambda ops, text, parameters: text % tuple(parameters))


USER = "SELECT current_user::text"


@pytest.mark.usefixtures("assuming")
def test_a_role_that_is_assumed_is_that_of_the_next_as_well() -> None:
    """The one that the pool has set is taken back with all else where a name is refused."""
    with hold_connection():
        [(pid,)] = run("SELECT pg_backend_pid()")
        with pytest.raises(Error):
            run("SET no_such_parameter = 1")
    connection.close()
    assert seen_by_others(USER) == {"t_assumed"}
    assert pid in seen_by_others("SELECT pg_backend_pid()")


@refused
@pytest.mark.usefixtures("login")
def test_what_cannot_be_reset_one_by_one_is_reset_together(statements: tuple[str, ...]) -> None:
    """The transaction of its own, in which it waits for no snapshot, has failed by then."""
    run("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    for statement in statements:
        with contextlib.suppress(Error):
            run(statement)
    for _ in range(2):
        with in_another_session():
            assert run("SHOW transaction_isolation") == [("serializable",)]
    connection.close()
    assert seen_by_others("SHOW transaction_isolation") == {"read committed"}
    assert seen_by_others(USER) == {"t_login"}


@pytest.mark.usefixtures("releasing")
def test_a_cleaned_session_has_no_statement_that_only_one_side_knows(settings: Any) -> None:
    settings.CONN_HYGIENE = {**settings.CONN_HYGIENE, "CLEAN_SESSIONS": "always"}
    run(
        "CREATE OR REPLACE FUNCTION prepare_it() RETURNS void LANGUAGE plpgsql AS"
        " $$ BEGIN EXECUTE 'PREPARE it AS SELECT 1'; END $$"
    )
    connection.close()
    pool = connections["default"].pool
    with hold_connection():
        connection.ensure_connection()
        handle: Any = connection.connection
        handle.prepare_threshold = 1
        psycopg.Cursor(handle).execute("SELECT 7", prepare=True)
        run("SELECT prepare_it()")
        pid = handle.info.backend_pid
    connection.close()
    for each in (handles := [pool.getconn() for _ in range(pool.get_stats()["pool_available"])]):
        if each.info.backend_pid == pid:
            each.prepare_threshold = 1
            assert psycopg.Cursor(each).execute("SELECT 7", prepare=True).fetchone() == (7,)
            each.prepare_threshold = None
            each.rollback()
    for each in handles:
        pool.putconn(each)
    run("DROP FUNCTION prepare_it()")


@pytest.mark.usefixtures("releasing")
def test_what_psycopg_has_prepared_stays_in_a_session_that_is_always_cleaned(settings: Any) -> None:
    settings.CONN_HYGIENE = {**settings.CONN_HYGIENE, "CLEAN_SESSIONS": "always"}
    # The first asks the catalogue, in a transaction whose rollback psycopg heeds.
    run("SELECT 1")
    connection.close()
    with hold_connection():
        connection.ensure_connection()
        handle: Any = connection.connection
        handle.prepare_threshold = 1
        psycopg.Cursor(handle).execute("SELECT 7", prepare=True)
    connection.close()
    assert handle.execute("SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql").fetchone() == (1,)
    handle.rollback()


UNDOINGS = {
    "LISTEN": ("LISTEN hygiene", "UNLISTEN *"),
    "temporary table": ("CREATE TEMP TABLE t_hygiene (n int)", "DISCARD TEMP"),
    "advisory lock": ("SELECT pg_advisory_lock(815)", "SELECT pg_advisory_unlock_all()"),
    "PREPARE": ("PREPARE hygiene AS SELECT 1", "DEALLOCATE ALL"),
}
undoings = pytest.mark.parametrize(("leave", "undo"), UNDOINGS.values(), ids=UNDOINGS)


@undoings
@pytest.mark.usefixtures("releasing")
def test_an_undoing_is_believed_when_it_is_committed(leave: str, undo: str) -> None:
    run(leave)
    with transaction.atomic():
        run(undo)
    wait_until_released()


@pytest.mark.parametrize("reason", ["LISTEN", "temporary table"])
@pytest.mark.parametrize("way", ["rollback", "savepoint", "literal savepoint", "failed"])
@pytest.mark.usefixtures("releasing")
def test_an_undoing_that_did_not_happen_is_not_believed(reason: str, way: str) -> None:
    leave, undo = UNDOINGS[reason]
    run(leave)
    if way == "failed":
        with pytest.raises(Error):
            run(f"{undo}; SELECT 1/0")
    elif way == "literal savepoint":
        with transaction.atomic():
            run("SAVEPOINT hygiene")
            run(undo)
            run("ROLLBACK TO SAVEPOINT hygiene")
    else:
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            with contextlib.suppress(ZeroDivisionError), transaction.atomic():
                run(undo)
                raise ZeroDivisionError
            if way == "rollback":
                raise ZeroDivisionError
    let_the_reaper_look()
    assert holds("default")


@pytest.mark.usefixtures("releasing", "become")
def test_what_a_function_sets_follows_without_any_setting() -> None:
    """From the first release of a process on: the catalogue is asked ahead of it."""
    assert known.known_of("default") is None
    run("SELECT become('acme')")
    assert {value or None for value in seen_by_others(TENANT)} == {None}
    for _ in range(2):
        with in_another_session():
            assert run(TENANT) == [("acme",)]
    connection.close()
    assert {value or None for value in seen_by_others(TENANT)} == {None}


def by_a_function(alias: str) -> None:
    run("SELECT become('')", alias=alias)


def by_a_transaction_that_has_ended(alias: str) -> None:
    with transaction.atomic(using=alias):
        run("SET LOCAL app.tenant = 'acme'", alias=alias)


@pytest.fixture
def unheard(releasing: None) -> Iterator[None]:
    """Have no session of the pool have heard of any name."""
    connections.close_all()
    connection.close_pool()
    yield
    connections.close_all()


@pytest.mark.parametrize("leave", [by_a_function, by_a_transaction_that_has_ended])
@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.usefixtures("unheard", "become")
def test_a_name_that_is_left_empty_is_known_to_the_next_session(alias: str, leave: Callable[[str], None]) -> None:
    """Else ``current_setting()`` would refuse it, or say NULL."""
    leave(alias)
    for _ in range(3):
        with in_another_session(alias):
            assert run("SELECT current_setting('app.tenant')", alias=alias) == [("",)]


@pytest.mark.usefixtures("unheard", "become")
def test_so_it_is_where_nothing_is_executed_in_between(settings: Any) -> None:
    settings.CONN_HYGIENE = {**settings.CONN_HYGIENE, "FOLLOWED_SETTINGS": ["app.tenant"], "CLEAN_SESSIONS": "seen"}
    by_a_function("default")
    for _ in range(2):
        with in_another_session():
            connection.ensure_connection()
            release_connections()
    connection.close_pool()
    assert run("SELECT current_setting('app.tenant')") == [("",)]


@pytest.mark.usefixtures("unheard", "become")
def test_a_session_that_knows_the_name_is_not_told_again() -> None:
    told: list[int] = []

    def remember(event: events.Followed) -> None:
        told.append(event.server_pid)

    [(pid,)] = run("SELECT pg_backend_pid() FROM become('')")
    events.listen(events.Followed, remember)
    try:
        with in_another_session():
            run("SELECT 1")
        assert len(told) == 1
        for _ in range(6):
            run("SELECT 1")
            wait_until_released()
    finally:
        events.unlisten(events.Followed, remember)
    # The first has heard of it by itself.
    assert len({pid, *told}) == 1 + len(told)


@pytest.mark.parametrize("left", [frozenset(), frozenset({SETTING})], ids=["one by one", "everything"])
def test_a_name_is_heard_of_once_it_was_set_or_reset(admin: psycopg.Connection, left: frozenset[str]) -> None:
    names = frozenset({"app.heard"})
    look = "SELECT current_setting('app.heard', true)"
    plan = Plan(resets=names, left=left)
    cleaning.clean(admin, plan, state.reported_parameters(admin), None, configures_more=False)
    knows = admin.execute(look).fetchone() == ("",)
    assert (following.heard(admin) >= names) == knows == (not left)
    following.set_again(admin, {"app.heard": following.KNOWN})
    assert admin.execute(look).fetchone() == ("",)
    assert following.heard(admin) >= names


def test_a_library_that_has_the_name_is_asked_for_nothing(admin: psycopg.Connection) -> None:
    """Who may not set it there need not: the session knows it."""
    values = {"plpgsql.variable_conflict": following.KNOWN}
    admin.execute("DO 'BEGIN END'; CREATE ROLE follower_of_none")
    try:
        admin.execute("SET ROLE follower_of_none")
        following.set_again(admin, values)
        assert admin.execute("SHOW plpgsql.variable_conflict").fetchone() == ("error",)
    finally:
        admin.execute("RESET ROLE; DROP ROLE follower_of_none")


@pytest.mark.usefixtures("releasing", "become")
def test_what_functions_may_have_set_stays_with_its_owner_while_nobody_can_tell(
    admin: psycopg.Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "RETRY_AFTER", 0.0)
    with admin.transaction():
        admin.execute("LOCK pg_catalog.pg_policy IN ACCESS EXCLUSIVE MODE")
        run("SELECT 1")
        wait_until_released("default")
        run("SELECT become('acme')")
        let_the_reaper_look()
        assert (holds("default"), run(TENANT)) == (True, [("acme",)])
    assert [each.levelname for each in caplog.records if "catalogue could not be read" in each.message] == ["WARNING"]
    connection.close()
    run("SELECT become('acme')")
    with in_another_session():
        assert run(TENANT) == [("acme",)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Have nobody ask the catalogue; return a list of those who would have."""
    known.after_fork_in_child()
    asking: list[object] = []
    monkeypatch.setattr(known, "ask", lambda *arguments: asking.append(arguments))
    yield asking
    known.after_fork_in_child()


@pytest.mark.usefixtures("releasing")
def test_the_end_of_a_request_asks_nothing_that_somebody_else_is_asking(asked: list[object]) -> None:
    with hold_connection():
        for is_asking in (True, False):
            known.reset()
            assert not is_asking or known.begin_asking("default", time.monotonic())
            run("SELECT 1")
            connection.close()
            assert bool(asked) is not is_asking


@pytest.mark.parametrize("is_asking", [True, False])
def test_a_worker_asks_nothing_that_somebody_else_is_asking(is_asking: bool, asked: list[object]) -> None:
    run("SELECT 1")
    known.note("default", catalogue.Findings(), -math.inf)
    assert not is_asking or known.begin_asking("default", time.monotonic())
    returning = Return(object(), "default", connection.connection, plan=Plan())
    assert returning.asks_session
    assert reaper.running is not None
    returning._scrub(reaper.running)
    assert bool(asked) is not is_asking


def test_who_was_seen_to_ask_for_nothing_asks_for_nothing() -> None:
    """A thread that must not wait for a server carries it out then."""
    run("SELECT 1")
    known.note("default", catalogue.Findings(), time.monotonic())
    returning = Return(object(), "default", connection.connection, plan=Plan())
    assert not returning.asks_session
    known.forget()
    assert known.is_due("default", time.monotonic())
    assert not returning.asks_session
    assert Return(object(), "default", connection.connection, plan=Plan()).asks_session


def lose_a_connection_that_is_asked(admin: psycopg.Connection) -> None:
    """Have the catalogue asked by way of a connection that is broken, which nobody has noticed yet."""
    with hold_connection():
        [(pid,)] = run("SELECT pg_backend_pid()")
        end_sessions(admin, pid)
        connection.close()


@pytest.mark.usefixtures("releasing")
def test_the_next_connection_is_asked_where_one_was_lost(admin: psycopg.Connection) -> None:
    known.reset()
    lose_a_connection_that_is_asked(admin)
    run("SELECT 1")
    wait_until_released()
    assert known.known_of("default") is not None


@pytest.mark.usefixtures("releasing")
def test_no_third_connection_is_lost_to_asking(admin: psycopg.Connection, caplog: pytest.LogCaptureFixture) -> None:
    known.reset()
    for is_due in (True, False):
        lose_a_connection_that_is_asked(admin)
        assert known.is_due("default", time.monotonic()) is is_due
    wait_until(lambda: "the catalogue could not be read" in caplog.text, "that is told")


@pytest.mark.usefixtures("releasing")
def test_what_no_cleaning_undoes_is_closed_where_the_catalogue_has_it(admin: psycopg.Connection) -> None:
    admin.execute("CREATE OR REPLACE FUNCTION sow() RETURNS void LANGUAGE sql AS 'SELECT setseed(0.5)'")
    known.reset()
    try:
        run("SELECT sow()")
        [(pid,)] = run("SELECT pg_backend_pid()")
        connection.close()
        assert pid not in seen_by_others("SELECT pg_backend_pid()")
    finally:
        admin.execute("DROP FUNCTION sow()")
        known.reset()


FUNCTION = """
CREATE OR REPLACE FUNCTION become(text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.tenant', $1, false) $$
"""


@pytest.mark.usefixtures("releasing")
def test_what_follows_unseen_goes_on_where_nothing_is_executed_in_between(settings: Any) -> None:
    settings.CONN_HYGIENE = {
        **settings.CONN_HYGIENE,
        "FOLLOWED_SETTINGS": ["app.tenant"],
        "CLEAN_SESSIONS": "seen",
    }
    run(FUNCTION)
    connection.close()
    try:
        run("SELECT become('acme')")
        for _ in range(2):
            with in_another_session():
                connection.ensure_connection()
                release_connections()
        assert {value or None for value in seen_by_others(TENANT)} == {None}
        assert run(TENANT) == [("acme",)]
    finally:
        run("DROP FUNCTION become(text)")


@pytest.mark.usefixtures("releasing")
def test_what_was_reset_follows_to_where_the_library_of_its_name_is_loaded() -> None:
    # Unknown to the first session, it is empty there; to the second it must be one of three.
    run("RESET plpgsql.variable_conflict")
    pool = connection.pool
    wait_until_released()
    handles = [pool.getconn() for _ in range(4)]
    for handle in handles:
        handle.execute("DO 'BEGIN END'")
        pool.putconn(handle)
    assert run("SHOW plpgsql.variable_conflict") == [("error",)]


@pytest.mark.usefixtures("releasing")
def test_functions_of_the_owner_s_path_are_not_taken_for_the_server_s() -> None:
    run("CREATE SCHEMA evil")
    try:
        run("CREATE FUNCTION evil.current_setting(text, boolean) RETURNS text LANGUAGE sql RETURN 'evil'")
        run("CREATE FUNCTION evil.set_config(text, text, boolean) RETURNS text LANGUAGE sql RETURN 'evil'")
        run("CREATE FUNCTION evil.pg_advisory_unlock_all() RETURNS void LANGUAGE sql RETURN NULL")
        connection.close()
        run("SET search_path = evil, pg_catalog")
        run("SET app.tenant = 'acme'")
        with in_another_session():
            assert run("SHOW app.tenant") == [("acme",)]
            assert run("SHOW search_path") == [("evil, pg_catalog",)]
    finally:
        connection.close()
        run("DROP SCHEMA evil CASCADE")


@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.usefixtures("releasing")
def test_nothing_waits_for_a_snapshot_that_the_owner_would_wait_for(alias: str, admin: psycopg.Connection) -> None:
    """A serializable, read-only and deferrable transaction begins when no writer is left that could disturb it."""
    admin.execute("BEGIN ISOLATION LEVEL SERIALIZABLE; CREATE TABLE t_written (n int)")
    for name, value in {"isolation": "serializable", "read_only": "on", "deferrable": "on"}.items():
        run(f"SET default_transaction_{name} = '{value}'", alias=alias)
    wait_until_released(alias)
    admin.execute("ROLLBACK")
    assert run("SHOW default_transaction_deferrable", alias=alias) == [("on",)]


@pytest.mark.usefixtures("releasing")
def test_a_failure_of_whatever_kind_loses_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    run("SELECT 1")
    wait_until_released()
    with monkeypatch.context() as patch:
        patch.setattr(cleaning, "_to_carry", lambda *args: 1 / 0)
        run("SET app.tenant = 'acme'")
        wait_until_released()
    with pytest.raises(OperationalError, match="division by zero"):
        run("SELECT 1")
    connection.close()
    assert {value or None for value in seen_by_others(TENANT)} == {None}


@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.usefixtures("releasing", "become")
def test_what_is_known_only_when_the_connection_is_on_its_way_back_follows(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread has asked the catalogue in between."""
    carry_out = Return.carry_out

    def known_by_now(self: Return, keeper: Any) -> None:
        findings = catalogue.Findings(followed=frozenset({"app.tenant"}), leaves_state=("become",))
        known.note(self.alias, findings, time.monotonic())
        carry_out(self, keeper)

    monkeypatch.setattr(Return, "carry_out", known_by_now)
    run("SELECT become('acme')", alias=alias)
    wait_until_released(alias)
    assert run(TENANT, alias=alias) == [("acme",)]
