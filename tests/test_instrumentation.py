"""Whoever watches queries goes on seeing every one of them, while each query is on a checkout of its own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from django.test.utils import CaptureQueriesContext

import conn_hygiene
from tests import instrumented
from tests.processes import in_fresh_process
from tests.testapp.models import Item
from tests.waiting import holds, let_the_reaper_look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALIASES = ["default", "unpooled"]
RELEASING = {"RELEASE": "always", "RELEASE_AFTER": 0, "UNPOOLED_RELEASE_AFTER": 0}
QUERIES = ["SELECT 1", "SELECT 2", "SELECT 3"]

pytestmark = [pytest.mark.django_db(transaction=True, databases=[*ALIASES, "persistent"]), pytest.mark.slow]


@pytest.fixture
def releasing(settings: Any) -> Iterator[None]:
    """Have each query check a connection out and give it back."""
    settings.CONN_HYGIENE = RELEASING
    connections.close_all()
    yield
    connections.close_all()


def query(alias: str = "default", *statements: str) -> None:
    for statement in statements or QUERIES:
        with connections[alias].cursor() as cursor:
            cursor.execute(statement)


# ##### Django's own #####


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.usefixtures("releasing")
def test_assert_num_queries_counts_every_query(
    alias: str, django_assert_num_queries: Callable[..., CaptureQueriesContext]
) -> None:
    before = conn_hygiene.stats().releases
    with django_assert_num_queries(5, using=alias) as captured:
        query(alias)
        list(Item.objects.using(alias).all())
        Item.objects.using(alias).create(name="a")
    assert conn_hygiene.stats().releases - before == 5
    assert [entry["sql"] for entry in captured.captured_queries[:3]] == QUERIES


@pytest.mark.usefixtures("releasing")
def test_assert_num_queries_sees_statements_of_transactions(
    django_assert_num_queries: Callable[..., CaptureQueriesContext],
) -> None:
    with django_assert_num_queries(6), transaction.atomic():
        query("default", "SELECT 1")
        with transaction.atomic():
            query("default", "SELECT 2")
    assert not holds("default")


@pytest.mark.usefixtures("releasing")
def test_connection_queries_has_every_query_in_debug(settings: Any) -> None:
    settings.DEBUG = True
    connection.queries_log.clear()
    query()
    assert [entry["sql"] for entry in connection.queries] == QUERIES


@pytest.mark.usefixtures("releasing")
def test_an_execute_wrapper_sees_every_query_and_stays_installed() -> None:
    seen: list[Any] = []

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append((sql, context["connection"].alias))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(wrapper):
        query()
        assert not holds("default")
    query()
    assert seen == [(statement, "default") for statement in QUERIES]


@pytest.mark.usefixtures("releasing")
def test_an_execute_wrapper_may_query_itself() -> None:
    def wrapper(execute: Any, *args: Any) -> Any:
        connection.execute_wrappers.clear()
        query("default", "SELECT 10")
        return execute(*args)

    with CaptureQueriesContext(connection) as captured:
        connection.execute_wrappers.append(wrapper)
        query("default", "SELECT 1")
    assert [entry["sql"] for entry in captured.captured_queries] == ["SELECT 10", "SELECT 1"]
    assert not holds("default")


# ##### Receivers of connection_created #####


@pytest.fixture
def receive() -> Iterator[Callable[[Callable[..., None]], None]]:
    """Return a function that connects a receiver of connection_created for the time of the test."""
    connected: list[Any] = []

    def connect(receiver: Callable[..., None]) -> None:
        connection_created.connect(receiver)
        connected.append(receiver)

    yield connect
    for receiver in connected:
        connection_created.disconnect(receiver)


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.usefixtures("releasing")
def test_receivers_of_connection_created_run_at_every_checkout(alias: str, receive: Any) -> None:
    seen: list[Any] = []

    def receiver(sender: Any, connection: Any, **kwargs: Any) -> None:
        seen.append((sender, connection))

    receive(receiver)
    query(alias)
    wrapper = connections[alias]
    assert seen == [(wrapper.__class__, wrapper)] * 3
    assert wrapper.__class__.__name__ == "DatabaseWrapper"


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.usefixtures("releasing")
def test_what_a_receiver_sets_is_there_at_every_query_and_pins_nothing(alias: str, receive: Any) -> None:
    def receiver(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = '7s'")

    receive(receiver)
    before = conn_hygiene.stats().pinned
    for _ in range(3):
        with connections[alias].cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == ("7s",)
        assert not holds(alias)
    assert conn_hygiene.stats().pinned == before


@pytest.mark.usefixtures("releasing")
def test_what_a_receiver_sets_for_one_owner_does_not_reach_the_next(receive: Any) -> None:
    """As with a tenant's id, which another thread's request must never see."""
    mine = threading.get_ident()

    def receiver(connection: Any, **kwargs: Any) -> None:
        if threading.get_ident() == mine:
            with connection.cursor() as cursor:
                cursor.execute("SET app.tenant = 'acme'")

    receive(receiver)
    look = "SELECT coalesce(current_setting('app.tenant', true), '')"
    seen: list[Any] = []

    def other() -> None:
        with conn_hygiene.closing_connections(), connection.cursor() as cursor:
            cursor.execute(look)
            seen.append(cursor.fetchone())

    for _ in range(3):
        query()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [("",)] * 3
    with connection.cursor() as cursor:
        cursor.execute(look)
        assert cursor.fetchone() == ("acme",)


@pytest.mark.usefixtures("releasing")
def test_a_receiver_may_use_the_orm_and_transactions(receive: Any) -> None:
    def receiver(connection: Any, **kwargs: Any) -> None:
        with transaction.atomic():
            Item.objects.create(name="receiver")

    receive(receiver)
    query()
    assert not holds("default")
    assert Item.objects.filter(name="receiver").count() == 4


@pytest.mark.usefixtures("releasing")
def test_a_receiver_that_raises_fails_the_query_and_loses_no_connection(receive: Any) -> None:
    query()

    def receiver(**kwargs: Any) -> None:
        raise ZeroDivisionError

    receive(receiver)
    for _ in range(6):
        with pytest.raises(ZeroDivisionError):
            query()
        connection.close()
    connection_created.disconnect(receiver)
    query()
    let_the_reaper_look()
    assert not holds("default")


# ##### What patches Django or psycopg, each in a process of its own #####


def test_sentry_sees_every_query_and_every_checkout() -> None:
    seen, releases, pinned = in_fresh_process(instrumented.sentry, CONN_HYGIENE=RELEASING)
    assert (releases, pinned) == (8, 0)
    for alias in ALIASES:
        assert selects(seen[alias]) == [*QUERIES, "SELECT 4"]
        assert seen[alias].count("connect") == 4
        assert "COMMIT" in seen[alias]


def test_opentelemetry_sees_every_query() -> None:
    seen, releases, pinned = in_fresh_process(instrumented.opentelemetry, CONN_HYGIENE=RELEASING)
    assert (releases, pinned) == (10, 0)
    for alias in ALIASES:
        assert selects(seen[alias]) == [*QUERIES, "SELECT 4", "SELECT %s"]


def test_debug_toolbar_shows_every_query_of_a_request_and_of_the_next() -> None:
    seen, releases, pinned = in_fresh_process(
        instrumented.debug_toolbar,
        CONN_HYGIENE=RELEASING,
        DEBUG=True,
        ALLOWED_HOSTS=["testserver"],
        INTERNAL_IPS=["127.0.0.1"],
        STATIC_URL="/static/",
        ROOT_URLCONF=instrumented.__name__,
        INSTALLED_APPS=["django.contrib.staticfiles", "debug_toolbar", "conn_hygiene"],
        MIDDLEWARE=["debug_toolbar.middleware.DebugToolbarMiddleware"],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
        DEBUG_TOOLBAR_CONFIG={"IS_RUNNING_TESTS": False},
        DEBUG_TOOLBAR_PANELS=["debug_toolbar.panels.sql.SQLPanel"],
    )
    assert (releases, pinned) == (14, 0)
    expected = [[alias, statement] for alias in ALIASES for statement in QUERIES] + [["default", "SELECT 4"]]
    assert [[entry for entry in page if entry[1].startswith("SELECT")] for page in seen] == [expected] * 2


def selects(statements: list[str]) -> list[str]:
    """Leave out what ends transactions, and what Django does to a new connection."""
    return [text for text in statements if text.startswith("SELECT") and "set_config" not in text]


def test_connections_that_opentelemetry_instruments_one_by_one_are_released_and_seen() -> None:
    seen, releases, pinned = in_fresh_process(instrumented.opentelemetry_by_hand, CONN_HYGIENE=RELEASING)
    assert (releases, pinned) == (6, 0)
    assert selects(seen["unpooled"]) == selects(seen["default"]) == QUERIES
