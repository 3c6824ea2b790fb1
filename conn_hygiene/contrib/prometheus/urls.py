"""The metrics at one URL: ``path("metrics/", include("conn_hygiene.contrib.prometheus.urls"))``."""

from __future__ import annotations

from django.urls import path

from conn_hygiene.contrib import prometheus

# From when the URLs are loaded, and not from the first scrape on.
prometheus.register()

urlpatterns = [path("", prometheus.metrics, name="conn_hygiene_metrics")]
