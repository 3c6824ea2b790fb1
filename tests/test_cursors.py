"""Cursors that outlive the checkout that they were opened in."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.signals import request_finished, request_started
from django.db import InterfaceError, OperationalError, connections, transaction
from django.db.backends.postgresql import base

import conn_hygiene
from conn_hygiene import closing_connections, hold_connection, release_between_queries, release_connections
from conn_hygiene.leases import cursors
from conn_hygiene.leases.wrapper import lease_of
from tests.testapp.models import Item
from tests.waiting import busy_reaper, holds, let_the_reaper_look

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from psycopg_pool import ConnectionPool

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled"])


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
def rows(settings: Any) -> Generator[Item, None, None]:
    """Return an iterator whose connection was closed under it, with its server-side cursor open."""
    settings.CONN_HYGIENE = {"CLEAN_SESSIONS": "seen"}
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


def test_a_statement_on_a_cursor_whose_connection_is_closed_fails_as_in_django() -> None:
    """Who looks for that error to connect again finds it."""
    late = connections["unpooled"].cursor()
    connections["unpooled"].close()
    with pytest.raises(OperationalError, match="the connection is closed"):
        late.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="the connection is closed"):
        late.cursor.execute("SELECT 1")


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


# ##### Those that were collected, of which the reaper has yet to hear #####


def leave_one_unclosed() -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE IF NOT EXISTS left_there (n int)")
    connections["default"].cursor()
    gc.collect()


def as_told() -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT 1")
    connections["default"].cursor()
    gc.collect()
    assert release_connections("default") == 1


def at_the_end_of_a_hold() -> None:
    with release_between_queries(), hold_connection():
        leave_one_unclosed()


def for_another_request() -> None:
    leave_one_unclosed()
    lease = lease_of(connections["default"])
    assert lease is not None
    lease.end_with_other_request()


@pytest.mark.parametrize("way", [as_told, at_the_end_of_a_hold, for_another_request])
def test_one_that_was_collected_keeps_no_connection_that_its_owner_lets_go_of(way: Callable[[], None]) -> None:
    with busy_reaper():
        way()
        assert not holds("default")


# ##### Every class, and every method #####

CLIENT_SIDE = [psycopg.Cursor, psycopg.ClientCursor, psycopg.RawCursor, base.Cursor, base.ServerBindingCursor]
SERVER_SIDE = [psycopg.ServerCursor, psycopg.RawServerCursor, base.ServerSideCursor]
DJANGOS = [base.Cursor, base.ServerBindingCursor, base.ServerSideCursor]

# What sends something, or waits for the server, by what there is to call.
REACHES: dict[str, Callable[[Any], object]] = {
    "execute": lambda cursor: cursor.execute("SELECT 2"),
    "executemany": lambda cursor: cursor.executemany("SELECT 2", [()]),
    "stream": lambda cursor: next(cursor.stream("SELECT 2")),
    "copy": lambda cursor: cursor.copy("COPY (SELECT 2) TO STDOUT").__enter__(),
    "callproc": lambda cursor: cursor.callproc("version"),
}
# These do so with a server-side cursor, and with any whose pipeline has yet to bring the rows.
FETCHES: dict[str, Callable[[Any], object]] = {
    "fetchone": lambda cursor: cursor.fetchone(),
    "fetchmany": lambda cursor: cursor.fetchmany(2),
    "fetchall": lambda cursor: cursor.fetchall(),
    "__next__": lambda cursor: next(iter(cursor)),
    "scroll": lambda cursor: cursor.scroll(1),
}
# Says goodbye to the portal of a server-side cursor; it may always be called.
CLOSES = {"close", "__exit__"}
# What stays on this side: methods, then attributes.
LOCAL = {
    *("__enter__", "__iter__", "mogrify", "nextset", "results", "set_result", "setinputsizes", "setoutputsize"),
    *("adapters", "arraysize", "closed", "connection", "description", "format", "pgresult", "row_factory", "rowcount"),
    *("rownumber", "statusmessage", "itersize", "name", "scrollable", "withhold"),
}


def _id(cls: type[Any]) -> str:
    return f"{cls.__name__} of {cls.__module__.partition('.')[0]}"


@pytest.mark.parametrize("cls", CLIENT_SIDE + SERVER_SIDE, ids=_id)
def test_all_that_a_cursor_has_is_known_to_reach_the_server_or_not_to(cls: type[Any]) -> None:
    """One that psycopg has added must go into one of the lists; into `RetiredCursor` as well, if it reaches it."""
    protocols = {"__enter__", "__exit__", "__iter__", "__next__"}
    has = {name for name in dir(cls) if not name.startswith("_") or name in protocols}
    assert has - REACHES.keys() - FETCHES.keys() - CLOSES - LOCAL == set()


def _of_django(cls: type[Any]) -> Any:
    """Return a cursor of *cls* that the wrapper knows, as if the connection had been opened with that factory."""
    wrapper: Any = connections["default"]
    wrapper.ensure_connection()
    handle = wrapper.connection
    before = handle.cursor_factory, handle.server_cursor_factory
    handle.cursor_factory = handle.server_cursor_factory = cls
    cursors.follow(handle, wrapper.__dict__["_conn_hygiene_lease"])
    with pytest.MonkeyPatch.context() as patch:
        if cls is not base.ServerSideCursor:
            patch.setitem(wrapper.settings_dict["OPTIONS"], "server_side_binding", True)
        cursor = wrapper.create_cursor("late" if cls in SERVER_SIDE else None)
    handle.cursor_factory, handle.server_cursor_factory = before
    assert cls in type(cursor).__mro__
    return cursor


def _of_handle(cls: type[Any]) -> Any:
    """Return a cursor of *cls* that was made on the handle, past Django."""
    wrapper: Any = connections["default"]
    wrapper.ensure_connection()
    followed = type(wrapper.connection.cursor()).__mro__
    assert "LeasedCursor" in {parent.__name__ for parent in followed}
    if cls is psycopg.ServerCursor:
        return wrapper.connection.cursor("late", withhold=True)
    assert cls is base.Cursor
    return wrapper.connection.cursor()


@contextmanager
def _silence(connection: psycopg.Connection[Any], trace: Path) -> Iterator[None]:
    """Fail if a message goes either way on *connection* inside of the block."""
    with trace.open("wb") as file:
        connection.pgconn.trace(file.fileno())
        try:
            yield
        finally:
            connection.pgconn.untrace()
    assert trace.read_bytes() == b""


KINDS = [
    *[pytest.param(_of_django, cls, id=_id(cls)) for cls in CLIENT_SIDE + SERVER_SIDE],
    *[pytest.param(_of_handle, cls, id=f"{_id(cls)} on a handle") for cls in (base.Cursor, psycopg.ServerCursor)],
]


@pytest.mark.skipif(os.name != "posix", reason="libpq traces into C files")
@pytest.mark.parametrize(
    ("make", "cls", "name"),
    [
        pytest.param(*kind.values, name, id=f"{kind.id}, {name}")
        for kind in KINDS
        for name in [*REACHES, *FETCHES]
        if name != "callproc" or kind.values[1] in DJANGOS
    ],
)
@pytest.mark.usefixtures("only_connection")
def test_what_reaches_the_server_is_refused_once_the_connection_went_back(
    make: Callable[[type[Any]], Any], cls: type[Any], name: str, tmp_path: Path
) -> None:
    late = make(cls)
    late.execute("SELECT n FROM generate_series(1, 4) n")
    connections["default"].close()
    with transaction.atomic(), connections["default"].cursor() as cursor:
        cursor.execute("SELECT 2")
        assert cursor.connection is late.connection
        with _silence(cursor.connection, tmp_path / "trace"):
            if name in FETCHES and cls in CLIENT_SIDE:
                # Has been received.
                FETCHES[name](late)
            else:
                with pytest.raises(psycopg.InterfaceError, match="closed or given back"):
                    (REACHES | FETCHES)[name](late)
            late.close()
            assert late.closed
            with pytest.raises(psycopg.InterfaceError, match="closed"):
                (REACHES | FETCHES)[name](late)
        cursor.execute("SELECT 3")


@pytest.mark.parametrize("name", ["execute", "executemany", "scroll"])
@pytest.mark.parametrize(("make", "cls"), KINDS)
@pytest.mark.usefixtures("only_connection")
def test_nor_does_one_that_was_closed_in_time_send_anything(
    make: Callable[[type[Any]], Any], cls: type[Any], name: str, tmp_path: Path
) -> None:
    late = make(cls)
    late.execute("SELECT n FROM generate_series(1, 4) n")
    late.close()
    connections["default"].close()
    with transaction.atomic(), connections["default"].cursor() as cursor:
        cursor.execute("SELECT 2")
        with (
            _silence(cursor.connection, tmp_path / "trace"),
            pytest.raises((psycopg.InterfaceError, psycopg.NotSupportedError)),
        ):
            (REACHES | FETCHES)[name](late)


@pytest.mark.skipif(os.name != "posix", reason="libpq traces into C files")
@pytest.mark.parametrize(
    ("cls", "name"),
    [
        pytest.param(cls, name, id=f"{_id(cls)}, {name}")
        for cls in (base.Cursor, psycopg.ServerCursor)
        for name in [*REACHES, *FETCHES, "close"]
        if name != "callproc" or cls in DJANGOS
    ],
)
@pytest.mark.usefixtures("only_connection")
def test_a_cursor_of_a_handle_that_has_executed_nothing_yet_reaches_nobody_elses_transaction(
    cls: type[Any], name: str, tmp_path: Path
) -> None:
    late = _of_handle(cls)
    connections["default"].close()

    def use() -> None:
        with _silence(late.connection, tmp_path / "trace"):
            if name == "close":
                late.close()
            else:
                with pytest.raises((psycopg.InterfaceError, psycopg.ProgrammingError)):
                    (REACHES | FETCHES)[name](late)

    @closing_connections
    def in_transaction() -> None:
        with transaction.atomic(), connections["default"].cursor() as cursor:
            cursor.execute("SELECT 2")
            assert cursor.connection is late.connection
            use()
            cursor.execute("SELECT 3")

    with ThreadPoolExecutor(1) as executor:
        executor.submit(in_transaction).result()
    # And while nobody has it.
    use()
    late.close()


@pytest.mark.parametrize("name", ["stream", "copy"])
@pytest.mark.usefixtures("only_connection")
def test_what_was_called_before_and_begins_after_is_refused(name: str, tmp_path: Path) -> None:
    late = _of_django(base.Cursor)
    begin: dict[str, Callable[[], Callable[[], object]]] = {
        "stream": lambda: late.stream("SELECT 2").__next__,
        "copy": lambda: late.copy("COPY (SELECT 2) TO STDOUT").__enter__,
    }
    begun = begin[name]()
    connections["default"].close()
    with (
        connections["default"].cursor() as cursor,
        _silence(cursor.connection, tmp_path / "trace"),
        pytest.raises(psycopg.InterfaceError, match="closed or given back"),
    ):
        begun()


def _failed(cls: type[Any]) -> Any:
    """Return a cursor of the handle that has executed something, and received nothing."""
    late = _of_handle(cls)
    with pytest.raises(psycopg.errors.DivisionByZero):
        late.execute("SELECT 1/0")
    return late


@pytest.mark.parametrize("name", FETCHES)
@pytest.mark.parametrize("make", [_of_django, _failed])
@pytest.mark.usefixtures("only_connection")
def test_nothing_is_fetched_from_another_ones_pipeline(
    make: Callable[[type[Any]], Any], name: str, tmp_path: Path
) -> None:
    late = make(base.Cursor)
    connections["default"].close()
    handle: Any = None
    with connections["default"].cursor() as cursor:
        handle = cursor.connection
        with handle.pipeline():
            theirs = handle.cursor()
            theirs.execute("SELECT 2")
            with (
                _silence(handle, tmp_path / "trace"),
                pytest.raises(psycopg.InterfaceError, match="closed or given back"),
            ):
                FETCHES[name](late)
            assert theirs.fetchone() == (2,)


@pytest.mark.usefixtures("only_connection")
def test_a_cursor_on_a_handle_that_is_gone_is_not_remembered() -> None:
    wrapper: Any = connections["default"]
    wrapper.ensure_connection()
    for _ in range(3):
        wrapper.connection.execute("SELECT 1")
    gc.collect()
    assert vars(wrapper.connection)["_conn_hygiene_unlisted"] == {}


@pytest.mark.usefixtures("only_connection")
def test_the_cursors_of_a_connection_that_is_left_alone_from_now_on_go_on() -> None:
    cursor = connections["default"].cursor()
    conn_hygiene.uninstall()
    try:
        assert cursor.execute("SELECT 1").fetchone() == (1,)
        cursor.close()
    finally:
        conn_hygiene.install()


# ##### COPY and streams: psycopg holds its lock of the connection until they end #####


def _copying(cursor: Any) -> Any:
    copy = cursor.copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT")
    copy.__enter__().read()
    return copy


def _copied(cursor: Any) -> Any:
    copy = cursor.copy("COPY (SELECT 1) TO STDOUT")
    list(copy.__enter__().rows())
    return copy


def _streaming(cursor: Any) -> Any:
    stream = cursor.stream("SELECT generate_series(1, 100000)")
    next(stream)
    return stream


def _by_close(use: Callable[[], None]) -> None:
    use()
    connections["default"].close()


def _by_job(use: Callable[[], None]) -> None:
    with closing_connections():
        use()


def _by_request(use: Callable[[], None]) -> None:
    request_started.send(None, environ={})
    use()
    request_finished.send(None)


@pytest.mark.parametrize("end", [_by_close, _by_job, _by_request])
@pytest.mark.parametrize("begin", [_copying, _copied, _streaming])
@pytest.mark.usefixtures("only_connection")
def test_a_connection_is_closed_in_the_middle_of_what_holds_its_lock(
    begin: Callable[[Any], Any], end: Callable[[Callable[[], None]], None]
) -> None:
    """Cleaning its session, or rolling back, would wait for that lock, in the thread that has it."""
    begun: list[Any] = []
    waited = threading.Event()

    def end_waiting(lock: threading.Lock) -> None:
        waited.set()
        lock.release()

    def use() -> None:
        late = connections["default"].cursor()
        begun.extend([late, late.connection.info.backend_pid, begin(late)])
        timer = threading.Timer(5, end_waiting, [late.connection.lock])
        timer.start()
        begun.append(timer)

    end(use)
    _, before, _, timer = begun
    timer.cancel()
    assert not waited.is_set()
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchone() != (before,)


@pytest.mark.parametrize("begin", [_copying, _streaming])
def test_a_cursor_that_is_closed_in_the_middle_of_a_copy_holds(begin: Callable[[Any], Any], settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE": "always", "RELEASE_AFTER": 0.001}
    connections["default"].close()
    cursor = connections["default"].cursor()
    begun = begin(cursor)
    cursor.close()
    let_the_reaper_look()
    assert [info.state for info in conn_hygiene.snapshot()] == ["in use"]
    connections["default"].close()
    del begun
