"""The tables of the report: which number of which workload stands in which column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from example_project.benchmarks.contenders import ALIASES, HERDS
from example_project.benchmarks.workloads import PAGES, WAYS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from example_project.benchmarks.workloads import Workload

    # A title, and what is below it.
    Tables = Iterator[tuple[str, list["Column"]]]


@dataclass(frozen=True)
class Column:
    """One number of one workload."""

    heading: str
    workload: str
    measure: str
    decimals: int = 0
    # To show milliseconds of seconds, or a share in percent.
    factor: float = 1


def tables(workloads: Sequence[Workload]) -> Tables:
    """Return all tables; of some, nothing may have been measured."""
    yield from of_one_thread_and_crowds()
    yield from over_http()
    yield from of_scale([workload.key.removeprefix("scale-") for workload in workloads if "scale-" in workload.key])
    yield from of_growth()
    yield from of_processes_and_memory()
    yield from of_turns()
    yield from of_tenants()
    yield from of_pages()
    yield from of_distance()


def of_one_thread_and_crowds() -> Tables:
    yield (
        "One thread (1), slow views (2), mixed (3), database-bound without and in a transaction (4)",
        [
            Column(".get(), µs", "get", "microseconds"),
            Column("SELECT 1, µs", "select", "microseconds"),
            Column("slow (2), requests/s", "slow", "rate"),
            Column("mixed (3), requests/s", "mixed", "rate"),
            Column("mixed (3), p99 ms", "mixed", "p99"),
            Column("20 queries (4), requests/s", "database", "rate"),
            Column("transaction (4), requests/s", "transaction", "rate"),
        ],
    )


def over_http() -> Tables:
    yield (
        "Over HTTP (5), requests/s: slow views and database-bound",
        [
            Column("gunicorn, slow", "gunicorn-slow", "rate"),
            Column("gunicorn, 20 queries", "gunicorn-database", "rate"),
            Column("uvicorn, slow", "uvicorn-slow", "rate"),
            Column("uvicorn, 20 queries", "uvicorn-database", "rate"),
        ],
    )


def of_scale(points: Sequence[str]) -> Tables:
    for title, measure, decimals, factor in (
        ("requests/s (ideal: 400)", "rate", 0, 1),
        ("99th percentile, less the wait itself, ms", "late", 0, 1),
        ("CPU per request, ms", "cpu", 2, 1),
        ("the reaper's share of CPU, %", "reaper", 2, 100),
        ("requests of the slowest thread, % of the median one's", "slowest_share", 0, 100),
    ):
        columns = [Column(f"{threads} threads", f"scale-{threads}", measure, decimals, factor) for threads in points]
        yield f"Scale (6): {title}", columns


def of_growth() -> Tables:
    for title, measure, decimals, factor in (
        ("CPU per request, ms", "cpu", 2, 1),
        ("the reaper's share of CPU, %", "reaper", 2, 100),
    ):
        columns = [
            Column(f"{what}: {count}", f"{name}-{count}", measure, decimals, factor)
            for what, name, counts in (("databases", "aliases", ALIASES), ("processes", "processes", HERDS))
            for count in counts
        ]
        yield f"Scale (6), 40 connections in all: {title}", columns


def of_processes_and_memory() -> Tables:
    yield (
        "Forks (7): milliseconds from the fork to the child's first answer",
        [Column(f"{count} inherited", f"fork-{count}", "milliseconds", 1) for count in (1, 64)],
    )
    yield (
        'Installed, and RELEASE = "never" (8): µs per query',
        [Column(".get()", "never-get", "microseconds", 1), Column("SELECT 1", "never-select", "microseconds", 1)],
    )
    yield (
        "Memory (8): what Python allocates for a thread with a connection; the difference is a lease",
        [Column("bytes", "memory", "bytes")],
    )


def of_turns() -> Tables:
    yield (
        "Long pages beside short ones (9): whether who waits gets its turn, and what that costs the long ones",
        [
            Column("long, requests/s", "beside", "rate", 1),
            Column("short, median ms", "beside", "beside_p50", 1),
            Column("short, p99 ms", "beside", "beside_p99", 1),
        ],
    )
    yield (
        "The same over 2 connections (9): how long the short ones wait for one, and what the long ones pay for it",
        [
            Column("long, requests/s", "fair", "rate", 1),
            Column("short, median ms waited", "fair", "waited", 1),
            Column("short, median ms", "fair", "beside_p50", 1),
            Column("short, p99 ms", "fair", "beside_p99", 1),
        ],
    )


def of_tenants() -> Tables:
    for key, where in ("tenants", "beside the server"), ("network", "1 ms each way"):
        ways = ("none", "no tenant"), ("set", "SET"), ("function", "a function")
        yield (
            f"Tenants (10), {where}: requests/s (ideal: 160), and answers for another tenant in %",
            [
                *(Column(f"{name}, requests/s", f"{key}-{way}", "rate") for way, name in ways),
                *(Column(f"{name}, wrong %", f"{key}-{way}", "wrong", 1, 100) for way, name in ways[1:]),
            ],
        )
    yield (
        "Tenants (10), 1 ms each way: round trips a request",
        [Column(name, f"network-{way}", "round_trips", 1) for way, name in ways],
    )
    yield (
        "Tenants (10): requests/s of 12 threads over 2 connections (ideal: 40)",
        [Column(name, f"few-{way}", "rate", 1) for way, name in WAYS.items()],
    )
    yield (
        "Cleaning (10): µs of a query whose connection goes back after it",
        [Column("SELECT 1", "clean", "microseconds", 1)],
    )


def of_pages() -> Tables:
    yield (
        "Pages that the processor limits (11), 16 visitors and a pool of 2: requests/s and 99th percentile",
        [
            column
            for key in PAGES
            for column in (
                Column(f"{key}, requests/s", f"pages-{key}", "rate", 1),
                Column(f"{key}, p99 ms", f"pages-{key}", "p99"),
            )
        ],
    )


def of_distance() -> Tables:
    rows = ("slow", "far-slow"), ("mixed", "far-mixed"), ("20 queries", "far-database")
    yield (
        "1 ms each way (12): requests/s, and round trips a request",
        [
            *(Column(f"{name}, requests/s", key, "rate") for name, key in rows),
            *(Column(f"{name}, round trips", key, "round_trips", 1) for name, key in rows),
        ],
    )
