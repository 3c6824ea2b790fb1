"""For gunicorn: hooks for its config file, where a hook is a function of that name.

.. code-block:: python

   from conn_hygiene.contrib.gunicorn import post_fork, pre_fork, worker_exit

They matter where the application is loaded before the fork (``preload_app``). Elsewhere they find nothing to do.
"""

from __future__ import annotations

import os
import sys
from typing import Any

# Nothing else may be imported here: gunicorn reads its config file before a gevent worker patches threading, and in a
# master that has not loaded the application.


def pre_fork(server: Any, worker: Any) -> None:
    """Close the master's own connections and pools, so that it keeps no sessions and no thread of a pool is alive.

    The master has some if the application queried while it was loaded. A transaction that it has left open stays; the
    worker is forked all the same, and the log says so.

    :raises RuntimeError: it is a gevent worker, and the master has imported Django before anything was patched.
    """
    _refuse_late_patching(worker)
    # Without preload_app the master knows nothing of Django.
    if _is_loaded():
        from django.db.transaction import TransactionManagementError

        from conn_hygiene.forks.hooks import close_all_before_fork

        try:
            close_all_before_fork()
        except TransactionManagementError as error:
            server.log.warning("The master's connections stay open: %s", error)


def post_fork(server: Any, worker: Any) -> None:
    """Discard what the worker inherited; for projects that have ``DISCARD_AFTER_FORK`` off."""
    if _is_loaded():
        from conn_hygiene.forks.hooks import close_all_after_fork

        close_all_after_fork()


def worker_exit(server: Any, worker: Any) -> None:
    """Close the worker's pools, so that its sessions end before the process does, and properly."""
    # The master calls this as well, for a worker that it finds gone; what it would close is its own.
    if _is_loaded() and worker.pid == os.getpid():
        from django.db import connections

        from conn_hygiene.forks.discarding import close_pools

        connections.close_all()
        close_pools()


def child_exit(server: Any, worker: Any) -> None:
    """Take the gauges of a worker that is gone out of Prometheus' sums, however it ended; its counters stay there.

    Called by the master, for the multiprocess mode of prometheus_client. Does nothing outside of that.
    """
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(worker.pid)


def install() -> None:
    """Refuse to be loaded by a master that will fork gevent workers, and has not patched; see :func:`pre_fork`.

    ``"conn_hygiene"`` in INSTALLED_APPS calls this. Does nothing outside of gunicorn.
    """
    # A worker has patched before it loads the application.
    if "gunicorn.arbiter" in sys.modules and _GEVENT in sys.modules:
        _refuse_late_patching(None)


_GEVENT = "gunicorn.workers.ggevent"


def _is_loaded() -> bool:
    """Return whether this process has the project's settings, without a word to Django if it has not."""
    conf = sys.modules.get("django.conf")
    return conf is not None and conf.settings.configured


def _refuse_late_patching(worker: Any) -> None:
    """Refuse what is certain to fail: all greenlets of the worker would share one connection."""
    is_gevent = worker is None or any(each.__module__ == _GEVENT for each in type(worker).__mro__)
    if not is_gevent or "django.db" not in sys.modules:
        return
    from conn_hygiene import green

    if green.library() is None:
        raise RuntimeError(f"Django is imported, and a gevent worker will patch threading after it. {green.REMEDY}")
