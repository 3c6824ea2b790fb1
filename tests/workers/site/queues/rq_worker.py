"""What "rq worker" loads: ``-w tests.workers.site.queues.rq_worker.Worker``, or ``...SimpleWorker``."""

from __future__ import annotations

from typing import Any

import django
from rq import SimpleWorker
from rq import Worker as RQWorker

django.setup()

from tests.workers.site.queues import jobs  # noqa: E402

__all__ = ["SimpleWorker", "Worker"]


class Worker(RQWorker):
    """Queries before it forks, and after."""

    def execute_job(self, *args: Any, **kwargs: Any) -> None:
        jobs.report("parent")
        super().execute_job(*args, **kwargs)
        jobs.report("parent")
