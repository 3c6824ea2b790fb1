"""What a scrape finds is what this process holds and has done."""

from __future__ import annotations

import dataclasses
import math
import threading
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections, transaction
from django.test import Client
from django.urls import include, path
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import parser as openmetrics

import conn_hygiene
from conn_hygiene import LeaseInfo
from conn_hygiene.contrib import prometheus
from tests.test_prometheus_files import Samples, exported, samples
from tests.test_snapshot import query
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg_pool import ConnectionPool

ALIASES = ["default", "small", "unpooled", "persistent"]

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=ALIASES),
    pytest.mark.urls(__name__),
]

urlpatterns = [path("metrics/", include("conn_hygiene.contrib.prometheus.urls"))]


@pytest.fixture(autouse=True)
def nothing_is_held(transactional_db: None) -> Iterator[None]:
    connections.close_all()
    wait_until(lambda: not conn_hygiene.snapshot(), "nothing is held any more")
    yield
    prometheus.unregister()


def scrape(**headers: str) -> str:
    response = Client().get("/metrics/", headers=headers)
    assert response.status_code == 200
    return response.content.decode()


def test_a_scrape_tells_the_numbers_of_each_alias() -> None:
    query()
    with transaction.atomic("unpooled"):
        query("unpooled")
    query("persistent", "LISTEN activity")
    connections["persistent"].close()
    query("persistent")
    connections["default"].close()
    connections["unpooled"].close()
    # Nothing that grows is held: the numbers stay what they are.
    connections["persistent"].close()
    found = samples(scrape())
    for alias, stats in conn_hygiene.stats_by_alias().items():
        for name, value in dataclasses.asdict(stats).items():
            what = name.removeprefix("seconds_")
            metric = f"conn_hygiene_{what}_total" if what == name else f"conn_hygiene_{what}_seconds_total"
            assert found[metric][alias,] == value, metric
    assert found["conn_hygiene_pinned_total"]["persistent",] == conn_hygiene.stats("persistent").pinned >= 1
    for alias, histograms in conn_hygiene.histograms_by_alias().items():
        for verb, histogram in zip(("wait", "hold", "use"), dataclasses.astuple(histograms), strict=True):
            times = f"conn_hygiene_{verb}_seconds"
            buckets, total = histogram
            assert [found[f"{times}_bucket"][alias, bound] for alias, bound in _bounds(alias, found, times)] == [
                count for _, count in buckets
            ]
            assert found[f"{times}_sum"][alias,] == total
            assert found[f"{times}_count"][alias,] == buckets[-1][1]


def _bounds(alias: str, found: Samples, times: str) -> list[tuple[str, str]]:
    return [(whose, bound) for whose, bound in found[f"{times}_bucket"] if whose == alias]


def test_a_scrape_tells_what_is_held_and_who_waits(pool_of: Callable[[str], ConnectionPool]) -> None:
    query("small")
    connections["small"].close()
    pool: Any = pool_of("small")
    pool.wait(20)
    query("unpooled", "LISTEN activity")
    taken = [pool.getconn() for _ in range(2)]
    with transaction.atomic("small"):
        query("small")
        waiting = threading.Thread(target=conn_hygiene.closing_connections(lambda: query("small")))
        waiting.start()
        wait_until(lambda: conn_hygiene.pool_stats("small")[0].waiting == 1, "somebody waits")
        found = samples(scrape())
        for each in taken:
            pool.putconn(each)
    waiting.join()
    pools = {name: found[f"conn_hygiene_pool_{name}"]["small",] for name in ("size", "idle", "used", "waiting")}
    assert pools == {"size": 3, "idle": 0, "used": 3, "waiting": 1}
    assert found["conn_hygiene_pool_min_size"]["small",] == found["conn_hygiene_pool_max_size"]["small",] == 3
    assert ("unpooled",) not in found["conn_hygiene_pool_size"]
    pool.resize(3, math.inf)
    assert samples(scrape())["conn_hygiene_pool_max_size"]["small",] == math.inf
    pool.resize(3, 3)
    held = {labels: value for labels, value in found["conn_hygiene_connections_held"].items() if value}
    assert held == {("small", "in_use"): 1, ("unpooled", "pinned"): 1}


@pytest.mark.parametrize("alias", ["default", "small"])
def test_a_scrape_needs_no_connection_while_the_pool_is_empty(
    alias: str, pool_of: Callable[[str], ConnectionPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    query(alias)
    connections.close_all()
    pool = pool_of(alias)
    # What waits for it fails soon.
    monkeypatch.setattr(pool, "timeout", 1)
    taken = [pool.getconn() for _ in range(pool.max_size)]
    monkeypatch.setitem(connections[alias].settings_dict, "ATOMIC_REQUESTS", True)
    before: list[LeaseInfo] = conn_hygiene.snapshot()
    checkouts = conn_hygiene.stats().checkouts
    try:
        found = samples(scrape())
    finally:
        for each in taken:
            pool.putconn(each)
    assert found["conn_hygiene_pool_idle"][alias,] == 0
    assert (conn_hygiene.snapshot(), conn_hygiene.stats().checkouts) == (before, checkouts) == ([], checkouts)
    timeouts = {(alias,): stats.pool_timeouts for alias, stats in conn_hygiene.stats_by_alias().items()}
    assert timeouts == found["conn_hygiene_pool_timeouts_total"]


def test_openmetrics_is_spoken_to_who_asks_for_it() -> None:
    query()
    text = scrape(accept="application/openmetrics-text; version=1.0.0")
    families = {family.name: family.type for family in openmetrics.text_string_to_metric_families(text)}
    assert families["conn_hygiene_checkouts"] == "counter"
    assert families["conn_hygiene_wait_seconds"] == "histogram"
    assert families["conn_hygiene_pool_waiting"] == "gauge"


def test_a_site_posts_nothing_to_it_and_nobody_caches_it() -> None:
    assert Client().post("/metrics/").status_code == 405
    assert "no-cache" in Client().get("/metrics/")["Cache-Control"]


def test_registering_twice_is_registering_once() -> None:
    registry = CollectorRegistry(auto_describe=True)
    prometheus.register(registry)
    prometheus.register(registry)
    text = generate_latest(registry).decode()
    assert text.count("# TYPE conn_hygiene_checkouts_total counter") == 1
    prometheus.unregister(registry)
    prometheus.unregister(registry)
    assert generate_latest(registry) == b""


def test_without_a_registry_it_is_the_one_that_others_serve() -> None:
    prometheus.register()
    assert "conn_hygiene_checkouts_total" in generate_latest(REGISTRY).decode()
    prometheus.unregister()
    assert "conn_hygiene" not in generate_latest(REGISTRY).decode()


def test_whatever_is_counted_has_a_metric() -> None:
    assert len(prometheus.families.COUNTERS) == len(dataclasses.fields(conn_hygiene.Stats))


def test_what_is_exported_is_what_is_scraped() -> None:
    query("small")
    connections["small"].close()
    assert exported() == set(samples(scrape()))
