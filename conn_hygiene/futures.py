"""Executors whose jobs leave no connection behind: those of :mod:`concurrent.futures`, and used in the same way."""

from __future__ import annotations

import os
import threading
from concurrent import futures
from multiprocessing import parent_process
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import django
from django.apps import apps
from django.conf import settings
from django.db import connections

from conn_hygiene import installation  # noqa: F401 - a fork is seen to from here on, installed or not
from conn_hygiene.forks.discarding import close_pools
from conn_hygiene.forks.hooks import close_all_after_fork
from conn_hygiene.scopes import closing_connections, leave_inherited

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import BaseContext

P = ParamSpec("P")
T = TypeVar("T")


class ThreadPoolExecutor(futures.ThreadPoolExecutor):
    """``concurrent.futures.ThreadPoolExecutor`` with :func:`~conn_hygiene.closing_connections` around each job.

    The connections that a job opened are closed when it ends, or go back to their pool; the same holds for
    *initializer*. A thread begins outside of all scopes, whatever is around the call that starts it.

    In all else, arguments and exceptions included, it is the standard library's class.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        start: Any = initializer
        # One that cannot be called is for the standard library to refuse.
        if initializer is None or callable(initializer):
            start, initargs = _start_thread, (initializer, *initargs)
        super().__init__(max_workers, thread_name_prefix, start, initargs)

    # map() goes by this, too.
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> futures.Future[T]:
        """Schedule ``fn(*args, **kwargs)`` and return its future."""
        return super().submit(_run, fn, *args, **kwargs)


class ProcessPoolExecutor(futures.ProcessPoolExecutor):
    """``concurrent.futures.ProcessPoolExecutor`` whose workers use connections of their own, and close them.

    A worker begins by discarding what it inherited (:func:`~conn_hygiene.close_all_after_fork`), whatever
    ``DISCARD_AFTER_FORK`` says, and outside of all scopes, whatever is around the call that forks it. If Django is not
    set up in it, as after ``spawn`` and ``forkserver``, it calls ``django.setup()``, provided that the environment has
    ``DJANGO_SETTINGS_MODULE``. Then it runs *initializer*, and its jobs, each inside
    :func:`~conn_hygiene.closing_connections`: with a native pool, their connections go back to the worker's own pool,
    which is closed when the worker ends. To ``map()``, a chunk is one job.

    A worker whose parent is killed finishes the job that it has begun, and ends. A worker of the standard library's
    would wait for another job for ever, and keep its sessions.

    In all else, arguments and exceptions included, it is the standard library's class.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        # max_tasks_per_child, from Python 3.11 on
        **options: Any,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        start = _WorkerStart(initializer, initargs)
        super().__init__(max_workers, mp_context, start, **options)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> futures.Future[T]:
        """Schedule ``fn(*args, **kwargs)`` and return its future."""
        return super().submit(_work, fn, *args, **kwargs)


class _WorkerStart:
    """What a worker process runs first.

    Pickles the user's initializer in a parcel of its own, which is opened only when Django is set up: the module that
    it comes from may import models.
    """

    def __init__(self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
        self._of_user: Any = (initializer, initargs)

    def __getstate__(self) -> bytes:
        # The pickler of multiprocessing, for its locks and queues. This runs inside that of the process.
        return bytes(ForkingPickler.dumps(self._of_user))

    def __setstate__(self, parcel: bytes) -> None:
        self._of_user = parcel

    def __call__(self) -> None:
        global _working  # noqa: PLW0603 - where a job has forked this worker, it is held
        _working = threading.Lock()
        close_all_after_fork()
        leave_inherited()
        threading.Thread(target=_end_with_parent, name="conn-hygiene-parent", daemon=True).start()
        if not apps.ready and os.environ.get("DJANGO_SETTINGS_MODULE"):
            django.setup()
        if isinstance(self._of_user, bytes):
            self._of_user = ForkingPickler.loads(self._of_user)
        # Worker processes may end without atexit; this is run under each start method. Below zero: after what the jobs
        # themselves have registered.
        Finalize(None, _close_all, exitpriority=-100)
        initializer, initargs = self._of_user
        if initializer is not None:
            _run(initializer, *initargs)


def _start_thread(initializer: Callable[..., object] | None, *initargs: Any) -> None:
    # From Python 3.14 on, a thread may begin with the context of whoever submitted the first job.
    leave_inherited()
    if initializer is not None:
        _run(initializer, *initargs)


def _run(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    with closing_connections():
        return fn(*args, **kwargs)


# Seconds between two looks whether the parent is still there.
_LOOK_FOR_PARENT = 1.0

# Held while a worker's job runs. By nobody in other processes.
_working = threading.Lock()


def _work(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    with _working:
        return _run(fn, *args, **kwargs)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    # A forked process that the parent has besides keeps the pipe open that tells of its end.
    is_its_child = os.getppid() == parent.pid
    while parent.is_alive() and not (is_its_child and os.getppid() != parent.pid):
        parent.join(_LOOK_FOR_PARENT if is_its_child else None)
    with _working:
        os._exit(1)


def _close_all() -> None:
    # Without Django, all jobs have failed, and there is nothing to close.
    if settings.configured:
        connections.close_all()
        close_pools()
