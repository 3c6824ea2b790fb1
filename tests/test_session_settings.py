"""session_settings: what it sets, when it is sent, what comes back after it, and that nobody else meets it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import DataError, NotSupportedError, ProgrammingError, connection, connections, transaction
from django.db.backends.signals import connection_created
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, TestCase
from django.urls import path
from psycopg.types.string import StrDumper, TextLoader

import conn_hygiene
from conn_hygiene import QueryTimeout, query_timeout, release_between_queries, session_settings
from tests.waiting import holds, wait_until_released

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from django.http import HttpRequest

ALIASES = ["default", "unpooled", "persistent"]
pytestmark = [
    pytest.mark.django_db(transaction=True, databases=[*ALIASES, "small", "sqlite"]),
    pytest.mark.urls(__name__),
]

each_alias = pytest.mark.parametrize("alias", ALIASES)


def query(sql: Any, alias: str = "default", params: Any = None) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()[0] if cursor.description else None


def value(name: str = "app.tenant", alias: str = "default") -> str | None:
    """Return what *name* is in the session, None also for a custom name that has been reset."""
    return query("SELECT nullif(current_setting(%s, true), '')", alias, [name])


def tenant(number: int, **how: Any) -> Any:
    return session_settings({"app.tenant": number}, **how)


def everybody_s(name: str = "app.tenant", alias: str = "default") -> set[str]:
    """Return what *name* is in all sessions of the pool of *alias*."""
    pool = connections[alias].pool
    taken = [pool.getconn() for _ in range(pool.get_stats()["pool_size"])]
    try:
        asked = "SELECT nullif(current_setting(%s, true), '')"
        return {one.execute(asked, [name]).fetchone()[0] for one in taken}
    finally:
        for one in taken:
            pool.putconn(one)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows with each query that the toolkit sends to set something."""
    queries: list[str] = []

    class Counted(psycopg.Cursor[Any]):
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            queries.append(query.decode())
            return super().execute(query, *args, **kwargs)

    monkeypatch.setattr(psycopg, "Cursor", Counted)
    return queries


@pytest.fixture
def roles(admin: psycopg.Connection) -> Iterator[tuple[str, str]]:
    """Return the names of two roles, of which the tests' own may become each."""
    names = ("conn_hygiene_one", "conn_hygiene_two")
    for name in names:
        admin.execute(f"CREATE ROLE {name}")
    yield names
    connections.close_all()
    for name in names:
        admin.execute(f"DROP ROLE IF EXISTS {name}")


# ##### What is set #####


@each_alias
def test_outside_of_transactions(alias: str) -> None:
    with tenant(7, using=alias):
        assert [value(alias=alias), value(alias=alias)] == ["7", "7"]
    assert value(alias=alias) is None


@each_alias
def test_in_transactions(alias: str) -> None:
    with tenant(7, using=alias):
        for _ in range(2):
            with transaction.atomic(using=alias):
                assert value(alias=alias) == "7"
        assert value(alias=alias) == "7"
        with transaction.atomic(using=alias):
            assert value(alias=alias) == "7"
    assert value(alias=alias) is None


@each_alias
def test_inside_a_transaction(alias: str) -> None:
    with transaction.atomic(using=alias):
        assert value(alias=alias) is None
        with tenant(7, using=alias):
            assert value(alias=alias) == "7"
        assert value(alias=alias) is None
    assert value(alias=alias) is None


@each_alias
@pytest.mark.parametrize("atomic", [False, True])
def test_the_inner_one_wins_for_each_name_and_the_outer_one_comes_back(alias: str, atomic: bool) -> None:
    def seen() -> list[str | None]:
        return [value(name, alias) for name in ("app.tenant", "app.user", "statement_timeout")]

    def nested() -> None:
        with session_settings({"app.tenant": 1, "app.user": "ann", "statement_timeout": "9s"}, using=alias):
            assert seen() == ["1", "ann", "9s"]
            with session_settings({"APP.Tenant": 2}), query_timeout(8):
                assert seen() == ["2", "ann", "8s"]
                with session_settings({"app.user": None, "statement_timeout": 7000}):
                    assert seen() == ["2", None, "7s"]
                assert seen() == ["2", "ann", "8s"]
            assert seen() == ["1", "ann", "9s"]
        assert seen() == [None, None, "0"]

    run = transaction.atomic(using=alias)(nested) if atomic else nested
    run()
    assert seen() == [None, None, "0"]


def test_all_aliases_by_default() -> None:
    with tenant(7):
        assert [value(alias=alias) for alias in ALIASES] == ["7", "7", "7"]
        assert query("SELECT 1", "sqlite") == 1
    with tenant(7, using=["default", "small"]):
        assert [value(alias=alias) for alias in ("default", "small", "unpooled")] == ["7", "7", None]


class Colour(str, enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("it's", "it's"),
        ('a "quoted" \\ one', 'a "quoted" \\ one'),
        ("'; DROP TABLE x; --", "'; DROP TABLE x; --"),
        ("%s %(a)s $1", "%s %(a)s $1"),
        ("schräg 東京", "schräg 東京"),
        ("a, b", "a, b"),
        ("DEFAULT", "DEFAULT"),
        (-3, "-3"),
        (2**70, str(2**70)),
        (0.25, "0.25"),
        (True, "true"),
        (False, "false"),
        (None, None),
        (Colour.RED, "red"),
        (Number.ONE, "1"),
    ],
)
def test_values(given: Any, found: str | None, atomic: bool) -> None:
    def run() -> str | None:
        with session_settings({"app.value": given}):
            return value("app.value")

    assert (transaction.atomic(run) if atomic else run)() == found


@pytest.mark.parametrize("atomic", [False, True])
def test_a_list_is_a_list(atomic: bool) -> None:
    before = query("SHOW search_path")

    def run() -> None:
        with session_settings({"search_path": 'pg_catalog, "x, y"'}):
            assert query("SELECT current_schemas(false)") == ["pg_catalog"]
            assert query("SHOW search_path") == 'pg_catalog, "x, y"'
        assert query("SHOW search_path") == before
        assert query("SELECT current_schemas(false)") == ["public"]

    (transaction.atomic(run) if atomic else run)()
    assert query("SHOW search_path") == before


@pytest.mark.parametrize("given", ["15ms", 15, "0.015s"])
@pytest.mark.parametrize("name", ["statement_timeout", "deadlock_timeout"])
def test_units(name: str, given: Any) -> None:
    before = query(f"SHOW {name}")
    with session_settings({name: given}):
        assert query(f"SHOW {name}") == "15ms"
        with session_settings({name: None}):
            assert query(f"SHOW {name}") == before
    assert query(f"SHOW {name}") == before


def test_a_timeout_s_value_is_quoted() -> None:
    with session_settings({"statement_timeout": "1'; SET app.tenant = '6"}), pytest.raises(DataError, match="invalid"):
        query("SELECT 1")
    assert value() is None


# ##### Roles #####


def who(alias: str = "default") -> list[str]:
    return query("SELECT ARRAY[session_user::text, current_user::text]", alias)


@each_alias
@pytest.mark.parametrize("atomic", [False, True])
def test_a_role_comes_last_and_goes_first(alias: str, atomic: bool, roles: tuple[str, str]) -> None:
    # Only a superuser may set the other.
    privileged = "log_min_duration_statement"
    me = who(alias)
    before = query(f"SHOW {privileged}", alias)

    def run() -> None:
        with session_settings({"role": roles[0], privileged: "7s", "app.tenant": 1}, using=alias):
            assert (who(alias), query(f"SHOW {privileged}", alias)) == ([me[0], roles[0]], "7s")
            with session_settings({privileged: "8s"}, using=alias):
                assert (who(alias), query(f"SHOW {privileged}", alias)) == ([me[0], roles[0]], "8s")
            with session_settings({privileged: "9s", "role": roles[1]}, using=alias):
                assert (who(alias), query(f"SHOW {privileged}", alias)) == ([me[0], roles[1]], "9s")
            with session_settings({"role": "none"}, using=alias):
                assert (who(alias), query(f"SHOW {privileged}", alias)) == (me, "7s")
            assert (who(alias), query(f"SHOW {privileged}", alias)) == ([me[0], roles[0]], "7s")
        assert (who(alias), query(f"SHOW {privileged}", alias)) == (me, before)

    (transaction.atomic(using=alias)(run) if atomic else run)()
    assert (who(alias), query(f"SHOW {privileged}", alias), value(alias=alias)) == (me, before, None)


@pytest.mark.parametrize("atomic", [False, True])
def test_session_authorization_takes_the_role_along_and_brings_it_back(atomic: bool, roles: tuple[str, str]) -> None:
    one, two = roles
    me = who()[0]
    query(f"SET ROLE {two}")

    def run() -> None:
        with session_settings({"session_authorization": one, "app.tenant": 1}):
            assert who() == [one, one]
            with session_settings({"session_authorization": me, "role": one, "app.tenant": 2}):
                assert who() == [me, one]
            assert who() == [one, one]
        assert who() == [me, two]

    (transaction.atomic(run) if atomic else run)()
    assert who() == [me, two]
    connection.close()


@pytest.mark.parametrize("atomic", [False, True])
def test_what_cannot_be_set_fails_the_query_which_does_not_run(atomic: bool, roles: tuple[str, str]) -> None:
    query("CREATE TEMP SEQUENCE ran")
    before = who()

    def run() -> None:
        query("SELECT nextval('ran')")

    for wrong, error in (({"role": "nobody_there"}, DataError), ({"work_mem": "much"}, DataError)):
        with tenant(1), session_settings({"app.user": "ann", **wrong}):
            for _ in range(2):
                with pytest.raises(error) as caught:
                    (transaction.atomic(run) if atomic else run)()
                assert isinstance(caught.value.__cause__, psycopg.errors.InvalidParameterValue)
            # Nothing that is around is lost, and what is in force again is known.
            with session_settings({"role": roles[0], "work_mem": "1MB"}):
                assert [value(), value("app.user"), who()[1]] == ["1", "ann", roles[0]]
        assert (value(), value("app.user"), who()) == (None, None, before)
    with session_settings({"nothing_of_this_name": 1}), pytest.raises(ProgrammingError, match="nothing_of_this_name"):
        run()
    assert query("SELECT nextval('ran')") == 1
    connection.close()


def test_what_fails_between_two_blocks_leaves_the_outer_one() -> None:
    with tenant(1):
        assert value() == "1"
        with (
            session_settings({"app.tenant": 2, "role": "nobody_there"}),
            pytest.raises(DataError, match="nobody_there"),
        ):
            value()
        assert value() == "1"
    assert value() is None


def test_a_value_that_can_no_longer_be_brought_back(admin: psycopg.Connection, roles: tuple[str, str]) -> None:
    pid = query("SELECT pg_backend_pid()", "persistent")
    query(f"SET ROLE {roles[0]}", "persistent")
    with session_settings({"role": roles[1]}, using="persistent"):
        assert who("persistent")[1] == roles[1]
        admin.execute(f"DROP ROLE {roles[0]}")
    # Nobody goes on in that session as somebody else.
    assert who("persistent")[0] == who("persistent")[1]
    assert query("SELECT pg_backend_pid()", "persistent") != pid


def test_in_a_transaction_that_is_said(admin: psycopg.Connection, roles: tuple[str, str]) -> None:
    def run() -> None:
        query(f"SET LOCAL ROLE {roles[0]}")
        with session_settings({"role": roles[1]}):
            assert who()[1] == roles[1]
            admin.execute(f"DROP ROLE {roles[0]}")
            # By this, the session learns of it.
            query("SELECT count(*) FROM pg_class")

    with pytest.raises(DataError, match=f'"{roles[0]}" does not exist'):
        transaction.atomic(run)()
    assert who()[0] == who()[1]
    assert not any(wrapper.execute_wrappers for wrapper in connections.all())


# ##### What comes back #####


@each_alias
def test_what_was_set_before_comes_back(alias: str) -> None:
    query("SET app.tenant = 'before'", alias)
    with tenant(7, using=alias):
        assert value(alias=alias) == "7"
    assert value(alias=alias) == "before"
    with transaction.atomic(using=alias):
        query("SET LOCAL app.tenant = 'local'", alias)
        with tenant(7, using=alias):
            assert value(alias=alias) == "7"
        assert value(alias=alias) == "local"
        query("SET LOCAL app.tenant = 'another'", alias)
        with tenant(7, using=alias):
            assert value(alias=alias) == "7"
        assert value(alias=alias) == "another"
    assert value(alias=alias) == "before"
    connections[alias].close()


@each_alias
def test_what_the_block_sets_itself_counts_to_its_end(alias: str) -> None:
    with tenant(7, using=alias):
        assert value(alias=alias) == "7"
        query("SET app.tenant = 'own'", alias)
        assert value(alias=alias) == "own"
    assert value(alias=alias) is None
    connections[alias].close()


@each_alias
def test_what_a_transaction_of_the_block_commits_is_the_session_s(alias: str) -> None:
    with tenant(7, using=alias):
        with transaction.atomic(using=alias):
            query("SELECT 1", alias)
            query("SET app.tenant = 'own'", alias)
            assert value(alias=alias) == "own"
        assert value(alias=alias) == "7"
    assert value(alias=alias) == "own"
    with tenant(7, using=alias), transaction.atomic(using=alias):
        query("SET LOCAL app.tenant = 'local'", alias)
        assert value(alias=alias) == "local"
    assert value(alias=alias) == "own"
    with transaction.atomic(using=alias):
        with tenant(7, using=alias):
            query("SET app.tenant = 'other'", alias)
        assert value(alias=alias) == "own"
    assert value(alias=alias) == "other"
    connections[alias].close()


def test_a_custom_name_comes_back_empty() -> None:
    with tenant(7):
        query("SELECT 1")
    assert query("SELECT current_setting('app.tenant', true)") == ""


class Marked(TextLoader):
    def load(self, data: Any) -> Any:
        return f"<{super().load(data)!r}>"


class Shouting(StrDumper):
    def dump(self, obj: str) -> Any:
        return super().dump(obj.upper())


def read_otherwise(raw: psycopg.Connection[Any]) -> None:
    raw.adapters.register_loader("text", Marked)


def sent_otherwise(raw: psycopg.Connection[Any]) -> None:
    raw.adapters.register_dumper(str, Shouting)


def in_bytes(raw: psycopg.Connection[Any]) -> None:
    raw.execute("SET client_encoding = 'SQL_ASCII'")


# Each of them in one query of set_config(), or by the SET of a timeout.
BLOCKS = {
    "settings": (lambda: session_settings({"app.tenant": "of the block"}), "app.tenant", b"of the block", b"own"),
    "timeout": (lambda: query_timeout(5), "statement_timeout", b"5s", b"7s"),
}


@pytest.mark.parametrize("change", [read_otherwise, sent_otherwise, in_bytes])
@pytest.mark.parametrize(("block", "name", "inside", "around"), BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("in_transaction", [False, True])
def test_what_an_application_has_made_of_text_is_not_met(
    change: Callable[[Any], None],
    block: Callable[[], Any],
    name: str,
    inside: bytes,
    around: bytes,
    in_transaction: bool,
) -> None:
    def raw_value() -> bytes | None:
        with connection.cursor() as cursor:
            cursor.execute(f"SHOW {name}")
            return cursor.pgresult.get_value(0, 0)

    query("CREATE TEMP TABLE t_hygiene (n int)")
    query(f"SET {name} = '{around.decode()}'")
    change(connection.connection)
    with transaction.atomic() if in_transaction else contextlib.nullcontext():
        with block():
            assert raw_value() == inside
        assert raw_value() == around
    assert query("SELECT count(*) FROM t_hygiene") == 0
    connection.close()


def test_in_a_pipeline_it_is_set_as_well() -> None:
    asked = "SELECT current_setting('app.tenant')"
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL app.tenant = 'own'")
        with connection.connection.pipeline():
            with tenant(7):
                assert cursor.execute(asked).fetchone() == ("7",)
            assert cursor.execute(asked).fetchone() == ("own",)


def test_a_session_that_the_block_has_cleaned_is_set_again() -> None:
    for statement in ("DISCARD ALL", "RESET ALL"):
        with tenant(7):
            assert value() == "7"
            query(statement)
            assert value() == "7"
        assert value() is None
        connection.close()


def test_a_name_that_the_server_would_cut_off_reaches_nobody_else() -> None:
    name = "app." + "t" * 64
    with release_between_queries(), session_settings({name: "acme"}):
        assert value(name) == "acme"
        wait_until_released("default")
        assert everybody_s(name) == {None}
        assert value(name) == "acme"
    assert value(name) is None


def test_a_savepoint_that_is_rolled_back_does_not_take_it_along() -> None:
    def fail() -> None:
        with transaction.atomic(), tenant(3):
            assert value() == "3"
            raise LookupError

    with transaction.atomic(), tenant(1):
        with tenant(2):
            assert value() == "2"
            with pytest.raises(LookupError):
                fail()
            assert value() == "2"
        assert value() == "1"
    assert value() is None


@pytest.mark.parametrize("made", ["savepoint()", '"Quoted ""name"', "plain"])
def test_a_rollback_to_before_the_block(made: str) -> None:
    with transaction.atomic():
        savepoint = connection.savepoint() if made == "savepoint()" else made
        if made != "savepoint()":
            query(f"SAVEPOINT {made}")
        query("SET LOCAL app.tenant = 'local'")
        with tenant(2):
            assert value() == "2"
            query(f"ROLLBACK WORK TO {savepoint}")
            assert value() == "2"
        # What was set after the savepoint was not there any more when the block began anew.
        assert value() is None


SQL = psycopg.sql.SQL
BACK = "ROLLBACK TO SAVEPOINT a"


@pytest.mark.parametrize(
    "back",
    [
        SQL("ROLLBACK TO SAVEPOINT {}").format(psycopg.sql.Identifier("a")),
        SQL(BACK),
        BACK.encode(),
        f"SELECT 1; {BACK}",
        f"SELECT ';'; -- one\n {BACK};",
        f"/* one /* two */ */ {BACK}",
        f"-- one\r{BACK}",
        f"/* it's one; */{BACK}",
        "rollback/**/to a",
        'ROLLBACK TRANSACTION TO"a"',
        'Rollback Work To U&"\\0061"',
        "ABORT; BEGIN",
        f"{BACK}; RELEASE a; SELECT $$; SAVEPOINT a$$",
        rf"{BACK}; SELECT '\'; SAVEPOINT a; --'",
        "ROLLBACK TO U&\"!0061\" UESCAPE '!'",
    ],
)
@pytest.mark.parametrize("made", ["SAVEPOINT a", b"SAVEPOINT A", SQL("SAVEPOINT a"), "SELECT 1; SAVEPOINT a"])
def test_a_rollback_however_it_is_written(made: Any, back: Any) -> None:
    with transaction.atomic():
        query(made)
        with tenant(2):
            assert value() == "2"
            query(back)
            assert value() == "2"
            query("ROLLBACK AND CHAIN")
            assert value() == "2"
        assert value() is None
    connection.close()


def test_a_rollback_that_django_is_not_told_of() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.cursor.execute("SAVEPOINT a")
        with tenant(2):
            assert value() == "2"
            cursor.cursor.execute("SAVEPOINT b")
            connection.connection.execute("ROLLBACK TO a")
            assert value() == "2"
        assert value() is None
        with tenant(3):
            assert value() == "3"
            query("ROLLBACK TO a")
            assert value() == "3"
        assert value() is None


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE FUNCTION pg_temp.f() RETURNS int BEGIN ATOMIC SELECT 1; END",
        r"SELECT '\'; COMMIT; --'",
        "SELECT '; COMMIT', $$; COMMIT$$ AS \"; COMMIT\" -- ; COMMIT\n /* /* */ ; COMMIT */",
    ],
)
def test_what_ends_no_transaction(statement: str) -> None:
    with transaction.atomic():
        if "ATOMIC" in statement and connection.pg_version < 140000:
            pytest.skip("PostgreSQL 13 has no such bodies")
        query("SET LOCAL standard_conforming_strings = off")
        with tenant(2):
            assert value() == "2"
            query(statement)
            assert value() == "2"
        assert value() is None
    connection.close()


def test_a_savepoint_whose_name_cannot_be_read() -> None:
    with transaction.atomic():
        with tenant(2):
            assert value() == "2"
            query("SAVEPOINT U&\"!0061\" UESCAPE '!'")
            query("ROLLBACK TO a")
            assert value() == "2"
        assert value() is None


@pytest.mark.parametrize(
    "failing",
    ["SAVEPOINT b; SELECT 1/0", "ROLLBACK TO a; SAVEPOINT b; SELECT 1/0", "SELECT 1/0; RELEASE b"],
)
def test_a_savepoint_in_a_string_that_fails(failing: str) -> None:
    with transaction.atomic():
        query("SAVEPOINT a")
        with tenant(2):
            assert value() == "2"
            query("SAVEPOINT b")
            with pytest.raises(DataError):
                query(failing)
            query("ROLLBACK TO b")
            assert value() == "2"
        assert value() is None


def test_what_a_string_resets_that_fails_or_is_rolled_back() -> None:
    with tenant(2):
        assert value() == "2"
        with pytest.raises(DataError):
            query("RESET ALL; COMMIT; SELECT 1/0")
        assert value() == "2"
        query("RESET ALL; ROLLBACK")
        assert value() == "2"
    assert value() is None


def test_a_rollback_for_no_parameters_is_none() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        query("SAVEPOINT a")
        with tenant(2):
            assert value() == "2"
            cursor.executemany("ROLLBACK TO a", [])
            assert value() == "2"
        assert value() is None


def test_savepoints_of_one_name() -> None:
    with transaction.atomic():
        query("SAVEPOINT a")
        with tenant(2):
            assert value() == "2"
            query("SAVEPOINT b")
            query("SAVEPOINT a")
            query("ROLLBACK TO a")
            assert value() == "2"
            query("ROLLBACK TO b")
            query("ROLLBACK TO a")
            assert value() == "2"
        assert value() is None


def test_savepoints_cost_nothing(sent: list[str]) -> None:
    with transaction.atomic(), tenant(2):
        for _ in range(3):
            with transaction.atomic():
                value()
            query(SQL("SAVEPOINT a"))
            value()
            query(b"SELECT 1; RELEASE a; SELECT 'commit; end'")
            value()
    assert len(sent) == 2


def test_a_rollback_to_a_savepoint_of_a_block_that_has_ended() -> None:
    with transaction.atomic():
        with tenant(1):
            assert value() == "1"
            query("SAVEPOINT inside")
        assert value() is None
        query("rollback to savepoint INSIDE")
        assert value() is None
        with tenant(2):
            assert value() == "2"
        assert value() is None
        query("RELEASE inside")
        assert value() is None
    assert connection.execute_wrappers == []


def test_manual_transaction_management() -> None:
    transaction.set_autocommit(False)
    try:
        with tenant(2):
            for end in (transaction.commit, transaction.rollback):
                assert value() == "2"
                end()
            assert value() == "2"
        assert value() is None
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)


@pytest.mark.parametrize("end", ["COMMIT AND CHAIN", "ROLLBACK AND CHAIN", "END; BEGIN", "/* here */ COMMIT; BEGIN"])
def test_transactions_that_end_by_a_literal_statement(end: str) -> None:
    query("BEGIN")
    with tenant(2):
        assert value() == "2"
        query(end)
        assert value() == "2"
    query("ROLLBACK")
    assert value() is None


def test_a_transaction_that_begins_where_nobody_sees_it() -> None:
    with tenant(2):
        for _ in range(2):
            with transaction.atomic():
                with connection.cursor() as cursor, cursor.copy("COPY (SELECT 1) TO STDOUT") as copy:
                    assert list(copy) == [b"1\n"]
                assert value() == "2"


def test_transactions_of_psycopg_s_own() -> None:
    with tenant(2):
        with transaction.atomic():
            assert value() == "2"
        for _ in range(2):
            with connection.connection.transaction():
                assert value() == "2"
                with tenant(3):
                    assert value() == "3"
                assert value() == "2"
    with connection.connection.transaction():
        with tenant(2):
            assert value() == "2"
        assert value() is None


def test_a_transaction_of_django_s_that_psycopg_begins() -> None:
    with tenant(2):
        for _ in range(2):
            with transaction.atomic(), connection.connection.transaction():
                assert value() == "2"


def test_a_literal_end_under_manual_transaction_management() -> None:
    transaction.set_autocommit(False)
    try:
        with tenant(2):
            assert value() == "2"
            query("COMMIT AND CHAIN")
            assert value() == "2"
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)


def copied() -> bytes:
    with connection.cursor() as cursor, cursor.copy("COPY (SELECT current_setting('app.tenant')) TO STDOUT") as copy:
        return b"".join(copy)


def streamed() -> Any:
    with connection.cursor() as cursor:
        return [*cursor.cursor.stream("SELECT current_setting('app.tenant')")]


def executed_past_django() -> Any:
    with connection.cursor() as cursor:
        return cursor.cursor.execute("SELECT current_setting('app.tenant')").fetchone()


def called() -> Any:
    with connection.cursor() as cursor:
        cursor.callproc("current_setting", ["app.tenant"])
        return cursor.fetchall()


def on_a_raw_handle() -> Any:
    return connection.connection.execute("SELECT current_setting('app.tenant')").fetchone()


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (copied, b"2\n"),
        (streamed, [("2",)]),
        (executed_past_django, ("2",)),
        (called, [("2",)]),
        (on_a_raw_handle, ("2",)),
    ],
    ids=["copy", "stream", "execute", "callproc", "raw handle"],
)
def test_statements_that_django_is_not_told_of(ask: Callable[[], Any], answer: Any, atomic: bool) -> None:
    connection.ensure_connection()
    with tenant(2):
        assert (transaction.atomic(ask) if atomic else ask)() == answer
    assert value() is None


def test_what_cannot_be_set_fails_these_too() -> None:
    connection.ensure_connection()
    with session_settings({"role": "nobody_there"}):
        for ask in (copied, streamed, executed_past_django, on_a_raw_handle):
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                ask()
        with pytest.raises(DataError):
            called()


def test_the_error_of_a_transaction_goes_through() -> None:
    @transaction.atomic
    @tenant(2)
    def run() -> None:
        assert value() == "2"
        query("SELECT * FROM nowhere")

    with pytest.raises(ProgrammingError, match="nowhere"):
        run()
    assert value() is None


@pytest.mark.parametrize(
    "statement",
    [
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "-- first\n set\tlocal transaction_isolation = 'serializable'; ",
        "/* a /* b */ c */ -- d\n; set local transaction_isolation = 'serializable'",
        psycopg.sql.SQL("/* first */ SET TRANSACTION ISOLATION LEVEL {}").format(psycopg.sql.SQL("SERIALIZABLE")),
    ],
    ids=["plain", "local", "behind comments", "composed"],
)
def test_set_transaction_may_still_come_first(statement: Any) -> None:
    with tenant(2), transaction.atomic():
        query(statement)
        assert query("SHOW transaction_isolation") == "serializable"
        assert value() == "2"


def test_what_comes_after_it_in_one_string_is_not_run_without() -> None:
    sneaky = "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE; SET LOCAL work_mem = '1MB'"
    with tenant(2), pytest.raises(Exception, match="before any query"), transaction.atomic():
        query(sneaky)


def test_a_timeout_leaves_the_snapshot_for_later(admin: psycopg.Connection) -> None:
    admin.execute("CREATE TABLE late (n int)")
    try:
        with query_timeout(9), transaction.atomic():
            query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            query("SHOW work_mem")
            admin.execute("INSERT INTO late VALUES (1)")
            assert query("SELECT count(*) FROM late") == 1
    finally:
        admin.execute("DROP TABLE late")


# ##### What it costs #####


@each_alias
def test_a_block_without_statements_costs_nothing(alias: str, sent: list[str]) -> None:
    connections[alias].close()
    with tenant(2, using=alias):
        pass
    assert not holds(alias)
    value(alias=alias)
    with tenant(2, using=alias), transaction.atomic(using=alias):
        pass
    assert sent == []


def test_all_is_set_in_one_round_trip_and_taken_back_in_another(sent: list[str]) -> None:
    with tenant(2), session_settings({"search_path": "public", "role": "none", "statement_timeout": 9}):
        for _ in range(3):
            value()
        with transaction.atomic():
            value()
        assert len(sent) == 1
    assert len(sent) == 3
    del sent[:]
    with transaction.atomic():
        with session_settings({"app.tenant": 2, "search_path": "public"}):
            value()
            value()
        assert len(sent) == 2


def test_the_values_are_parameters(sent: list[str]) -> None:
    with session_settings({"app.secret": "s3cret", "search_path": "s3cret"}):
        query("SELECT 1")
    assert len(sent) == 2
    assert not any("s3cret" in query for query in sent)


# ##### Nobody else meets it #####


@each_alias
@pytest.mark.parametrize("after", [0, 0.001])
def test_a_connection_is_given_back_inside_the_block_and_clean(alias: str, after: float, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": after, "UNPOOLED_RELEASE_AFTER": after}
    wanted: dict[str, Any] = {"app.tenant": 7, "TimeZone": "Asia/Tokyo", "application_name": "somebody"}
    plain = query("SHOW TimeZone", alias), query("SHOW application_name", alias)
    with release_between_queries(), session_settings(wanted, using=alias):
        for _ in range(2):
            assert value(alias=alias) == "7"
            wait_until_released(alias)
            assert query("SHOW TimeZone", alias) == "Asia/Tokyo"
            wait_until_released(alias)
            if alias == "default":
                assert everybody_s() == {None}
                assert everybody_s("TimeZone") == {plain[0]}
            with transaction.atomic(using=alias):
                assert value(alias=alias) == "7"
            wait_until_released(alias)
    assert value(alias=alias) is None
    assert (query("SHOW TimeZone", alias), query("SHOW application_name", alias)) == plain


@pytest.mark.parametrize("after", [0, 0.001])
def test_a_role_is_given_back_inside_the_block(after: float, settings: Any, roles: tuple[str, str]) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": after}
    with release_between_queries(), session_settings({"role": roles[0]}):
        for _ in range(2):
            assert who()[1] == roles[0]
            wait_until_released()
            assert everybody_s("role") == {"none"}


def test_a_connection_is_not_pinned() -> None:
    pinned = conn_hygiene.stats().pinned
    with session_settings({"app.tenant": 7, "TimeZone": "Asia/Tokyo"}):
        value()
        assert [info.pinned_by for info in conn_hygiene.snapshot() if info.pinned_by] == []
    assert conn_hygiene.stats().pinned == pinned


@pytest.mark.parametrize("alias", ["default", "unpooled"])
def test_what_was_set_before_follows_past_the_block(alias: str, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0, "UNPOOLED_RELEASE_AFTER": 0}
    with release_between_queries():
        query("SET app.tenant = 'before'", alias)
        with tenant(7, using=alias):
            for _ in range(2):
                assert value(alias=alias) == "7"
                wait_until_released(alias)
        assert value(alias=alias) == "before"
        with connections[alias].cursor() as cursor:
            with tenant(8, using=alias):
                assert value(alias=alias) == "8"
            cursor.execute("SET app.tenant = 'after'")
        wait_until_released(alias)
        assert value(alias=alias) == "after"
    connections[alias].close()


@each_alias
def test_what_receivers_set_up_is_what_comes_back(alias: str, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0, "UNPOOLED_RELEASE_AFTER": 0}
    seen: set[str | None] = set()

    def set_up(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT nullif(current_setting('app.tenant', true), '')")
            seen.add(cursor.fetchone()[0])
            cursor.execute("SET app.tenant = 'set up'")

    connections[alias].close()
    connection_created.connect(set_up)
    try:
        with release_between_queries():
            with tenant(7, using=alias):
                for _ in range(2):
                    assert value(alias=alias) == "7"
                    wait_until_released(alias)
                with transaction.atomic(using=alias):
                    assert value(alias=alias) == "7"
            assert value(alias=alias) == "set up"
    finally:
        connection_created.disconnect(set_up)
    assert seen == {None}


def test_closing_inside_the_block_leaves_nothing() -> None:
    with tenant(7):
        assert value() == "7"
        connection.close()
        assert everybody_s() == {None}
        assert value() == "7"


def test_threads_have_their_own(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}
    wrong: list[Any] = []

    def work(number: int) -> None:
        try:
            with release_between_queries():
                for turn in range(15):
                    with tenant(number):
                        found = value(alias="small"), value(alias="small")
                    after = value(alias="small")
                    if found != (str(number), str(number)) or after is not None:
                        wrong.append((number, turn, found, after))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=work, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert everybody_s(alias="small") == {None}


def test_another_thread_meets_nothing_of_it() -> None:
    found: list[Any] = []

    def work() -> None:
        found.append(value())
        connections.close_all()

    with tenant(7):
        assert value() == "7"
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [None]


def test_nothing_is_left_on_the_wrappers() -> None:
    with tenant(7):
        value()
        with transaction.atomic():
            value()
    assert not any(wrapper.execute_wrappers for wrapper in connections.all())


@each_alias
def test_a_block_that_ends_in_a_transaction_that_it_did_not_begin_in(alias: str) -> None:
    block = tenant(7, using=alias)
    block.__enter__()
    assert value(alias=alias) == "7"
    with transaction.atomic(using=alias):
        assert value(alias=alias) == "7"
        block.__exit__(None, None, None)
        assert value(alias=alias) is None
    assert value(alias=alias) is None
    assert connections[alias].execute_wrappers == []


class SettingsInTestCase(TestCase):
    def test_they_end_with_the_block(self) -> None:
        with tenant(7):
            assert value() == "7"
        assert value() is None


# ##### Asynchronous code, and what else can be decorated #####


async def test_async_with() -> None:
    async with tenant(1):
        assert await sync_to_async(value)() == "1"
        async with tenant(2):
            assert await sync_to_async(value)() == "2"
        assert await sync_to_async(value)() == "1"
    assert await sync_to_async(value)() is None


async def test_a_coroutine_function() -> None:
    @tenant(1)
    async def run() -> str | None:
        return await sync_to_async(value)()

    assert await run() == "1"
    assert await sync_to_async(value)() is None


async def test_tasks_in_one_thread_have_settings_of_their_own() -> None:
    async def task() -> list[str | None]:
        seen = []
        for _ in range(4):
            await asyncio.sleep(0)
            seen.append(await sync_to_async(value)())
        return seen

    found = await asyncio.gather(tenant(1)(task)(), tenant(2)(task)(), task())
    assert [*found] == [["1"] * 4, ["2"] * 4, [None] * 4]


async def test_with_is_refused_on_an_event_loop() -> None:
    with pytest.raises(SynchronousOnlyOperation, match=r"async with session_settings"), tenant(1):
        pass


def test_a_generator() -> None:
    @tenant(1)
    def values() -> Iterator[str | None]:
        yield value()
        yield value()

    generator = values()
    assert next(generator) == "1"
    assert value() is None
    assert [*generator] == ["1"]
    assert value() is None


def test_an_asynchronous_generator() -> None:
    @tenant(1)
    async def values() -> AsyncIterator[str | None]:
        yield await sync_to_async(value)()
        yield await sync_to_async(value)()

    async def run() -> list[str | None]:
        return [found async for found in values()]

    assert async_to_sync(run)() == ["1", "1"]
    assert value() is None


def test_the_body_of_a_streaming_response() -> None:
    @tenant(1)
    def view() -> StreamingHttpResponse:
        return StreamingHttpResponse(str(value()) for _ in range(2))

    response = view()
    assert value() is None
    assert b"".join(response) == b"11"
    assert value() is None


class Rows:
    """A body that is more than an iterator: each ``for`` over it is a generator, and it has to be closed itself."""

    def __init__(self, seen: list[str | None], *, closes: bool) -> None:
        self._seen = seen
        if closes:
            self.close = self._note

    def _note(self) -> None:
        self._seen.append(value())

    def __iter__(self) -> Iterator[str]:
        try:
            yield str(value())
            yield str(value())
        finally:
            self._note()


def generator(seen: list[str | None]) -> Any:
    return iter(Rows(seen, closes=False))


def mapped(seen: list[str | None]) -> Any:
    return map(str.strip, generator(seen))


def without_a_close(seen: list[str | None]) -> Any:
    return Rows(seen, closes=False)


def with_a_close(seen: list[str | None]) -> Any:
    return Rows(seen, closes=True)


every_body = pytest.mark.parametrize("body", [generator, mapped, without_a_close, with_a_close])


@every_body
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_body_whose_client_goes_away_cleans_up_under_them(
    body: Callable[[list[str | None]], Any], parts: int
) -> None:
    seen: list[str | None] = []

    @tenant(1)
    def view() -> StreamingHttpResponse:
        return StreamingHttpResponse(body(seen))

    response = view()
    got = [*itertools.islice(response, parts)]
    assert got == [b"1"] * min(parts, 2)
    response.close()
    assert seen == ["1"] * (2 if body is with_a_close else 1)
    assert value() is None


def test_a_body_that_is_never_asked_for_is_closed_under_them() -> None:
    seen: list[str | None] = []
    response = tenant(1)(lambda: StreamingHttpResponse(Rows(seen, closes=True)))()
    response.close()
    assert seen == ["1"]
    assert value() is None


class Outer:
    """A middleware between two that cover bodies, which puts a body of its own around the view's."""

    def __init__(self, view: Callable[[], StreamingHttpResponse]) -> None:
        self._view = view

    def __call__(self) -> StreamingHttpResponse:
        response = self._view()
        parts = response.streaming_content
        # As GZipMiddleware does it: nothing closes the inner one with the outer.
        response.streaming_content = (part for part in parts)
        return response


def other() -> str | None:
    return value("app.other")


@pytest.mark.parametrize("between", [Outer, lambda view: view], ids=["with one between", "with none"])
def test_it_does_so_under_those_of_all_scopes(between: Any) -> None:
    seen: list[tuple[str | None, str | None]] = []

    @tenant(1)
    def view() -> StreamingHttpResponse:
        def body() -> Iterator[str]:
            try:
                yield f"{value()} {other()}"
                yield "never"
            finally:
                seen.append((value(), other()))

        return StreamingHttpResponse(body())

    response = session_settings({"app.other": 2})(between(view))()
    assert next(iter(response)) == b"1 2"
    response.close()
    assert seen == [("1", "2")]
    assert (value(), other()) == (None, None)


@pytest.mark.parametrize("parts", [1, 3])
def test_so_does_an_asynchronous_one(parts: int) -> None:
    seen: list[tuple[str | None, str | None]] = []

    @session_settings({"app.other": 2})
    @tenant(1)
    async def view() -> StreamingHttpResponse:
        async def body() -> AsyncIterator[str]:
            try:
                for _ in range(2):
                    yield f"{await sync_to_async(value)()} {await sync_to_async(other)()}"
            finally:
                seen.append((await sync_to_async(value)(), await sync_to_async(other)()))

        return StreamingHttpResponse(body())

    async def serve() -> list[bytes]:
        response = await view()
        got: list[bytes] = []
        async for part in response:
            got.append(part)
            if len(got) == parts:
                break
        # As Django's handler does it.
        await sync_to_async(response.close)()
        return got

    assert async_to_sync(serve)() == [b"1 2"] * min(parts, 2)
    assert seen == [("1", "2")]
    assert (value(), other()) == (None, None)


async def test_a_body_is_closed_on_an_event_loop_as_well() -> None:
    closed = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"1"])

        def close(self) -> None:
            closed.append(threading.get_ident())

    response = await sync_to_async(tenant(1)(lambda: StreamingHttpResponse(Body())))()
    response.close()
    assert closed == [threading.get_ident()]


# ##### Middleware: the example of the how-to #####


class TenantMiddleware:
    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        settings = session_settings({"app.tenant": request.headers["X-Tenant"]})
        return settings(self.get_response)(request)


def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(value())


async def async_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(await sync_to_async(value)())


def streaming_view(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(str(value()) for _ in range(2))


urlpatterns = [path("sync/", view), path("async/", async_view), path("streaming/", streaming_view)]


@pytest.fixture
def _tenants(settings: Any) -> None:
    settings.MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware", f"{__name__}.TenantMiddleware"]


@pytest.mark.usefixtures("_tenants")
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_middleware(kind: str) -> None:
    client = Client()
    assert [client.get(f"/{kind}/", headers={"X-Tenant": name}).content for name in ("a", "b")] == [b"a", b"b"]
    assert value() is None


@pytest.mark.usefixtures("_tenants")
def test_a_middleware_covers_the_body() -> None:
    response = Client().get("/streaming/", headers={"X-Tenant": "a"})
    assert response.getvalue() == b"aa"
    assert value() is None


@pytest.mark.usefixtures("_tenants")
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_middleware_in_async_code(kind: str) -> None:
    client = AsyncClient()
    got = [await client.get(f"/{kind}/", headers={"X-Tenant": name}) for name in ("a", "b")]
    assert [response.content for response in got] == [b"a", b"b"]
    assert await sync_to_async(value)() is None


# ##### Beside query_timeout #####


def test_whose_limit_it_was() -> None:
    with query_timeout(0.01), session_settings({"app.tenant": 1}), pytest.raises(QueryTimeout):
        query("SELECT pg_sleep(50)")
    with (
        query_timeout(5),
        session_settings({"statement_timeout": 10}),
        pytest.raises(Exception, match="timeout") as got,
    ):
        query("SELECT pg_sleep(50)")
    assert not isinstance(got.value, QueryTimeout)


# ##### Wrong use #####


@pytest.mark.parametrize(
    "name",
    ["", "app.", ".tenant", "app..tenant", "7up", "app.7", "a b", "app.te-nant", 'a"b', "a;b", "app.x\0", "$a", " a"],
)
def test_names_that_postgresql_refuses(name: str) -> None:
    with pytest.raises(ValueError, match="is not one"):
        session_settings({name: 1})


def test_what_ends_with_a_transaction_is_refused() -> None:
    for name in ("transaction_isolation", "TRANSACTION_READ_ONLY", "transaction_deferrable", "seed"):
        with pytest.raises(ValueError, match="cannot be taken back"):
            session_settings({name: 1})


@pytest.mark.parametrize("name", ["app.tenant_id", "_a._b", "a$1.b_2", "app.über", "App.A.b", "TimeZone"])
def test_names_that_postgresql_takes(name: str) -> None:
    wanted = "UTC" if name == "TimeZone" else "x"
    with session_settings({name: wanted}):
        assert query("SELECT current_setting(%s)", params=[name]) == wanted


def test_a_letter_that_is_not_ascii_has_a_case() -> None:
    with session_settings({"app.É": 1, "app.é": 2}):
        assert (value("app.É"), value("app.é")) == ("1", "2")


def test_a_name_that_is_given_twice() -> None:
    with pytest.raises(ValueError, match=r"'APP\.x' twice"):
        session_settings({"app.x": 1, "APP.x": 2})


@pytest.mark.parametrize("wrong", [None, "app.tenant", [("app.tenant", 1)], {1: 2}, {b"app.x": 1}, len])
def test_what_is_no_mapping_of_names(wrong: Any) -> None:
    with pytest.raises(TypeError, match="session_settings"):
        session_settings(wrong)


@pytest.mark.parametrize("wrong", [b"bytes", ["a", "b"], object(), 1j])
def test_values_of_another_type(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"'app\.x' is"):
        session_settings({"app.x": wrong})


@pytest.mark.parametrize("wrong", ["a\0b", float("nan"), float("inf")])
def test_values_that_cannot_be(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"cannot set 'app\.x'"):
        session_settings({"app.x": wrong})


def test_another_database_is_refused() -> None:
    with pytest.raises(NotSupportedError, match="'sqlite' is another database"), tenant(1, using="sqlite"):
        pass


def test_nobody_who_would_clean_up() -> None:
    conn_hygiene.uninstall()
    try:
        with tenant(1):
            with transaction.atomic():
                assert value() == "1"
            with pytest.raises(NotSupportedError, match=r"session_settings\(\) needs .* INSTALLED_APPS"):
                value()
    finally:
        conn_hygiene.install()
    connection.close()
