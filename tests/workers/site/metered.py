"""The site's URLs, with one for Prometheus."""

from __future__ import annotations

from django.urls import include, path

from tests.workers.site import urls

urlpatterns = [path("metrics/", include("conn_hygiene.contrib.prometheus.urls")), *urls.urlpatterns]
