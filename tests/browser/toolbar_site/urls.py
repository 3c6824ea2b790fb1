"""The pages of the site."""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING, Any

from debug_toolbar.toolbar import debug_toolbar_urls
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.urls import path

if TYPE_CHECKING:
    from collections.abc import Iterator


def only_own_files(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        response = get_response(request)
        response["Content-Security-Policy"] = "default-src 'self'; img-src 'self' data:"
        return response

    return middleware


def rows(statement: str, alias: str = "default") -> Iterator[Any]:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        yield from cursor.fetchall()


def order(request: HttpRequest) -> HttpResponse:
    """Look an order up, ask its carrier, and go on; the template asks for its lines."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT set_config('app.customer', '42', false), pg_sleep(0.01)")
    ask_the_carrier()
    with transaction.atomic(), connections["default"].cursor() as cursor:
        cursor.execute("SELECT 7 AS order_id, pg_sleep(0.005)")
        time.sleep(0.03)
        cursor.execute("SELECT 7 AS order_id FOR UPDATE")
    ask_the_carrier()
    with connections["reports"].cursor() as cursor:
        cursor.execute("SELECT count(*), pg_sleep(0.02) FROM pg_class")
    lines = rows("SELECT n AS line, pg_sleep(0.01) FROM generate_series(1, 3) AS n")
    return render(request, "shop/order.html", {"lines": lines})


def ask_the_carrier() -> None:
    time.sleep(0.08)


def light(request: HttpRequest) -> HttpResponse:
    """Query once."""
    list(rows("SELECT 'light'"))
    return render(request, "shop/light.html")


def slow(request: HttpRequest) -> HttpResponse:
    """Query twice, with the carrier in between."""
    list(rows("SELECT 1"))
    ask_the_carrier()
    list(rows("SELECT 2"))
    return render(request, "shop/light.html")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    lines = (f"Line {row[0]}<br>" for row in rows("SELECT generate_series(1, 3)"))
    return StreamingHttpResponse(chain(['<link rel="icon" href="data:,">'], lines))


urlpatterns = [path(f"{view.__name__}/", view) for view in (order, light, slow, stream)] + debug_toolbar_urls()
