"""What may be in a session that no statement shows: by a path, or by somebody who has the connection itself."""

from __future__ import annotations

import gc
import math
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import DatabaseError, connection, connections, transaction
from psycopg.conninfo import make_conninfo

from conn_hygiene import hold_connection, release_between_queries, session_settings
from conn_hygiene.sessions import known, login
from conn_hygiene.sessions.effects import makes_temporary
from tests.test_following import in_another_session, seen_by_others
from tests.test_session_state import run
from tests.testapp.models import Item
from tests.waiting import end_sessions, holds, let_the_reaper_look, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.django_db(transaction=True, databases=["default"])

TEMPORARY = "SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r'"
CREATE = "CREATE TABLE of_nobody_else (n int)"


@pytest.fixture
def releasing(settings: Any) -> Iterator[None]:
    """Release at once, and clean what was seen: where the catalogue is asked, all is cleaned until it is known."""
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0, "CLEAN_SESSIONS": "seen"}
    connections.close_all()
    with release_between_queries():
        yield
    connections.close_all()


# ##### A path by which all that is created is temporary #####


def in_a_block() -> None:
    with session_settings({"search_path": "pg_temp, public"}):
        run(CREATE)


def in_a_block_in_a_transaction() -> None:
    with session_settings({"search_path": "PG_TEMP"}), transaction.atomic():
        run(CREATE)


def in_a_block_where_the_first_schema_is_not_there() -> None:
    with session_settings({"search_path": 'nowhere, "pg_temp"'}), transaction.atomic():
        run(CREATE)


def past_an_undoing() -> None:
    run("SET search_path = pg_temp")
    run("DISCARD TEMP")
    run("SELECT 1")
    run(CREATE)


def past_an_undoing_in_one_session() -> None:
    with connection.cursor():
        run("SET search_path = pg_temp, public")
        run("DISCARD TEMP")
        run(CREATE)


def past_an_undoing_that_is_committed() -> None:
    with connection.cursor():
        run("SET search_path = pg_temp")
        with transaction.atomic():
            run("DISCARD TEMP")
        run(CREATE)


def past_an_undoing_in_a_block() -> None:
    with session_settings({"search_path": "pg_temp"}), connection.cursor():
        run("DISCARD TEMP")
        run(CREATE)


def past_an_undoing_in_the_same_string() -> None:
    run(f"SET search_path = pg_temp; DISCARD TEMP; {CREATE}")


def with_a_path_of_many() -> None:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.executemany("SET LOCAL search_path TO %s", [["public"], ["pg_temp"]])
        run(CREATE)


def with_a_path_that_is_computed() -> None:
    with transaction.atomic():
        run("SELECT set_config('search_path', 'pg_t' || 'emp', false)")
        run(CREATE)


def with_a_path_that_is_computed_and_follows() -> None:
    run("SELECT set_config('search_path', 'pg_t' || 'emp', false)")
    run(CREATE)


def with_a_path_that_is_computed_for_a_transaction() -> None:
    with transaction.atomic():
        run("SELECT set_config('search_path', 'pg_t' || 'emp', true)")
        run(CREATE)


ways = pytest.mark.parametrize(
    "create",
    [
        in_a_block,
        in_a_block_in_a_transaction,
        in_a_block_where_the_first_schema_is_not_there,
        past_an_undoing,
        past_an_undoing_in_one_session,
        past_an_undoing_that_is_committed,
        past_an_undoing_in_a_block,
        past_an_undoing_in_the_same_string,
        with_a_path_of_many,
        with_a_path_that_is_computed,
        with_a_path_that_is_computed_and_follows,
        with_a_path_that_is_computed_for_a_transaction,
    ],
)


@ways
@pytest.mark.usefixtures("releasing")
def test_a_table_that_is_temporary_by_its_path_does_not_reach_the_next(create: Callable[[], None]) -> None:
    create()
    connection.close()
    assert seen_by_others(TEMPORARY) == {0}


@pytest.mark.parametrize(
    "create",
    [
        in_a_block,
        in_a_block_in_a_transaction,
        past_an_undoing,
        past_an_undoing_in_one_session,
        past_an_undoing_that_is_committed,
        past_an_undoing_in_a_block,
        past_an_undoing_in_the_same_string,
        with_a_path_of_many,
        with_a_path_that_is_computed_and_follows,
    ],
)
@pytest.mark.usefixtures("releasing")
def test_where_it_surely_is_it_is_kept_for_its_owner(create: Callable[[], None]) -> None:
    create()
    let_the_reaper_look()
    assert holds("default")
    assert run(TEMPORARY) == [(1,)]


@pytest.mark.usefixtures("releasing")
def test_an_undoing_is_believed_where_no_path_makes_anything_temporary() -> None:
    in_a_block()
    assert holds("default")
    run("DISCARD TEMP")
    assert not holds("default")
    run("SET search_path = public, pg_catalog")
    with session_settings({"search_path": "public"}):
        run("CREATE TEMP TABLE of_nobody_else (n int)")
        assert holds("default")
        run("DISCARD TEMP")
        assert not holds("default")


@pytest.mark.usefixtures("releasing")
def test_a_path_that_ends_with_it_keeps_nothing() -> None:
    with session_settings({"search_path": "public, pg_temp"}):
        run("SELECT 1")
        assert not holds("default")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pg_temp", True),
        (' "pg_temp" , public', True),
        ("PG_TEMP_3,public", True),
        ('"$user", "", pg_temp', True),
        ('"$user", public, pg_temp', False),
        ("public, pg_temp", False),
        ("pg_temperature", False),
        ("", False),
        (None, False),
    ],
)
def test_reading_a_path(path: str | None, expected: bool) -> None:
    assert makes_temporary(path) is expected


# ##### A cursor WITH HOLD that psycopg has declared, and did not close #####

HELD = "SELECT count(*) FROM pg_cursors WHERE is_holdable"


@pytest.fixture(params=[False, True], ids=["bound by the client", "bound by the server"])
def bound(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, releasing: None) -> Iterator[None]:
    """Have Django make its server-side cursors in each of its ways."""
    connection.close_pool()
    with monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict["OPTIONS"], "server_side_binding", request.param)
        yield
        connections.close_all()
        connection.close_pool()


def begun() -> Any:
    Item.objects.bulk_create(Item(name="row") for _ in range(4))
    rows = Item.objects.iterator(chunk_size=1)
    next(rows)
    return rows


def in_a_transaction_that_has_failed() -> None:
    rows = begun()
    with transaction.atomic():
        with pytest.raises(DatabaseError):
            run("SELECT 1 / 0")
        rows.close()
        transaction.set_rollback(True)


def in_one_that_is_rolled_back_to_a_savepoint() -> None:
    rows = begun()
    with transaction.atomic():
        with suppress(DatabaseError), transaction.atomic(), closing(rows):
            run("SELECT 1 / 0")
        run("SELECT 1")


class Interrupt(Exception):
    """As a signal handler raises it."""


def by_a_close_that_is_interrupted() -> None:
    cursor = connection.chunked_cursor()
    cursor.execute("SELECT 1")
    raw: Any = cursor.connection

    def interrupted(generator: Any) -> None:
        del raw.wait
        raise Interrupt

    raw.wait = interrupted
    with pytest.raises(Interrupt):
        cursor.close()


def by_nobody() -> None:
    cursor = connection.chunked_cursor()
    cursor.execute("SELECT 1")
    del cursor
    gc.collect()
    wait_until_released()


# psycopg says so of a server-side cursor.
unclosed = pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning")


@unclosed
@pytest.mark.parametrize(
    "end",
    [
        in_a_transaction_that_has_failed,
        in_one_that_is_rolled_back_to_a_savepoint,
        by_a_close_that_is_interrupted,
        by_nobody,
    ],
)
@pytest.mark.usefixtures("bound")
def test_a_held_cursor_that_is_not_closed_reaches_nobody_else(end: Callable[[], None]) -> None:
    end()
    connection.close()
    assert seen_by_others(HELD) == {0}


@pytest.mark.usefixtures("bound")
def test_one_that_is_closed_costs_no_cleaning(admin: psycopg.Connection) -> None:
    with hold_connection():
        [(pid,)] = run("SELECT pg_backend_pid()")
        begun().close()
    connection.close()
    [(last,)] = admin.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", [pid]).fetchall()
    assert last.startswith("CLOSE ")


# ##### Whoever has the connection itself #####


def handle() -> Any:
    connection.ensure_connection()
    return connections["default"].connection


HANDLES: dict[str, tuple[Callable[[Any], Any], str, Any]] = {
    "a cursor of another class": (
        lambda handle: psycopg.ClientCursor(handle).execute("SET app.tenant = 'mine'"),
        "SELECT coalesce(current_setting('app.tenant', true), '')",
        "",
    ),
    "one that binds no names": (
        lambda handle: psycopg.RawCursor(handle).execute("CREATE TEMP TABLE of_nobody_else (n int)"),
        TEMPORARY,
        0,
    ),
    "a server-side one": (
        lambda handle: psycopg.ServerCursor(handle, "report", withhold=True).execute("SELECT 1"),
        "SELECT count(*) FROM pg_cursors WHERE is_holdable",
        0,
    ),
    "libpq": (
        lambda handle: handle.pgconn.exec_(b"SELECT pg_advisory_lock(815)"),
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        0,
    ),
}


@unclosed
@pytest.mark.parametrize(("use", "look", "clean"), HANDLES.values(), ids=HANDLES)
@pytest.mark.usefixtures("releasing")
def test_what_is_done_past_its_cursors_is_cleaned_where_all_is(
    use: Callable[[Any], Any], look: str, clean: Any, settings: Any
) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0, "CLEAN_SESSIONS": "always"}
    use(handle())
    connection.close()
    assert seen_by_others(look) == {clean}


@unclosed
@pytest.mark.usefixtures("releasing")
def test_a_held_cursor_of_the_handle_is_kept_for_its_owner_and_for_nobody_else() -> None:
    look = "SELECT count(*) FROM pg_cursors WHERE is_holdable"
    cursor = handle().cursor("report", withhold=True)
    cursor.execute("SELECT 1")
    run("SELECT 1")
    let_the_reaper_look()
    assert holds("default")
    assert run(look) == [(1,)]
    assert cursor.fetchone() == (1,)
    del cursor
    connection.close()
    assert seen_by_others(look) == {0}


# ##### What a trigger on login has left in each session as that began #####


OF_LOGINS = "of_logins"


@contextmanager
def triggers_on_login(admin: psycopg.Connection) -> Iterator[Callable[[str], None]]:
    """Make a database of its own, and give what has each session there begin with a body in PL/pgSQL."""
    if admin.info.server_version < login.SINCE:
        pytest.skip("PostgreSQL has triggers on login from 17 on")
    admin.execute(f"CREATE DATABASE {OF_LOGINS} TEMPLATE template0")
    there = make_conninfo(admin.info.dsn, password=admin.info.password, dbname=OF_LOGINS)

    def trigger(body: str) -> None:
        with psycopg.connect(there, autocommit=True) as one:
            one.execute(
                "CREATE FUNCTION greets() RETURNS event_trigger LANGUAGE plpgsql"
                f" AS $of_greets$BEGIN {body}; END$of_greets$"
            )
            one.execute("CREATE EVENT TRIGGER greets ON login EXECUTE FUNCTION greets()")

    known.reset()
    try:
        yield trigger
    finally:
        known.reset()
        admin.execute(f"DROP DATABASE {OF_LOGINS} WITH (FORCE)")


@pytest.fixture
def at_login(admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Have the connections of the tests be to such a database."""
    connections.close_all()
    connection.close_pool()
    with triggers_on_login(admin) as trigger, monkeypatch.context() as patch:
        patch.setitem(connection.settings_dict, "NAME", OF_LOGINS)
        try:
            yield trigger
        finally:
            connections.close_all()
            connection.close_pool()


GREETED = "SELECT current_setting('app.greeted', true)"
PID = "SELECT pg_backend_pid()"


def know_the_catalogue() -> None:
    """Have it be known, and sessions that were begun before that be no more."""
    run("SELECT 1")
    connection.close()
    wait_until_released()
    assert known.known_of("default") is not None
    connection.close_pool()


def clean(*statements: str) -> tuple[bool, set[Any]]:
    """Execute *statements* in one session; return whether it is in the pool after that, and what greets there."""
    with hold_connection():
        [(pid,)] = run(PID)
        for statement in statements:
            run(statement)
    connection.close()
    return pid in seen_by_others(PID), seen_by_others(GREETED)


GREETS = "PERFORM set_config('app.greeted', 'hello', false)"
SOILS = "CREATE TEMP TABLE of_mine (n int)"


@pytest.mark.usefixtures("releasing")
class TestLogin:
    @pytest.mark.parametrize(
        "statements",
        [
            (SOILS,),
            ("SET app.greeted = 'bye'",),
            ("RESET app.greeted",),
            (SOILS, "SET app.greeted = 'bye'"),
            ("SET statement_timeout = '7s'",),
            ("DISCARD ALL",),
        ],
    )
    def test_what_it_sets_is_there_for_the_next(
        self, at_login: Callable[[str], None], statements: tuple[str, ...]
    ) -> None:
        """And it costs no session, once it is known."""
        at_login(GREETS)
        know_the_catalogue()
        assert clean(*statements) == (True, {"hello"})

    def test_and_is_of_that_very_session(self, at_login: Callable[[str], None]) -> None:
        at_login("PERFORM set_config('app.greeted', pg_backend_pid()::text, false)")
        know_the_catalogue()
        assert clean(SOILS)[0]
        assert seen_by_others("SELECT current_setting('app.greeted') = pg_backend_pid()::text") == {True}

    def test_before_it_is_known_such_a_session_is_closed(self, at_login: Callable[[str], None]) -> None:
        at_login(GREETS)
        known.note("default", None, math.inf)
        assert clean(SOILS) == (False, {"hello"})
        # Nor is what it had set remembered of one that was begun before.
        known.reset()
        connection.close_pool()
        assert clean(SOILS) == (False, {"hello"})

    @pytest.mark.parametrize(
        ("statement", "is_kept"), [("SELECT 1", True), ("SET statement_timeout = '7s'", False), (SOILS, False)]
    )
    def test_a_session_that_would_lose_anything_else_is_closed(
        self, at_login: Callable[[str], None], statement: str, is_kept: bool
    ) -> None:
        at_login("EXECUTE 'SET app.' || $$greeted = 'hello'$$")
        know_the_catalogue()
        assert clean(statement) == (is_kept, {"hello"})

    @pytest.mark.parametrize("body", ["NULL", "PERFORM set_config('app.greeted', 'hello', true)"])
    def test_one_that_leaves_nothing_costs_nothing(self, at_login: Callable[[str], None], body: str) -> None:
        at_login(body)
        know_the_catalogue()
        assert clean(SOILS)[0]

    def test_a_role_is_taken_again(self, at_login: Callable[[str], None]) -> None:
        at_login("SET ROLE pg_monitor; " + GREETS)
        know_the_catalogue()
        assert clean(SOILS) == (True, {"hello"})
        assert seen_by_others("SELECT current_user") == {"pg_monitor"}

    def test_where_all_are_cleaned_it_is_set_again(self, at_login: Callable[[str], None], settings: Any) -> None:
        at_login(GREETS)
        settings.CONN_HYGIENE = {"RELEASE_AFTER": 0, "CLEAN_SESSIONS": "always"}
        know_the_catalogue()
        assert clean("SELECT 1") == (True, {"hello"})

    @pytest.mark.parametrize(
        ("statement", "expected"),
        [("RESET app.greeted", ""), ("SET app.greeted = 'bye'", "bye"), ("SET app.greeted = 'hello'", "hello")],
    )
    @pytest.mark.parametrize("more", ["", "; EXECUTE 'SELECT ' || 1"], ids=["set again", "closed"])
    def test_its_owner_goes_on_with_what_it_has_set_instead(
        self, at_login: Callable[[str], None], statement: str, expected: str, more: str
    ) -> None:
        at_login(GREETS + more)
        know_the_catalogue()
        run(statement)
        assert not holds("default")
        with in_another_session():
            assert run(GREETED) == [(expected,)]
        connection.close()
        assert seen_by_others(GREETED) == {"hello"}

    @pytest.mark.parametrize("more", ["", "; EXECUTE 'SELECT ' || 1"], ids=["set again", "closed"])
    def test_the_servers_default_follows_as_well(self, at_login: Callable[[str], None], more: str) -> None:
        """Which another session does not begin with."""
        at_login("SET lock_timeout = '9s'" + more)
        know_the_catalogue()
        assert run("SHOW lock_timeout") == [("9s",)]
        run("RESET lock_timeout")
        with in_another_session():
            assert run("SHOW lock_timeout") == [("0",)]

    @pytest.mark.django_db(transaction=True, databases=["default", "unpooled"])
    def test_so_it_does_without_a_pool(
        self, at_login: Callable[[str], None], settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings.CONN_HYGIENE = {"UNPOOLED_RELEASE_AFTER": 0, "CLEAN_SESSIONS": "seen"}
        with monkeypatch.context() as patch:
            patch.setitem(connections["unpooled"].settings_dict, "NAME", OF_LOGINS)
            at_login("SET lock_timeout = '9s'")
            for _ in range(2):
                assert run("SHOW lock_timeout", alias="unpooled") == [("9s",)]
                wait_until_released("unpooled")
            run("RESET lock_timeout", alias="unpooled")
            wait_until_released("unpooled")
            assert run("SHOW lock_timeout", alias="unpooled") == [("0",)]
            connections["unpooled"].close()

    def test_what_was_reset_is_lost_with_its_session(
        self, at_login: Callable[[str], None], admin: psycopg.Connection
    ) -> None:
        """As another one does not begin without it."""
        at_login(GREETS)
        know_the_catalogue()
        with hold_connection():
            for name in ("app.other", "app.greeted"):
                run(f"RESET {name}")
                [(pid,)] = run(PID)
                end_sessions(admin, pid)
                with pytest.raises(DatabaseError, match="terminating"):
                    run("SELECT 1")
                if name == "app.other":
                    assert run(GREETED) == [("hello",)]
            with pytest.raises(DatabaseError, match=r"\(app\.greeted\) is lost"):
                run("SELECT 1")
