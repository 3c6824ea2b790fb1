"""For Celery: a task is to the toolkit what a request is, and Django's native pool lives as long as its process.

Celery knows Django by a *fixup*, which closes connections around each task and, in a prefork worker, the pool with
them. The one here is Celery's own with other receivers; a worker without it is plain Celery again.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import signals  # type: ignore[import-untyped]
from celery.fixups.django import DjangoFixup, DjangoWorkerFixup  # type: ignore[import-untyped]
from celery.fixups.django import fixup as celerys_own

from conn_hygiene import installation, internals
from conn_hygiene.contrib import jobs
from conn_hygiene.forks import discarding
from conn_hygiene.forks import hooks as forks
from conn_hygiene.masking import printable
from conn_hygiene.transactions import left_open

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("conn_hygiene.celery")


def fixup(app: Any, env: str = "DJANGO_SETTINGS_MODULE") -> DjangoFixup | None:
    """Take the place of Celery's fixup for Django: ``Celery(fixups=["conn_hygiene.contrib.celery:fixup"])``.

    In a worker, each task runs inside :func:`~conn_hygiene.release_between_queries`; reports and
    :func:`~conn_hygiene.snapshot` have its name where they have a request's. After it, its connections go back to the
    pool, or are closed, those of code under ``asyncio.run`` included; a transaction that it leaves open is rolled back,
    with a warning. Pools are closed when their process ends. Tasks that run eagerly are part of what called them.

    :param app: the Celery application.
    :param env: the environment variable that names the settings; without it nothing is done, as by Celery's own.
    """
    # Celery's names, too, now that it is loaded.
    internals.look()
    if not internals.CELERY.available:
        return celerys_own(app, env)
    return _Fixup(app).install() if os.environ.get(env) else None


class _Fixup(DjangoFixup):  # type: ignore[misc]
    def install(self) -> DjangoFixup:
        signals.worker_process_init.connect(self._on_worker_process_init)
        return super().install()

    # Late, for it reads the configuration, which the application has yet to be given.
    @cached_property
    def worker_fixup(self) -> DjangoWorkerFixup:
        return _WorkerFixup(self.app)

    def _on_worker_process_init(self, **kwargs: Any) -> None:
        # Celery installs it in the worker alone, and processes that begin with "spawn" inherit nothing. Celery's sign
        # of them is this variable.
        if os.environ.get("FORKED_BY_MULTIPROCESSING") and not self.worker_fixup.installed:
            self.worker_fixup.install()


class _WorkerFixup(DjangoWorkerFixup):  # type: ignore[misc]
    """Celery's own, but for the life of pools and the surroundings of a task."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.installed = False
        # The task that each thread runs.
        self._running = threading.local()

    def install(self) -> DjangoWorkerFixup:
        # For sites that have the fixup without the application in INSTALLED_APPS.
        installation.install()
        # Closes what the worker has opened so far, with its pools: there should be nothing for processes to inherit.
        super().install()
        self.installed = True
        signals.worker_process_shutdown.connect(self._on_worker_process_shutdown)
        signals.worker_shutdown.connect(self._close_pools)
        return self

    def on_worker_process_init(self, **kwargs: Any) -> None:
        forks.close_all_after_fork()
        # Celery takes for inherited what is open here, and closes its descriptors. It is the process's own by now.
        self._close_database()
        super().on_worker_process_init(**kwargs)

    def on_task_prerun(self, sender: Any, **kwargs: Any) -> None:
        super().on_task_prerun(sender, **kwargs)
        if not sender.request.is_eager:
            # Celery's own way to write it, in its log.
            self._running.task = _task(f"task {sender.name}[{sender.request.id}]")
            self._running.task.__enter__()

    def on_task_postrun(self, sender: Any, **kwargs: Any) -> None:
        try:
            if not sender.request.is_eager:
                self._running.task.__exit__(None, None, None)
        finally:
            super().on_task_postrun(sender, **kwargs)

    def _close_database(self) -> None:
        if self.installed:
            jobs.close_connections(logger)
        else:
            super()._close_database()

    def _on_worker_process_shutdown(self, **kwargs: Any) -> None:
        self._close_pools()
        # It leaves by os._exit(), which asks nobody else.
        metrics: Any = sys.modules.get("conn_hygiene.contrib.prometheus.multiprocess")
        if metrics is not None:
            metrics.end()

    def _close_pools(self, **kwargs: Any) -> None:
        jobs.close_connections(logger)
        discarding.close_pools()


@contextmanager
def _task(label: str) -> Iterator[None]:
    """Have the toolkit treat what the running thread does inside as a request by the name of *label*."""
    label = printable(label)
    jobs.begin(label)
    try:
        with jobs.covered("conn-hygiene-task", label, logger):
            yield
    finally:
        left_open.request_finished()
