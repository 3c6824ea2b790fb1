"""What "dramatiq" loads. ``HYGIENE_MIDDLEWARE`` set to "off" leaves the middleware out."""

from __future__ import annotations

import os

import django
import dramatiq
from dramatiq.brokers.redis import RedisBroker

django.setup()

from tests.workers.site.queues import jobs  # noqa: E402

broker = RedisBroker(url=os.environ["REDIS_URL"])
if os.environ.get("HYGIENE_MIDDLEWARE") != "off":
    from conn_hygiene.contrib.dramatiq import ConnectionHygieneMiddleware

    broker.add_middleware(ConnectionHygieneMiddleware())
dramatiq.set_broker(broker)

ACTORS = {job.__name__: dramatiq.actor(max_retries=0)(job) for job in jobs.ALL}
