"""The middleware for Channels, around applications that are none of Channels: what it promises to any socket."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import SyncToAsync, sync_to_async
from django.db import connection, transaction

import conn_hygiene
from conn_hygiene import internals
from conn_hygiene.contrib.channels import ConnectionHygieneMiddleware
from tests.waiting import holds, wait_until_released

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.django_db(transaction=True)

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
