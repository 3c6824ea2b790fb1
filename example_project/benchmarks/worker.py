"""A site under measurement, in a process of its own: Django's whole WSGI handler, without a server around it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import threading
import time
import tracemalloc
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults

import django
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import call_command

from conn_hygiene.leases import turns
from example_project.benchmarks import load
from example_project.benchmarks.herd import herd
from example_project.benchmarks.protocol import serve

if TYPE_CHECKING:
    from collections.abc import Iterator


def main() -> None:
    django.setup()
    if "BENCH_TURN" in os.environ:
        turns.TURN = float(os.environ["BENCH_TURN"])
    site = Site()
    serve(
        {
            "drive": site.drive,
            "herd": partial(herd, site.drive),
            "loop": site.loop,
            "count": site.count,
            "fork": fork,
            "memory": memory,
            "shop": shop,
        }
    )
    # The pool's threads need not say goodbye to anybody.
    os._exit(0)


class Site:
    """Requests to the site, each with all that Django does at its beginning and at its end."""

    def __init__(self) -> None:
        self.handler = WSGIHandler()

    def get(self, path: str) -> tuple[int, bytes]:
        """Return the status and the body of a page."""
        environ: dict[str, Any] = {"PATH_INFO": path}
        setup_testing_defaults(environ)
        response = self.handler(environ, lambda *status_and_headers: lambda body: None)
        body = b"".join(response)
        # Servers do this; it sends request_finished, which ends the request's use of the database.
        response.close()
        return response.status_code, body

    def drive(self, **load_arguments: Any) -> dict[str, float]:
        return load.drive(lambda: contextlib.nullcontext(lambda path: self.get(path)[0]), **load_arguments)

    def loop(self, path: str) -> dict[str, float]:
        """Ask for a page that measures itself."""
        status, body = self.get(path)
        if status != 200:
            raise RuntimeError(f"{path} failed with status {status}.")
        answer: dict[str, float] = json.loads(body)
        return answer

    def count(self, what: str) -> dict[str, float]:
        """Count the bytecodes of something in a request, or of a request."""
        from example_project.benchmarks import counting

        if what == "request":
            return counting.count_request(lambda: self.get("/page/1/0/0"))
        return self.loop(f"/counts/{what}")


def shop() -> None:
    """Open a shop without tenants in an empty database, where the run has not."""
    call_command("migrate", "shop", "0001", verbosity=0)
    call_command("seed", verbosity=0)


def fork(connections: int) -> dict[str, float]:
    """Return the milliseconds from a fork to the child's first answer from the database.

    The parent has so many connections open meanwhile, the thread that forks one of them.
    """
    from example_project.benchmarks.views import query

    with holding(connections - 1):
        query(1)
        with warnings.catch_warnings():
            # Python tells that forking a process with threads is dangerous. That is what is measured.
            warnings.simplefilter("ignore", DeprecationWarning)
            seconds = _forked()
        # The parent's own session has survived.
        query(1)
    return {"milliseconds": seconds * 1000}


def _forked() -> float:
    from django.db import connections

    from example_project.benchmarks.views import query

    reading, writing = os.pipe()
    if os.environ.get("BENCH_CLOSE_BEFORE_FORK"):
        # What a project without the toolkit has to do by hand.
        connections.close_all()
        connections["default"].close_pool()  # type: ignore[attr-defined]
    started = time.perf_counter()
    if not (child := os.fork()):
        # A child that hangs must not hang the run.
        signal.alarm(20)
        try:
            query(1)
            os.write(writing, str(time.perf_counter() - started).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    if not text:
        raise RuntimeError("The forked child had no answer from the database.")
    return float(text)


def memory(connections: int) -> dict[str, float]:
    """Return the bytes that Python allocates for each thread with a connection."""
    from example_project.benchmarks.views import query

    query(1)
    with _traced() as allocated:
        before = allocated()
        with holding(connections):
            after = allocated()
    return {"bytes": (after - before) / connections}


@contextlib.contextmanager
def holding(threads: int) -> Iterator[None]:
    """Have so many threads hold a connection each until the block ends."""
    from django.db import connections

    from example_project.benchmarks.views import query

    ready, end = threading.Barrier(threads + 1), threading.Event()

    def hold() -> None:
        query(1)
        ready.wait(60)
        end.wait()
        # Without the toolkit, a thread that ends otherwise would keep its connection from the pool for good.
        connections.close_all()

    holders = [threading.Thread(target=hold) for _ in range(threads)]
    for thread in holders:
        thread.start()
    ready.wait(60)
    try:
        yield
    finally:
        end.set()
        for thread in holders:
            thread.join()


@contextlib.contextmanager
def _traced() -> Iterator[Any]:
    def allocated() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        yield allocated
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    main()
