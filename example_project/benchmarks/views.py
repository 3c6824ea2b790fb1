"""The pages under measurement, and their URLs. Each asks for orders of the shop by their primary keys.

Times are milliseconds in the URLs, and microseconds where they are the processor's.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from typing import TYPE_CHECKING

from django.db import OperationalError, connection, transaction
from django.http import HttpResponse, JsonResponse
from django.urls import path
from psycopg_pool import PoolTimeout

from example_project.shop.models import Order

if TYPE_CHECKING:
    from django.http import HttpRequest

ORDERS = 500  # as many as "manage.py seed" makes

# The processor has run other processes before, and has to find this one's data again.
WARM_UP = 10


def query(times: int) -> None:
    for _ in range(times):
        Order.objects.get(pk=random.randint(1, ORDERS))


def page(request: HttpRequest, before: int, elsewhere: int, after: int) -> HttpResponse:
    """Query, wait for somebody else, and query again."""
    query(before)
    if elsewhere:
        time.sleep(elsewhere / 1000)
    query(after)
    return HttpResponse()


def long_page(request: HttpRequest, queries: int, between: int) -> HttpResponse:
    """Query many times, and have the processor do something with each answer."""
    for _ in range(queries):
        query(1)
        work(between)
    return HttpResponse()


def work(microseconds: int) -> None:
    until = time.perf_counter() + microseconds / 1e6
    while time.perf_counter() < until:
        pass


async def async_page(request: HttpRequest, before: int, elsewhere: int, after: int) -> HttpResponse:
    """The same, as it is written for an ASGI server."""
    for _ in range(before):
        await Order.objects.aget(pk=random.randint(1, ORDERS))
    await asyncio.sleep(elsewhere / 1000)
    for _ in range(after):
        await Order.objects.aget(pk=random.randint(1, ORDERS))
    return HttpResponse()


@transaction.atomic
def atomic_page(request: HttpRequest, queries: int) -> HttpResponse:
    query(queries)
    return HttpResponse()


def many_gets(request: HttpRequest, times: int) -> JsonResponse:
    """Answer how many microseconds one ``.get()`` takes in a request that does nothing else."""
    query(WARM_UP)
    started = time.perf_counter()
    query(times)
    return JsonResponse({"microseconds": (time.perf_counter() - started) / times * 1e6})


def many_selects(request: HttpRequest, times: int) -> JsonResponse:
    """Answer how many microseconds the smallest query takes, without the ORM."""
    select(WARM_UP)
    started = time.perf_counter()
    select(times)
    return JsonResponse({"microseconds": (time.perf_counter() - started) / times * 1e6})


def select(times: int) -> None:
    for _ in range(times):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetchone()


def failed(request: HttpRequest) -> HttpResponse:
    """Tell a pool's timeouts from all other errors."""
    error = sys.exc_info()[1]
    timeout = isinstance(error, OperationalError) and isinstance(error.__cause__, PoolTimeout)
    return HttpResponse(status=503 if timeout else 500)


handler500 = failed

urlpatterns = [
    path("page/<int:before>/<int:elsewhere>/<int:after>", page),
    path("long/<int:queries>/<int:between>", long_page),
    path("async/<int:before>/<int:elsewhere>/<int:after>", async_page),
    path("atomic/<int:queries>", atomic_page),
    path("gets/<int:times>", many_gets),
    path("selects/<int:times>", many_selects),
]
