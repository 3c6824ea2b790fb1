"""What belongs to which request, where one is served in the middle of another, or in a thread that outlives it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import async_to_sync
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.db import DatabaseError, connections, transaction
from django.db.backends.signals import connection_created
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import Client, RequestFactory
from django.urls import path

from conn_hygiene import hold_connection, release_between_queries
from conn_hygiene.sessions import known
from conn_hygiene.work import serving
from tests.testapp.models import Item
from tests.waiting import let_the_reaper_look, wait_until_released, wait_until_told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "persistent"]),
    pytest.mark.urls(__name__),
]

MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware"]

every_alias = pytest.mark.parametrize("alias", ["default", "unpooled", "persistent"])
with_and_without = pytest.mark.parametrize("middleware", [MIDDLEWARE, []], ids=["with", "without"])


def start_response(*args: Any) -> Any:
    """Take the status and the headers, as a WSGI server does."""


def wsgi(url: str) -> bytes:
    """Serve a request as a WSGI server does, in this thread."""
    response: Any = get_wsgi_application()(RequestFactory().get(url).environ, start_response)
    try:
        return b"".join(response)
    finally:
        response.close()


async def asgi(url: str) -> bytes:
    """Serve a request as an ASGI server does."""
    scope = {"type": "http", "method": "GET", "path": url, "query_string": b"", "headers": []}
    communicator = ApplicationCommunicator(get_asgi_application(), scope)
    await communicator.send_input({"type": "http.request"})
    await communicator.receive_output(10)
    body: bytes = (await communicator.receive_output(10))["body"]
    await communicator.wait(10)
    return body


def ask(statement: str, alias: str = "default") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def tenant(alias: str = "default") -> Any:
    return ask("SELECT current_setting('app.tenant', true)", alias)


def close_another_response() -> None:
    """Read a response that the view has made itself, and leave no file open."""
    with tempfile.TemporaryFile() as file:
        another = FileResponse(file)
        b"".join(another)
        another.close()


# ##### Views #####


def two_items(request: HttpRequest, alias: str, end: str) -> HttpResponse:
    try:
        with transaction.atomic(alias):
            Item.objects.using(alias).create(name="first")
            close_another_response()
            Item.objects.using(alias).create(name="second")
            if end == "raise":
                raise ZeroDivisionError
    except (DatabaseError, ZeroDivisionError) as error:
        return HttpResponse(type(error).__name__)
    return HttpResponse("committed")


def closes_and_sets(request: HttpRequest, alias: str) -> HttpResponse:
    close_another_response()
    ask("SET app.tenant = 'acme'", alias)
    return HttpResponse()


def sets_and_closes(request: HttpRequest, alias: str) -> HttpResponse:
    ask("SET app.tenant = 'acme'", alias)
    close_another_response()
    return HttpResponse(tenant(alias))


def asks_another_page(request: HttpRequest, alias: str) -> HttpResponse:
    ask("SET app.tenant = 'acme'", alias)
    ask("CREATE TEMP TABLE t_hygiene (n int)", alias)
    label = serving.label
    assert Client().get(f"/tenant/{alias}/").status_code == 200
    assert serving.label == label
    ask("SELECT count(*) FROM t_hygiene", alias)
    return HttpResponse(tenant(alias))


def says_tenant(request: HttpRequest, alias: str) -> HttpResponse:
    return HttpResponse(str(tenant(alias)))


def says_pid(request: HttpRequest, alias: str) -> HttpResponse:
    return HttpResponse(str(ask("SELECT pg_backend_pid()", alias)))


def streams(request: HttpRequest, alias: str) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter([b"1", b"2"]))


def streams_tenant(request: HttpRequest, alias: str) -> StreamingHttpResponse:
    ask("SET app.tenant = 'acme'", alias)

    def body() -> Iterator[str]:
        for _ in range(2):
            wait_until_released(alias)
            yield str(tenant(alias))

    return StreamingHttpResponse(body())


async def sets_in_a_thread(request: HttpRequest, alias: str) -> HttpResponse:
    await asyncio.to_thread(ask, "SET app.tenant = 'acme'", alias)
    await asyncio.to_thread(wait_until_released, alias)
    return HttpResponse(await asyncio.to_thread(tenant, alias))


async def stays_in_a_thread(request: HttpRequest, alias: str) -> HttpResponse:
    for statement in ("SET app.tenant = 'acme'", "CREATE TEMP TABLE t_hygiene (n int)", "SELECT pg_advisory_lock(7)"):
        await asyncio.to_thread(ask, statement, alias)
    await asyncio.to_thread(ask, "INSERT INTO t_hygiene VALUES (1)", alias)
    return HttpResponse(await asyncio.to_thread(tenant, alias))


LEFT = "SELECT to_regclass('pg_temp.t_hygiene') IS NOT NULL OR pg_advisory_unlock(7)"


async def looks_in_a_thread(request: HttpRequest, alias: str) -> HttpResponse:
    said = await asyncio.to_thread(tenant, alias)
    return HttpResponse(f"{said or None} {await asyncio.to_thread(ask, LEFT, alias)}")


def set_and_forget(alias: str) -> None:
    connections[alias].cursor().execute("SET app.tenant = 'acme'")


async def forgets_a_cursor_in_a_thread(request: HttpRequest, alias: str) -> HttpResponse:
    await asyncio.to_thread(set_and_forget, alias)
    await asyncio.to_thread(let_the_reaper_look)
    return HttpResponse(str(await asyncio.to_thread(tenant, alias)))


async def sets_under_a_hold(request: HttpRequest, alias: str) -> HttpResponse:
    async with hold_connection():
        await asyncio.to_thread(ask, "SET app.tenant = 'acme'", alias)
    return HttpResponse()


async def says_pid_of_a_thread(request: HttpRequest, alias: str) -> HttpResponse:
    return HttpResponse(str(await asyncio.to_thread(ask, "SELECT pg_backend_pid()", alias)))


async def says_tenant_in_a_thread(request: HttpRequest, alias: str) -> HttpResponse:
    return HttpResponse(str(await asyncio.to_thread(tenant, alias)))


urlpatterns = [
    path("two/<alias>/<end>/", two_items),
    path("closes/<alias>/", closes_and_sets),
    path("sets/<alias>/", sets_and_closes),
    path("asks/<alias>/", asks_another_page),
    path("tenant/<alias>/", says_tenant),
    path("pid/<alias>/", says_pid),
    path("streams/<alias>/", streams),
    path("streams-tenant/<alias>/", streams_tenant),
    path("sets-in-a-thread/<alias>/", sets_in_a_thread),
    path("in-a-thread/<alias>/", says_tenant_in_a_thread),
    path("stays-in-a-thread/<alias>/", stays_in_a_thread),
    path("looks-in-a-thread/<alias>/", looks_in_a_thread),
    path("forgets/<alias>/", forgets_a_cursor_in_a_thread),
    path("under-a-hold/<alias>/", sets_under_a_hold),
    path("pid-of-a-thread/<alias>/", says_pid_of_a_thread),
]


# ##### Transactions #####


@every_alias
@with_and_without
@pytest.mark.parametrize("end", ["return", "raise"])
def test_no_half_of_a_transaction_is_committed_where_a_view_closes_another_response(
    alias: str, middleware: list[str], end: str, settings: Any
) -> None:
    settings.MIDDLEWARE = middleware
    # Django closes the connection in the middle, and says so at the next query.
    assert wsgi(f"/two/{alias}/{end}/") in (b"OperationalError", b"ProgrammingError")
    assert Item.objects.count() == 0


@every_alias
@with_and_without
def test_a_test_that_reads_a_body_in_a_transaction_keeps_it(alias: str, middleware: list[str], settings: Any) -> None:
    settings.MIDDLEWARE = middleware
    response: Any = Client().get(f"/streams/{alias}/")
    with transaction.atomic(alias):
        Item.objects.using(alias).create(name="first")
        assert b"".join(response.streaming_content) == b"12"
        Item.objects.using(alias).create(name="second")
    assert Item.objects.count() == 2


@contextmanager
def managed(alias: str) -> Iterator[None]:
    with transaction.atomic(alias):
        yield


@every_alias
@pytest.mark.parametrize("begun", [transaction.atomic, managed])
def test_whoever_has_begun_it(alias: str, begun: Any, settings: Any) -> None:
    settings.MIDDLEWARE = []
    response: Any = Client().get(f"/streams/{alias}/")
    with ExitStack() as stack:
        stack.enter_context(begun(alias))
        Item.objects.using(alias).create(name="first")
        assert b"".join(response.streaming_content) == b"12"
        Item.objects.using(alias).create(name="second")
    assert Item.objects.count() == 2


# As that of a library: its file is not the application's own.
LIBRARY = compile(
    """
def leave_open(request, alias):
    transaction.atomic(alias).__enter__()
    return HttpResponse()
""",
    f"{os.sep}site-packages{os.sep}library{os.sep}views.py",
    "exec",
)
library: dict[str, Any] = {"__name__": "library.views", "transaction": transaction, "HttpResponse": HttpResponse}
exec(LIBRARY, library)
urlpatterns.append(path("leave-open/<alias>/", library["leave_open"]))


@every_alias
def test_what_a_librarys_view_leaves_open_does_not_go_on(
    alias: str, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    for _ in range(2):
        wsgi(f"/leave-open/{alias}/")
        assert not connections[alias].in_atomic_block
    wait_until_told()
    assert len([record for record in caplog.records if "left a transaction open" in record.getMessage()]) == 2


@every_alias
def test_what_goes_on_is_said(alias: str, settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.MIDDLEWARE = []
    caplog.set_level("INFO", "conn_hygiene.transactions")
    wsgi(f"/two/{alias}/return/")
    said = [record.getMessage() for record in caplog.records if record.name == "conn_hygiene.transactions"]
    assert said[0] == f"A request has ended in the middle of a transaction of '{alias}', which goes on."
    # As far as it depends on the toolkit: Django closes the connection right after that.
    (closed,) = said[1:]
    assert f" in close_another_response left a transaction open on '{alias}'" in closed


# ##### Sessions #####


@every_alias
def test_a_request_that_closes_another_response_ends_with_its_own(alias: str, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    wsgi(f"/closes/{alias}/")
    assert wsgi(f"/tenant/{alias}/") in (b"None", b"")


# Django closes the others' connections, whichever response it is.
@pytest.mark.parametrize("alias", ["persistent"])
def test_a_request_that_closes_another_response_keeps_what_it_has_set(alias: str, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    assert wsgi(f"/sets/{alias}/") == b"acme"


@every_alias
def test_a_request_in_the_middle_of_another_ends_nothing_of_it(alias: str, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    assert wsgi(f"/asks/{alias}/") == b"acme"
    assert serving.request is None
    assert wsgi(f"/tenant/{alias}/") in (b"None", b"")


@every_alias
def test_what_a_test_has_set_outlives_its_clients_requests(alias: str, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    ask("SET app.tenant = 'acme'", alias)
    ask("CREATE TEMP TABLE t_hygiene (n int)", alias)
    Client().get(f"/streams/{alias}/")
    assert Client().get(f"/tenant/{alias}/").content == b"acme"
    assert Client().get(f"/tenant/{alias}/").content == b"acme"
    assert ask("SELECT count(*) FROM t_hygiene", alias) == 0


def test_a_connection_that_outlives_requests_goes_from_one_to_the_next(settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE

    def set_up(sender: Any, connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET app.tenant = 'nobody'")

    connection_created.connect(set_up)
    try:
        assert len({wsgi("/pid/persistent/") for _ in range(3)}) == 1
    finally:
        connection_created.disconnect(set_up)
        connections["persistent"].close()


class Tenants:
    """A middleware around ours, which chooses the tenant."""

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        for alias in ("default", "unpooled", "persistent"):
            if f"/{alias}/" in request.path:
                ask(f"SET app.tenant = '{request.GET['tenant']}'", alias)
        return self.get_response(request)


def says_tenant_twice(request: HttpRequest, alias: str) -> HttpResponse:
    said = tenant(alias)
    let_the_reaper_look()
    return HttpResponse(f"{said} {tenant(alias)}")


urlpatterns.append(path("twice/<alias>/", says_tenant_twice))


@every_alias
@pytest.mark.parametrize("grace", [0, 0.001, 60])
def test_what_a_middleware_around_ours_sets_is_the_requests(alias: str, grace: float, settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.Tenants", *MIDDLEWARE]
    settings.CONN_HYGIENE = {"RELEASE_AFTER": grace, "UNPOOLED_RELEASE_AFTER": grace}
    for name in ("acme", "bobbin", "acme"):
        assert wsgi(f"/twice/{alias}/?tenant={name}") == f"{name} {name}".encode()


@every_alias
def test_a_request_whose_end_is_not_told_leaves_nothing(alias: str, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 60, "UNPOOLED_RELEASE_AFTER": 60}
    # Nobody closes its response.
    get_wsgi_application()(RequestFactory().get(f"/closes/{alias}/").environ, start_response)
    assert wsgi(f"/tenant/{alias}/") in (b"None", b"")
    settings.MIDDLEWARE = [f"{__name__}.Tenants", *MIDDLEWARE]
    get_wsgi_application()(RequestFactory().get(f"/closes/{alias}/?tenant=bobbin").environ, start_response)
    assert wsgi(f"/twice/{alias}/?tenant=acme") == b"acme acme"


@every_alias
def test_a_body_has_what_its_request_has_set(alias: str, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    assert wsgi(f"/streams-tenant/{alias}/") == b"acmeacme"


@every_alias
def test_what_is_set_in_a_thread_of_an_executor_reaches_no_other_request(alias: str, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE

    async def serve() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        # Within its request, it follows.
        assert await asgi(f"/sets-in-a-thread/{alias}/") == b"acme"
        await asyncio.to_thread(wait_until_released, alias)
        assert await asgi(f"/in-a-thread/{alias}/") in (b"None", b"")
        await asyncio.to_thread(connections.close_all)

    async_to_sync(serve)()


@every_alias
def test_what_keeps_the_connection_of_an_executors_thread_reaches_no_other_request(alias: str, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 60, "UNPOOLED_RELEASE_AFTER": 60}

    async def serve() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        assert await asgi(f"/stays-in-a-thread/{alias}/") == b"acme"
        assert await asgi(f"/looks-in-a-thread/{alias}/") == b"None False"
        await asyncio.to_thread(connections.close_all)

    async_to_sync(serve)()


def serve_in_one_thread(*urls: str, initially: Callable[[], object] | None = None) -> list[bytes]:
    async def serve() -> list[bytes]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, initializer=initially))
        try:
            return [await asgi(url) for url in urls]
        finally:
            await asyncio.to_thread(connections.close_all)

    return async_to_sync(serve)()


@every_alias
def test_a_request_that_forgets_its_cursor_keeps_what_it_has_set(alias: str, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 60, "UNPOOLED_RELEASE_AFTER": 60}
    assert serve_in_one_thread(f"/in-a-thread/{alias}/", f"/forgets/{alias}/")[1] == b"acme"


@every_alias
def test_what_is_set_under_a_hold_reaches_no_other_request(alias: str, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    assert serve_in_one_thread(f"/under-a-hold/{alias}/", f"/in-a-thread/{alias}/")[1] in (b"None", b"")


@every_alias
@pytest.mark.parametrize("grace", [0, 60])
def test_what_was_there_before_any_request_stays(alias: str, grace: float, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    settings.CONN_HYGIENE = {"RELEASE_AFTER": grace, "UNPOOLED_RELEASE_AFTER": grace}
    said = serve_in_one_thread(
        *[f"/in-a-thread/{alias}/"] * 3, initially=lambda: ask("SET app.tenant = 'everybody'", alias)
    )
    assert said == [b"everybody"] * 3


@pytest.mark.parametrize("alias", ["default", "persistent"])
def test_a_thread_that_only_asks_keeps_its_session(alias: str, settings: Any) -> None:
    settings.MIDDLEWARE = MIDDLEWARE
    settings.CONN_HYGIENE = {"RELEASE_AFTER": 60, "UNPOOLED_RELEASE_AFTER": 60}
    known.after_fork_in_child()
    assert len(set(serve_in_one_thread(*[f"/pid-of-a-thread/{alias}/"] * 3))) == 1


@every_alias
def test_outside_of_requests_what_is_set_follows_on(alias: str) -> None:
    with release_between_queries():
        ask("SET app.tenant = 'acme'", alias)
        wait_until_released(alias)
    with release_between_queries():
        assert tenant(alias) == "acme"
