"""The pages under measurement, and their URLs. Each asks for orders of the shop by their primary keys.

Times are milliseconds in the URLs, and microseconds where they are the processor's.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from typing import TYPE_CHECKING

from django.db import OperationalError, connection, connections, transaction
from django.http import Http404, HttpResponse, JsonResponse
from django.urls import path
from psycopg_pool import PoolTimeout

from conn_hygiene import session_settings
from example_project.benchmarks.load import WRONG, waits
from example_project.shop.models import Order

if TYPE_CHECKING:
    from collections.abc import Callable

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


def page_of_an_alias(request: HttpRequest, elsewhere: int) -> HttpResponse:
    """The same, of one of all databases that there are."""
    alias = random.choice(list(connections))
    query_one(alias)
    time.sleep(elsewhere / 1000)
    query_one(alias)
    return HttpResponse()


def page_of_all_aliases(request: HttpRequest) -> HttpResponse:
    """Connect to all of them, so that none is new to the thread any more."""
    for alias in connections:
        query_one(alias)
    return HttpResponse()


def query_one(alias: str) -> None:
    Order.objects.using(alias).get(pk=random.randint(1, ORDERS))


def short_page(request: HttpRequest) -> HttpResponse:
    """Note how long it takes to get a connection, and query."""
    asked = time.perf_counter()
    connection.ensure_connection()
    waits.append(time.perf_counter() - asked)
    query(1)
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


def tenant_page(request: HttpRequest, way: str, elsewhere: int) -> HttpResponse:
    """Say whose request it is, query, wait for somebody else, and query again; the status tells if it was still so."""
    if way not in WAYS:
        raise Http404
    tenant = str(random.randrange(1_000_000))
    with contextlib.ExitStack() as stack:
        WAYS[way](tenant, stack)
        query(1)
        time.sleep(elsewhere / 1000)
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('shop.stall', true), current_user::text")
            found, role = cursor.fetchone()
        query(1)
    expected = way == "none" or (role == ROLE if way == "role" else found == tenant)
    return HttpResponse(status=200 if expected else WRONG)


def execute(statement: str, *params: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, params or None)


# It may read all tables, and is there on every server.
ROLE = "pg_read_all_data"

# How a site tells the database whose request it is.
WAYS: dict[str, Callable[[str, contextlib.ExitStack], object]] = {
    "none": lambda tenant, stack: None,
    "set": lambda tenant, stack: execute(f"SET shop.stall = '{tenant}'"),
    "config": lambda tenant, stack: execute("SELECT set_config('shop.stall', %s, false)", tenant),
    "role": lambda tenant, stack: execute(f"SET ROLE {ROLE}"),
    "block": lambda tenant, stack: stack.enter_context(session_settings({"shop.stall": tenant})),
    "function": lambda tenant, stack: execute("SELECT become_stall(%s)", tenant),
}


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


def counts(request: HttpRequest, what: str) -> JsonResponse:
    """Answer how many bytecodes something takes in a request."""
    from example_project.benchmarks import counting

    return JsonResponse(counting.count(what))


def failed(request: HttpRequest) -> HttpResponse:
    """Tell a pool's timeouts from all other errors."""
    error = sys.exc_info()[1]
    timeout = isinstance(error, OperationalError) and isinstance(error.__cause__, PoolTimeout)
    return HttpResponse(status=503 if timeout else 500)


handler500 = failed

urlpatterns = [
    path("page/<int:before>/<int:elsewhere>/<int:after>", page),
    path("alias/<int:elsewhere>", page_of_an_alias),
    path("aliases", page_of_all_aliases),
    path("short", short_page),
    path("long/<int:queries>/<int:between>", long_page),
    path("async/<int:before>/<int:elsewhere>/<int:after>", async_page),
    path("atomic/<int:queries>", atomic_page),
    path("tenant/<str:way>/<int:elsewhere>", tenant_page),
    path("gets/<int:times>", many_gets),
    path("selects/<int:times>", many_selects),
    path("counts/<str:what>", counts),
]
