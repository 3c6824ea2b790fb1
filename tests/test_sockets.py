"""The middleware for Channels, around applications that are none of Channels: what it promises to any socket."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import SyncToAsync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.core.asgi import get_asgi_application
from django.db import connection, connections, transaction
from django.http import FileResponse, HttpRequest, HttpResponse
from django.urls import path

import conn_hygiene
from conn_hygiene import internals
from conn_hygiene.contrib.channels import ConnectionHygieneMiddleware
from conn_hygiene.work import serving
from tests.waiting import holds, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "unpooled", "persistent"]),
    pytest.mark.urls(__name__),
]

SCOPE = {"type": "websocket", "path": "/ws/orders/1/"}


async def nothing(*arguments: Any) -> None:
    """Stand in for receive() and send()."""


def run(*consumers: Callable[[], Awaitable[None]], **scope: Any) -> None:
    """Run *consumers*, each as a socket of its own, at the same time."""

    async def main() -> None:
        await asyncio.gather(*(serve(consumer, **scope) for consumer in consumers))

    asyncio.run(main())


async def serve(consumer: Callable[[], Awaitable[None]], **scope: Any) -> None:
    async def application(*arguments: Any) -> None:
        await consumer()

    await ConnectionHygieneMiddleware(application)(SCOPE | scope, nothing, nothing)


@sync_to_async
def query(sql: str = "SELECT pg_backend_pid()") -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("conn-hygiene-socket")]


def test_nothing_is_held_between_two_queries() -> None:
    async def consumer() -> None:
        await query()
        await asyncio.to_thread(wait_until_released)
        await query()

    run(consumer)


def test_what_one_socket_sets_no_other_has() -> None:
    was_set, was_read = asyncio.Event(), asyncio.Event()
    read = []

    async def sets() -> None:
        await query("SELECT set_config('app.tenant', '42', false)")
        was_set.set()
        await was_read.wait()
        read.append(await query("SELECT current_setting('app.tenant', true)"))

    async def reads() -> None:
        await was_set.wait()
        read.append(await query("SELECT coalesce(current_setting('app.tenant', true), '')"))
        was_read.set()

    run(sets, reads)
    assert read == ["", "42"]


def ask(alias: str, sql: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def set_tenant(alias: str) -> Any:
    return ask(alias, "SELECT set_config('app.tenant', '42', false)")


def tenant(alias: str) -> Any:
    return ask(alias, "SELECT coalesce(current_setting('app.tenant', true), '')")


@pytest.mark.parametrize("alias", ["default", "unpooled", "persistent"])
@pytest.mark.parametrize("grace", [0, 60])
def test_what_a_socket_sets_in_a_thread_that_outlives_it_no_other_has(alias: str, grace: float, settings: Any) -> None:
    settings.CONN_HYGIENE = {"RELEASE_AFTER": grace, "UNPOOLED_RELEASE_AFTER": grace}
    read = []

    async def sets() -> None:
        await asyncio.to_thread(set_tenant, alias)
        # Within the socket, it follows.
        read.append(await sync_to_async(tenant, thread_sensitive=False)(alias))

    async def reads() -> None:
        read.append(await asyncio.to_thread(tenant, alias))

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        await serve(sets)
        await serve(reads)
        await asyncio.to_thread(connections.close_all)

    asyncio.run(main())
    assert read == ["42", ""]


def close_another_response() -> None:
    with tempfile.TemporaryFile() as file:
        FileResponse(file).close()


def test_the_end_of_another_response_is_not_the_sockets() -> None:
    def work() -> None:
        set_tenant("persistent")
        label = serving.label
        close_another_response()
        assert serving.label == label == "WEBSOCKET /ws/orders/1/"
        assert tenant("persistent") == "42"

    async def consumer() -> None:
        await sync_to_async(work)()

    run(consumer)


def sets_and_says(request: HttpRequest) -> HttpResponse:
    said = tenant("default")
    set_tenant("default")
    return HttpResponse(f"{said} {serving.label}")


urlpatterns = [path("sets/", sets_and_says)]


def test_an_application_of_djangos_inside_is_a_request_as_ever(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.MIDDLEWARE = ["conn_hygiene.middleware.ConnectionHygieneMiddleware"]
    application = ConnectionHygieneMiddleware(get_asgi_application())

    async def get() -> bytes:
        scope = {"type": "http", "method": "GET", "path": "/sets/", "query_string": b"", "headers": []}
        communicator = ApplicationCommunicator(application, scope)
        await communicator.send_input({"type": "http.request"})
        await communicator.receive_output(10)
        body: bytes = (await communicator.receive_output(10))["body"]
        await communicator.wait(10)
        return body

    async def main() -> list[bytes]:
        return [await get(), await get()]

    assert asyncio.run(main()) == [b" GET /sets/"] * 2
    assert not holds("default")
    assert not caplog.records


def test_two_sockets_query_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=10)

    async def consumer() -> None:
        await sync_to_async(both.wait)()

    run(consumer, consumer)


def test_reports_have_the_path(caplog: pytest.LogCaptureFixture) -> None:
    """And a transaction that a socket leaves open ends with it, as a request's does."""
    requests: list[str | None] = []

    def leave_open() -> None:
        transaction.set_autocommit(False)
        connection.ensure_connection()
        requests.extend(info.request for info in conn_hygiene.snapshot())

    async def consumer() -> None:
        await sync_to_async(leave_open)()
        await query()

    run(consumer, path="/ws/orders/1/\x1b[2J")
    (label,) = requests
    assert label == "WEBSOCKET /ws/orders/1/ [2J"
    (record,) = [record for record in caplog.records if record.name == "conn_hygiene.transactions"]
    assert record.getMessage().startswith(f"{label} left a transaction open")
    assert not holds("default")


@pytest.mark.parametrize(
    ("scope", "label"),
    [
        ({"type": "http", "method": "GET"}, "GET /ws/orders/1/"),
        ({"type": "channel", "path": "thumbnails"}, "CHANNEL thumbnails"),
    ],
)
def test_other_consumers_are_named_too(scope: dict[str, Any], label: str) -> None:
    async def consumer() -> None:
        assert await sync_to_async(held_for)() == [label]

    def held_for() -> list[str | None]:
        with transaction.atomic():
            connection.ensure_connection()
            return [info.request for info in conn_hygiene.snapshot()]

    run(consumer, **scope)


def test_the_thread_begins_with_the_first_query_and_ends_with_the_socket() -> None:
    async def consumer() -> None:
        assert threads() == []
        await query()
        assert len(threads()) == 1

    run(consumer)
    # asyncio.run() has waited for no thread but those of its own executor.
    for thread in threading.enumerate():
        if thread.name.startswith("conn-hygiene-socket"):
            thread.join(10)
    assert threads() == []


def test_a_socket_that_never_queries_has_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    start = threading.Thread.start

    def note_and_start(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note_and_start)

    async def consumer() -> None:
        await asyncio.sleep(0)

    run(consumer)
    assert [name for name in started if name.startswith("conn-hygiene-socket")] == []


def test_what_a_socket_raises_passes_through() -> None:
    async def consumer() -> None:
        await query()
        raise ValueError("not mine")

    with pytest.raises(ValueError, match="not mine"):
        run(consumer)
    assert not holds("default")


def test_a_cancelled_socket_waits_for_its_query_and_leaves_nothing() -> None:
    async def consumer() -> None:
        await query("SELECT 1 FROM pg_sleep(0.2)")

    async def main() -> None:
        task = asyncio.create_task(serve(consumer))
        while not holds("default"):
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not holds("default")

    asyncio.run(main())


def test_the_servers_life_is_no_socket() -> None:
    async def consumer() -> None:
        assert SyncToAsync.thread_sensitive_context.get(None) is None

    run(consumer, type="lifespan")


def test_without_asgirefs_names_the_thread_is_asgirefs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internals.ASYNC_TASKS, "available", False)

    async def consumer() -> None:
        await query()
        assert threads() == []
        await asyncio.to_thread(wait_until_released)

    run(consumer)
    wait_until_released()
