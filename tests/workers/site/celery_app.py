"""What "celery -A tests.workers.site.celery_app worker" loads.

``HYGIENE_FIXUP``  "off": with Celery's own
``START_METHOD``   how processes begin, "fork" by default
"""

from __future__ import annotations

import os

from celery import Celery  # type: ignore[import-untyped]

_FIXUPS = {"off": None, "on": ["conn_hygiene.contrib.celery:fixup"]}

app = Celery(
    "site",
    broker=os.environ["REDIS_URL"],
    backend=os.environ["REDIS_URL"],
    include=["tests.workers.site.celery_tasks"],
    fixups=_FIXUPS[os.environ.get("HYGIENE_FIXUP", "on")],
)
app.conf.worker_pool_start_method = os.environ.get("START_METHOD", "fork")
