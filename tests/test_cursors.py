"""Server-side cursors that outlive the checkout that they were opened in."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from django.db import InterfaceError, connections, transaction

from conn_hygiene import closing_connections
from tests.testapp.models import Item

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    import psycopg
    from psycopg_pool import ConnectionPool

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def only_connection() -> Iterator[ConnectionPool]:
    """Have a pool of one connection, so that the next owner gets the same one."""
    wrapper = connections["default"]
    options = wrapper.settings_dict["OPTIONS"]
    before = options["pool"]
    wrapper.close()
    wrapper.close_pool()
    options["pool"] = {**before, "min_size": 1, "max_size": 1}
    yield wrapper.pool
    wrapper.close()
    wrapper.close_pool()
    options["pool"] = before


@pytest.fixture
def rows() -> Generator[Item, None, None]:
    """Return an iterator whose connection was closed under it, with its server-side cursor open."""
    Item.objects.bulk_create(Item(name="row") for _ in range(10))
    rows: Generator[Item, None, None] = Item.objects.iterator(chunk_size=2)
    next(rows)
    connections["default"].close()
    return rows


def test_a_cursor_that_is_open_when_its_connection_is_closed_does_not_reach_the_next_owner(
    only_connection: ConnectionPool, rows: Generator[Item, None, None]
) -> None:
    with only_connection.connection() as connection:
        assert connection.execute("SELECT name FROM pg_cursors WHERE is_holdable").fetchall() == []
    rows.close()


@pytest.mark.usefixtures("only_connection")
def test_a_statement_on_a_cursor_of_an_earlier_checkout_is_refused() -> None:
    """The connection is the same one, but what runs on it now is another one's."""
    late = connections["default"].cursor()
    connections["default"].close()
    with connections["default"].cursor() as cursor:
        assert cursor.connection is late.connection
        with pytest.raises(InterfaceError, match="closed or given back"):
            late.execute("SELECT 1")
        cursor.execute("SELECT 2")
        assert cursor.fetchone() == (2,)


@pytest.mark.usefixtures("only_connection")
def test_the_late_end_of_a_cursor_does_not_run_on_the_next_owners_connection(
    rows: Generator[Item, None, None], admin: psycopg.Connection
) -> None:
    in_transaction, closed = threading.Event(), threading.Event()
    sessions: list[int] = []

    @closing_connections
    def own() -> None:
        with transaction.atomic():
            sessions.append(connections["default"].connection.info.backend_pid)
            Item.objects.create(name="committed")
            in_transaction.set()
            assert closed.wait(10)
            # A CLOSE of a cursor that is not there would have aborted the transaction.
            Item.objects.create(name="committed")

    with ThreadPoolExecutor(1) as executor:
        owner = executor.submit(own)
        assert in_transaction.wait(10)
        rows.close()
        last = admin.execute("SELECT query FROM pg_stat_activity WHERE pid = ANY(%s)", [sessions]).fetchall()
        closed.set()
        owner.result()
    assert [query.split()[0] for (query,) in last] == ["INSERT"]
    assert Item.objects.filter(name="committed").count() == 2
