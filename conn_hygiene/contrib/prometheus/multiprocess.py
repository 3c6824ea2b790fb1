"""Several processes behind one scrape: the multiprocess mode of prometheus_client.

There, each process writes its values into files in ``PROMETHEUS_MULTIPROC_DIR``, and whoever is scraped adds them up
(its documentation, "Multiprocess Mode"). Collectors are asked by nobody. So a thread copies this process's numbers
there once a second, and the way of a query is what it is without Prometheus. A process that is killed takes the last
second with it; one that ends leaves its counters, and no gauges. So do children of multiprocessing, which Python ends
without asking atexit.

Who may touch what: all below is guarded by ``_lock``, which is held over a fork, so that no child inherits a lock of
prometheus_client that the thread was holding. The locks of what is read are taken inside.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from typing import Any

from prometheus_client import values
from prometheus_client.utils import floatToGoString

from conn_hygiene import events
from conn_hygiene.contrib.prometheus import families
from conn_hygiene.forks import hooks as forks

logger = logging.getLogger("conn_hygiene.prometheus")

#: Seconds between two looks at the numbers. Prometheus comes every ten at most, by its configuration's usual values.
INTERVAL = 1.0

# Reentrant: a signal handler that forks may interrupt who holds it.
_lock = threading.RLock()

# By type, sample name and labels: prometheus_client's value in a file, and for what only grows, what was added so far.
_values: dict[tuple[str, ...], Any] = {}
_added: dict[tuple[str, ...], float] = {}

# Set to end the thread; None while there is none.
_stop: threading.Event | None = None
_begun = False


def is_on() -> bool:
    """Return whether prometheus_client is in multiprocess mode, by its own sign."""
    return bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))


def begin() -> None:
    """Write from the first event on, once a second and at the end of the process. Does nothing the second time."""
    global _begun  # noqa: PLW0603 - one process, one set of files
    with _lock:
        if _begun:
            return
        _begun = True
    events.listen(events.Event, _first)


def end() -> None:
    """Write no more, having written once more. Does nothing before :func:`begin`."""
    global _begun, _stop
    events.unlisten(events.Event, _first)
    with _lock:
        if not _begun:
            return
        stopped, _stop, _begun = _stop, None, False
        if stopped is not None:
            stopped.set()
            _write(alive=False)


def write() -> None:
    """Write what the numbers are now."""
    with _lock:
        if _begun:
            _write(alive=True)


def _first(event: events.Event) -> None:
    """Begin for good: from now on there is something to be told, in this process."""
    global _stop  # noqa: PLW0603 - as above
    if isinstance(event, events.ConnectionsDiscarded):
        # Of each forked child, which may be about to fork others, and does that best without a thread.
        return
    with _lock:
        if _stop is None and _begun:
            _end_with_its_work()
            _stop = threading.Event()
            threading.Thread(target=_run, args=[_stop], name="conn-hygiene-prometheus", daemon=True).start()
        # Not before: another thread, which has its event told meanwhile, may be about to end the process.
        events.unlisten(events.Event, _first)


def _end_with_its_work() -> None:
    """Have it end with a child of multiprocessing, if this is one: that leaves by ``os._exit()``.

    Not ahead of its first event: what such a child was told at its fork, multiprocessing forgets.
    """
    processes: Any = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        from multiprocessing.util import Finalize

        # Ahead of what it does last, which is to wait for its own children.
        Finalize(None, _at_exit, exitpriority=0)


def _run(stop: threading.Event) -> None:
    failed = False
    while not stop.wait(INTERVAL):
        try:
            write()
            failed = False
        except Exception:
            # The directory is gone, or its disk is full. It may be mended, and to say it every second helps nobody.
            if not failed:
                logger.exception("Metrics could not be written to PROMETHEUS_MULTIPROC_DIR.")
            failed = True


def _write(*, alive: bool) -> None:
    """Write all that has changed; with no gauges of a process that is not *alive* any more."""
    gauges = {}
    for family, labels, value in families.gauges() if alive else ():
        gauges[_value("gauge", family, family.name, family.labels, labels)] = value
    for key, found in list(_values.items()):
        # Of a pool that is closed, and of a process that ends, there is nothing more to be told.
        if key[0] == "gauge":
            found.set(gauges.get(found, 0))
    for family, labels, value in families.counters():
        _grow("counter", family, f"{family.name}_total", family.labels, labels, value)
    for family, labels, histogram in families.histograms():
        _grow("histogram", family, f"{family.name}_sum", family.labels, labels, histogram.sum)
        below = 0
        for bound, count in histogram.buckets:
            # In the files, each bucket has its own alone.
            le = (*labels, floatToGoString(bound))
            _grow("histogram", family, f"{family.name}_bucket", (*family.labels, "le"), le, count - below)
            below = count


def _grow(
    kind: str, family: families.Family, sample: str, names: tuple[str, ...], labels: tuple[str, ...], total: float
) -> None:
    """Add what *total* has grown by since it was added. A process before this one may have had its id, and its file."""
    value = _value(kind, family, sample, names, labels)
    key = (kind, sample, *labels)
    before = _added.get(key, 0)
    # Less than before: install() has been called again, and counts from nothing.
    more = total - before if total >= before else total
    if more:
        value.inc(more)
    _added[key] = total


def _value(kind: str, family: families.Family, sample: str, names: tuple[str, ...], labels: tuple[str, ...]) -> Any:
    key = (kind, sample, *labels)
    value = _values.get(key)
    if value is None:
        # As prometheus_client's own metrics make them. They follow a fork into the child's files by themselves.
        mode = {"multiprocess_mode": "livesum"} if kind == "gauge" else {}
        value = _values[key] = values.ValueClass(kind, family.name, sample, names, labels, family.help, **mode)
    return value


def _after_fork_in_child() -> None:
    """Begin in a forked child: with its own files, and without the thread."""
    global _lock, _begun, _stop  # noqa: PLW0603 - nobody holds the new one yet
    _lock = threading.RLock()
    _added.clear()
    _stop = None
    if _begun:
        _begun = False
        begin()


def _before_fork() -> None:
    _lock.acquire()


def _after_fork_in_parent() -> None:
    _lock.release()


def _at_exit() -> None:
    try:
        end()
    except Exception:
        logger.exception("Metrics could not be written to PROMETHEUS_MULTIPROC_DIR.")


forks.register_after_fork(_after_fork_in_child)
atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
