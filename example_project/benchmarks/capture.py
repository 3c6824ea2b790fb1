"""What it costs to remember the line of code that a checkout or a transaction came from.

    python -m example_project.benchmarks.capture

Measured where it happens: at the bottom of the stack of a view that Django's test client asks for, inside the ORM.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

ROUNDS, CALLS = 15, 2000


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.settings")
    from example_project.processes import postgresql, shop_database

    with shop_database(postgresql()) as env:
        os.environ.update(env)
        import django

        django.setup()
        report(measure())
        from django.db import connections

        connections.close_all()
        connections["default"].close_pool()  # type: ignore[attr-defined]


def measure() -> list[float]:
    """Return the microseconds of one call of each round."""
    from django.db import connection
    from django.test import Client

    rounds: list[float] = []

    def look(execute: Any, *query: Any) -> Any:
        if not rounds:
            # From Django's own frame on, as if no code of the application's were in between.
            django_frame = sys._getframe(1)
            rounds.extend(one_round(django_frame) for _ in range(ROUNDS))
        return execute(*query)

    with connection.execute_wrapper(look):
        Client(headers={"host": "localhost"}).get("/")
    return rounds


def one_round(frame: FrameType) -> float:
    from conn_hygiene import callsite

    started = time.perf_counter()
    for _ in range(CALLS):
        callsite._innermost(frame)
    return (time.perf_counter() - started) / CALLS * 1e6


def report(rounds: list[float]) -> None:
    print(f"{statistics.median(rounds):.2f} µs a call (from {min(rounds):.2f} to {max(rounds):.2f}, {ROUNDS} rounds)")
    print(
        f"Django {version('django')}, psycopg {version('psycopg')}, Python {platform.python_version()}, "
        f"on {platform.system()} {platform.machine()} with {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
