"""Sessions that end, cannot be set up, or cannot write any more: whoever has not had anything there does not notice."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.db import (
    DatabaseError,
    InternalError,
    OperationalError,
    close_old_connections,
    connection,
    connections,
    transaction,
)
from django.db.backends.signals import connection_created

import conn_hygiene
from conn_hygiene import closing_connections, hold_connection, release_between_queries, session_settings, signals
from conn_hygiene.leases import read_only
from conn_hygiene.leases.states import GIVEN_BACK, HELD
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.reaper import reaper
from tests.test_left_open import events_of
from tests.testapp.models import Item
from tests.waiting import end_sessions, wait_until, wait_until_released, wait_until_told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg
    from psycopg_pool import ConnectionPool

    from conn_hygiene.leases.lease import Lease

ALIASES = ["default", "persistent"]

pytestmark = pytest.mark.django_db(transaction=True, databases=ALIASES)


@pytest.fixture(autouse=True)
def short_grace(settings: Any) -> None:
    """Have connections go back a moment after their use, where that is asked for."""
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0.001, "HELD_TOO_LONG_AFTER": None, "IDLE_IN_TRANSACTION_AFTER": None}


def run(sql: str, alias: str = "default") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def pid(alias: str = "default") -> int:
    found: int = run("SELECT pg_backend_pid()", alias)
    return found


def cut(admin: psycopg.Connection) -> set[int]:
    """End all sessions but the one that looks on; return which."""
    found = admin.execute(
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    pids = {pid for (pid,) in found}
    end_sessions(admin, *pids)
    return pids


def quiet(alias: str = "default", seconds: float = 1) -> None:
    """Have the connection be quiet for long, or for less than nothing."""
    lease = lease_of(connections[alias])
    assert lease is not None
    lease.idle_since -= seconds


# ##### Every way to a connection that was given back #####


def atomically() -> Any:
    with transaction.atomic():
        return run("SELECT 1")


def by_hand() -> Any:
    transaction.set_autocommit(False)
    try:
        return run("SELECT 1")
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)


def in_a_savepoint() -> Any:
    with transaction.atomic(), transaction.atomic():
        return run("SELECT 1")


def by_iterator() -> Any:
    return 1 + len(list(Item.objects.iterator()))


def by_server_side_cursor() -> Any:
    with transaction.atomic(), connection.chunked_cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()[0]


def by_copy() -> Any:
    with connection.cursor() as cursor, cursor.copy("COPY (SELECT 1) TO STDOUT") as copy:
        return int(b"".join(copy))


def by_stream() -> Any:
    with connection.cursor() as cursor:
        [(found,)] = cursor.stream("SELECT 1")
        return found


def on_the_handle() -> Any:
    return connection.connection.execute("SELECT 1").fetchone()[0]


def on_the_handle_for_long() -> Any:
    handle = connection.connection
    with handle.transaction():
        return handle.execute("SELECT 1").fetchone()[0]


WAYS = [
    atomically,
    by_hand,
    in_a_savepoint,
    by_iterator,
    by_server_side_cursor,
    by_copy,
    by_stream,
    on_the_handle,
    on_the_handle_for_long,
]


def release_and_cut(admin: psycopg.Connection) -> set[int]:
    run("SELECT 1")
    wait_until_released()
    return cut(admin)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_a_connection_gets_one_that_works(way: Callable[[], Any], admin: psycopg.Connection) -> None:
    with release_between_queries(), events_of(signals.connection_replaced) as events:
        ended = release_and_cut(admin)
        assert way() == 1
        assert events
        # All that the pool had.
        assert {event["server_pid"] for event in events} <= ended


@pytest.mark.parametrize("way", WAYS)
def test_so_does_a_thread_s_first(way: Callable[[], Any], admin: psycopg.Connection) -> None:
    run("SELECT 1")
    connection.close()
    ended = cut(admin)
    found: list[Any] = []

    def first() -> None:
        with closing_connections():
            connection.ensure_connection()
            found.append(way())

    with events_of(signals.connection_replaced) as events:
        thread = threading.Thread(target=first)
        thread.start()
        thread.join()
    assert found == [1]
    assert events
    assert {event["server_pid"] for event in events} <= ended


@pytest.mark.parametrize("when", ["again", "again, with receivers", "a thread's first"])
def test_who_is_told_of_one_that_was_replaced_finds_the_next(when: str, admin: psycopg.Connection) -> None:
    found: list[int] = []

    def told(**kwargs: Any) -> None:
        found.append(pid())

    def use() -> None:
        with closing_connections():
            found.append(pid())

    with release_between_queries(), contextlib.ExitStack() as stack:
        if when == "again, with receivers":
            stack.enter_context(receiving(lambda **kwargs: None))
        release_and_cut(admin)
        signals.connection_replaced.connect(told)
        stack.callback(signals.connection_replaced.disconnect, told)
        if when == "a thread's first":
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
        else:
            found.append(pid())
    assert len(found) > 1
    assert len(set(found)) == 1


async def test_so_does_asynchronous_code(admin: psycopg.Connection) -> None:
    async with release_between_queries():
        await sync_to_async(release_and_cut)(admin)
        assert await Item.objects.acount() == 0


@pytest.mark.parametrize("way", WAYS)
def test_receivers_find_a_session_that_works(way: Callable[[], Any], admin: psycopg.Connection) -> None:
    calls = []

    def receiver(**kwargs: Any) -> None:
        calls.append(run("SELECT 1"))

    with release_between_queries(), receiving(receiver):
        release_and_cut(admin)
        calls.clear()
        assert way() == 1
    assert calls == [1]


def by_close() -> None:
    connection.close()


def by_cursor() -> None:
    run("SELECT 1")


def by_transaction() -> None:
    atomically()


@pytest.mark.parametrize("cure", [by_close, by_cursor, by_transaction])
def test_a_handle_of_a_connection_that_its_owner_has_fails_until(
    cure: Callable[[], None], admin: psycopg.Connection
) -> None:
    run("LISTEN t_hygiene")
    cut(admin)
    for _ in range(3):
        connection.ensure_connection()
        with pytest.raises(OperationalError), connection.wrap_database_errors:
            on_the_handle()
    quiet()
    cure()
    connection.ensure_connection()
    assert on_the_handle() == 1


def test_nothing_is_looked_at_where_nothing_is_replaced(admin: psycopg.Connection, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0.001, "REPLACE_BROKEN": False}
    with release_between_queries():
        release_and_cut(admin)
        with pytest.raises(OperationalError):
            atomically()
    connection.close()
    # Whoever comes next may come while the others in the pool count as just used.
    connection.close_pool()


# ##### What is lost with a session is said #####


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize(
    "statement", ["CREATE TEMP TABLE t_hygiene (n int)", "SELECT pg_advisory_lock(7)", "SET statement_timeout = '9s'"]
)
def test_an_owner_is_told_once(alias: str, statement: str, admin: psycopg.Connection) -> None:
    run(statement, alias)
    before = pid(alias)
    cut(admin)
    quiet(alias)
    with pytest.raises(OperationalError):
        run("SELECT 1", alias)
    assert pid(alias) != before
    with transaction.atomic(alias):
        assert run("SELECT 1", alias) == 1


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("statement", ["SET app.tenant = 'acme'", "SET search_path = pg_catalog", "SET ROLE NONE"])
def test_nothing_runs_without_what_decides_whose_data_it_sees(
    alias: str, statement: str, admin: psycopg.Connection
) -> None:
    run(statement, alias)
    cut(admin)
    quiet(alias)
    with pytest.raises(OperationalError):
        run("SELECT 1", alias)
    name = statement.split()[1].lower()
    for _ in range(2):
        with pytest.raises(OperationalError, match=rf"\({name}\) is lost"):
            run("SELECT 1", alias)
    connections[alias].close()
    assert run("SELECT 1", alias) == 1


def break_in_atomic(admin: psycopg.Connection, alias: str, *, nested: bool, setting: str = "SELECT 1") -> None:
    with transaction.atomic(alias):
        run(setting, alias)
        cut(admin)
        if nested:
            with transaction.atomic(alias):
                run("SELECT 1", alias)
        run("SELECT 1", alias)


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("nested", [False, True])
def test_nor_after_an_atomic_in_which_the_session_has_ended(
    alias: str, nested: bool, admin: psycopg.Connection
) -> None:
    with release_between_queries():
        run("SET app.tenant = 'acme'", alias)
        with pytest.raises(OperationalError) as told:
            break_in_atomic(admin, alias, nested=nested)
        # The error of the statement, and not what is said to the next.
        assert "is lost" not in str(told.value)
        for _ in range(2):
            with pytest.raises(OperationalError, match=r"\(app\.tenant\) is lost"):
                run("SELECT 1", alias)
            with pytest.raises(OperationalError, match=r"\(app\.tenant\) is lost"), transaction.atomic(alias):
                run("SELECT 1", alias)
        connections[alias].close()
        assert run("SELECT 1", alias) == 1


@pytest.mark.parametrize("alias", ALIASES)
def test_what_was_lost_in_an_atomic_is_nothing_to_the_next_request(alias: str, admin: psycopg.Connection) -> None:
    with closing_connections(), release_between_queries():
        run("SET app.tenant = 'acme'", alias)
        with pytest.raises(OperationalError):
            break_in_atomic(admin, alias, nested=False)
    assert run("SELECT 1", alias) == 1


@pytest.mark.parametrize("alias", ALIASES)
def test_what_was_lost_in_an_atomic_is_nothing_to_the_next_job(alias: str, admin: psycopg.Connection) -> None:
    """Of a worker that closes what is old between its jobs, and of which no request is told."""
    run("SET app.tenant = 'acme'", alias)
    with pytest.raises(OperationalError):
        break_in_atomic(admin, alias, nested=False)
    close_old_connections()
    run("SET app.tenant = 'next'", alias)
    with transaction.atomic(alias):
        assert run("SELECT current_setting('app.tenant')", alias) == "next"


@pytest.mark.parametrize("alias", ALIASES)
def test_what_was_lost_in_an_atomic_is_not_usable(alias: str, admin: psycopg.Connection) -> None:
    run("SET app.tenant = 'acme'", alias)
    with pytest.raises(OperationalError):
        break_in_atomic(admin, alias, nested=False)
    assert not connections[alias].is_usable()
    connections[alias].close()
    assert run("SELECT 1", alias) == 1
    assert connections[alias].is_usable()


def lose_while_parked(alias: str, admin: psycopg.Connection) -> None:
    """Set a tenant in a session that ends before it can be read there."""
    run("SET app.tenant = 'acme'", alias)
    lease = lease_of(connections[alias])
    assert lease is not None
    end_sessions(admin, lease.server_pid)
    lease.end_if_parked(lease.idle_since + 60)
    wait_until_released(alias)
    assert lease.state == GIVEN_BACK


def test_what_was_lost_while_it_was_parked_is_told_and_nothing_to_the_next_job(
    admin: psycopg.Connection, settings: Any
) -> None:
    settings.CONN_HYGIENE = {"UNPOOLED_RELEASE_AFTER": 60}
    with release_between_queries():
        lose_while_parked("persistent", admin)
        assert not connections["persistent"].is_usable()
        # As with a broken connection in plain Django: not before its owner was told.
        close_old_connections()
        with pytest.raises(OperationalError, match=r"\(app\.tenant\) could not be read"):
            run("SELECT 1", "persistent")
        close_old_connections()
        assert run("SELECT 1", "persistent") == 1


@pytest.mark.parametrize("way", [run, transaction.atomic(using="persistent")(run)], ids=["query", "atomic"])
def test_a_health_check_has_nothing_run_without_what_was_lost(
    way: Callable[..., Any], admin: psycopg.Connection, settings: Any
) -> None:
    settings.CONN_HYGIENE = {"UNPOOLED_RELEASE_AFTER": 60}
    wrapper: Any = connections["persistent"]
    with release_between_queries():
        lose_while_parked("persistent", admin)
        # As when a request begins that does not query before.
        wrapper.health_check_enabled, wrapper.health_check_done = True, False
        for _ in range(2):
            with pytest.raises(OperationalError, match=r"\(app\.tenant\) could not be read"):
                way("SELECT 1", "persistent")
    wrapper.close()


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("setting", ["SET app.tenant = 'acme'", "SELECT 1"])
def test_what_was_set_in_that_atomic_is_undone_and_not_lost(
    alias: str, setting: str, admin: psycopg.Connection
) -> None:
    with pytest.raises(OperationalError):
        break_in_atomic(admin, alias, nested=False, setting=setting)
    with transaction.atomic(alias):
        assert run("SELECT coalesce(current_setting('app.tenant', true), '')", alias) == ""


RESETS = {
    "by its name": ["SET app.tenant = 'acme'", "RESET app.tenant"],
    "by set_config()": ["SELECT set_config('app.tenant', 'acme', false)", "RESET app.tenant;"],
    "with all": ["SET app.tenant = 'acme'", "RESET ALL"],
    "with all else": ["SET ROLE postgres", "SET app.tenant = 'acme'", "DISCARD ALL"],
    "nothing was set": ["DISCARD ALL"],
    "a role": ["SET ROLE postgres", "RESET ROLE"],
    "a path": ["SET search_path = pg_catalog", "RESET search_path"],
}


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("statements", RESETS.values(), ids=RESETS)
@pytest.mark.usefixtures("nothing_is_left_by_functions")
def test_what_was_reset_is_not_lost(alias: str, statements: list[str], admin: psycopg.Connection) -> None:
    for statement in statements:
        run(statement, alias)
    with pytest.raises(OperationalError):
        break_in_atomic(admin, alias, nested=False)
    assert run("SELECT 1", alias) == 1


@pytest.mark.usefixtures("nothing_is_left_by_functions")
def test_nor_is_it_outside_of_transactions(admin: psycopg.Connection) -> None:
    run("SET app.tenant = 'acme'")
    run("RESET app.tenant")
    cut(admin)
    quiet()
    with pytest.raises(OperationalError):
        run("SELECT 1")
    assert run("SELECT 1") == 1


NOT_RESET = {
    "set once more": ["RESET app.tenant", "SET app.tenant = 'acme'"],
    "in one string": ["RESET app.tenant; SET app.tenant = 'acme'"],
    "rolled back": ["BEGIN", "RESET app.tenant", "ROLLBACK"],
    "rolled back in one string": ["BEGIN; RESET app.tenant; ROLLBACK"],
    "another": ["RESET app.other"],
    "by what was prepared": [
        "PREPARE again AS SELECT set_config('app.tenant', 'acme', false)",
        "RESET app.tenant",
        "EXECUTE again",
    ],
    "by what is prepared": [
        "RESET app.tenant",
        "PREPARE again AS SELECT set_config('app.tenant', 'acme', false)",
        "EXECUTE again",
    ],
    "by a block of code": ["RESET app.tenant", "DO $$ BEGIN EXECUTE 'SET app.' || 'tenant = 1'; END $$"],
}


@pytest.mark.parametrize("statements", NOT_RESET.values(), ids=NOT_RESET)
@pytest.mark.usefixtures("nothing_is_left_by_functions")
def test_what_may_be_set_for_all_that_was_reset_is_lost(statements: list[str], admin: psycopg.Connection) -> None:
    for statement in ["SET app.tenant = 'acme'", *statements]:
        run(statement)
    is_lost(admin, "app.tenant")


def is_lost(admin: psycopg.Connection, name: str, alias: str = "default") -> None:
    with pytest.raises(OperationalError):
        break_in_atomic(admin, alias, nested=False)
    with pytest.raises(OperationalError, match=rf"\({name}\) is lost"):
        run("SELECT 1", alias)
    connections[alias].close()


def test_what_was_reset_is_lost_where_functions_may_have_set_it(admin: psycopg.Connection, settings: Any) -> None:
    settings.CONN_HYGIENE = {"CLEAN_SESSIONS": "always"}
    run("SET app.tenant = 'acme'")
    run("RESET app.tenant")
    is_lost(admin, "app.tenant")


@pytest.mark.usefixtures("nothing_is_left_by_functions")
def test_what_was_reset_is_lost_in_a_block_that_sets_it(admin: psycopg.Connection) -> None:
    run("SET app.tenant = 'acme'")
    with session_settings({"app.tenant": "block"}):
        run("RESET app.tenant")
    assert run("SELECT current_setting('app.tenant')") == "acme"
    is_lost(admin, "app.tenant")


@pytest.mark.usefixtures("nothing_is_left_by_functions")
def test_what_was_reset_is_lost_where_a_new_session_has_another(admin: psycopg.Connection) -> None:
    def receiver(**kwargs: Any) -> None:
        run("SET app.tenant = 'everybody'")

    with receiving(receiver):
        connection.close()
        run("RESET app.tenant")
        is_lost(admin, "app.tenant")
    connection.close()


@pytest.mark.usefixtures("nothing_is_left_by_functions")
def test_what_was_reset_is_lost_where_a_pool_sets_another(
    admin: psycopg.Connection, pool_of: Callable[[str], ConnectionPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("SET app.tenant = 'acme'")
    run("RESET app.tenant")
    # Watched, as any pool is.
    monkeypatch.setattr(pool_of("default"), "_configure", lambda connection: None)
    is_lost(admin, "app.tenant")


@pytest.mark.usefixtures("nothing_is_left_by_functions")
def test_what_was_reset_is_lost_where_a_backend_sets_another(
    admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("SET ROLE postgres", "persistent")
    run("RESET ROLE", "persistent")
    # Django cannot have both that and a pool, whose threads would fail to connect.
    monkeypatch.setitem(connections["persistent"].settings_dict["OPTIONS"], "assume_role", "postgres")
    is_lost(admin, "role", "persistent")


@pytest.fixture
def nothing_is_left_by_functions(settings: Any) -> None:
    """Have it be known of the database."""
    settings.CONN_HYGIENE |= {"CLEAN_SESSIONS": "seen", "FOLLOWED_SETTINGS": []}


def test_a_hold_goes_on_when_its_owner_was_told(admin: psycopg.Connection) -> None:
    with hold_connection():
        pid()
        cut(admin)
        quiet()
        with pytest.raises(OperationalError):
            run("SELECT 1")
        assert run("SELECT 1") == 1


def test_the_end_of_a_session_that_another_context_holds_is_told(admin: psycopg.Connection) -> None:
    other, hold = contextvars.copy_context(), hold_connection()
    other.run(hold.__enter__)
    try:
        other.run(pid)
        cut(admin)
        quiet()
        with pytest.raises(OperationalError):
            run("SELECT 1")
    finally:
        other.run(hold.__exit__, None, None, None)
    assert run("SELECT 1") == 1


# ##### What the server has ended keeps nobody's place #####


def has_its_places(pool: ConnectionPool) -> bool:
    stats = pool.get_stats()
    return stats["pool_available"] == stats["pool_size"] > 0


def end_own_session(pool: ConnectionPool) -> None:
    with pytest.raises(OperationalError):
        run("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(10)")
    wait_until(lambda: has_its_places(pool), "its place is there for others")


def test_a_statement_that_ends_its_session_gives_its_place_back(pool_of: Callable[[str], ConnectionPool]) -> None:
    run("SELECT 1")
    end_own_session(pool_of("default"))
    assert run("SELECT 1") == 1


def test_what_has_broken_stays_its_owners_also_at_a_grace_of_0(settings: Any) -> None:
    settings.CONN_HYGIENE = {**settings.CONN_HYGIENE, "RELEASE": "always", "RELEASE_AFTER": 0}
    run("SELECT 1")
    with pytest.raises(OperationalError):
        run("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(10)")
    lease = lease_of(connections["default"])
    assert lease is not None
    assert lease.state == HELD
    assert run("SELECT 1") == 1


def test_so_it_does_in_a_transaction_which_nothing_can_save(pool_of: Callable[[str], ConnectionPool]) -> None:
    def work() -> None:
        with transaction.atomic():
            write()
            end_own_session(pool_of("default"))
            with pytest.raises(OperationalError):
                run("SELECT 1")

    with pytest.raises(DatabaseError):
        work()
    assert not Item.objects.exists()
    connection.close()
    assert has_its_places(pool_of("default"))


# What of a server-side cursor reaches the server once it has been declared.
FETCHES: dict[str, Callable[[Any], object]] = {
    "fetchone": lambda cursor: cursor.fetchone(),
    "fetchmany": lambda cursor: cursor.fetchmany(2),
    "fetchall": lambda cursor: cursor.fetchall(),
    "next": lambda cursor: next(iter(cursor)),
    "scroll": lambda cursor: cursor.scroll(2),
    "close": lambda cursor: cursor.close(),
}


@pytest.mark.parametrize("fetch", FETCHES.values(), ids=FETCHES)
def test_so_it_does_where_a_fetch_has_found_it(
    fetch: Callable[[Any], object], admin: psycopg.Connection, pool_of: Callable[[str], ConnectionPool]
) -> None:
    def work() -> None:
        with transaction.atomic(), connection.chunked_cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 9)")
            cut(admin)
            with pytest.raises(OperationalError), connection.wrap_database_errors:
                fetch(cursor)
            wait_until(lambda: has_its_places(pool_of("default")), "its place is there for others")

    with pytest.raises(DatabaseError):
        work()


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("fetch", FETCHES.values(), ids=FETCHES)
def test_the_next_query_after_a_fetch_has_found_it_runs(
    fetch: Callable[[Any], object], alias: str, admin: psycopg.Connection
) -> None:
    with connections[alias].chunked_cursor() as cursor:
        cursor.execute("SELECT generate_series(1, 9)")
        cut(admin)
        with pytest.raises(OperationalError), connections[alias].wrap_database_errors:
            fetch(cursor)
    # Be it ever so near.
    quiet(alias, -60)
    assert run("SELECT 1", alias) == 1


def want_one() -> Lease:
    """Have the reaper look at idle connections, as for somebody who waits; return this thread's lease."""
    keeper, lease = reaper.running, lease_of(connections["default"])
    assert keeper is not None
    assert lease is not None
    keeper.wanted(lease.spare)
    wait_until_told()
    return lease


@pytest.mark.parametrize("state", ["nothing", "a temporary table"])
def test_whoever_waits_gets_the_place_of_one_that_is_idle(
    state: str, admin: psycopg.Connection, pool_of: Callable[[str], ConnectionPool]
) -> None:
    if state != "nothing":
        run("CREATE TEMP TABLE t_hygiene (n int)")
    run("SELECT 1")
    cut(admin)
    quiet()
    lease = want_one()
    if state == "nothing":
        assert not lease.holds_connection()
        wait_until(lambda: has_its_places(pool_of("default")), "its place is there for others")
        assert run("SELECT 1") == 1
    else:
        # Its owner is to be told.
        assert lease.holds_connection()
        with pytest.raises(OperationalError):
            run("SELECT 1")


def test_the_watch_gives_back_what_the_server_has_ended(admin: psycopg.Connection, settings: Any) -> None:
    run("SELECT 1")
    cut(admin)
    quiet()
    settings.CONN_HYGIENE = {"HELD_TOO_LONG_AFTER": 60, "IDLE_IN_TRANSACTION_AFTER": 0.05}
    lease = lease_of(connections["default"])
    assert lease is not None
    wait_until(lambda: not lease.holds_connection(), "the reaper has seen it")
    assert run("SELECT 1") == 1


# ##### Nothing runs in a session that is half set up #####


@contextmanager
def receiving(receiver: Callable[..., None]) -> Iterator[None]:
    connection_created.connect(receiver)
    try:
        yield
    finally:
        connection_created.disconnect(receiver)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_receiver_that_fails_is_called_again(
    error: type[BaseException], fails_at: int, pool_of: Callable[[str], ConnectionPool]
) -> None:
    calls: list[int] = []

    def receiver(**kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == fails_at:
            raise error
        run("SET app.tenant = 'acme'")

    found: list[Any] = []

    def work() -> None:
        with closing_connections(), release_between_queries():
            for _ in range(3):
                try:
                    found.append(run("SELECT current_setting('app.tenant', true)"))
                except error:
                    found.append(None)
                wait_until_released()

    with receiving(receiver):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == ["acme" if number != fails_at else None for number in (1, 2, 3)]
    assert len(calls) == 3
    wait_until(lambda: has_its_places(pool_of("default")), "the pool is whole")


def test_what_fails_before_any_receiver_leaves_nothing_either(
    monkeypatch: pytest.MonkeyPatch, pool_of: Callable[[str], ConnectionPool]
) -> None:
    found: list[Any] = []
    plain = type(connection.copy())
    prepare = plain.init_connection_state

    def fail(self: Any) -> None:
        monkeypatch.setattr(plain, "init_connection_state", prepare)
        raise RuntimeError

    def work() -> None:
        with closing_connections():
            with pytest.raises(RuntimeError):
                run("SELECT 1")
            found.append(connections["default"].connection)
            found.append(run("SELECT 1"))

    monkeypatch.setattr(plain, "init_connection_state", fail)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None, 1]
    wait_until(lambda: has_its_places(pool_of("default")), "the pool is whole")


def test_a_copy_connects_by_itself() -> None:
    found: list[Any] = []

    def work() -> None:
        with closing_connections():
            original = connections["default"]
            other = copy.copy(original)
            with other.cursor() as cursor:
                cursor.execute("SELECT 1")
                found.append((original.connection, cursor.fetchone()[0], vars(original).keys() & vars(other).keys()))
            other.close()
            # With nothing on it any more that a copy must not have.
            run("SELECT 1")
            found.append([name for name in vars(original) if name.startswith("__")])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    [(connected, one, common), left] = found
    assert (connected, one, left) == (None, 1, [])
    assert not common & {"connect", "get_new_connection", "__getstate__"}


def test_a_broken_one_is_replaced_once_if_no_other_is_to_be_had(
    admin: psycopg.Connection, monkeypatch: pytest.MonkeyPatch, pool_of: Callable[[str], ConnectionPool]
) -> None:
    run("SELECT 1")
    connection.close()
    pool = pool_of("default")
    wait_until(lambda: has_its_places(pool), "the pool is whole")
    pool.pop_stats()
    kwargs: Any = pool.kwargs
    had, counted = list(pool._pool), conn_hygiene.stats().replaced
    with monkeypatch.context() as unreachable, events_of(signals.connection_replaced) as events:
        unreachable.setitem(kwargs, "port", 1)
        unreachable.setattr(pool, "timeout", 0.1)
        cut(admin)
        with pytest.raises(OperationalError):
            run("SELECT 1")
    wait_until(lambda: has_its_places(pool), "the pool is whole")
    assert pool.get_stats()["returns_bad"] == len(had) > 0
    # None of them was replaced.
    assert events == []
    assert conn_hygiene.stats().replaced == counted


# ##### Sessions that cannot write #####


@pytest.fixture
def read_only_sessions(admin: psycopg.Connection) -> Iterator[Callable[[bool], None]]:
    """Return a function that has all sessions that are opened from then on be read-only, or none."""
    name = admin.info.dbname
    read_only.reset()

    def switch(on: bool) -> None:
        admin.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {"on" if on else "off"}'.encode())

    yield switch
    admin.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only'.encode())
    cut(admin)
    connections.close_all()
    read_only.reset()


def write(alias: str = "default") -> None:
    Item.objects.using(alias).create(name="written")


@pytest.mark.parametrize("alias", ALIASES)
def test_sessions_that_cannot_write_are_replaced_when_others_can(
    alias: str,
    admin: psycopg.Connection,
    read_only_sessions: Callable[[bool], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "conn_hygiene.broken")
    read_only_sessions(True)
    cut(admin)
    before = pid(alias)
    read_only_sessions(False)
    with pytest.raises(InternalError):
        write(alias)
    wait_until(lambda: read_only._renewed, "another session could write")
    with events_of(signals.connection_replaced) as events:
        quiet(alias)
        write(alias)
    assert [event["server_pid"] for event in events].count(before) == 1
    assert {event["could_not_write"] for event in events} == {True}
    # The server has closed none of them.
    words = f"Connection '{alias}' (server pid {before}) could not write any more, and new ones can; it is replaced."
    assert words in caplog.messages
    with transaction.atomic(alias):
        write(alias)


def test_what_the_server_closes_after_that_is_said_to_be_closed(
    admin: psycopg.Connection, read_only_sessions: Callable[[bool], None]
) -> None:
    """Of the same owner, for whom another thread gives it back."""
    read_only_sessions(True)
    cut(admin)
    run("SELECT 1")
    read_only_sessions(False)
    with pytest.raises(InternalError):
        write()
    wait_until(lambda: read_only._renewed, "another session could write")
    with events_of(signals.connection_replaced) as events:
        quiet()
        write()
        count = len(events)
        cut(admin)
        quiet()
        want_one()
    assert {event["could_not_write"] for event in events[:count]} == {True}
    assert [event["could_not_write"] for event in events[count:]] == [False]


def test_so_are_those_of_the_pool_that_nobody_has_used(
    admin: psycopg.Connection, read_only_sessions: Callable[[bool], None], pool_of: Callable[[str], ConnectionPool]
) -> None:
    connection.close()
    connections["default"].close_pool()
    read_only_sessions(True)
    # The pool is opened by a thread's first connection.
    thread = threading.Thread(target=closing_connections(pid))
    thread.start()
    thread.join()
    pool = pool_of("default")
    taken = [pool.getconn() for _ in range(4)]
    for each in taken:
        pool.putconn(each)
    read_only_sessions(False)
    with pytest.raises(InternalError):
        write()
    wait_until(lambda: read_only._renewed, "another session could write")
    with events_of(signals.connection_replaced) as events:
        for _ in range(4):
            connection.close()
            with transaction.atomic():
                write()
    assert Item.objects.count() == 4
    assert {event["could_not_write"] for event in events} == {True}


def test_where_nobody_can_write_all_goes_on(
    admin: psycopg.Connection, read_only_sessions: Callable[[bool], None]
) -> None:
    read_only_sessions(True)
    cut(admin)
    before = pid()
    with events_of(signals.connection_replaced) as events:
        with pytest.raises(InternalError):
            write()
        wait_until_told()
        quiet()
        assert pid() == before
    assert (events, read_only._renewed) == ([], {})


@pytest.mark.parametrize(
    ("alias", "method"),
    [("default", "_configure_connection"), *((alias, "init_connection_state") for alias in ALIASES)],
)
def test_so_it_does_where_the_backend_makes_all_of_them_read_only(
    alias: str, method: str, monkeypatch: pytest.MonkeyPatch, read_only_sessions: Callable[[bool], None]
) -> None:
    plain: Any = type(connection.copy())
    own = getattr(plain, method)

    def make_read_only(self: Any, *handle: Any) -> Any:
        [on] = handle or [self.connection]
        on.execute("SET default_transaction_read_only = on")
        return own(self, *handle) or True

    found: list[int] = []

    def work() -> None:
        with closing_connections():
            found.append(pid(alias))
            with pytest.raises(InternalError):
                write(alias)
            wait_until_told()
            quiet(alias)
            found.append(pid(alias))

    connections.close_all()
    connections["default"].close_pool()
    monkeypatch.setattr(plain, method, make_read_only)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    connections["default"].close_pool()
    assert (len(found), len(set(found)), read_only._renewed) == (2, 1, {})


@pytest.mark.parametrize("how", ["session", "transaction"])
def test_what_its_owner_has_made_read_only_is_left_alone(how: str, read_only_sessions: Callable[[bool], None]) -> None:
    if how == "session":
        run("SET default_transaction_read_only = on")

    def work() -> None:
        with transaction.atomic():
            if how == "transaction":
                run("SET TRANSACTION READ ONLY")
            write()

    with pytest.raises(InternalError):
        work()
    wait_until_told()
    assert (read_only._ask_again_at, read_only._renewed) == ({}, {})
    connection.close()


def test_what_the_server_turns_read_only_does_not_follow(
    admin: psycopg.Connection, read_only_sessions: Callable[[bool], None]
) -> None:
    with release_between_queries():
        with hold_connection():
            run("SELECT 1")
            admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            admin.execute("SELECT pg_reload_conf()")
            try:
                wait_until(lambda: run("SHOW default_transaction_read_only") == "on", "the session is read-only")
            finally:
                admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
                admin.execute("SELECT pg_reload_conf()")
        wait_until_released()
        wait_until(lambda: run("SHOW default_transaction_read_only") == "off", "it can write again")
        write()


def test_sessions_that_the_server_turns_read_only_and_back_stay_in_their_pool(
    admin: psycopg.Connection,
    read_only_sessions: Callable[[bool], None],
    pool_of: Callable[[str], ConnectionPool],
) -> None:
    def request(wanted: str) -> None:
        with hold_connection():
            wait_until(lambda: run("SHOW default_transaction_read_only") == wanted, f"it is {wanted}")
        connection.close()

    run("SELECT 1")
    pool = pool_of("default")
    connection.close()
    pool.pop_stats()
    try:
        for on in ("on", "off", "on"):
            admin.execute(f"ALTER SYSTEM SET default_transaction_read_only = {on}".encode())
            admin.execute("SELECT pg_reload_conf()")
            request(on)
    finally:
        admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
        admin.execute("SELECT pg_reload_conf()")
    wait_until(lambda: set(all_of(pool, "SHOW default_transaction_read_only")) == {"off"}, "all have heard of it")
    request("off")
    # What an owner has set goes, all the same.
    run("SET default_transaction_read_only = on")
    connection.close()
    assert [run("SHOW default_transaction_read_only"), pool.get_stats().get("returns_bad", 0)] == ["off", 0]


def all_of(pool: ConnectionPool, look: str) -> list[Any]:
    """Return what *look* gives in each session of *pool*, none of which is checked out."""
    handles = [pool.getconn() for _ in range(pool.get_stats()["pool_size"])]
    try:
        return [handle.execute(look).fetchone()[0] for handle in handles]  # type: ignore[index]
    finally:
        for handle in handles:
            handle.rollback()
            pool.putconn(handle)


# ##### One alias does not keep the others #####


def test_an_alias_that_fails_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = []

    def close(self: Any) -> None:
        failed.append(self.alias)
        raise RuntimeError(self.alias)

    def open_all() -> None:
        for alias in ALIASES:
            run("SELECT 1", alias)

    leased = type(connections["default"])
    for end in (conn_hygiene.reset_connections, None):
        connections.close_all()
        failed.clear()
        scope = closing_connections()
        scope.__enter__()
        open_all()
        with monkeypatch.context() as patch:
            patch.setattr(leased, "close", close)
            with pytest.raises(RuntimeError) as caught:
                end() if end is not None else scope.__exit__(None, None, None)
        # Wrappers of other aliases are there from other tests.
        assert [alias for alias in failed if alias in ALIASES] == ALIASES
        assert str(caught.value) == failed[0]
        connections.close_all()
