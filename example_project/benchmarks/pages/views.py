"""The shop's own pages of this kind."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from django import forms
from django.shortcuts import render

from example_project.benchmarks.views import ORDERS
from example_project.shop.models import Order

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse

# Orders on a page: each asks for its customer and for its lines.
SHOWN = 14

if TYPE_CHECKING:
    OrderModelForm = forms.ModelForm[Order]
else:
    OrderModelForm = forms.ModelForm


class StatusForm(OrderModelForm):
    """What can be changed of an order in the overview."""

    class Meta:
        model = Order
        fields = ("status", "tracking_number")


def overview(request: HttpRequest) -> HttpResponse:
    """Show some orders, each with its customer, its lines and a form: some thirty small queries."""
    first = random.randint(1, ORDERS - SHOWN)
    orders = Order.objects.filter(pk__gte=first).order_by("pk")[:SHOWN]
    rows = ((order, StatusForm(instance=order, prefix=f"order-{order.pk}")) for order in orders)
    return render(request, "pages/overview.html", {"rows": rows})
