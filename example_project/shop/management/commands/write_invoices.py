from __future__ import annotations

import multiprocessing
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conn_hygiene import closing_connections
from conn_hygiene.futures import ProcessPoolExecutor
from example_project.shop.invoices import write_invoices
from example_project.shop.models import Order
from example_project.shop.parallel import ParallelCommand

if TYPE_CHECKING:
    from django.core.management.base import CommandParser


class Command(ParallelCommand):
    help = "Writes the invoices of all orders, in several processes."
    workers = os.cpu_count() or 1
    chunk = 50

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("directory", type=Path, help="where to write them; it is made if need be")

    def handle(self, *, directory: Path, workers: int, chunk: int, verbosity: int, **options: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # While the workers work, this process has no use for a connection.
        with closing_connections():
            pks = list(Order.objects.order_by("pk").values_list("pk", flat=True))
        # The same on every platform, and nothing is inherited.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context) as executor:
            job = partial(write_invoices, directory=directory)
            self.work_off(executor, job, pks, chunk=chunk, show=verbosity > 0)
