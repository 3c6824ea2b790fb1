"""What the toolkit has to reach, as ratios within one run, and whether it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from example_project.benchmarks.contenders import (
    ALIASES,
    AT_ONCE,
    FAR,
    FEW,
    HERDS,
    HOLDING,
    LARGE_TOOLKIT,
    NETWORK_TOOLKIT,
    NEVER,
    PAGES_HOLDING,
    PAGES_TOOLKIT,
    PAIR,
    PEER,
    PGBOUNCER,
    TENANT_TOOLKIT,
    TOOLKIT,
)
from example_project.benchmarks.rounds import Summary, ratios, summarise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
        *of_fairness(results),
        *of_tenants(results, ideals),
        *of_pages(results),
        *of_distance(results),
    ]


def of_one_thread(results: Results) -> Iterator[Bar]:
    for key, query, limit in ("get", ".get()", 1.04), ("select", "SELECT 1", 1.05):
        ratio = compared(results, key, "microseconds", HOLDING)
        yield Bar(1, f"{query}: time, of Django's pool", limit, False, ratio)
    # Both give back after each.
    ratio = compared(results, "select", "microseconds", PEER, ours=AT_ONCE)
    yield Bar(1, "SELECT 1, RELEASE_AFTER = 0: time, of django-pg-real-pool", 1.0, False, ratio)


def of_crowds(results: Results, ideals: dict[str, float]) -> Iterator[Bar]:
    rates = values(results, "slow", TOOLKIT, "rate")
    yield Bar(2, "requests/s, of the ideal", 0.98, True, summarise(rate / ideals["slow"] for rate in rates))
    requests, timeouts = (sum(values(results, "slow", TOOLKIT, name)) for name in ("requests", "timeouts"))
    share = summarise([timeouts / requests]) if requests else None
    remark = f"{timeouts:.0f} of {requests:.0f} requests"
    yield Bar(2, "timeouts per request", 1 / 100_000, False, share, decimals=5, remark=remark)
    yield Bar(3, "requests/s, of django-pg-real-pool", 1.0, True, compared(results, "mixed", "rate", PEER))
    yield Bar(3, "requests/s, of PgBouncer", 0.95, True, compared(results, "mixed", "rate", PGBOUNCER))
    yield Bar(3, "99th percentile, of django-pg-real-pool", 1.0, False, compared(results, "mixed", "p99", PEER))
    yield Bar(3, "99th percentile, of PgBouncer", 1.0, False, compared(results, "mixed", "p99", PGBOUNCER))
    yield Bar(4, "requests/s, of Django's pool", 0.95, True, compared(results, "database", "rate", HOLDING))
    ratio = compared(results, "transaction", "rate", HOLDING)
    yield Bar(4, "requests/s in a transaction, of Django's pool", 0.97, True, ratio)


def of_growth(results: Results) -> Iterator[Bar]:
    points = {int(key.removeprefix("scale-")): key for key in results if key.startswith("scale-")}
    few, many = (min(points), max(points)) if len(points) > 1 else (8, 512)
    costs = [values(results, f"scale-{count}", TOOLKIT, "cpu") for count in (many, few)]
    yield growth(f"{many} threads", str(few), costs)
    for what, name, contenders in ("databases", "aliases", ALIASES), ("processes", "processes", HERDS):
        few, many = min(contenders), max(contenders)
        costs = [values(results, f"{name}-{count}", contenders[count][-1], "cpu") for count in (many, few)]
        yield growth(f"{many} {what}", str(few), costs)
    # The worst of the points is what counts.
    shares = [summary for key in points.values() if (summary := summarise(values(results, key, TOOLKIT, "reaper")))]
    yield Bar(6, "the reaper's share of CPU", 0.02, False, max(shares, key=median, default=None), decimals=4)
    slowest = [
        summary for key in points.values() if (summary := summarise(values(results, key, TOOLKIT, "slowest_share")))
    ]
    yield Bar(
        6, "requests of the slowest thread, of the median one's", 0.5, True, min(slowest, key=median, default=None)
    )


def growth(many: str, few: str, costs: Sequence[Sequence[float]]) -> Bar:
    """Return the bar for what a request costs where there is much of something; *costs* are of there, and of few."""
    measured = summarise(ratios(*costs)) if all(costs) else None
    return Bar(6, f"CPU per request with {many}, of that with {few}", 1.25, False, measured)


def of_the_rest(results: Results) -> Iterator[Bar]:
    forks = summarise(values(results, "fork-64", LARGE_TOOLKIT, "milliseconds"))
    yield Bar(7, "ms to a child's first answer, 64 inherited", 10, False, forks, decimals=1)
    for key, query in ("never-get", ".get()"), ("never-select", "SELECT 1"):
        ratio = compared(results, key, "microseconds", HOLDING, ours=NEVER)
        yield Bar(8, f'RELEASE = "never", {query}: time, of plain Django', 1.01, False, ratio)


def of_fairness(results: Results) -> Iterator[Bar]:
    ratio = compared(results, "beside", "beside_p99", HOLDING)
    yield Bar(9, "99th percentile of short pages, of Django's pool", 0.25, False, ratio)
    waited = summarise(values(results, "fair", PAIR[TOOLKIT.key], "waited"))
    yield Bar(9, "ms that a short page waits, in the median, for one of 2 connections", 5, False, waited, decimals=1)


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


def of_distance(results: Results) -> Iterator[Bar]:
    ours = FAR[TOOLKIT.key]
    for key, name in ("far-slow", "slow"), ("far-mixed", "mixed"), ("far-database", "20 queries"):
        others = [each for each in FAR.values() if each.toolkit is None]
        ratio = [compared(results, key, "rate", other, ours=ours) for other in others]
        # Whoever is the farthest ahead.
        worst = min((each for each in ratio if each), key=median, default=None)
        yield Bar(12, f"{name}: requests/s, of the fastest other's", 0.98, True, worst)
        fewest = min((each for other in others if (each := values(results, key, other, "round_trips"))), default=None)
        mine = values(results, key, ours, "round_trips")
        more = summarise(ratios(mine, fewest)) if mine and fewest else None
        yield Bar(12, f"{name}: round trips, of the fewest of others", 1.01, False, more)


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
