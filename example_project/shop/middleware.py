from __future__ import annotations

from typing import TYPE_CHECKING

from django.db import OperationalError
from django.shortcuts import render
from django.utils.deprecation import MiddlewareMixin
from psycopg_pool import PoolTimeout

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse


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
