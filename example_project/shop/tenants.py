"""The shop's tenants: stalls, whose offers are nobody else's to see.

They are kept apart in the two ways that sites use most: a schema for each, which ``search_path`` chooses, and rows
that a policy shows to those whom a setting of the session names. Either is set by a middleware, once a request, and
nothing in the views knows of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import OperationalError, connections
from django.http import Http404
from django.utils.deprecation import MiddlewareMixin

from example_project.shop.middleware import busy

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest, HttpResponse

STALLS = ("anvil", "bobbin", "candle", "dynamo")

# An alias of its own: policies do not bind superusers, so it assumes a role that is none.
ALIAS = "tenants"


def schema_of(stall: str) -> str:
    return f"stall_{stall}"


class TenantMiddleware(MiddlewareMixin):
    """Choose a tenant before a view runs that has one in its address, under the name of `keyword`."""

    keyword: str

    def process_view(
        self, request: HttpRequest, view: Callable[..., HttpResponse], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> HttpResponse | None:
        stall = kwargs.get(self.keyword)
        if stall is None:
            return None
        if stall not in STALLS:
            raise Http404
        try:
            self.choose(stall)
        except OperationalError as error:
            if response := busy(request, error):
                return response
            raise
        return None

    def choose(self, stall: str) -> None:
        raise NotImplementedError


class SchemaTenantMiddleware(TenantMiddleware):
    """Choose by ``search_path``, for the session: what tables the names mean."""

    keyword = "schema"

    def choose(self, stall: str) -> None:
        with connections[ALIAS].cursor() as cursor:
            cursor.execute(f"SET search_path TO {connections[ALIAS].ops.quote_name(schema_of(stall))}, public")


class PolicyTenantMiddleware(TenantMiddleware):
    """Choose by a function in the database, which sets what the policy reads: to Django a query like any other."""

    keyword = "stall"

    def choose(self, stall: str) -> None:
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SELECT become_stall(%s)", [stall])
