from __future__ import annotations

import random
from decimal import Decimal
from itertools import product as pairs
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction

from example_project.shop.models import Customer, Order, OrderLine, Product

GOODS = ["Kettle", "Teapot", "Mug", "Tray", "Whisk", "Grinder", "Scales", "Filter", "Jar", "Spoon"]
STYLES = ["Copper", "Enamel", "Glass", "Oak", "Steel"]
FIRST_NAMES = ["Ada", "Boris", "Chioma", "Dana", "Edsger", "Frances", "Grace", "Hedy", "Ivan", "Jean"]
LAST_NAMES = ["Adeyemi", "Brandt", "Castro", "Dubois", "Eriksen", "Fischer", "Greco", "Haddad"]


class Command(BaseCommand):
    help = "Fills an empty shop with customers, products and orders."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--orders", type=int, default=500, help="how many orders (default: 500)")

    def handle(self, *, orders: int, verbosity: int, **options: Any) -> None:
        if Order.objects.exists():
            message = "The shop has orders already: left as it is."
        else:
            self.fill(orders)
            message = f"The shop is open: {orders} orders."
        if verbosity:
            self.stdout.write(message)

    @transaction.atomic
    def fill(self, orders: int) -> None:
        # The same shop each time: a measurement must not depend on the dice.
        dice = random.Random(36964)
        customers = Customer.objects.bulk_create(
            Customer(
                name=f"{first} {last}",
                email=f"{first}.{last}@example.com".lower(),
            )
            for first in FIRST_NAMES
            for last in LAST_NAMES
        )
        products = Product.objects.bulk_create(
            Product(
                sku=f"{style[:2]}{goods[:3]}-{number:02}".upper(),
                name=f"{style} {goods.lower()}",
                price=Decimal(dice.randrange(400, 9000)) / 100,
                stock=dice.randrange(50, 500),
            )
            for number, (style, goods) in enumerate(pairs(STYLES, GOODS), start=1)
        )
        placed = Order.objects.bulk_create(
            Order(
                customer=dice.choice(customers),
                status=dice.choice(Order.Status.values),
                tracking_number=f"PX{number:010}",
            )
            for number in range(1, orders + 1)
        )
        OrderLine.objects.bulk_create(
            OrderLine(
                order=order,
                product=product,
                quantity=dice.randint(1, 4),
                unit_price=product.price,
            )
            for order in placed
            for product in dice.sample(products, dice.randint(1, 5))
        )
