"""For Prometheus: what each alias holds, has done and has waited for, as metrics (the extra ``prometheus``).

``path("metrics/", include("conn_hygiene.contrib.prometheus.urls"))`` is all that a site needs. Where somebody else
serves the metrics, such as ``prometheus_client.start_http_server()`` or django-prometheus, call :func:`register` in an
``AppConfig.ready()``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from django.db import transaction
from django.http import HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from conn_hygiene.contrib.extras import extra
from conn_hygiene.contrib.prometheus import families

with extra("prometheus", needs="prometheus-client"):
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.multiprocess import MultiProcessCollector
    from prometheus_client.registry import Collector as _Collector
    from prometheus_client.utils import floatToGoString

    from conn_hygiene.contrib.prometheus import multiprocess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.http import HttpRequest
    from prometheus_client import Metric

__all__ = ["ALERTS", "DASHBOARD", "Collector", "metrics", "register", "unregister"]

#: The file of alert rules, for ``rule_files`` in the configuration of Prometheus.
ALERTS = Path(__file__).with_name("alerts.yml")

#: The file of a dashboard, to be imported by Grafana.
DASHBOARD = Path(__file__).with_name("dashboard.json")


class Collector(_Collector):
    """The metrics of this process, read at each scrape. Asks no server, and waits for nobody."""

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without values, which is how a registry learns their names."""
        for family in families.GAUGES:
            yield GaugeMetricFamily(family.name, family.help, labels=family.labels)
        for family in families.COUNTERS:
            yield CounterMetricFamily(family.name, family.help, labels=family.labels)
        for family in families.HISTOGRAMS:
            yield HistogramMetricFamily(family.name, family.help, labels=family.labels)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        described: dict[str, Any] = {metric.name: metric for metric in self.describe()}
        for family, labels, value in [*families.gauges(), *families.counters()]:
            described[family.name].add_metric(labels, value)
        for family, labels, histogram in families.histograms():
            buckets = [(floatToGoString(bound), count) for bound, count in histogram.buckets]
            described[family.name].add_metric(labels, buckets, histogram.sum)
        yield from described.values()


# By registry.
_registered: WeakKeyDictionary[CollectorRegistry, Collector] = WeakKeyDictionary()


def register(registry: CollectorRegistry | None = None) -> None:
    """Have the metrics of this process be exported. Does nothing the second time.

    In the multiprocess mode of prometheus_client, where ``PROMETHEUS_MULTIPROC_DIR`` is set and registries know nothing
    of collectors, this process writes them into its files there once a second instead, and at its end; forked children
    do so too. A process that has counted nothing yet has no thread for that.

    :param registry: prometheus_client's own by default.
    """
    if multiprocess.is_on():
        multiprocess.begin()
        return
    to = REGISTRY if registry is None else registry
    if to not in _registered:
        collector = Collector()
        to.register(collector)
        _registered[to] = collector


def unregister(registry: CollectorRegistry | None = None) -> None:
    """Take the metrics of :func:`register` out of *registry*. Files of the multiprocess mode stay as they are."""
    multiprocess.end()
    collector = _registered.pop(REGISTRY if registry is None else registry, None)
    if collector is not None:
        (REGISTRY if registry is None else registry).unregister(collector)


@never_cache
@require_safe
# At a URL of the site's own. Those of urls.py have it for all aliases, which take settings: not needed to import this.
@transaction.non_atomic_requests
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer with all metrics of prometheus_client's registry; in multiprocess mode, with those of all processes.

    A view that needs no database connection, so that it answers while the pool is empty; by :mod:`.urls`, not under
    ``ATOMIC_REQUESTS`` either. It asks nobody who they are: restrict it as you do your other pages for machines.
    """
    register()
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(_all()), content_type=content_type)


def _all() -> CollectorRegistry:
    if not multiprocess.is_on():
        return REGISTRY
    # Others have written within the last second.
    multiprocess.write()
    registry = CollectorRegistry()
    registry.register(_OfAllProcesses())
    return registry


class _OfAllProcesses(_Collector):
    """What is in the files of prometheus_client's multiprocess mode.

    Its own MultiProcessCollector fails at a file that is still empty: one that another process has just made, or was
    killed while it made it.
    """

    def collect(self) -> Iterator[Metric]:
        files = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("*.db")
        yield from MultiProcessCollector.merge([str(file) for file in files if _has_content(file)])


def _has_content(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        # The gauges of a process that has just been found dead.
        return False
