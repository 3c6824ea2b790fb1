"""prometheus_client in its multiprocess mode, which it chooses when it is imported: run in a process of its own.

The module imports nothing of it, nor what needs Django to be set up.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import django
from django.db import connections

import conn_hygiene
from conn_hygiene import events


def query() -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT 1")
    connections["default"].close()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "prometheus" in thread.name]


def in_child() -> int:
    """Query twice in a forked child that ends at once, without a word to anybody; return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        from conn_hygiene.contrib.prometheus import multiprocess

        alone = threads()
        query()
        query()
        multiprocess.write()
        os._exit(0 if (alone, threads()) == ([], ["conn-hygiene-prometheus"]) else 1)
    assert os.waitpid(child, 0)[1] == 0
    return child


def in_child_of_multiprocessing(method: str) -> None:
    """Query in a child that ends by itself, without a word to anybody, well within a second."""
    child = multiprocessing.get_context(method).Process(target=query)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    child.join()
    assert child.exitcode == 0
    child.close()


class _Seen:
    """A lock that tells of another thread that comes for it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.mine = threading.get_ident()
        self.came = threading.Event()

    def __enter__(self) -> None:
        if threading.get_ident() != self.mine:
            self.came.set()
        self.lock.acquire()

    def __exit__(self, *of_error: object) -> None:
        self.lock.release()


def two_threads() -> list[list[str]]:
    """Return who writes when a second thread has an event told while the first is about to begin, and in the end."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        django.setup()
        from conn_hygiene.contrib import prometheus

        prometheus.register()
        lock: Any = _Seen()
        prometheus.multiprocess._lock = lock
        event = events.TransactionRetried(alias="default", function="pay", attempt=1, sqlstate=None, delay=0)
        with lock:
            first = threading.Thread(target=events.publish, args=[event])
            first.start()
            lock.came.wait()
            events.publish(event)
            found = [threads()]
        first.join()
        found.append(threads())
        prometheus.unregister()
        return found


def a_life() -> Any:
    """Return what a scrape says of checkouts and of pools, after each thing that happens to a process."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        django.setup()
        from django.test import RequestFactory
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

        from conn_hygiene.contrib import prometheus
        from tests.test_prometheus_files import samples

        told: dict[str, Any] = {}

        def tell(what: str, text: str | None = None) -> None:
            found = samples(text or prometheus.metrics(RequestFactory().get("/")).content.decode())
            pools = found.get("conn_hygiene_pool_max_size", {})
            told[what] = [found["conn_hygiene_checkouts_total"]["default",], sum(pools.values()), len(threads())]

        prometheus.register()
        prometheus.register()
        tell("registered")
        query()
        tell("queried")
        made = Path(directory, "counter_4711.db")
        made.touch()
        tell("another process makes its file")
        made.unlink()
        child = in_child()
        tell("forked")
        mark_process_dead(child)
        tell("marked")
        in_child_of_multiprocessing("fork")
        tell("forked by multiprocessing")
        connections["default"].close_pool()
        tell("closed")
        conn_hygiene.uninstall()
        conn_hygiene.install()
        tell("installed anew")
        query()
        tell("queried again")
        prometheus.unregister()
        query()
        # The view would register it again.
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        tell("unregistered", generate_latest(registry).decode())
        connections["default"].close_pool()
        return told
