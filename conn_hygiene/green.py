"""Whether threads are green: gevent's or eventlet's greenlets, which take turns in one thread of the system's.

Both put their own locks, queues and thread-locals in the place of Python's (they *patch*). Whatever was made before has
the real ones: it is shared between all greenlets, and blocks all of them where it waits.
"""

from __future__ import annotations

import logging
import select
import sys
import threading
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from conn_hygiene import internals

logger = logging.getLogger("conn_hygiene")

#: What to do where that came too late.
REMEDY = (
    "Patch before anything imports Django: `from gevent import monkey; monkey.patch_all()` as the first line of the "
    "program, or of gunicorn.conf.py with preload_app. For eventlet it is `import eventlet; eventlet.monkey_patch()`."
)


def library() -> str | None:
    """Return which library has made threads green by now, ``"gevent"`` or ``"eventlet"``; None if they are real."""
    # Each is asked only where somebody has imported it.
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        return "gevent"
    patcher: Any = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("thread"):
        return "eventlet"
    return None


def real_poll() -> Any:
    """Return the system's own ``select.poll``, also where it has been replaced; None if it cannot be had.

    gevent's takes no interest in what it does not wait for, as the end of a stream.
    """
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("select"):
        return getattr(select, "poll", None) and monkey.get_original("select", "poll")
    patcher: Any = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("select"):
        return getattr(patcher.original("select"), "poll", None)
    return getattr(select, "poll", None)


def is_late() -> bool:
    """Return whether Django keeps connections by other threads than there are: it was imported before the patching."""
    if not internals.GREEN_THREADS.available:
        return False
    storage: Any = connections._connections._storage  # type: ignore[attr-defined]
    return type(storage) is not threading.local


def complain_if_late() -> None:
    """Log an error if Django was imported before threads became green."""
    if library() is not None and is_late():
        logger.error(_too_late())


def refuse_if_late() -> None:
    """Refuse a connection to a greenlet if Django would give the very same one to the next.

    The main greenlet may have one, since a program may well leave the database to that.

    :raises django.core.exceptions.ImproperlyConfigured: threads became green after Django was imported.
    """
    if library() is None or not is_late():
        return
    greenlet: Any = sys.modules["greenlet"]
    if greenlet.getcurrent().parent is not None:
        raise ImproperlyConfigured(_too_late())


def _too_late() -> str:
    return f"Django was imported before {library()} patched threading: all greenlets share one connection. {REMEDY}"
