"""Instrumentation that patches Django or psycopg for good: each function runs in a process of its own.

Each returns what was seen of the same queries, and what the toolkit did meanwhile. The module imports nothing that
needs Django to be set up, and is the ROOT_URLCONF of the requests.
"""

from __future__ import annotations

import warnings
from typing import Any

import django
from django.db import connections, transaction
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse
from django.urls import path

import conn_hygiene

ALIASES = ["default", "unpooled"]


def query(alias: str, *statements: str) -> None:
    for statement in statements or ["SELECT 1", "SELECT 2", "SELECT 3"]:
        with connections[alias].cursor() as cursor:
            cursor.execute(statement)


def view(request: HttpRequest) -> HttpResponse:
    for alias in ALIASES:
        query(alias)
        assert not conn_hygiene.snapshot()
    with transaction.atomic():
        query("default", "SELECT 4")
    return HttpResponse("<body></body>")


urlpatterns: list[Any] = [path("", view)]


def sentry() -> Any:
    with warnings.catch_warnings():
        # It imports eventlet, where that is installed, which says that it is deprecated.
        warnings.simplefilter("ignore")
        import sentry_sdk
        from sentry_sdk.integrations.django import DjangoIntegration

    sent: list[Any] = []
    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        traces_sample_rate=1.0,
        before_send_transaction=lambda event, hint: sent.append(event),
        integrations=[DjangoIntegration(db_transaction_spans=True)],
        default_integrations=False,
        auto_enabling_integrations=False,
    )
    django.setup()
    seen = {}
    for alias in ALIASES:
        with sentry_sdk.start_transaction(name=alias):
            query(alias)
            with transaction.atomic(using=alias):
                query(alias, "SELECT 4")
        seen[alias] = [span["description"] for span in sent[-1]["spans"] if span["op"].startswith("db")]
    return seen, conn_hygiene.stats().releases, conn_hygiene.stats().pinned


def _tracer() -> tuple[Any, Any]:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter, provider


def _statements(exporter: Any) -> list[str]:
    spans = exporter.get_finished_spans()
    exporter.clear()
    return [span.attributes["db.statement"] for span in spans]


def opentelemetry() -> Any:
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor

    exporter, provider = _tracer()
    PsycopgInstrumentor().instrument(tracer_provider=provider)
    django.setup()
    seen = {}
    for alias in ALIASES:
        query(alias)
        with transaction.atomic(using=alias):
            query(alias, "SELECT 4")
        with connections[alias].cursor() as cursor:
            cursor.executemany("SELECT %s", [(5,), (6,)])
        seen[alias] = _statements(exporter)
    return seen, conn_hygiene.stats().releases, conn_hygiene.stats().pinned


def opentelemetry_by_hand() -> Any:
    """Instrument each connection by itself, which replaces the cursor factory of a connection that has a lease."""
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor

    django.setup()
    exporter, provider = _tracer()

    def instrument(connection: Any, **kwargs: Any) -> None:
        # A pool's connection comes here at each checkout, and keeps what it was given at the first.
        if not hasattr(connection.connection, "_is_instrumented_by_opentelemetry"):
            PsycopgInstrumentor().instrument_connection(connection.connection, tracer_provider=provider)

    connection_created.connect(instrument)
    seen = {}
    for alias in ALIASES:
        query(alias)
        seen[alias] = _statements(exporter)
    return seen, conn_hygiene.stats().releases, conn_hygiene.stats().pinned


def debug_toolbar() -> Any:
    django.setup()
    from debug_toolbar.panels.sql import SQLPanel
    from debug_toolbar.toolbar import DebugToolbar, debug_toolbar_urls
    from django.test import Client

    urlpatterns.extend(debug_toolbar_urls())
    toolbars: list[DebugToolbar] = []
    DebugToolbar._created.connect(lambda toolbar, **kwargs: toolbars.append(toolbar), weak=False)
    seen = []
    for _ in range(2):
        assert Client().get("/").status_code == 200
        panel = toolbars[-1].get_panel_by_id(SQLPanel.panel_id)
        seen.append([(entry["alias"], entry["raw_sql"]) for entry in panel.get_stats()["queries"]])
    return seen, conn_hygiene.stats().releases, conn_hygiene.stats().pinned
