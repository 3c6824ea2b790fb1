from __future__ import annotations

import os

from django.apps import AppConfig

from tests.workers.site.queues import jobs


class Queues(AppConfig):
    name = "tests.workers.site.queues"
    label = "queues"

    def ready(self) -> None:
        if os.environ.get("QUERY_ON_LOAD"):
            jobs.report("load")
