from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.db import OperationalError
from django.shortcuts import render
from django.utils.decorators import sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin
from psycopg_pool import PoolTimeout

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, HttpResponse

# All that a page needs comes from here, and no script stands in the HTML.
POLICY = "default-src 'self'; img-src 'self' data:"


@sync_and_async_middleware
def page_middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Tell the browser how long each response took, for the footer of the page, and whose scripts it may run."""
    if iscoroutinefunction(get_response):

        async def timed_async(request: HttpRequest) -> HttpResponse:
            started = begin(request)
            return end(await get_response(request), started)

        return timed_async

    def timed(request: HttpRequest) -> HttpResponse:
        started = begin(request)
        return end(get_response(request), started)

    return timed


def wants_toolbar(request: HttpRequest) -> bool:
    """Have the debug toolbar on pages that are asked for with ``?toolbar`` alone: it takes time, and place."""
    return "toolbar" in request.GET or request.path.startswith("/__debug__/")


def begin(request: HttpRequest) -> float:
    request.started = time.perf_counter()  # type: ignore[attr-defined]
    return request.started  # type: ignore[attr-defined]


def end(response: HttpResponse, started: float) -> HttpResponse:
    # The toolkit, which is around this, adds its own to it.
    response["Server-Timing"] = f'total;dur={1000 * (time.perf_counter() - started):.1f};desc="in Django"'
    # Django's debug pages have styles of their own in the HTML.
    if not settings.DEBUG:
        response.headers.setdefault("Content-Security-Policy", POLICY)
    return response


class BusyDatabaseMiddleware(MiddlewareMixin):
    """Answer 503 when the pool had no connection in time, as a good site does.

    It also lets the demo tell these failures from all others.
    """

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        return busy(request, exception)


def busy(request: HttpRequest, exception: Exception) -> HttpResponse | None:
    """Return the answer to a request for which the pool had no connection; None if *exception* is another one."""
    if isinstance(exception, OperationalError) and isinstance(exception.__cause__, PoolTimeout):
        response = render(request, "shop/busy.html", status=503)
        response["Retry-After"] = "5"
        return response
    return None
