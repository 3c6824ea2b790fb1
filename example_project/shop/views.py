"""The pages of the shop: each is one way to hold a connection for too long.

No view mentions connections, apart from the report with its decorator. The
toolkit works around the code of a project, not inside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.db import connection
from django.db.models import Count, F, QuerySet, Sum
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import aget_object_or_404, get_object_or_404, redirect, render
from django.urls import NoReverseMatch, reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

import conn_hygiene
from conn_hygiene import release_between_queries
from example_project.shop import carrier, services, tenants, visitors
from example_project.shop.models import Order, OrderLine, Product, SchemaOffer, SharedOffer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

OTHER_ORDERS = 3
POLL_EVERY = 1.0  # seconds
A_PARCEL = "PX0000000001"


@require_GET
def index(request: HttpRequest) -> HttpResponse:
    # One that is still on its way has more to show.
    order = Order.objects.exclude(status=Order.Status.DELIVERED).first() or Order.objects.first()
    context: dict[str, Any] = {"order": order, "orders": Order.objects.count(), "tools": tools(order)}
    if shops := visitors.shops():
        context |= {
            "sides": list(shops),
            "results": visitors.RESULTS,
            "pool": settings.POOL_SIZE,
            "patience": settings.POOL_TIMEOUT,
        }
    return render(request, "shop/index.html", context)


def tools(order: Order | None) -> list[tuple[str, str, str]]:
    """Return what is installed beside the shop: names, addresses, and what there is to see."""
    if not getattr(settings, "TOOLS", False):
        return []
    found = [("The admin", reverse("admin:index"), "As the user that make serve has printed.")]
    with contextlib.suppress(NoReverseMatch):
        page = reverse("admin:conn_hygiene_admin_connections_changelist")
        found.append(("Connections in the admin", page, "Who holds what, in all processes and on the server."))
    if order is not None:
        page = f"{order.get_absolute_url()}?toolbar"
        found.append(("The debug toolbar", page, "On an order; the end of the address has it on other pages, too."))
    return found


def order_queryset() -> QuerySet[Order]:
    return Order.objects.select_related("customer")


def other_orders(order: Order) -> QuerySet[Order]:
    return Order.objects.filter(customer=order.customer).exclude(pk=order.pk)[:OTHER_ORDERS]


@require_GET
def order(request: HttpRequest, pk: int) -> HttpResponse:
    """Query, wait for somebody else, query again: the page that the demo measures."""
    order = get_object_or_404(order_queryset(), pk=pk)
    lines = list(order.lines.select_related("product"))

    parcel = carrier.track(order.tracking_number) if order.tracking_number else None

    context = {"order": order, "lines": lines, "parcel": parcel}
    return render(request, "shop/order.html", context | {"others": list(other_orders(order))})


@require_GET
async def order_async(request: HttpRequest, pk: int) -> HttpResponse:
    """``order()`` with the asynchronous interface of the ORM."""
    order = await aget_object_or_404(order_queryset(), pk=pk)
    lines = [line async for line in order.lines.select_related("product")]

    parcel = await carrier.atrack(order.tracking_number) if order.tracking_number else None

    context = {"order": order, "lines": lines, "parcel": parcel}
    context["others"] = [other async for other in other_orders(order)]
    return render(request, "shop/order.html", context)


@require_GET
def order_events(request: HttpRequest, pk: int) -> StreamingHttpResponse:
    """Server-sent events: one for each change of an order's status.

    The body runs long after this view has returned. Between two looks at the
    order it is quiet, and should hold nothing.
    """
    if not Order.objects.filter(pk=pk).exists():
        raise Http404
    # Under ASGI a synchronous body would be read to its end before the first
    # byte is sent; under WSGI there is no event loop to run the other one.
    events = astatus_events(pk) if isinstance(request, ASGIRequest) else status_events(pk)
    return StreamingHttpResponse(
        events,
        content_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


def event(status: str) -> str:
    return f"event: status\ndata: {json.dumps({'status': status})}\n\n"


def status_events(pk: int) -> Iterator[str]:
    seen = None
    while seen != Order.Status.DELIVERED:
        status = Order.objects.values_list("status", flat=True).get(pk=pk)
        # A comment line keeps the connection alive, and shows whether the
        # client is still there.
        yield event(status) if status != seen else ": no change\n\n"
        seen = status
        if seen != Order.Status.DELIVERED:
            time.sleep(POLL_EVERY)


async def astatus_events(pk: int) -> AsyncIterator[str]:
    seen = None
    while seen != Order.Status.DELIVERED:
        status = await Order.objects.values_list("status", flat=True).aget(pk=pk)
        yield event(status) if status != seen else ": no change\n\n"
        seen = status
        if seen != Order.Status.DELIVERED:
            await asyncio.sleep(POLL_EVERY)


@require_POST
def advance_order(request: HttpRequest, pk: int) -> HttpResponse:
    """Move an order to its next status, for the stream to have something to tell."""
    order = get_object_or_404(Order, pk=pk)
    if order.next_status:
        order.status = order.next_status
        order.save(update_fields=["status"])
    return redirect(order)


@require_GET
@release_between_queries
def report(request: HttpRequest) -> HttpResponse:
    """Slow drawing between queries.

    With the middleware the decorator changes nothing. It is for projects that
    would rather begin with a single view; without the app it does nothing.
    """
    charts = [
        draw(
            "Orders by status",
            Order.objects.order_by("status").values_list("status").annotate(value=Count("pk")),
        ),
        draw(
            "Products by turnover",
            OrderLine.objects.values_list("product__name")
            .annotate(value=Sum(F("quantity") * F("unit_price")))
            .order_by("-value")[:8],
        ),
        draw(
            "Customers by orders",
            Order.objects.values_list("customer__name")
            .annotate(value=Count("pk"))
            .order_by("-value", "customer__name")[:8],
        ),
    ]
    return render(request, "shop/report.html", {"charts": charts})


def draw(title: str, rows: QuerySet[Any, tuple[str, Any]]) -> dict[str, Any]:
    bars = list(rows)
    longest = max((value for _, value in bars), default=1)
    time.sleep(0.15)  # A stand-in for drawing a chart, which takes no database.
    return {
        "title": title,
        "bars": [(label, value, round(100 * value / longest)) for label, value in bars],
    }


class CheckoutForm(forms.Form):
    product = forms.ModelChoiceField(Product.objects.filter(stock__gt=0), empty_label=None)
    quantity = forms.IntegerField(min_value=1, max_value=20, initial=1)


@require_http_methods(["GET", "POST"])
def checkout(request: HttpRequest) -> HttpResponse:
    """A transaction keeps its connection, whatever the toolkit is told."""
    form = CheckoutForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            order = services.place_order(form.cleaned_data["product"], quantity=form.cleaned_data["quantity"])
        except services.OutOfStock as problem:
            form.add_error("quantity", str(problem))
        else:
            return redirect(order)
    return render(request, "shop/checkout.html", {"form": form})


@require_GET
def connections(request: HttpRequest) -> HttpResponse:
    """What this process holds, as the toolkit sees it."""
    counters = asdict(conn_hygiene.stats())
    context = {
        "leases": conn_hygiene.snapshot(),
        "counters": [(name.replace("_", " "), value) for name, value in counters.items()],
    }
    return render(request, "shop/connections.html", context)


@require_GET
def session(request: HttpRequest) -> JsonResponse:
    """Name the thread that answers, and the server session that it queries."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    return JsonResponse({"thread": threading.current_thread().name, "pid": pid})


@require_GET
def schema_offers(request: HttpRequest, schema: str) -> JsonResponse:
    """``order()`` for the tenant whose schema the middleware has chosen."""
    return offers(schema, SchemaOffer.objects.using(tenants.ALIAS))


@require_GET
def shared_offers(request: HttpRequest, stall: str | None = None) -> JsonResponse:
    """``order()`` for the tenant whose rows a policy shows; without one there is nothing to see."""
    return offers(stall, SharedOffer.objects.using(tenants.ALIAS))


def offers(stall: str | None, visible: QuerySet[Any]) -> JsonResponse:
    """Query, wait for somebody else, query again; say whose data was asked for, and whose was read."""
    owners = visible.order_by("stall").values_list("stall", flat=True).distinct()
    before = list(owners)
    carrier.track(A_PARCEL)
    return JsonResponse({"asked": stall, "before": before, "after": list(owners.all())})
