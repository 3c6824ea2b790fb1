"""What the toolkit has to reach, as ratios within one run, and whether it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from example_project.benchmarks.contenders import (
    FEW,
    HOLDING,
    LARGE_TOOLKIT,
    NETWORK_TOOLKIT,
    NEVER,
    PAGES_HOLDING,
    PAGES_TOOLKIT,
    PEER,
    PGBOUNCER,
    TENANT_TOOLKIT,
    TOOLKIT,
)
from example_project.benchmarks.rounds import Summary, ratios, summarise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from example_project.benchmarks.contenders import Contender
    from example_project.benchmarks.measuring import Results


@dataclass(frozen=True)
class Bar:
    """One thing to reach, and what was measured; the median of the rounds is what counts."""

    workload: int
    text: str
    limit: float
    at_least: bool
    measured: Summary | None
    decimals: int = 3
    # What the number alone does not tell.
    remark: str = ""

    @property
    def met(self) -> bool | None:
        if self.measured is None:
            return None
        if self.at_least:
            return self.measured.median >= self.limit
        return self.measured.median <= self.limit


def bars(results: Results, ideals: dict[str, float]) -> list[Bar]:
    """Return all bars; those without a measurement are neither met nor missed."""
    return [
        *of_one_thread(results),
        *of_crowds(results, ideals),
        *of_growth(results),
        *of_the_rest(results),
        *of_tenants(results, ideals),
        *of_pages(results),
    ]


def of_one_thread(results: Results) -> Iterator[Bar]:
    for key, query in ("get", ".get()"), ("select", "SELECT 1"):
        ratio = compared(results, key, "microseconds", HOLDING)
        yield Bar(1, f"{query}: time, of Django's pool", 1.05, False, ratio)


def of_crowds(results: Results, ideals: dict[str, float]) -> Iterator[Bar]:
    rates = values(results, "slow", TOOLKIT, "rate")
    yield Bar(2, "requests/s, of the ideal", 0.98, True, summarise(rate / ideals["slow"] for rate in rates))
    requests, timeouts = (sum(values(results, "slow", TOOLKIT, name)) for name in ("requests", "timeouts"))
    share = summarise([timeouts / requests]) if requests else None
    remark = f"{timeouts:.0f} of {requests:.0f} requests"
    yield Bar(2, "timeouts per request", 1 / 100_000, False, share, decimals=5, remark=remark)
    yield Bar(3, "requests/s, of django-pg-real-pool", 1.05, True, compared(results, "mixed", "rate", PEER))
    yield Bar(3, "requests/s, of PgBouncer", 0.97, True, compared(results, "mixed", "rate", PGBOUNCER))
    yield Bar(3, "99th percentile, of django-pg-real-pool", 1.0, False, compared(results, "mixed", "p99", PEER))
    yield Bar(3, "99th percentile, of PgBouncer", 1.0, False, compared(results, "mixed", "p99", PGBOUNCER))
    yield Bar(4, "requests/s, of Django's pool", 0.95, True, compared(results, "database", "rate", HOLDING))
    ratio = compared(results, "transaction", "rate", HOLDING)
    yield Bar(4, "requests/s in a transaction, of Django's pool", 0.98, True, ratio)


def of_growth(results: Results) -> Iterator[Bar]:
    points = {int(key.removeprefix("scale-")): key for key in results if key.startswith("scale-")}
    costs = {threads: values(results, points[threads], TOOLKIT, "cpu") for threads in sorted(points)}
    few, many = (min(costs), max(costs)) if len(costs) > 1 else (8, 512)
    growth = summarise(ratios(costs[many], costs[few])) if len(costs) > 1 else None
    yield Bar(6, f"CPU per request with {many} threads, of that with {few}", 1.25, False, growth)
    # The worst of the points is what counts.
    shares = [summary for key in points.values() if (summary := summarise(values(results, key, TOOLKIT, "reaper")))]
    yield Bar(6, "the reaper's share of CPU", 0.02, False, max(shares, key=median, default=None), decimals=4)
    slowest = [
        summary for key in points.values() if (summary := summarise(values(results, key, TOOLKIT, "slowest_share")))
    ]
    yield Bar(
        6, "requests of the slowest thread, of the median one's", 0.5, True, min(slowest, key=median, default=None)
    )


def of_the_rest(results: Results) -> Iterator[Bar]:
    forks = summarise(values(results, "fork-64", LARGE_TOOLKIT, "milliseconds"))
    yield Bar(7, "ms to a child's first answer, 64 inherited", 10, False, forks, decimals=1)
    for key, query in ("never-get", ".get()"), ("never-select", "SELECT 1"):
        ratio = compared(results, key, "microseconds", HOLDING, ours=NEVER)
        yield Bar(8, f'RELEASE = "never", {query}: time, of plain Django', 1.01, False, ratio)
    ratio = compared(results, "beside", "beside_p99", HOLDING)
    yield Bar(9, "99th percentile of short pages, of Django's pool", 0.25, False, ratio)


def of_tenants(results: Results, ideals: dict[str, float]) -> Iterator[Bar]:
    rates = {way: values(results, f"tenants-{way}", TENANT_TOOLKIT, "rate") for way in ("none", "set", "function")}
    for way, name in ("set", "SET"), ("function", "a function"):
        measured = summarise(ratios(rates[way], rates["none"])) if rates[way] and rates["none"] else None
        yield Bar(10, f"requests/s with {name} in front, of those without", 0.95, True, measured)
    ways = [key for key in results if key.startswith("few-")]
    shares = [summarise(rate / ideals[key] for rate in values(results, key, FEW, "rate")) for key in ways]
    slowest = min((share for share in shares if share), key=median, default=None)
    yield Bar(10, "requests/s with 12 threads and 2 connections, of the ideal", 1 / 1.5, True, slowest)
    wrong = [
        share
        for key in results
        for contender in (TENANT_TOOLKIT, NETWORK_TOOLKIT, FEW)
        for share in values(results, key, contender, "wrong")
    ]
    worst = summarise([max(wrong)]) if wrong else None
    yield Bar(10, "answers for another tenant", 0, False, worst, decimals=5)


def of_pages(results: Results) -> Iterator[Bar]:
    for key in ("shop", "list", "form", "todo"):
        rate, p99 = (
            compared(results, f"pages-{key}", measure, PAGES_HOLDING, ours=PAGES_TOOLKIT) for measure in ("rate", "p99")
        )
        yield Bar(11, f"pages ({key}), requests/s, of Django's pool", 0.97, True, rate)
        yield Bar(11, f"pages ({key}), 99th percentile, of Django's pool", 1.0, False, p99)


def values(results: Results, workload: str, contender: Contender, measure: str) -> list[float]:
    """Return the rounds of one number; none if it was not measured."""
    return [each[measure] for each in results.get(workload, {}).get(contender.key, [])]


def compared(
    results: Results, workload: str, measure: str, other: Contender, *, ours: Contender = TOOLKIT
) -> Summary | None:
    """Return what the ratios of the rounds come to."""
    mine, others = values(results, workload, ours, measure), values(results, workload, other, measure)
    return summarise(ratios(mine, others)) if mine and others else None


def median(summary: Summary) -> float:
    return summary.median
