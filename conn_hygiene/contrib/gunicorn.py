"""For gunicorn: hooks for its config file, where a hook is a function of that name.

.. code-block:: python

   from conn_hygiene.contrib.gunicorn import post_fork, pre_fork, worker_exit

They matter where the application is loaded before the fork (``preload_app``). Elsewhere they find nothing to do.
"""

from __future__ import annotations

import os
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.transaction import TransactionManagementError

from conn_hygiene.forks.discarding import close_pools
from conn_hygiene.forks.hooks import close_all_after_fork, close_all_before_fork


def pre_fork(server: Any, worker: Any) -> None:
    """Close the master's own connections and pools, so that it keeps no sessions and no thread of a pool is alive.

    The master has some if the application queried while it was loaded. A transaction that it has left open stays; the
    worker is forked all the same, and the log says so.
    """
    # Without preload_app the master knows nothing of Django.
    if settings.configured:
        try:
            close_all_before_fork()
        except TransactionManagementError as error:
            server.log.warning("The master's connections stay open: %s", error)


def post_fork(server: Any, worker: Any) -> None:
    """Discard what the worker inherited; for projects that have ``DISCARD_AFTER_FORK`` off."""
    if settings.configured:
        close_all_after_fork()


def worker_exit(server: Any, worker: Any) -> None:
    """Close the worker's pools, so that its sessions end before the process does, and properly."""
    # The master calls this as well, for a worker that it finds gone; what it would close is its own.
    if settings.configured and worker.pid == os.getpid():
        connections.close_all()
        close_pools()
