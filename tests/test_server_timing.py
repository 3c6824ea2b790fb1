"""SERVER_TIMING: what the response says about the connections of its request."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path

from conn_hygiene import hold_connection
from conn_hygiene.leases import usage
from conn_hygiene.middleware import (
    ConnectionHygieneMiddleware,
    IdleInTransactionMiddleware,
    ReleaseBetweenQueriesMiddleware,
)
from tests.testapp.models import Item
from tests.waiting import wait_until_released

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["default", "persistent"]),
    pytest.mark.urls(__name__),
]

METRICS = re.compile(
    r'db-wait;dur=\d+\.\d;desc="waited for a database connection", '
    r'db-held;dur=(\d+\.\d);desc="database connection held", db-used;dur=(\d+\.\d);desc="database connection used"$'
)
PAUSE = 0.1


def query(alias: str = "default", seconds: float = 0) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


def idle(request: HttpRequest) -> HttpResponse:
    time.sleep(PAUSE)
    return HttpResponse()


def busy(request: HttpRequest) -> HttpResponse:
    query(seconds=PAUSE)
    return HttpResponse()


def waiting(request: HttpRequest) -> HttpResponse:
    with hold_connection():
        query()
        time.sleep(PAUSE)
    return HttpResponse()


def in_transaction(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        query()
        time.sleep(PAUSE)
    return HttpResponse()


def releasing(request: HttpRequest) -> HttpResponse:
    """Hold a connection twice, and none for a much longer time in between."""
    query(seconds=PAUSE)
    wait_until_released()
    time.sleep(5 * PAUSE)
    query(seconds=PAUSE)
    return HttpResponse()


def closing(request: HttpRequest) -> HttpResponse:
    """Close the connection under an open cursor, and go on without."""
    cursor = connections["default"].cursor()
    cursor.execute("SELECT 1")
    connections["default"].close()
    time.sleep(PAUSE)
    return HttpResponse()


def persistent(request: HttpRequest) -> HttpResponse:
    query("persistent")
    return HttpResponse()


def marked(request: HttpRequest) -> HttpResponse:
    return HttpResponse(headers={"Server-Timing": "cache;dur=1"})


def streaming(request: HttpRequest) -> StreamingHttpResponse:
    def body() -> Iterator[bytes]:
        query(seconds=PAUSE)
        yield b"body"

    return StreamingHttpResponse(body())


def threads(request: HttpRequest) -> HttpResponse:
    """Query in a thread that knows nothing of the request."""

    def job() -> None:
        query(seconds=PAUSE)
        connections["default"].close()

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    return HttpResponse()


async def async_busy(request: HttpRequest) -> HttpResponse:
    await sync_to_async(query)(seconds=PAUSE)
    await Item.objects.acount()
    return HttpResponse()


async def async_parallel(request: HttpRequest) -> HttpResponse:
    def job() -> None:
        query(seconds=PAUSE)
        connections["default"].close()

    await asyncio.gather(asyncio.to_thread(job), sync_to_async(job, thread_sensitive=False)())
    return HttpResponse()


VIEWS: list[Any] = [
    idle,
    busy,
    waiting,
    in_transaction,
    releasing,
    closing,
    persistent,
    marked,
    streaming,
    threads,
    async_busy,
    async_parallel,
]
urlpatterns = [path(f"{view.__name__}/", view) for view in VIEWS]


def dotted(*middleware: type) -> list[str]:
    return [f"{each.__module__}.{each.__name__}" for each in middleware]


@pytest.fixture(autouse=True)
def _on() -> Iterator[None]:
    with override_settings(CONN_HYGIENE={"SERVER_TIMING": True}, MIDDLEWARE=dotted(ConnectionHygieneMiddleware)):
        yield
    assert usage.current.get() is None


def milliseconds(response: Any) -> tuple[float, float]:
    """Return for how long the response says that connections were held, and used."""
    found = METRICS.match(response["Server-Timing"])
    assert found is not None, response["Server-Timing"]
    return float(found[1]), float(found[2])


def get(view: Any) -> Any:
    response = Client().get(f"/{view.__name__}/")
    assert response.status_code == 200
    return response


PAUSED = PAUSE * 1000


def test_a_request_without_a_query_holds_nothing() -> None:
    assert milliseconds(get(idle)) == (0, 0)


def test_a_slow_query_is_use() -> None:
    held, used = milliseconds(get(busy))
    assert held >= used >= PAUSED


def test_a_connection_that_waits_for_something_else_is_held() -> None:
    held, used = milliseconds(get(waiting))
    assert held >= PAUSED
    assert used <= held - PAUSED + 0.2  # rounding


def test_a_transaction_is_use() -> None:
    held, used = milliseconds(get(in_transaction))
    assert held >= used >= PAUSED


def test_the_times_of_all_checkouts_are_added_and_none_in_between() -> None:
    began = time.monotonic()
    held, used = milliseconds(get(releasing))
    whole = (time.monotonic() - began) * 1000
    assert held >= used >= 2 * PAUSED
    assert held <= whole - 5 * PAUSED


def test_use_ends_with_the_connection() -> None:
    held, used = milliseconds(get(closing))
    assert 0 < used <= held + 0.1  # rounding


def test_a_connection_that_outlives_its_request_counts_from_the_next_ones_first_use() -> None:
    with override_settings(
        CONN_HYGIENE={"SERVER_TIMING": True, "RELEASE": "never"}, MIDDLEWARE=dotted(ConnectionHygieneMiddleware)
    ):
        query("persistent")
        time.sleep(5 * PAUSE)
        began = time.monotonic()
        held, used = milliseconds(get(persistent))
        assert 0 < used <= held <= (time.monotonic() - began) * 1000 + 0.1
        assert milliseconds(get(idle)) == (0, 0)


def test_a_header_that_is_there_is_added_to() -> None:
    value = get(marked)["Server-Timing"]
    before, _, ours = value.partition(", ")
    assert before == "cache;dur=1"
    assert METRICS.match(ours)


def test_a_streamed_body_comes_after_the_header() -> None:
    response = get(streaming)
    assert b"".join(response.streaming_content) == b"body"
    assert milliseconds(response) == (0, 0)


def test_a_thread_of_its_own_is_not_part_of_the_request() -> None:
    assert milliseconds(get(threads)) == (0, 0)


async def test_an_async_view() -> None:
    response = await AsyncClient().get("/async_busy/")
    held, used = milliseconds(response)
    assert held >= used >= PAUSED


async def test_threads_that_carry_the_context_are_part_of_the_request() -> None:
    response = await AsyncClient().get("/async_parallel/")
    held, used = milliseconds(response)
    assert held >= used >= 2 * PAUSED


def test_an_async_view_under_wsgi() -> None:
    held, used = milliseconds(get(async_busy))
    assert held >= used >= PAUSED


async def test_a_sync_view_under_asgi() -> None:
    response = await AsyncClient().get("/busy/")
    held, used = milliseconds(response)
    assert held >= used >= PAUSED


@pytest.mark.parametrize("middleware", [ReleaseBetweenQueriesMiddleware, IdleInTransactionMiddleware])
def test_each_middleware_measures(middleware: type) -> None:
    with override_settings(MIDDLEWARE=dotted(middleware)):
        assert milliseconds(get(busy))[1] >= PAUSED


def test_two_middleware_measure_once() -> None:
    with override_settings(MIDDLEWARE=dotted(IdleInTransactionMiddleware, ReleaseBetweenQueriesMiddleware)):
        assert milliseconds(get(busy))[1] >= PAUSED


def test_nobody_is_told_who_did_not_ask() -> None:
    with override_settings(CONN_HYGIENE={}):
        assert "Server-Timing" not in get(busy)
