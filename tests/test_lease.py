"""What makes a connection go back, and what holds it."""

from __future__ import annotations

import gc
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.db.backends.postgresql.base import Cursor
from django.db.utils import OperationalError

import conn_hygiene
from conn_hygiene import hold_connection, release_between_queries
from conn_hygiene.leases.lease import Lease
from conn_hygiene.leases.wrapper import lease_of
from tests.testapp.models import Item
from tests.waiting import holds, let_the_reaper_look, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg
    from psycopg_pool import ConnectionPool

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "persistent", "sqlite"])


@pytest.fixture(params=[0, 0.001], ids=["at once", "after a grace"])
def releasing(request: pytest.FixtureRequest, settings: Any) -> Iterator[None]:
    """Run the test inside a scope, once with the owner giving back and once with the reaper."""
    settings.CONN_HYGIENE = {"RELEASE_AFTER": request.param, "UNPOOLED_RELEASE_AFTER": request.param}
    connections.close_all()
    with release_between_queries():
        yield
    connections.close_all()


def query(alias: str = "default", sql: str = "SELECT 1") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone() if cursor.description else None


def assert_stays(alias: str = "default") -> None:
    let_the_reaper_look()
    assert holds(alias)


# ##### What goes back #####


@pytest.mark.parametrize("alias", ["default", "unpooled", "persistent"])
@pytest.mark.usefixtures("releasing")
def test_a_connection_goes_back_after_a_query_and_comes_again_for_the_next(alias: str) -> None:
    assert query(alias) == (1,)
    wait_until_released(alias)
    assert query(alias) == (1,)
    wait_until_released(alias)


@pytest.mark.usefixtures("releasing")
def test_it_goes_back_to_its_pool(pool_of: Callable[[str], ConnectionPool]) -> None:
    query()
    wait_until_released()
    stats = pool_of("default").get_stats()
    assert stats["pool_available"] == stats["pool_size"]


def test_at_grace_0_it_is_back_before_close_returns(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 0}
    with release_between_queries():
        query()
        assert not holds("default")


@pytest.mark.usefixtures("releasing")
def test_an_unpooled_connection_is_closed(alive: Callable[..., set[int]]) -> None:
    with connections["unpooled"].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    wait_until_released("unpooled")
    wait_until(lambda: not alive(pid), "the server has no such session")


@pytest.mark.usefixtures("releasing")
def test_a_handle_read_after_the_release_is_a_live_one() -> None:
    query()
    wait_until_released()
    handle: Any = connection.connection
    assert handle.execute("SELECT 1").fetchone() == (1,)
    assert_stays()


def test_nothing_goes_back_outside_of_a_scope() -> None:
    query()
    assert_stays()


def test_nothing_goes_back_with_release_never(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "never"}
    with release_between_queries():
        query()
        assert_stays()


def test_everything_goes_back_with_release_always(settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always"}
    query()
    wait_until_released()


def test_unpooled_connections_stay_when_told_so(settings: Any) -> None:
    settings.CONN_HYGIENE = {"UNPOOLED_RELEASE_AFTER": None}
    with release_between_queries():
        query("unpooled")
        query()
        wait_until_released()
        assert_stays("unpooled")
        assert conn_hygiene.release_connections("unpooled") == 1


@pytest.mark.usefixtures("releasing")
def test_another_vendor_is_left_alone() -> None:
    assert query("sqlite") == (1,)
    handle = connections["sqlite"].connection
    let_the_reaper_look()
    assert connections["sqlite"].connection is handle


@pytest.mark.usefixtures("releasing")
def test_a_failed_statement_keeps_nothing() -> None:
    with pytest.raises(DatabaseError):
        query(sql="SELECT 1/0")
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_a_cursor_that_is_collected_without_being_closed_keeps_nothing() -> None:
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    assert_stays()
    del cursor
    gc.collect()
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_a_cursor_closed_late_does_not_count_for_the_next_checkout() -> None:
    late = connection.cursor()
    connection.close()
    with connection.cursor() as cursor:
        late.close()
        late.close()
        assert_stays()
        cursor.execute("SELECT 1")
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_a_connection_that_broke_is_replaced_at_the_next_query(admin: psycopg.Connection) -> None:
    with connection.cursor() as cursor:
        pid = cursor.connection.pgconn.backend_pid
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        with pytest.raises(OperationalError):
            cursor.execute("SELECT 1")
    connection.close()
    assert query() == (1,)


# ##### What holds it: cursors #####


@pytest.mark.usefixtures("releasing")
def test_an_open_cursor_holds() -> None:
    with connection.cursor() as outer:
        outer.execute("SELECT generate_series(1, 3)")
        query()
        assert_stays()
        assert outer.fetchall() == [(1,), (2,), (3,)]
    wait_until_released()


@pytest.mark.parametrize("alias", ["default", "unpooled"])
@pytest.mark.usefixtures("releasing")
def test_a_server_side_cursor_holds_until_exhausted(alias: str) -> None:
    Item.objects.bulk_create(Item(name="n", value=n) for n in range(5))
    rows = Item.objects.using(alias).order_by("value").iterator(chunk_size=2)
    assert next(rows).value == 0
    assert_stays(alias)
    assert [item.value for item in rows] == [1, 2, 3, 4]
    wait_until_released(alias)


@pytest.mark.usefixtures("releasing")
def test_a_server_side_cursor_holds_until_closed() -> None:
    Item.objects.bulk_create(Item(name="n", value=n) for n in range(5))
    rows = Item.objects.iterator(chunk_size=2)
    next(rows)
    assert_stays()
    rows.close()
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_a_copy_holds() -> None:
    with connection.cursor() as cursor, cursor.copy("COPY (SELECT generate_series(1, 3)) TO STDOUT") as copy:
        assert_stays()
        assert [row for (row,) in copy.rows()] == ["1", "2", "3"]
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_a_pipeline_holds() -> None:
    connection.ensure_connection()
    handle: Any = connection.connection
    with handle.pipeline():
        query()
        assert_stays()
    query()
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_a_raw_handle_holds_until_the_next_cursor_closes() -> None:
    connection.ensure_connection()
    handle: Any = connection.connection
    assert_stays()
    assert handle.execute("SELECT 1").fetchone() == (1,)
    query()
    wait_until_released()


# ##### What holds it: transactions #####


@pytest.mark.usefixtures("releasing")
def test_atomic_holds_until_its_end() -> None:
    with transaction.atomic():
        Item.objects.create(name="a")
        with transaction.atomic():
            Item.objects.create(name="b")
        assert_stays()
        with transaction.atomic(savepoint=False):
            assert_stays()
    wait_until_released()
    assert Item.objects.count() == 2


@pytest.mark.usefixtures("releasing")
def test_durable_atomic_holds_as_a_decorator() -> None:
    @transaction.atomic(durable=True)
    def create() -> None:
        Item.objects.create(name="a")
        assert_stays()

    create()
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_a_transaction_that_is_rolled_back_lets_go() -> None:
    with suppress(ZeroDivisionError), transaction.atomic():
        Item.objects.create(name="a")
        assert_stays()
        raise ZeroDivisionError
    wait_until_released()
    assert not Item.objects.exists()


@pytest.mark.usefixtures("releasing")
def test_a_broken_transaction_holds_until_its_end() -> None:
    with transaction.atomic():
        item = Item.objects.create(name="a")
        with pytest.raises(IntegrityError):
            Item.objects.create(pk=item.pk, name="b")
        assert_stays()
        transaction.set_rollback(True)
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_a_savepoint_that_is_rolled_back_holds() -> None:
    with transaction.atomic():
        Item.objects.create(name="a")
        with suppress(ZeroDivisionError), transaction.atomic():
            Item.objects.create(name="b")
            raise ZeroDivisionError
        assert_stays()
    wait_until_released()
    assert [item.name for item in Item.objects.all()] == ["a"]


@pytest.mark.parametrize("end", [transaction.commit, transaction.rollback])
@pytest.mark.usefixtures("releasing")
def test_manual_transactions_hold_until_commit_or_rollback(end: Callable[[], None]) -> None:
    query()
    transaction.set_autocommit(False)
    Item.objects.create(name="a")
    assert_stays()
    end()
    wait_until_released()
    # Given back, and still in manual transaction management.
    assert not transaction.get_autocommit()
    Item.objects.create(name="b")
    assert_stays()
    transaction.rollback()
    transaction.set_autocommit(True)
    wait_until_released()
    assert [item.name for item in Item.objects.all()] == (["a"] if end is transaction.commit else [])


@pytest.mark.usefixtures("releasing")
def test_a_literal_begin_holds_until_a_literal_commit() -> None:
    query(sql="BEGIN")
    assert_stays()
    with connection.cursor() as cursor:
        cursor.execute("COMMIT")
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_a_begin_on_a_handle_that_was_read_before_is_not_taken_away() -> None:
    connection.ensure_connection()
    handle: Any = connection.connection
    handle.execute("BEGIN")
    query()
    assert_stays()
    handle.execute("ROLLBACK")
    query()
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_commit_hooks_run_once_each_and_may_query() -> None:
    ran: list[Any] = []
    with transaction.atomic():
        Item.objects.create(name="a")
        for _ in range(3):
            transaction.on_commit(lambda: ran.append(query()))
        transaction.on_commit(lambda: transaction.on_commit(lambda: ran.append("inner")))
    assert ran == [(1,), (1,), (1,), "inner"]
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_a_commit_hook_that_is_slow_before_it_queries_holds_nothing() -> None:
    ran: list[str] = []

    def hook() -> None:
        wait_until_released()
        query()
        ran.append("slow")

    with transaction.atomic():
        Item.objects.create(name="a")
        transaction.on_commit(hook)
        transaction.on_commit(lambda: ran.append("last"))
    assert ran == ["slow", "last"]


@pytest.mark.usefixtures("releasing")
def test_commit_hooks_are_kept_where_a_time_limit_comes_ahead_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def settle(lease: Lease, **kwargs: Any) -> None:
        raise TimeoutError

    def commit() -> None:
        with transaction.atomic():
            Item.objects.create(name="a")
            transaction.on_commit(lambda: ran.append("hook"))
            monkeypatch.setattr(Lease, "settle", settle)

    with pytest.raises(TimeoutError):
        commit()
    monkeypatch.undo()
    assert Item.objects.exists()
    assert ran == []
    with transaction.atomic():
        pass
    assert ran == ["hook"]


@pytest.mark.usefixtures("releasing")
def test_a_commit_hook_that_fails_loses_no_connection() -> None:
    def fail() -> None:
        query()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        transaction.on_commit(fail)
    query()
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_commit_hooks_that_have_yet_to_run_hold() -> None:
    """A checkout would empty the list."""
    ran: list[str] = []
    query()
    transaction.set_autocommit(False)
    with transaction.atomic():
        Item.objects.create(name="a")
        transaction.on_commit(lambda: ran.append("hook"))
    transaction.commit()
    assert_stays()
    assert ran == []
    transaction.set_autocommit(True)
    assert ran == ["hook"]
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_a_deferred_constraint_that_fails_at_commit_lets_go() -> None:
    query(sql="CREATE TABLE pair (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    try:
        with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("INSERT INTO pair VALUES (1), (1)")
        wait_until_released()
    finally:
        query(sql="DROP TABLE pair")


# ##### What holds it: the application's word #####


@contextmanager
def cursor_closed_elsewhere() -> Iterator[None]:
    """Open a cursor, and have it closed by another thread, which releases, at the end of the block.

    So does an event loop with the cursor of ``aiterator()``, and the garbage collector with that of ``iterator()``.
    """
    cursor: Any = connection.cursor()
    cursor.execute("SELECT 1")
    yield
    thread = threading.Thread(target=release_between_queries(cursor.cursor.close))
    thread.start()
    thread.join()
    lease: Any = lease_of(connections["default"])
    wait_until(lambda: not lease.open_cursors, "the cursor is forgotten")


@pytest.mark.usefixtures("releasing")
def test_a_cursor_that_another_thread_closes_leaves_the_handle_with_its_owner() -> None:
    with cursor_closed_elsewhere():
        handle: Any = connection.connection
    assert_stays()
    assert handle.execute("SELECT 1").fetchone() == (1,)
    assert connection.connection is handle


@pytest.mark.usefixtures("releasing")
def test_a_cursor_that_another_thread_closes_ends_no_hold() -> None:
    with hold_connection():
        with cursor_closed_elsewhere():
            pass
        assert_stays()


@pytest.mark.usefixtures("releasing")
def test_a_cursor_that_another_thread_closes_is_the_last_to_keep_the_connection() -> None:
    with cursor_closed_elsewhere():
        pass
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_hold_connection_holds_until_its_end() -> None:
    with hold_connection():
        query()
        assert_stays()
    wait_until_released()


@pytest.mark.usefixtures("releasing")
def test_a_wrapper_that_threads_share_is_held() -> None:
    connection.inc_thread_sharing()
    try:
        query()
        assert_stays()
    finally:
        connection.dec_thread_sharing()
    query()
    wait_until_released()


# ##### Threads #####


@pytest.mark.usefixtures("releasing")
def test_another_thread_sees_no_connection_that_was_given_back() -> None:
    query()
    wait_until_released()
    wrapper, seen = connections["default"], []

    def look() -> None:
        seen.append(wrapper.connection)
        with pytest.raises(DatabaseError, match="can only be used in that same thread"):
            wrapper.cursor()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [None]
    assert query() == (1,)


@pytest.mark.usefixtures("releasing")
def test_a_pool_that_is_used_up_answers_the_next_query_with_djangos_error(
    pool_of: Callable[[str], ConnectionPool],
) -> None:
    query()
    wait_until_released()
    pool = pool_of("default")
    taken = [pool.getconn() for _ in range(pool.max_size)]
    pool.timeout = 0.05
    try:
        with pytest.raises(OperationalError, match="couldn't get a connection"):
            query()
        with pytest.raises(OperationalError, match="couldn't get a connection"):
            connection.connection  # noqa: B018 - reading it is the test
    finally:
        pool.timeout = 5
        for handle in taken:
            pool.putconn(handle)
    assert query() == (1,)


@pytest.mark.usefixtures("releasing")
def test_closing_and_asking_cost_no_checkout() -> None:
    query()
    wait_until_released()
    checkouts = conn_hygiene.stats().checkouts
    assert connection.get_autocommit()
    connection.close_if_unusable_or_obsolete()
    connection.close_if_health_check_failed()
    connection.close()
    connection.close()
    assert conn_hygiene.stats().checkouts == checkouts
    assert query() == (1,)


@pytest.mark.parametrize("alias", ["default", "unpooled", "persistent"])
@pytest.mark.usefixtures("releasing")
def test_a_handle_that_the_application_closed_is_replaced_when_the_wrapper_is_closed(alias: str) -> None:
    connections[alias].ensure_connection()
    handle: Any = connections[alias].connection
    handle.close()
    assert conn_hygiene.snapshot()[0].alias == alias
    connections[alias].close()
    assert query(alias) == (1,)


@pytest.mark.usefixtures("releasing")
def test_a_statement_on_a_raw_handle_pins_too() -> None:
    connection.ensure_connection()
    handle: Any = connection.connection
    handle.execute("CREATE TEMP TABLE t_hygiene (n int)")
    query()
    assert_stays()
    connection.close()
    assert query(sql="SELECT to_regclass('t_hygiene')::text") == (None,)


@pytest.mark.usefixtures("releasing")
def test_the_handle_is_what_it_was_when_it_is_back_in_its_pool() -> None:
    query()
    handle: Any = connection.connection
    connection.close()
    assert "conn_hygiene" not in repr([cls.__module__ for cls in handle.cursor_factory.__mro__])
    left = {name for name in vars(handle) if "conn_hygiene" in name}
    # When it was last used, it has only if it was; the query may have had another. It is looked at where it was not.
    left -= {"_conn_hygiene_last_used", "_conn_hygiene_looked_at"}
    assert left == {"_conn_hygiene_fresh", "_conn_hygiene_given", "_conn_hygiene_heard", "_conn_hygiene_opened"}


@pytest.mark.usefixtures("releasing")
def test_the_cursor_factory_is_equal_to_what_the_backend_set() -> None:
    connection.ensure_connection()
    handle: Any = connection.connection
    assert handle.cursor_factory == Cursor
    assert Cursor == handle.cursor_factory
    assert {Cursor: "found"}[handle.cursor_factory] == "found"
    assert handle.cursor_factory != handle.server_cursor_factory


@pytest.mark.usefixtures("releasing")
def test_a_connect_method_that_a_test_class_left_on_the_instance_does_no_harm() -> None:
    wrapper = connections["default"]
    plain = type(wrapper.copy())
    wrapper.connect = plain.connect.__get__(wrapper)  # type: ignore[method-assign]
    try:
        for _ in range(2):
            query()
            wait_until_released()
    finally:
        del wrapper.connect


def test_a_method_of_ours_that_a_test_class_left_on_the_instance_goes_with_the_toolkit() -> None:
    query()
    wrapper = connections["default"]
    wrapper.connect = wrapper.connect  # type: ignore[method-assign]
    conn_hygiene.uninstall()
    try:
        wrapper.close()
        assert query() == (1,)
        assert "connect" not in vars(wrapper)
    finally:
        conn_hygiene.install()
