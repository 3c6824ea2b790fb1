"""What tests can assert of connections: the pytest plugin, the mixin, and what both are made of."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import re
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, SimpleTestCase, TestCase, TransactionTestCase
from django.urls import path

import conn_hygiene
from conn_hygiene import closing_connections, hold_connection, internals, release_between_queries, testing
from conn_hygiene.signals import connection_reclaimed
from conn_hygiene.testing import ConnectionHygieneMixin, assert_released, flush
from conn_hygiene.work import serving
from tests.processes import ROOT, run
from tests.testapp.models import Item

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

uses_database = pytest.mark.django_db(transaction=True)

# ##### What is held #####


@uses_database
def test_what_is_given_back_is_not_held() -> None:
    with release_between_queries():
        Item.objects.count()
        with assert_released():
            pass


@uses_database
def test_the_message_names_who_holds_what_and_since_when() -> None:
    serving.label = "GET /orders/7/"
    try:
        Item.objects.filter(name="secret").exists()
        with pytest.raises(AssertionError) as caught, assert_released():
            pass
    finally:
        serving.label = None
    text = str(caught.value)
    here = "test_the_message_names_who_holds_what_and_since_when"
    assert text.startswith("GET /orders/7/ holds a connection of 'default' at ")
    assert ": nothing around says to give it back: no release_between_queries, and no middleware that does." in text
    assert text.count(f"in {here}") == 2
    assert "secret" not in text
    assert "The last statement was SELECT" in text


def opened_cursor() -> Any:
    return connection.cursor()


@uses_database
@pytest.mark.parametrize(
    ("scope", "keeps"),
    [
        (transaction.atomic, "a transaction is open, since "),
        (hold_connection, "hold_connection is around"),
        (opened_cursor, "a cursor is open"),
    ],
    ids=["transaction", "hold", "cursor"],
)
def test_what_keeps_it_is_named(scope: Callable[[], Any], keeps: str) -> None:
    with release_between_queries():
        Item.objects.count()
        with scope():
            Item.objects.count()
            with pytest.raises(AssertionError, match=keeps), assert_released():
                pass
        with assert_released():
            pass


@uses_database
def test_a_pin_is_named() -> None:
    with release_between_queries():
        with connection.cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE mine (id int)")
        with pytest.raises(AssertionError, match=r"it is pinned by temporary table at .* in test_a_pin_is_named"):
            assert_released().__enter__()


@uses_database
def test_what_the_block_itself_keeps_is_seen_at_its_end_unless_it_raises() -> None:
    with pytest.raises(AssertionError, match="nothing around says"), assert_released():
        Item.objects.count()
    connection.close()
    with contextlib.suppress(KeyError), assert_released():
        Item.objects.count()
        raise KeyError


@uses_database
def test_as_a_decorator_and_for_some_aliases() -> None:
    Item.objects.count()

    @assert_released(using="unpooled")
    def answer() -> str:
        return "on its way"

    assert answer() == "on its way"
    with pytest.raises(AssertionError):
        assert_released("default")(answer)()
    with pytest.raises(TypeError, match="assert_released"):
        assert_released(answer)  # type: ignore[arg-type]


@uses_database
async def test_in_async_code() -> None:
    async with release_between_queries():
        await Item.objects.acount()
        async with assert_released():
            pass
    await Item.objects.acount()
    with pytest.raises(AssertionError):
        async with assert_released():
            pass


@uses_database
def test_what_another_request_holds_is_its_own_business() -> None:
    held, done = threading.Event(), threading.Event()

    def other() -> None:
        serving.label = "GET /other/"
        with closing_connections():
            Item.objects.count()
            held.set()
            done.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    try:
        assert held.wait(10)
        serving.label = "GET /mine/"
        with release_between_queries(), assert_released():
            pass
    finally:
        serving.label = None
        done.set()
        thread.join()


# ##### Async code, which queries in another thread than it runs in #####


async def with_block() -> None:
    with assert_released():
        pass


async def async_with_block() -> None:
    async with assert_released():
        pass


@assert_released()
async def decorated() -> None:
    """Do what is slow."""


WAYS = {way.__name__: way for way in (with_block, async_with_block, decorated)}


async def looks(request: HttpRequest, way: str) -> HttpResponse:
    """Query, and say what is held then."""
    await Item.objects.acount()
    return HttpResponse(await said(way))


async def looks_first(request: HttpRequest, way: str) -> HttpResponse:
    return HttpResponse(await said(way))


async def looks_at_threads(request: HttpRequest, way: str) -> HttpResponse:
    """Have another thread hold a connection meanwhile."""

    def hold() -> None:
        with transaction.atomic():
            Item.objects.count()
            held.set()
            done.wait(10)

    held, done = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        future = asyncio.get_running_loop().run_in_executor(executor, copy_context().run, closing_connections(hold))
        await asyncio.to_thread(held.wait, 10)
        try:
            return HttpResponse(await said(way))
        finally:
            done.set()
            await future


async def said(way: str) -> str:
    try:
        await WAYS[way]()
    except AssertionError as error:
        return str(error)
    return "released"


def by_client(url: str) -> str:
    return Client().get(url).content.decode()


def by_async_client(url: str) -> str:
    async def get() -> bytes:
        return (await AsyncClient().get(url)).content

    return async_to_sync(get)().decode()


def by_async_client_alone(url: str) -> str:
    """As in a test that no sync code of Django's is around: queries run in the one thread of the process for them."""

    async def get() -> bytes:
        content = (await AsyncClient().get(url)).content
        await sync_to_async(connections.close_all)()
        return content

    return asyncio.run(get()).decode()


def by_asgi(url: str) -> str:
    async def get() -> bytes:
        scope = {"type": "http", "method": "GET", "path": url, "query_string": b"", "headers": []}
        communicator = ApplicationCommunicator(get_asgi_application(), scope)
        await communicator.send_input({"type": "http.request"})
        await communicator.receive_output(10)
        body: bytes = (await communicator.receive_output(10))["body"]
        await communicator.wait(10)
        return body

    return asyncio.run(get()).decode()


every_server = pytest.mark.parametrize("get", [by_client, by_async_client, by_async_client_alone, by_asgi])
every_way = pytest.mark.parametrize("way", WAYS)
MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware"]


@contextlib.contextmanager
def another_thread_that_holds_one(label: str | None = None) -> Iterator[None]:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        serving.label = label
        with closing_connections(), transaction.atomic():
            Item.objects.count()
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        yield
    finally:
        done.set()
        thread.join()


@uses_database
@pytest.mark.urls(__name__)
@every_server
@every_way
def test_what_an_async_view_holds_is_found(get: Callable[[str], str], way: str, settings: Any) -> None:
    settings.MIDDLEWARE = []
    text = get(f"/looks/{way}/")
    assert text.startswith(f"GET /looks/{way}/ holds a connection of 'default' at ")
    assert text.count(" holds a connection") == 1
    assert f" in {way if way != 'decorated' else 'said'}: nothing around says to give it back" in text


@uses_database
@pytest.mark.urls(__name__)
@every_server
@every_way
@pytest.mark.parametrize("label", [None, "same"])
def test_what_other_threads_hold_is_not_the_async_views(
    get: Callable[[str], str], way: str, label: str | None, settings: Any
) -> None:
    for middleware in ([], MIDDLEWARE):
        settings.MIDDLEWARE = middleware
        url = f"/looks-first/{way}/" if not middleware else f"/looks/{way}/"
        with another_thread_that_holds_one(label and f"GET {url}"):
            assert get(url) == "released"


@uses_database
@pytest.mark.urls(__name__)
@every_server
@every_way
def test_what_the_async_view_holds_in_another_thread_is_found_under_the_middleware(
    get: Callable[[str], str], way: str, settings: Any
) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    text = get(f"/looks-at-threads/{way}/")
    assert ": a transaction is open, since " in text
    assert text.count(" holds a connection") == 1


@uses_database
@pytest.mark.urls(__name__)
def test_without_asgirefs_names_async_views_are_not_looked_into(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.MIDDLEWARE = []
    monkeypatch.setattr(internals.ASYNC_TESTS, "available", False)
    assert by_client("/looks/with_block/") == "released"
    Item.objects.count()
    with pytest.raises(AssertionError, match="nothing around says"), assert_released():
        pass


@uses_database
@every_way
async def test_async_code_that_serves_nobody_is_told_of_all_that_serve_nobody(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # To whom this thread has answered in another test, who may not have closed the response.
    monkeypatch.setattr(testing, "_serving", set())
    with another_thread_that_holds_one():
        assert ": a transaction is open, since " in await said(way)
    with another_thread_that_holds_one("GET /other/"):
        assert await said(way) == "released"


@uses_database
@pytest.mark.urls(__name__)
@pytest.mark.parametrize("alone", [False, True])
def test_after_a_request_of_the_async_client_the_thread_serves_nobody(alone: bool, settings: Any) -> None:
    settings.MIDDLEWARE = []

    async def get_and_look() -> str:
        await AsyncClient().get("/looks-first/with_block/")
        with another_thread_that_holds_one():
            return await said("with_block")

    run = asyncio.run(get_and_look()) if alone else async_to_sync(get_and_look)()
    assert ": a transaction is open, since " in run


@uses_database
async def test_a_decorated_coroutine_function_is_checked_when_it_begins_and_when_it_ends() -> None:
    @assert_released()
    async def leaves() -> None:
        ran.append(True)
        await Item.objects.acount()

    ran: list[bool] = []
    assert inspect.iscoroutinefunction(leaves)
    with pytest.raises(AssertionError, match="nothing around says"):
        await leaves()
    coroutine = leaves()
    with pytest.raises(AssertionError, match="nothing around says"):
        await coroutine
    assert ran == [True]


@uses_database
def test_decorated_generators_are_checked_when_they_begin_and_when_they_end() -> None:
    @assert_released()
    def rows() -> Iterator[int]:
        ran.append("rows")
        yield Item.objects.count()

    @assert_released()
    async def async_rows() -> AsyncIterator[int]:
        ran.append("async_rows")
        yield await Item.objects.acount()

    async def consume() -> list[int]:
        return [row async for row in async_rows()]

    ran: list[str] = []
    with release_between_queries():
        assert list(rows()) == async_to_sync(consume)() == [0]
    for _ in range(2):
        with pytest.raises(AssertionError, match="nothing around says"):
            list(rows())
    connection.close()
    for _ in range(2):
        with pytest.raises(AssertionError, match="nothing around says"):
            async_to_sync(consume)()
    # The second time they have not begun.
    assert ran == ["rows", "async_rows"] * 2


NOT_INSTALLED = (
    'The toolkit is not installed, and sees nothing: put "conn_hygiene" into INSTALLED_APPS, or call '
    "conn_hygiene.install()."
)


@pytest.fixture
def uninstalled() -> Iterator[None]:
    """Take the toolkit out, for the length of a test."""
    conn_hygiene.uninstall()
    yield
    connection.close()
    conn_hygiene.install()


@uses_database
@pytest.mark.usefixtures("uninstalled")
def test_nothing_is_asserted_where_the_toolkit_is_not_installed() -> None:
    Item.objects.count()
    with pytest.raises(ImproperlyConfigured) as caught, assert_released():
        pass
    assert str(caught.value) == NOT_INSTALLED
    # Made before an installation, as decorators may be.
    decorated = assert_released()(lambda: "answer")
    connection.close()
    conn_hygiene.install()
    assert decorated() == "answer"


class InATestCase(TestCase):
    """The transaction around each test does not count."""

    def test_what_would_be_given_back_without_it_is_not_held(self) -> None:
        with release_between_queries():
            Item.objects.count()
            with assert_released():
                pass

    def test_what_would_be_held_without_it_is(self) -> None:
        Item.objects.count()
        with pytest.raises(AssertionError, match="nothing around says"), assert_released():
            pass
        with (
            release_between_queries(),
            transaction.atomic(),
            pytest.raises(AssertionError, match="a transaction is open, inside of the test's own") as caught,
            assert_released(),
        ):
            pass
        # No line of the test runner, which is where the test's own began.
        assert "since" not in str(caught.value)
        assert "checked out" not in str(caught.value)


# ##### What is told #####


@uses_database
def test_flush_waits_for_what_a_dead_thread_has_left() -> None:
    told = []

    def receive(**event: Any) -> None:
        told.append(event["alias"])

    connection_reclaimed.connect(receive)
    try:
        thread = threading.Thread(target=Item.objects.count)
        thread.start()
        thread.join()
        assert flush()
        assert told == ["default"]
        assert conn_hygiene.snapshot() == []
    finally:
        connection_reclaimed.disconnect(receive)


@uses_database
def test_flush_gives_up_and_says_so() -> None:
    goes_on = threading.Event()

    def receive(**event: Any) -> None:
        goes_on.wait(10)

    connection_reclaimed.connect(receive)
    try:
        thread = threading.Thread(target=Item.objects.count)
        thread.start()
        thread.join()
        assert not flush(timeout=0.05)
        goes_on.set()
        assert flush()
    finally:
        connection_reclaimed.disconnect(receive)


# ##### The mixin #####


class Case(ConnectionHygieneMixin, TransactionTestCase):
    """Runs what it is given, and is collected as a test of nothing."""

    work: Callable[[], Any] = staticmethod(lambda: None)

    def test(self) -> None:
        self.work()


class InTransaction(ConnectionHygieneMixin, TestCase):
    """The same in a TestCase."""

    work: Callable[[], Any] = staticmethod(lambda: None)

    def test(self) -> None:
        self.work()


def fails_with(base: type[TransactionTestCase], work: Callable[[], Any]) -> list[str]:
    """Return what a test fails with that does *work*, in a class of its own that is derived from *base*."""
    failed = ends_with(base, work)
    return failed[0].removeprefix("AssertionError: ").strip().splitlines() if failed else []


def ends_with(base: type[TransactionTestCase], work: Callable[[], Any]) -> list[str]:
    """Return the exceptions that such a test ends with, as they stand in its tracebacks."""
    case = type("Sample", (base,), {"work": staticmethod(work)})("test")
    result = unittest.TestResult()
    case(result)
    assert result.testsRun == 1
    texts = [text for _, text in [*result.failures, *result.errors]]
    return [re.split(r"^(?=\S+(?:Error|Configured): )", text, flags=re.MULTILINE)[-1].strip() for text in texts]


def leaves_a_transaction() -> None:
    connection.set_autocommit(False)
    Item.objects.count()


def leaves_an_atomic_block() -> None:
    transaction.atomic().__enter__()


def leaves_a_cursor() -> None:
    connection.cursor().execute("SELECT 1")


LEFT_OPEN: list[Any] = []


def leaves_a_cursor_open() -> None:
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    LEFT_OPEN.append(cursor)


def leaves_a_setting() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET app.tenant_id = '42'")


def leaves_a_server_setting() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = '5s'")


def leaves_a_table() -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE mine (id int)")


def leaves_a_carried_setting() -> None:
    with release_between_queries(), connection.cursor() as cursor:
        cursor.execute("SET app.tenant_id = '42'")
    conn_hygiene.release_connections()


def leaves_a_connection() -> None:
    thread = threading.Thread(target=Item.objects.count)
    thread.start()
    thread.join()


def takes_back_what_it_set() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET app.tenant_id = '42'")
        cursor.execute("SET statement_timeout = '5s'")
        cursor.execute("RESET app.tenant_id")
        cursor.execute("RESET statement_timeout")


def takes_back_what_the_server_spells_in_its_own_way() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET TIME ZONE 'Europe/Berlin'")
        cursor.execute("SET intervalstyle = 'iso_8601'")
        cursor.execute("RESET TIME ZONE")
        cursor.execute("RESET intervalstyle")


def discards_all() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET app.tenant_id = '42'")
        cursor.execute("DISCARD ALL")


def leaves_nothing() -> None:
    with transaction.atomic():
        Item.objects.count()
    list(Item.objects.iterator())


@pytest.fixture
def mended() -> Iterator[None]:
    """Take away what the test's test has left, which is no test of its own."""
    yield
    for cursor in LEFT_OPEN:
        cursor.close()
    LEFT_OPEN.clear()
    connection.savepoint_ids.clear()
    connection.atomic_blocks.clear()
    connection.in_atomic_block = False
    connection.close()


@uses_database
@pytest.mark.usefixtures("mended")
@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (leaves_a_transaction, r"A transaction on 'default' of thread .* \(last statement: SELECT .*\) is open yet"),
        (leaves_an_atomic_block, r"A transaction on 'default' .* is open yet, begun at .* in leaves_an_atomic_block\."),
        (leaves_a_cursor, r"A cursor on 'default' was never closed\. Opened at .* in leaves_a_cursor\."),
        (leaves_a_cursor_open, r"A cursor on 'default' .* is open yet, opened at .* in leaves_a_cursor_open\."),
        (leaves_a_setting, r"app.tenant_id is left set on 'default' of thread .*\. RESET it, or set it by"),
        (leaves_a_server_setting, r"statement_timeout is left set on 'default' of .* \(last statement: SET .*\)\."),
        (leaves_a_carried_setting, r"app.tenant_id is left set on 'default' of .*\."),
        (leaves_a_table, r"State is left on 'default' .*: temporary table, at .* in leaves_a_table\."),
        (leaves_a_connection, r"Thread .* ended with a connection of 'default' checked out"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_test_fails_that_leaves_something(work: Callable[[], Any], expected: str) -> None:
    assert [re.match(expected, line) is not None for line in fails_with(Case, work)] == [True]


@uses_database
@pytest.mark.parametrize(
    ("base", "work"),
    [
        *(
            (base, work)
            for base in (Case, InTransaction)
            for work in (leaves_nothing, takes_back_what_it_set, takes_back_what_the_server_spells_in_its_own_way)
        ),
        (Case, discards_all),
    ],
)
def test_a_test_passes_that_leaves_nothing(base: type[TransactionTestCase], work: Callable[[], Any]) -> None:
    assert fails_with(base, work) == []


@uses_database
def test_the_next_test_is_not_blamed() -> None:
    assert len(fails_with(Case, leaves_a_setting)) == 1
    assert fails_with(Case, leaves_nothing) == []
    connection.close()


@uses_database
def test_what_a_testcase_takes_back_is_not_left() -> None:
    assert fails_with(InTransaction, leaves_a_setting) == []


def leaves_transaction(request: Any) -> HttpResponse:
    leaves_a_transaction()
    return HttpResponse()


def sets(request: Any) -> HttpResponse:
    leaves_a_setting()
    return HttpResponse()


urlpatterns = [
    path("leaves-transaction/", leaves_transaction),
    path("sets/", sets),
    path("looks/<way>/", looks),
    path("looks-first/<way>/", looks_first),
    path("looks-at-threads/<way>/", looks_at_threads),
]


@uses_database
@pytest.mark.urls(__name__)
def test_a_request_that_leaves_its_transaction_open_is_named() -> None:
    lines = fails_with(Case, lambda: Client().get("/leaves-transaction/"))
    assert [line.split(" on ")[0] for line in lines] == ["GET /leaves-transaction/ left a transaction open"]


@uses_database
@pytest.mark.urls(__name__)
def test_what_a_request_has_set_is_not_the_tests() -> None:
    assert fails_with(Case, lambda: Client().get("/sets/")) == []
    connection.close()


@uses_database
@pytest.mark.usefixtures("uninstalled")
@pytest.mark.parametrize("base", [Case, InTransaction])
def test_the_mixin_passes_nothing_where_the_toolkit_is_not_installed(base: type[TransactionTestCase]) -> None:
    assert ends_with(base, leaves_nothing) == [f"django.core.exceptions.ImproperlyConfigured: {NOT_INSTALLED}"]


class WithoutSuper(Case):
    """One that the mixin has no part in, unless it says so."""

    __test__ = False

    def setUp(self) -> None:
        self.is_set_up = True


class Skipped(Case):
    """One that is over before the mixin had its turn."""

    __test__ = False

    def setUp(self) -> None:
        self.skipTest("not here")


@uses_database
def test_a_test_fails_whose_setup_leaves_out_the_mixins() -> None:
    assert fails_with(WithoutSuper, leaves_nothing) == [
        "setUp() of WithoutSuper does not call super().setUp(), so that nothing the test leaves would be seen. Call it "
        "there, or put ConnectionHygieneMixin first among the base classes."
    ]
    assert fails_with(Skipped, leaves_nothing) == []


@uses_database
def test_a_test_can_be_run_again() -> None:
    case = Case("test")
    for _ in range(2):
        result = unittest.TestResult()
        case(result)
        assert (result.failures, result.errors) == ([], [])
        assert "setUp" not in vars(case)


def test_the_mixin_hands_out_the_assertion() -> None:
    assert isinstance(Case("test").assertReleased("default"), assert_released)


# ##### The plugin #####

SETTINGS = """
from tests.settings import *
from tests.settings import _URL, database
DATABASES = {"default": database(_URL, pool={"min_size": 1, "max_size": 4, "timeout": 5}, TEST={"NAME": "test_sample"})}
"""

SAMPLE = """
import asyncio
import threading
import time
import pytest
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import TestCase
from django.urls import path
from conn_hygiene import release_between_queries
from tests.testapp.models import Item

pytestmark = pytest.mark.django_db(transaction=True)

def slow():
    return "answer"

def get():
    Item.objects.count()
    return slow()

def in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

def test_connection():
    in_thread(Item.objects.count)

@pytest.fixture
def runs_a_thread():
    yield
    in_thread(Item.objects.count)

def test_fixture(runs_a_thread):
    pass

@pytest.mark.django_db
def test_transaction(request):
    # Not the one of the fixture.
    left_open = transaction.atomic()
    left_open.__enter__()
    request.addfinalizer(lambda: left_open.__exit__(None, None, None))

def test_after_it():
    assert not connection.in_atomic_block

@pytest.mark.connection_hygiene(slow="test_sample.slow")
def test_slow():
    assert get() == "answer"

@pytest.mark.connection_hygiene(slow=["test_sample.slow"])
def test_slow_released():
    with release_between_queries():
        assert get() == "answer"

async def slow_async():
    return slow()

async def view(request):
    await Item.objects.acount()
    return HttpResponse(await slow_async())

urlpatterns = [path("", view)]

@pytest.mark.urls("test_sample")
@pytest.mark.connection_hygiene(slow=["test_sample.slow_async", "test_sample.slow"])
class TestAsync:
    def test_slow_in_an_async_view(self, client):
        assert client.get("/").content == b"answer"

    def test_slow_in_an_async_view_released(self, client, settings):
        settings.MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware"]
        assert client.get("/").content == b"answer"

@pytest.mark.connection_hygiene(slow="test_sample.slaw")
def test_slow_misspelt():
    pass

@pytest.mark.connection_hygiene(slow="test_sample.Item")
def test_slow_without_a_call():
    pass

@pytest.mark.connection_hygiene(slow="test_sample.slow")
def test_slow_replaced(monkeypatch):
    monkeypatch.setattr("test_sample.slow", lambda: "its own")
    get()

@pytest.mark.connection_hygiene(slow="test_sample.slow")
class TestSlow:
    def test_one_of_them(self):
        assert get() == "answer"

    def test_another_of_them(self):
        pass

class Client:
    name = "client"
    # Bound to no instance: it is no function of Python's.
    wait = time.sleep

    def of_instance(self, number):
        return self.name, number

    @staticmethod
    def static(number):
        return number

    @classmethod
    def of_class(cls, number):
        return cls.__name__, number

    @staticmethod
    async def asynchronous(number):
        return number

class Child(Client):
    pass

class Grandchild(Child):
    pass

METHODS = [
    "Client.of_instance", "Client.static", "Client.asynchronous", "Client.wait",
    "client.of_class", "Child.of_class",
]
client = Client()

@pytest.mark.connection_hygiene(slow=[f"test_sample.{name}" for name in METHODS])
class TestMethods:
    def call_all(self):
        for each in (Grandchild, Grandchild()):
            assert each.static(1) == 1
            assert each.of_class(2) == ("Grandchild", 2)
            assert each.wait(0) is None
            assert asyncio.run(each.asynchronous(3)) == 3
        assert Client().of_class(4) == ("Client", 4)
        assert Client().of_instance(5) == ("client", 5)
        assert client.of_class(6) == ("Client", 6)

    def test_methods_released(self):
        with release_between_queries():
            Item.objects.count()
            self.call_all()

    def test_methods(self):
        Item.objects.count()
        self.call_all()

def test_methods_afterwards():
    assert isinstance(vars(Client)["static"], staticmethod)
    assert "of_class" not in vars(Child)

@pytest.mark.connection_hygiene(slow="os")
def test_slow_module():
    pass

@pytest.mark.connection_hygiene("test_sample.slow")
def test_wrong_positional():
    get()

@pytest.mark.connection_hygiene(True, "test_sample.slow")
def test_wrong_number():
    get()

@pytest.mark.connection_hygiene(False, slwo="test_sample.slow")
def test_wrong_name():
    get()

@pytest.mark.connection_hygiene(slow=5)
def test_wrong_value():
    get()

@pytest.mark.connection_hygiene(slow=["test_sample.slow", 5])
def test_wrong_value_in_a_list():
    get()

@pytest.mark.connection_hygiene(False)
def test_left_out():
    in_thread(Item.objects.count)

def test_fails_in_any_case():
    in_thread(Item.objects.count)
    assert not "its own failure"

def test_released(assert_released):
    with assert_released():
        pass

class TestClass(TestCase):
    def test_nothing(self):
        Item.objects.count()

    def test_thread(self):
        in_thread(Item.objects.count)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what the plugin has to say of each test of the sample, by name; "" for those that pass."""
    directory = tmp_path_factory.mktemp("sample")
    (directory / "sample_settings.py").write_text(SETTINGS)
    (directory / "test_sample.py").write_text(SAMPLE)
    process = run_pytest(directory, "--connection-hygiene")
    assert process.returncode == 1, process.stdout + process.stderr
    found: dict[str, str] = {}
    for case in ElementTree.parse(directory / "junit.xml").iter("testcase"):
        failures = [str(each.text) for each in case if each.tag in ("failure", "error")]
        found[case.attrib["name"]] = "\n".join(failures)
    # What is added to a failure stands in sections of its own.
    found["sections"] = process.stdout
    return found


def run_pytest(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    installed = entry_points(group="pytest11", name="conn_hygiene")
    plugin = [] if installed else ["-p", "conn_hygiene.contrib.pytest"]
    options = [
        "-p",
        "no:randomly",
        "-p",
        "no:asyncio",
        "-p",
        "no:cacheprovider",
        "--junitxml",
        str(directory / "junit.xml"),
    ]
    settings = ["--ds", "sample_settings", "--rootdir", str(directory), "-c", str(directory / "pytest.ini")]
    (directory / "pytest.ini").touch()
    modules = os.pathsep.join([str(directory), str(ROOT)])
    # As in a project, even where the tests themselves are run with fewer plugins.
    environment = {"PYTHONPATH": modules, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": ""}
    return run("-m", "pytest", *plugin, *options, *settings, *arguments, str(directory), **environment)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("test_connection", "ended with a connection of 'default' checked out"),
        ("test_fixture", "ended with a connection of 'default' checked out"),
        ("test_transaction", "is open yet, begun at "),
        ("test_slow", "While test_sample.slow is called: thread MainThread holds a connection of 'default' at "),
        ("test_one_of_them", "While test_sample.slow is called: thread MainThread holds a connection of 'default' at "),
        ("test_slow_without_a_call", "\ntest_sample.Item was never called, so nothing was checked."),
        ("test_slow_replaced", "\ntest_sample.slow was never called, so nothing was checked."),
        ("test_thread", "ended with a connection of 'default' checked out"),
        (
            "test_slow_in_an_async_view",
            "While test_sample.slow_async is called: GET / holds a connection of 'default' at ",
        ),
        ("test_slow_in_an_async_view", "While test_sample.slow is called: GET / holds a connection of 'default' at "),
        ("test_methods", "While test_sample.Client.of_instance is called: "),
        ("test_methods", "While test_sample.client.of_class is called: "),
    ],
)
def test_the_plugin_fails_a_test(results: dict[str, str], name: str, expected: str) -> None:
    assert results[name].count(expected) == 1
    assert f"{name} fails the connection hygiene:" in results[name]


@pytest.mark.parametrize("name", ["Client.static", "Client.asynchronous", "Client.wait", "Child.of_class"])
def test_the_plugin_watches_methods_of_every_kind(results: dict[str, str], name: str) -> None:
    """On their class and on an instance, of a class that is derived."""
    assert results["test_methods"].count(f"While test_sample.{name} is called: ") == 2


@pytest.mark.parametrize(
    "name",
    [
        "test_after_it",
        "test_slow_released",
        "test_slow_in_an_async_view_released",
        "test_methods_released",
        "test_methods_afterwards",
        "test_another_of_them",
        "test_left_out",
        "test_released",
        "test_nothing",
    ],
)
def test_the_plugin_lets_a_test_pass(results: dict[str, str], name: str) -> None:
    assert results[name] == ""


def test_the_plugin_adds_to_a_failure_and_does_not_hide_it(results: dict[str, str]) -> None:
    text = results["test_fails_in_any_case"]
    assert "its own failure" in text
    assert "fails the connection hygiene" not in text
    (section,) = re.findall(r"- Captured connection hygiene call -+\n(.+)\n", results["sections"])
    assert re.fullmatch(
        r"Thread Thread-\d+ \(count\) ended with a connection of 'default' checked out \(server pid \d+\)\. "
        r"The thread ran \S+:\d+ in \w+\. Close it there, .*",
        section,
    )


def test_the_plugin_says_of_what_is_slow_that_it_is_not_there(results: dict[str, str]) -> None:
    assert results["test_slow_misspelt"] == (
        "The marker connection_hygiene has slow='test_sample.slaw', which cannot be found: "
        "module 'test_sample' has no attribute 'slaw'"
    )
    assert results["test_slow_module"] == (f"The marker connection_hygiene has slow='os', which is no function: {os!r}")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("test_wrong_positional", "'test_sample.slow'"),
        ("test_wrong_number", "True, 'test_sample.slow'"),
        ("test_wrong_name", "False, slwo='test_sample.slow'"),
        ("test_wrong_value", "slow=5"),
        ("test_wrong_value_in_a_list", "slow=['test_sample.slow', 5]"),
    ],
)
def test_the_plugin_says_once_what_its_marker_takes(results: dict[str, str], name: str, given: str) -> None:
    assert said_in(results[name]) == [
        f"@pytest.mark.connection_hygiene({given}): it takes (enabled=True, *, slow=()), where enabled is True or "
        'False, and slow the name of a function, such as "mysite.views.urlopen", or a list of names.'
    ]


def said_in(text: str) -> list[str]:
    """Return the messages of the exceptions in what pytest shows of a test."""
    return re.findall(r"^E +[\w.]+: (.*)", text, re.MULTILINE)


def test_the_plugin_says_where_the_toolkit_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "sample_settings.py").write_text("SECRET_KEY = 'tests'")
    (tmp_path / "test_sample.py").write_text("def test_nothing(): pass")
    process = run_pytest(tmp_path, "--connection-hygiene")
    assert said_in(process.stdout) == [NOT_INSTALLED]
    assert run_pytest(tmp_path).returncode == 0


def test_the_plugin_says_once_that_its_ini_option_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "sample_settings.py").write_text("SECRET_KEY = 'tests'")
    (tmp_path / "test_sample.py").write_text("def test_one(): pass\ndef test_two(): pass")
    process = run_pytest(tmp_path, "-o", "connection_hygiene=maybe")
    assert (process.returncode, process.stdout) == (pytest.ExitCode.USAGE_ERROR, "")
    assert process.stderr.strip() == (
        "ERROR: The ini option connection_hygiene is true or false: invalid truth value 'maybe'"
    )


def test_the_plugin_imports_nothing_of_django() -> None:
    code = "import conn_hygiene.contrib.pytest, sys; print('django' in sys.modules)"
    assert run("-c", code).stdout == "False\n"


def test_a_test_that_is_pickled_while_it_runs_leaves_the_watch_out() -> None:
    """Django's parallel runner pickles the test of each subtest that fails."""

    class Sample(ConnectionHygieneMixin, SimpleTestCase):
        def test(self) -> None:
            state.append(self.__getstate__())  # type: ignore[attr-defined,unused-ignore]

    state: list[Any] = []
    result = unittest.TestResult()
    Sample("test").run(result)
    assert (result.failures, result.errors) == ([], [])
    assert not {"setUp", "_cleanups"} & state[0].keys()
