"""What is measured, for how long, and with whom."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, replace
from functools import partial
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


FULL = Scale(loops=100, pairs=200, rounds=3, forks=9, seconds=1.9, threads=(8, 32, 128, 512))
QUICK = Scale(loops=24, pairs=40, rounds=1, forks=5, seconds=1.0, threads=(8, 512))
# It shows that everything runs, and measures nothing.
SMOKE = Scale(loops=1, pairs=1, rounds=1, forks=1, seconds=0.1, threads=(8,))


def workloads(scale: Scale) -> list[Workload]:
    """Return all workloads in their order."""
    return [
        *single_thread(scale),
        *crowds(scale),
        *over_http(scale),
        *growing(scale),
        *growing_by_aliases(scale),
        *growing_by_processes(scale),
        *forks(scale),
        *overhead(scale),
        *beside_each_other(scale),
        *tenants(scale),
        *pages(scale),
        *far_away(scale),
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
    sprints = shorter(often)
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


def shorter(scale: Scale) -> Scale:
    return replace(scale, seconds=scale.seconds * 0.75)


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


def growing_by_aliases(scale: Scale) -> list[Workload]:
    """Return the same load for one pool, and for many that are as large together."""
    scale = shorter(scale)
    found = []
    for count, contenders in who.ALIASES.items():
        title = (
            f"1 query, 80 ms elsewhere, 1 query, in one of {count} databases"
            if count > 1
            else "the same in one database"
        )
        load = crowd(
            scale, 6, f"aliases-{count}", title, "/alias/80", threads=32, elsewhere=0.08, contenders=contenders
        )
        found.append(replace(load, arguments={**load.arguments, "first": "/aliases"}))
    return found


def growing_by_processes(scale: Scale) -> list[Workload]:
    """Return the same load for one process, and for many that are as large together."""
    scale = shorter(scale)
    found = []
    for count, contenders in who.HERDS.items():
        threads = THREADS_OF_HERD // count
        title = f"{count} processes, {threads} threads each, 1 query, 250 ms elsewhere, 1 query"
        load = crowd(
            scale,
            6,
            f"processes-{count}",
            title,
            "/page/1/250/1",
            threads=threads,
            elsewhere=0.25,
            contenders=contenders,
        )
        # Each process asks the catalogue once, when a first connection is given back.
        arguments = {**load.arguments, "processes": count, "first": "/page/1/250/1"}
        found.append(replace(load, command="herd", arguments=arguments, title=title, ideal=THREADS_OF_HERD / 0.25))
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


# In all of its processes.
THREADS_OF_HERD = 100

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


# What the processor limits: templates and forms between some thirty small queries.
PAGES = {
    "shop": ("the shop's orders", "/overview/"),
    "list": ("a list of the admin", "/admin/shop/order/"),
    "form": ("a form of the admin", "/admin/shop/order/250/change/"),
}
if importlib.util.find_spec("todo"):
    PAGES["todo"] = ("a list of django-todo", "/todo/1/orders/")


def pages(scale: Scale) -> list[Workload]:
    """Return the pages that the processor limits, for more threads than may have a connection."""
    # Some 30 are made in a second: in a shorter round each thread has made three, and the slowest is the percentile.
    scale = replace(scale, seconds=scale.seconds * 3)
    return [
        crowd(scale, 11, f"pages-{key}", title, path, threads=16, server="gunicorn", contenders=who.PAGES)
        for key, (title, path) in PAGES.items()
    ]


def beside_each_other(scale: Scale) -> list[Workload]:
    """Return twice as many long pages as there are connections, and visitors who want one query only."""
    return [
        beside(scale, "beside", 100, 8, "/page/1/0/0", tuple(who.CONTENDERS)),
        beside(scale, "fair", 200, 4, "/short", tuple(who.PAIR.values())),
    ]


def beside(
    scale: Scale, key: str, queries: int, threads: int, short: str, contenders: tuple[Contender, ...]
) -> Workload:
    long = f"{threads} threads, {queries} queries with 0.3 ms of Python after each"
    title = f"{long}; beside them 4 threads, 1 query, every 20 ms"
    crowd = {"path": short, "threads": 4, "spread": 0.02, "pause": 0.02}
    arguments = {"path": f"/long/{queries}/300", "threads": threads, "seconds": scale.seconds, "beside": crowd}
    return Workload(9, key, title, "drive", arguments, scale.rounds, contenders)


def far_away(scale: Scale) -> list[Workload]:
    """Return slow, mixed and database-bound views with a network in between, where round trips are what counts.

    There are fewer threads of the latter two, since with as many as elsewhere it would be the processor that counts.
    """
    slow, mixed, database = "1 query, 200 ms elsewhere, 1 query", "2 queries, 50 ms elsewhere, 2 queries", "20 queries"
    far = partial(crowd, shorter(scale), 12, contenders=tuple(who.FAR.values()))
    return [
        far("far-slow", f"{slow}, 1 ms each way", "/page/1/200/1", threads=32, elsewhere=0.2),
        replace(far("far-mixed", f"{mixed}, 1 ms each way", "/page/2/50/2", threads=12, elsewhere=0.05), ideal=None),
        far("far-database", f"{database}, 1 ms each way", "/page/20/0/0", threads=8),
    ]


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
