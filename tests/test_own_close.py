"""Backends that have a ``close()`` of their own: leased like any other, and called exactly when Django would."""

from __future__ import annotations

import functools
import importlib
import io
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import call_command
from django.core.signals import request_finished, request_started
from django.db import DatabaseError, connections, transaction
from django.db.backends.base import base as django_base
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper as PostgreSQLWrapper
from django.db.backends.signals import connection_created

import conn_hygiene
from conn_hygiene import (
    close_all_before_fork,
    closing_connections,
    events,
    hold_connection,
    release_between_queries,
    reset_connections,
)
from conn_hygiene.leases.wrapper import lease_of
from conn_hygiene.pools import backends
from conn_hygiene.server import checks
from tests.tenant_backend import base
from tests.tenant_backend.base import counted
from tests.test_forks import in_child, remade
from tests.waiting import holds, let_the_reaper_look, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "sqlite"])

ALIAS = "unpooled"
POOL = {"min_size": 1, "max_size": 1, "timeout": 5}
SETTINGS: dict[str, Any] = {"RELEASE": "always", "RELEASE_AFTER": 0, "UNPOOLED_RELEASE_AFTER": 0}


@pytest.fixture(params=[{}, {"pool": POOL}], ids=["unpooled", "pooled"])
def tenants(request: pytest.FixtureRequest, settings: Any) -> Iterator[Any]:
    """Return the running thread's wrapper of an alias on the tenants' backend; what is idle is given back at once."""
    settings.CONN_HYGIENE = SETTINGS
    options = connections.settings[ALIAS]["OPTIONS"] | request.param
    with remade(ALIAS, ENGINE="tests.tenant_backend", OPTIONS=options):
        wrapper: Any = connections[ALIAS]
        counted.clear()
        yield wrapper
        wrapper.close()
        if request.param:
            wrapper.close_pool()


@pytest.fixture(params=[False, True], ids=["without the toolkit", "with it"])
def either_way(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Run the test without and with the toolkit: both must come to the same."""
    if not request.param:
        connections.close_all()
        conn_hygiene.uninstall()
    yield request.param
    if not request.param:
        connections.close_all()
        conn_hygiene.install()


def query(sql: str = "SELECT 1") -> Any:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def query_and_release() -> None:
    assert query() == 1
    if lease_of(connections[ALIAS]) is not None:
        wait_until_released(ALIAS)


# ##### When it is called #####


def of_a_request_that_has_given_back() -> None:
    request_started.send(sender=None)
    query_and_release()
    request_finished.send(sender=None)


def of_a_request_that_holds() -> None:
    request_started.send(sender=None)
    with hold_connection():
        query()
        request_finished.send(sender=None)


def of_a_request_that_leaves_a_transaction_open() -> None:
    request_started.send(sender=None)
    query("BEGIN")
    request_finished.send(sender=None)


def of_the_application() -> None:
    query_and_release()
    connections[ALIAS].close()
    connections[ALIAS].close()


def of_a_thread_that_closes() -> None:
    def target() -> None:
        closing_connections(query_and_release)()

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()


def of_a_job_inside_of_another() -> None:
    query_and_release()
    closing_connections(query)()


def of_a_reset() -> None:
    query_and_release()
    reset_connections(ALIAS)


def of_a_fork_that_is_prepared() -> None:
    query_and_release()
    close_all_before_fork()


def of_nothing_but_releases() -> None:
    for _ in range(3):
        query_and_release()
        with transaction.atomic(using=ALIAS):
            query()
        with hold_connection():
            query("CREATE TEMP TABLE held (n int)")
            query("DROP TABLE held")


def of_another_thread() -> None:
    query_and_release()
    wrapper, refused = connections[ALIAS], []

    def close() -> None:
        try:
            wrapper.close()
        except DatabaseError as error:
            refused.append(str(error))

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert len(refused) == 1


def of_a_transaction_whose_connection_is_closed() -> None:
    with transaction.atomic(using=ALIAS):
        query()
        connections[ALIAS].close()


CALLS: dict[Callable[[], None], int] = {
    of_a_request_that_has_given_back: 1,
    of_a_request_that_holds: 1,
    of_a_request_that_leaves_a_transaction_open: 1,
    of_the_application: 2,
    of_a_thread_that_closes: 1,
    of_a_job_inside_of_another: 0,
    of_a_reset: 1,
    of_a_fork_that_is_prepared: 1,
    of_nothing_but_releases: 0,
    of_another_thread: 1,
    of_a_transaction_whose_connection_is_closed: 1,
}


@pytest.mark.parametrize("scenario", CALLS, ids=[each.__name__.removeprefix("of_") for each in CALLS])
def test_it_is_called_as_often_as_without_the_toolkit(
    scenario: Callable[[], None], tenants: Any, either_way: bool
) -> None:
    releases = conn_hygiene.stats().releases
    counted.clear()
    scenario()
    assert counted["closed"] == CALLS[scenario]
    assert (lease_of(connections[ALIAS]) is not None) <= either_way
    if scenario in (of_a_request_that_has_given_back, of_nothing_but_releases):
        assert (conn_hygiene.stats().releases > releases) == either_way


def test_what_was_given_back_is_closed_by_it(tenants: Any) -> None:
    query_and_release()
    assert tenants.believed == "acme"
    tenants.close()
    assert (tenants.believed, tenants.connection) == (None, None)
    assert query("SHOW search_path") == "acme, public"


def test_a_request_begins_as_it_would_in_a_new_thread(tenants: Any) -> None:
    tenants.schema = "other"
    of_a_request_that_has_given_back()
    assert (tenants.believed, holds(ALIAS)) == (None, False)
    assert query("SHOW search_path") == "other, public"


# ##### When a session ends that nobody closes #####


def test_a_thread_that_ends_calls_nobody_as_without_the_toolkit(tenants: Any) -> None:
    def hold() -> None:
        hold_connection().__enter__()
        query()

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    wait_until_released(ALIAS)
    assert (counted["set"], counted["closed"]) == (1, 0)


@pytest.mark.parametrize("tenants", [{"pool": POOL}], ids=["pooled"], indirect=True)
def test_a_broken_session_is_replaced_by_one_that_is_set_up(
    tenants: Any, admin: psycopg.Connection, settings: Any
) -> None:
    # As if the pool had set it: the session carries nothing that would be missed.
    tenants.believed = "acme"
    settings.CONN_HYGIENE = SETTINGS | {"RELEASE_AFTER": 60}
    pid = query("SELECT pg_backend_pid()")
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    lease_of(tenants).idle_since -= 1
    assert query("SHOW search_path") == "acme, public"
    assert (counted["closed"], counted["set"]) == (1, 1)


def test_a_child_sets_its_own_sessions_up(tenants: Any) -> None:
    with hold_connection():
        query()

        def child() -> Any:
            closed = counted["closed"]
            return closed, tenants.believed, query("SHOW search_path")

        assert in_child(child) == (1, None, "acme, public")
        assert (counted["closed"], query("SHOW search_path")) == (0, "acme, public")


def test_a_close_that_fails_harms_no_child(tenants: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def close(self: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(base.DatabaseWrapper, "close", close)
    monkeypatch.setattr(backends, "_goes_on_to_super", lambda cls: True)
    query_and_release()
    assert in_child(query) == 1
    monkeypatch.undo()


def test_what_was_given_back_is_closed_when_the_toolkit_goes(tenants: Any) -> None:
    query_and_release()
    conn_hygiene.uninstall()
    try:
        assert (tenants.closed, tenants.believed) == (1, None)
        assert query("SHOW search_path") == "acme, public"
    finally:
        tenants.close()
        conn_hygiene.install()


def test_what_is_there_stays_when_the_toolkit_goes(tenants: Any) -> None:
    with hold_connection():
        query()
        conn_hygiene.uninstall()
    try:
        # Not counted[]: wrappers of threads that have ended, and not been collected yet, are closed here as well.
        assert (tenants.closed, tenants.believed) == (0, "acme")
        assert query("SHOW search_path") == "acme, public"
    finally:
        tenants.close()
        conn_hygiene.install()


def test_a_checkout_that_fails_half_way_closes_nothing(tenants: Any) -> None:
    transaction.set_autocommit(False, using=ALIAS)
    query()
    transaction.commit(using=ALIAS)
    wait_until_released(ALIAS)
    tenants.fails_to_turn_autocommit_off = True
    with pytest.raises(DatabaseError):
        query()
    assert counted["closed"] == 0
    tenants.fails_to_turn_autocommit_off = False
    assert query() == 1
    transaction.rollback(using=ALIAS)


@pytest.mark.parametrize("on_set", ["follow", "pin"])
def test_what_the_backend_has_set_is_there_after_a_hold(tenants: Any, on_set: str, settings: Any) -> None:
    settings.CONN_HYGIENE = SETTINGS | {"ON_SET": on_set}
    with hold_connection():
        query("CREATE TEMP TABLE held (n int)")
    # What pins would be gone with its session.
    assert holds(ALIAS) == (on_set == "pin")
    assert query("SHOW search_path") == "acme, public"
    assert (counted["set"], counted["closed"]) == (1, 0)


def test_what_the_backend_has_set_follows_from_session_to_session(tenants: Any) -> None:
    for _ in range(3):
        assert query("SHOW search_path") == "acme, public"
        wait_until_released(ALIAS)
    assert (counted["set"], counted["closed"]) == (1, 0)


def test_what_the_first_connection_of_the_process_is_set_to_is_seen(
    tenants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Django asks for the server's version then, and not again.
    monkeypatch.setattr(django_base, "RAN_DB_VERSION_CHECK", set())
    for _ in range(3):
        assert query("SHOW search_path") == "acme, public"
        wait_until_released(ALIAS)
    assert (counted["set"], counted["closed"]) == (1, 0)


@pytest.mark.parametrize("clean", ["seen", "always"])
@pytest.mark.parametrize("tenants", [{"pool": POOL}], ids=["pooled"], indirect=True)
def test_what_a_backend_sets_at_each_checkout_is_not_taken_for_the_pools(
    tenants: Any, clean: str, settings: Any, monkeypatch: pytest.MonkeyPatch, admin: psycopg.Connection
) -> None:
    settings.CONN_HYGIENE = SETTINGS | {"CLEAN_SESSIONS": clean}

    def get_new_connection(self: Any, conn_params: Any) -> Any:
        connection = super(base.DatabaseWrapper, self).get_new_connection(conn_params)
        with connection.cursor() as cursor:
            cursor.execute("SET application_name = 'acme'")
        return connection

    monkeypatch.setattr(base.DatabaseWrapper, "get_new_connection", get_new_connection, raising=False)
    pid = query("SELECT pg_backend_pid()")
    for _ in range(3):
        wait_until_released(ALIAS)
        [[name]] = admin.execute("SELECT application_name FROM pg_stat_activity WHERE pid = %s", [pid]).fetchall()
        assert name != "acme"
        assert query("SHOW application_name") == "acme"
        assert query("SELECT pg_backend_pid()") == pid


def test_with_persistent_connections_it_ends_with_its_request(tenants: Any) -> None:
    tenants.settings_dict["CONN_MAX_AGE"] = None if tenants.pool is None else 0
    of_a_request_that_has_given_back()
    assert (tenants.believed, counted["closed"]) == (None, 1)
    assert query("SHOW search_path") == "acme, public"


# ##### Who is left alone, and says so #####


@pytest.fixture
def left_alone(settings: Any) -> Iterator[Callable[[type[Any]], Any]]:
    """Return a function that has an alias on a backend, and returns its wrapper."""
    backends.reset()
    with pytest.MonkeyPatch.context() as patch, remade(ALIAS, ENGINE="tests.tenant_backend"):

        def with_backend(cls: type[Any]) -> Any:
            patch.setattr(base, "DatabaseWrapper", cls)
            return connections[ALIAS]

        yield with_backend
        connections[ALIAS].close()
    backends.reset()


NOT_GOING_ON = "close() of tests.tenant_backend.base.NotGoingOn does not call super().close(), as far as can be seen"
NOT_DJANGOS = "tests.tenant_backend.base.NotDjangosReturn replaces _close(), and with it the way back to the pool"
REFUSED = [(base.NotGoingOn, NOT_GOING_ON), (base.NotDjangosReturn, NOT_DJANGOS)]


@pytest.mark.parametrize(("cls", "reason"), REFUSED, ids=["close", "_close"])
def test_who_is_left_alone_says_so_once(
    left_alone: Callable[[type[Any]], Any], cls: type[Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrapper = left_alone(cls)
    for _ in range(2):
        with release_between_queries():
            assert query() == 1
            let_the_reaper_look()
        assert lease_of(wrapper) is None
        assert wrapper.connection is not None
        wrapper.close()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("conn_hygiene.lease", "WARNING")
    assert record.getMessage() == (
        f"Connections of 'unpooled' (tests.tenant_backend) are left alone, and none is given back: {reason}."
    )
    facts = {name: record.__dict__[name] for name in ("alias", "engine", "reason")}
    assert facts == {"alias": ALIAS, "engine": "tests.tenant_backend", "reason": reason}


@pytest.mark.parametrize("cls", [base.NotGoingOn, base.NotDjangosReturn], ids=["close", "_close"])
def test_whose_first_connect_fails_is_told_why_and_keeps_what_it_has(
    left_alone: Callable[[type[Any]], Any], cls: type[Any]
) -> None:
    wrapper = left_alone(cls)

    def refuse(**kwargs: Any) -> None:
        raise LookupError("not today")

    connection_created.connect(refuse)
    try:
        with pytest.raises(LookupError, match="not today"):
            query()
    finally:
        connection_created.disconnect(refuse)
    # As without the toolkit: it is for the backend to close it.
    assert not wrapper.connection.closed
    assert query() == 1


@pytest.mark.parametrize(("cls", "reason"), REFUSED, ids=["close", "_close"])
def test_the_check_and_the_doctor_tell_the_reason(
    left_alone: Callable[[type[Any]], Any], cls: type[Any], reason: str
) -> None:
    left_alone(cls)
    (message,) = checks.check_databases()
    assert (message.id, message.msg) == ("conn_hygiene.W011", f"DATABASES['unpooled'] is left alone: {reason}.")
    output = io.StringIO()
    call_command("connections", "doctor", "--database=unpooled", "--format=json", stdout=output)
    findings = {finding["id"]: finding for finding in json.loads(output.getvalue())["findings"]}
    assert (findings["left-alone"]["level"], findings["left-alone"]["aliases"]) == ("warning", [ALIAS])
    assert reason in findings["left-alone"]["why"]


class NotPsycopg:
    """What a backend may hand out in the place of a psycopg connection."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_connection"], name, value) if name == "autocommit" else super().__setattr__(name, value)


class Handing(PostgreSQLWrapper):
    def get_new_connection(self, conn_params: Any) -> Any:
        return NotPsycopg(super().get_new_connection(conn_params))


def test_who_shows_only_when_it_connects_is_known_to_the_check_from_then_on(
    left_alone: Callable[[type[Any]], Any], caplog: pytest.LogCaptureFixture
) -> None:
    left_alone(Handing)
    assert checks.check_databases() == []
    assert query() == 1
    (message,) = checks.check_databases()
    reason = "its connections are no psycopg connections, but tests.test_own_close.NotPsycopg"
    assert (message.id, message.msg) == ("conn_hygiene.W011", f"DATABASES['unpooled'] is left alone: {reason}.")
    assert reason in caplog.text


def test_a_child_says_it_again(left_alone: Callable[[type[Any]], Any]) -> None:
    left_alone(base.NotGoingOn)
    heard: list[events.LeftAlone] = []
    events.listen(events.LeftAlone, heard.append)
    try:
        query()
        assert in_child(lambda: (query(), len(heard))) == (1, 2)
        query()
        assert len(heard) == 1
    finally:
        events.unlisten(events.LeftAlone, heard.append)


def test_another_vendor_is_left_alone_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    with connections["sqlite"].cursor() as cursor:
        cursor.execute("SELECT 1")
    assert caplog.records == []


def test_a_backend_that_only_looks_like_postgresql_is_left_alone() -> None:
    assert backends.refusal_of(BaseDatabaseWrapper) == "its class is not made from Django's PostgreSQL backend"


def test_instrumentation_of_djangos_own_close_is_none_of_the_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    original = BaseDatabaseWrapper.close

    @functools.wraps(original)
    def traced(self: Any) -> None:
        original(self)

    monkeypatch.setattr(PostgreSQLWrapper, "close", traced, raising=False)
    assert (backends.has_own_close(PostgreSQLWrapper), backends.refusal_of(PostgreSQLWrapper)) == (False, None)
    monkeypatch.delattr(PostgreSQLWrapper, "close")


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (
            "django_db_geventpool.backends.postgresql_psycopg3",
            "django_db_geventpool.backends.base.DatabaseWrapperMixin replaces _close(), and with it the way back to "
            "the pool",
        ),
        ("dj_db_conn_pool.backends.postgresql", None),
    ],
)
def test_pools_from_before_django_had_one_say_why_if_they_are_left_alone(engine: str, reason: str | None) -> None:
    cls = importlib.import_module(f"{engine}.base").DatabaseWrapper
    assert backends.refusal_of(cls) == reason
