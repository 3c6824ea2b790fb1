"""The metrics at one URL: ``path("metrics/", include("conn_hygiene.contrib.prometheus.urls"))``."""

from __future__ import annotations

from django.urls import path

from conn_hygiene.contrib import prometheus
from conn_hygiene.contrib.views import without_transaction

# From when the URLs are loaded, and not from the first scrape on.
prometheus.register()

urlpatterns = [path("", without_transaction(prometheus.metrics), name="conn_hygiene_metrics")]
