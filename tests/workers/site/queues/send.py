"""Puts jobs into a queue: python -m tests.workers.site.queues.send QUEUE JOB..."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import django
from django.utils.module_loading import import_string

if TYPE_CHECKING:
    from collections.abc import Iterable

JOBS = "tests.workers.site.queues.jobs"


def rq(jobs: Iterable[str]) -> None:
    from redis import Redis
    from rq import Queue

    with Redis.from_url(os.environ["REDIS_URL"]) as client:
        for job in jobs:
            Queue(connection=client).enqueue(f"{JOBS}.{job}")


def dramatiq(jobs: Iterable[str]) -> None:
    from tests.workers.site.queues.dramatiq_app import ACTORS

    for job in jobs:
        ACTORS[job].send()


def huey(jobs: Iterable[str]) -> None:
    from tests.workers.site.queues.tasks import TASKS

    for job in jobs:
        TASKS[job]()


def django_q(jobs: Iterable[str]) -> None:
    from django_q.tasks import async_task  # type: ignore[import-untyped]

    for job in jobs:
        async_task(f"{JOBS}.{job}")


def django_tasks(jobs: Iterable[str]) -> None:
    from django.tasks import task

    for job in jobs:
        task(import_string(f"{JOBS}.{job}")).enqueue()


QUEUES = {function.__name__: function for function in (rq, dramatiq, huey, django_q, django_tasks)}

if __name__ == "__main__":
    django.setup()
    QUEUES[sys.argv[1]](sys.argv[2:])
