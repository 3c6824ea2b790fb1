"""What is measured, for how long, and with whom."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from example_project.benchmarks import contenders as who

if TYPE_CHECKING:
    from example_project.benchmarks.contenders import Contender


@dataclass(frozen=True)
class Workload:
    """One measurement: a command, to be given to each contender once a round."""

    number: int
    key: str
    title: str
    command: str
    arguments: dict[str, Any]
    rounds: int
    contenders: tuple[Contender, ...] = tuple(who.CONTENDERS)
    # Requests per second if connections were no object.
    ideal: float | None = None
    # Over HTTP: the program that serves.
    server: str | None = None


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    loops: int  # rounds of workload 1
    pairs: int  # rounds of RELEASE="never"
    rounds: int
    forks: int  # rounds of workload 7
    seconds: float
    threads: tuple[int, ...]  # of workload 6


FULL = Scale(loops=100, pairs=200, rounds=3, forks=9, seconds=2.25, threads=(8, 32, 128, 512))
QUICK = Scale(loops=24, pairs=40, rounds=1, forks=5, seconds=1.2, threads=(8, 512))
# It shows that everything runs, and measures nothing.
SMOKE = Scale(loops=1, pairs=1, rounds=1, forks=1, seconds=0.1, threads=(8,))


def workloads(scale: Scale) -> list[Workload]:
    """Return all workloads in their order."""
    return [
        *single_thread(scale),
        *crowds(scale),
        *over_http(scale),
        *growing(scale),
        *forks(scale),
        *overhead(scale),
        beside_each_other(scale),
        *tenants(scale),
        *counts(),
    ]


def single_thread(scale: Scale) -> list[Workload]:
    # Chunks of some 30 ms each: within a round, the machine is the same for all.
    return [
        Workload(1, "get", "one thread, .get() by primary key", "loop", {"path": "/gets/80"}, scale.loops),
        Workload(1, "select", "one thread, SELECT 1", "loop", {"path": "/selects/300"}, scale.loops),
    ]


def crowds(scale: Scale) -> list[Workload]:
    # Where the processor is the limit, ratios differ most from round to round.
    often = replace(scale, rounds=scale.rounds * 2 - 1)
    sprints = replace(often, seconds=scale.seconds * 0.75)
    return [
        crowd(scale, 2, "slow", "1 query, 200 ms elsewhere, 1 query", "/page/1/200/1", threads=32, elsewhere=0.2),
        replace(
            crowd(
                often, 3, "mixed", "2 queries, 50 ms elsewhere, 2 queries", "/page/2/50/2", threads=64, elsewhere=0.05
            ),
            # With the processor for a limit, the ideal means nothing.
            ideal=None,
        ),
        crowd(sprints, 4, "database", "20 queries back to back", "/page/20/0/0", threads=16),
        crowd(sprints, 4, "transaction", "20 queries in a transaction", "/atomic/20", threads=16),
    ]


def crowd(
    scale: Scale, number: int, key: str, title: str, path: str, *, threads: int, elsewhere: float = 0, **more: Any
) -> Workload:
    """Many threads that ask for the same page."""
    return Workload(
        number,
        key,
        f"{threads} threads, {title}",
        "drive",
        {"path": path, "threads": threads, "seconds": scale.seconds, "spread": elsewhere},
        scale.rounds,
        ideal=threads / elsewhere if elsewhere else None,
        **more,
    )


def over_http(scale: Scale) -> list[Workload]:
    scale = replace(scale, seconds=scale.seconds * 0.8)
    found = []
    for server, slow in ("gunicorn", "/page/1/200/1"), ("uvicorn", "/async/1/200/1"):
        slow_title, database_title = "1 query, 200 ms elsewhere, 1 query", "20 queries back to back"
        found += [
            crowd(scale, 5, f"{server}-slow", slow_title, slow, threads=32, elsewhere=0.2, server=server),
            crowd(scale, 5, f"{server}-database", database_title, "/page/20/0/0", threads=16, server=server),
        ]
    return found


def growing(scale: Scale) -> list[Workload]:
    found = []
    for threads in scale.threads:
        # More threads wait longer, so that all points offer the same load, 400 requests per second. With the same wait
        # for all, more threads would be more load, and the processor's caches and queues another thing to measure.
        elsewhere = threads / 400
        title = f"1 query, {elsewhere * 1000:.0f} ms elsewhere, 1 query"
        path = f"/page/1/{elsewhere * 1000:.0f}/1"
        # Without a pool, each thread has a connection. Servers do not take so many.
        takes_part = tuple(each for each in who.CONTENDERS if threads <= 128 or each is not who.UNPOOLED)
        workload = crowd(
            scale, 6, f"scale-{threads}", title, path, threads=threads, elsewhere=elsewhere, contenders=takes_part
        )
        found.append(workload)
    return found


def forks(scale: Scale) -> list[Workload]:
    contenders = (who.LARGE_TOOLKIT, who.CLOSING, who.CLOSING_POOL)
    return [
        Workload(
            7, f"fork-{count}", f"fork, {count} inherited", "fork", {"connections": count}, scale.forks, contenders
        )
        for count in (1, 64)
    ]


def overhead(scale: Scale) -> list[Workload]:
    pair = (who.HOLDING, who.NEVER)
    large_pair = (who.LARGE_HOLDING, who.LARGE_TOOLKIT)
    return [
        Workload(8, "memory", "memory per lease", "memory", {"connections": 64}, scale.rounds, large_pair),
        Workload(8, "never-get", "RELEASE never, .get()", "loop", {"path": "/gets/60"}, scale.pairs, pair),
        Workload(8, "never-select", "RELEASE never, SELECT 1", "loop", {"path": "/selects/120"}, scale.pairs, pair),
    ]


WAYS = {
    "set": "SET",
    "config": "set_config() with a parameter",
    "role": "SET ROLE",
    "block": "session_settings",
    "function": "a function",
}


def tenants(scale: Scale) -> list[Workload]:
    """Return the slow view with a tenant, set in the ways that there are; and what it costs to clean every session."""
    found = []
    for key, where, contenders in ("tenants", "", who.TENANTS), ("network", ", 1 ms each way", who.NETWORK):
        for way, name in ("none", "no tenant"), ("set", "SET"), ("function", "a function"):
            title, path = f"{name}, 1 query, 200 ms elsewhere, 2 queries{where}", f"/tenant/{way}/200"
            found.append(
                crowd(scale, 10, f"{key}-{way}", title, path, threads=32, elsewhere=0.2, contenders=contenders)
            )
    for way, name in WAYS.items():
        title, path = f"{name}, 1 query, 300 ms elsewhere, 2 queries", f"/tenant/{way}/300"
        found.append(crowd(scale, 10, f"few-{way}", title, path, threads=12, elsewhere=0.3, contenders=(who.FEW,)))
    title, pair = "a release after each SELECT 1", (who.AT_ONCE, who.ALWAYS)
    return [*found, Workload(10, "clean", title, "loop", {"path": "/selects/120"}, scale.loops, pair)]


# By sys.monitoring.
COUNTABLE = sys.version_info >= (3, 12)

COUNTED = {
    "select": "SELECT 1",
    "get": ".get()",
    "cycle": "cycle",
    "transaction": "transaction",
    "request": "request",
}
_IN_WORDS = {
    "cycle": "a checkout and a release, without the query in between",
    "transaction": "a transaction of two SELECT 1",
    "request": "a request with one .get()",
}


def counts() -> list[Workload]:
    """Return what is counted and not timed. It comes to the same each time: once is enough."""
    found = []
    for what, name in COUNTED.items() if COUNTABLE else ():
        # PgBouncer's are its own process's.
        takes_part = tuple(each for each in who.COUNTED if what != "cycle" or each is not who.PGBOUNCER)
        title = f"bytecodes of {_IN_WORDS.get(what, name)}"
        found.append(Workload(13, f"count-{what}", title, "count", {"what": what}, 1, takes_part))
    return found


def beside_each_other(scale: Scale) -> Workload:
    """Twice as many long pages as there are connections, and visitors who want one query only."""
    title = "8 threads, 100 queries with 0.3 ms of Python after each; beside them 4 threads, 1 query, every 20 ms"
    beside = {"path": "/page/1/0/0", "threads": 4, "spread": 0.02, "pause": 0.02}
    arguments = {"path": "/long/100/300", "threads": 8, "seconds": scale.seconds, "beside": beside}
    return Workload(9, "beside", title, "drive", arguments, scale.rounds)
