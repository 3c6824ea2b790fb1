"""Whose line a statement is, where execute wrappers stand between it and the server."""

from __future__ import annotations

import inspect
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import pytest_django
from django.db import connection, connections

import conn_hygiene
from conn_hygiene import callsite, closing_connections
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def without_pins() -> Iterator[None]:
    """Begin and end with a connection that carries nothing."""
    connections.close_all()
    yield
    connections.close_all()


def tag(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    return execute(f"/* tagged */ {sql}", params, many, context)


def tag_again(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    return execute(f"/* tagged again */ {sql}", params, many, context)


def set_before(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    """Send a statement of its own on another cursor, and then the one that it was called for."""
    if "SELECT 1" not in sql:
        return execute(sql, params, many, context)
    with context["connection"].cursor() as cursor:
        cursor.execute("LISTEN by_wrapper")
    return execute(sql, params, many, context)


def pinned_at() -> str:
    [info] = conn_hygiene.snapshot()
    [place] = info.pinned_by.values()
    return place


def line_of(function: Callable[..., Any], text: str) -> str:
    """Return the place of the one line of *function* that has *text*."""
    lines, first = inspect.getsourcelines(function)
    [line] = [first + offset for offset, line in enumerate(lines) if text in line]
    return f"{__file__}:{line} in {function.__name__}"


def execute() -> None:
    with connection.cursor() as cursor:
        cursor.execute("LISTEN by_caller")


def executemany() -> None:
    with connection.cursor() as cursor:
        cursor.executemany("LISTEN by_caller", [()])


@pytest.mark.parametrize("wrappers", [[], [tag], [tag, tag_again]])
@pytest.mark.parametrize("run", [execute, executemany])
@pytest.mark.parametrize("debug", [False, True])
def test_a_statement_is_its_callers_and_not_the_wrappers(
    run: Callable[[], None], wrappers: list[Any], debug: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Django's debug cursors call its plain ones.
    monkeypatch.setattr(connections["default"], "force_debug_cursor", debug)
    monkeypatch.setattr(connections["default"], "execute_wrappers", wrappers)
    run()
    assert pinned_at() == line_of(run, "LISTEN by_caller")


def test_what_a_wrapper_sends_of_its_own_accord_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections["default"], "execute_wrappers", [tag, set_before, tag_again])
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert pinned_at() == line_of(set_before, "LISTEN by_wrapper")


def test_a_thread_that_waits_for_the_server_is_where_it_called(admin: psycopg.Connection) -> None:
    started = threading.Event()
    threads: list[int] = []

    @closing_connections
    def wait_for_the_server() -> None:
        with connection.execute_wrapper(tag), connection.cursor() as cursor:
            threads.append(threading.get_ident())
            started.set()
            cursor.execute("SELECT pg_sleep(60)")

    running = "SELECT pid FROM pg_stat_activity WHERE query LIKE '/* tagged */%%' AND state = 'active'"
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(wait_for_the_server)
        assert started.wait(10)
        wait_until(lambda: admin.execute(running).fetchone(), "the statement runs")
        place = callsite.of_thread(threads[0])
        admin.execute(f"SELECT pg_cancel_backend(pid) FROM ({running}) x")
        assert "canceling" in str(waiting.exception())
    assert str(place) == line_of(inspect.unwrap(wait_for_the_server), "pg_sleep")


def test_nor_is_the_wrapper_of_a_library_where_a_library_calls() -> None:
    """No line of the application's is on the stack."""
    caller = _in_library(
        "def run(wrapper, connection, place):\n"
        " with connection.execute_wrapper(wrapper), connection.cursor() as cursor:\n"
        '  cursor.execute("LISTEN by_caller")\n'
        " place.append(str(pins()))\n"
        " connection.close()\n",
        pytest_django.__file__,
        pins=lambda: conn_hygiene.snapshot()[0].pinned_by["LISTEN"],
    )
    wrapper = _in_library("def run(execute, *args):\n return execute(*args)\n", pytest.__file__)
    places: list[str] = []
    thread = threading.Thread(target=caller, args=(wrapper, connection, places))
    thread.start()
    thread.join(10)
    assert [re.sub(r":\d+ ", ":3 ", place) for place in places] == [f"{pytest_django.__file__}:3 in run"]


def _in_library(source: str, path: str, **names: Any) -> Any:
    namespace: dict[str, Any] = dict(names)
    exec(compile(source, path, "exec"), namespace)
    return namespace["run"]
