"""What the shop does, apart from showing pages."""

from __future__ import annotations

import http.client
import logging
from functools import partial
from typing import TYPE_CHECKING

from django.db import transaction

from conn_hygiene import release_between_queries
from example_project.shop import carrier
from example_project.shop.models import Customer, Order, OrderLine, Product

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)


class OutOfStock(Exception):
    """There are not as many as the customer wants."""


@transaction.atomic
def place_order(product: Product, *, quantity: int) -> Order:
    """Take goods from stock and place an order for them; the parcel is booked after."""
    # Two customers who want the last one queue here, for this row only.
    product = Product.objects.select_for_update().get(pk=product.pk)
    if product.stock < quantity:
        raise OutOfStock(f"No more than {product.stock} left.")
    product.stock -= quantity
    product.save(update_fields=["stock"])

    customer, _ = Customer.objects.get_or_create(email="guest@example.com", defaults={"name": "A guest"})
    order = Order.objects.create(customer=customer)
    OrderLine.objects.create(order=order, product=product, quantity=quantity, unit_price=product.price)
    # The carrier is slow, and may refuse: a call inside the transaction would
    # keep the row locked and the connection busy for as long.
    transaction.on_commit(partial(book_parcel, order))
    return order


def book_parcel(order: Order) -> None:
    order.tracking_number = carrier.book(str(order))
    order.save(update_fields=["tracking_number"])
    logger.info("%s has the tracking number %s.", order, order.tracking_number)


# A thread that waits for the carrier holds no connection, so there may be many more of them than connections.
@release_between_queries
def track_parcels(pks: Sequence[int]) -> list[str]:
    """Note which of these orders have been delivered; return a line for each that the carrier could not tell of."""
    problems = []
    for order in Order.objects.filter(pk__in=pks):
        try:
            parcel = carrier.track(order.tracking_number)
        except (carrier.CarrierError, http.client.HTTPException, OSError) as error:
            problems.append(f"{order}: {error}")
            continue
        if parcel["progress"] == 100:
            # Not save(): the order may have changed while the carrier thought about it.
            Order.objects.filter(pk=order.pk, status=Order.Status.SHIPPED).update(status=Order.Status.DELIVERED)
    return problems
