"""Session state pins a connection to its owner, and never reaches anybody else."""

from __future__ import annotations

import errno
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from psycopg import sql

import conn_hygiene
from conn_hygiene import release_between_queries
from conn_hygiene.sessions.effects import (
    ADVISORY_LOCK,
    HELD_CURSOR,
    LISTEN,
    PREPARED,
    SEED,
    SETTING,
    TEMPORARY,
    Each,
    Placeholder,
    Setting,
)
from conn_hygiene.sessions.sql import effect_of
from conn_hygiene.sessions.texts import text_of
from tests.waiting import holds, let_the_reaper_look, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "persistent"])


@pytest.fixture(params=[0, 0.001], ids=["at once", "after a grace"])
def releasing(request: pytest.FixtureRequest, settings: Any) -> Iterator[None]:
    settings.CONN_HYGIENE = {
        "RELEASE_AFTER": request.param,
        "UNPOOLED_RELEASE_AFTER": request.param,
        # What is set can follow as well, see test_following; here it pins.
        "ON_SET": "pin",
    }
    connections.close_all()
    with release_between_queries():
        yield
    connections.close_all()


def run(statement: Any, params: Any = None, alias: str = "default") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement, params)
        return cursor.fetchall() if cursor.description else None


def assert_stays(alias: str = "default") -> None:
    let_the_reaper_look()
    assert holds(alias)


# Statements that leave something in the session, how to see it there, and what a clean session answers.
STATEFUL = {
    "SET": ("SET statement_timeout = '7s'", "SHOW statement_timeout", [("0",)]),
    "SET SESSION": ("SET SESSION lock_timeout = '7s'", "SHOW lock_timeout", [("0",)]),
    "custom setting": ("SET app.tenant = 'acme'", "SELECT coalesce(current_setting('app.tenant', true), '')", [("",)]),
    "search_path": ("SET search_path = pg_catalog", "SHOW search_path", [('"$user", public',)]),
    "TIME ZONE": ("SET TIME ZONE 'Asia/Tokyo'", "SHOW TimeZone", [("UTC",)]),
    "ROLE": ("SET ROLE pg_monitor", "SELECT current_user = session_user", [(True,)]),
    "set_config": (
        "SELECT set_config('app.tenant', 'acme', false)",
        "SELECT coalesce(current_setting('app.tenant', true), '')",
        [("",)],
    ),
    "temporary table": ("CREATE TEMP TABLE t_hygiene (n int)", "SELECT to_regclass('t_hygiene')::text", [(None,)]),
    "temporary view": (
        "CREATE OR REPLACE TEMPORARY VIEW t_hygiene AS SELECT 1",
        "SELECT to_regclass('t_hygiene')::text",
        [(None,)],
    ),
    "SELECT INTO": ("SELECT 1 AS n INTO TEMP t_hygiene", "SELECT to_regclass('t_hygiene')::text", [(None,)]),
    "advisory lock": (
        "SELECT pg_advisory_lock(815)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        [(0,)],
    ),
    "shared advisory lock": (
        "SELECT pg_try_advisory_lock_shared(815)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        [(0,)],
    ),
    "LISTEN": ("LISTEN hygiene", "SELECT count(*) FROM pg_listening_channels()", [(0,)]),
    "PREPARE": (
        "PREPARE hygiene AS SELECT 1",
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'hygiene'",
        [(0,)],
    ),
    "DECLARE WITH HOLD": (
        "DECLARE hygiene CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE name = 'hygiene'",
        [(0,)],
    ),
    "several statements": ("SELECT 1; SET statement_timeout = '7s'", "SHOW statement_timeout", [("0",)]),
    "in a DO block": (
        "DO $$ BEGIN PERFORM set_config('app.tenant', 'acme', false); END $$",
        "SELECT coalesce(current_setting('app.tenant', true), '')",
        [("",)],
    ),
    "in a function of the session's own": (
        "CREATE FUNCTION pg_temp.f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN LOAD 'auto_explain'; END $$;"
        " SELECT pg_temp.f()",
        "SELECT count(*) FROM pg_settings WHERE name = 'auto_explain.log_min_duration'",
        [(0,)],
    ),
    "LOAD": (
        "LOAD 'auto_explain'",
        "SELECT count(*) FROM pg_settings WHERE name = 'auto_explain.log_min_duration'",
        [(0,)],
    ),
}
stateful = pytest.mark.parametrize(("statement", "look", "clean"), STATEFUL.values(), ids=STATEFUL)


@stateful
@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.usefixtures("releasing")
def test_state_pins_and_is_still_there_for_its_owner(alias: str, statement: str, look: str, clean: Any) -> None:
    assert run(look, alias=alias) == clean
    run(statement, alias=alias)
    assert_stays(alias)
    assert run(look, alias=alias) != clean
    assert_stays(alias)


@stateful
@pytest.mark.parametrize("clean_sessions", ["seen", "always"])
@pytest.mark.parametrize("on_set", ["follow", "pin"])
@pytest.mark.usefixtures("releasing")
def test_state_never_reaches_another_thread(
    statement: str, look: str, clean: Any, clean_sessions: str, on_set: str, settings: Any
) -> None:
    settings.CONN_HYGIENE = {**settings.CONN_HYGIENE, "CLEAN_SESSIONS": clean_sessions, "ON_SET": on_set}
    run(statement)
    connection.close()
    seen: list[Any] = []

    def look_at_all_sessions() -> None:
        handles = [connections["default"].pool.getconn() for _ in range(4)]
        seen.extend(handle.execute(look).fetchall() for handle in handles)
        for handle in handles:
            connections["default"].pool.putconn(handle)

    thread = threading.Thread(target=look_at_all_sessions)
    thread.start()
    thread.join()
    assert seen == [clean] * 4


@stateful
def test_state_of_a_dead_thread_never_reaches_another(statement: str, look: str, clean: Any) -> None:
    thread = threading.Thread(target=run, args=[statement])
    thread.start()
    thread.join()
    wait_until_released()
    handles = [connection.pool.getconn() for _ in range(4)]
    seen = [handle.execute(look).fetchall() for handle in handles]
    for handle in handles:
        handle._pool.putconn(handle)
    assert seen == [clean] * 4


@pytest.mark.parametrize(
    "statement",
    [
        "SET LOCAL statement_timeout = '7s'",
        "SELECT set_config('app.tenant', 'acme', true)",
        "SET CONSTRAINTS ALL DEFERRED",
        "SELECT pg_advisory_xact_lock(815)",
        "CREATE TEMP TABLE t_hygiene (n int) ON COMMIT DROP",
    ],
)
@pytest.mark.usefixtures("releasing")
def test_what_ends_with_the_transaction_is_not_seen_by_the_next(statement: str) -> None:
    with transaction.atomic():
        run(statement)
    connection.close()
    assert run("SHOW statement_timeout") == [("0",)]
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_state_that_a_function_leaves_is_found_by_what_the_server_reports() -> None:
    body = "BEGIN SET timezone = 'Asia/Tokyo'; END"
    run(f"CREATE OR REPLACE FUNCTION wander() RETURNS void LANGUAGE plpgsql AS $$ {body} $$")
    wait_until_released()
    run("SELECT wander()")
    assert_stays()
    assert run("SHOW TimeZone") == [("Asia/Tokyo",)]
    connection.close()
    assert run("SHOW TimeZone") == [("UTC",)]
    run("DROP FUNCTION wander()")


def test_state_that_a_function_leaves_does_not_reach_the_next_owner_either(settings: Any) -> None:
    """Nobody has looked at the session in between."""
    settings.CONN_HYGIENE = {"CLEAN_SESSIONS": "seen"}
    body = "BEGIN SET timezone = 'Asia/Tokyo'; END"
    run(f"CREATE OR REPLACE FUNCTION wander() RETURNS void LANGUAGE plpgsql AS $$ {body} $$")
    connection.close()
    run("SELECT wander()")
    connection.close()
    for _ in range(4):
        assert run("SHOW TimeZone") == [("UTC",)]
        connection.close()
    run("DROP FUNCTION wander()")


@pytest.mark.usefixtures("releasing")
def test_transaction_characteristics_of_the_handle_stay_with_their_owner() -> None:
    run("SELECT 1")
    handle: Any = connection.connection
    handle.read_only = True
    run("SELECT 1")
    assert_stays()
    connection.close()
    run("SELECT 1")
    seen: Any = connection.connection
    assert seen.read_only is None


@pytest.mark.parametrize(
    ("statement", "undo"),
    [
        ("LISTEN hygiene", "UNLISTEN *"),
        ("PREPARE hygiene AS SELECT 1", "DEALLOCATE ALL"),
        ("SELECT pg_advisory_lock(815)", "SELECT pg_advisory_unlock_all()"),
        ("CREATE TEMP TABLE t_hygiene (n int)", "DISCARD TEMP"),
        ("DECLARE hygiene CURSOR WITH HOLD FOR SELECT 1", "CLOSE ALL"),
    ],
)
@pytest.mark.usefixtures("releasing")
def test_state_that_is_undone_no_longer_pins(statement: str, undo: str) -> None:
    run(statement)
    assert_stays()
    run(undo)
    wait_until_released()


@pytest.mark.parametrize(
    ("statements", "look"),
    [
        ("UNLISTEN *; LISTEN hygiene", "SELECT count(*) FROM pg_listening_channels()"),
        ("DEALLOCATE ALL; PREPARE hygiene AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"),
        (
            "SELECT pg_advisory_unlock_all(); SELECT pg_advisory_lock(815)",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        ),
        (
            "DISCARD TEMP; CREATE TEMP TABLE t_hygiene (n int)",
            "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
        ),
        (
            "DISCARD TEMP; SELECT set_config('search_path', 'pg_temp', false); CREATE TABLE t_hygiene (n int)",
            "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
        ),
        (
            "DECLARE hygiene CURSOR WITH HOLD FOR SELECT pg_advisory_lock(815); SELECT pg_advisory_unlock_all()",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        ),
        (
            "CLOSE ALL; DECLARE hygiene CURSOR WITH HOLD FOR SELECT 1",
            "SELECT count(*) FROM pg_cursors WHERE is_holdable",
        ),
    ],
)
@pytest.mark.usefixtures("releasing")
def test_what_is_left_after_an_undoing_in_the_same_string_is_kept(statements: str, look: str) -> None:
    run(statements)
    assert_stays()
    assert run(look) == [(1,)]


@pytest.mark.parametrize(
    ("statement", "adds", "removes"),
    [
        ("UNLISTEN *; LISTEN a", {LISTEN}, set()),
        ("LISTEN a; UNLISTEN *", set(), {LISTEN}),
        ("UNLISTEN *; SELECT '\\'; LISTEN a; --'", {LISTEN}, set()),
        ("CREATE TEMP TABLE a (n int); DISCARD TEMP", set(), {TEMPORARY}),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT pg_advisory_lock(1); SELECT pg_advisory_unlock_all()",
            {ADVISORY_LOCK, HELD_CURSOR, SETTING},
            set(),
        ),
        ("SET LOCAL search_path = pg_temp; DISCARD TEMP", {TEMPORARY}, set()),
    ],
)
def test_what_a_string_undoes_is_not_what_it_leaves(statement: str, adds: set[str], removes: set[str]) -> None:
    effect = effect_of(statement)
    assert effect is not None
    assert (set(effect.adds), set(effect.removes)) == (adds, removes)


def test_nor_is_it_where_a_parameter_says_so() -> None:
    effect = effect_of("DISCARD TEMP; SELECT set_config(%s, %s, false)")
    assert effect is not None
    assert effect.removes == {TEMPORARY}
    given = effect.with_parameters(["search_path", "pg_temp"])
    assert (set(given.adds), set(given.removes)) == ({TEMPORARY}, set())


@pytest.mark.usefixtures("releasing")
def test_what_the_backend_set_up_is_there_again_after_discard_all() -> None:
    run("DISCARD ALL")
    connection.close()
    for _ in range(4):
        assert run("SHOW TimeZone") == [("UTC",)]


@pytest.mark.usefixtures("releasing")
def test_a_cleaned_session_is_the_same_session() -> None:
    pid = run("SELECT pg_backend_pid()")
    run("SET statement_timeout = '7s'")
    connection.close()
    pids = set()
    for _ in range(4):
        pids.add(tuple(run("SELECT pg_backend_pid()")))
        connection.close()
    assert tuple(pid) in pids


def test_a_session_is_cleaned_without_a_descriptor_to_spare(
    settings: Any, monkeypatch: pytest.MonkeyPatch, pool_of: Callable[[str], Any]
) -> None:
    """The limit of time for it needs one; a process that has run out of them keeps no connection from its pool."""

    def dup(number: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0.001}
    with release_between_queries():
        run("SET work_mem = '8MB'")
        with monkeypatch.context() as patched:
            patched.setattr("conn_hygiene.leases.returns.os.dup", dup)
            wait_until_released()
            assert run("SHOW work_mem") == [("8MB",)]
            wait_until_released()
    connections.close_all()
    stats = pool_of("default").get_stats()
    assert stats["pool_available"] == stats["pool_size"]
    assert run("SHOW work_mem") != [("8MB",)]


@pytest.mark.usefixtures("releasing")
def test_a_pinned_connection_in_a_transaction_is_rolled_back_and_cleaned_when_closed() -> None:
    transaction.set_autocommit(False)
    run("CREATE TEMP TABLE t_hygiene (n int)")
    connection.close()
    assert run("SELECT to_regclass('t_hygiene')::text") == [(None,)]


@pytest.mark.parametrize(
    "statement",
    [
        b"SET statement_timeout = '7s'",
        sql.SQL("SET {} = '7s'").format(sql.Identifier("statement_timeout")),
        sql.SQL("SET statement_timeout = '7s'"),
    ],
    ids=["bytes", "Composed", "SQL"],
)
@pytest.mark.usefixtures("releasing")
def test_every_kind_of_statement_is_read(statement: Any) -> None:
    run(statement)
    assert_stays()


@pytest.mark.usefixtures("releasing")
def test_statements_in_executemany_and_stream_are_read() -> None:
    with connection.cursor() as cursor:
        cursor.executemany("SELECT set_config('app.tenant', %s, false)", [["a"], ["b"]])
    assert_stays()
    connection.close()
    with connection.cursor() as cursor:
        assert list(cursor.stream("SELECT set_config('app.tenant', 'a', false)")) == [("a",)]
    assert_stays()


@pytest.mark.usefixtures("releasing")
def test_what_pins_is_said_once_and_where(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="conn_hygiene")
    run("SET statement_timeout = '7s'")
    run("SET lock_timeout = '7s'")
    (record,) = [record for record in caplog.records if record.name == "conn_hygiene.lease"]
    assert record.levelno == logging.INFO
    assert record.pinned_by == "SET"
    assert __file__ in record.getMessage()
    (info,) = conn_hygiene.snapshot()
    assert info.state == "pinned"
    assert "SET" in info.pinned_by


@pytest.mark.usefixtures("releasing")
def test_a_pin_outlives_transactions_and_release_connections() -> None:
    with transaction.atomic():
        run("SET statement_timeout = '7s'")
    assert_stays()
    assert conn_hygiene.release_connections() == 0
    assert_stays()


@pytest.mark.parametrize(
    ("statement", "adds"),
    [
        ("SELECT 1", set()),
        ("UPDATE a SET b = 1", set()),
        ("-- SET x = 1\nSELECT 1", set()),
        ("/* SET x */ SELECT 1", set()),
        ("/* why */ SET x = 1", {"SET x"}),
        ("SELECT 'a; SET x = 1'", set()),
        ("SELECT E'a\\'; SET x = 1'", set()),
        ("SELECT $q$ ; SET x = 1; $q$", set()),
        ("SELECT \"it's\"; SET x = '1'", {"SET x"}),
        ('CREATE TABLE "pg_temp"."x" (n int)', {"temporary table"}),
        ("CREATE VIEW v AS SELECT temp FROM a", set()),
        ("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", {"temporary table", "DO block"}),
        ('CREATE OR REPLACE PROCEDURE "pg_temp_3".f() LANGUAGE sql AS $$$$', {"temporary table", "DO block"}),
        ("CREATE FUNCTION f(pg_temp.t) RETURNS int LANGUAGE sql SET search_path = a, pg_temp", {"temporary table"}),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", set()),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            {f"SET default_transaction_{name}" for name in ("isolation", "read_only", "deferrable")},
        ),
        ("RESET ALL", {"SET"}),
        ("PREPARE TRANSACTION 'x'", set()),
        ("SELECT set_config('a', %s, %s)", {"SET a, local if parameter 1 says so"}),
        ("SELECT set_config('a', %s, true)", set()),
        ("WITH x AS (SELECT pg_advisory_lock(1)) SELECT * FROM x", {"advisory lock"}),
        ("/* a /* b */ c */ SET x = 1", {"SET x"}),
        ("/* a /* b; SET x = 1 */ c */ SELECT 1", set()),
        ("/* 1 /* 2 /* 3 /* 4 /* 5 /* 6 */ */ */ */ */ */ SET x = 1", {"SET x"}),
        ("\f\v SET x = 1", {"SET x"}),
        ("EXPLAIN ANALYZE CREATE TEMP TABLE x AS SELECT 1", {"temporary table"}),
        ("EXPLAIN (ANALYZE, VERBOSE) SELECT 1 INTO TEMP x", {"temporary table"}),
        ("SELECT 1 AS a INTO pg_temp.x", {"temporary table"}),
        ("SELECT setseed(0.5)", {"setseed()"}),
        ("SELECT dblink_connect('dbname=x')", {"dblink connection"}),
        ("SELECT pgv_set('app', 'tenant', 7)", {"state of an extension"}),
        ('SELECT public."pgv_set_int" (%s, %s, %s)', {"state of an extension"}),
        ("SELECT PGV_INSERT('app', 'tenants', row(7))", {"state of an extension"}),
        ("SELECT pgv_get('app', 'tenant', NULL::int), my_pgv_set(7)", set()),
        ("SELECT set_system_time('2001-01-01')", {"state of an extension"}),
        ("SELECT set_user('auditor')", {"state of an extension"}),
        ("SELECT hll_set_defaults(11, 5, -1, 1)", {"state of an extension"}),
        ("PREPARE", {"PREPARE"}),
        ("SELECT set_limit(0.9)", {"SET pg_trgm.similarity_threshold"}),
        ("SELECT pg_create_physical_replication_slot('x', true, true)", {"temporary replication slot"}),
        ("SELECT pg_create_logical_replication_slot('x', 'y', temporary => true)", {"temporary replication slot"}),
        ("SELECT pg_create_physical_replication_slot('x', true, false)", set()),
        ("SELECT pg_create_physical_replication_slot('x')", set()),
        ("SELECT pg_copy_physical_replication_slot('x', 'y')", {"temporary replication slot"}),
        ("SELECT pg_replication_origin_session_setup('x')", {"replication origin"}),
        ("SELECT pg_backup_start('x')", {"backup"}),
        ("COPY (SELECT set_config('a', 'b', false)) TO STDOUT", {"SET a"}),
        ("SELECT * FROM ts_stat('SELECT to_tsvector(set_config(''a'', ''b'', false))')", {"SET a"}),
        ("SELECT * FROM ts_stat('SELECT tags FROM closed')", set()),
        ("SELECT * FROM ts_stat(%s)", {"statement that cannot be read"}),
        ("SELECT query_to_xml($$SELECT query_to_xml('SELECT 1')$$)", {"statement that cannot be read"}),
        ("SELECT * FROM crosstab('SELECT 1', $$SELECT set_config('a', 'b', false)$$) AS c(d text)", {"SET a"}),
        ("SELECT * FROM crosstab('SELECT setseed(1)', 'SELECT pg_advisory_lock(1)')", {"setseed()", "advisory lock"}),
        ("SELECT * FROM crosstab('SELECT 1, 2, 3', 'SELECT DISTINCT a FROM b') AS c(d text)", set()),
        ("SELECT * FROM crosstab('SELECT 1, 2, 3', %s) AS c(d text)", {"statement that cannot be read"}),
        ("SELECT * FROM crosstab('SELECT 1, 2, 3', 4) AS c(d text)", set()),
        ("SELECT * FROM crosstab('SELECT 1, 2, 3') AS c(d text)", set()),
        ("SELECT ts_rewrite('a', 'b', 'c')", set()),
        ("CREATE EXTENSION hstore SCHEMA pg_temp", {"temporary table"}),
        ("INSERT INTO temp SELECT 1", set()),
        ("INSERT /* why */ INTO temp SELECT 1", set()),
        ("MERGE INTO temp USING a ON true WHEN MATCHED THEN DELETE", set()),
        ("EXPLAIN (ANALYZE) INSERT INTO temp SELECT 1", set()),
        ("WITH x AS (SELECT 1 AS a) INSERT INTO temp SELECT a FROM x", set()),
        ("WITH x AS (INSERT INTO temp VALUES (1) RETURNING a) SELECT a FROM x", set()),
        ("COPY (INSERT INTO temp VALUES (1) RETURNING 1) TO STDOUT", set()),
        ("PREPARE p AS INSERT INTO temp VALUES (1)", {"PREPARE"}),
        ("CREATE RULE r AS ON INSERT TO a DO ALSO (INSERT INTO temp VALUES (1))", set()),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT pg_advisory_unlock_all(); END", set()),
        ("SELECT %(it's)s; SET a = 1; --'", {"statement that cannot be read", "SET a"}),
        ("SELECT * FROM orders WHERE domain = %s", set()),
    ],
)
def test_reading_statements(statement: str, adds: set[str]) -> None:
    effect = effect_of(statement)
    assert (set() if effect is None else effect.adds | set(map(_said, effect.settings))) == adds


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1 AS date_insert INTO TEMP t_hygiene",
        "SELECT 1 AS last_merge INTO LOCAL TEMPORARY TABLE t_hygiene",
        "SELECT 1 AS a$insert INTO pg_temp.t_hygiene",
        "SELECT 1 AS éinsert INTO TEMP t_hygiene",
        "SELECT 1 AS insert INTO TEMP t_hygiene",
        'SELECT 1 AS "insert" INTO TEMP t_hygiene',
        "SELECT (1) /* ( */ insert INTO TEMP t_hygiene",
        "SELECT m.insert INTO TEMP t_hygiene FROM (SELECT 1 AS insert) m",
        "WITH w AS (SELECT 1 AS a) SELECT count(*) merge INTO TEMP t_hygiene FROM w",
        "WITH insert AS (SELECT 1 AS insert) SELECT insert INTO TEMP t_hygiene FROM insert",
        "(SELECT count(*) insert INTO TEMP t_hygiene)",
        "EXPLAIN ANALYZE SELECT 1 AS insert INTO TEMP t_hygiene",
    ],
)
def test_a_column_may_be_called_as_the_command_that_takes_a_row(statement: str) -> None:
    effect = effect_of(statement)
    assert effect is not None
    assert effect.adds == {TEMPORARY}
    with connection.cursor() as cursor:
        cursor.execute(statement)
        cursor.execute("SELECT count(*) FROM pg_class WHERE oid = to_regclass('pg_temp.t_hygiene')")
        assert cursor.fetchone() == (1,)


def _said(setting: Setting) -> str:
    name, local = setting
    said = f"SET {f'what parameter {name.key} says' if isinstance(name, Placeholder) else name}"
    if isinstance(local, Placeholder):
        return f"{said}, local if parameter {local.key} says so"
    return f"{said}, local" if local else said


# What they set, or a reason.
@pytest.mark.parametrize(
    ("statement", "settings"),
    [
        ("SET SESSION app.tenant = 1", ["app.tenant"]),
        ("SET app . tenant TO DEFAULT", ["app.tenant"]),
        ("RESET app.tenant", ["app.tenant"]),
        ("SET app.tenant FROM CURRENT", ["app.tenant"]),
        ('SET "App"."Tenant" = 1', ["app.tenant"]),
        ('SET "app.tenant" = 1', ["app.tenant"]),
        ("SET APP.É = 1", ["app.É"]),
        ('SET U&"app\\002et" = 1', ["app.t"]),
        ("SET local.a = 1", ["local.a"]),
        ("SET session.a = 1", ["session.a"]),
        ("SET SESSION transaction.a = 1", ["transaction.a"]),
        ("SET role = a", ["role"]),
        ("SET names.a = 1", ["names.a"]),
        ("SET time.zone = 1", ["time.zone"]),
        ("SET TIME ZONE 'Asia/Tokyo'", ["timezone"]),
        ("SET TIME ZONE INTERVAL '+02:00' HOUR TO MINUTE", ["timezone"]),
        ("RESET TIME ZONE", ["timezone"]),
        ("SET SESSION ROLE a", ["role"]),
        ("SET ROLE NONE", ["role"]),
        ("RESET ROLE", ["role"]),
        ("SET SESSION AUTHORIZATION a", ["role", "session_authorization"]),
        ("SET SESSION SESSION AUTHORIZATION a", ["role", "session_authorization"]),
        ("RESET SESSION AUTHORIZATION", ["role", "session_authorization"]),
        ("SET session_authorization = a", ["role", "session_authorization"]),
        ("SET NAMES 'utf8'", ["client_encoding"]),
        ("SET NAMES", ["client_encoding"]),
        ("SET SCHEMA 'a'", ["search_path"]),
        ("SET XML OPTION DOCUMENT", ["xmloption"]),
        ("SET transaction_isolation = 'serializable'", []),
        ("SET SESSION TRANSACTION READ ONLY", []),
        ("SET LOCAL SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", []),
        ("SET LOCAL ROLE a", []),
        ("SET LOCAL SESSION AUTHORIZATION a", []),
        ("SET CONSTRAINTS ALL DEFERRED", []),
        ("RESET ALL", [SETTING]),
        ('RESET "all"', ["all"]),
        (f"SET {'a' * 64}.b = 1", [SETTING]),
        ("SET seed = 0.5", [SEED]),
        ("SET LOCAL seed = 0.5", [SEED]),
        ("SELECT set_config('seed', '0.5', true)", [SEED]),
        ("SELECT set_config('App.Tenant', 'a', false), pg_catalog.set_config('b', 'c', 'f')", ["app.tenant", "b"]),
        ("SELECT set_config('a', 'b', ' Tr'), set_config('c', 'd', 'true'::bool)", []),
        ("SELECT set_config('a', 'b', 1 = 1)", ["a"]),
        ("SELECT set_config('a' || 'b', 'c', false), set_config('d', 'e', false)", [SETTING, "d"]),
        ("SELECT set_config('a' || 'b', 'c', true)", []),
        ("SELECT set_config(E'a\\x62', 'c', false)", [SETTING]),
        ("SELECT set_config('a%s', 'c', false)", [SETTING]),
        ("SELECT set_config('a'\n'b', 'c', false)", [SETTING]),
        ("SELECT set_config(name, 'c', false) FROM a", [SETTING]),
        ("SELECT set_config(setting_name => 'a', new_value => 'b', is_local => false)", [SETTING]),
        ("SELECT set_config($$a$$, (SELECT f(1, 2)), false)", ["a"]),
        ("UPDATE pg_settings SET setting = 1 WHERE name = 'a'", [SETTING]),
        ("PREPARE a AS SELECT set_config('a', 'b', false)", [PREPARED, SETTING, "a"]),
        ("DECLARE a CURSOR FOR SELECT pg_advisory_lock(1)", [ADVISORY_LOCK, SETTING]),
        ("SET search_path = a, b", ["search_path"]),
        ("SET search_path = a, pg_temp", [TEMPORARY, "search_path"]),
        ("SET LOCAL search_path TO 'pg_temp'", [TEMPORARY]),
        ("SELECT set_config('search_path', 'pg_temp_3, a', true)", [TEMPORARY]),
    ],
)
def test_reading_settings(statement: str, settings: list[str]) -> None:
    assert said_of(statement) == sorted(settings)


def said_of(statement: str, parameters: Any = None) -> list[str]:
    effect = effect_of(statement)
    if effect is None:
        return []
    effect = effect.with_parameters(parameters)
    assert {setting.is_local for setting in effect.settings} <= {False}
    return sorted([*effect.adds, *(str(setting.name) for setting in effect.settings)])


@pytest.mark.parametrize(
    ("statement", "parameters", "settings"),
    [
        ("SELECT set_config(%s, %s, %s)", ["App.Tenant", "a", False], ["app.tenant"]),
        ("SELECT set_config(%s, %s, %s)", ["app.tenant", "a", True], []),
        ("SELECT set_config(%s, %s, %s)", ["app.tenant", "a", "on"], []),
        ("SELECT set_config(%s, %s, %s)", ["app.tenant", "a", None], ["app.tenant"]),
        ("SELECT set_config(%(Name)s::text, %(b)s, %(c)s::bool)", {"Name": "a", "c": False}, ["a"]),
        ("SELECT set_config(%(Name)s::text, %(b)s, %(c)s::bool)", {"Name": "a", "c": True}, []),
        ("SELECT '%s', /* %s */ 5 %% 3, set_config(%t, %b, %s)", ["a", "b", "c", "d", False], ["c"]),
        ("SELECT set_config(%s, %s, false), set_config(%s, %s, true)", ["a", "b", "c", "d"], ["a"]),
        ("SELECT set_config(%s, 'a', false)", None, [SETTING]),
        ("SELECT set_config(%s, 'a', false)", [], [SETTING]),
        ("SELECT set_config(%s, 'a', false)", [1], [SETTING]),
        ("SELECT set_config(%s, '0.5', true)", ["seed"], [SEED]),
        ("SELECT set_config(%s, 'a', false)", ["session_authorization"], ["role", "session_authorization"]),
        ("SELECT set_config('search_path', %s, false)", ["a"], ["search_path"]),
        ("SELECT set_config('search_path', %s, true)", ["a"], []),
        ("SELECT set_config('search_path', %s, true)", ["pg_temp, a"], [TEMPORARY]),
        ("SELECT set_config(%s, %s, true)", ["search_path", "pg_temp, a"], [TEMPORARY]),
        ("SET LOCAL search_path = %(path)s", {"path": "pg_temp"}, [TEMPORARY]),
        ("SELECT set_config(%s, %s, %s)", Each([["a", "b", False], ["c", "d", True], ["e", "f", False]]), ["a", "e"]),
        ("SELECT set_config(%s, %s, true)", Each([("a", "b"), ("search_path", "pg_temp")]), [TEMPORARY]),
        ("SELECT set_config(%(a)s, 'b', false)", Each(({"a": "c"}, {"a": None})), ["c", SETTING]),
        ("SELECT set_config(%s, %s, false)", Each(iter([["a", "b"]])), [SETTING, TEMPORARY]),
        ("SELECT set_config(%s, %s, false)", Each([]), []),
        # As with executemany() of an iterator, whose parameters are not known before.
        ("SET LOCAL search_path = %s", None, [TEMPORARY]),
        ("SET search_path = a, %s", None, [TEMPORARY, "search_path"]),
        ("SELECT set_config('search_path', %s, true)", None, [TEMPORARY]),
        ("SELECT set_config(%s, %s, true)", None, [TEMPORARY]),
        ("SELECT set_config('app.tenant', %s, true)", None, []),
        ("SET LOCAL search_path = a", None, []),
        ("SET search_path = a", None, ["search_path"]),
    ],
)
def test_reading_settings_from_parameters(statement: str, parameters: Any, settings: list[str]) -> None:
    assert said_of(statement, parameters) == sorted(settings)


def test_all_of_a_template_string_is_read_but_what_is_a_parameter() -> None:
    templatelib: Any = pytest.importorskip("string.templatelib", reason="template strings are new in Python 3.14")
    template, interpolation = templatelib.Template, templatelib.Interpolation
    inner = template("SELECT ", interpolation("it's", "a", None, "l"), " AS ", interpolation('"b"', "b", None, "i"))
    for query, text in (
        (template("SET LOCAL search_path TO ", interpolation("pg_temp", "p", None, "l")), "'pg_temp'"),
        (template("SET LOCAL search_path TO ", interpolation("pg_temp", "p", None, "")), "%s"),
        (template("SET LOCAL search_path TO ", interpolation(sql.Literal("pg_temp"), "p", None, "l")), "'pg_temp'"),
    ):
        assert text_of(query, None) == f"SET LOCAL search_path TO {text}"
        assert said_of(f"{text_of(query, None)}") == [TEMPORARY]
    assert text_of(template(interpolation(inner, "q", None, "q"), "; SET a.b = 1"), None) == (
        """SELECT 'it''s' AS \"\"\"b\"\"\"; SET a.b = 1"""
    )


def receiver_that_sets(sender: Any, connection: Any, **kwargs: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '11s'")


@pytest.fixture
def setting_at_connect() -> Iterator[None]:
    connections.close_all()
    connection_created.connect(receiver_that_sets)
    yield
    connection_created.disconnect(receiver_that_sets)
    connections.close_all()


@pytest.mark.parametrize("thread", [True, False], ids=["first checkout", "later checkouts"])
@pytest.mark.usefixtures("setting_at_connect", "releasing")
def test_a_set_at_connect_does_not_pin_and_does_not_leak(thread: bool, pool_of: Callable[[str], Any]) -> None:
    def work() -> None:
        with release_between_queries():
            for _ in range(3):
                assert run("SHOW statement_timeout") == [("11s",)]
                wait_until_released()

    if thread:
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
    else:
        work()
    with pool_of("default").connection() as handle:
        assert handle.execute("SHOW statement_timeout").fetchall() == [("0",)]


def receiver_that_locks(sender: Any, connection: Any, **kwargs: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(816)")


def test_other_state_at_connect_does_not_pin_and_does_not_leak(
    pool_of: Callable[[str], Any], settings: Any, admin: psycopg.Connection
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0, "CLEAN_SESSIONS": "seen"}
    connections.close_all()
    connection_created.connect(receiver_that_locks)
    try:
        with release_between_queries():
            for _ in range(3):
                run("SELECT 1")
                wait_until_released()
                assert admin.execute("SELECT count(*) FROM pg_locks WHERE objid = 816").fetchone() == (0,)
    finally:
        connection_created.disconnect(receiver_that_locks)
