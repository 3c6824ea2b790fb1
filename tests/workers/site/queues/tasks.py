"""What "manage.py run_huey" finds by itself."""

from __future__ import annotations

from huey.contrib.djhuey import db_task  # type: ignore[import-untyped]

from tests.workers.site.queues import jobs

TASKS = {job.__name__: db_task()(job) for job in jobs.ALL}
