"""query_timeout: what it limits, what the error says, and that nobody else meets the limit."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import (
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
    transaction,
)
from django.test import TestCase

import conn_hygiene
from conn_hygiene import release_between_queries
from conn_hygiene.transactions.settings import QueryTimeout, query_timeout
from tests.testapp.models import Item
from tests.waiting import holds, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALIASES = ["default", "unpooled", "persistent"]
pytestmark = pytest.mark.django_db(transaction=True, databases=[*ALIASES, "small", "sqlite"])

each_alias = pytest.mark.parametrize("alias", ALIASES)


def query(sql: str, alias: str = "default") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def limit(alias: str = "default") -> str:
    return query("SHOW statement_timeout", alias)


def stop(*why: Any) -> None:
    raise LookupError(*why)


def sleep(alias: str = "default") -> None:
    # Only the timeout ends this before the test's own.
    query("SELECT pg_sleep(50)", alias)


# ##### What is limited #####


@each_alias
def test_outside_of_transactions(alias: str) -> None:
    with query_timeout(1.5, using=alias):
        assert limit(alias) == "1500ms"
        assert limit(alias) == "1500ms"
    assert limit(alias) == "0"


@each_alias
def test_in_transactions(alias: str) -> None:
    with query_timeout(2, using=alias):
        for _ in range(2):
            with transaction.atomic(using=alias):
                assert limit(alias) == "2s"
        assert limit(alias) == "2s"
    assert limit(alias) == "0"


def test_inside_a_transaction() -> None:
    with transaction.atomic():
        assert limit() == "0"
        with query_timeout(2):
            assert limit() == "2s"
        assert limit() == "0"


def test_all_aliases_by_default() -> None:
    with query_timeout(2):
        assert [limit(alias) for alias in ALIASES] == ["2s", "2s", "2s"]
        assert query("SELECT 1", "sqlite") == 1
    with query_timeout(2, using=["default", "small"]):
        assert [limit("default"), limit("small"), limit("unpooled")] == ["2s", "2s", "0"]


@each_alias
def test_the_inner_limit_counts_and_the_outer_one_comes_back(alias: str) -> None:
    with query_timeout(2, using=alias):
        with query_timeout(5):
            assert limit(alias) == "5s"
        assert limit(alias) == "2s"
        with transaction.atomic(using=alias):
            with query_timeout(3):
                assert limit(alias) == "3s"
            assert limit(alias) == "2s"
        assert limit(alias) == "2s"
    assert limit(alias) == "0"


def test_what_was_set_before_comes_back() -> None:
    query("SET statement_timeout = '7s'")
    with query_timeout(2):
        assert limit() == "2s"
    assert limit() == "7s"
    with transaction.atomic():
        query("SET LOCAL statement_timeout = '8s'")
        with query_timeout(2):
            assert limit() == "2s"
        assert limit() == "8s"
    connection.close()


def test_set_transaction_may_still_come_first() -> None:
    with query_timeout(2), transaction.atomic():
        query("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        assert query("SHOW transaction_isolation") == "serializable"
        assert limit() == "2s"


def test_manual_transaction_management() -> None:
    transaction.set_autocommit(False)
    try:
        with query_timeout(2):
            for _ in range(2):
                assert limit() == "2s"
                transaction.commit()
            assert limit() == "2s"
        assert limit() == "0"
        transaction.rollback()
    finally:
        transaction.set_autocommit(True)


def test_a_savepoint_that_is_rolled_back_does_not_take_the_limit_along() -> None:
    with transaction.atomic(), query_timeout(5):
        with query_timeout(2):
            assert limit() == "2s"
            with pytest.raises(LookupError, match="3s"), transaction.atomic(), query_timeout(3):
                stop(limit())
            assert limit() == "2s"
        assert limit() == "5s"


def test_a_rollback_that_undoes_the_limit_itself() -> None:
    with transaction.atomic():
        before = connection.savepoint()
        assert before is not None
        with query_timeout(2):
            assert limit() == "2s"
            connection.savepoint_rollback(before)
            assert limit() == "2s"
        assert limit() == "0"


def test_a_savepoint_of_before_the_block() -> None:
    with transaction.atomic():
        with pytest.raises(QueryTimeout), transaction.atomic(), query_timeout(0.01):
            sleep()
        assert limit() == "0"
        Item.objects.create(name="still possible")
    assert Item.objects.count() == 1


def test_a_savepoint_inside_of_the_block() -> None:
    with transaction.atomic(), query_timeout(0.5):
        with pytest.raises(QueryTimeout), transaction.atomic():
            sleep()
        assert limit() == "500ms"


def test_fetching_from_a_server_side_cursor_is_limited() -> None:
    Item.objects.bulk_create(Item(name=str(number)) for number in range(10))
    # Outside of a transaction the server runs the query while it commits the cursor, and limits no commit.
    with transaction.atomic(), query_timeout(0.1), pytest.raises(OperationalError, match="timeout"):
        list(Item.objects.extra(where=["pg_sleep(1) IS NOT NULL"]).iterator(chunk_size=2))


# ##### What the error says #####


@each_alias
@pytest.mark.parametrize("atomic", [False, True])
def test_the_error_names_the_limit(alias: str, atomic: bool) -> None:
    @query_timeout(0.02, using=alias)
    def run() -> None:
        if atomic:
            with transaction.atomic(using=alias):
                sleep(alias)
        sleep(alias)

    with pytest.raises(QueryTimeout, match=rf"'{alias}' ran longer than the 0\.02 s that query_timeout\(\)") as caught:
        run()
    assert isinstance(caught.value, OperationalError)
    assert isinstance(caught.value.__cause__, psycopg.errors.QueryCanceled)
    assert caught.value.seconds == 0.02
    assert pickle.loads(pickle.dumps(caught.value)).seconds == 0.02
    assert limit(alias) == "0"


@pytest.fixture
def cancelled_by_hand(admin: psycopg.Connection) -> Iterator[Callable[[], None]]:
    """Return a function that runs a statement which somebody else cancels."""
    threads: list[threading.Thread] = []

    def run() -> None:
        pid = query("SELECT pg_backend_pid()")

        def cancel() -> None:
            running = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND query LIKE '%%pg_sleep%%' AND state = 'active'"
            wait_until(lambda: admin.execute(running, [pid]).fetchone(), "the statement runs")
            admin.execute("SELECT pg_cancel_backend(%s)", [pid])

        threads.append(threading.Thread(target=cancel))
        threads[0].start()
        sleep()

    yield run
    for thread in threads:
        thread.join()


def test_a_statement_that_somebody_cancelled_did_not_run_too_long(cancelled_by_hand: Any) -> None:
    with query_timeout(40), pytest.raises(OperationalError, match="user request") as caught, transaction.atomic():
        cancelled_by_hand()
    assert type(caught.value) is OperationalError


def test_another_limit_is_not_taken_for_ours() -> None:
    def sleep_under_another() -> None:
        query("SET LOCAL statement_timeout = 20")
        sleep()

    with query_timeout(40), transaction.atomic(), pytest.raises(OperationalError, match="statement timeout") as caught:
        sleep_under_another()
    assert type(caught.value) is OperationalError


def test_what_failed_in_the_block_is_not_hidden() -> None:
    def fail() -> None:
        limit()
        with pytest.raises(ProgrammingError, match="nowhere"):
            query("SELECT * FROM nowhere")
        with pytest.raises(InternalError, match="aborted"):
            limit()
        stop()

    with pytest.raises(LookupError), transaction.atomic(), query_timeout(2):
        fail()
    assert limit() == "0"


@each_alias
@pytest.mark.parametrize("atomic", [False, True])
def test_a_connection_that_breaks_in_the_block(alias: str, atomic: bool, admin: psycopg.Connection) -> None:
    def break_off() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            admin.execute("SELECT pg_terminate_backend(%s, 10000)", cursor.fetchone())
            cursor.execute("SELECT 1")

    run = transaction.atomic(using=alias)(break_off) if atomic else break_off
    with pytest.raises(OperationalError), query_timeout(2, using=alias):
        run()
    connections[alias].close()
    assert limit(alias) == "0"


# ##### Nobody else meets it #####


def everybody_s_limit(alias: str) -> set[str]:
    """Return the limits of all sessions in the pool of *alias*."""
    pool = connections[alias].pool
    taken = [pool.getconn() for _ in range(pool.get_stats()["pool_size"])]
    try:
        return {one.execute("SHOW statement_timeout").fetchone()[0] for one in taken}
    finally:
        for one in taken:
            pool.putconn(one)


@pytest.mark.parametrize("after", [0, 0.001])
def test_a_connection_is_given_back_inside_the_block_and_clean(after: float, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": after}
    with release_between_queries(), query_timeout(2):
        for _ in range(2):
            assert limit() == "2s"
            wait_until_released()
            assert everybody_s_limit("default") == {"0"}
            # A transaction's own limit went with it.
            with transaction.atomic():
                assert limit() == "2s"
            wait_until_released()
            assert everybody_s_limit("default") == {"0"}
    assert limit() == "0"


def test_a_connection_is_not_pinned() -> None:
    pinned = conn_hygiene.stats().pinned
    with query_timeout(2):
        limit()
        assert [info.pinned_by for info in conn_hygiene.snapshot() if info.pinned_by] == []
    assert conn_hygiene.stats().pinned == pinned


def test_closing_inside_the_block_leaves_nothing() -> None:
    with query_timeout(2):
        assert limit() == "2s"
        connection.close()
        assert everybody_s_limit("default") == {"0"}
        assert limit() == "2s"


def test_a_block_without_statements_costs_nothing() -> None:
    with query_timeout(2):
        pass
    assert not holds("default")


def test_the_limit_is_set_once_for_many_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    class Counted(psycopg.Cursor[Any]):
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            ran.append(query)
            return super().execute(query, *args, **kwargs)

    monkeypatch.setattr(psycopg, "Cursor", Counted)
    with query_timeout(2):
        for _ in range(3):
            limit()
        with transaction.atomic():
            limit()
    assert ran == [
        b"SHOW statement_timeout; SET statement_timeout = '2000'",
        b"SET statement_timeout = '0'",
    ]


def test_other_execute_wrappers_are_left_alone() -> None:
    def wrapper(execute: Any, *args: Any) -> Any:
        return execute(*args)

    with connection.execute_wrapper(wrapper), query_timeout(2):
        limit()
    assert connection.execute_wrappers == []
    scope = query_timeout(2)
    with connection.execute_wrapper(wrapper):
        scope.__enter__()
    assert limit() == "2s"
    scope.__exit__(None, None, None)
    assert connection.execute_wrappers == []


class TimeoutInTestCase(TestCase):
    def test_it_ends_with_the_block(self) -> None:
        with query_timeout(2):
            assert limit() == "2s"
        assert limit() == "0"


# ##### Asynchronous code #####


async def test_async_with() -> None:
    async with query_timeout(2):
        assert await sync_to_async(limit)() == "2s"
        async with query_timeout(3):
            assert await sync_to_async(limit)() == "3s"
    assert await sync_to_async(limit)() == "0"


async def test_a_coroutine_function() -> None:
    @query_timeout(0.02)
    async def run() -> None:
        await sync_to_async(sleep)()

    with pytest.raises(QueryTimeout):
        await run()


async def test_tasks_in_one_thread_have_limits_of_their_own() -> None:
    turn = asyncio.Barrier(2) if hasattr(asyncio, "Barrier") else None
    if turn is None:
        pytest.skip("asyncio.Barrier is new in Python 3.11")

    async def task() -> list[str]:
        seen = []
        for _ in range(3):
            await turn.wait()
            seen.append(await sync_to_async(limit)())
        return seen

    limited, other = await asyncio.gather(query_timeout(2)(task)(), task())
    assert (limited, other) == (["2s"] * 3, ["0"] * 3)


async def test_with_is_refused_on_an_event_loop() -> None:
    with pytest.raises(SynchronousOnlyOperation, match="async with"), query_timeout(2):
        pass


def test_a_generator() -> None:
    @query_timeout(2)
    def limits() -> Iterator[str]:
        yield limit()
        yield limit()

    assert list(limits()) == ["2s", "2s"]
    assert limit() == "0"


# ##### Wrong use #####


@pytest.mark.parametrize(
    "seconds", [0, -1, float("nan"), float("inf"), 2147483.648, 2**31, 10**400], ids=lambda seconds: repr(seconds)[:16]
)
def test_limits_that_are_none_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        query_timeout(seconds)


@pytest.mark.parametrize("seconds", ["2", True, None, len])
def test_what_is_no_number_is_refused(seconds: Any) -> None:
    with pytest.raises(TypeError, match="number of seconds"):
        query_timeout(seconds)


def test_another_database_is_refused() -> None:
    with pytest.raises(NotSupportedError, match="'sqlite' is another database"), query_timeout(2, using="sqlite"):
        pass


def test_nobody_who_would_clean_up() -> None:
    conn_hygiene.uninstall()
    try:
        with query_timeout(2):
            with transaction.atomic():
                assert limit() == "2s"
            with pytest.raises(NotSupportedError, match="INSTALLED_APPS"):
                limit()
    finally:
        conn_hygiene.install()
    connection.close()


def test_nothing_is_left_on_the_wrappers() -> None:
    with query_timeout(2):
        limit()
    assert not any(wrapper.execute_wrappers for wrapper in connections.all())
