"""The middleware, sync and async, with every kind of view and body."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.core.asgi import get_asgi_application
from django.db import connections, transaction
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, RequestFactory, modify_settings
from django.urls import path

from conn_hygiene import hold_connection, installation, release_between_queries
from conn_hygiene.middleware import (
    ConnectionHygieneMiddleware,
    IdleInTransactionMiddleware,
    ReleaseBetweenQueriesMiddleware,
)
from tests.testapp.models import Item
from tests.waiting import holds, let_the_reaper_look, wait_until, wait_until_released

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from psycopg_pool import ConnectionPool

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]

RELEASING = [ConnectionHygieneMiddleware, ReleaseBetweenQueriesMiddleware]
releasing = pytest.mark.parametrize("middleware", RELEASING, ids=lambda middleware: middleware.__name__)


def query() -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT 1")


def assert_stays() -> None:
    let_the_reaper_look()
    assert holds("default")


def query_and_wait() -> None:
    query()
    wait_until_released()


def query_and_stay() -> None:
    query()
    assert_stays()


# ##### A small site #####


def page(request: HttpRequest) -> HttpResponse:
    query_and_wait()
    query_and_wait()
    return HttpResponse("page")


async def async_page(request: HttpRequest) -> HttpResponse:
    await sync_to_async(query_and_wait)()
    await Item.objects.acount()
    await sync_to_async(wait_until_released)()
    return HttpResponse("page")


def page_of_one_alias(request: HttpRequest) -> HttpResponse:
    query_and_wait()
    return HttpResponse("small is held" if holds("small") else "nothing is held")


@transaction.non_atomic_requests(using="small")
def exempted_page_of_one_alias(request: HttpRequest) -> HttpResponse:
    return page_of_one_alias(request)


def page_that_is_not_released(request: HttpRequest) -> HttpResponse:
    query_and_stay()
    return HttpResponse("page")


class Stream:
    """A stream of events, each from a query, that is quiet until the test asks for more. One a test."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.threads: set[int] = set()
        self.threads_at_the_end: set[int] = set()
        self.loop_thread = 0
        self.ended = threading.Event()

    def more(self) -> None:
        self.asked.release()

    def one(self) -> bytes:
        self.threads.add(threading.get_ident())
        return f"data: {Item.objects.count()}\n\n".encode()

    def end(self) -> None:
        query()
        self.threads_at_the_end.add(threading.get_ident())
        self.ended.set()

    def body(self) -> Iterator[bytes]:
        try:
            yield self.one()
            while self.asked.acquire():
                yield self.one()
        finally:
            self.end()

    async def abody(self) -> AsyncIterator[bytes]:
        self.loop_thread = threading.get_ident()
        try:
            while True:
                yield await sync_to_async(self.one)()
                while not self.asked.acquire(blocking=False):
                    await asyncio.sleep(0.001)
        finally:
            self.ended.set()


stream = Stream()


@pytest.fixture(autouse=True)
def _new_stream() -> None:
    global stream  # noqa: PLW0603 - views find it here
    stream = Stream()


def events(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(stream.body(), content_type="text/event-stream")


def async_events(request: HttpRequest) -> StreamingHttpResponse:
    query()
    return StreamingHttpResponse(stream.abody(), content_type="text/event-stream")


async def async_events_from_async_view(request: HttpRequest) -> StreamingHttpResponse:
    await Item.objects.acount()
    return StreamingHttpResponse(stream.abody(), content_type="text/event-stream")


async def rows(request: HttpRequest) -> StreamingHttpResponse:
    async def body() -> AsyncIterator[bytes]:
        try:
            # Large, so that the server cannot send all of it to a client that does not read.
            async for item in Item.objects.order_by("pk").aiterator(chunk_size=2):
                yield item.name.encode() * 100_000
        finally:
            stream.ended.set()

    return StreamingHttpResponse(body())


async def long_body() -> AsyncIterator[bytes]:
    try:
        while True:
            yield await sync_to_async(stream.one)() * 100_000
    finally:
        await sync_to_async(stream.end)()


@release_between_queries
async def decorated_rows(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(release_between_queries(long_body)())


@hold_connection
async def rows_in_a_hold(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(long_body())


def failing(request: HttpRequest) -> HttpResponse:
    query()
    raise LookupError("the view's own")


async def async_failing(request: HttpRequest) -> HttpResponse:
    await Item.objects.acount()
    raise LookupError("the view's own")


urlpatterns = [
    path("page/", page),
    path("async-page/", async_page),
    path("page-of-one-alias/", page_of_one_alias),
    path("exempted-page-of-one-alias/", exempted_page_of_one_alias),
    path("page-that-is-not-released/", page_that_is_not_released),
    path("events/", events),
    path("async-events/", async_events),
    path("async-events-from-async-view/", async_events_from_async_view),
    path("rows/", rows),
    path("decorated-rows/", decorated_rows),
    path("rows-in-a-hold/", rows_in_a_hold),
    path("failing/", failing),
    path("async-failing/", async_failing),
]


@pytest.fixture
def use(settings: Any) -> Callable[..., None]:
    def use(*middleware: type) -> None:
        settings.MIDDLEWARE = [f"{cls.__module__}.{cls.__qualname__}" for cls in middleware]

    return use


def get(url: str, client: type) -> Any:
    if client is Client:
        return Client().get(url)
    return async_to_sync(AsyncClient().get)(url)


both_clients = pytest.mark.parametrize("client", [Client, AsyncClient], ids=["WSGI", "ASGI"])


# ##### Views #####


@releasing
@both_clients
@pytest.mark.parametrize("url", ["/page/", "/async-page/"])
def test_connections_are_given_back_while_the_view_runs(middleware: type, client: type, url: str, use: Any) -> None:
    use(middleware)
    assert get(url, client).content == b"page"
    # Not so after the request.
    query_and_stay()


@both_clients
def test_the_transaction_middleware_alone_releases_nothing(client: type, use: Any) -> None:
    use(IdleInTransactionMiddleware)
    assert get("/page-that-is-not-released/", client).content == b"page"


@pytest.mark.django_db(transaction=True, databases=["default", "small"])
@releasing
@both_clients
@pytest.mark.parametrize(
    ("url", "expected"),
    [("/page-of-one-alias/", b"small is held"), ("/exempted-page-of-one-alias/", b"nothing is held")],
)
def test_atomic_requests_of_another_alias_hold_a_connection_of_it_in_every_view(
    middleware: type, client: type, url: str, expected: bytes, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As W001 says, and what it says to do about it."""
    monkeypatch.setitem(connections.settings["small"], "ATOMIC_REQUESTS", True)
    use(middleware)
    assert get(url, client).content == expected


@both_clients
@pytest.mark.parametrize("url", ["/page/", "/async-page/"])
def test_all_three_go_together_and_twice(client: type, url: str, use: Any) -> None:
    use(ConnectionHygieneMiddleware, ReleaseBetweenQueriesMiddleware, IdleInTransactionMiddleware, *RELEASING)
    assert get(url, client).content == b"page"
    query_and_stay()


@releasing
@both_clients
@pytest.mark.parametrize("url", ["/failing/", "/async-failing/"])
def test_a_failing_view_fails_as_it_would_without(middleware: type, client: type, url: str, use: Any) -> None:
    use(middleware)
    with pytest.raises(LookupError, match="the view's own"):
        get(url, client)
    wait_until_released()
    query_and_stay()


def sync_chain(middleware: Any, respond: Callable[[], Any]) -> Any:
    return middleware(lambda request: respond())(RequestFactory().get("/"))


def async_chain(middleware: Any, respond: Callable[[], Any]) -> Any:
    async def get_response(request: HttpRequest) -> Any:
        return await sync_to_async(respond)()

    handler = middleware(get_response)
    assert iscoroutinefunction(handler)
    return async_to_sync(handler)(RequestFactory().get("/"))


both_chains = pytest.mark.parametrize("chain", [sync_chain, async_chain])
every_middleware = pytest.mark.parametrize(
    "middleware", [*RELEASING, IdleInTransactionMiddleware], ids=lambda middleware: middleware.__name__
)


@every_middleware
@both_chains
@pytest.mark.parametrize("kind", [LookupError, SystemExit, GeneratorExit])
def test_what_is_raised_passes_untouched(middleware: Any, chain: Any, kind: type[BaseException]) -> None:
    # Made here, and not once for all: an exception keeps the stack that it went through, threads included.
    failure = kind(3)

    def respond() -> None:
        query()
        raise failure

    with pytest.raises(kind) as caught:
        chain(middleware, respond)
    assert caught.value is failure
    assert caught.value.__cause__ is caught.value.__context__ is None
    connections.close_all()
    query_and_stay()


@every_middleware
@both_chains
def test_a_plain_response_passes_untouched(middleware: Any, chain: Any) -> None:
    response = HttpResponse("page")
    before = dict(vars(response))
    assert chain(middleware, lambda: response) is response
    assert vars(response) == before


@every_middleware
@both_chains
def test_a_file_passes_untouched(middleware: Any, chain: Any) -> None:
    file = io.BytesIO(b"content")
    response: Any = FileResponse(file)
    iterator = response._iterator
    assert chain(middleware, lambda: response) is response
    assert response.file_to_stream is file
    assert response._iterator is iterator
    assert b"".join(response) == b"content"
    response.close()
    assert file.closed


@every_middleware
def test_a_middleware_without_a_next_one_is_refused_as_by_django(middleware: Any) -> None:
    with pytest.raises(ValueError, match="get_response"):
        middleware(None)


# ##### Streaming bodies #####


@releasing
@both_chains
def test_a_sync_body_holds_nothing_while_it_is_quiet(middleware: Any, chain: Any) -> None:
    response = chain(middleware, lambda: StreamingHttpResponse(stream.body()))
    body = iter(response)
    for _ in range(3):
        assert next(body) == b"data: 0\n\n"
        wait_until_released()
        # What its consumer does is not in the scope.
        query_and_stay()
        connections.close_all()
        stream.more()
    response.close()
    assert stream.ended.is_set()


@releasing
@both_chains
def test_an_async_body_holds_nothing_while_it_is_quiet(middleware: Any, chain: Any) -> None:
    async def consume() -> None:
        body = aiter(response)
        for _ in range(3):
            assert await anext(body) == b"data: 0\n\n"
            await sync_to_async(wait_until_released)()
            await sync_to_async(query_and_stay)()
            await sync_to_async(connections.close_all)()
            stream.more()

    response = chain(middleware, lambda: StreamingHttpResponse(stream.abody()))
    async_to_sync(consume)()


@releasing
@both_chains
def test_bodies_may_be_served_by_the_other_kind_of_server(middleware: Any, chain: Any) -> None:
    def sync_body() -> Iterator[bytes]:
        query_and_wait()
        yield b"1"
        query_and_wait()
        yield b"2"

    async def async_body() -> AsyncIterator[bytes]:
        for part in sync_body_parts:
            await sync_to_async(query_and_wait)()
            yield part

    async def serve(response: Any) -> list[bytes]:
        return [part async for part in response]

    sync_body_parts = [b"1", b"2"]
    response = chain(middleware, lambda: StreamingHttpResponse(sync_body()))
    with pytest.warns(Warning, match="must consume synchronous iterators"):
        assert async_to_sync(serve)(response) == [b"1", b"2"]
    response = chain(middleware, lambda: StreamingHttpResponse(async_body()))
    with pytest.warns(Warning, match="must consume asynchronous iterators"):
        assert list(response) == [b"1", b"2"]


@releasing
@both_chains
def test_a_failure_of_the_body_passes_untouched(middleware: Any, chain: Any) -> None:
    failure = LookupError("the body's own")

    def body() -> Iterator[bytes]:
        query()
        yield b"first"
        raise failure

    async def abody() -> AsyncIterator[bytes]:
        for part in await sync_to_async(lambda: [next(body())])():
            yield part
        raise failure

    async def serve(response: Any) -> None:
        async for _ in response:
            pass

    with pytest.raises(LookupError) as caught:
        list(chain(middleware, lambda: StreamingHttpResponse(body())))
    assert caught.value is failure
    with pytest.raises(LookupError) as caught:
        async_to_sync(serve)(chain(middleware, lambda: StreamingHttpResponse(abody())))
    assert caught.value is failure
    wait_until_released()


@both_chains
def test_a_body_keeps_what_it_holds_itself(chain: Any) -> None:
    def body() -> Iterator[bytes]:
        with hold_connection():
            query()
            yield b"held"
        with transaction.atomic():
            query()
            yield b"in a transaction"
        query()
        yield b"released"

    parts = iter(chain(ConnectionHygieneMiddleware, lambda: StreamingHttpResponse(body())))
    assert next(parts) == b"held"
    assert_stays()
    assert next(parts) == b"in a transaction"
    assert_stays()
    assert next(parts) == b"released"
    wait_until_released()


@both_chains
def test_a_body_that_is_never_asked_for_is_closed(chain: Any) -> None:
    closed = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b""])

        def close(self) -> None:
            closed.append(True)

    chain(ConnectionHygieneMiddleware, lambda: StreamingHttpResponse(Body())).close()
    assert closed == [True]


# ##### A real ASGI server #####


class Server(uvicorn.Server):
    """A server in a thread of this process, so that a test can see what is checked out."""

    def __init__(self) -> None:
        super().__init__(uvicorn.Config(get_asgi_application(), port=0, lifespan="off", log_config=None))
        self.thread = threading.Thread(target=self.run)

    @contextmanager
    def running(self) -> Iterator[str]:
        self.thread.start()
        try:
            wait_until(lambda: self.started or not self.thread.is_alive(), "the server has started")
            host, port = self.servers[0].sockets[0].getsockname()
            yield f"http://{host}:{port}"
        finally:
            self.should_exit = True
            # A stream that a test has not ended.
            self.force_exit = True
            self.thread.join()


@pytest.fixture(params=RELEASING, ids=lambda middleware: middleware.__name__)
def asgi_site(request: pytest.FixtureRequest, use: Any, settings: Any) -> Iterator[str]:
    use(request.param)
    with Server().running() as url:
        yield url


@pytest.fixture
def quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which anything is logged as a warning or worse, but for asyncio's about the client's socket."""
    caplog.set_level("WARNING")
    yield
    records = [record for record in caplog.get_records("call") if "socket.send()" not in record.getMessage()]
    assert [record.getMessage() for record in records] == []


def assert_pool_is_whole(pool: ConnectionPool) -> None:
    stats = pool.get_stats()
    assert stats["pool_available"] == stats["pool_size"] > 0


@pytest.mark.parametrize("url", ["/page/", "/async-page/"])
@pytest.mark.usefixtures("quiet_log")
def test_pages_of_a_real_server(asgi_site: str, url: str) -> None:
    with httpx.Client(base_url=asgi_site) as client:
        assert [client.get(url).text for _ in range(3)] == ["page"] * 3


@pytest.mark.parametrize("url", ["/async-events/", "/async-events-from-async-view/"])
@pytest.mark.usefixtures("quiet_log")
def test_server_sent_events_hold_nothing_while_they_are_quiet(
    asgi_site: str, url: str, pool_of: Callable[[str], ConnectionPool]
) -> None:
    with httpx.Client(base_url=asgi_site) as client, client.stream("GET", url) as response:
        body = response.iter_raw()
        for count in range(3):
            assert next(body) == f"data: {count}\n\n".encode()
            wait_until_released()
            assert_pool_is_whole(pool_of("default"))
            Item.objects.create(name="news")
            connections.close_all()
            stream.more()
    wait_until(stream.ended.is_set, "the server has seen the client go")
    wait_until_released()
    assert stream.loop_thread not in stream.threads


@pytest.mark.usefixtures("quiet_log")
def test_more_streams_than_connections(asgi_site: str, pool_of: Callable[[str], ConnectionPool]) -> None:
    with httpx.Client(base_url=asgi_site) as client:
        responses = []
        for _ in range(2 * pool_of("default").max_size):
            response = client.send(client.build_request("GET", "/async-events/"), stream=True)
            assert next(response.iter_raw()) == b"data: 0\n\n"
            responses.append(response)
        wait_until_released()
        for response in responses:
            response.close()


@pytest.mark.parametrize("url", ["/rows/", "/decorated-rows/", "/rows-in-a-hold/"])
@pytest.mark.usefixtures("quiet_log")
def test_a_client_that_goes_away_in_mid_stream_leaves_nothing_checked_out(
    asgi_site: str, url: str, pool_of: Callable[[str], ConnectionPool]
) -> None:
    Item.objects.bulk_create(Item(name="row") for _ in range(100))
    connections.close_all()
    with httpx.Client(base_url=asgi_site) as client, client.stream("GET", url) as response:
        next(response.iter_raw())
    wait_until(stream.ended.is_set, "the body is closed")
    wait_until_released()
    pool = pool_of("default")
    wait_until(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"], "the pool is whole")


@releasing
@pytest.mark.parametrize("url", ["/decorated-rows/", "/rows-in-a-hold/"])
def test_a_body_is_closed_with_its_request_when_the_client_goes_away(middleware: type, url: str, use: Any) -> None:
    use(middleware)
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not stream.asked.acquire(blocking=False):
            await gone.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        if message.get("body"):
            # The client does not read on; the body waits at its yield.
            gone.set()
            await asyncio.Event().wait()

    async def serve() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
        scope = {"type": "http", "method": "GET", "path": url, "query_string": b"", "headers": []}
        await get_asgi_application()(scope, receive, send)  # type: ignore[arg-type]
        # Not when the garbage collector gets to it, in a thread that is nobody's.
        assert stream.ended.is_set()
        assert stream.threads == stream.threads_at_the_end
        assert not holds("default")

    failures: list[Any] = []
    stream.more()
    asyncio.run(serve())
    assert failures == []


# ##### Without INSTALLED_APPS #####

SITE = """
import django
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "OPTIONS": {"pool": True}}},
    MIDDLEWARE=["conn_hygiene.middleware.%s"],
    ROOT_URLCONF="__main__",
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="site",
    CONN_HYGIENE={"RELAESE": 1},
)
django.setup()
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.urls import path
from conn_hygiene.reaper import reaper

def page(request):
    return HttpResponse("page")

urlpatterns = [path("", page)]
assert reaper.running is None
for _ in range(2):
    assert Client().get("/").content == b"page"
assert reaper.running is not None
"""

MISSING = (
    'conn_hygiene.middleware.%s is in use, and "conn_hygiene" is not in INSTALLED_APPS: manage.py has neither its '
    "checks nor its command connections, and what serves no requests, such as other commands and task queues, goes "
    'without the toolkit, its protection of forks included. Add "conn_hygiene" to INSTALLED_APPS.'
)


@pytest.mark.slow
@every_middleware
def test_the_middleware_installs_the_toolkit_where_installed_apps_does_not(middleware: Any) -> None:
    script = SITE % middleware.__name__
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    command = [sys.executable, "-W", "error", "-c", script]
    process = subprocess.run(command, env=environment, cwd=root, check=True, stderr=subprocess.PIPE, text=True)
    assert process.stderr.splitlines() == [
        MISSING % middleware.__name__,
        "CONN_HYGIENE has an unknown key 'RELAESE'. Did you mean 'RELEASE'? It is ignored.",
    ]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "conn_hygiene"]


def respond(request: HttpRequest) -> HttpResponse:
    return HttpResponse("page")


@every_middleware
def test_the_middleware_says_once_that_the_application_is_missing(
    middleware: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(installation, "_has_complained", False)
    with modify_settings(INSTALLED_APPS={"remove": "conn_hygiene"}):
        assert middleware(respond)(RequestFactory().get("/")).content == b"page"
        for each in RELEASING:
            each(respond)
    assert said(caplog) == [MISSING % middleware.__name__]


@every_middleware
def test_where_the_application_is_there_the_middleware_says_nothing(
    middleware: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(installation, "_has_complained", False)
    middleware(respond)
    assert said(caplog) == []
