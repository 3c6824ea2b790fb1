"""Invoices, each of them an HTML file. To render them keeps a processor busy, so many are work for many processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.template.loader import render_to_string

from example_project.shop.models import Order

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def write_invoices(pks: Sequence[int], directory: Path) -> list[str]:
    """Write the invoices of these orders into *directory*; return a line for each that could not be written."""
    problems = []
    for order in Order.objects.filter(pk__in=pks).select_related("customer").prefetch_related("lines__product"):
        lines = order.lines.all()
        if not lines:
            problems.append(f"{order} has no lines.")
            continue
        context = {"order": order, "lines": lines, "amount": sum(line.amount for line in lines)}
        path = directory / f"invoice-{order.pk}.html"
        path.write_text(render_to_string("shop/invoice.html", context), encoding="utf-8")
    return problems
