"""URLs of the tests; a test that needs views of its own uses `settings.ROOT_URLCONF`."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver

urlpatterns: list[URLPattern | URLResolver] = []
