import multiprocessing
import signal
import threading
from datetime import datetime, timezone

import django
from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from django.core.management.base import BaseCommand

from conn_hygiene import closing_connections
from orders.models import Order

SPAWN = multiprocessing.get_context("spawn")


class Command(BaseCommand):
    help = "Run the jobs at their times, until SIGTERM or Ctrl-C."

    def handle(self, **options):
        over = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: over.set())
        scheduler = BackgroundScheduler(
            executors={
                "default": ThreadPoolExecutor(4),
                "processes": ProcessPoolExecutor(1, {"initializer": django.setup, "mp_context": SPAWN}),
            },
            # Or else a job that is a second late is left out.
            job_defaults={"misfire_grace_time": None},
            timezone=timezone.utc,
        )
        add_jobs(scheduler)
        scheduler.start()
        over.wait()
        scheduler.shutdown()


@closing_connections
def add_jobs(scheduler):
    now = datetime.now(timezone.utc)
    for pk in Order.objects.filter(pk__lte=4).values_list("pk", flat=True):
        scheduler.add_job("orders.jobs:track", "interval", minutes=5, next_run_time=now, args=[pk])
    scheduler.add_job("orders.jobs:report", "interval", hours=1, next_run_time=now, executor="processes")
