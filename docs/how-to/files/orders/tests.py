from concurrent.futures import ThreadPoolExecutor

from django.test import TransactionTestCase

from conn_hygiene import closing_connections
from orders.models import Order

# One for all, as many projects have it: its threads outlive the test.
executor = ThreadPoolExecutor(2)


def count():
    return Order.objects.filter(number="PARCEL-9").count()


class OrderTests(TransactionTestCase):
    def setUp(self):
        Order.objects.create(number="PARCEL-9")

    def test_closing(self):
        self.assertEqual(executor.submit(closing_connections(count)).result(), 1)

    def test_not_closing(self):
        self.assertEqual(executor.submit(count).result(), 1)
