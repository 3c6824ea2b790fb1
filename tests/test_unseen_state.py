"""What may be in a session that no statement shows: by a path, or by somebody who has the connection itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connection, connections, transaction

from conn_hygiene import release_between_queries, session_settings
from conn_hygiene.sessions import sql
from tests.test_following import seen_by_others
from tests.test_session_state import run
from tests.waiting import holds, let_the_reaper_look

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


def with_a_path_that_is_computed() -> None:
    with transaction.atomic():
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
        with_a_path_that_is_computed,
        with_a_path_that_is_computed_for_a_transaction,
    ],
)


@ways
@pytest.mark.usefixtures("releasing")
def test_a_table_that_is_temporary_by_its_path_does_not_reach_the_next(create: Callable[[], None]) -> None:
    create()
    connection.close()
    assert seen_by_others(TEMPORARY) == {0}


@pytest.mark.parametrize("create", [in_a_block, in_a_block_in_a_transaction, past_an_undoing])
@pytest.mark.usefixtures("releasing")
def test_where_it_surely_is_it_is_kept_for_its_owner(create: Callable[[], None]) -> None:
    create()
    let_the_reaper_look()
    assert holds("default")
    assert run(TEMPORARY) == [(1,)]


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
    assert sql.makes_temporary(path) is expected


# ##### Whoever has the connection itself #####


def handle() -> Any:
    connection.ensure_connection()
    return connections["default"].connection


# psycopg says so of a server-side cursor.
unclosed = pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning")

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
