"""What a request leaves behind, and what the reaper reports while it lasts."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx
import pytest
from asgiref.sync import async_to_sync
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.db import DataError, OperationalError, close_old_connections, connection, connections, transaction
from django.test import Client, RequestFactory
from psycopg.conninfo import make_conninfo

import conn_hygiene
from conn_hygiene import hold_connection, signals
from conn_hygiene.events import CameBack, listen, unlisten
from conn_hygiene.leases import ended
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.transactions import left_open
from tests.testapp.models import Item
from tests.waiting import end_sessions, holds, wait_until, wait_until_told
from tests.webapp import urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg
    from psycopg_pool import ConnectionPool

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "persistent"]),
    pytest.mark.urls("tests.webapp.urls"),
]

every_alias = pytest.mark.parametrize("alias", ["default", "unpooled", "persistent"])
every_way = pytest.mark.parametrize("way", urls.WAYS)


# ##### Servers #####


def start_response(*args: Any) -> Any:
    """Take the status and the headers, as a WSGI server does."""


def wsgi(url: str) -> bytes:
    """Serve a request as a WSGI server does, in this thread."""
    response: Any = get_wsgi_application()(RequestFactory().get(url).environ, start_response)
    try:
        return b"".join(response)
    finally:
        response.close()


def asgi(url: str) -> bytes:
    """Serve a request as an ASGI server does, in a thread of its own."""

    async def get() -> bytes:
        path, _, query = url.partition("?")
        scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": []}
        communicator = ApplicationCommunicator(get_asgi_application(), scope)
        await communicator.send_input({"type": "http.request"})
        body = b""
        await communicator.receive_output(10)
        while True:
            message = await communicator.receive_output(10)
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        await communicator.wait(10)
        return body

    return async_to_sync(get)()


def client(url: str) -> bytes:
    """Serve a request as Django's test client does, which keeps Django from closing connections."""
    response: Any = Client().get(url)
    return b"".join(response) if response.streaming else response.content


every_server = pytest.mark.parametrize("get", [wsgi, asgi, client])


class Events(list[dict[str, Any]]):
    """What a signal said, in the order in which it did."""

    def receive(self, **event: Any) -> None:
        del event["signal"], event["sender"]
        self.append(event)


@contextmanager
def events_of(signal: Any) -> Iterator[Events]:
    events = Events()
    signal.connect(events.receive)
    try:
        yield events
    finally:
        signal.disconnect(events.receive)


@pytest.fixture
def idle_in_transaction() -> Iterator[Events]:
    with events_of(signals.idle_in_transaction_detected) as events:
        yield events


@pytest.fixture
def held_too_long() -> Iterator[Events]:
    with events_of(signals.connection_held_too_long) as events:
        yield events


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[Any]]:
    caplog.set_level("WARNING")
    return lambda: [record for record in caplog.records if record.name.startswith("conn_hygiene")]


# ##### Transactions that a request leaves open #####


@every_alias
@pytest.mark.parametrize("is_in_transaction", [False, True])
def test_a_statement_that_a_time_limit_interrupts_is_no_transaction(
    alias: str, is_in_transaction: bool, warnings: Callable[[], list[Any]]
) -> None:
    """As Celery's ``soft_time_limit``, by a signal handler."""

    def interrupt(*args: Any) -> None:
        raise LookupError("out of time")

    before, left = signal.signal(signal.SIGALRM, interrupt), conn_hygiene.stats().left_open
    try:
        with conn_hygiene.closing_connections():
            if is_in_transaction:
                with connections[alias].cursor() as cursor:
                    cursor.execute("BEGIN")
            connections[alias].ensure_connection()
            # The server goes on for a while, as it does then.
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(LookupError, match="out of time"), connections[alias].cursor() as cursor:
                cursor.execute("SELECT pg_sleep(0.5)")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    wait_until_told()
    assert conn_hygiene.stats().left_open - left == is_in_transaction
    assert len(warnings()) == is_in_transaction


@every_server
@every_way
@every_alias
def test_a_transaction_that_a_request_leaves_open_is_rolled_back_and_reported(
    get: Any, way: str, alias: str, warnings: Any, idle_in_transaction: Events
) -> None:
    if get is asgi and way == "generator":
        pytest.skip("Its thread is gone, and any other that ends the generator is refused the connection.")
    left = json.loads(get(f"/leave-open/{way}/{alias}/"))
    urls.forgotten.clear()

    assert left["writing"] is True
    (record,) = warnings()
    label = f"GET /leave-open/{way}/{alias}/"
    began = f"{urls.__file__}:"
    found = f"{label} left a transaction open on {alias!r} (server pid {left['pid']}); it is rolled back."
    assert record.getMessage().startswith(f"{found} It began at {began}")
    assert (record.name, record.levelname) == ("conn_hygiene.transactions", "WARNING")
    assert (record.alias, record.request, record.server_pid) == (alias, label, left["pid"])
    (event,) = idle_in_transaction
    assert event.pop("where_began").startswith(began)
    assert event.pop("open_for") >= event.pop("idle_for") >= 0
    assert event.pop("statement").startswith("SELECT pg_backend_pid()")
    assert event.pop("thread_name")
    assert event == {
        "alias": alias,
        "request": label,
        "server_pid": left["pid"],
        "thread_id": left["thread"],
        "where_now": None,
        "stack_began": None,
        "stack_now": None,
        "by_atomic_requests": False,
        "action": "rollback",
    }
    # The next request of that thread finds everything as it should be.
    next_one = json.loads(get(f"/commit/{alias}/"))
    assert next_one["writing"] is False
    assert next_one["autocommit"] is True
    assert [item.name for item in Item.objects.using(alias).all()] == ["kept"]
    assert len(warnings()) == 1


@pytest.mark.parametrize("url", ["leave-open-async", "leave-open-while-streaming"])
@every_server
def test_so_is_one_of_an_async_view_and_of_a_streaming_body(get: Any, url: str, warnings: Any) -> None:
    if get is asgi and "streaming" in url:
        with pytest.warns(Warning, match="must consume synchronous"):
            get(f"/{url}/begin/default/")
    else:
        get(f"/{url}/begin/default/")
    (record,) = warnings()
    assert record.request == f"GET /{url}/begin/default/"
    assert not Item.objects.exists()


@pytest.mark.parametrize("get", [wsgi, asgi])
@pytest.mark.filterwarnings("ignore")
def test_so_is_one_of_a_view_that_fails(get: Any, warnings: Any) -> None:
    assert b"Server Error" in get("/leave-open-and-fail/begin/default/")
    assert len(warnings()) == 1
    assert not Item.objects.exists()


@every_server
@every_alias
def test_a_connection_that_was_closed_inside_atomic_does_not_spoil_the_thread(
    get: Any, alias: str, warnings: Any
) -> None:
    get(f"/close-inside-atomic/{alias}/")
    assert len(warnings()) == 1
    assert json.loads(get(f"/commit/{alias}/"))["autocommit"] is True
    assert [item.name for item in Item.objects.using(alias).all()] == ["kept"]


@every_server
@every_alias
def test_a_tidy_request_is_not_reported(get: Any, alias: str, warnings: Any, idle_in_transaction: Events) -> None:
    get(f"/commit/{alias}/")
    assert warnings() == []
    assert idle_in_transaction == []
    assert Item.objects.using(alias).count() == 1


def test_a_session_that_is_gone_is_no_reason_to_fail(
    admin: psycopg.Connection, warnings: Any, idle_in_transaction: Events
) -> None:
    environ = RequestFactory().get("/leave-open/atomic/default/").environ
    response: Any = get_wsgi_application()(environ, start_response)
    pid = json.loads(b"".join(response))["pid"]
    admin.execute("SELECT pg_terminate_backend(%s)", [pid])
    wait_until(lambda: not is_there(admin, pid), "the session has ended")
    response.close()
    assert [event["server_pid"] for event in idle_in_transaction] == [pid]
    assert json.loads(wsgi("/commit/default/"))["autocommit"] is True


def is_there(admin: psycopg.Connection, pid: int) -> bool:
    return admin.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone() is not None


@every_alias
def test_transactions_from_before_the_request_are_none_of_its_business(
    alias: str, warnings: Any, idle_in_transaction: Events
) -> None:
    with transaction.atomic(using=alias):
        Item.objects.using(alias).create(name="kept")
        client(f"/commit/{alias}/")
        assert connections[alias].in_atomic_block
    transaction.set_autocommit(False, using=alias)
    Item.objects.using(alias).create(name="kept")
    client(f"/look/{alias}/")
    transaction.commit(using=alias)
    transaction.set_autocommit(True, using=alias)
    assert warnings() == []
    assert idle_in_transaction == []


@pytest.mark.django_db(databases=["default", "unpooled", "persistent"])
def test_the_transaction_of_a_test_case_survives_its_requests(warnings: Any) -> None:
    assert connection.in_atomic_block
    Item.objects.create(name="mine")
    client("/commit/default/")
    assert Item.objects.count() == 2
    assert warnings() == []


def test_the_end_of_a_request_that_never_began_is_no_reason_to_roll_back(warnings: Any) -> None:
    client("/look/default/")
    with transaction.atomic():
        Item.objects.create(name="kept")
        left_open.request_finished()
    assert Item.objects.get().name == "kept"
    assert warnings() == []


def test_a_failing_receiver_is_logged_and_stops_nobody(
    idle_in_transaction: Events, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**kwargs: Any) -> None:
        raise LookupError("the receiver's own")

    signals.idle_in_transaction_detected.connect(fail)
    try:
        wsgi("/leave-open/begin/default/")
    finally:
        signals.idle_in_transaction_detected.disconnect(fail)
    assert len(idle_in_transaction) == 1
    assert "A receiver of a conn_hygiene signal failed" in caplog.text
    assert "the receiver's own" in caplog.text
    wsgi("/commit/default/")


# ##### Transactions that are closed in the middle #####


def write(alias: str) -> None:
    Item.objects.using(alias).create(name="lost")


def fail(alias: str) -> None:
    with pytest.raises(DataError):
        Item.objects.using(alias).extra(select={"n": "1 / 0"}).first()


def close(alias: str) -> None:
    connections[alias].close()


def close_in_the_middle(alias: str, close: Callable[[], object], work: Callable[[str], object] = write) -> None:
    with transaction.atomic(alias):
        work(alias)
        close()


@pytest.mark.parametrize("cleans", ["always", "auto"])
@pytest.mark.parametrize("work", [write, fail])
@every_alias
def test_a_close_in_the_middle_of_atomic_is_told_of_once(
    cleans: str, work: Any, alias: str, settings: Any, caplog: pytest.LogCaptureFixture, idle_in_transaction: Events
) -> None:
    settings.CONN_HYGIENE = {"CLEAN_SESSIONS": cleans}
    caplog.set_level("WARNING")
    close_in_the_middle(alias, partial(close, alias), work)
    # As after it, when nothing is open any more.
    connections[alias].close()
    wait_until_told()

    (record,) = caplog.records
    found, _, began = record.getMessage().partition(" It began at ")
    place = f"{__file__}:{close.__code__.co_firstlineno + 1} in close"
    assert found.startswith(f"A close() at {place} left a transaction open on {alias!r} (server pid ")
    assert found.endswith("; it is rolled back.")
    assert began.startswith(f"{__file__}:{close_in_the_middle.__code__.co_firstlineno + 1} in close_in_the_middle")
    assert record.name == "conn_hygiene.transactions"
    (event,) = idle_in_transaction
    assert event["action"] == "rollback"
    assert not Item.objects.exists()


def test_so_is_one_by_close_old_connections(warnings: Any) -> None:
    close_in_the_middle("default", close_old_connections)
    (record,) = warnings()
    assert " in close_in_the_middle left a transaction open on 'default'" in record.getMessage()


def test_a_close_is_not_told_of_where_nothing_is_lost(warnings: Any) -> None:
    # Nothing has run in the first, and the second has been dropped on purpose.
    close_in_the_middle("default", partial(close, "default"), lambda alias: None)
    close_in_the_middle("default", conn_hygiene.reset_connections)
    write("default")
    connection.close()
    assert not warnings()


# ##### Session state that a request leaves behind #####

FUNCTION = """
CREATE OR REPLACE FUNCTION set_name() RETURNS void LANGUAGE plpgsql AS
$$ BEGIN PERFORM set_config('application_name', 'left', false); END $$
"""


@every_server
@every_alias
@pytest.mark.parametrize(
    ("statement", "look"),
    [
        ("SET application_name = 'left'", "SELECT current_setting('application_name') = 'left'"),
        ("SET statement_timeout = '77s'", "SELECT current_setting('statement_timeout') = '77s'"),
        ("SELECT set_name()", "SELECT current_setting('application_name') = 'left'"),
        ("CREATE TEMP TABLE left_over ()", "SELECT to_regclass('left_over') IS NOT NULL"),
        ("LISTEN left_over", "SELECT count(*) > 0 FROM pg_listening_channels()"),
        ("SELECT pg_advisory_lock(7)", "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory'"),
        ("SET ROLE pg_monitor", "SELECT current_user = 'pg_monitor'"),
        ("SET search_path = pg_catalog", "SELECT current_setting('search_path') = 'pg_catalog'"),
    ],
)
def test_the_next_request_sees_nothing_of_it(get: Any, alias: str, statement: str, look: str) -> None:
    if get is client and alias != "persistent":
        pytest.skip("The test client keeps Django from ending a connection with its request.")
    with connections[alias].cursor() as cursor:
        cursor.execute(FUNCTION)
    connections.close_all()

    def run(sql: str) -> Any:
        return json.loads(get(f"/run/{alias}/?{urlencode({'sql': sql})}"))["row"]

    run(statement)
    try:
        assert run(look) == [False]
    finally:
        # It would count for all that comes later: what functions may leave closes persistent connections.
        with connections[alias].cursor() as cursor:
            cursor.execute("DROP FUNCTION set_name()")


@pytest.mark.parametrize("get", [wsgi, client])
def test_a_persistent_connection_without_state_is_kept(get: Any) -> None:
    first, second = json.loads(get("/look/persistent/")), json.loads(get("/commit/persistent/"))
    assert first["pid"] == second["pid"]


# ##### A real WSGI server #####


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[tuple[httpx.Client, Callable[[], str]]]:
    """Start the site with one thread, and return a client and a function that gives the server's log."""
    parameters = connections["default"].get_connection_params()
    conninfo = make_conninfo("", **{key: parameters.get(key) for key in ("dbname", "user", "password", "host", "port")})
    environment = {**os.environ, "DATABASE_URL": conninfo, "DJANGO_SETTINGS_MODULE": "tests.webapp.settings"}
    log = tmp_path / "gunicorn.log"
    command = "gunicorn --worker-class gthread --threads 1 --bind 127.0.0.1:0 tests.webapp.wsgi"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            env=environment,
            cwd=Path(__file__).resolve().parent.parent,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until(lambda: re.search("Listening at: .*", log.read_text()) or process.poll(), "gunicorn listens", 30)
        listening = re.search(r"http://\S+", log.read_text())
        assert listening, log.read_text()
        with httpx.Client(base_url=listening[0], timeout=30) as http:
            yield http, log.read_text
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_requests_of_one_thread_under_gunicorn_do_not_spoil_each_other(gunicorn: Any) -> None:
    http, log = gunicorn
    for alias in ("default", "unpooled", "persistent"):
        threads = set()
        for way in urls.WAYS:
            left = http.get(f"/leave-open/{way}/{alias}/").json()
            assert left["writing"] is True
            after = http.get(f"/look/{alias}/").json()
            assert (after["writing"], after["autocommit"]) == (False, True)
            threads |= {left["thread"], after["thread"]}
            line = f"GET /leave-open/{way}/{alias}/ left a transaction open on {alias!r} (server pid {left['pid']})"
            assert line in log()
        assert len(threads) == 1
        http.get(f"/run/{alias}/", params={"sql": "SET application_name = 'left'"})
        assert http.get(f"/run/{alias}/", params={"sql": "SHOW application_name"}).json()["row"] == [""]
    assert not Item.objects.exists()
    assert http.get("/snapshot/").json()["held"] in ([], ["persistent"])


# ##### What the reaper reports #####


@pytest.fixture
def watching(settings: Any) -> Callable[..., None]:
    def watch(**values: Any) -> None:
        settings.CONN_HYGIENE = {"IDLE_IN_TRANSACTION_AFTER": None, "HELD_TOO_LONG_AFTER": None, **values}
        connections.close_all()

    return watch


def query(alias: str = "default", sql: str = "SELECT 1") -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)


def pid_of(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


@contextmanager
def atomic(alias: str) -> Iterator[None]:
    with transaction.atomic(using=alias):
        query(alias)
        yield


@contextmanager
def manual_transaction(alias: str) -> Iterator[None]:
    transaction.set_autocommit(False, using=alias)
    query(alias)
    yield
    transaction.rollback(using=alias)
    transaction.set_autocommit(True, using=alias)


@contextmanager
def literal_begin(alias: str) -> Iterator[None]:
    query(alias, "BEGIN")
    yield
    query(alias, "ROLLBACK")


@every_alias
@pytest.mark.parametrize("begun", [atomic, manual_transaction, literal_begin])
def test_a_transaction_that_sits_idle_is_reported(
    begun: Any, alias: str, watching: Any, warnings: Any, idle_in_transaction: Events
) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.05)
    with begun(alias):
        wait_until(lambda: idle_in_transaction, "it is reported")
        pid = pid_of(alias)
    event = idle_in_transaction[0]
    assert event.pop("open_for") >= event.pop("idle_for") >= 0.05
    assert event.pop("where_began").startswith(f"{__file__}:")
    assert event.pop("where_now").endswith(" in wait_until")
    assert event.pop("statement") is not None
    assert event == {
        "alias": alias,
        "request": None,
        "server_pid": pid,
        "thread_id": threading.get_ident(),
        "thread_name": threading.current_thread().name,
        "stack_began": None,
        "stack_now": None,
        "by_atomic_requests": False,
        "action": "log",
    }
    record = warnings()[0]
    assert record.name == "conn_hygiene.transactions"
    assert f"on {alias!r} (server pid {pid}) has been idle for 0." in record.getMessage()
    assert (record.alias, record.server_pid, record.action) == (alias, pid, "log")


def test_it_is_reported_again_whenever_it_is_twice_as_old(watching: Any, idle_in_transaction: Events) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.02)
    with atomic("default"):
        wait_until(lambda: len(idle_in_transaction) >= 4, "it is reported four times")
    ages = [event["idle_for"] for event in idle_in_transaction]
    assert all(later >= 2 * earlier for earlier, later in pairwise(ages))


def test_a_path_that_would_write_into_the_log_or_on_a_terminal_is_made_harmless(monkeypatch: Any) -> None:
    def look(alias: str) -> None:
        query(alias)
        labels.extend(info.request for info in conn_hygiene.snapshot())

    labels: list[str | None] = []
    monkeypatch.setitem(urls.WAYS, "wait\nERROR \x1b[2J", look)
    wsgi("/leave-open/wait%0AERROR%20%1B%5B2J/default/")
    [label] = labels
    assert label is not None
    assert "/leave-open/wait" in label
    assert label.isprintable()


def test_the_report_names_the_request(watching: Any, idle_in_transaction: Events, monkeypatch: Any) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.05)

    def wait(alias: str) -> None:
        with atomic(alias):
            wait_until(lambda: idle_in_transaction, "it is reported")

    monkeypatch.setitem(urls.WAYS, "wait", wait)
    wsgi("/leave-open/wait/default/")
    assert {event["request"] for event in idle_in_transaction} == {"GET /leave-open/wait/default/"}


@every_alias
def test_a_persistent_connection_is_reported_under_the_request_that_it_serves_now(
    alias: str, watching: Any, idle_in_transaction: Events, monkeypatch: Any
) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.05)

    def wait(alias: str) -> None:
        with atomic(alias):
            wait_until(lambda: idle_in_transaction, "it is reported")

    monkeypatch.setitem(urls.WAYS, "wait", wait)
    wsgi(f"/commit/{alias}/")
    wsgi(f"/leave-open/wait/{alias}/")
    assert {event["request"] for event in idle_in_transaction} == {f"GET /leave-open/wait/{alias}/"}
    idle_in_transaction.clear()
    wait(alias)
    assert {event["request"] for event in idle_in_transaction} == {None}


def test_what_is_not_idle_is_not_reported(watching: Any, idle_in_transaction: Events, held_too_long: Events) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.05, HELD_TOO_LONG_AFTER=0.05)
    is_locked = threading.Event()

    def idle_elsewhere() -> None:
        with atomic("default"):
            query("default", "SELECT pg_advisory_xact_lock(1)")
            is_locked.set()
            wait_until(lambda: len(idle_in_transaction) >= 2, "the other transaction is reported")

    other = threading.Thread(target=conn_hygiene.closing_connections(idle_elsewhere))
    other.start()
    is_locked.wait(60)
    with transaction.atomic(), connections["default"].cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(1)")
    other.join()
    assert threading.get_ident() not in {event["thread_id"] for event in [*idle_in_transaction, *held_too_long]}


def test_limits_of_none_report_nothing(watching: Any, idle_in_transaction: Events, held_too_long: Events) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=None, HELD_TOO_LONG_AFTER=0.05)
    with atomic("unpooled"), hold_connection():
        query("default")
        wait_until(lambda: len(held_too_long) >= 2, "the other connection is reported")
    assert idle_in_transaction == []
    watching(IDLE_IN_TRANSACTION_AFTER=0.05, HELD_TOO_LONG_AFTER=None)
    held_too_long.clear()
    with atomic("unpooled"), hold_connection():
        query("default")
        wait_until(lambda: len(idle_in_transaction) >= 2, "the other connection is reported")
    assert held_too_long == []


@every_alias
@pytest.mark.parametrize("action", ["log", "terminate"])
def test_a_transaction_in_which_nothing_has_run_is_held_and_not_idle_in(
    action: str, alias: str, watching: Any, idle_in_transaction: Events, held_too_long: Events, monkeypatch: Any
) -> None:
    """The server has heard nothing of it: psycopg begins it with its first statement."""
    watching(IDLE_IN_TRANSACTION_AFTER=0.05, IDLE_IN_TRANSACTION_ACTION=action, HELD_TOO_LONG_AFTER=0.05)
    infos: list[Any] = []

    def untouched(alias: str) -> None:
        wait_until(lambda: len(held_too_long) >= 3, "it is reported three times")
        infos.extend(conn_hygiene.snapshot())
        assert pid_of(alias) == infos[0].server_pid

    monkeypatch.setitem(connections[alias].settings_dict, "ATOMIC_REQUESTS", True)
    monkeypatch.setitem(urls.WAYS, "wait", untouched)
    before = conn_hygiene.stats().idle_in_transaction
    wsgi(f"/leave-open/wait/{alias}/")
    [info] = infos
    kept = "ATOMIC_REQUESTS has opened a transaction in which nothing has run"
    assert (info.in_transaction, info.kept_because) == (True, kept)
    said = {(event["server_pid"], event["action"], event["kept_because"]) for event in held_too_long}
    assert said == {(info.server_pid, "log", kept)}
    assert {event["where_began"] for event in held_too_long} == {info.where_began}
    assert (idle_in_transaction, conn_hygiene.stats().idle_in_transaction) == ([], before)


def test_as_soon_as_a_statement_has_run_in_it_it_is_idle_in(
    watching: Any, warnings: Any, idle_in_transaction: Events, held_too_long: Events
) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.05, HELD_TOO_LONG_AFTER=0.05)
    with transaction.atomic(), hold_connection():
        wait_until(lambda: held_too_long, "it is reported as held")
        assert idle_in_transaction == []
        query()
        wait_until(lambda: idle_in_transaction, "it is reported as idle in its transaction")
        [info] = conn_hygiene.snapshot()
    assert info.kept_because is None
    assert idle_in_transaction[0]["where_began"] == held_too_long[0]["where_began"] == info.where_began
    kept = "hold_connection is around and a transaction is open in which nothing has run"
    text = next(record.getMessage() for record in warnings() if record.name == "conn_hygiene.held")
    assert f" It is kept because {kept}. The transaction began at {__file__}:" in text


def test_with_autocommit_turned_off_by_hand_nothing_is_idle_before_a_statement_has_run(
    watching: Any, idle_in_transaction: Events, held_too_long: Events
) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.05, HELD_TOO_LONG_AFTER=0.05)
    transaction.set_autocommit(False)
    try:
        with conn_hygiene.release_between_queries():
            wait_until(lambda: len(held_too_long) >= 2, "it is reported as held")
        assert idle_in_transaction == []
        query()
        wait_until(lambda: idle_in_transaction, "it is reported as idle in its transaction")
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    said = {(event["action"], event["kept_because"]) for event in held_too_long}
    assert said == {("log", "a transaction is open in which nothing has run")}
    assert {event["where_began"] for event in held_too_long} == {idle_in_transaction[0]["where_began"]}


def test_one_that_is_over_before_its_cursor_closes_keeps_nothing() -> None:
    with transaction.atomic():
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
    with cursor:
        [info] = conn_hygiene.snapshot()
    assert (info.where_began, info.kept_because) == (None, "a cursor is open")


def test_nor_is_what_the_server_has_ended_before_anything_has_run_in_it(
    watching: Any, idle_in_transaction: Events, held_too_long: Events, admin: psycopg.Connection
) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.05, HELD_TOO_LONG_AFTER=0.05)

    def untouched() -> None:
        with transaction.atomic():
            [info] = conn_hygiene.snapshot()
            admin.execute("SELECT pg_terminate_backend(%s, 10000)", [info.server_pid])
            wait_until(lambda: len(held_too_long) >= 2, "it is reported as held")
            query()

    with pytest.raises(OperationalError, match="terminating connection due to administrator command"):
        untouched()
    assert idle_in_transaction == []


@every_alias
@pytest.mark.parametrize("begun", [atomic, manual_transaction, literal_begin])
def test_a_session_that_sits_idle_in_a_transaction_is_ended_if_so_wished(
    begun: Any,
    alias: str,
    watching: Any,
    admin: psycopg.Connection,
    idle_in_transaction: Events,
    pool_of: Callable[[str], ConnectionPool],
) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.1, IDLE_IN_TRANSACTION_ACTION="terminate")

    def forget_about_it() -> None:
        with begun(alias):
            Item.objects.using(alias).create(name="never")
            wait_until(lambda: idle_in_transaction, "it is reported")
            pid = idle_in_transaction[0]["server_pid"]
            wait_until(lambda: not is_there(admin, pid), "the server has ended it")
            Item.objects.using(alias).create(name="never")

    with pytest.raises(OperationalError, match=r"conn_hygiene ended this session\. .* has been idle for 0\.\d s"):
        forget_about_it()
    assert [event["action"] for event in idle_in_transaction] == ["terminate"]
    connections[alias].close()
    assert not Item.objects.using(alias).exists()
    query(alias)
    connections[alias].close()
    pool = pool_of("default")
    wait_until(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"], "the pool is whole")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOTCONN])
def test_one_that_cannot_be_ended_is_not_said_to_be_and_keeps_nobody_from_the_rest(
    number: int, watching: Any, idle_in_transaction: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.1, IDLE_IN_TRANSACTION_ACTION="terminate")
    failed: list[int] = []
    real = os.dup

    def dup(descriptor: int) -> int:
        if not failed:
            failed.append(descriptor)
            raise OSError(number, os.strerror(number))
        return real(descriptor)

    monkeypatch.setattr(ended, "os", SimpleNamespace(dup=dup))
    query("default")
    lease = lease_of(connections["default"])
    assert lease is not None
    with pytest.raises(OperationalError, match="conn_hygiene ended this session"), atomic("default"):  # noqa: PT012
        wait_until(lambda: failed, "it was tried")
        assert lease.ended_because is None
        wait_until(lambda: idle_in_transaction, "it is tried again")
        query("default")
    assert [event["action"] for event in idle_in_transaction] == ["terminate"]


def test_a_view_whose_session_was_ended_fails_alone(
    watching: Any, idle_in_transaction: Events, monkeypatch: Any
) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.1, IDLE_IN_TRANSACTION_ACTION="terminate")
    failures: list[BaseException] = []

    def wait(alias: str) -> None:
        try:
            with atomic(alias):
                Item.objects.using(alias).create(name="never")
                wait_until(lambda: idle_in_transaction, "it is reported")
                wait_until(lambda: fails(alias), "the socket is shut")
        except OperationalError as exc:
            failures.append(exc)

    monkeypatch.setitem(urls.WAYS, "wait", wait)
    for alias in ("default", "persistent"):
        idle_in_transaction.clear()
        wsgi(f"/leave-open/wait/{alias}/")
        assert json.loads(wsgi(f"/commit/{alias}/"))["autocommit"] is True
    assert {item.name for item in Item.objects.all()} == {"kept"}
    assert len(failures) == 2


def fails(alias: str) -> bool:
    query(alias)
    return False


# ##### Behind an open cursor #####


@contextmanager
def open_cursor(alias: str) -> Iterator[None]:
    with transaction.atomic(alias), connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        yield
        cursor.execute("SELECT 1")


@contextmanager
def iterated(alias: str) -> Iterator[None]:
    with transaction.atomic(alias):
        Item.objects.using(alias).bulk_create([Item(name=name) for name in "abc"])
        items = Item.objects.using(alias).iterator(chunk_size=1)
        next(items)
        yield
        list(items)


@every_alias
@pytest.mark.parametrize("begun", [open_cursor, iterated])
def test_a_transaction_that_sits_idle_behind_an_open_cursor_is_reported(
    begun: Any, alias: str, watching: Any, idle_in_transaction: Events
) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.05)
    with begun(alias):
        wait_until(lambda: idle_in_transaction, "it is reported")
    wait_until_told()
    assert idle_in_transaction[0]["idle_for"] >= 0.05
    assert idle_in_transaction[0]["where_began"].startswith(f"{__file__}:")


@pytest.mark.parametrize("begun", [open_cursor, iterated])
def test_and_is_ended_if_so_wished(begun: Any, watching: Any, idle_in_transaction: Events) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.1, IDLE_IN_TRANSACTION_ACTION="terminate")
    with pytest.raises(OperationalError, match="conn_hygiene ended this session"), begun("default"):
        wait_until(lambda: idle_in_transaction, "it is reported")
    connections["default"].close()
    assert not Item.objects.exists()


def test_who_works_behind_an_open_cursor_is_not_idle(watching: Any, idle_in_transaction: Events) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.2, IDLE_IN_TRANSACTION_ACTION="terminate")
    with transaction.atomic(), connection.cursor() as cursor:
        until = time.monotonic() + 0.8
        while time.monotonic() < until:
            # The same text each time.
            cursor.execute("SELECT pg_sleep(0.01)")
    wait_until_told()
    assert idle_in_transaction == []


def test_who_fetches_from_a_server_side_cursor_is_not_idle(watching: Any, idle_in_transaction: Events) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.2, IDLE_IN_TRANSACTION_ACTION="terminate")
    with transaction.atomic():
        Item.objects.bulk_create([Item(name=str(number)) for number in range(40)])
        for _ in Item.objects.iterator(chunk_size=1):
            time.sleep(0.02)
    wait_until_told()
    assert idle_in_transaction == []


def test_a_connection_that_is_held_behind_a_cursor_is_reported_and_stays(watching: Any, held_too_long: Events) -> None:
    watching(HELD_TOO_LONG_AFTER=0.05)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        wait_until(lambda: held_too_long, "it is reported")
        assert cursor.fetchone() == (1,)
    assert held_too_long[0]["action"] == "log"


# ##### When reports are made, and how often #####


def test_what_was_said_of_a_connection_does_not_silence_what_is_to_be_said_of_its_transaction(
    watching: Any, held_too_long: Events, idle_in_transaction: Events
) -> None:
    watching(HELD_TOO_LONG_AFTER=0.05, IDLE_IN_TRANSACTION_AFTER=0.05)
    query("default", "LISTEN left_open")
    # The next one of its kind is twice as far away each time.
    wait_until(lambda: held_too_long and held_too_long[-1]["idle_for"] > 0.7, "it is reported again and again")
    with atomic("default"):
        wait_until(lambda: idle_in_transaction, "the transaction is reported")
    assert idle_in_transaction[0]["idle_for"] < 0.7


def test_each_transaction_of_a_checkout_is_reported(watching: Any, idle_in_transaction: Events) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.05)

    def idle() -> None:
        idle_in_transaction.clear()
        with atomic("default"):
            wait_until(lambda: idle_in_transaction and idle_in_transaction[-1]["idle_for"] > 0.7, "it is reported")

    with hold_connection():
        idle()
        # By then, the next report of the first would be as far away.
        idle()
    assert idle_in_transaction[0]["idle_for"] < 0.7


def test_a_session_is_ended_at_the_limit_and_reported_and_counted_once(
    watching: Any, idle_in_transaction: Events
) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=1.0, IDLE_IN_TRANSACTION_ACTION="terminate")
    before = conn_hygiene.stats().idle_in_transaction
    with pytest.raises(OperationalError, match="conn_hygiene ended this session"), atomic("default"):  # noqa: PT012
        wait_until(lambda: idle_in_transaction, "it is reported")
        time.sleep(0.6)  # two more looks, which find what has ended
        query("default")
    connections["default"].close()
    wait_until_told()
    # A quarter later at most, and a moment for the machine.
    assert [1.0 <= event["idle_for"] < 1.45 for event in idle_in_transaction] == [True]
    assert conn_hygiene.stats().idle_in_transaction == before + 1


def test_what_was_reported_and_comes_back_after_all_is_told(
    watching: Any, held_too_long: Events, caplog: pytest.LogCaptureFixture
) -> None:
    watching(HELD_TOO_LONG_AFTER=0.2)
    back: list[CameBack] = []
    note = back.append
    listen(CameBack, note)
    try:
        with caplog.at_level("INFO", "conn_hygiene.held"):
            query("default", "LISTEN left_open")
            wait_until(lambda: held_too_long, "it is reported")
            connections["default"].close()
            # Nothing was said of this one.
            query("default")
            connections["default"].close()
    finally:
        unlisten(CameBack, note)
    (event,) = back
    assert (event.alias, event.reported_as, event.ended) == ("default", ("held too long",), False)
    assert event.held_for >= 0.2
    told = [record.getMessage() for record in caplog.records if "is back" in record.getMessage()]
    assert told == [
        f"Connection 'default' (server pid {event.server_pid}), which was reported as held too long, is back after "
        f"{event.held_for:.1f} s."
    ]


@pytest.mark.parametrize("by", ["the toolkit", "the server"])
@pytest.mark.parametrize("alias", ["default", "persistent"])
def test_what_was_reported_and_ended_is_not_said_to_be_back(
    by: str,
    alias: str,
    watching: Any,
    idle_in_transaction: Events,
    admin: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.2, IDLE_IN_TRANSACTION_ACTION="terminate" if by == "the toolkit" else "log")

    def wait_in_transaction() -> None:
        with transaction.atomic(alias):
            query(alias)
            wait_until(lambda: idle_in_transaction, "it is reported")
            pid = lease_of(connections[alias]).server_pid
            if by == "the server":
                end_sessions(admin, pid)
            query(alias)

    with caplog.at_level("INFO", "conn_hygiene.held"):
        with pytest.raises(OperationalError):
            wait_in_transaction()
        connections[alias].close()
    [told] = [record.getMessage() for record in caplog.records if record.name == "conn_hygiene.held"]
    assert "which was reported as idle in transaction, was ended after " in told


class WritingHandler(logging.Handler):
    """Writes each record into the database."""

    def emit(self, record: logging.LogRecord) -> None:
        Item.objects.create(name=record.getMessage()[:20])


def test_what_is_said_of_a_request_is_not_rolled_back_with_its_transaction(warnings: Any) -> None:
    handler = WritingHandler()
    logger = logging.getLogger("conn_hygiene.transactions")
    logger.addHandler(handler)
    try:
        wsgi("/leave-open/atomic/default/")
    finally:
        logger.removeHandler(handler)
        connections["default"].close()
    assert [item.name for item in Item.objects.all()] == ["GET /leave-open/atom"]


def test_a_statement_on_a_raw_handle_is_not_idle(watching: Any, idle_in_transaction: Events) -> None:
    watching(IDLE_IN_TRANSACTION_AFTER=0.05, IDLE_IN_TRANSACTION_ACTION="terminate")
    with transaction.atomic():
        handle: Any = connection.connection
        # Long enough for the reaper to look several times.
        handle.execute("SELECT pg_sleep(0.3)")
        assert handle.execute("SELECT 1").fetchone() == (1,)
    assert idle_in_transaction == []


#: What pins a connection, and what else keeps it.
Kept = tuple[tuple[str, ...], str | None]


@contextmanager
def raw_handle(alias: str) -> Iterator[Kept]:
    connections[alias].ensure_connection()
    handle: Any = connections[alias].connection
    handle.execute("SELECT 1")
    yield (), "its handle was read"


@contextmanager
def pinned(alias: str) -> Iterator[Kept]:
    query(alias, "LISTEN mine")
    yield ("LISTEN",), None


@contextmanager
def held(alias: str) -> Iterator[Kept]:
    with hold_connection():
        query(alias)
        yield (), "hold_connection is around"


@contextmanager
def pinned_and_held_behind_a_cursor(alias: str) -> Iterator[Kept]:
    with hold_connection(), connections[alias].cursor() as cursor:
        cursor.execute("LISTEN mine")
        yield ("LISTEN",), "a cursor is open and hold_connection is around"


@contextmanager
def shared(alias: str) -> Iterator[Kept]:
    connections[alias].inc_thread_sharing()
    try:
        query(alias)
        yield (), "it is shared between threads"
    finally:
        connections[alias].dec_thread_sharing()


@pytest.mark.parametrize("keep", [raw_handle, pinned, held, pinned_and_held_behind_a_cursor, shared])
def test_a_connection_that_is_held_without_use_is_reported_with_what_keeps_it(
    keep: Any, watching: Any, warnings: Any, held_too_long: Events
) -> None:
    watching(HELD_TOO_LONG_AFTER=0.05)
    with conn_hygiene.release_between_queries(), keep("default") as (reasons, kept):
        wait_until(lambda: len(held_too_long) >= 3, "it is reported three times")
        [info] = conn_hygiene.snapshot()
        pid = pid_of("default")
    ages = [event.pop("idle_for") for event in held_too_long]
    assert all(later >= 2 * earlier >= 0.1 for earlier, later in pairwise(ages))
    event = held_too_long[0]
    assert event.pop("held_for") >= ages[0]
    assert event.pop("where_checked_out").startswith(f"{__file__}:")
    assert event.pop("where_now").endswith(" in wait_until")
    assert event.pop("statement")
    assert event == {
        "alias": "default",
        "request": None,
        "server_pid": pid,
        "thread_id": threading.get_ident(),
        "thread_name": threading.current_thread().name,
        "stack_checked_out": None,
        "stack_now": None,
        "pinned_by": reasons,
        "action": "log",
        "kept_because": kept,
        "where_began": None,
    }
    assert (tuple(info.pinned_by), info.kept_because) == (reasons, kept)
    (record, *_) = [record for record in warnings() if record.name == "conn_hygiene.held"]
    text = record.getMessage()
    assert f"on 'default' (server pid {pid}) has been held for" in text
    assert (f" It is pinned by LISTEN at {__file__}" in text) == bool(reasons)
    assert text.count(" It is kept because ") == bool(kept)
    assert kept is None or f" It is kept because {kept}. Its last statement was: " in text


@pytest.mark.parametrize(
    ("alias", "values", "kept"),
    [
        ("default", {}, "no release scope is around"),
        ("default", {"RELEASE": "never"}, 'RELEASE is "never"'),
        ("unpooled", {"RELEASE": "always", "UNPOOLED_RELEASE_AFTER": None}, "UNPOOLED_RELEASE_AFTER is None"),
    ],
)
def test_what_nobody_gives_back_is_said_to_be_kept_for_that(
    alias: str, values: Any, kept: str, watching: Any, held_too_long: Events, monkeypatch: Any
) -> None:
    def wait(alias: str) -> None:
        query(alias)
        wait_until(lambda: held_too_long, "it is reported")
        assert [info.kept_because for info in conn_hygiene.snapshot() if info.alias == alias] == [kept]

    monkeypatch.setitem(urls.WAYS, "wait", wait)
    watching(HELD_TOO_LONG_AFTER=0.05, **values)
    # Without a pool, it is told of what a request keeps.
    wsgi(f"/leave-open/wait/{alias}/")
    assert {event["kept_because"] for event in held_too_long} == {kept}


def test_what_is_about_to_go_back_is_kept_by_nothing(watching: Any) -> None:
    watching(RELEASE_AFTER=600)
    with conn_hygiene.release_between_queries():
        query("default")
        [inside] = conn_hygiene.snapshot()
    [outside] = conn_hygiene.snapshot()
    assert [(info.state, info.kept_because) for info in (inside, outside)] == [("idle", None)] * 2
    # Nor is what keeps a transaction told twice.
    with atomic("default"), hold_connection():
        [info] = conn_hygiene.snapshot()
    assert (info.in_transaction, info.kept_because) == (True, None)


def test_a_persistent_connection_between_two_requests_is_not_held_too_long(
    watching: Any, held_too_long: Events
) -> None:
    watching(HELD_TOO_LONG_AFTER=0.05)
    wsgi("/commit/persistent/")
    assert holds("persistent")
    wait_until_told()
    held_too_long.clear()  # of the request itself, where the machine is slow
    with hold_connection():
        query("default")
        wait_until(lambda: len(held_too_long) >= 2, "the other connection is reported")
    assert {event["alias"] for event in held_too_long} == {"default"}
