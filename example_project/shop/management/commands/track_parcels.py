from __future__ import annotations

from typing import Any

from conn_hygiene import closing_connections
from conn_hygiene.futures import ThreadPoolExecutor
from example_project.shop.models import Order
from example_project.shop.parallel import ParallelCommand
from example_project.shop.services import track_parcels


class Command(ParallelCommand):
    help = "Asks the carrier for the parcels that are on their way, many at a time, and notes which have arrived."
    workers = 16
    chunk = 5

    def handle(self, *, workers: int, chunk: int, verbosity: int, **options: Any) -> None:
        shipped = Order.objects.filter(status=Order.Status.SHIPPED).exclude(tracking_number="")
        with closing_connections():
            pks = list(shipped.values_list("pk", flat=True))
        with ThreadPoolExecutor(workers) as executor:
            self.work_off(executor, track_parcels, pks, chunk=chunk, show=verbosity > 0)
