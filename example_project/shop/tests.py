"""Every page answers, with the toolkit and without.

    python example_project/manage.py test example_project
    CONN_HYGIENE=off python example_project/manage.py test example_project

None of these is a ``TestCase``: inside its transaction there is nothing to give back.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from django.apps import apps
from django.core.management import call_command
from django.db import OperationalError, connections, transaction
from django.db.backends.signals import connection_created
from django.http import StreamingHttpResponse
from django.test import RequestFactory, TransactionTestCase, override_settings
from django.urls import reverse
from psycopg_pool import PoolTimeout

from example_project.processes import partner
from example_project.shop import carrier, tenants, views, watching
from example_project.shop.models import Order, Product

if TYPE_CHECKING or apps.is_installed("conn_hygiene"):
    from conn_hygiene.testing import ConnectionHygieneMixin
else:

    class ConnectionHygieneMixin:
        """Stands in for what would look at what a test leaves, where the toolkit is off."""


class ShopTests(ConnectionHygieneMixin, TransactionTestCase):
    databases = {"default", tenants.ALIAS}

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            settings = stack.enter_context(partner(0, directory=directory))
            stack.enter_context(override_settings(**settings))
            cls.addClassCleanup(stack.pop_all().close)
        # Django closes the pool of the database's own alias, and none of its mirrors'.
        cls.addClassCleanup(connections[tenants.ALIAS].close_pool)  # type: ignore[attr-defined]

    def setUp(self) -> None:
        super().setUp()
        call_command("seed", orders=20, verbosity=0)
        self.order = Order.objects.filter(status=Order.Status.SHIPPED)[0]
        patcher = mock.patch.object(views, "POLL_EVERY", 0)
        patcher.start()
        self.addCleanup(patcher.stop)
        # The test client's requests leave open what a server's would close, and set what they have set.
        self.addCleanup(connections[tenants.ALIAS].close)

    def test_pages(self) -> None:
        for name in ("index", "report", "checkout", "connections", "session"):
            with self.subTest(name):
                self.assertEqual(self.client.get(reverse(name)).status_code, 200)

    def test_pages_tell_their_time(self) -> None:
        response = self.client.get(reverse("index"))
        self.assertRegex(response["Server-Timing"], r'(^|, )total;dur=\d+\.\d;desc="in Django"(,|$)')
        # For browsers without JavaScript; with it, they say more.
        self.assertContains(response, "This page took")

    async def test_async_pages_tell_their_time(self) -> None:
        response = await self.async_client.get(reverse("order-async", args=[self.order.pk]))
        self.assertRegex(response["Server-Timing"], r"total;dur=\d+\.\d")

    def test_scripts_and_styles_come_from_the_site_alone(self) -> None:
        with override_settings(COMPARED={"without": "", "with": ""}):
            pages = [self.client.get(reverse(name)) for name in ("index", "report", "checkout", "connections")]
        pages.append(self.client.get(reverse("order", args=[self.order.pk])))
        for response in pages:
            text = response.content.decode()
            self.assertEqual(response["Content-Security-Policy"], "default-src 'self'; img-src 'self' data:")
            self.assertNotRegex(text, r"<style|style=|<script>|\son\w+=")
            found = re.findall(r'(?:<script src|rel="stylesheet" href)="([^"]+)"', text)
            self.assertGreaterEqual(len(found), 2)
            for path in found:
                self.assertEqual(self.client.get(path).status_code, 200)

    def test_nothing_to_compare(self) -> None:
        self.assertNotContains(self.client.get(reverse("index")), "<button")
        self.assertEqual(self.client.post(reverse("compare", args=["with"])).status_code, 404)
        self.assertEqual(self.client.get(reverse("pool")).status_code, 404)

    @override_settings(WATCHED=True)
    def test_what_the_pool_does(self) -> None:
        connection = connections["default"]
        self.addCleanup(connection.close)
        connection.close()
        connection_created.connect(watching._note_holder)
        self.addCleanup(connection_created.disconnect, watching._note_holder)
        watching._note_visitor({"PATH_INFO": "/orders/7/"})
        self.addCleanup(watching._forget_visitor)

        with transaction.atomic():
            Order.objects.count()
            self.assertEqual(self.of_the_pool("in use"), [7])
        connection.ensure_connection()
        self.assertEqual(self.of_the_pool("held idle"), [7])
        connection.close()
        self.assertEqual((self.of_the_pool("in use"), self.of_the_pool("held idle")), ([], []))

    def of_the_pool(self, state: str) -> list[int | None]:
        """Return the visitors who have connections in this state."""
        pool = json.loads(watching.pool(RequestFactory().get("/pool/")).content)
        self.assertEqual((pool["size"], pool["patience"]), (4, 5))
        return [each["visitor"] for each in pool["connections"] if each["state"] == state]

    def test_index_of_an_empty_shop(self) -> None:
        Order.objects.all().delete()
        self.assertContains(self.client.get(reverse("index")), "The shop is empty")

    def test_seeding_twice(self) -> None:
        call_command("seed", verbosity=0)
        self.assertEqual(Order.objects.count(), 20)

    def test_tenants(self) -> None:
        for stall in tenants.STALLS:
            for name in ("schema-offers", "shared-offers"):
                with self.subTest(name, stall=stall):
                    response = self.client.get(reverse(name, args=[stall]))
                    self.assertEqual(response.json(), {"asked": stall, "before": [stall], "after": [stall]})

    def test_nobody_of_the_tenants(self) -> None:
        response = self.client.get(reverse("nobodys-offers"))
        self.assertEqual(response.json(), {"asked": None, "before": [], "after": []})
        for name in ("schema-offers", "shared-offers"):
            self.assertEqual(self.client.get(reverse(name, args=["nobody"])).status_code, 404)

    def test_no_connection_in_time_for_a_tenant(self) -> None:
        busy = OperationalError("couldn't get a connection after 5.00 sec")
        busy.__cause__ = PoolTimeout()
        for middleware, name in (
            (tenants.SchemaTenantMiddleware, "schema-offers"),
            (tenants.PolicyTenantMiddleware, "shared-offers"),
        ):
            with (
                mock.patch.object(middleware, "choose", side_effect=busy),
                self.assertLogs("django.request", "ERROR"),
            ):
                response = self.client.get(reverse(name, args=["anvil"]))
            self.assertContains(response, "too busy", status_code=503)

    def test_order(self) -> None:
        response = self.client.get(reverse("order", args=[self.order.pk]))
        self.assertContains(response, f"{self.order.tracking_number}, last seen in")

    async def test_order_async(self) -> None:
        response = await self.async_client.get(reverse("order-async", args=[self.order.pk]))
        self.assertContains(response, f"{self.order.tracking_number}, last seen in")

    def test_no_connection_in_time(self) -> None:
        busy = OperationalError("couldn't get a connection after 5.00 sec")
        busy.__cause__ = PoolTimeout()
        with mock.patch.object(carrier, "track", side_effect=busy), self.assertLogs("django.request", "ERROR"):
            response = self.client.get(reverse("order", args=[self.order.pk]))
        self.assertContains(response, "too busy", status_code=503)

    def test_events(self) -> None:
        response = self.client.get(reverse("order-events", args=[self.order.pk]))
        assert isinstance(response, StreamingHttpResponse)
        events = iter(response.streaming_content)
        self.assertIn(b'"shipped"', next(events))
        self.assertEqual(next(events), b": no change\n\n")
        self.client.post(reverse("order-advance", args=[self.order.pk]))
        self.assertIn(b'"delivered"', next(events))
        self.assertEqual(list(events), [])

    async def test_events_async(self) -> None:
        response = await self.async_client.get(reverse("order-events", args=[self.order.pk]))
        assert isinstance(response, StreamingHttpResponse)
        events = aiter(response.streaming_content)
        self.assertIn(b'"shipped"', await anext(events))
        self.assertEqual(await anext(events), b": no change\n\n")
        await self.async_client.post(reverse("order-advance", args=[self.order.pk]))
        self.assertIn(b'"delivered"', await anext(events))
        self.assertEqual([event async for event in events], [])

    def test_events_of_no_order(self) -> None:
        self.assertEqual(self.client.get(reverse("order-events", args=[0])).status_code, 404)

    def test_checkout(self) -> None:
        product = Product.objects.all()[0]
        response = self.client.post(reverse("checkout"), {"product": product.pk, "quantity": 2})
        order = Order.objects.latest("pk")
        self.assertRedirects(response, reverse("order", args=[order.pk]))
        self.assertEqual([str(line) for line in order.lines.all()], [f"2 of {product}"])
        self.assertTrue(order.tracking_number)
        self.assertEqual(Product.objects.get(pk=product.pk).stock, product.stock - 2)

    def test_checkout_of_more_than_there_is(self) -> None:
        product = Product.objects.all()[0]
        Product.objects.filter(pk=product.pk).update(stock=1)
        response = self.client.post(reverse("checkout"), {"product": product.pk, "quantity": 2})
        self.assertContains(response, "No more than 1 left.")
        self.assertEqual(Order.objects.count(), 20)
