"""The shop's orders in the admin, as a project would have them that has not counted its queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin

from example_project.shop.models import Order, OrderLine

if TYPE_CHECKING:
    # Generic to type checkers only.
    Inline = admin.TabularInline[OrderLine, Order]
    Model = admin.ModelAdmin[Order]
else:
    Inline, Model = admin.TabularInline, admin.ModelAdmin

# Rows of a list, each of which asks for its customer.
ROWS = 12


class LineInline(Inline):
    """A form for each line; each offers all products, and asks for them."""

    model = OrderLine
    extra = 6


@admin.register(Order)
class OrderAdmin(Model):
    """A list in which the status can be changed, and a form with the lines."""

    list_display = ("pk", "buyer", "status", "placed_at", "amount")
    list_editable = ("status",)
    list_filter = ("status",)
    list_per_page = ROWS
    inlines = (LineInline,)

    @admin.display(description="customer")
    def buyer(self, order: Order) -> str:
        return str(order.customer)

    def amount(self, order: Order) -> str:
        return f"{order.lines.all().amount():.2f}"
