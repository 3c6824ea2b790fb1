"""The site's settings, and those of its task queues.

``HUEY_FILE``      where Huey keeps its queue
``REDIS_URL``      where RQ and Dramatiq keep theirs
``QUERY_ON_LOAD``  set: whatever sets Django up has used the database before it forks
"""

from __future__ import annotations

import os

from tests.workers.site.settings import *  # noqa: F403
from tests.workers.site.settings import INSTALLED_APPS as _APPS

INSTALLED_APPS = [*_APPS, "django_q", "huey.contrib.djhuey", "tests.workers.site.queues.apps.Queues"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

HUEY = {
    "huey_class": "huey.SqliteHuey",
    "filename": os.environ.get("HUEY_FILE", ":memory:"),
    "immediate": False,
}

Q_CLUSTER = {
    "name": "site",
    "orm": "default",
    "workers": 2,
    # Each worker ends after two tasks, and another is forked from a parent that has lived for a while.
    "recycle": 2,
    "timeout": 60,
    "retry": 120,
    "poll": 0.05,
    "guard_cycle": 0.05,
}

TASKS = {"default": {"BACKEND": "huey.contrib.djhuey.tasks_backend.HueyBackend"}}
