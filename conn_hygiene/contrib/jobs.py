"""A thread of its own for one job, such as a task or a socket, which is to the toolkit what a request is.

Django gives each request under ASGI a thread for its queries. Elsewhere asgiref has one such thread for the whole
process, whose connections all jobs would share and nobody would close.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import Context
from typing import TYPE_CHECKING

from asgiref.sync import SyncToAsync, ThreadSensitiveContext
from django.db import Error, connections

from conn_hygiene import internals
from conn_hygiene.scopes import RequestScope
from conn_hygiene.transactions import left_open
from conn_hygiene.work import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from logging import Logger


class JobThread:
    """The thread in which the thread-sensitive code of one job runs, such as its queries.

    It starts with the first of it. Needs :data:`conn_hygiene.internals.ASYNC_TASKS`.

    :param name: the thread's, in front of a number.
    :param label: the job's, for reports; it must be fit for a terminal.
    :param logger: where to say that a connection was broken when it was closed.
    """

    def __init__(self, name: str, label: str, logger: Logger) -> None:
        self._logger = logger
        self._started = threading.Event()
        # A function, and no method of this object: the two would keep each other from being collected.
        self._executor = ThreadPoolExecutor(1, name, _start, (label, self._started))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Have what is thread-sensitive inside run in this thread, and not in asgiref's.

        What is left running in an event loop afterwards gets another thread, from asgiref.
        """
        context = ThreadSensitiveContext()
        SyncToAsync.context_to_thread_executor[context] = self._executor
        token = SyncToAsync.thread_sensitive_context.set(context)
        try:
            yield
        finally:
            SyncToAsync.thread_sensitive_context.reset(token)
            SyncToAsync.context_to_thread_executor.pop(context, None)

    def end(self, *, wait: bool) -> Future[None] | None:
        """Have the job end in its thread, behind what still runs there, and then the thread; *wait* until it has.

        Return what became of the job's end, or None if there was nothing to run, and so no thread.
        """
        # Not otherwise: the thread would be started for this.
        ended = self._executor.submit(_end, self._logger) if self._started.is_set() else None
        self._executor.shutdown(wait=wait)
        return ended


def begin(label: str) -> None:
    """Have the running thread serve the job of that *label*, which is fit for a terminal."""
    serving.label = label
    left_open.request_started()


@contextmanager
def covered(name: str, label: str, logger: Logger) -> Iterator[None]:
    """Be in the scope of one job, and have what is asynchronous in it query in a thread of its own.

    The thread that asgiref would take is the process's, for all jobs, and keeps connections that nobody closes. In
    other threads that outlive the job, such as those of an executor, what it leaves reaches no other job.

    :param name: as for :class:`JobThread`, as are the others.
    """
    with RequestScope(), _thread_for_async(name, label, logger):
        yield


@contextmanager
def _thread_for_async(name: str, label: str, logger: Logger) -> Iterator[None]:
    if not internals.ASYNC_TASKS.available:
        yield
        return
    thread = JobThread(name, label, logger)
    try:
        with thread.installed():
            yield
    finally:
        ended = thread.end(wait=True)
        if ended is not None:
            ended.result()


def close_connections(logger: Logger) -> None:
    """Close the running thread's connections, or give them back to their pools; *logger* has those that were broken."""
    for wrapper in connections.all(initialized_only=True):
        try:
            wrapper.close()
        except Error:
            # It is gone in any case, and must not keep the others.
            logger.info("Connection %r was broken when it was closed.", wrapper.alias, exc_info=True)


# Both outside of all scopes: a thread may have the context of whoever has started it, as it does without a GIL.


def _start(label: str, started: threading.Event) -> None:
    started.set()
    Context().run(begin, label)


def _end(logger: Logger) -> None:
    Context().run(left_open.request_finished)
    close_connections(logger)
