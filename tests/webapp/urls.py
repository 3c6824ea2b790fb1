"""Views that leave their connections in every state that a connection should not be left in."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

import conn_hygiene
from tests.testapp.models import Item

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What code that forgets about a generator leaves on the heap.
forgotten: list[Any] = []


def by_set_autocommit(alias: str) -> None:
    transaction.set_autocommit(False, using=alias)
    Item.objects.using(alias).create(name="never")


def by_begin(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("BEGIN")
    Item.objects.using(alias).create(name="never")


def by_atomic(alias: str) -> None:
    transaction.atomic(using=alias).__enter__()
    Item.objects.using(alias).create(name="never")


def by_nested_atomic(alias: str) -> None:
    by_atomic(alias)
    by_atomic(alias)


def by_failed_atomic(alias: str) -> None:
    by_atomic(alias)
    transaction.set_rollback(True, using=alias)


def by_generator(alias: str) -> None:
    def rows() -> Iterator[int]:
        with transaction.atomic(using=alias):
            yield Item.objects.using(alias).create(name="never").pk

    generator = rows()
    next(generator)
    forgotten.append(generator)


WAYS: dict[str, Callable[[str], None]] = {
    "set_autocommit": by_set_autocommit,
    "begin": by_begin,
    "atomic": by_atomic,
    "nested_atomic": by_nested_atomic,
    "failed_atomic": by_failed_atomic,
    "generator": by_generator,
}


def leave_open(request: HttpRequest, way: str, alias: str) -> HttpResponse:
    WAYS[way](alias)
    return look(request, alias)


async def leave_open_async(request: HttpRequest, way: str, alias: str) -> HttpResponse:
    from asgiref.sync import sync_to_async

    return await sync_to_async(leave_open)(request, way, alias)


def leave_open_and_fail(request: HttpRequest, way: str, alias: str) -> HttpResponse:
    WAYS[way](alias)
    raise SystemError("the view's own")


def leave_open_while_streaming(request: HttpRequest, way: str, alias: str) -> StreamingHttpResponse:
    def body() -> Iterator[str]:
        yield "first"
        WAYS[way](alias)
        yield "second"

    return StreamingHttpResponse(body())


def close_inside_atomic(request: HttpRequest, alias: str) -> HttpResponse:
    by_atomic(alias)
    connections[alias].close()
    return HttpResponse()


def commit(request: HttpRequest, alias: str) -> HttpResponse:
    with transaction.atomic(using=alias):
        Item.objects.using(alias).create(name="kept")
    return look(request, alias)


def look(request: HttpRequest, alias: str) -> HttpResponse:
    autocommit = connections[alias].get_autocommit()
    # On the raw connection, since Django refuses to query in a block that failed.
    handle: Any = connections[alias].connection
    pid, writing = handle.execute("SELECT pg_backend_pid(), pg_current_xact_id_if_assigned() IS NOT NULL").fetchone()
    return JsonResponse(
        {"pid": pid, "writing": writing, "autocommit": autocommit, "thread": threading.get_ident()},
    )


def run(request: HttpRequest, alias: str) -> HttpResponse:
    with connections[alias].cursor() as cursor:
        cursor.execute(request.GET["sql"])
        row = cursor.fetchone() if cursor.description else None
    return JsonResponse({"row": row, "pid": cursor.connection.pgconn.backend_pid}, json_dumps_params={"default": str})


def snapshot(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"held": [info.alias for info in conn_hygiene.snapshot()]})


urlpatterns = [
    path("leave-open/<way>/<alias>/", leave_open),
    path("leave-open-async/<way>/<alias>/", leave_open_async),
    path("leave-open-and-fail/<way>/<alias>/", leave_open_and_fail),
    path("leave-open-while-streaming/<way>/<alias>/", leave_open_while_streaming),
    path("close-inside-atomic/<alias>/", close_inside_atomic),
    path("commit/<alias>/", commit),
    path("look/<alias>/", look),
    path("run/<alias>/", run),
    path("snapshot/", snapshot),
]
