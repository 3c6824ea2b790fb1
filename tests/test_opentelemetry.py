"""What a reader of OpenTelemetry finds is what the connections of this process do, by the conventions' names."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import pytest
from django.db import OperationalError, connections
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.semconv._incubating.metrics import db_metrics

import conn_hygiene
from conn_hygiene import events
from conn_hygiene.contrib import opentelemetry
from tests.test_snapshot import query
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg_pool import ConnectionPool

ALIASES = ["default", "small", "unpooled", "persistent"]

pytestmark = pytest.mark.django_db(transaction=True, databases=ALIASES)

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"


@pytest.fixture
def reader(transactional_db: None) -> Iterator[InMemoryMetricReader]:
    for alias in ALIASES:
        # Django's test classes leave plain methods on the wrappers that they had forbidden to connect.
        vars(connections[alias]).pop("connect", None)
        # Nobody knows for how long the very first checkout of a thread has waited: there is no lease yet.
        query(alias)
    connections.close_all()
    wait_until(lambda: not conn_hygiene.snapshot(), "nothing is held any more")
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    opentelemetry.instrument(provider)
    yield reader
    opentelemetry.uninstrument()
    provider.shutdown()


def metrics(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Return the metrics by name."""
    data = reader.get_metrics_data()
    scopes = [] if data is None else [scope for of in data.resource_metrics for scope in of.scope_metrics]
    assert {scope.scope.name for scope in scopes} <= {"conn_hygiene"}
    return {metric.name: metric for scope in scopes for metric in scope.metrics}


def values(metric: Any, alias: str) -> dict[str | None, Any]:
    """Return the numbers of the pool of *alias*, by state."""
    return {
        point.attributes.get(STATE): point.value for point in metric.data.data_points if point.attributes[POOL] == alias
    }


def times(found: dict[str, Any], name: str, alias: str) -> Any:
    """Return how often a time of *alias* was recorded, and its sum."""
    metric = found.get(f"db.client.connection.{name}")
    points = [] if metric is None else metric.data.data_points
    for point in points:
        if point.attributes == {POOL: alias}:
            return point.count, point.sum
    return 0, 0


def test_pools_are_told_by_state(reader: InMemoryMetricReader, pool_of: Callable[[str], ConnectionPool]) -> None:
    query("small")
    connections["small"].close()
    pool: Any = pool_of("small")
    pool.wait(20)
    taken = [pool.getconn() for _ in range(2)]
    found = metrics(reader)
    assert values(found["db.client.connection.count"], "small") == {"idle": 1, "used": 2}
    for name, number in {"idle.max": 3, "idle.min": 3, "max": 3, "pending_requests": 0}.items():
        assert values(found[f"db.client.connection.{name}"], "small") == {None: number}
    query("small")
    waiting = threading.Thread(target=conn_hygiene.closing_connections(lambda: query("small")))
    waiting.start()
    wait_until(
        lambda: values(metrics(reader)["db.client.connection.pending_requests"], "small") == {None: 1}, "somebody waits"
    )
    assert values(metrics(reader)["db.client.connection.count"], "small") == {"idle": 0, "used": 3}
    # Of no limit there is no number.
    pool.resize(3, math.inf)
    found = metrics(reader)
    assert [values(found[f"db.client.connection.{name}"], "small") for name in ("idle.max", "max")] == [{}, {}]
    pool.resize(3, 3)
    connections["small"].close()
    waiting.join()
    for each in taken:
        pool.putconn(each)


def test_without_a_pool_those_in_use_are_counted(reader: InMemoryMetricReader) -> None:
    query("unpooled")
    found = metrics(reader)
    assert values(found["db.client.connection.count"], "unpooled") == {"used": 1}
    connections["unpooled"].close()
    assert values(metrics(reader)["db.client.connection.count"], "unpooled") == {"used": 0}


def test_each_checkout_is_a_wait_and_a_use(reader: InMemoryMetricReader) -> None:
    told: list[Any] = []
    kinds = (events.CheckedOut, events.CheckedIn)
    for kind in kinds:
        events.listen(kind, told.append)
    try:
        for alias in ("default", "unpooled"):
            for _ in range(3):
                query(alias)
                connections[alias].close()
    finally:
        for kind in kinds:
            events.unlisten(kind, told.append)
    waited: dict[str, list[Any]] = {
        alias: [e.waited_for for e in told if type(e) is events.CheckedOut and e.alias == alias] for alias in ALIASES
    }
    held: dict[str, list[Any]] = {
        alias: [e.held_for for e in told if type(e) is events.CheckedIn and e.alias == alias] for alias in ALIASES
    }
    found = metrics(reader)
    assert times(found, "wait_time", "default") == (3, pytest.approx(sum(waited["default"])))
    assert times(found, "use_time", "default") == (3, pytest.approx(sum(held["default"])))
    # To wait for a connection where there is no pool is to have it opened.
    assert times(found, "wait_time", "unpooled") == (0, 0)
    assert times(found, "create_time", "unpooled") == (3, pytest.approx(sum(waited["unpooled"])))
    assert times(found, "use_time", "unpooled") == (3, pytest.approx(sum(held["unpooled"])))


def test_what_a_pool_opens_has_a_time(reader: InMemoryMetricReader, pool_of: Callable[[str], ConnectionPool]) -> None:
    query("small")
    connections["small"].close()
    pool = pool_of("small")
    pool.wait(20)
    # What it has begun to open before anybody had a connection of it may have been missed.
    before, _ = times(metrics(reader), "create_time", "small")
    pool.resize(4, 4)
    wait_until(lambda: times(metrics(reader), "create_time", "small")[0] == before + 1, "it has opened one more")
    _, seconds = times(metrics(reader), "create_time", "small")
    assert 0 < seconds < 60
    connections["small"].close_pool()


def test_a_pool_without_a_connection_is_a_timeout(
    reader: InMemoryMetricReader, pool_of: Callable[[str], ConnectionPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    query()
    connections.close_all()
    pool = pool_of("default")
    taken = [pool.getconn() for _ in range(pool.max_size)]
    waiting = threading.Thread(target=conn_hygiene.closing_connections(query))
    waiting.start()
    try:
        wait_until(lambda: conn_hygiene.pool_stats("default")[0].waiting == 1, "somebody waits")
        # Who is turned away at once has not waited in vain.
        monkeypatch.setattr(pool, "max_waiting", 1)
        with pytest.raises(OperationalError, match="already 1 requests waiting"):
            query()
        monkeypatch.setattr(pool, "max_waiting", 0)
        monkeypatch.setattr(pool, "timeout", 0.05)
        for _ in range(2):
            with pytest.raises(OperationalError, match="couldn't get a connection"):
                query()
    finally:
        for each in taken:
            pool.putconn(each)
        waiting.join()
    assert values(metrics(reader)["db.client.connection.timeouts"], "default") == {None: 2}


def test_names_units_and_kinds_are_those_of_the_conventions(
    reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against the constants of a package that is in development, and may rename them."""
    made: dict[str, Any] = {}

    class Meter:
        def __getattr__(self, name: str) -> Any:
            kind = name.removeprefix("create_").removeprefix("observable_")
            return lambda name, unit, *rest, **more: made.update({name: (kind, unit)})

    class Observing(Meter):
        def create_observable_up_down_counter(self, name: str, callbacks: Any, unit: str, text: str) -> None:
            made[name] = ("up_down_counter", unit)

    opentelemetry._Instruments(Observing())  # type: ignore[arg-type]
    ours, made = dict(made), {}

    class Conventions(Meter):
        def __getattr__(self, name: str) -> Any:
            kind = name.removeprefix("create_")
            return lambda name, description, unit: made.update({name: (kind, unit)})

    for name, create in vars(db_metrics).items():
        if name.startswith("create_db_client_connection_"):
            create(Conventions())
    assert ours == made
    assert len(ours) == 9


def test_histograms_have_bounds_for_milliseconds(reader: InMemoryMetricReader) -> None:
    query()
    connections["default"].close()
    [point] = metrics(reader)["db.client.connection.wait_time"].data.data_points
    assert point.explicit_bounds[:4] == (0.0005, 0.001, 0.0025, 0.005)
    assert point.explicit_bounds[-1] == 30


def test_instrumenting_twice_measures_once_and_uninstrumenting_ends_it(reader: InMemoryMetricReader) -> None:
    opentelemetry.instrument(MeterProvider([InMemoryMetricReader()]))
    query()
    connections["default"].close()
    assert times(metrics(reader), "wait_time", "default")[0] == 1
    opentelemetry.uninstrument()
    opentelemetry.uninstrument()
    query()
    connections["default"].close()
    found = metrics(reader)
    assert times(found, "wait_time", "default")[0] == 1
    assert not events.wants(events.ConnectionOpened)
    assert not events.wants(events.CheckedOut)


def test_without_instrumenting_nobody_listens() -> None:
    assert not events.wants(events.CheckedOut)
